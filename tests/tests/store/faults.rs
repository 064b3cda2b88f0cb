//! What goes wrong on the way: each code of gRPC's, cut connections, refusals, a killed uploader, a full disk.

use std::{collections::HashMap, process::Command};

use tests::process::own_memory;
use tonic::Code;

use super::*;

#[test]
fn every_code_that_a_server_can_answer() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let codes = (1..17).map(Code::from).filter(|code| *code != Code::InvalidArgument);
    // Each once, between calls that succeed, so that pauses do not grow.
    journal.script(codes.flat_map(|code| [Answer::Code(code), Answer::Well]));
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let system = system(port, &["--insecure"]);
    wait_for("every answer was given", 120, || journal.script_is_done().then_some(()));
    let before = stored(&system);
    wait_for("all has arrived", 60, || {
        let arrived: HashSet<i64> = journal.arrived().iter().map(|one| one.profile.time_nanos).collect();
        before.iter().all(|(_, time)| arrived.contains(time)).then_some(())
    });
    assert!(times_arrived(&journal.arrived()).values().all(|times| *times == 1));
    let calls = |code: &str| system.metric(&format!("bulkhead_store_calls_total{{result=\"{code}\"}}"));
    for code in
        ["UNAVAILABLE", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "UNIMPLEMENTED"]
    {
        assert_eq!(calls(code), 1.0, "{code}");
    }
    assert_eq!(system.metric("bulkhead_store_profiles_total{state=\"dropped\"}"), 0.0);
    assert_eq!(system.metric("bulkhead_store_profiles_total{state=\"refused\"}"), 0.0);
    assert_eq!(journal.problems(), [""; 0]);
}

#[test]
fn what_is_refused_for_good_is_set_aside_alone() {
    set_aside_alone(Code::InvalidArgument);
}

/// A server that fails at one profile each time it sees it, and takes all others.
#[test]
fn what_a_server_fails_at_is_set_aside_alone() {
    set_aside_alone(Code::Internal);
}

fn set_aside_alone(code: Code) {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let unwanted = workloads::stage("unwanted", "unwanted", false).unwrap();
    let wanted = workloads::stage("wanted", "wanted", false).unwrap();
    let _running = [Running::start(&unwanted, &[""; 0]), Running::start(&wanted, &[""; 0])];
    journal.refuse("unwanted", code);
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let system = system(port, &["--insecure"]);
    wait_for("five windows of the other arrive, and one is set aside", 240, || {
        let arrived = journal.arrived();
        let of_other = arrived.iter().filter(|one| one.labels["comm"] == "wanted").count();
        let refused = system.metric("bulkhead_store_profiles_total{state=\"refused\"}");
        (of_other >= 5 && refused >= 1.0).then_some(())
    });
    assert!(journal.arrived().iter().all(|one| one.labels["comm"] != "unwanted"));
    let refused = system.metric("bulkhead_store_profiles_total{state=\"refused\"}");
    assert!(refused >= 1.0, "{refused} refused");
    let aside = fs::read_dir(system.place().path("spool")).unwrap().flatten();
    let aside = aside.filter(|file| file.file_name().to_string_lossy().ends_with(".refused")).count();
    assert!(aside as f64 >= refused - 1.0, "{aside} files of {refused}");
    let log = system.place().log("uploader");
    assert!(log.contains("refuses a profile for good") && log.contains("comm=\"unwanted\""), "{log}");
    let page = String::from_utf8(system.get("/").body).unwrap();
    assert!(page.contains("for good; the log says why"), "{page}");
}

