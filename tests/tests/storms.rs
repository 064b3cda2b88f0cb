//! What profiled processes may do to both halves by being very many, or by doing one thing without end: memory stays within its bounds,
//! nobody waits, and the uploader stays connected.

use std::{
    ffi::OsStr,
    fs::File,
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use tests::{
    cgroup::Cgroup,
    peer::Peer,
    process::{Running, own_memory},
    system::{CAPABILITIES, Options, Place, System, alone},
    wait::wait_for,
};
use workloads::{Program, ends_at_once, floods, program, spawner, stage};

/// What the collector may hold, in MiB: its queue is 4 MiB, waiting samples 8, and what it knows of processes.
const MOST_MIB: u64 = 40;
/// What the uploader may hold meanwhile, in MiB.
const MOST_OF_UPLOADER_MIB: u64 = 200;

/// The most memory of its own that each half had, in MiB.
#[derive(Debug, Default)]
struct Most {
    collector: u64,
    uploader: u64,
}

impl Most {
    fn look(&mut self, system: &System) {
        self.collector = self.collector.max(own_memory(system.collector_pid()) / 1024);
        self.uploader = self.uploader.max(own_memory(system.uploader_pid()) / 1024);
    }

    fn check(&self, what: &str) {
        assert!(self.collector < MOST_MIB, "{what}: {} MiB of the collector", self.collector);
        assert!(self.uploader < MOST_OF_UPLOADER_MIB, "{what}: {} MiB of the uploader", self.uploader);
    }
}

/// Each process of the bomb takes a name that nobody else has, and starts two more and one that lives for a moment.
const BOMB: &str = "echo b$$ >/proc/$$/comm; sh \"$0\" & sh \"$0\" & /bin/true";

#[test]
fn a_fork_bomb() {
    let _alone = alone();
    let system = System::start(Options::default());
    let cgroup = Cgroup::with_processes("bulkhead-test-bomb", 400);
    let folder = tempfile::tempdir().unwrap();
    let bomb = folder.path().join("bomb");
    std::fs::write(&bomb, BOMB).unwrap();
    let begun = system.metric("bulkhead_collector_kernel_events_total");
    // The one that starts it again is not in there: it must not fail.
    let script = "while :; do sh -c 'echo $$ >\"$1\" && exec 2>/dev/null sh \"$2\"' sh \"$1\" \"$2\"; done";
    let running = Running::shell(script, &[cgroup.procs().as_ref(), bomb.as_os_str()]);
    let mut most = Most::default();
    let start = Instant::now();
    // Longer than two windows.
    while start.elapsed() < Duration::from_secs(25) {
        most.look(&system);
        std::thread::sleep(Duration::from_millis(100));
    }
    drop((cgroup, running));
    let events = system.metric("bulkhead_collector_kernel_events_total") - begun;
    println!("{events} records of the kernel; {most:?}");
    assert!(events > 10_000.0, "it is no bomb: {events} records");
    most.check("fork bomb");
    assert!(system.collector_status().is_none() && system.uploader_status().is_none());
    let _busy = Running::shell("while :; do :; done", &[""; 0]);
    system.collect("{comm=\"sh\"}", 50, 60);
}

/// As many programs as can be started: they end as soon as they begin.
#[test]
fn a_storm_of_short_programs() {
    const SPAWNERS: usize = 4;
    const PROGRAMS: u32 = 15_000;
    let _alone = alone();
    let system = System::start(Options::default());
    let begun = system.metric("bulkhead_collector_kernel_events_total");
    let short = ends_at_once().unwrap();
    let start = Instant::now();
    let arguments = [PROGRAMS.to_string().into(), short.into_os_string()];
    let mut storm = [(); SPAWNERS].map(|()| Running::start(&spawner().unwrap(), &arguments));
    let mut most = Most::default();
    while storm.iter_mut().any(|spawner| spawner.status().is_none()) {
        most.look(&system);
        std::thread::sleep(Duration::from_millis(100));
    }
    let seconds = start.elapsed().as_secs_f64();
    for mut spawner in storm {
        assert!(spawner.wait_end(1).success(), "{}", spawner.output());
    }
    let events = system.metric("bulkhead_collector_kernel_events_total") - begun;
    let rate = SPAWNERS as f64 * f64::from(PROGRAMS) / seconds;
    println!("{rate:.0} a second, {events} records; {most:?}");
    most.check("short programs");
    assert!(system.collector_status().is_none() && system.uploader_status().is_none());
    let _busy = Running::shell("while :; do :; done", &[""; 0]);
    system.collect("{comm=\"sh\"}", 50, 60);
}

/// A program on a file system of another process (FUSE), which then stops: whoever opened the program now would wait for good.
/// Nobody else may wait with it.
#[test]
fn a_file_system_that_does_not_answer() {
    let _alone = alone();
    let program = stage("on-fuse", "on_fuse", true).unwrap();
    let script =
        "set -e; place=$(mktemp -d); mount -t tmpfs tmpfs \"$place\"; cd \"$place\"; mkdir real shown
         cp \"$1\" real/; bindfs -f -o allow_other real shown & server=$!
         until [ -e shown/on-fuse ]; do sleep 0.05; done
         shown/on-fuse & until [ \"$(cut -d' ' -f14 /proc/$!/stat)\" -gt 5 ]; do sleep 0.05; done
         kill -STOP $server; echo ready $server; wait";
    let flags = ["-m", "-p", "-f", "--mount-proc", "--kill-child"];
    let mut running = Running::unshared_shell(&flags, script, &[&program]);
    running.wait_ready();
    // It meets the program at its start.
    let system = System::start(Options::default());
    let profile = system.collect("{comm=\"on-fuse\"}", 60, 60);
    let named = profile.count(|stack| stack.frames.iter().any(|frame| frame.name.contains("on_fuse")));
    assert_eq!(named, 0, "who gave those names?\n{}", profile.dump());
    let refused = system.metric("bulkhead_lost_total{reason=\"on_fuse\"}");
    assert!(refused > 0.0, "it is counted: {:?}", system.metrics());
    // Both end when they are told to.
    for half in [System::stop_collector, System::stop_uploader] {
        assert!(half(&system, Signal::TERM).success());
    }
}

/// What a process can do without end, or have very much of. What each is for is said in `workloads/programs/floods.c`.
#[derive(Clone, Copy, Debug)]
enum Storm {
    /// It takes another name.
    Names,
    Processes,
    /// It maps a new file as code, with a long path.
    Files,
    /// The same, and each is a broken executable.
    Broken,
    /// It holds the lock on its mappings, which who looks at them needs.
    Locked,
    Mounts,
    Mappings,
    /// It has very many mappings, and code that is gone before anybody can look at it.
    Gaps,
}

impl Storm {
    const ALL: [Storm; 8] = [
        Storm::Names,
        Storm::Processes,
        Storm::Files,
        Storm::Broken,
        Storm::Locked,
        Storm::Mounts,
        Storm::Mappings,
        Storm::Gaps,
    ];

    /// Begins, and is under way.
    fn start(self, folder: &Path) -> Vec<Running> {
        let shell = |script| {
            let script = format!("echo ready $$; while :; do {script}; done");
            [(); 2].map(|()| Running::shell(&script, &[""; 0])).into()
        };
        let flood = |kind: &str, count: usize| {
            let arguments = [OsStr::new(kind), folder.as_os_str()];
            let program = floods().expect("the program compiles");
            (0..count).map(|_| Running::start(&program, &arguments)).collect()
        };
        let mut running: Vec<Running> = match self {
            Storm::Names => shell("echo one >/proc/$$/comm; echo other >/proc/$$/comm"),
            Storm::Processes => shell("(:)"),
            Storm::Files => flood("files", 2),
            Storm::Broken => flood("broken", 2),
            Storm::Locked => flood("locked", 1),
            Storm::Mounts => flood("mounts", 1),
            Storm::Mappings => flood("mappings", 1),
            Storm::Gaps => flood("gaps", 2),
        };
        for running in &mut running {
            running.wait_ready();
        }
        running
    }

    /// Records of the kernel's that there are at least, in ten seconds.
    fn records(self) -> f64 {
        match self {
            Storm::Locked => 10.0,
            Storm::Mounts | Storm::Mappings | Storm::Gaps => 200.0,
            _ => 10_000.0,
        }
    }
}

/// The next uploader is heard nevertheless, and what it asks, and a signal.
#[test]
fn a_storm_keeps_nobody_waiting() {
    let _alone = alone();
    for storm in Storm::ALL {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new();
        let mut collector = place.collector_with(&CAPABILITIES, &["--uploader-user=0".to_owned()]);
        let patience = Duration::from_secs(5);
        let greeted = || Peer::greeted(&place.socket(), patience);
        drop(wait_for("the collector listens", 20, greeted));
        let _storm = storm.start(folder.path());
        for _ in 0..5 {
            let peer = wait_for("the collector takes the next", 10, greeted);
            assert!(peer.has_an_answer(), "{storm:?}: {}", place.log("collector"));
        }
        collector.signal(Signal::TERM);
        assert!(collector.wait_end(10).success(), "{storm:?}: {}", place.log("collector"));
    }
}

/// The uploader stays connected and goes on hearing, both halves stay small, and neither fills the disk with log lines.
#[test]
fn a_storm_ends_no_session() {
    let _alone = alone();
    for storm in Storm::ALL {
        let folder = tempfile::tempdir().unwrap();
        let system = System::start(Options::default());
        system.wait_ready();
        let mut most = Most::default();
        let begun = system.metric("bulkhead_collector_kernel_events_total");
        let running = storm.start(folder.path());
        let start = Instant::now();
        let (mut heard, mut heard_at, mut silence) = (begun, start, Duration::ZERO);
        while start.elapsed() < Duration::from_secs(12) {
            most.look(&system);
            let events = system.metric("bulkhead_collector_kernel_events_total");
            if events > heard {
                (heard, heard_at) = (events, Instant::now());
            }
            silence = silence.max(heard_at.elapsed());
            std::thread::sleep(Duration::from_millis(100));
        }
        drop(running);
        let events = heard - begun;
        let logs = ["collector", "uploader"].map(|half| system.place().log(half));
        let bytes = logs.each_ref().map(String::len);
        println!(
            "{storm:?}: {events} records; {most:?}, silent for {} ms, {bytes:?} bytes of log at most",
            silence.as_millis()
        );
        assert!(events > storm.records(), "{storm:?}: it is no storm: {events} records");
        most.check(&format!("{storm:?}"));
        assert!(silence < Duration::from_secs(6), "{storm:?}: nothing was heard for {silence:?}");
        assert!(!logs[0].contains("is gone"), "{storm:?}: {}", logs[0]);
        assert!(bytes.iter().all(|bytes| *bytes < 64 * 1024), "{storm:?}: {bytes:?} bytes of log");
    }
}

/// Links to a perf map: who made them may have been killed.
struct Links<'a>(&'a File);

impl Drop for Links<'_> {
    fn drop(&mut self) {
        let inode = self.0.metadata().map(|metadata| metadata.ino()).ok();
        for entry in std::fs::read_dir("/tmp").into_iter().flatten().flatten() {
            if entry.metadata().map(|metadata| metadata.ino()).ok() == inode {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// Sixty processes whose code has to be looked up in maps of 64 MiB: windows are finished in time, and a small map of somebody else's is read.
#[test]
fn large_perf_maps_hold_up_no_window() {
    let _alone = alone();
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let path = folder.path().join("large.map");
    let mut file = File::create(&path).unwrap();
    let lines = "1000 10 a_function_of_no_address_that_runs\n".repeat(25_000);
    (0..64).for_each(|_| file.write_all(lines.as_bytes()).unwrap());
    let _links = Links(&file);
    let system = System::start(Options { window: "10s", ..Options::default() });
    let _flood = {
        let mut flood = Running::start(&floods().unwrap(), &[OsStr::new("perf-maps"), path.as_os_str()]);
        flood.wait_ready();
        flood
    };
    let small = folder.path().join("small-jit");
    std::fs::copy(program(Program::Jit).unwrap(), &small).unwrap();
    let _small = Running::start(&small, &["good"]);
    let profile = system.collect_settled("small-jit", 20);
    let named =
        profile.count(|stack| stack.frames.iter().any(|frame| frame.name.starts_with("jit_function")));
    assert!(named * 10 > profile.total() * 9, "{named} of {}", profile.total());
    let before = system.metric("bulkhead_windows_total");
    wait_for("three windows are finished", 60, || {
        (system.metric("bulkhead_windows_total") >= before + 3.0).then_some(())
    });
    let metrics = system.metrics();
    let read = |name: &str| metrics.iter().find(|(key, _)| key.starts_with(name)).map(|(_, value)| *value);
    assert_eq!(read("bulkhead_windows_dropped_total"), Some(0.0), "{metrics:?}");
    assert!(
        read("bulkhead_put_off_total{file=\"perf_map\"}") > Some(0.0),
        "they were no burden: {metrics:?}"
    );
}
