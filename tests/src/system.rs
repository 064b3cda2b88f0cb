//! Both halves, started as `script/run` starts them: as two users, with the privileges that each is meant to have.

use std::{
    collections::BTreeMap,
    env,
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::{
    http::{self, Response},
    pprof::Profile,
    process::Running,
    wait::wait_for,
};

/// User of the privileged half.
pub const COLLECTOR_USER: &str = "bulkhead-collector";
/// User of the unprivileged half.
pub const UPLOADER_USER: &str = "bulkhead-uploader";
/// What the collector is started with.
pub const CAPABILITIES: [&str; 6] =
    ["bpf", "perfmon", "sys_ptrace", "dac_read_search", "checkpoint_restore", "syslog"];
/// Exit status of a collector that wants to be started again.
pub const AGAIN: i32 = 75;

/// How a pair is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--profiling-duration`.
    pub window: &'static str,
    /// Further flags of the collector.
    pub collector_flags: Vec<String>,
    /// Further flags of the uploader.
    pub uploader_flags: Vec<String>,
    /// `NAME=VALUE`, of the uploader's environment.
    pub uploader_environment: Vec<String>,
    /// Whether every profile is stored, to be read by [`System::stored`].
    pub store: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            window: "4s",
            collector_flags: Vec::new(),
            uploader_flags: Vec::new(),
            uploader_environment: Vec::new(),
            store: false,
        }
    }
}

/// Lets one test of a file run at a time: those that change the whole machine, or count what happens on it.
pub fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folders and programs of a pair: what is there before either half runs.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
}

/// A pair of halves. Both are stopped when it is dropped; their logs are printed when a test failed.
#[derive(Debug)]
pub struct System {
    place: Place,
    options: Options,
    address: String,
    collector: Mutex<Option<Running>>,
    uploader: Mutex<Option<Running>>,
}

/// The folder with the programs: `BULKHEAD_BIN_DIR`, or what script/build makes, which is then brought up to date first.
pub fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(folder) = env::var_os("BULKHEAD_BIN_DIR") {
            return folder.into();
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let mut build = Command::new(root.join("script/build"));
        // What cargo tells this program of itself: build scripts that look at it would build anew what there is.
        let own = env::vars_os().map(|(name, _)| name).filter(|name| {
            let name = name.to_string_lossy();
            name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_")
        });
        for name in own {
            build.env_remove(name);
        }
        assert!(build.status().expect("script/build runs").success(), "the programs do not build");
        root.join("target/programs")
    })
}

/// User and group id of a user.
pub fn ids(user: &str) -> (u32, u32) {
    let passwd = fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let fields: Vec<_> = passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields[0] == user)
        .unwrap_or_else(|| panic!("there is no user {user}: script/setup users makes it"));
    (fields[2].parse().expect("a uid"), fields[3].parse().expect("a gid"))
}

/// setpriv's flags for the collector with these capabilities.
pub fn as_collector(capabilities: &[&str]) -> Vec<String> {
    let caps: Vec<_> = capabilities.iter().map(|name| format!("+{name}")).collect();
    let caps = if caps.is_empty() { "-all".to_owned() } else { format!("-all,{}", caps.join(",")) };
    [
        format!("--reuid={COLLECTOR_USER}"),
        format!("--regid={COLLECTOR_USER}"),
        "--clear-groups".into(),
        format!("--inh-caps={caps}"),
        format!("--ambient-caps={caps}"),
        format!("--bounding-set={caps}"),
    ]
    .into()
}

/// setpriv's flags for a user without any capability.
pub fn as_user(user: &str) -> Vec<String> {
    [
        format!("--reuid={user}"),
        format!("--regid={user}"),
        "--clear-groups".into(),
        "--inh-caps=-all".into(),
        "--bounding-set=-all".into(),
    ]
    .into()
}

fn make_folder(path: &Path, mode: u32, owner: u32, group: u32) {
    fs::create_dir(path)
        .and_then(|()| chown(path, Some(owner), Some(group)))
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .unwrap_or_else(|error| panic!("cannot make {}: {error}", path.display()));
}

/// Puts a file that everybody may read into a folder that everybody may enter, in place of one of that name from one moment to the next.
pub fn publish(folder: &Path, name: &str, content: &str) -> String {
    let (path, next) = (folder.join(name), folder.join(format!("{name}.next")));
    fs::set_permissions(folder, Permissions::from_mode(0o755))
        .and_then(|()| fs::write(&next, content))
        .and_then(|()| fs::set_permissions(&next, Permissions::from_mode(0o644)))
        .and_then(|()| fs::rename(&next, &path))
        .unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
    path.display().to_string()
}

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