#[test]
fn a_call_that_is_too_large_for_the_server_goes_in_parts() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let programs = [0, 1, 2, 3].map(|number| {
        let name = format!("part-{number}");
        Running::start(&CallTree::standard(&name, Start::Bare).build().unwrap(), &[""; 0])
    });
    // Some windows wait until the store is there, and are more than it takes at once.
    let system = system(port, &["--insecure"]);
    wait_for("profiles wait", 60, || (system.metric("bulkhead_spool_bytes") > 64.0 * 1024.0).then_some(()));
    let before = stored(&system);
    drop(programs);
    let _store =
        Store::start(port, &StoreOptions { max_call: 8 * 1024, ..StoreOptions::default() }, &journal);
    wait_for("what fits has arrived", 120, || {
        let metrics = system.metrics();
        let done = ["sent", "refused"]
            .map(|state| metrics[&format!("bulkhead_store_profiles_total{{state=\"{state}\"}}")]);
        (done[0] + done[1] >= before.len() as f64).then_some(())
    });
    assert!(journal.arrived().len() > 10, "{} arrived", journal.arrived().len());
    assert_eq!(journal.problems(), [""; 0]);
}

#[test]
fn answers_that_are_lost_make_doubles_and_lose_nothing() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    journal.script((0..3).flat_map(|_| [Answer::Takes(Code::Unavailable), Answer::Well]));
    let mut store = Some(Store::start(port, &StoreOptions::default(), &journal));
    let system = system(port, &["--insecure"]);
    wait_for("every answer was given", 60, || journal.script_is_done().then_some(()));
    // And the server is cut off, again and again, whatever it does at that moment.
    for _ in 0..4 {
        let before = journal.arrived().len();
        wait_arrived(&journal, before + 2);
        drop(store.take());
        store = Some(Store::start(port, &StoreOptions::default(), &journal));
    }
    let before = stored(&system);
    wait_for("all has arrived", 90, || {
        let arrived: HashSet<i64> = journal.arrived().iter().map(|one| one.profile.time_nanos).collect();
        before.iter().all(|(_, time)| arrived.contains(time)).then_some(())
    });
    let doubles = times_arrived(&journal.arrived()).values().filter(|times| **times > 1).count();
    println!("{doubles} profiles came twice");
    assert!(doubles >= 3, "{doubles}");
}

/// What a folder of the local store is called begins with the command name.
fn missing(written: &HashSet<(String, i64)>, arrived: &[Arrived]) -> Vec<(String, i64)> {
    let mut count: HashMap<i64, usize> = HashMap::new();
    let mut seen = HashSet::new();
    for one in arrived {
        if seen.insert(one.key()) {
            *count.entry(one.profile.time_nanos).or_default() += 1;
        }
    }
    let mut of_window: HashMap<i64, Vec<&(String, i64)>> = HashMap::new();
    for one in written {
        of_window.entry(one.1).or_default().push(one);
    }
    let is_short = |(time, all): &(&i64, &Vec<_>)| count.get(time).copied().unwrap_or(0) < all.len();
    of_window.iter().filter(is_short).flat_map(|(_, all)| all.iter().map(|one| (*one).clone())).collect()
}

#[test]
fn an_uploader_that_is_killed_again_and_again() {
    const KILLS: usize = 12;
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    // Slow enough that it is killed while it sends, too.
    journal.otherwise(Answer::After(Duration::from_millis(300)));
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let _busy = Running::shell("while :; do :; done", &[""; 0]);
    let options = Options { window: "500ms", store: true, ..Options::default() };
    let system = System::start_with(options, |place| store_flags(port, place, &["--insecure"]));
    let mut last_windows = HashSet::new();
    for kill in 0..KILLS {
        let before = stored(&system).len();
        wait_for("it works", 60, || (stored(&system).len() > before + 3).then_some(()));
        std::thread::sleep(Duration::from_millis(37 * kill as u64));
        system.stop_uploader(Signal::KILL);
        // It writes to the folder for people first, and to the spool when the window is complete: that one it may not have got to.
        let last = stored(&system).into_iter().map(|(_, time)| time).max();
        last_windows.extend(last);
        system.start_uploader();
    }
    system.wait_ready();
    let written = stored(&system);
    wait_for("all has arrived", 120, || {
        let mut missing = missing(&written, &journal.arrived());
        missing.retain(|(_, time)| !last_windows.contains(time));
        missing.is_empty().then_some(())
    });
    let times = times_arrived(&journal.arrived());
    let doubles: usize = times.values().map(|times| times - 1).sum();
    println!("{} profiles written, {} arrived, {doubles} of them again", written.len(), times.len());
    assert!(doubles < KILLS * 40, "{doubles} doubles");
    assert_eq!(journal.problems(), [""; 0]);
    assert_eq!(system.metric("bulkhead_store_profiles_total{state=\"damaged\"}"), 0.0);
}

