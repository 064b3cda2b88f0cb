//! What the uploader knows, and how each message of the collector changes it. Nothing here waits or reads a file: what
//! must be read is handed back as a [`Job`].

mod counts;
mod samples;

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ipc::{
    CgroupId, ExecutableId, ExecutableKind, FromCollector, FromUploader, Limitation, NotReopened, ProcessId,
    Welcome,
};
use tokio::sync::{Notify, mpsc};

pub use counts::{CollectorCounters, Counts};

use crate::{
    debuginfo::Offers,
    discovery::Discovery,
    executables::{ExecutableKey, Executables, Facts},
    processes::{MAX_CGROUPS, Processes},
    profile::{Profiles, Window},
    relabel::Rules,
    rows::{MAX_TABLES, RowsWorker, Table, Wanted},
    symbols::{JitProcesses, KernelNames, Modules, NameCache, TableCache},
    targets::TargetMaker,
    worker::Worker,
};

/// Executables whose names are read at one time, or wait for it, each with its file open.
const MAX_NAMING: usize = 256;
/// Most facts that are waited for at one time; more are read when they are needed.
const MAX_READING: usize = 256;
/// Requests that may wait to be sent.
pub const MAX_REQUESTS: usize = 256;
/// Requests a second, on average and at once.
const REQUEST_RATE: (f64, f64) = (50.0, 200.0);

/// A request, and the number of the session that its id is of.
pub type Request = (u64, FromUploader);

/// What is to be sent to the collector.
#[derive(Debug)]
pub struct Outbox {
    /// Requests.
    pub requests: mpsc::Receiver<Request>,
    /// Cgroups that need not be sampled.
    pub skips: mpsc::Receiver<Request>,
    /// Unwind tables.
    pub tables: mpsc::Receiver<Table>,
}

/// Something to be read, away from the main thread.
#[derive(Debug)]
pub enum Job {
    /// The facts of an executable.
    Facts(ExecutableKey, ExecutableKind, Arc<File>),
    /// The kernel's symbols.
    KernelSymbols(Arc<File>),
    /// The unwind rows of an executable, for the session of this number.
    Rows(u64, ExecutableId, Arc<str>, Arc<File>),
}

/// What the collector sent that it should not have.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// The session does not begin as it should.
    #[error("the collector's first message is no welcome")]
    NoWelcome,
    /// A second welcome.
    #[error("the collector sent a second welcome")]
    SecondWelcome,
}

/// An answer of the collector's that somebody waits for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Awaited {
    /// The file of an executable.
    Executable(ExecutableId),
    /// The perf map of a process.
    PerfMap(ProcessId),
}

/// The state, and what else its users share.
#[derive(Debug)]
pub struct Shared {
    state: Mutex<State>,
    /// Reads files of profiled processes.
    pub files: Worker,
    /// Resolves names, which can take more memory: fewer at a time.
    pub names: Worker,
    /// Computes unwind rows.
    pub rows: RowsWorker,
    /// Unwind rows that are to be sent.
    pub tables: mpsc::Sender<Table>,
    /// Of which executables debug information is to be sent, if it is.
    pub debug_info: Option<Arc<Offers>>,
    /// What containers are.
    pub discovery: Arc<Discovery>,
    /// Finished profiles.
    pub profiles: Profiles,
    /// Woken when an answer of the collector's came, or facts were read.
    pub arrived: Notify,
    /// Woken when the collector is to tell everything once more.
    pub anew: Notify,
}

impl Shared {
    /// The state with no collector yet, and what it will have for it. `name_cache`: bytes for names that were found.
    pub fn new(
        maker: TargetMaker,
        thread_labels: bool,
        name_cache: usize,
        window: Duration,
        debug_info: Option<Arc<Offers>>,
        discovery: Arc<Discovery>,
    ) -> (Arc<Self>, Outbox) {
        discovery.describe_units(maker.wants_descriptions());
        let (requests_sender, requests) = mpsc::channel(MAX_REQUESTS);
        let (skips_sender, skips) = mpsc::channel(MAX_CGROUPS);
        let (tables_sender, tables) = mpsc::channel(MAX_TABLES);
        let shared = Shared {
            state: Mutex::new(State::new(maker, thread_labels, name_cache, requests_sender, skips_sender)),
            files: Worker::new(4),
            names: Worker::new(2),
            rows: RowsWorker::default(),
            tables: tables_sender,
            debug_info,
            discovery,
            profiles: Profiles::new(window),
            arrived: Notify::new(),
            anew: Notify::new(),
        };
        (Arc::new(shared), Outbox { requests, skips, tables })
    }

    /// Labels are made by these rules from now on.
    pub fn set_rules(&self, rules: Rules) {
        let mut state = self.state();
        state.set_rules(rules);
        self.discovery.describe_units(state.maker.wants_descriptions());
    }

