//! The program: parts put together, started and stopped.

use std::{sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
};
use tracing::{info, warn};

use crate::{
    collector_client,
    flags::{Flags, HttpAddress, LogLevel},
    http::{self, Hosts, server},
    policy::{self, PolicyError},
    state::Shared,
    store::local::{LocalStore, StoreError},
    targets::TargetMaker,
    windows,
    worker::MAX_STUCK,
};

/// Threads for work that blocks, beside those that may be stuck.
const WORKING_THREADS: usize = 12;
/// How long an idle one of them is kept.
const IDLE_THREAD: Duration = Duration::from_secs(2);
/// How long the end waits for what is being written.
const LAST_WORK: Duration = Duration::from_millis(500);

/// Why the program does not run.
#[derive(Debug, Error)]
pub enum AppError {
    /// Privileges could not be dropped.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The page cannot be served.
    #[error(transparent)]
    Bind(#[from] server::BindError),
    /// The local folder cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The runtime or a signal handler could not be made.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Runs until it is told to stop by SIGTERM or SIGINT.
pub fn run(flags: &Flags) -> Result<(), AppError> {
    log_to_stderr(flags.log_level);
    policy::drop_everything()?;
    // One thread for all that waits; what blocks has others.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_STUCK + WORKING_THREADS)
        .thread_keep_alive(IDLE_THREAD)
        .thread_name("work")
        .build()?;
    let result = runtime.block_on(serve(flags));
    // Threads that are stuck in a read do not hold up the end.
    runtime.shutdown_timeout(LAST_WORK);
    result
}

async fn serve(flags: &Flags) -> Result<(), AppError> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let store = match flags.local_store_directory.clone() {
        None => None,
        Some(directory) => {
            let limit = flags.local_store_size.0;
            let opened = spawn_blocking(move || LocalStore::open(&directory, limit)).await;
            Some(Arc::new(opened.map_err(std::io::Error::other)??))
        }
    };
    let listener = server::listen_on(&flags.http_address).await?;
    let address = listener.local_addr()?;
    info!("bulkhead-uploader {} on {}", env!("CARGO_PKG_VERSION"), flags.node);
    if let HttpAddress::Every(port) = flags.http_address {
        warn!(
            "the page is open to every address of this machine; --http-address=127.0.0.1:{port} keeps it here"
        );
        info!("the page: http://127.0.0.1:{}/", address.port());
    } else {
        info!("the page: http://{address}/");
    }

    let window = flags.window();
    let maker = TargetMaker::new(&flags.node, flags.external_labels());
    let (shared, outbox) = Shared::new(maker, flags.thread_labels, window);
    let router = http::router(Arc::clone(&shared), window, hosts(flags));
    tokio::spawn(server::serve(listener, router, window));
    tokio::spawn(windows::run(Arc::clone(&shared), window, store));
    tokio::spawn(collector_client::run(shared, flags.collector_socket.clone(), outbox));
    tokio::select! {
        _ = terminate.recv() => info!("stopped by SIGTERM"),
        _ = interrupt.recv() => info!("stopped by SIGINT"),
    }
    Ok(())
}

/// The names that the page may be asked for by.
fn hosts(flags: &Flags) -> Hosts {
    let host_name = crate::printable::printable(rustix::system::uname().nodename().to_bytes());
    let bound = match &flags.http_address {
        HttpAddress::Every(_) => None,
        HttpAddress::Host(host, _) => Some(host.as_str()),
    };
    let own = [host_name.as_str(), flags.node.as_str()];
    Hosts::new(own.into_iter().chain(bound).chain(flags.http_allowed_host.iter().map(String::as_str)))
}

fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Error => tracing::Level::ERROR,
        LogLevel::Warn => tracing::Level::WARN,
        LogLevel::Info => tracing::Level::INFO,
        LogLevel::Debug => tracing::Level::DEBUG,
    };
    let format = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    // Fails where a log is set up already: then that one is used.
    let _ = format.try_init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            "a fault of Bulkhead's at {place}: {}",
            panic.payload_as_str().unwrap_or("no message")
        );
    }));
}