impl Place {
    /// Makes the folders and copies the programs to where both users can read them.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("bulkhead-test.").tempdir().expect("a temporary folder");
        let root = folder.path();
        fs::set_permissions(root, Permissions::from_mode(0o755)).expect("root may");
        let (collector, _) = ids(COLLECTOR_USER);
        let (uploader, uploader_group) = ids(UPLOADER_USER);
        make_folder(&root.join("bin"), 0o755, 0, 0);
        // As script/run makes it: the socket gets the uploader's group from the folder.
        make_folder(&root.join("run"), 0o2750, collector, uploader_group);
        make_folder(&root.join("store"), 0o700, uploader, uploader_group);
        make_folder(&root.join("spool"), 0o700, uploader, uploader_group);
        make_folder(&root.join("log"), 0o700, 0, 0);
        for name in ["bulkhead-collector", "bulkhead-uploader"] {
            let to = root.join("bin").join(name);
            fs::copy(built().join(name), &to)
                .unwrap_or_else(|error| panic!("cannot copy {name} from {}: {error}", built().display()));
            fs::set_permissions(&to, Permissions::from_mode(0o755)).expect("root may");
        }
        Place { folder }
    }

    /// A path below the folder of this place.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The socket between the halves.
    pub fn socket(&self) -> String {
        self.path("run/collector.sock").display().to_string()
    }

    /// Starts the collector with further flags and these of its capabilities, after the words of `before`.
    pub fn collector_with(&self, capabilities: &[&str], flags: &[String]) -> Running {
        self.collector_as(&as_collector(capabilities), flags)
    }

    /// Starts the collector as these flags of setpriv's say.
    pub fn collector_as(&self, setpriv: &[String], flags: &[String]) -> Running {
        let mut line = vec![
            self.path("bin/bulkhead-collector").display().to_string(),
            format!("--socket={}", self.socket()),
            format!("--uploader-user={UPLOADER_USER}"),
        ];
        line.extend(flags.iter().cloned());
        Running::start_line("the collector", setpriv, &line, &self.path("log/collector"))
    }

    /// Starts the uploader.
    pub fn uploader_with(&self, flags: &[String]) -> Running {
        self.uploader_in(&[], flags)
    }

    /// Starts the uploader with these variables in its environment too (`NAME=VALUE`).
    pub fn uploader_in(&self, environment: &[String], flags: &[String]) -> Running {
        self.uploader_as(&as_user(UPLOADER_USER), environment, flags)
    }

    /// Starts the uploader as these flags of setpriv's say, with these variables in its environment too.
    pub fn uploader_as(&self, setpriv: &[String], environment: &[String], flags: &[String]) -> Running {
        let mut line = vec!["/usr/bin/env".to_owned()];
        line.extend(environment.iter().cloned());
        line.extend([
            self.path("bin/bulkhead-uploader").display().to_string(),
            format!("--collector-socket={}", self.socket()),
        ]);
        line.extend(flags.iter().cloned());
        Running::start_line("the uploader", setpriv, &line, &self.path("log/uploader"))
    }

    /// What a half (`collector` or `uploader`) has printed, over all its starts.
    pub fn log(&self, half: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path("log").join(half)).unwrap_or_default()).into_owned()
    }
}

impl Default for Place {
    fn default() -> Self {
        Place::new()
    }
}

fn lock(half: &Mutex<Option<Running>>) -> MutexGuard<'_, Option<Running>> {
    half.lock().unwrap_or_else(PoisonError::into_inner)
}

impl System {
    /// Starts both halves and waits until they are ready: connected, and a window finished.
    pub fn start(options: Options) -> Self {
        Self::start_with(options, |_| Vec::new())
    }

    /// The same, with flags of the uploader's that name what lies in the place.
    pub fn start_with(mut options: Options, flags: impl FnOnce(&Place) -> Vec<String>) -> Self {
        let place = Place::new();
        options.uploader_flags.extend(flags(&place));
        let system = System {
            place,
            options,
            address: format!("127.0.0.1:{}", free_port()),
            collector: Mutex::new(None),
            uploader: Mutex::new(None),
        };
        system.start_collector();
        system.start_uploader();
        system.wait_ready();
        system
    }