    /// These are the units that names of flags stand for. What is known of cgroups, and what the collector was told to skip, is then of no use:
    /// the session ends, and another begins.
    pub fn set_unit_ids(&self, ids: BTreeSet<String>) {
        let mut state = self.state();
        if state.maker.set_unit_ids(ids) && state.is_connected() {
            self.anew.notify_one();
        }
    }

    /// The state. Nobody holds it for longer than it takes to look something up.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the uploader knows.
#[derive(Debug)]
pub struct State {
    maker: TargetMaker,
    thread_labels: bool,
    /// Number of the session; counts up with each connection.
    session: u64,
    /// What the collector said of itself, while one is connected.
    pub welcome: Option<Welcome>,
    epoch: Option<u64>,
    /// Processes of the session.
    pub processes: Processes,
    /// Executables.
    pub executables: Executables,
    /// Processes with code that has no file.
    pub jit: JitProcesses,
    /// Names of kernel modules.
    pub modules: Modules,
    /// Names of the kernel's code.
    pub kernel: Arc<KernelNames>,
    /// Names that were resolved.
    pub names: NameCache,
    /// Symbol tables that were read.
    pub tables: TableCache,
    /// Executables whose names are being read.
    pub naming: HashSet<ExecutableKey>,
    /// Answers of the collector's that somebody waits for.
    pub awaited: HashSet<Awaited>,
    rows_wanted: Wanted,
    /// Executables whose rows are being computed, or wait for that, by the session.
    pub rows_under_way: HashSet<(u64, ExecutableId)>,
    window: Window,
    reading: usize,
    requests: mpsc::Sender<Request>,
    skips: mpsc::Sender<Request>,
    tokens: (f64, Instant),
    thread_names: samples::ThreadNames,
    /// What the collector has counted.
    pub collector: CollectorCounters,
    /// What the uploader has counted.
    pub counts: Counts,
}

impl State {
    fn new(
        maker: TargetMaker,
        thread_labels: bool,
        name_cache: usize,
        requests: mpsc::Sender<Request>,
        skips: mpsc::Sender<Request>,
    ) -> Self {
        State {
            maker,
            thread_labels,
            session: 0,
            welcome: None,
            epoch: None,
            processes: Processes::default(),
            executables: Executables::default(),
            jit: JitProcesses::default(),
            modules: Modules::default(),
            kernel: Arc::default(),
            names: NameCache::new(name_cache / 2),
            tables: TableCache::new(name_cache / 2),
            naming: HashSet::new(),
            awaited: HashSet::new(),
            rows_wanted: Wanted::default(),
            rows_under_way: HashSet::new(),
            window: Window::begin(1, 100),
            reading: 0,
            requests,
            skips,
            tokens: (REQUEST_RATE.1, Instant::now()),
            thread_names: samples::ThreadNames::default(),
            collector: CollectorCounters::default(),
            counts: Counts::default(),
        }
    }

    /// A collector was met; its ids begin anew. Returns the number of the session.
    pub fn begin_session(&mut self) -> u64 {
        self.session += 1;
        self.counts.sessions += 1;
        self.session
    }

    /// The collector is gone, and its ids with it. Samples stay.
    pub fn end_session(&mut self) {
        self.welcome = None;
        self.processes.end_session();
        self.executables.end_session();
        self.jit.end_all();
        self.modules.end_session();
        self.awaited.clear();
        self.rows_wanted.clear();
    }

    fn set_rules(&mut self, rules: Rules) {
        let wanted_pids = self.maker.wants_pids();
        self.maker.set_rules(rules);
        if self.maker.wants_pids() != wanted_pids {
            self.processes.forget_origins();
        }
    }

    /// What makes targets, as it is now.
    pub fn maker(&self) -> TargetMaker {
        self.maker.clone()
    }

    /// Whether a collector is connected.
    pub fn is_connected(&self) -> bool {
        self.welcome.is_some()
    }

