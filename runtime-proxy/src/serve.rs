//! Connections: whose they are, how many there may be, and what they are answered by.

use std::{convert::Infallible, io, path::Path, sync::Arc, time::Duration};

use hyper::{Request, Response, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto::Builder,
    service::TowerToHyperService,
};
use runtimes::Runtime;
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::Semaphore,
    time::sleep,
};
use tower::Service;

use crate::{cri, docker, say};

/// Connections at a time. An uploader has one or two.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection may take to say what it wants.
const HEADER_LIMIT: Duration = Duration::from_secs(10);
/// After a failure to accept (too many open files), before the next attempt.
const PAUSE: Duration = Duration::from_secs(1);

/// What ends it.
pub(crate) fn signals() -> io::Result<(Signal, Signal)> {
    Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
}

/// Answers `user` with what the runtime tells, until it is told to stop.
pub(crate) async fn run(
    listener: UnixListener,
    runtime: &Path,
    user: u32,
    mut terminate: Signal,
    mut interrupt: Signal,
) {
    tokio::select! {
        () = accept(listener, runtime, user) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

async fn accept(listener: UnixListener, runtime: &Path, user: u32) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        // Those beyond wait in the kernel's queue.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                say(&format_args!("cannot accept a connection: {error}; trying again"));
                sleep(PAUSE).await;
                continue;
            }
        };
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == user => {}
            Ok(peer) => {
                say(&format_args!("user {} connected and was turned away: only {user} may", peer.uid()));
                continue;
            }
            Err(error) => {
                say(&format_args!("a connection was turned away: its user cannot be told: {error}"));
                continue;
            }
        }
        let runtime = runtime.to_owned();
        tokio::spawn(async move {
            // Who listens there may be another after a while, so each connection finds out anew.
            match Runtime::open(&runtime).await {
                Ok((Runtime::Cri(cri), _)) => answer(stream, cri::service(cri)).await,
                Ok((Runtime::Docker(docker), _)) => answer(stream, docker::router(docker)).await,
                Err(error) => {
                    say(&error);
                    answer(stream, docker::refusal(&error)).await;
                }
            }
            drop(permit);
        });
    }
}

/// Serves one connection.
async fn answer<S, B>(stream: UnixStream, service: S)
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
    B: hyper::body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(1);
    // What a peer does wrong is its own affair.
    let _ = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)).await;
}
