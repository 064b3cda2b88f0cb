//! How container runtimes are asked what they run, over the Unix socket that each listens on: containerd and CRI-O by the Container Runtime
//! Interface, Docker (and Podman, which speaks as Docker does) by its HTTP API. Nothing but their lists can be asked for.
//!
//! Who uses it: the uploader, and the proxy, which holds such a socket in the uploader's place and answers in the very same forms.

mod cri;
mod docker;
mod socket;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use thiserror::Error;
use tokio::time::timeout;

pub use cri::Cri;
pub use docker::{Actor, Docker, DockerContainer, DockerVersion, Event, Events};
pub use proto::cri::{Container, PodSandbox};

/// How long a runtime may take for an answer: one that has hung, or a machine that has.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest answer, in bytes. A container takes a kilobyte or two.
pub const MAX_ANSWER: usize = 16 << 20;
/// What the proxy puts behind a runtime's name, so that nobody is warned of a socket that is harmless.
pub const PROXY: &str = " (bulkhead-runtime-proxy)";

/// Why a runtime is not asked, or does not answer.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// Nobody listens, or this user may not connect.
    #[error("cannot connect to {path}: {reason}")]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel says.
        reason: std::io::Error,
    },
    /// Whoever listens speaks neither.
    #[error("{path} is no socket of a container runtime: as CRI it says {cri}; as Docker, {docker}")]
    Neither {
        /// The socket.
        path: PathBuf,
        /// What came of asking as CRI.
        cri: Box<RuntimeError>,
        /// What came of asking as Docker.
        docker: Box<RuntimeError>,
    },
    /// A call of CRI failed.
    #[error("{0} ({1:?})")]
    Cri(String, tonic::Code),
    /// A request failed.
    #[error("{0}")]
    Http(String),
    /// The answer is none.
    #[error("the answer to {0} is not what it should be: {1}")]
    Answer(&'static str, serde_json::Error),
    /// It does not answer.
    #[error("no answer within {} seconds", ANSWER_LIMIT.as_secs())]
    Silent,
}

/// A runtime that answers.
#[derive(Clone, Debug)]
pub enum Runtime {
    /// By the Container Runtime Interface.
    Cri(Cri),
    /// By Docker's API.
    Docker(Docker),
}

impl Runtime {
    /// Finds out who listens on a socket: the runtime, and its name and version.
    pub async fn open(path: &Path) -> Result<(Self, String), RuntimeError> {
        // Who may not connect should hear that, and not what two libraries make of it.
        tokio::net::UnixStream::connect(path)
            .await
            .map_err(|reason| RuntimeError::Connect { path: path.to_owned(), reason })?;
        let cri = Cri::new(path);
        let by_cri = match cri.version().await {
            Ok(version) => {
                let name = format!("{} {}", version.runtime_name, version.runtime_version);
                return Ok((Runtime::Cri(cri), name));
            }
            Err(error) => Box::new(error),
        };
        let docker = Docker::new(path);
        match docker.version().await {
            Ok(version) => {
                let name = format!("{} {}", version.name(), version.version);
                Ok((Runtime::Docker(docker), name))
            }
            Err(error) => {
                Err(RuntimeError::Neither { path: path.to_owned(), cri: by_cri, docker: Box::new(error) })
            }
        }
    }
}

/// An answer within its time.
async fn in_time<T, E: Into<RuntimeError>>(
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T, RuntimeError> {
    timeout(ANSWER_LIMIT, answer).await.map_err(|_| RuntimeError::Silent)?.map_err(Into::into)
}

/// An error with what caused it, each once.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !texts.iter().any(|before| before.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixListener,
    };

    use super::*;

    #[tokio::test]
    async fn what_is_no_runtime_is_said_in_words() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let error = Runtime::open(&path).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("No such file"), "{error}");
        let listener = UnixListener::bind(&path).unwrap();
        let stranger = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                // Reading first, so that what it is asked is not cut off.
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"220 mail.example ESMTP\r\n").await;
            }
        });
        let error = Runtime::open(&path).await.unwrap_err();
        assert!(matches!(error, RuntimeError::Neither { .. }), "{error}");
        stranger.abort();
    }
}