/// A file system that is full, as small as it may be. Taken away when dropped.
struct Small(String);

impl Small {
    fn mount(path: &Path) -> Self {
        let path = path.display().to_string();
        let (uid, gid) = tests::system::ids(tests::system::UPLOADER_USER);
        let options = format!("size=256k,mode=0700,uid={uid},gid={gid}");
        let (status, output) = run(&["mount", "-t", "tmpfs", "-o", &options, "tmpfs", &path]);
        assert!(status.success(), "{output}");
        Small(path)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Nobody can do anything about it here.
        let _ = Command::new("umount").args(["-l", &self.0]).status();
    }
}

#[test]
fn a_full_disk_costs_the_oldest() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let mut small = None;
    let options = Options { window: "500ms", store: true, ..Options::default() };
    let _busy = Running::start(&CallTree::standard("full-disk", Start::Bare).build().unwrap(), &[""; 0]);
    let system = System::start_with(options, |place| {
        small = Some(Small::mount(&place.path("spool")));
        store_flags(port, place, &["--insecure", "--spool-size=1GiB"])
    });
    let dropped = "bulkhead_store_profiles_total{state=\"dropped\"}";
    wait_for("the disk is full", 120, || (system.metric(dropped) > 20.0).then_some(()));
    // It starts on a full disk, too.
    system.stop_uploader(Signal::KILL);
    system.start_uploader();
    system.wait_ready();
    wait_for("the disk is still full", 120, || (system.metric(dropped) > 20.0).then_some(()));
    let before = journal.arrived().len();
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let newest = stored(&system).into_iter().map(|(_, time)| time).max().unwrap();
    wait_for("the newest arrive", 90, || {
        journal.arrived().iter().any(|one| one.profile.time_nanos >= newest).then_some(())
    });
    assert!(journal.arrived().len() > before + 10);
    let page = String::from_utf8(system.get("/").body).unwrap();
    assert!(page.contains("were lost for want of room"), "{page}");
    assert_eq!(system.uploader_status(), None);
    drop(system);
    drop(small);
}

#[test]
fn ten_thousand_entries_in_the_spool() {
    const ENTRIES: usize = 10_000;
    // Of 60 KiB: all of them are several times what the uploader may have in memory.
    const ENTRY: usize = 60 << 10;
    const MOST_MIB: u64 = 250;
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let system = system(port, &["--insecure", "--spool-size=2GiB"]);
    system.stop_uploader(Signal::TERM);
    // What an uploader before this one has left.
    {
        let spool = uploader::spool::Spool::open(&system.place().path("spool"), 2 << 30).unwrap();
        let labels = uploader::targets::TargetMaker::new("n", []).labels("from-before", None);
        let entry = uploader::store::parca::series(&labels, vec![7; ENTRY]);
        for _ in 0..ENTRIES {
            assert_eq!(uploader::delivery::put(&spool, vec![entry.clone()]), 0);
        }
    }
    let owner = format!("{}:", tests::system::UPLOADER_USER);
    let (status, output) = run(&["chown", "-R", &owner, &system.place().path("spool").display().to_string()]);
    assert!(status.success(), "{output}");
    system.start_uploader();
    system.wait_ready();
    assert!(system.metric("bulkhead_spool_entries") >= ENTRIES as f64);
    journal.otherwise(Answer::Forgets);
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let mut most = 0;
    wait_for("all have arrived", 300, || {
        most = most.max(own_memory(system.uploader_pid()) / 1024);
        (system.metric("bulkhead_store_profiles_total{state=\"sent\"}") >= ENTRIES as f64).then_some(())
    });
    println!("{most} MiB at most, of {} MiB in the spool", (ENTRIES * ENTRY) >> 20);
    assert!(most < MOST_MIB, "{most} MiB at most");
}
