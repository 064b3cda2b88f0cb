//! Both halves at work while things change around them: each is restarted under load, a second uploader and strangers
//! come, CPUs and the kernel's addresses go and come back. Each test has halves of its own, one test at a time. The
//! wall itself is tested in `wall.rs`.
#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::{
    fs::{self, Permissions},
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use rustix::process::Signal;
use tests::{
    pprof::{Frame, Profile, Stack},
    process::{Running, run},
    system::{
        AGAIN, CAPABILITIES, Options, Place, System, UPLOADER_USER, as_collector, as_user, free_port,
        publish, threads,
    },
    wait::wait_for,
};
use workloads::{CallTree, Program, Start, program};

/// How long there may be no profile: the halves try each 2 s to meet, and a window has two; the rest is for the machine.
const LONGEST: Duration = Duration::from_secs(15);

/// These change the whole machine, or count what happens on it.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn system() -> System {
    System::start(Options { window: "2s", ..Options::default() })
}

/// A busy program with this command name.
fn busy(name: &str) -> Running {
    Running::start(&CallTree::standard(name, Start::Bare).build().unwrap(), &[""; 0])
}

/// Waits for the next profile of a command name with samples in it.
fn next_profile(system: &System, comm: &str) -> Profile {
    system.collect(&format!("{{comm=\"{comm}\"}}"), 1, LONGEST.as_secs())
}

/// Waits for a profile of `steady` in which the stacks have names: not in the window that is under way, perhaps not in the first after it, in which
/// a new uploader has everybody's to read, but in the second. Counted in windows: how long they take is the machine's affair.
fn wait_named(system: &System) {
    const WINDOWS: &str = "bulkhead_windows_total";
    let before = system.metric(WINDOWS);
    loop {
        let profile = next_profile(system, "steady");
        if profile.count(|stack| stack.names().contains(&"main")) as f64 > 0.9 * profile.total() as f64 {
            return;
        }
        assert!(system.metric(WINDOWS) < before + 3.0, "without names: {}", profile.dump());
    }
}

/// What the collector has logged since its log had this length.
fn log_since(place: &Place, length: usize) -> String {
    place.log("collector").split_off(length)
}

#[test]
fn profiles_go_on_within_two_windows_when_the_halves_are_restarted_in_turn() {
    const LOST: &str = "bulkhead_lost_total{reason=\"no_uploader\"}";
    const SESSIONS: &str = "bulkhead_collector_sessions_total";
    const RECONNECTS: &str = "bulkhead_collector_reconnects_total";
    const RESTARTS: &str = "bulkhead_collector_restarts_total";
    let _alone = alone();
    let system = system();
    let _load = busy("steady");
    // Processes that come and go meanwhile, some of them while nobody listens.
    let _churn =
        Running::shell("while :; do for i in 1 2 3 4; do /bin/true; done; sleep 0.1; done", &[""; 0]);
    next_profile(&system, "steady");

    for signal in [Signal::TERM, Signal::KILL] {
        let ended = system.stop_uploader(signal);
        assert_eq!(ended.code(), (signal == Signal::TERM).then_some(0), "the uploader: {ended}");
        // Long enough for samples that nobody takes.
        thread::sleep(Duration::from_millis(500));
        assert_eq!(system.collector_status(), None, "the collector outlives the uploader");
        system.start_uploader();
        let address = system.address();
        wait_for("the new uploader is connected", 10, || {
            let text = tests::http::get(address, "/metrics", &[]).ok()?.text();
            text.lines().any(|line| line == format!("{SESSIONS} 1")).then_some(())
        });
        wait_named(&system);
        wait_for("what nobody took is counted", 10, || (system.metric(LOST) > 0.0).then_some(()));

        let before = system.metrics();
        let ended = system.stop_collector(signal);
        assert_eq!(ended.code(), (signal == Signal::TERM).then_some(0), "the collector: {ended}");
        thread::sleep(Duration::from_millis(500));
        assert_eq!(system.uploader_status(), None, "the uploader outlives the collector");
        assert!(system.metric("bulkhead_collector_connected") < 1.0, "it knows that it is alone");
        system.start_collector();
        // The uploader asks again at the latest after 2 s.
        wait_for("the uploader is connected again", 10, || {
            (system.metric(SESSIONS) > before[SESSIONS]).then_some(())
        });
        wait_named(&system);
        let after = system.metrics();
        for name in [RESTARTS, RECONNECTS] {
            assert!(after[name] > before[name], "{name}: {} then {}", before[name], after[name]);
        }
        assert!(after[LOST] >= before[LOST], "a new collector starts at 0, the uploader's sum goes on");
    }
}

