//! Connections to a Unix socket, for HTTP of either version.

use std::{
    io,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
};

use hyper::Uri;
use hyper_util::{
    client::legacy::{Builder, Client},
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::UnixStream;
use tower::Service;

/// The address that requests have. Nobody looks it up: the socket is the address.
pub(crate) const ADDRESS: &str = "http://runtime.invalid";

/// Connects to one socket, whatever the address says.
#[derive(Clone, Debug)]
pub(crate) struct ToSocket(PathBuf);

impl Service<Uri> for ToSocket {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    }
}

/// A client of a socket. `set`: what it is told beside.
pub(crate) fn client<B>(path: &Path, set: impl FnOnce(&mut Builder)) -> Client<ToSocket, B>
where
    B: hyper::body::Body + Send,
    B::Data: Send,
{
    let mut builder = Client::builder(TokioExecutor::new());
    set(&mut builder);
    builder.build(ToSocket(path.to_owned()))
}
