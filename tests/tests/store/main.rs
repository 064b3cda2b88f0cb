//! Profiles on their way to a store: over TLS, with a token, through outages, refusals and a killed uploader. The store is the tests'
//! own, and refuses what a Parca server refuses.
#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]
#![expect(clippy::float_cmp, reason = "counters are whole numbers")]

mod debuginfo;
mod faults;
mod outage;
mod tls;

use std::{collections::HashSet, fs, path::Path, time::Duration};

use rustix::process::Signal;
use tests::{
    process::{Running, run},
    store::{Answer, Arrived, Journal, Store, StoreOptions},
    system::{Options, Place, System, alone, free_port, publish},
    wait::wait_for,
};
use workloads::{CallTree, Start};

/// Uploader's flags for a store on this port.
fn store_flags(port: u16, place: &Place, more: &[&str]) -> Vec<String> {
    let spool = place.path("spool").display().to_string();
    let own = [
        format!("--store-address=localhost:{port}"),
        format!("--spool-directory={spool}"),
        // Four times a window.
        "--batch-write-interval=250ms".to_owned(),
    ];
    own.into_iter().chain(more.iter().map(|flag| (*flag).to_owned())).collect()
}

/// A pair of halves with windows of a second, which sends to a store on this port.
fn system(port: u16, more: &[&str]) -> System {
    let options = Options { window: "1s", store: true, ..Options::default() };
    System::start_with(options, |place| store_flags(port, place, more))
}

/// Waits until so many profiles have arrived.
fn wait_arrived(journal: &Journal, count: usize) -> Vec<Arrived> {
    wait_for(&format!("{count} profiles arrive"), 60, || {
        let arrived = journal.arrived();
        (arrived.len() >= count).then_some(arrived)
    })
}

/// Everything that the local store has, as (folder, when it began).
fn stored(system: &System) -> HashSet<(String, i64)> {
    system.stored_in("").into_iter().map(|(folder, profile)| (folder, profile.time_nanos)).collect()
}

/// How often each profile has arrived, by when it began and what is in it.
fn times_arrived(arrived: &[Arrived]) -> std::collections::HashMap<Vec<u8>, usize> {
    let mut times = std::collections::HashMap::new();
    for one in arrived {
        *times.entry(one.profile.raw.clone()).or_default() += 1;
    }
    times
}

#[test]
fn a_store_gets_right_labels_counts_and_names() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let tree = CallTree::standard("to-a-store", Start::Bare);
    let _running = Running::start(&tree.build().unwrap(), &[""; 0]);
    let system =
        system(port, &["--insecure", "--external-label=zone=z", "--node=n1", "--store-header=X-Scope=team"]);
    let of_tree = wait_for("300 samples arrive", 60, || {
        let mut arrived = journal.arrived();
        arrived.retain(|one| one.labels["comm"] == "to-a-store");
        (arrived.iter().map(|one| one.profile.total()).sum::<i64>() > 300).then_some(arrived)
    });
    assert_eq!(journal.problems(), [""; 0]);
    for one in journal.arrived() {
        let labels = &one.labels;
        assert_eq!(
            (labels["__name__"].as_str(), labels["node"].as_str()),
            ("parca_agent_cpu", "n1"),
            "{labels:?}"
        );
        assert_eq!(labels["zone"], "z");
        assert_eq!(one.profile.sample_types, ["samples/count"]);
        assert_eq!(one.profile.period_type, "cpu/nanoseconds");
        assert_eq!(one.profile.period, 10_000_000);
    }
    for headers in journal.headers() {
        assert_eq!(headers["x-scope"], "team");
        assert!(!headers.contains_key("authorization"));
    }
    // The very profiles that the folder for people has: same counts, same stacks.
    let stored = system.stored("to-a-store");
    for one in &of_tree {
        assert!(stored.iter().any(|stored| stored.raw == one.profile.raw), "{:?}", one.labels);
    }
    let mut all = tests::pprof::Profile::default();
    // In the first windows the uploader has everybody's names to read.
    let has_names = |one: &Arrived| one.profile.count(|stack| stack.names().contains(&"main")) > 0;
    for one in of_tree.into_iter().skip_while(|one| !has_names(one)) {
        all.append(one.profile);
    }
    let known = all.count(|stack| stack.has_run(&["main", "_start"]));
    assert!(known as f64 > 0.99 * all.total() as f64, "{}", all.dump());
    // And the tool that everybody has reads each of them.
    let folder = tempfile::tempdir().unwrap();
    for (index, one) in journal.arrived().iter().enumerate().take(20) {
        let file = folder.path().join(format!("{index}.pb.gz"));
        fs::write(&file, &one.profile.raw).unwrap();
        let (status, output) =
            run(&["go", "tool", "pprof", "-symbolize=none", "-raw", &file.display().to_string()]);
        assert!(status.success(), "{output}");
    }
    let page = String::from_utf8(system.get("/").body).unwrap();
    assert!(page.contains(&format!("Profiles go to the store localhost:{port}; the last arrived")), "{page}");
    assert!(
        system.metric("bulkhead_store_profiles_total{state=\"sent\"}")
            >= journal.arrived().len() as f64 - 50.0
    );
}

