//! What an uploader may do to the collector by reading nothing, by saying too much, or by saying what makes no sense, and what
//! profiled processes may do to both by being very many: memory stays within its bounds, nobody waits, and what is lost is counted.

use std::{
    io::Read as _,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use ipc::{CgroupId, ExecutableId, FromCollector, FromUploader, ProcessId, SkipCounters};
use rustix::process::Signal;
use tests::{
    cgroup::Cgroup,
    peer::Peer,
    process::{Running, open_files, own_memory},
    system::{CAPABILITIES, Options, Place, System, alone},
    wait::wait_for,
};
use workloads::{ends_at_once, spawner, stage};

/// What the collector may hold, in MiB: as much as after any storm (its queue is 4 MiB, waiting samples 8, and what it knows of
/// processes).
const MOST_MIB: u64 = 40;

#[test]
fn an_uploader_that_reads_nothing() {
    let _alone = alone();
    let system = System::start(Options::default());
    system.wait_ready();
    system.signal_uploader(Signal::STOP);
    // Two shells that start a process after the other, each with its records and samples.
    let storm = "i=0; while [ $i -lt 12000 ]; do /bin/true; i=$((i + 1)); done";
    let mut storms = [0, 1].map(|_| Running::shell(storm, &[""; 0]));
    let mut most = 0;
    while storms.iter_mut().any(|storm| storm.status().is_none()) {
        most = most.max(own_memory(system.collector_pid()) / 1024);
    }
    assert!(system.collector_status().is_none());
    system.signal_uploader(Signal::CONT);
    println!("{most} MiB at most");
    assert!(most < MOST_MIB, "{most} MiB with an uploader that reads nothing");
    // They find each other again, with or without a new session, and profiles come.
    let profile = {
        let _busy = Running::shell("while :; do :; done", &[""; 0]);
        system.collect("{comm=\"sh\"}", 50, 60)
    };
    assert!(profile.total() >= 50);
    let lost: f64 = system
        .metrics()
        .iter()
        .filter(|(name, _)| name.contains("lost_total") || name.contains("missed"))
        .map(|(_, value)| value)
        .sum();
    assert!(lost > 0.0, "what was lost meanwhile is counted: {:?}", system.metrics());
}

/// What the uploader may hold meanwhile, in MiB.
const MOST_OF_UPLOADER_MIB: u64 = 200;

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
    let (mut collector, mut uploader) = (0, 0);
    let start = Instant::now();
    // Longer than two windows.
    while start.elapsed() < Duration::from_secs(25) {
        collector = collector.max(own_memory(system.collector_pid()) / 1024);
        uploader = uploader.max(own_memory(system.uploader_pid()) / 1024);
        std::thread::sleep(Duration::from_millis(100));
    }
    drop((cgroup, running));
    let events = system.metric("bulkhead_collector_kernel_events_total") - begun;
    println!("{events} records of the kernel; collector {collector} MiB, uploader {uploader} MiB at most");
    assert!(events > 10_000.0, "it is no bomb: {events} records");
    assert!(collector < MOST_MIB, "{collector} MiB of the collector");
    assert!(uploader < MOST_OF_UPLOADER_MIB, "{uploader} MiB of the uploader");
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
    let (mut collector, mut uploader) = (0, 0);
    while storm.iter_mut().any(|spawner| spawner.status().is_none()) {
        collector = collector.max(own_memory(system.collector_pid()) / 1024);
        uploader = uploader.max(own_memory(system.uploader_pid()) / 1024);
        std::thread::sleep(Duration::from_millis(100));
    }
    let seconds = start.elapsed().as_secs_f64();
    for mut spawner in storm {
        assert!(spawner.wait_end(1).success(), "{}", spawner.output());
    }
    let events = system.metric("bulkhead_collector_kernel_events_total") - begun;
    let rate = SPAWNERS as f64 * f64::from(PROGRAMS) / seconds;
    println!(
        "{rate:.0} a second, {events} records; collector {collector} MiB, uploader {uploader} MiB at most"
    );
    assert!(collector < MOST_MIB, "{collector} MiB of the collector");
    assert!(uploader < MOST_OF_UPLOADER_MIB, "{uploader} MiB of the uploader");
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
         shown/on-fuse & sleep 1; kill -STOP $server; echo ready $server; wait";
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

/// How long a packet is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether the collector ends the connection: what it still sends before that is read.
fn takes_leave(peer: &Peer) -> bool {
    std::iter::from_fn(|| peer.packet()).count() < 1_000_000
}

/// A collector whose uploader is this test.
fn collector() -> (Place, Running) {
    let place = Place::new();
    let collector = place.collector_with(&CAPABILITIES, &["--uploader-user=0".to_owned()]);
    wait_for("the collector listens", 20, || Peer::greeted(&place.socket(), PATIENCE));
    (place, collector)
}

#[test]
fn every_cut_and_every_changed_message() {
    let _alone = alone();
    let (place, mut collector) = collector();
    let messages = [
        FromUploader::Reopen(ExecutableId(1)),
        FromUploader::TableRules(Vec::new()),
        FromUploader::TableEnd,
        FromUploader::ReopenPerfMap(ProcessId(1)),
        FromUploader::Skip(CgroupId(1)),
    ];
    let mut ended = 0;
    for message in &messages {
        let whole = ipc::encode(message).unwrap();
        let mut forms: Vec<Vec<u8>> = (0..whole.len()).map(|length| whole[..length].to_vec()).collect();
        forms.extend((0..whole.len()).flat_map(|at| {
            [0x01, 0x80, 0xff].map(|bits| {
                let mut changed = whole.clone();
                changed[at] ^= bits;
                changed
            })
        }));
        forms.push([&whole[..], b"x"].concat());
        for form in forms {
            let peer =
                wait_for("the collector takes the next", 20, || Peer::greeted(&place.socket(), PATIENCE));
            peer.send(&form);
            if ipc::decode::<FromUploader>(&form).is_err() {
                // A message that is none ends the session, and only that.
                assert!(takes_leave(&peer), "{form:x?}");
                ended += 1;
            }
            assert!(collector.status().is_none(), "{form:x?}: {}", place.log("collector"));
        }
    }
    assert!(ended > 10, "{ended} forms were no messages");
    // Too long.
    let peer = wait_for("the collector takes the next", 20, || Peer::greeted(&place.socket(), PATIENCE));
    peer.send(&vec![0; ipc::MAX_MESSAGE_SIZE + 1]);
    assert!(takes_leave(&peer));
    // Half a greeting, a byte, nothing: who does not greet does not hold the place for ever.
    for begun in [&b""[..], b"\x01", b"BULK"] {
        let slow =
            wait_for("the collector takes a slow one", 20, || Peer::connect(&place.socket(), PATIENCE));
        if !begun.is_empty() {
            slow.send(begun);
        }
        wait_for("the place is free again", 30, || Peer::greeted(&place.socket(), PATIENCE));
    }
    assert!(collector.status().is_none(), "{}", place.log("collector"));
}

/// Files are passed in one direction only. One that comes the other way is closed, and ends the session: with a greeting or a
/// message, alone or as many as the kernel takes.
#[test]
fn files_that_nobody_asked_for() {
    let _alone = alone();
    let (place, mut collector) = collector();
    let greeting = ipc::Hello {
        protocol: ipc::PROTOCOL_VERSION,
        role: ipc::Role::Uploader,
        release: "bulkhead 0.0".into(),
    };
    let request = ipc::encode(&FromUploader::Reopen(ExecutableId(u32::MAX))).unwrap();
    let before = open_files(collector.pid());
    for (greets, bytes) in [(false, &greeting.to_bytes()[..]), (true, &request), (true, b"x"), (true, b"")] {
        for count in [1, 2, 3, 253] {
            let what = format!("{count} files with {} bytes, greeted: {greets}", bytes.len());
            let peer = wait_for("the collector takes the next", 20, || {
                if greets {
                    Peer::greeted(&place.socket(), PATIENCE)
                } else {
                    Peer::connect(&place.socket(), PATIENCE)
                }
            });
            // Its reading end is at its end when nobody has a writing end any more.
            let (mut reader, writer) = std::io::pipe().unwrap();
            peer.send_with_files(bytes, &vec![writer.as_fd(); count]).unwrap();
            drop(writer);
            assert!(takes_leave(&peer), "{what}");
            assert_eq!(reader.read(&mut [0]).unwrap(), 0, "{what}");
            assert!(collector.status().is_none(), "{what}: {}", place.log("collector"));
        }
    }
    // No more than while one uploader is connected.
    let _peer = wait_for("the collector takes another", 20, || Peer::greeted(&place.socket(), PATIENCE));
    wait_for("no file stays open", 20, || (open_files(collector.pid()) <= before + 2).then_some(()));
}

#[test]
fn a_flood_of_requests_for_what_was_never_handed_out() {
    let _alone = alone();
    let (place, mut collector) = collector();
    let peer = wait_for("the collector takes the flood", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let request = ipc::encode(&FromUploader::Reopen(ExecutableId(u32::MAX))).unwrap();
    let perf_map = ipc::encode(&FromUploader::ReopenPerfMap(ProcessId(u32::MAX))).unwrap();
    let skip = ipc::encode(&FromUploader::Skip(CgroupId(u32::MAX))).unwrap();
    // As many as get through until the collector has had enough of them, or 200,000.
    let (mut sent, mut most) = (0, 0);
    let reader = Peer(peer.0.try_clone().unwrap());
    let answers = std::thread::spawn(move || {
        let mut samples = 0;
        while let Some(packet) = reader.packet() {
            if let Ok(FromCollector::Samples(taken)) = ipc::decode::<FromCollector>(&packet) {
                samples += taken.len();
            }
        }
        samples
    });
    while sent < 200_000 && [&request, &perf_map, &skip].iter().all(|bytes| peer.send(bytes).is_some()) {
        sent += 3;
        if sent % 3000 == 0 {
            most = most.max(own_memory(collector.pid()) / 1024);
        }
    }
    rustix::net::shutdown(&peer.0, rustix::net::Shutdown::Both).unwrap();
    let samples = answers.join().unwrap();
    println!("{sent} requests, {samples} samples meanwhile, {most} MiB at most");
    assert!(collector.status().is_none(), "{}", place.log("collector"));
    assert!(most < MOST_MIB, "{most} MiB in a flood of requests");
    let peer = wait_for("the collector takes another", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let skips = std::iter::from_fn(|| peer.packet()).find_map(|packet| match ipc::decode(&packet) {
        Ok(FromCollector::Counters(counters)) => Some(counters.skips),
        _ => None,
    });
    let unknown = skips.unwrap().unknown;
    assert!(unknown > 0);
    assert_eq!(skips, Some(SkipCounters { unknown, ..SkipCounters::default() }));
}

/// An uploader that wants nothing, and says so again and again, hides what runs from itself alone, and only as long as it is there.
#[test]
fn a_flood_of_cgroups_that_are_not_wanted() {
    let _alone = alone();
    let (place, mut collector) = collector();
    let _busy = Running::shell("while :; do :; done", &[""; 0]);
    let peer = wait_for("the collector takes the test in", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let (mut told, mut most) = (Vec::new(), 0);
    let mut skips = SkipCounters::default();
    let start = Instant::now();
    while skips.in_kernel < 300 {
        assert!(start.elapsed() < Duration::from_mins(1), "{skips:?}");
        match ipc::decode::<FromCollector>(&peer.packet().unwrap()).unwrap() {
            FromCollector::Cgroup(cgroup) => told.push(cgroup.id),
            FromCollector::Counters(counters) => skips = counters.skips,
            _ => {}
        }
        for id in told.iter().cycle().take(1000 * told.len().min(1)) {
            peer.send(&ipc::encode(&FromUploader::Skip(*id)).unwrap()).unwrap();
        }
        most = most.max(own_memory(collector.pid()) / 1024);
    }
    assert!(most < MOST_MIB, "{most} MiB of the collector");
    assert_eq!((skips.unknown, skips.no_room), (0, 0));
    drop(peer);
    let peer = wait_for("the collector takes the next", 20, || Peer::greeted(&place.socket(), PATIENCE));
    // It has said nothing yet.
    let (mut samples, mut counted) = (0, Vec::new());
    while samples < 100 || counted.len() < 2 {
        match ipc::decode::<FromCollector>(&peer.packet().unwrap()).unwrap() {
            FromCollector::Samples(taken) => samples += taken.len(),
            FromCollector::Counters(counters) => counted.push(counters.skips),
            _ => {}
        }
    }
    let (first, last) = (counted[0], counted[counted.len() - 1]);
    assert_eq!(first, last);
    assert!(collector.status().is_none(), "{}", place.log("collector"));
}

/// Kernel addresses of code: the kernel's own and its modules' (`Documentation/arch/x86/x86_64/mm.rst`).
const KERNEL_CODE: std::ops::Range<u64> = 0xffff_ffff_8000_0000..0xffff_ffff_ff00_0000;

#[test]
fn names_stay_if_they_are_to_and_kernel_addresses_always() {
    let _alone = alone();
    let name = b"private-matter";
    let script = "echo private-matter >/proc/$$/comm; while :; do read -r x </proc/self/stat; done";
    let _running = Running::shell(script, &[""; 0]);
    for hidden in [true, false] {
        let place = Place::new();
        let flags = ["--uploader-user=0".to_owned(), format!("--command-names={}", !hidden)];
        let _collector = place.collector_with(&CAPABILITIES, &flags);
        let peer =
            wait_for("the collector takes the test in", 20, || Peer::greeted(&place.socket(), PATIENCE));
        let (mut samples, mut kernel_frames, mut named) = (0, 0, 0);
        while samples < 100 {
            let packet = peer.packet().unwrap();
            named += usize::from(packet.windows(name.len()).any(|bytes| bytes == name));
            for word in packet.windows(8).map(|word| u64::from_le_bytes(word.try_into().unwrap())) {
                assert!(!KERNEL_CODE.contains(&word), "a kernel address crosses: {word:x} in {packet:x?}");
            }
            if let FromCollector::Samples(taken) = ipc::decode::<FromCollector>(&packet).unwrap() {
                samples += taken.len();
                kernel_frames += taken.iter().map(|sample| sample.kernel.len()).sum::<usize>();
            }
        }
        assert!(kernel_frames > 50, "{kernel_frames} kernel frames");
        assert_eq!(named == 0, hidden, "{named} packets with the name");
    }
}