#[test]
fn no_thread_of_either_half_has_a_capability_too_many() {
    let _alone = alone();
    let system = system();
    let names = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs"];
    let bits = |value: &str| u64::from_str_radix(value, 16).unwrap();
    for fields in threads(system.uploader_pid(), &names) {
        for name in &names[..5] {
            assert_eq!(bits(&fields[*name]), 0, "{name} of a thread of the uploader's");
        }
        assert_eq!(fields["NoNewPrivs"], "1");
    }
    // CAP_DAC_READ_SEARCH (2), CAP_SYS_PTRACE (19), CAP_CHECKPOINT_RESTORE (40); also CAP_SYSLOG (34), CAP_PERFMON (38)
    // and CAP_BPF (39), which it was started with.
    let kept = 1u64 << 2 | 1 << 19 | 1 << 40;
    let started_with = kept | 1 << 34 | 1 << 38 | 1 << 39;
    for fields in threads(system.collector_pid(), &names) {
        assert_eq!((bits(&fields["CapPrm"]), bits(&fields["CapEff"])), (kept, kept));
        assert_eq!((bits(&fields["CapInh"]), bits(&fields["CapAmb"])), (0, 0));
        assert_eq!(bits(&fields["CapBnd"]) & !started_with, 0, "CapBnd {}", fields["CapBnd"]);
        assert_eq!(fields["NoNewPrivs"], "1");
    }
}

