//! Container runtimes, asked at their sockets, or at that of the proxy which holds one in this program's place.

mod facts;

use std::{
    path::{Path, PathBuf},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use ::runtimes::{Event, PROXY, Runtime, RuntimeError};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::{Stream, StreamExt as _};
use tracing::{debug, info, warn};

use super::{Outcome, Pod, Source};
use crate::{backoff::Backoff, printable::printable};

/// Where a runtime is looked for when none is named: the proxy, containerd, that of k3s, CRI-O, Docker, Podman.
pub const DEFAULT_SOCKETS: [&str; 6] = [
    "/run/bulkhead-runtime-proxy/runtime.sock",
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",
    "/run/crio/crio.sock",
    "/run/docker.sock",
    "/run/podman/podman.sock",
];

/// How long is waited after a failure, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How often a runtime is looked for that was never there.
const LOOK_EVERY: Duration = Duration::from_mins(1);
/// How often it is asked for all that runs when nobody wants to know: what has ended is seen then.
const LIST_EVERY: Duration = Duration::from_mins(1);
/// The least time between two such questions. Finished windows ask, and wait for the answer.
const LIST_PAUSE: Duration = Duration::from_millis(200);
/// Longest name of a runtime, in characters.
const MAX_NAME: usize = 100;

/// A runtime to be asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Socket {
    /// Where it listens.
    pub path: PathBuf,
    /// Nobody named it: it need not be there.
    pub is_default: bool,
}

/// Asks a runtime for as long as the program runs. Never ends.
pub async fn run(socket: Socket, source: Arc<Source>) {
    let address = source.address();
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    let mut known = String::new();
    loop {
        let error = match Runtime::open(&socket.path).await {
            Ok((runtime, name)) => {
                let name: String = printable(name.as_bytes()).chars().take(MAX_NAME).collect();
                if name != known {
                    greet(&name, &socket.path);
                    source.set_name(name.clone());
                    known = name;
                }
                follow(&runtime, &source, &mut backoff).await
            }
            Err(error) => error,
        };
        if socket.is_default && matches!(source.outcome(), Outcome::Waiting | Outcome::Absent) {
            debug!("{error}");
            source.set_absent();
            sleep(LOOK_EVERY).await;
            continue;
        }
        let reason = printable(error.to_string().as_bytes());
        if source.failed(&reason) {
            warn!("the container runtime at {address} does not answer: {reason}; what is known stays in use");
        }
        sleep(backoff.next()).await;
    }
}

/// What it means that this runtime is asked.
fn greet(name: &str, path: &Path) {
    let path = path.display();
    if name.contains(PROXY) {
        info!("asking {name} at {path} for names of containers");
    } else {
        warn!(
            "asking {name} at {path} for names of containers: whoever may open this socket is as good as root on this machine; \
            bulkhead-runtime-proxy holds it in a user's place (SECURITY.md), --socket-path=none asks no runtime"
        );
    }
}

/// Asks until something fails.
async fn follow(runtime: &Runtime, source: &Source, backoff: &mut Backoff) -> RuntimeError {
    match try_follow(runtime, source, backoff).await {
        Ok(()) => RuntimeError::Http("it has ended the connection".into()),
        Err(error) => error,
    }
}

/// The same; ends without an error when a runtime ends.
async fn try_follow(runtime: &Runtime, source: &Source, backoff: &mut Backoff) -> Result<(), RuntimeError> {
    // Those that begin while the list is made are told of too.
    let mut events = events(runtime).await?;
    loop {
        let asked = source.asked();
        let pods = list(runtime).await?;
        source.replace(pods, asked);
        backoff.reset();
        if let Some(after) = source.answered() {
            info!("the container runtime at {} answers again, after {} s", source.address(), after.as_secs());
        }
        let listed = Instant::now();
        let mut again = pin!(async {
            tokio::select! {
                () = source.wanted() => {}
                () = sleep(LIST_EVERY) => {}
            }
            sleep_until(listed + LIST_PAUSE).await;
        });
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(event) => source.apply(facts::begun(event?)),
                    None => return Ok(()),
                },
                () = &mut again => break,
            }
        }
    }
}

/// What begins, as far as the runtime tells of it by itself: one that lists what has ended too need not.
async fn events(
    runtime: &Runtime,
) -> Result<Pin<Box<dyn Stream<Item = Result<Event, RuntimeError>> + Send>>, RuntimeError> {
    Ok(match runtime {
        Runtime::Cri(_) => Box::pin(tokio_stream::pending()),
        Runtime::Docker(docker) => Box::pin(docker.events().await?),
    })
}

/// All that runs.
async fn list(runtime: &Runtime) -> Result<Vec<Pod>, RuntimeError> {
    Ok(match runtime {
        Runtime::Cri(cri) => {
            // A pod is there before its containers.
            let containers = cri.containers().await?;
            facts::pods(cri.pods().await?, containers)
        }
        Runtime::Docker(docker) => docker.containers().await?.into_iter().map(facts::docker).collect(),
    })
}
