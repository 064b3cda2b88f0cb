//! The program: parts put together, started and stopped.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use security::Supervisor;
use thiserror::Error;
use tokio::{
    runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::{JoinError, JoinSet},
    time::{sleep, timeout},
};
use tracing::{info, level_filters::LevelFilter, warn};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use crate::{
    collector_client,
    config::{Config, ConfigError, ConfigFile},
    confine::{Confinement, Needs},
    debuginfo::{self, Allowed, DebugFiles, Known, Offers, Rate, Rules},
    delivery::{self, Delivery},
    discovery::{
        Discovery, Systemd,
        kubernetes::{self, ApiServer, ApiServerError},
        runtimes, systemd,
    },
    flags::{Flags, HttpAddress, LogLevel, PathRule},
    http::{self, Access, Hosts, Token, server},
    policy::{self, PolicyError},
    secret::SecretError,
    spool::{Spool, SpoolError},
    state::{Outbox, Shared},
    store::{
        local::{LocalStore, StoreError},
        parca::{Parca, ParcaError},
    },
    targets::TargetMaker,
    windows::{self, Sinks},
    worker::MAX_STUCK,
};

/// Threads for work that blocks, beside those that may be stuck.
const WORKING_THREADS: usize = 12;
/// How long an idle one of them is kept.
const IDLE_THREAD: Duration = Duration::from_secs(2);
/// Where name servers listen when an answer is too long for UDP.
const NAME_SERVERS: u16 = 53;
/// How often the configuration's file is looked at.
const CONFIG_EVERY: Duration = Duration::from_secs(2);
/// How long the end waits for the window that is open.
const LAST_WINDOW: Duration = Duration::from_secs(5);
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
    /// The spool cannot be used.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// The store cannot be spoken to with these flags.
    #[error(transparent)]
    Parca(#[from] ParcaError),
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The API server cannot be asked with these flags.
    #[error(transparent)]
    ApiServer(#[from] ApiServerError),
    /// The page's token cannot be read.
    #[error(transparent)]
    Token(#[from] SecretError),
    /// A part of the program has ended, which none does.
    #[error("a part of it has ended: {0}; this is a fault of Bulkhead's")]
    Ended(String),
    /// The runtime or a signal handler could not be made.
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// Runs until it is told to stop by SIGTERM or SIGINT.
pub fn run(flags: &Flags) -> Result<(), AppError> {
    log_to_stderr(flags.log_level);
    security::share_one_heap();
    policy::drop_privileges()?;
    let local = match &flags.local_store_directory {
        None => None,
        Some(directory) => Some(Arc::new(LocalStore::open(directory, flags.local_store_size.0)?)),
    };
    let sending = if flags.store.has_store() { Some(Sending::open(flags)?) } else { None };
    let sinks = Sinks { local, spool: sending.as_ref().map(|sending| Arc::clone(&sending.spool)) };
    let supervisor = Supervisor::of_environment()?;
    let token = flags.http_token_file.as_deref().map(Token::read).transpose()?;
    let config = Configuration::open(flags)?;
    let api_server = find_api_server(flags)?;
    let confinement = policy::lock_down(&needs(flags, sending.as_ref(), api_server.as_ref()))?;
    // One thread for all that waits; what blocks has others.
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(MAX_STUCK + WORKING_THREADS)
        .thread_keep_alive(IDLE_THREAD)
        .thread_name("work")
        .build()?;
    let opened = Opened { sinks, sending, api_server, token, config, confinement };
    let result = runtime.block_on(serve(flags, opened, &supervisor));
    // Threads that are stuck in a read do not hold up the end.
    runtime.shutdown_timeout(LAST_WORK);
    result
}

/// What the flags have it use of the machine.
fn needs(flags: &Flags, sending: Option<&Sending>, api_server: Option<&ApiServer>) -> Needs {
    let addresses = [&flags.http_address].into_iter().chain(&flags.status_address);
    let port = |address: &HttpAddress| match address {
        HttpAddress::Every(port) | HttpAddress::Host(_, port) => *port,
    };
    let mut needs = Needs {
        folders: flags.local_store_directory.iter().cloned().collect(),
        files: flags
            .http_token_file
            .iter()
            .cloned()
            .chain(flags.selection.config_path().map(Into::into))
            .collect(),
        listens_on: addresses.map(port).collect(),
        connects_to: Vec::new(),
    };
    if let Some(server) = api_server {
        needs.files.extend(server.files.iter().cloned());
        needs.connects_to.extend([server.port, NAME_SERVERS]);
    }
    if let Some(sending) = sending {
        let store = &flags.store;
        let files = [
            &store.bearer_token_file,
            &store.store_ca_file,
            &store.store_client_certificate,
            &store.store_client_key,
        ];
        needs.files.extend(files.into_iter().flatten().cloned());
        needs.folders.push(store.spool());
        needs.connects_to.extend(sending.store.ports().iter().chain([&NAME_SERVERS]));
        if sending.debug_info.is_some() {
            needs.connects_to.extend(&flags.debug_info.debug_info_upload_port);
            needs.folders.extend(flags.debug_info.temp_dir.clone());
        }
    }
    needs
}

/// The API server that the flags have asked, or that is found. One that is found by itself, but cannot be used, is done without.
pub(crate) fn find_api_server(flags: &Flags) -> Result<Option<ApiServer>, ApiServerError> {
    if flags.names.kubernetes == Some(false) {
        return Ok(None);
    }
    match (ApiServer::find(flags.names.kubeconfig.as_deref()), flags.names.must_work()) {
        (Ok(Some(server)), _) => Ok(Some(server)),
        (Ok(None), true) => Err(ApiServerError::Neither),
        (Ok(None), false) => Ok(None),
        (Err(error), true) => Err(error),
        (Err(error), false) => {
            warn!("{error}; containers have no names (--kubernetes=false says that this is meant)");
            Ok(None)
        }
    }
}

/// Begins to ask all who tell of containers and units.
pub(crate) fn ask_for_names(
    flags: &Flags,
    api_server: Option<ApiServer>,
    asking: &mut JoinSet<()>,
) -> (Discovery, Arc<Systemd>) {
    let mut discovery = Discovery::new(flags.window());
    if let Some(server) = api_server {
        info!("asking the Kubernetes API server {} for the pods of {}", server.address, flags.node);
        let source = discovery.add_kubernetes(server.address.clone());
        let selector = flags.names.pod_label_selector.clone();
        asking.spawn(kubernetes::run(server, flags.node.clone(), selector, source));
    }
    for socket in flags.names.runtimes() {
        let source = discovery.add_runtime(&socket.path);
        asking.spawn(runtimes::run(socket, source));
    }
    let systemd = discovery.add_systemd(flags.selection.unit_names());
    asking.spawn(systemd::run(Arc::clone(&systemd)));
    (discovery, systemd)
}

/// What it takes to send profiles to a store.
struct Sending {
    store: Arc<Parca>,
    spool: Arc<Spool>,
    debug_info: Option<Arc<Offers>>,
}

impl Sending {
    fn open(flags: &Flags) -> Result<Self, AppError> {
        let (debug, flags) = (&flags.debug_info, &flags.store);
        if !flags.bearer_token.0.is_empty() {
            warn!("--bearer-token shows in the list of processes; --bearer-token-file does not");
        }
        let store = Arc::new(Parca::open(flags)?);
        let spool = Arc::new(Spool::open(&flags.spool(), flags.spool_size.0)?);
        let debug_info = (!debug.debug_info_disable).then(|| {
            let rules = |rules: &[PathRule]| rules.iter().map(|rule| rule.0.clone()).collect();
            let rules = Rules { allow: rules(&debug.debug_info_allow), deny: rules(&debug.debug_info_deny) };
            let known = Known::open(&flags.spool(), &flags.store_address.to_string());
            Arc::new(Offers::new(rules, known))
        });
        Ok(Sending { store, spool, debug_info })
    }
}

/// What was opened before the privileges for it were given up.
struct Opened {
    sinks: Sinks,
    sending: Option<Sending>,
    api_server: Option<ApiServer>,
    token: Option<Token>,
    config: Configuration,
    confinement: Confinement,
}

async fn serve(flags: &Flags, opened: Opened, supervisor: &Supervisor) -> Result<(), AppError> {
    let Opened { sinks, sending, api_server, token, config, confinement } = opened;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let listener = server::listen_on(&flags.http_address, "--http-address").await?;
    let status_listener = match &flags.status_address {
        Some(address) => Some(server::listen_on(address, "--status-address").await?),
        None => None,
    };
    let address = listener.local_addr()?;
    info!("bulkhead-uploader {} on {}", env!("CARGO_PKG_VERSION"), flags.node);
    if !confinement.left.is_empty() {
        info!("landlock leaves: {}", confinement.left);
    }
    if token.is_none() && !address.ip().to_canonical().is_loopback() {
        warn!(
            "the page is open to whoever reaches {address}; --http-address=127.0.0.1:{} keeps it here, --http-token-file asks for a token",
            address.port()
        );
    }
    if let HttpAddress::Every(_) = flags.http_address {
        info!("the page: http://127.0.0.1:{}/", address.port());
    } else {
        info!("the page: http://{address}/");
    }

    let window = flags.window();
    let mut maker = TargetMaker::new(&flags.node, flags.external_labels()).with_selection(flags.selection());
    maker.set_rules(config.1.rules);
    let name_cache = usize::try_from(flags.name_cache_size.0).unwrap_or(usize::MAX);
    let debug_info = sending.as_ref().and_then(|sending| sending.debug_info.clone());
    // None of them ends; if one does, it is not done without.
    let mut running = JoinSet::new();
    let (discovery, systemd) = ask_for_names(flags, api_server, &mut running);
    let discovery = Arc::new(discovery);
    let (shared, outbox) = Shared::new(
        maker,
        flags.thread_labels,
        name_cache,
        window,
        debug_info.clone(),
        Arc::clone(&discovery),
    );
    let delivery = sending.map(|Sending { store, spool, .. }| {
        if let Some(offers) = debug_info {
            let folder = flags.debug_info.temp_dir.clone().unwrap_or_else(|| flags.store.spool());
            let files = DebugFiles::new(folder);
            let ports = flags.debug_info.debug_info_upload_port.clone();
            let allowed = Allowed { plain: flags.store.insecure, ports };
            let rate = Rate(flags.debug_info.debug_info_rate.0);
            running.spawn(debuginfo::run(offers, Arc::clone(&store), files, allowed, rate));
        }
        let delivery = Arc::new(Delivery::new(flags.store.store_address.to_string(), spool));
        running.spawn(delivery::run(Arc::clone(&delivery), store, flags.store.batch_write_interval.0));
        delivery
    });
    let routers = http::routers(
        Arc::clone(&shared),
        window,
        Access { hosts: hosts(flags), token },
        confinement,
        delivery,
    );
    running.spawn(server::serve(listener, routers.page, window));
    if let Some(listener) = status_listener {
        info!("/metrics and /healthz for others: http://{}/", listener.local_addr()?);
        running.spawn(server::serve(listener, routers.status, window));
    }
    let (stop, stopped) = oneshot::channel();
    let mut windows = tokio::spawn(windows::run(Arc::clone(&shared), window, sinks, stopped));
    let hang_up = signal(SignalKind::hangup())?;
    running.spawn(follow(Arc::clone(&shared), config.0, hang_up));
    running.spawn(connect(shared, systemd, flags.collector_socket.clone(), outbox));
    supervisor.ready();
    tokio::select! {
        _ = terminate.recv() => info!("stopped by SIGTERM"),
        _ = interrupt.recv() => info!("stopped by SIGINT"),
        () = stay_alive(supervisor) => {}
        Some(ended) = running.join_next() => return Err(AppError::Ended(how(ended))),
        ended = &mut windows => return Err(AppError::Ended(how(ended))),
    }
    supervisor.stopping();
    discovery.end();
    // What was sampled since the last window is not lost where it has somewhere to go.
    let _ = stop.send(());
    if timeout(LAST_WINDOW, windows).await.is_err() {
        warn!("the last window could not be finished within {} seconds", LAST_WINDOW.as_secs());
    }
    Ok(())
}

/// The configuration: its file, if there is one, and what it says.
struct Configuration(Option<ConfigFile>, Config);

impl Configuration {
    fn open(flags: &Flags) -> Result<Self, ConfigError> {
        let Some(path) = flags.selection.config_path() else {
            return Ok(Configuration(None, Config::default()));
        };
        let (file, config) = ConfigFile::open(path)?;
        Ok(Configuration(Some(file), config))
    }
}

/// Follows the configuration as it changes. Never ends.
async fn follow(shared: Arc<Shared>, mut file: Option<ConfigFile>, mut hang_up: Signal) {
    loop {
        let Some(file) = &mut file else {
            // There is nothing to read, and no reason to end.
            hang_up.recv().await;
            continue;
        };
        let is_told = timeout(CONFIG_EVERY, hang_up.recv()).await.is_ok();
        let result = if is_told { Some(file.read()) } else { file.changed() };
        match result {
            None => {}
            Some(Ok(config)) => {
                info!("read the configuration: {} rules for labels", config.rules.len());
                shared.state().counts.configurations[0] += 1;
                shared.set_rules(config.rules);
            }
            Some(Err(error)) => {
                warn!("{error}; what it said before stays");
                shared.state().counts.configurations[1] += 1;
            }
        }
    }
}

/// Follows which units names of flags stand for. Never ends.
async fn follow_units(shared: Arc<Shared>, mut ids: watch::Receiver<Option<BTreeSet<String>>>) {
    loop {
        let known = ids.borrow_and_update().clone();
        if let Some(ids) = known {
            shared.set_unit_ids(ids);
        }
        if ids.changed().await.is_err() {
            // Nobody tells any more.
            return std::future::pending().await;
        }
    }
}

/// Connects to the collector once it is known which units are selected, if that can be known. Never ends.
async fn connect(shared: Arc<Shared>, systemd: Arc<Systemd>, socket: PathBuf, outbox: Outbox) {
    let followed = follow_units(Arc::clone(&shared), systemd.ids());
    let connected = async {
        systemd.first_answer().await;
        collector_client::run(shared, socket, outbox).await;
    };
    tokio::join!(followed, connected);
}

/// How a part has ended.
fn how(ended: Result<(), JoinError>) -> String {
    ended.map_or_else(|error| error.to_string(), |()| "without an error".to_owned())
}

/// Tells the supervisor again and again that the loop goes round, if it wants to hear it. Never ends.
async fn stay_alive(supervisor: &Supervisor) {
    let Some(every) = supervisor.alive_every() else { return std::future::pending().await };
    loop {
        sleep(every).await;
        supervisor.alive();
    }
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

pub(crate) fn log_to_stderr(level: LogLevel) {
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false);
    // It has a line for each failure; ours says each once.
    let quiet = ["kube_client", "kube_runtime"].map(|library| (library, LevelFilter::OFF));
    let filter = Targets::new().with_default(level).with_targets(quiet);
    // Fails where a log is set up already: then that one is used.
    let _ = tracing_subscriber::registry().with(lines).with(filter).try_init();
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(
            "a fault of Bulkhead's at {place}: {}",
            panic.payload_as_str().unwrap_or("no message")
        );
    }));
}