    /// Number of the session: requests of another one are not sent.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Applies a message. An error ends the session.
    pub fn apply(
        &mut self,
        message: FromCollector,
        file: Option<OwnedFd>,
        now: Instant,
    ) -> Result<Vec<Job>, Fault> {
        let file = file.map(|file| Arc::new(File::from(file)));
        self.counts.messages += 1;
        match (&self.welcome, message) {
            (None, FromCollector::Welcome(welcome)) => self.welcome(welcome),
            (None, _) => return Err(Fault::NoWelcome),
            (Some(_), FromCollector::Welcome(_)) => return Err(Fault::SecondWelcome),
            (_, FromCollector::KernelSymbols(symbols)) => {
                self.modules.set(&symbols.modules);
                return Ok(file.map(Job::KernelSymbols).into_iter().collect());
            }
            (_, FromCollector::Cgroup(cgroup)) => {
                if !self.processes.add_cgroup(&cgroup, &self.maker) {
                    self.skip(cgroup.id);
                }
            }
            (_, FromCollector::Process(process)) => self.processes.add(&process),
            (_, FromCollector::Comm(comm)) => self.processes.rename(&comm),
            (_, FromCollector::Executable(executable)) => return Ok(self.executable(&executable, file, now)),
            (_, FromCollector::Anonymous(anonymous)) => {
                self.awaited.remove(&Awaited::PerfMap(anonymous.process));
                if let Some(key) = self.processes.jit(anonymous.process, || self.jit.make_key()) {
                    self.jit.add(key, anonymous.process, file);
                }
            }
            (_, FromCollector::Samples(samples)) => {
                for sample in samples {
                    self.sample(&sample, now);
                }
            }
            (_, FromCollector::Exit(process)) => {
                if let Some(key) = self.processes.remove(process) {
                    self.jit.end(key);
                }
            }
            (_, FromCollector::Counters(counters)) => self.collector.update(counters),
            (_, FromCollector::NotReopened(what)) => self.not_reopened(what),
            (_, FromCollector::WantRows(id)) => return Ok(self.want_rows(id, now).into_iter().collect()),
        }
        Ok(Vec::new())
    }

    fn welcome(&mut self, welcome: Welcome) {
        if self.epoch.replace(welcome.epoch).is_some_and(|epoch| epoch != welcome.epoch) {
            self.counts.collector_restarts += 1;
            self.collector.restarted();
        }
        self.window.frequency = welcome.sampling_frequency.clamp(1, 1_000_000);
        self.welcome = Some(welcome);
    }

    fn executable(
        &mut self,
        executable: &ipc::Executable,
        file: Option<Arc<File>>,
        now: Instant,
    ) -> Vec<Job> {
        self.awaited.remove(&Awaited::Executable(executable.id));
        let key = self.executables.add(executable, file.clone(), now);
        let closed = self.executables.is_closed(executable.kind, now);
        let mut jobs = Vec::new();
        let (Some(entry), Some(file)) = (self.executables.get_mut(key), file) else { return jobs };
        if closed {
            return jobs;
        }
        if matches!(entry.facts, Facts::Unread) && self.reading < MAX_READING {
            entry.facts = Facts::Reading;
            self.reading += 1;
            jobs.push(Job::Facts(key, executable.kind, Arc::clone(&file)));
        }
        if self.rows_wanted.take(executable.id) {
            let path = Arc::clone(&entry.path);
            jobs.extend(self.rows_job(executable.id, path, file));
        }
        jobs
    }

    /// The collector wants the rows of an executable: from its file, if that is here, else as soon as it comes.
    fn want_rows(&mut self, id: ExecutableId, now: Instant) -> Option<Job> {
        let key = self.executables.key(id)?;
        let entry = self.executables.get(key)?;
        if self.executables.is_closed(entry.kind, now) {
            return None;
        }
        if let Some(file) = &entry.file {
            let (path, file) = (Arc::clone(&entry.path), Arc::clone(file));
            return self.rows_job(id, path, file);
        }
        self.rows_wanted.add(id);
        self.ask_for_file(key, now);
        None
    }

    /// Rows are computed once at a time: the collector asks again for those that wait for long.
    fn rows_job(&mut self, id: ExecutableId, path: Arc<str>, file: Arc<File>) -> Option<Job> {
        let is_new = self.rows_under_way.insert((self.session, id));
        is_new.then(|| Job::Rows(self.session, id, path, file))
    }

    /// Whether the names of an executable are to be read now: nobody reads them, and not too many others' are.
    pub fn begin_naming(&mut self, key: ExecutableKey) -> bool {
        self.naming.len() < MAX_NAMING && self.naming.insert(key)
    }

    /// The facts of an executable were read, or cannot be.
    pub fn set_facts(&mut self, key: ExecutableKey, facts: Facts) {
        self.reading = self.reading.saturating_sub(1);
        if let Some(entry) = self.executables.get_mut(key) {
            entry.facts = facts;
        }
    }

    /// Begins to read facts that nobody has read yet, if the file is here.
    pub fn read_facts_now(&mut self, key: ExecutableKey, now: Instant) -> Option<Job> {
        let kind = self.executables.get(key)?.kind;
        if self.executables.is_closed(kind, now) {
            return None;
        }
        let entry = self.executables.get_mut(key)?;
        let file = entry.file.clone()?;
        if !matches!(entry.facts, Facts::Unread) {
            return None;
        }
        entry.facts = Facts::Reading;
        self.reading += 1;
        Some(Job::Facts(key, entry.kind, file))
    }