    /// Folders and programs.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Where the page is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Starts the collector.
    pub fn start_collector(&self) {
        *lock(&self.collector) =
            Some(self.place.collector_with(&CAPABILITIES, &self.options.collector_flags));
    }

    /// Starts the uploader.
    pub fn start_uploader(&self) {
        let mut flags = vec![
            format!("--http-address={}", self.address),
            format!("--profiling-duration={}", self.options.window),
        ];
        if self.options.store {
            flags.push(format!("--local-store-directory={}", self.place.path("store").display()));
        }
        flags.extend(self.options.uploader_flags.iter().cloned());
        *lock(&self.uploader) = Some(self.place.uploader_in(&self.options.uploader_environment, &flags));
    }

    /// Pid of the collector.
    pub fn collector_pid(&self) -> u32 {
        lock(&self.collector).as_ref().expect("a collector").pid()
    }

    /// Pid of the uploader.
    pub fn uploader_pid(&self) -> u32 {
        lock(&self.uploader).as_ref().expect("an uploader").pid()
    }

    /// How the collector ended, if it did.
    pub fn collector_status(&self) -> Option<ExitStatus> {
        lock(&self.collector).as_mut().and_then(Running::status)
    }

    /// How the uploader ended, if it did.
    pub fn uploader_status(&self) -> Option<ExitStatus> {
        lock(&self.uploader).as_mut().and_then(Running::status)
    }

    /// Kills the collector, or asks it to end.
    pub fn stop_collector(&self, signal: Signal) -> ExitStatus {
        stop(&self.collector, signal)
    }

    /// Kills the uploader, or asks it to end.
    pub fn stop_uploader(&self, signal: Signal) -> ExitStatus {
        stop(&self.uploader, signal)
    }

    /// Sends the collector a signal that does not end it.
    pub fn signal_collector(&self, signal: Signal) {
        lock(&self.collector).as_ref().expect("a collector").signal(signal);
    }

    /// Sends the uploader a signal that does not end it.
    pub fn signal_uploader(&self, signal: Signal) {
        lock(&self.uploader).as_ref().expect("an uploader").signal(signal);
    }

    /// Waits until `/readyz` says so.
    pub fn wait_ready(&self) {
        wait_for("both halves are ready (/readyz)", 60, || {
            for (name, status) in
                [("collector", self.collector_status()), ("uploader", self.uploader_status())]
            {
                if let Some(status) = status {
                    panic!("the {name} ended: {status}\n{}", self.place.log(name));
                }
            }
            self.try_get("/readyz").filter(|response| response.status == 200)
        });
    }

    fn try_get(&self, path: &str) -> Option<Response> {
        http::get(&self.address, path, &[]).ok()
    }

    /// Asks the page.
    pub fn get(&self, path: &str) -> Response {
        http::get(&self.address, path, &[]).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// `/metrics`, by name and labels as they stand there.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        self.get("/metrics")
            .text()
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
            .collect()
    }

    /// The sum of the metrics whose name with labels begins with this.
    pub fn metric(&self, prefix: &str) -> f64 {
        self.metrics().iter().filter(|(name, _)| name.starts_with(prefix)).map(|(_, value)| value).sum()
    }

    /// The next finished window of the targets that a selector chooses, or the answer when it is no profile.
    pub fn query(&self, selector: &str, parameters: &str) -> Result<Profile, Response> {
        let response = self.get(&format!("/query?query={}{parameters}", http::encode(selector)));
        if response.status != 200 {
            return Err(response);
        }
        Ok(Profile::read(&response.body)
            .unwrap_or_else(|error| panic!("the profile of {selector} is not valid: {error}")))
    }

    /// The target with this command name, as `/api/targets` has it.
    pub fn target(&self, comm: &str) -> serde_json::Value {
        let targets: Vec<serde_json::Value> =
            serde_json::from_slice(&self.get("/api/targets").body).expect("a list of targets");
        let target = targets.into_iter().find(|target| target["labels"]["comm"] == comm);
        target.unwrap_or_else(|| panic!("there is no target {comm}"))
    }

    /// Gathers windows, one after another, until there are so many samples. Fails when none has come for so long, or when it
    /// takes five times as long: how many there are in a second is the machine's affair.
    pub fn collect(&self, selector: &str, samples: i64, seconds: u64) -> Profile {
        let (patience, begun) = (Duration::from_secs(seconds), Instant::now());
        let mut last = begun;
        let mut all = Profile::default();
        while all.total() < samples {
            assert!(
                last.elapsed() < patience && begun.elapsed() < 5 * patience,
                "not within {seconds} s: {samples} samples of {selector}, only {}",
                all.dump()
            );
            match self.query(selector, "") {
                Ok(profile) => {
                    if profile.total() > 0 {
                        last = Instant::now();
                    }
                    // The first one brings the fields that are the same in all.
                    if all.stacks.is_empty() { all = profile } else { all.append(profile) }
                }
                Err(response) => {
                    assert_eq!(response.status, 404, "{selector}: {}", response.text());
                    thread::sleep(Duration::from_millis(200));
                }
            }
        }
        all
    }

