//! How a store is reached: by its name, through a proxy where the environment names one, with TLS or without.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
    vec,
};

use hickory_resolver::{ResolverBuilder, TokioResolver, net::NetError};
use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::{
        legacy::{
            Client,
            connect::{HttpConnector, dns::Name, proxy::Tunnel},
        },
        proxy::matcher::{Intercept, Matcher},
    },
    rt::{TokioExecutor, TokioIo, TokioTimer},
};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use thiserror::Error;
use tokio::net::TcpStream;
use tower_service::Service;

use crate::flags::StoreFlags;

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
    /// `None`: without TLS.
    tls: Option<TlsFiles>,
    /// The ports that are connected to: the store's or the proxy's.
    pub port: u16,
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
        // As gRPC does it, also where there is no TLS.
        let proxy = Matcher::from_env().intercept(&uri("https")?);
        let (route, port) = Route::new(proxy, flags.store_address.port)?;
        let tls = if flags.insecure { None } else { Some(TlsFiles::new(flags)?) };
        let connections = Connections { origin, route, tls, port };
        connections.transport()?;
        Ok(connections)
    }

    /// A new transport, which connects when it is first used.
    pub fn transport(&self) -> Result<Transport, ConnectionError> {
        let config = match &self.tls {
            Some(files) => files.read()?,
            // Not used: the scheme says so.
            None => client_config(RootCertStore::empty(), None)?,
        };
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

    /// What sends content to addresses that the store names, by HTTP/1.1. The roots are the store's; its own certificate is not shown.
    pub fn http_client<B>(&self) -> Result<HttpClient<B>, ConnectionError>
    where
        B: hyper::body::Body + Send,
        B::Data: Send,
    {
        let config = match &self.tls {
            Some(files) => TlsFiles { roots: files.roots.clone(), certificate: None }.read()?,
            None => client_config(RootCertStore::empty(), None)?,
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(self.route.clone());
        Ok(Client::builder(TokioExecutor::new()).build(connector))
    }
}

/// Files that TLS needs.
#[derive(Debug)]
struct TlsFiles {
    roots: Roots,
    certificate: Option<(PathBuf, PathBuf)>,
}

#[derive(Clone, Debug)]
enum Roots {
    /// Those of the system, as they were at the start.
    System(RootCertStore),
    File(PathBuf),
    /// Nobody is asked.
    Anybody,
}

impl TlsFiles {
    fn new(flags: &StoreFlags) -> Result<Self, ConnectionError> {
        let roots = match &flags.store_ca_file {
            Some(path) => Roots::File(path.clone()),
            None if flags.insecure_skip_verify => Roots::Anybody,
            None => Roots::System(system_roots()?),
        };
        let certificate = flags.store_client_certificate.clone().zip(flags.store_client_key.clone());
        Ok(TlsFiles { roots, certificate })
    }

    fn read(&self) -> Result<ClientConfig, ConnectionError> {
        let certificate = self.certificate.as_ref().map(|(certificate, key)| {
            let chain = certificates(certificate, "--store-client-certificate")?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unusable(key, "--store-client-key", &error))?;
            Ok::<_, ConnectionError>((chain, key))
        });
        let certificate = certificate.transpose()?;
        match &self.roots {
            Roots::System(roots) => client_config(roots.clone(), certificate),
            Roots::File(path) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path, "--store-ca-file")? {
                    roots.add(root).map_err(|error| unusable(path, "--store-ca-file", &error))?;
                }
                client_config(roots, certificate)
            }
            Roots::Anybody => {
                let mut config = client_config(RootCertStore::empty(), certificate)?;
                config.dangerous().set_certificate_verifier(Arc::new(Anybody(ring::default_provider())));
                Ok(config)
            }
        }
    }
}

fn client_config(
    roots: RootCertStore,
    certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
) -> Result<ClientConfig, ConnectionError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    Ok(match certificate {
        Some((chain, key)) => builder.with_client_auth_cert(chain, key)?,
        None => builder.with_no_client_auth(),
    })
}

fn system_roots() -> Result<RootCertStore, ConnectionError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Some systems have a few that are older than the rules.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map_or("none was found".into(), ToString::to_string);
        return Err(ConnectionError::NoRoots(reason));
    }
    Ok(roots)
}

fn certificates(path: &Path, flag: &'static str) -> Result<Vec<CertificateDer<'static>>, ConnectionError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read.map_err(|error| unusable(path, flag, &error))?;
    if certificates.is_empty() {
        return Err(unusable(path, flag, &"there is no certificate in it (PEM)"));
    }
    Ok(certificates)
}

fn unusable(path: &Path, flag: &'static str, reason: &dyn ToString) -> ConnectionError {
    ConnectionError::File { path: path.to_owned(), flag, reason: reason.to_string() }
}

/// Takes every certificate, and still checks that the other side has its key.
#[derive(Debug)]
struct Anybody(CryptoProvider);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Asks name servers itself: the C library would load code for it, which this process may not.
#[derive(Clone, Debug)]
pub struct Names;

impl Service<Name> for Names {
    type Response = vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let failed = |error: NetError| io::Error::other(format!("cannot look up {name}: {error}"));
            // Each time anew, since the machine may be in another network by now.
            let resolver = TokioResolver::builder_tokio().and_then(ResolverBuilder::build).map_err(failed)?;
            let found = resolver.lookup_ip(name.as_str()).await.map_err(failed)?;
            // The port is put in by who asks.
            Ok(found.iter().map(|address| SocketAddr::new(address, 0)).collect::<Vec<_>>().into_iter())
        })
    }
}

/// The way to the store.
#[derive(Clone, Debug)]
pub enum Route {
    /// Straight.
    Direct(HttpConnector<Names>),
    /// Through a proxy (HTTP CONNECT).
    Proxy(Tunnel<HttpConnector<Names>>),
}

impl Route {
    /// The way, and the port that it leads to at first.
    fn new(proxy: Option<Intercept>, store_port: u16) -> Result<(Self, u16), ConnectionError> {
        let mut connector = HttpConnector::new_with_resolver(Names);
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
        let port = uri.port_u16().unwrap_or(80);
        let mut tunnel = Tunnel::new(uri, connector);
        if let Some(password) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(password.clone());
        }
        Ok((Route::Proxy(tunnel), port))
    }
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