#[test]
fn a_stranger_is_turned_away_even_where_the_socket_can_be_reached() {
    let _alone = alone();
    let system = system();
    let place = system.place();
    let script = "import socket,sys\n\
        s=socket.socket(socket.AF_UNIX,socket.SOCK_SEQPACKET)\n\
        s.settimeout(5)\n\
        s.connect(sys.argv[1])\n\
        print('got',len(s.recv(100)))";
    let as_nobody = || {
        let (user, group) = ("--reuid=65534", "--regid=65534");
        let socket = place.socket();
        run(&["setpriv", user, group, "--clear-groups", "/usr/bin/python3", "-c", script, &socket])
    };
    let (status, output) = as_nobody();
    assert!(!status.success() && output.contains("PermissionError"), "{output}");

    // As a careless administrator may do.
    fs::set_permissions(place.path("run"), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(place.socket(), Permissions::from_mode(0o666)).unwrap();
    let (status, output) = as_nobody();
    assert!(status.success() && output.trim() == "got 0", "not one byte: {output}");
    wait_for("it is said", 5, || place.log("collector").contains("user 65534 connected").then_some(()));
    assert!(system.metric("bulkhead_collector_sessions_total") < 2.0, "the uploader's session goes on");
}

#[test]
fn a_collector_that_hangs_is_noticed_and_met_again() {
    let _alone = alone();
    let system = system();
    system.wait_ready();
    system.signal_collector(Signal::STOP);
    wait_for("the uploader says that it is not ready", 30, || {
        (system.get("/readyz").status == 503).then_some(())
    });
    assert!(system.place().log("uploader").contains("the collector has said nothing for 15 seconds"));
    system.signal_collector(Signal::CONT);
    let _load = busy("after");
    next_profile(&system, "after");
}

#[test]
fn a_second_uploader_is_turned_away_and_the_first_goes_on() {
    let _alone = alone();
    let system = system();
    let place = system.place();
    let _load = busy("shared");
    let line = [
        place.path("bin/bulkhead-uploader").display().to_string(),
        format!("--collector-socket={}", place.socket()),
        format!("--http-address=127.0.0.1:{}", free_port()),
    ];
    let mut second = Running::start_line("second", &as_user(UPLOADER_USER), &line, &place.path("log/second"));
    wait_for("both sides say so", 10, || {
        let collector = place.log("collector").contains("a second uploader connected and was turned away");
        (collector && second.output().contains("serves one uploader at a time")).then_some(())
    });
    next_profile(&system, "shared");
    assert!(system.metric("bulkhead_collector_sessions_total") < 2.0, "the first session goes on");
    assert_eq!(second.status(), None, "the second waits for its turn");
    // Its turn comes.
    system.stop_uploader(Signal::TERM);
    wait_for("the second is served", 10, || {
        second.output().contains("connected to the collector at").then_some(())
    });
}

#[test]
fn a_collector_without_privilege_names_what_it_needs() {
    let _alone = alone();
    let place = Place::new();
    let mut collector = place.collector_with(&[], &[]);
    let status = collector.wait_end(20);
    let log = place.log("collector");
    assert_eq!(status.code(), Some(1), "{log}");
    assert!(log.contains("CAP_BPF") && log.contains("CAP_PERFMON") && log.contains("are missing"), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
}

#[test]
fn what_goes_on_with_less_says_so_as_a_warning() {
    let _alone = alone();
    for (missing, named) in [("syslog", "CAP_SYSLOG"), ("sys_ptrace", "CAP_SYS_PTRACE")] {
        let place = Place::new();
        let capabilities: Vec<&str> = CAPABILITIES.into_iter().filter(|name| *name != missing).collect();
        let mut collector = place.collector_with(&capabilities, &[]);
        wait_for("it listens", 20, || place.log("collector").contains("listening on").then_some(()));
        let log = place.log("collector");
        let warnings =
            log.lines().filter(|line| line.contains(named) && line.to_lowercase().contains("warn"));
        assert_eq!(warnings.count(), 1, "{log}");
        assert_eq!(collector.status(), None);
    }
}

#[test]
fn an_uploader_that_cannot_start_says_why_in_one_line() {
    let _alone = alone();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (flag, part) in [
        (format!("--http-address={address}"), "is in use by another program"),
        ("--local-store-directory=/root/no".to_owned(), "/root/no (--local-store-directory)"),
    ] {
        let place = Place::new();
        // The store comes first, so this is about the store even where the usual port is taken.
        let mut uploader = place.uploader_with(std::slice::from_ref(&flag));
        let status = uploader.wait_end(20);
        let log = place.log("uploader");
        assert_eq!(status.code(), Some(1), "{flag}: {log}");
        assert!(log.contains(part) && log.lines().count() == 1, "{flag}: {log}");
    }
}

#[test]
fn a_cluster_that_the_environment_names_is_asked_or_done_without_as_it_says_once() {
    let _alone = alone();
    let address = format!("127.0.0.1:{}", free_port());
    let lines = |environment: &[String], flags: &[&str]| {
        let place = Place::new();
        let mut all = vec![format!("--http-address={address}")];
        all.extend(flags.iter().map(|flag| (*flag).to_owned()));
        let mut uploader = place.uploader_in(environment, &all);
        wait_for("it goes on: the page answers", 20, || {
            assert_eq!(uploader.status(), None, "{}", place.log("uploader"));
            tests::http::get(&address, "/healthz", &[]).ok().filter(|answer| answer.status == 200)
        });
        uploader.signal(Signal::TERM);
        assert_eq!(uploader.wait_end(10).code(), Some(0));
        let log = place.log("uploader");
        let about = log.lines().filter(|line| line.to_lowercase().contains("kube"));
        about.map(str::to_owned).collect::<Vec<_>>()
    };

    // As in a pod whose service account's token is not mounted.
    let pod = ["KUBERNETES_SERVICE_HOST=127.0.0.1".to_owned(), "KUBERNETES_SERVICE_PORT=6443".to_owned()];
    let said = lines(&pod, &[]);
    let [line] = &said[..] else { panic!("one line: {said:?}") };
    for part in ["WARN", "KUBERNETES_SERVICE_HOST is set", "token mounted?", "--kubernetes=false"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    assert_eq!(lines(&pod, &["--kubernetes=false"]), [""; 0]);

    let folder = tempfile::tempdir().unwrap();
    let server = format!("127.0.0.1:{}", free_port());
    let kubeconfig = format!(
        "{{apiVersion: v1, kind: Config, current-context: a, contexts: [{{name: a, context: {{cluster: a, user: a}}}}], \
         users: [{{name: a, user: {{token: of-this-test}}}}], \
         clusters: [{{name: a, cluster: {{server: \"https://{server}\", insecure-skip-tls-verify: true}}}}]}}"
    );
    let named = [format!("KUBECONFIG={}", publish(folder.path(), "config", &kubeconfig))];
    let said = lines(&named, &[]);
    let asks = format!("asking the Kubernetes API server {server} for the pods of");
    assert_eq!(said.iter().filter(|line| line.contains(&asks)).count(), 1, "{said:?}");
    assert!(!said.iter().any(|line| line.contains("of-this-test")), "a token is said: {said:?}");
    assert_eq!(lines(&named, &["--kubernetes=false"]), [""; 0]);
}

#[test]
fn version_and_help_need_no_privilege_and_start_nothing() {
    let _alone = alone();
    let place = Place::new();
    for (half, flag) in
        [("bulkhead-collector", "--sampling-frequency"), ("bulkhead-uploader", "--profiling-duration")]
    {
        let binary = place.path("bin").join(half).display().to_string();
        let as_nobody =
            |what: &str| run(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", &binary, what]);
        let (status, output) = as_nobody("--version");
        assert_eq!(status.code(), Some(0), "{output}");
        assert_eq!(output, format!("{half} {}\n", env!("CARGO_PKG_VERSION")));
        let (status, output) = as_nobody("--help");
        assert_eq!(status.code(), Some(0), "{output}");
        assert!(output.contains(flag) && output.contains("--log-level"), "{output}");
    }
}

/// A setting of the kernel's that is put back, whatever happens in the test.
struct Setting {
    path: &'static str,
    old: String,
}

impl Setting {
    fn set(path: &'static str, value: &str) -> Self {
        let old = fs::read_to_string(path).unwrap().trim().to_owned();
        let setting = Setting { path, old };
        setting.write(value);
        setting
    }

    fn write(&self, value: &str) {
        fs::write(self.path, value).unwrap_or_else(|error| panic!("{value} to {}: {error}", self.path));
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        if let Err(error) = fs::write(self.path, &self.old) {
            eprintln!("{} is NOT put back to {}: {error}", self.path, self.old);
        }
    }
}

/// What stands for the name of a function whose address the kernel hides.
const HIDDEN: &str = "[kernel]";

/// Samples in the kernel, and those of them that have a frame with the name of a function of the kernel's.
fn kernel_samples(profile: &Profile) -> (i64, i64) {
    let in_kernel = |stack: &Stack| stack.frames.first().is_some_and(Frame::is_kernel);
    let is_named = |frame: &Frame| frame.is_kernel() && frame.name != HIDDEN && !frame.name.is_empty();
    let named = profile.count(|stack| stack.frames.iter().any(is_named));
    (profile.count(in_kernel), named)
}

#[test]
fn kernel_frames_lose_their_names_with_the_addresses_and_get_them_back() {
    let _alone = alone();
    let setting = Setting::set("/proc/sys/kernel/kptr_restrict", "2");
    let system = system();
    let _load = Running::start(&program(Program::Syscalls).unwrap(), &[""; 0]);
    let selector = "{comm=\"syscalls\"}";
    let profile = system.collect(selector, 100, 30);
    let (all, named) = kernel_samples(&profile);
    assert!(all > 10, "{all} samples in the kernel");
    assert_eq!(named, 0, "of {all} samples in the kernel: {}", profile.dump());
    let log = system.place().log("collector");
    assert_eq!(log.lines().filter(|line| line.contains("kptr_restrict")).count(), 1, "{log}");
    assert_eq!((system.collector_status(), system.uploader_status()), (None, None));

    let length = log.len();
    setting.write("1");
    let again = wait_for("the collector ends", 5, || system.collector_status());
    assert_eq!(again.code(), Some(AGAIN), "{}", system.place().log("collector"));
    assert!(log_since(system.place(), length).contains("kernel addresses have become readable"));
    // As its supervisor does.
    system.start_collector();
    wait_for("kernel frames have names", 20, || {
        let (all, named) = kernel_samples(&system.query(selector, "").ok()?);
        (all > 10 && named as f64 > 0.9 * all as f64).then_some(())
    });
}

#[test]
fn profiles_go_on_while_a_cpu_is_away_and_after_it_is_back() {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    let _alone = alone();
    if !Path::new(ONLINE).exists() || fs::read_to_string(ONLINE).unwrap().trim() != "1" {
        println!("skipped: this machine has no CPU 1 that is online and can go offline");
        return;
    }
    let system = system();
    let _load = busy("moved");
    next_profile(&system, "moved");
    let offline = Setting::set(ONLINE, "0");
    wait_for("it is said", 5, || {
        system.place().log("collector").contains("CPU 1 went offline").then_some(())
    });
    system.collect("{comm=\"moved\"}", 200, 20);
    assert_eq!(system.collector_status(), None, "a CPU that goes offline is no error");

    let length = system.place().log("collector").len();
    drop(offline);
    let again = wait_for("the collector ends", 5, || system.collector_status());
    assert_eq!(again.code(), Some(AGAIN), "{}", system.place().log("collector"));
    assert!(log_since(system.place(), length).contains("CPU 1 has come online"));
    system.start_collector();
    wait_for("the collector is served again", 10, || {
        (system.metric("bulkhead_collector_connected") > 0.0).then_some(())
    });
    next_profile(&system, "moved");
}

#[test]
fn a_collector_in_a_pid_namespace_profiles_that_namespace_and_says_so() {
    let _alone = alone();
    let place = Place::new();
    let program = CallTree::standard("within", Start::Bare).build().unwrap().display().to_string();
    let collector = place.path("bin/bulkhead-collector").display().to_string();
    let mut arguments = vec![program, "setpriv".to_owned()];
    arguments.extend(as_collector(&CAPABILITIES));
    arguments.extend([
        "--".to_owned(),
        collector,
        format!("--socket={}", place.socket()),
        format!("--uploader-user={UPLOADER_USER}"),
    ]);
    // A program outside it, which must not be seen.
    let _outside = busy("without");
    let inside = Running::unshared_shell(
        &["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"],
        "\"$1\" & shift; \"$@\"",
        &arguments,
    );
    wait_for("it listens", 20, || inside.output().contains("listening on").then_some(()));
    assert!(inside.output().contains("running in a pid namespace"), "{}", inside.output());

    let address = format!("127.0.0.1:{}", free_port());
    let _uploader =
        place.uploader_with(&[format!("--http-address={address}"), "--profiling-duration=2s".to_owned()]);
    let ask = |comm: &str| {
        let query = tests::http::encode(&format!("{{comm=\"{comm}\"}}"));
        let answer = tests::http::get(&address, &format!("/query?query={query}"), &[]).ok()?;
        (answer.status == 200).then(|| Profile::read(&answer.body).unwrap())
    };
    let profile = wait_for("the program inside is profiled", 20, || {
        ask("within").filter(|profile| profile.total() > 50)
    });
    let named = profile.count(|stack| stack.names().contains(&"main"));
    assert!(named as f64 > 0.9 * profile.total() as f64, "without names: {}", profile.dump());
    assert!(ask("without").is_none(), "a program outside the namespace is seen");
}
