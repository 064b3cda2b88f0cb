//! How a store is reached: by its name, through a proxy where the environment names one, with TLS or without.

use std::{
    ffi::OsString,
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{HttpConnector, proxy::Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use thiserror::Error;
use tokio::net::TcpStream;
use tower_service::Service;

use super::tls::{TlsFiles, plain_config};
use crate::{flags::StoreFlags, resolver::Resolver};

/// How long a connection may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A connection that says nothing is asked whether it lives, so often, and is given up when it does not say so in time.
const ALIVE_EVERY: Duration = Duration::from_secs(30);
/// In such a time.
const ALIVE_LIMIT: Duration = Duration::from_secs(20);

/// Why a store cannot be reached with these flags.
#[derive(Debug, Error)]
pub enum ConnectionError {
    /// A file with certificates or a key.
    #[error("cannot use {path} ({flag}): {reason}")]
    File {
        /// Which.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// The system has no certificates.
    #[error(
        "this system has no root certificates (Debian's package ca-certificates has them): {0}; --store-ca-file names others"
    )]
    NoRoots(String),
    /// The certificate and its key, or the versions of TLS.
    #[error("cannot use TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// A proxy that is not spoken to by HTTP.
    #[error("the proxy {0} of the environment is none of http://; NO_PROXY says what is reached without it")]
    Proxy(String),
    /// What names a proxy is no address. It may have a password in it, and is not shown.
    #[error(
        "{0} in the environment is no address such as http://proxy.example:3128; unset it, or set it to one"
    )]
    NoProxy(&'static str),
    /// The address is none.
    #[error("--store-address: {0}")]
    Address(String),
}

/// What carries calls to the store.
pub type Transport = Client<HttpsConnector<Route>, tonic::body::Body>;

/// What carries content to an address that the store names.
pub type HttpClient<B> = Client<HttpsConnector<Route>, B>;

/// Makes connections.
#[derive(Debug)]
pub struct Connections {
    /// The store, as gRPC names it.
    pub origin: Uri,
    route: Route,
    resolver: Resolver,
    tls: TlsFiles,
    /// The ports that are connected to: the store's or its proxy's, and those of proxies to others.
    pub ports: Vec<u16>,
}

impl Connections {
    /// Reads all that the flags name, so that what is wrong shows at once. What lies in files may change later: it is read again
    /// for each connection.
    pub fn open(flags: &StoreFlags) -> Result<Self, ConnectionError> {
        let scheme = if flags.insecure { "http" } else { "https" };
        let uri = |scheme: &str| {
            let text = format!("{scheme}://{}", flags.store_address);
            text.parse::<Uri>()
                .map_err(|error| ConnectionError::Address(format!("{}: {error}", flags.store_address)))
        };
        let origin = uri(scheme)?;
        check_proxies(|name| std::env::var_os(name))?;
        // As gRPC does it, also where there is no TLS.
        let proxy = Matcher::from_env().intercept(&uri("https")?);
        let resolver = Resolver::new();
        let (route, port) = Route::new(proxy, flags.store_address.port, &resolver)?;
        let others = ["http://other.invalid", "https://other.invalid"].map(Uri::from_static);
        let others = others.iter().filter_map(|uri| Matcher::from_env().intercept(uri));
        let ports = others.map(|proxy| port_of(&proxy)).chain([port]).collect();
        let tls = TlsFiles::new(flags)?;
        let connections = Connections { origin, route, resolver, tls, ports };
        connections.transport()?;
        Ok(connections)
    }

    /// A new transport, which connects when it is first used.
    pub fn transport(&self) -> Result<Transport, ConnectionError> {
        // Without TLS it is not used: the scheme says so.
        let is_plain = self.origin.scheme_str() == Some("http");
        let config = if is_plain { plain_config()? } else { self.tls.read()? };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http2()
            .wrap_connector(self.route.clone());
        Ok(Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .http2_only(true)
            .http2_keep_alive_interval(ALIVE_EVERY)
            .http2_keep_alive_timeout(ALIVE_LIMIT)
            .build(connector))
    }

