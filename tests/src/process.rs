//! Child processes that end with the test, however it ends.

use std::{
    ffi::OsStr,
    fmt::Debug,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Mutex, OnceLock,
        mpsc::{Sender, channel},
    },
    thread,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait::wait_for;

/// A running child with its output in a file. Killed and reaped when dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: PathBuf,
    /// What it is called in messages.
    name: String,
    /// Keeps the folder of `output`, if that is the child's own.
    folder: Option<tempfile::TempDir>,
}

/// Children are told by the kernel to die with the thread that made them (`PR_SET_PDEATHSIG` through setpriv), so one
/// thread that lives as long as the tests makes them all.
fn spawn_in_long_lived_thread(mut command: Command) -> io::Result<Child> {
    type Job = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Mutex<Sender<Job>>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, todo) = channel::<Job>();
        thread::spawn(move || {
            for (mut command, answer) in todo {
                // Who asked may be gone.
                let _ = answer.send(command.spawn());
            }
        });
        Mutex::new(jobs)
    });
    let (answer, child) = channel();
    command.stdin(Stdio::null());
    spawner
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
        .send((command, answer))
        .map_err(|_| io::Error::other("the spawning thread is gone"))?;
    child.recv().map_err(|_| io::Error::other("the spawning thread is gone"))?
}

impl Running {
    /// Starts `program` with `arguments`.
    pub fn start<A: AsRef<OsStr> + Debug>(program: &Path, arguments: &[A]) -> Self {
        let folder =
            tempfile::Builder::new().prefix("bulkhead-child.").tempdir().expect("a temporary folder");
        let mut line = vec![program.as_os_str().to_owned()];
        line.extend(arguments.iter().map(|argument| argument.as_ref().to_owned()));
        let name = program.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut running = Self::start_line(&name, &[], &line, &folder.path().join("output"));
        running.folder = Some(folder);
        running
    }

    /// Starts a shell with a script; `"$1"` and so on are the arguments.
    pub fn shell<A: AsRef<OsStr> + Debug>(script: &str, arguments: &[A]) -> Self {
        let mut all = vec![OsStr::new("-c"), OsStr::new(script), OsStr::new("sh")];
        all.extend(arguments.iter().map(AsRef::as_ref));
        Self::start(Path::new("/bin/sh"), &all)
    }

    /// Starts a shell with a script in mount and pid namespaces of its own: what it mounts and starts goes with it.
    pub fn unshared_shell<A: AsRef<OsStr> + Debug>(flags: &[&str], script: &str, arguments: &[A]) -> Self {
        let mut all: Vec<&OsStr> = flags.iter().map(OsStr::new).collect();
        all.extend(["--propagation", "private", "/bin/sh", "-c", script, "sh"].map(OsStr::new));
        all.extend(arguments.iter().map(AsRef::as_ref));
        Self::start(Path::new("/usr/bin/unshare"), &all)
    }

    /// Starts a command line through setpriv with further flags of setpriv's, its output in the file `output`.
    pub fn start_line<A: AsRef<OsStr>>(name: &str, setpriv: &[String], line: &[A], output: &Path) -> Self {
        let file = File::options().create(true).append(true).open(output).expect("the child's output file");
        let mut command = Command::new("setpriv");
        command.args(setpriv).args(["--pdeathsig", "KILL", "--"]).args(line);
        command.stdout(file.try_clone().expect("another handle")).stderr(file);
        let child = spawn_in_long_lived_thread(command)
            .unwrap_or_else(|error| panic!("cannot start {name} through setpriv (util-linux): {error}"));
        Running { child, output: output.to_owned(), name: name.into(), folder: None }
    }

    /// Waits until the program printed the line `ready PID`, as those of the crate `workloads` do, and gives the pid.
    pub fn wait_ready(&mut self) -> u32 {
        let pattern = regex::Regex::new(r"(?m)^ready (\d+)$").expect("a valid pattern");
        let find = |text: &str| pattern.captures(text).and_then(|found| found[1].parse().ok());
        wait_for(&format!("{} is ready", self.name), 120, || {
            let found = find(&self.output());
            if found.is_none()
                && let Some(status) = self.status()
            {
                panic!("{} ended ({status}) before it was ready:\n{}", self.name, self.output());
            }
            found
        })
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it printed up to now.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// How it ended, if it did.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    pub fn wait_end(&mut self, seconds: u64) -> ExitStatus {
        wait_for(&format!("{} ends", self.name), seconds, || self.child.try_wait().ok().flatten())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.child.id().cast_signed()) {
            // It may have ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Ends it and waits.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// CPU time of a process since its start, user and system, in seconds; 0 if it is gone. Fields 14 and 15 of its `stat`, in
/// ticks of 10 ms (`proc_pid_stat(5)`).
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The command name may have blanks in it; what is behind it begins with field 3.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The CPU time of its children, in seconds, that `times` of a shell says in the last line that it printed: `0m9.540000s 0m3.220000s`.
pub fn seconds_of_children(output: &str) -> Option<f64> {
    let times = output.lines().last()?.split_whitespace().map(|time| {
        let (minutes, seconds) = time.strip_suffix('s')?.split_once('m')?;
        Some(60.0 * minutes.parse::<f64>().ok()? + seconds.parse::<f64>().ok()?)
    });
    times.sum()
}

/// Memory of a process that is its own, in KiB; 0 if it is gone. What it has mapped of the BPF programs' memory is of a fixed size,
/// and not in it (`RssAnon`, `proc_pid_status(5)`).
pub fn own_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

/// How many file descriptors a process has open; 0 if it is gone.
pub fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Runs a command line to its end; gives how it ended and all it printed.
pub fn run(line: &[&str]) -> (ExitStatus, String) {
    let output = Command::new(line[0])
        .args(&line[1..])
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("cannot run {line:?}: {error}"));
    let text = [output.stdout, output.stderr].concat();
    (output.status, String::from_utf8_lossy(&text).into_owned())
}
