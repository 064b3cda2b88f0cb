//! Addresses of names, asked of name servers directly: the C library would load code for it, which this process may not.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    vec,
};

use hickory_resolver::{
    TokioResolver,
    config::{ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::read_system_conf,
};
use hyper_util::client::legacy::connect::dns::Name;
use tower_service::Service;
use tracing::warn;

type Configuration = (ResolverConfig, ResolverOpts);

/// Looks names up, by `/etc/hosts` and the name servers of `/etc/resolv.conf`.
#[derive(Clone, Debug)]
pub struct Resolver {
    /// As it was read last. Another file may take the place of the one that this process is allowed to read.
    last: Arc<Mutex<Option<Configuration>>>,
}

impl Resolver {
    /// As the machine is set up now.
    pub(crate) fn new() -> Self {
        Resolver { last: Arc::new(Mutex::new(read_system_conf().ok())) }
    }

    /// How the machine is set up now, or was when that could be read last; without name servers if it never could.
    fn configuration(&self) -> Configuration {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match read_system_conf() {
            Ok(now) => *last = Some(now),
            Err(error) => warn!(
                "cannot read which name servers to ask (/etc/resolv.conf): {error}; those of before are asked"
            ),
        }
        last.clone()
            .unwrap_or_else(|| (ResolverConfig::from_parts(None, vec![], vec![]), ResolverOpts::default()))
    }
}

impl Service<Name> for Resolver {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let (config, options) = self.configuration();
        Box::pin(async move {
            let failed = |error: NetError| io::Error::other(format!("cannot look up {name}: {error}"));
            let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
            *builder.options_mut() = options;
            let found = builder.build().map_err(failed)?.lookup_ip(name.as_str()).await.map_err(failed)?;
            // The port is put in by who asks.
            Ok(found.iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}