    /// What sends content to an address that the store names, by HTTP/1.1. Whoever is there must have a certificate of the system's
    /// authorities, or of the store's: what the flags say of the store's own is not said of others.
    pub fn http_client<B>(&self, uri: &Uri) -> Result<HttpClient<B>, ConnectionError>
    where
        B: hyper::body::Body + Send,
        B::Data: Send,
    {
        let config = self.tls.for_others()?;
        let (route, _) = Route::new(Matcher::from_env().intercept(uri), 0, &self.resolver)?;
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(route);
        Ok(Client::builder(TokioExecutor::new()).build(connector))
    }
}

/// The way to the store.
#[derive(Clone, Debug)]
pub enum Route {
    /// Straight.
    Direct(HttpConnector<Resolver>),
    /// Through a proxy (HTTP CONNECT).
    Proxy(Tunnel<HttpConnector<Resolver>>),
}

impl Route {
    /// The way, and the port that it leads to at first.
    fn new(
        proxy: Option<Intercept>,
        store_port: u16,
        resolver: &Resolver,
    ) -> Result<(Self, u16), ConnectionError> {
        let mut connector = HttpConnector::new_with_resolver(resolver.clone());
        connector.set_connect_timeout(Some(CONNECT_LIMIT));
        connector.set_nodelay(true);
        // What it is asked for may be https.
        connector.enforce_http(false);
        let Some(proxy) = proxy else { return Ok((Route::Direct(connector), store_port)) };
        let uri = proxy.uri().clone();
        if uri.scheme_str() != Some("http") {
            // Without the password that it may have.
            return Err(ConnectionError::Proxy(uri.host().unwrap_or_default().to_owned()));
        }
        let port = port_of(&proxy);
        let mut tunnel = Tunnel::new(uri, connector);
        if let Some(password) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(password.clone());
        }
        Ok((Route::Proxy(tunnel), port))
    }
}

/// Whether what names proxies can be read: what cannot is passed over without a word by who evaluates it, and the store would be
/// spoken to without a proxy.
fn check_proxies(variable: impl Fn(&str) -> Option<OsString>) -> Result<(), ConnectionError> {
    for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"] {
        let Some(value) = variable(name).filter(|value| !value.is_empty()) else { continue };
        // As hyper-util's matcher parses it; others than http are refused where they would be used.
        let uri = value.to_str().and_then(|text| text.parse::<Uri>().ok());
        let is_address = |uri: &Uri| {
            let kinds = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"];
            let host = uri.host().filter(|host| !host.is_empty());
            let (user, address) = uri.authority().map_or(("", ""), |all| {
                let all = all.as_str();
                all.rsplit_once('@').unwrap_or(("", all))
            });
            let port = host.and_then(|host| address.strip_prefix(host));
            uri.scheme_str().is_none_or(|kind| kinds.contains(&kind))
                && !user.contains('@')
                && port.is_some_and(|port| port.is_empty() || uri.port_u16().is_some())
        };
        if !uri.as_ref().is_some_and(is_address) {
            return Err(ConnectionError::NoProxy(name));
        }
    }
    Ok(())
}

fn port_of(proxy: &Intercept) -> u16 {
    proxy.uri().port_u16().unwrap_or(80)
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Service<Uri> for Route {
    type Response = TokioIo<TcpStream>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Route::Direct(connector) => connector.poll_ready(context).map_err(Into::into),
            Route::Proxy(tunnel) => tunnel.poll_ready(context).map_err(Into::into),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Route::Direct(connector) => {
                let connecting = connector.call(uri);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
            Route::Proxy(tunnel) => {
                let connecting = tunnel.call(uri);
                Box::pin(async move { connecting.await.map_err(Into::into) })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_a_proxy_is_an_address() {
        let check = |name: &'static str, value: &'static str| {
            check_proxies(move |asked| (asked == name).then(|| value.into()))
        };
        for good in ["", "http://proxy:3128", "proxy:3128", "proxy", "http://user:word@proxy:1", "[::1]:80"] {
            assert!(check("https_proxy", good).is_ok(), "{good}");
        }
        for wrong in [
            "http://",
            "http://user:word@proxy:port",
            "http://user:wo@word@proxy:1",
            "a b",
            "proxy:99999",
            "proxy:3128/",
            "socks://proxy:1",
            "htp://proxy:1",
        ] {
            let error = check("HTTPS_PROXY", wrong).unwrap_err().to_string();
            assert!(error.contains("HTTPS_PROXY") && !error.contains("word"), "{error}");
        }
    }
}
