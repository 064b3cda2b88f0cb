//! The connection to the collector: made, lost and made again, for ever.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use ipc::{
    ChannelError, FromCollector, FromUploader, HandshakeError, Receiver, Sender, UploaderEnd, greet_collector,
};
use thiserror::Error;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use crate::{
    resolve::run_job,
    rows,
    state::{Fault, Outbox, Request, Shared, limitation_text},
};

/// Pauses between attempts: the first, and the longest.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Pause after meeting a collector of another release: somebody has to install something.
const MISMATCH_PAUSE: Duration = Duration::from_secs(10);
/// How long the first message may take.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(10);
/// A collector that says nothing for so long does not live: it tells its counters every second.
const SILENCE: Duration = Duration::from_secs(15);
/// A session that lasted this long was a good one: the next attempt comes without delay.
const GOOD_SESSION: Duration = Duration::from_secs(5);

/// Why there is no connection.
#[derive(Debug, Error)]
enum ClientError {
    #[error("cannot connect to the collector at {path}: {source}{hint}")]
    Connect { path: PathBuf, source: ChannelError, hint: &'static str },
    #[error("cannot talk to the collector at {path}: {source}{hint}")]
    Greeting { path: PathBuf, source: HandshakeError, hint: &'static str },
    #[error("the collector at {path} sent no welcome within {} seconds", WELCOME_TIMEOUT.as_secs())]
    NoWelcome { path: PathBuf },
    #[error("the connection to the collector ended: {0}")]
    Lost(ChannelError),
    #[error("the collector has said nothing for {} seconds: it hangs, or was stopped", SILENCE.as_secs())]
    Silent,
    #[error("the connection to the collector was given up: {0}")]
    Fault(#[from] Fault),
    #[error("names of units stand for others now: the collector is asked for everything once more")]
    Anew,
}

/// Connects to the collector, and applies what it sends until it is gone; then again.
pub async fn run(shared: Arc<Shared>, path: PathBuf, mut outbox: Outbox) {
    let mut pause = BACK_OFF.0;
    let mut last_message = String::new();
    let mut lost: Option<Instant> = None;
    loop {
        let begun = Instant::now();
        let result = session(&shared, &path, &mut outbox, &mut lost).await;
        let mut was_connected = false;
        {
            let mut state = shared.state();
            if state.is_connected() {
                was_connected = true;
                state.end_session();
                lost = Some(Instant::now());
            }
            if matches!(result, ClientError::Fault(_) | ClientError::Lost(ChannelError::Codec(_)))
                || matches!(result, ClientError::Lost(ChannelError::Files(_) | ChannelError::TooLarge(_)))
            {
                state.counts.faults += 1;
            }
        }
        // Who waits for an answer need not wait any more.
        shared.arrived.notify_waiters();
        // A line for each change, and not for each attempt.
        let message = result.to_string();
        if matches!(result, ClientError::Anew) {
            info!("{message}");
        } else if was_connected || message != last_message {
            warn!("{message}; trying again");
        } else {
            debug!("{message}; trying again");
        }
        last_message = message;
        if was_connected && begun.elapsed() >= GOOD_SESSION {
            pause = BACK_OFF.0;
        }
        if is_mismatch(&result) {
            sleep(MISMATCH_PAUSE).await;
        } else {
            sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }
}

fn is_mismatch(error: &ClientError) -> bool {
    let ClientError::Greeting { source, .. } = error else { return false };
    matches!(
        source,
        HandshakeError::Version { .. } | HandshakeError::SameRole(_) | HandshakeError::NotBulkhead
    )
}

/// How long nothing is read after all was read.
const GATHER: Duration = Duration::from_millis(25);

/// One session, from the connection to its end; the answer says why it ended.
async fn session(
    shared: &Arc<Shared>,
    path: &Path,
    outbox: &mut Outbox,
    lost: &mut Option<Instant>,
) -> ClientError {
    let path = path.to_path_buf();
    let mut channel = match UploaderEnd::connect(&path).await {
        Ok(channel) => channel,
        Err(source) => {
            let hint = connect_hint(&source);
            return ClientError::Connect { path, source, hint };
        }
    };
    if let Err(source) = greet_collector(&mut channel).await {
        let hint = match source {
            HandshakeError::Channel(_) => {
                " (it serves one uploader at a time, and only the user of its --uploader-user)"
            }
            _ => "",
        };
        return ClientError::Greeting { path, source, hint };
    }
    let (sender, mut receiver) = channel.split();
    let number = shared.state().begin_session();
    let first = match timeout(WELCOME_TIMEOUT, receiver.receive()).await {
        Ok(Ok(first)) => first,
        Ok(Err(error)) => return ClientError::Lost(error),
        Err(_) => return ClientError::NoWelcome { path },
    };
    if let Err(fault) = apply(shared, first) {
        return fault.into();
    }
    {
        let mut state = shared.state();
        if let Some(lost) = lost.take() {
            state.counts.disconnected += lost.elapsed();
        }
        if let Some(welcome) = &state.welcome {
            let (frequency, cpus) = (welcome.sampling_frequency, welcome.cpus);
            info!("connected to the collector at {}: {frequency} Hz on {cpus} CPUs", path.display());
            for limitation in &welcome.limitations {
                warn!("{}", limitation_text(*limitation));
            }
        }
    }
    tokio::select! {
        error = receive(shared, &mut receiver) => error,
        error = send(number, &sender, outbox) => ClientError::Lost(error),
        () = shared.anew.notified() => ClientError::Anew,
    }
}

fn connect_hint(error: &ChannelError) -> &'static str {
    let ChannelError::Io(error) = error else { return "" };
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused => {
            " (is bulkhead-collector running, with this --socket?)"
        }
        std::io::ErrorKind::PermissionDenied => {
            " (start the collector with --uploader-user set to this user)"
        }
        _ => "",
    }
}

async fn receive(shared: &Arc<Shared>, receiver: &mut Receiver<FromCollector>) -> ClientError {
    loop {
        let message = tokio::select! {
            biased;
            message = receiver.receive() => message,
            // Nothing there yet. What comes meanwhile is then read together, instead of being woken for each.
            () = std::future::ready(()) => {
                sleep(GATHER).await;
                match timeout(SILENCE, receiver.receive()).await {
                    Ok(message) => message,
                    Err(_) => return ClientError::Silent,
                }
            }
        };
        match message {
            Ok(message) => {
                if let Err(fault) = apply(shared, message) {
                    return fault.into();
                }
            }
            Err(error) => return ClientError::Lost(error),
        }
    }
}

fn apply(
    shared: &Arc<Shared>,
    (message, file): (FromCollector, Option<std::os::fd::OwnedFd>),
) -> Result<(), Fault> {
    let is_answer = matches!(
        message,
        FromCollector::Executable(_) | FromCollector::Anonymous(_) | FromCollector::NotReopened(_)
    );
    let jobs = shared.state().apply(message, file, Instant::now())?;
    for job in jobs {
        tokio::spawn(run_job(Arc::clone(shared), job));
    }
    if is_answer {
        shared.arrived.notify_waiters();
    }
    Ok(())
}

/// Sends a message, if it is meant for this session.
async fn send_one(
    number: u64,
    sender: &Sender<FromUploader>,
    message: Option<Request>,
) -> Result<(), ChannelError> {
    match message {
        Some((session, message)) if session == number => sender.send(&message, None).await,
        Some(_) => Ok(()),
        // The state, which has the other end, lives as long as this task.
        None => std::future::pending().await,
    }
}

/// Sends what is meant for this session; what is of sessions before it is dropped: their ids mean something else now.
async fn send(number: u64, sender: &Sender<FromUploader>, outbox: &mut Outbox) -> ChannelError {
    loop {
        // Requests first: somebody waits for their answers.
        let sent = tokio::select! {
            biased;
            request = outbox.requests.recv() => send_one(number, sender, request).await,
            skip = outbox.skips.recv() => send_one(number, sender, skip).await,
            table = outbox.tables.recv() => match table {
                Some((session, executable, table)) if session == number => {
                    rows::send(sender, executable, &table).await
                }
                Some(_) => Ok(()),
                None => std::future::pending().await,
            },
        };
        if let Err(error) = sent {
            return error;
        }
    }
}