    /// Every profile that the uploader has stored in folders whose names begin so, and the folder of each. Unlike a query this misses
    /// no window, however busy the machine is.
    pub fn stored_in(&self, prefix: &str) -> Vec<(String, Profile)> {
        // At its start the uploader tries with a file of its own whether it may write.
        let folders = fs::read_dir(self.place.path("store")).expect("the store").flatten();
        let folders = folders.filter(|folder| folder.file_type().is_ok_and(|kind| kind.is_dir()));
        let named = folders.map(|folder| (folder.file_name().to_string_lossy().into_owned(), folder.path()));
        let files = named.filter(|(name, _)| name.starts_with(prefix)).flat_map(|(name, path)| {
            let files = fs::read_dir(path).expect("a target's folder").flatten();
            files.map(move |file| (name.clone(), file.path()))
        });
        // What is being written has another name.
        let whole = files.filter(|(_, path)| path.extension().is_some_and(|extension| extension == "gz"));
        let read = |path| Profile::read(&fs::read(path).expect("a stored profile"));
        whole.map(|(name, path)| (name, read(path).expect("a stored profile is valid"))).collect()
    }

    /// Every profile of a command name that the uploader has stored.
    pub fn stored(&self, comm: &str) -> Vec<Profile> {
        self.stored_in(&format!("{comm}_")).into_iter().map(|(_, profile)| profile).collect()
    }

    /// [`System::collect`] for a command name, from a window on that has not the program's start, nor the moments in which its rows are computed.
    pub fn collect_settled(&self, comm: &str, samples: i64) -> Profile {
        const SETTLES_WITHIN: Duration = Duration::from_secs(2);
        let selector = format!("{{comm=\"{comm}\"}}");
        let settled = SystemTime::now() + SETTLES_WITHIN;
        let settled = settled.duration_since(UNIX_EPOCH).expect("a clock that is set").as_nanos();
        self.collect(&selector, 1, 60);
        let mut all = self.collect(&selector, 1, 60);
        while u128::from(all.time_nanos.unsigned_abs()) < settled {
            all = self.collect(&selector, 1, 60);
        }
        if all.total() < samples {
            all.append(self.collect(&selector, samples - all.total(), 90));
        }
        all
    }

    /// Prints both logs, for a failed test.
    pub fn print_logs(&self) {
        for half in ["collector", "uploader"] {
            let log = self.place.log(half);
            let lines: Vec<_> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(60)..];
            eprintln!(
                "---- log of the {half}, last {} of {} lines ----\n{}",
                tail.len(),
                lines.len(),
                tail.join("\n")
            );
        }
    }
}

fn stop(half: &Mutex<Option<Running>>, signal: Signal) -> ExitStatus {
    let mut running = lock(half).take().expect("it runs");
    running.signal(signal);
    running.wait_end(10)
}

impl Drop for System {
    fn drop(&mut self) {
        if thread::panicking() {
            self.print_logs();
        }
        for half in [&self.uploader, &self.collector] {
            if let Some(mut running) = lock(half).take() {
                running.signal(Signal::TERM);
                let start = Instant::now();
                while running.status().is_none() && start.elapsed() < Duration::from_secs(5) {
                    thread::sleep(Duration::from_millis(20));
                }
                running.kill();
            }
        }
    }
}

/// The lines of `/proc/PID/status` that begin with one of these names, by name.
pub fn status_fields(pid: u32, names: &[&str]) -> BTreeMap<String, String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process lives");
    fields_of(&status, names)
}

/// The same of each thread of a process. One that ends meanwhile is left out.
pub fn threads(pid: u32, names: &[&str]) -> Vec<BTreeMap<String, String>> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
    let all: Vec<_> = texts.map(|text| fields_of(&text, names)).collect();
    assert!(!all.is_empty(), "process {pid} has ended");
    all
}

fn fields_of(status: &str, names: &[&str]) -> BTreeMap<String, String> {
    status
        .lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| names.contains(name))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect()
}
