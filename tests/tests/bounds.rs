//! What an uploader may do to the collector by reading nothing, by saying too much, or by saying what makes no sense: memory stays
//! within its bounds, nobody waits, and what is lost is counted.

use std::{
    io::Read as _,
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use ipc::{
    CgroupId, ExecutableId, FromCollector, FromUploader, PageRows, ProcessId, SkipCounters, TableBegin,
};
use records::Rule;
use rustix::process::Signal;
use tests::{
    peer::Peer,
    process::{Running, open_files, own_memory, run},
    system::{CAPABILITIES, COLLECTOR_USER, Options, Place, System, alone, as_user},
    wait::wait_for,
};

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

/// One of each message that the uploader may send, lists with something in them.
fn messages(executable: ExecutableId) -> [FromUploader; 8] {
    let rule = |cfa_offset| Rule { cfa_offset, ..Rule::default() };
    let page = |first| PageRows { first, count: 1 };
    let all = [
        FromUploader::Reopen(executable),
        FromUploader::ReopenPerfMap(ProcessId(1)),
        FromUploader::TableBegin(TableBegin { executable, first_page: 1, pages: 3, rows: 3 }),
        FromUploader::TableRules([8, -300, 70_000].map(rule).to_vec()),
        FromUploader::TablePages([0, 1, 2].map(page).to_vec()),
        FromUploader::TableRows(vec![0, 300, u32::MAX]),
        FromUploader::TableEnd,
        FromUploader::Skip(CgroupId(1)),
    ];
    for message in &all {
        // Who adds a form adds it above too.
        match message {
            FromUploader::Reopen(_)
            | FromUploader::ReopenPerfMap(_)
            | FromUploader::TableBegin(_)
            | FromUploader::TableRules(_)
            | FromUploader::TablePages(_)
            | FromUploader::TableRows(_)
            | FromUploader::TableEnd
            | FromUploader::Skip(_) => {}
        }
    }
    all
}

/// The message cut at each byte, with each byte changed in three ways, and with one byte too many.
fn forms(whole: &[u8]) -> Vec<Vec<u8>> {
    let mut forms: Vec<Vec<u8>> = (0..=whole.len()).map(|length| whole[..length].to_vec()).collect();
    forms.extend((0..whole.len()).flat_map(|at| {
        [0x01, 0x80, 0xff].map(|bits| {
            let mut changed = whole.to_vec();
            changed[at] ^= bits;
            changed
        })
    }));
    forms.push([whole, b"x"].concat());
    forms
}

#[test]
fn every_cut_and_every_changed_message() {
    let _alone = alone();
    let (place, mut collector) = collector();
    let greeted =
        || wait_for("the collector takes the next", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let executable = {
        let _busy = Running::shell("while :; do :; done", &[""; 0]);
        let peer = greeted();
        let wanted = std::iter::from_fn(|| peer.packet()).find_map(|packet| match ipc::decode(&packet) {
            Ok(FromCollector::WantRows(executable)) => Some(executable),
            _ => None,
        });
        wanted.unwrap()
    };
    // A table of an executable that is there: what comes next belongs to it.
    let begin = TableBegin { executable, first_page: 0, pages: 3, rows: 3 };
    let begin = ipc::encode(&FromUploader::TableBegin(begin)).unwrap();
    let (mut ended, mut went_on) = (0, 0);
    for message in messages(executable) {
        for form in forms(&ipc::encode(&message).unwrap()) {
            for begun in [None, Some(&begin)] {
                let what = format!("{form:x?} of {message:?}, in a table: {}", begun.is_some());
                let peer = greeted();
                if let Some(begin) = begun {
                    peer.send(begin).unwrap();
                }
                peer.send(&form);
                if ipc::decode::<FromUploader>(&form).is_err() {
                    // A message that is none ends the session, and only that.
                    assert!(takes_leave(&peer), "{what}");
                    ended += 1;
                } else {
                    assert!(peer.has_an_answer(), "{what}");
                    went_on += 1;
                }
                assert!(collector.status().is_none(), "{what}: {}", place.log("collector"));
            }
        }
    }
    println!("{ended} forms were no messages, {went_on} were");
    assert!(ended > 100 && went_on > 100, "{ended} forms were no messages, {went_on} were");
    // Some of them were wrong in a table that was begun.
    let peer = greeted();
    let tables = std::iter::from_fn(|| peer.packet()).find_map(|packet| match ipc::decode(&packet) {
        Ok(FromCollector::Counters(counters)) => Some(counters.tables),
        _ => None,
    });
    assert!(tables.unwrap().refused > 10, "{tables:?}");
    drop(peer);
    // Packets of each length up to one that is too long, of zeros and of as many rows.
    for length in (0..=ipc::MAX_MESSAGE_SIZE + 1).step_by(4099).chain([ipc::MAX_MESSAGE_SIZE + 1]) {
        let peer = greeted();
        peer.send(&vec![0; length]);
        assert!(takes_leave(&peer), "{length} zeros");
        // Without the number of the form and the length of the list.
        let rows = FromUploader::TableRows(vec![1; length.saturating_sub(8)]);
        if let Ok(bytes) = ipc::encode(&rows) {
            let peer = greeted();
            peer.send(&begin).unwrap();
            peer.send(&bytes).unwrap();
            assert!(peer.has_an_answer(), "{length} rows");
        }
    }
    assert!(collector.status().is_none(), "{}", place.log("collector"));
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

/// A byte a second, said or heard, holds nothing up and fills nothing.
#[test]
fn an_uploader_that_is_very_slow() {
    const SECOND: Duration = Duration::from_secs(1);
    let _alone = alone();
    let (place, mut collector) = collector();
    // Each byte is a packet: the first of them ends the greeting, or the session.
    for connect in [Peer::connect, Peer::greeted] {
        let peer = wait_for("the collector takes the next", 20, || connect(&place.socket(), PATIENCE));
        let sent = (0..10).take_while(|_| {
            std::thread::sleep(SECOND);
            peer.send(b"\x01").is_some()
        });
        assert!(sent.count() < 3);
    }
    // One that is a message, and for each a packet that is read, while far more is to be told.
    let peer = wait_for("the collector takes the next", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let end = ipc::encode(&FromUploader::TableEnd).unwrap();
    assert_eq!(end.len(), 1);
    let storm = "while :; do /bin/true; done";
    let _storms = [0, 1].map(|_| Running::shell(storm, &[""; 0]));
    let (mut most, mut heard) = (0, 0);
    for _ in 0..30 {
        std::thread::sleep(SECOND);
        // The collector may have had enough.
        heard += usize::from(peer.send(&end).is_some() && peer.packet().is_some());
        most = most.max(own_memory(collector.pid()) / 1024);
    }
    println!("{heard} packets in 30 s, {most} MiB at most");
    assert!(heard > 2, "{heard} packets");
    assert!(most < MOST_MIB, "{most} MiB with an uploader that is very slow");
    drop(peer);
    wait_for("the collector takes another", 20, || Peer::greeted(&place.socket(), PATIENCE));
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

/// Who connects as fast as it can fills no disk with log lines.
#[test]
fn a_flood_of_connections() {
    const CONNECTIONS: usize = 20_000;
    let _alone = alone();
    let (place, mut collector) = collector();
    // Some are turned away while another is greeted, some for what they say, and some are let in.
    let hello = ipc::Hello {
        protocol: ipc::PROTOCOL_VERSION,
        role: ipc::Role::Uploader,
        release: "bulkhead 0.0".into(),
    };
    let greeting = hello.to_bytes();
    let start = Instant::now();
    let (mut connected, mut most) = (0, 0);
    for round in 0..CONNECTIONS {
        if let Some(peer) = Peer::connect(&place.socket(), PATIENCE) {
            connected += 1;
            // It may have been turned away by now.
            let _ = peer.send(if round % 2 == 0 { b"x" } else { &greeting });
        }
        if round % 1000 == 0 {
            most = most.max(own_memory(collector.pid()) / 1024);
        }
    }
    wait_for("the collector takes another", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let seconds = start.elapsed().as_secs();
    let lines = place.log("collector").lines().count() as u64;
    println!("{connected} connections in {seconds} s, {lines} lines, {most} MiB");
    assert!(connected > CONNECTIONS / 2, "{connected} connections");
    assert!(lines < 30 + seconds, "{lines} lines in {seconds} s");
    // The next line that may be said has how many were not.
    wait_for("the lines that were left out are counted", 20, || {
        drop(Peer::connect(&place.socket(), PATIENCE));
        place.log("collector").contains("were left out").then_some(())
    });
    assert!(most < MOST_MIB, "{most} MiB");
    assert!(collector.status().is_none(), "{}", place.log("collector"));
}

/// A collector that may open no more files cannot accept a connection. It does when it may again.
#[test]
fn a_connection_that_cannot_be_accepted() {
    let _alone = alone();
    let (place, mut collector) = collector();
    // As its own user, who may do so without any privilege.
    let pid = format!("--pid={}", collector.pid());
    let prlimit = |flags: &[&str]| {
        let user = as_user(COLLECTOR_USER);
        let mut line = vec!["setpriv"];
        line.extend(user.iter().map(String::as_str));
        line.extend(["prlimit", &pid]);
        line.extend(flags);
        let (status, text) = run(&line);
        assert!(status.success(), "{text}");
        text
    };
    let usual = prlimit(&["--nofile", "--output=SOFT", "--noheadings"]);
    wait_for("its last uploader is gone", 20, || place.log("collector").contains("is gone").then_some(()));
    prlimit(&["--nofile=3:"]);
    let peer = Peer::connect(&place.socket(), PATIENCE).unwrap();
    wait_for("it says so", 20, || {
        place.log("collector").contains("cannot accept a connection: ").then_some(())
    });
    std::thread::sleep(Duration::from_secs(3));
    prlimit(&[&format!("--nofile={}:", usual.trim())]);
    // Time for it to see that the first has gone.
    drop(peer);
    wait_for("the collector takes another", 20, || Peer::greeted(&place.socket(), PATIENCE));
    let lines = place.log("collector").matches("cannot accept").count();
    assert!(lines < 10, "{lines} lines");
    assert!(collector.status().is_none(), "{}", place.log("collector"));
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