    fn not_reopened(&mut self, what: NotReopened) {
        match what {
            NotReopened::Executable(id) => {
                self.awaited.remove(&Awaited::Executable(id));
                self.counts.not_reopened += 1;
            }
            NotReopened::PerfMap(process) => {
                self.awaited.remove(&Awaited::PerfMap(process));
            }
        }
    }

    /// Whether something is missing without the executable's file: its facts, its symbol table, or lines.
    pub fn needs_file(&self, key: ExecutableKey, now: Instant) -> bool {
        let Some(entry) = self.executables.get(key) else { return false };
        if entry.file.is_some() || entry.problem().is_some() {
            return false;
        }
        let wants_dwarf = entry.known().is_some_and(|facts| facts.contents.dwarf)
            && entry.dwarf_again.is_none_or(|again| now >= again);
        entry.known().is_none() || wants_dwarf || !self.tables.contains(key)
    }

    /// Asks for the file of an executable, once in a window. `true` if an answer will come.
    pub fn ask_for_file(&mut self, key: ExecutableKey, now: Instant) -> bool {
        let Some(entry) = self.executables.get(key) else { return false };
        let Some(id) = entry.id else { return false };
        if self.awaited.contains(&Awaited::Executable(id)) {
            return true;
        }
        let asked = entry.asked || entry.kind == ExecutableKind::Unopened;
        if asked || self.executables.is_closed(entry.kind, now) {
            return false;
        }
        if !self.request(FromUploader::Reopen(id), Awaited::Executable(id), now) {
            return false;
        }
        if let Some(entry) = self.executables.get_mut(key) {
            entry.asked = true;
        }
        true
    }

    /// Asks for the perf map of a process. `true` if an answer will come.
    pub fn ask_for_perf_map(&mut self, process: ProcessId, now: Instant) -> bool {
        self.request(FromUploader::ReopenPerfMap(process), Awaited::PerfMap(process), now)
    }

    /// Has the collector drop samples of these cgroups. Flags alone say that they are left out, so that holds for good.
    fn skip(&mut self, cgroup: CgroupId) {
        // With as many waiting as there may be cgroups, this one's samples go on to be dropped here.
        let _ = self.skips.try_send((self.session, FromUploader::Skip(cgroup)));
    }

    fn request(&mut self, request: FromUploader, answer: Awaited, now: Instant) -> bool {
        let (tokens, since) = &mut self.tokens;
        let earned = now.saturating_duration_since(*since).as_secs_f64() * REQUEST_RATE.0;
        *tokens = (*tokens + earned).min(REQUEST_RATE.1);
        *since = now;
        if self.welcome.is_none() {
            return false;
        }
        if *tokens < 1.0 || self.requests.try_send((self.session, request)).is_err() {
            self.counts.requests_refused += 1;
            return false;
        }
        *tokens -= 1.0;
        self.counts.requests += 1;
        self.awaited.insert(answer);
        true
    }

    /// Ends the window and begins the next.
    pub fn end_window(&mut self, now: Instant) -> Window {
        let next = Window::begin(self.window.number + 1, self.window.frequency);
        let mut window = std::mem::replace(&mut self.window, next);
        window.close();
        self.thread_names = samples::ThreadNames::default();
        self.executables.begin_window(now);
        self.executables.close_old(now);
        window
    }

    /// The window that is open.
    pub fn window(&self) -> &Window {
        &self.window
    }

    /// Whether this is missing on this machine.
    pub fn is_limited(&self, by: Limitation) -> bool {
        self.welcome.iter().any(|welcome| welcome.limitations.contains(&by))
    }

    /// What is missing on this machine, as sentences.
    pub fn remarks(&self) -> Vec<String> {
        let limitations = self.welcome.iter().flat_map(|welcome| &welcome.limitations);
        limitations.map(|limitation| limitation_text(*limitation).to_owned()).collect()
    }
}

/// Every limitation, and the name that it has in `/metrics`.
pub const LIMITATIONS: [(Limitation, &str); 4] = [
    (Limitation::KernelAddressesHidden, "kernel_addresses_hidden"),
    (Limitation::PidNamespace, "pid_namespace"),
    (Limitation::ExecutablesNotOpened, "executables_not_opened"),
    (Limitation::NoFence, "no_fence"),
];

/// What is missing, for people.
pub fn limitation_text(limitation: Limitation) -> &'static str {
    match limitation {
        Limitation::KernelAddressesHidden => {
            "the kernel hides its addresses (kptr_restrict, or no CAP_SYSLOG): kernel frames have no names"
        }
        Limitation::PidNamespace => {
            "the collector runs in a pid namespace: processes outside it are not profiled"
        }
        Limitation::ExecutablesNotOpened => {
            "the collector may not open the files that other processes have mapped: user frames have no names"
        }
        Limitation::NoFence => {
            "no BPF LSM program limits which files the collector may open (its log says why): if it were taken over, it could read any"
        }
    }
}

#[cfg(test)]
mod tests;
