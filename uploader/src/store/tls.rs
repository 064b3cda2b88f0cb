//! What TLS needs of files: whose certificates are trusted, and the certificate that is shown.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};
use tracing::warn;

use super::connection::ConnectionError;
use crate::flags::StoreFlags;

/// Files that TLS needs.
#[derive(Debug)]
pub(super) struct TlsFiles {
    roots: Roots,
    certificate: Option<(PathBuf, PathBuf)>,
    /// What was made of them last.
    last: Mutex<Option<ClientConfig>>,
}

#[derive(Clone, Debug)]
enum Roots {
    /// Those of the system, as they were at the start.
    System(RootCertStore),
    /// Those of a file. Beside them the system's, if it has any: for others than the store.
    File(PathBuf, RootCertStore),
    /// Nobody is asked about the store. The system's, for others.
    Anybody(RootCertStore),
}

impl TlsFiles {
    pub(super) fn new(flags: &StoreFlags) -> Result<Self, ConnectionError> {
        let roots = match &flags.store_ca_file {
            Some(path) => {
                Roots::File(path.clone(), system_roots().unwrap_or_else(|_| RootCertStore::empty()))
            }
            None if flags.insecure_skip_verify || flags.insecure => {
                Roots::Anybody(system_roots().unwrap_or_else(|_| RootCertStore::empty()))
            }
            None => Roots::System(system_roots()?),
        };
        let certificate = flags.store_client_certificate.clone().zip(flags.store_client_key.clone());
        Ok(TlsFiles { roots, certificate, last: Mutex::default() })
    }

    /// As the files are now; if they cannot be used now, as they were before.
    pub(super) fn read(&self) -> Result<ClientConfig, ConnectionError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match (self.read_now(), &*last) {
            (Ok(config), _) => {
                *last = Some(config.clone());
                Ok(config)
            }
            (Err(error), Some(config)) => {
                warn!("{error}; what was there before is used");
                Ok(config.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// For others than the store: by the system's certificates, and those that the store may have.
    pub(super) fn for_others(&self) -> Result<ClientConfig, ConnectionError> {
        let mut roots = match &self.roots {
            Roots::System(roots) => return client_config(roots.clone(), None),
            Roots::File(..) | Roots::Anybody(_) => RootCertStore::empty(),
        };
        if let Roots::File(path, system) = &self.roots {
            roots.extend(system.roots.iter().cloned());
            roots.add_parsable_certificates(certificates(path, "--store-ca-file")?);
        }
        if let Roots::Anybody(system) = &self.roots {
            roots.extend(system.roots.iter().cloned());
        }
        client_config(roots, None)
    }

    fn read_now(&self) -> Result<ClientConfig, ConnectionError> {
        let certificate = self.certificate.as_ref().map(|(certificate, key)| {
            let chain = certificates(certificate, "--store-client-certificate")?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|error| unusable(key, "--store-client-key", &error))?;
            Ok::<_, ConnectionError>((chain, key))
        });
        let certificate = certificate.transpose()?;
        match &self.roots {
            Roots::System(roots) => client_config(roots.clone(), certificate),
            Roots::File(path, _) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(path, "--store-ca-file")? {
                    roots.add(root).map_err(|error| unusable(path, "--store-ca-file", &error))?;
                }
                client_config(roots, certificate)
            }
            Roots::Anybody(_) => {
                let mut config = client_config(RootCertStore::empty(), certificate)?;
                config.dangerous().set_certificate_verifier(Arc::new(Anybody(ring::default_provider())));
                Ok(config)
            }
        }
    }
}

/// Where there is no TLS: asked for, and not used.
pub(super) fn plain_config() -> Result<ClientConfig, ConnectionError> {
    client_config(RootCertStore::empty(), None)
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