#[test]
fn a_store_that_is_down_at_the_start_gets_everything_later() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    // It starts, and is ready, without a store.
    let system = system(port, &["--insecure"]);
    wait_for("profiles wait", 30, || (system.metric("bulkhead_spool_entries") >= 5.0).then_some(()));
    let page = String::from_utf8(system.get("/").body).unwrap();
    assert!(page.contains("has not taken profiles for") && page.contains("wait in the spool"), "{page}");
    assert_eq!(system.get("/readyz").status, 200);
    assert!(system.metric("bulkhead_store_calls_total{result=\"none\"}") > 0.0, "{:?}", system.metrics());
    let waiting = stored(&system);
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    wait_for("all that waited has arrived", 90, || {
        let arrived: HashSet<i64> = journal.arrived().iter().map(|one| one.profile.time_nanos).collect();
        waiting.iter().all(|(_, time)| arrived.contains(time)).then_some(())
    });
    let arrived = journal.arrived();
    // In order for each target, and each once.
    let mut last = std::collections::HashMap::new();
    for one in &arrived {
        let (comm, owner, time) = one.key();
        if let Some(before) = last.insert((comm.clone(), owner), time) {
            assert!(time > before, "{comm}: {before} came before {time}");
        }
    }
    assert!(times_arrived(&arrived).values().all(|times| *times == 1));
    assert_eq!(journal.problems(), [""; 0]);
    let log = system.place().log("uploader");
    assert_eq!(log.matches("the store does not take profiles").count(), 1, "{log}");
    wait_for("it says so", 10, || {
        system.place().log("uploader").contains("takes profiles again").then_some(())
    });
}

#[test]
fn an_uploader_that_is_told_to_end_keeps_what_it_has() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    let _busy = Running::shell("while :; do :; done", &[""; 0]);
    let system = System::start_with(Options::default(), |place| store_flags(port, place, &["--insecure"]));
    // In the middle of a window of four seconds.
    let windows = system.metric("bulkhead_windows_total");
    wait_for("a window ends", 20, || (system.metric("bulkhead_windows_total") > windows).then_some(()));
    std::thread::sleep(Duration::from_millis(1500));
    assert!(system.stop_uploader(Signal::TERM).success());
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    system.start_uploader();
    wait_for("the short window arrives", 60, || {
        let of_shell = |one: &Arrived| one.labels["comm"] == "sh" && one.profile.total() > 50;
        let is_short = |one: &Arrived| one.profile.duration_nanos < 3_500_000_000;
        journal.arrived().iter().any(|one| of_shell(one) && is_short(one)).then_some(())
    });
}

#[test]
fn a_slow_store_delays_nothing() {
    let _alone = alone();
    let (journal, port) = (Journal::default(), free_port());
    journal.otherwise(Answer::After(Duration::from_secs(6)));
    let _store = Store::start(port, &StoreOptions::default(), &journal);
    let system = system(port, &["--insecure"]);
    let _busy = Running::shell("while :; do :; done", &[""; 0]);
    wait_arrived(&journal, 1);
    let dropped = || system.metric("bulkhead_windows_dropped_total");
    let (windows, before) = (system.metric("bulkhead_windows_total"), dropped());
    let begun = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(system.get("/readyz").status, 200);
        system.query("{comm=\"sh\"}", "&window=last").ok();
        std::thread::sleep(Duration::from_millis(500));
    }
    let (passed, seconds) =
        (system.metric("bulkhead_windows_total") - windows, begun.elapsed().as_secs_f64());
    // One that waited for the store would take six seconds, and the next ones would be dropped.
    assert!(passed >= seconds / 2.0, "{passed} windows of a second in {seconds} s");
    assert!(dropped() - before <= 1.0, "{} dropped, {passed} not", dropped() - before);
}
