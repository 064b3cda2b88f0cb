//! Ten thousand executables, and room for the unwind rows of a few dozen: memory stays what it was, a program that runs on
//! keeps its whole stacks, and what cannot be unwound says so instead of showing a wrong frame.
//!
//! And a collector that stands still now and then. Each with a pair of halves of its own: the others' stacks would suffer.

#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::{path::Path, thread, time::Duration};

use rustix::process::Signal;
use tests::{
    entry::first_instructions,
    pprof::Stack,
    process::Running,
    system::{Options, System, alone, status_fields},
    wait::wait_for,
};
use workloads::{
    CHURN_LIBRARIES, CallTree, Start, WITHOUT_FRAME_POINTERS, breeder, churn_library, churn_loader, tiny,
    tiny_chain,
};

/// How many are made and run.
const EXECUTABLES: u64 = 10_000;
/// So many at a time, one for each core of a small machine.
const BREEDERS: u64 = 2;
/// Their kinds: each has functions of its own and says by its command name which it is.
const KINDS: u32 = 4;
/// What the collector may grow by while four fifths of them run, in KiB: not 256 bytes for each. (The stacks that wait for rows
/// take 1 MiB or 2, sometimes more, sometimes less.)
const GROWTH: u64 = 2048;

/// Resident memory of a process in KiB.
fn resident(pid: u32) -> u64 {
    let fields = status_fields(pid, &["VmRSS"]);
    fields["VmRSS"].split(' ').next().unwrap().parse().unwrap()
}

/// Names of the user frames, innermost first.
fn user_names(stack: &Stack) -> Vec<&str> {
    stack.user().map(|frame| frame.name.as_str()).collect()
}

#[test]
fn ten_thousand_executables() {
    let _alone = alone();
    let system = System::start(Options {
        window: "2s",
        collector_flags: vec!["--unwind-table-memory=1MiB".into()],
        store: true,
        ..Options::default()
    });
    let tree = CallTree::standard("steady", Start::Libc);
    let _steady = Running::start(&tree.build_with(WITHOUT_FRAME_POINTERS).unwrap(), &[""; 0]);
    system.collect_settled("steady", 50);

    let kinds: Vec<_> = (1..=KINDS).map(|kind| tiny(kind).unwrap()).collect();
    let before = system.metrics();
    let folders: Vec<_> = (0..BREEDERS).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut breeders: Vec<_> = folders
        .iter()
        .map(|folder| {
            let count = (EXECUTABLES / BREEDERS).to_string();
            let mut arguments = vec![folder.path().as_os_str().to_owned(), count.into()];
            arguments.extend(kinds.iter().map(|path| path.clone().into_os_string()));
            Running::start(&breeder().unwrap(), &arguments)
        })
        .collect();
    let finished = |breeders: &mut Vec<Running>| -> u64 {
        let count = |running: &mut Running| {
            if let Some(status) = running.status() {
                assert!(status.success(), "{status}: {}", running.output());
            }
            let output = running.output();
            output.lines().last().and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
        };
        breeders.iter_mut().map(count).sum()
    };
    let collector = system.collector_pid();
    wait_for("a fifth has run", 180, || (finished(&mut breeders) >= EXECUTABLES / 5).then_some(()));
    let (early, evicted_early) = (resident(collector), system.metrics()[EVICTED]);
    wait_for("half have run", 180, || (finished(&mut breeders) >= EXECUTABLES / 2).then_some(()));
    let evicted_half = system.metrics()[EVICTED];
    wait_for("all have run", 300, || (finished(&mut breeders) == EXECUTABLES).then_some(()));
    for mut breeder in breeders {
        assert!(breeder.wait_end(10).success(), "{}", breeder.output());
    }
    // What was sampled last is in a window that is still to end.
    system.collect_settled("steady", 1);
    let after = system.metrics();
    // What stacks took that waited for rows goes back each half minute.
    let late = wait_for("the collector has as much memory as before", 90, || {
        Some(resident(collector)).filter(|late| *late <= early + GROWTH)
    });
    println!("collector {early} KiB after a fifth, {late} KiB at the end");
    for (name, value) in after.iter().filter(|(name, _)| {
        ["unwind_", "lost", "collector_executables", "degraded"].iter().any(|part| name.contains(part))
    }) {
        println!("{name} {} -> {value}", before.get(name).copied().unwrap_or(0.0));
    }

    check_steady(&system, &tree);

    // Evicted the whole time: between a fifth and a half, and after.
    for (what, from, to) in
        [("until the half", evicted_early, evicted_half), ("after it", evicted_half, after[EVICTED])]
    {
        assert!(to > from + 10.0, "evicted {what}: {from}, then {to}");
    }
    check_kinds(&system);
}

const EVICTED: &str = "bulkhead_unwind_table_events_total{event=\"evicted\"}";

/// The stacks of the small executables: each is a part of the one true chain, and says that it is complete only if it reaches
/// the root.
fn check_kinds(system: &System) {
    let (mut samples, mut whole, mut nameless) = (0, 0, 0);
    let mut false_claims = Vec::new();
    for kind in 1..=KINDS {
        let comm = format!("tiny-{kind}");
        let chain = tiny_chain(kind);
        let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
        let start = first_instructions(&tiny(kind).unwrap());
        for profile in system.stored(&comm) {
            samples += profile.total();
            let mut rooted = 0;
            for stack in &profile.stacks {
                let names = user_names(stack);
                let begins = stack.user().last().is_some_and(|frame| start.contains(&frame.address));
                rooted += i64::from(begins) * stack.count;
                let is_own = |file: &str| Path::new(file).file_name().is_some_and(|name| *name == *comm);
                assert!(stack.user().all(|frame| is_own(&frame.mapping)), "{comm}: {}", stack.line());
                if names.iter().all(|name| name.is_empty()) {
                    // It was gone before its names were looked up.
                    assert!(names.len() <= chain.len(), "{comm}: {}", stack.line());
                    nameless += i64::from(!names.is_empty()) * stack.count;
                    continue;
                }
                assert!(chain.windows(names.len()).any(|part| part == names), "{comm}: {}", stack.line());
            }
            whole += rooted;
            if profile.said_complete().0 > rooted {
                false_claims
                    .push(format!("{comm}: {rooted} reach the root, and it says {:?}", profile.comments));
            }
        }
    }
    println!("{samples} samples of the small executables, {whole} whole, {nameless} without names");
    assert!(samples > 500, "{samples} samples are too few to tell anything");
    // The uploader holds 512 files: at 200 new ones a second some are closed before the window's end, when names are looked up.
    assert!(nameless as f64 <= 0.5 * samples as f64, "{nameless} of {samples} without names");
    assert!(
        false_claims.is_empty(),
        "{} windows, such as:\n{}",
        false_claims.len(),
        false_claims[..3.min(false_claims.len())].join("\n")
    );
}

/// The stacks of the program that ran all the time are as whole as if there had been nothing else.
fn check_steady(system: &System, tree: &CallTree) {
    for profile in system.stored("steady") {
        let rooted = profile.count(|stack| user_names(stack).last() == Some(&"_start"));
        println!("steady {rooted} of {}", profile.total());
    }
    let profile = system.collect("{comm=\"steady\"}", 200, 60);
    let rooted = profile.count(|stack| user_names(stack).last() == Some(&"_start"));
    assert_eq!(rooted, profile.total(), "every stack ends at the root:\n{}", profile.dump());
    let expected = tree.expected();
    let known = profile.count(|stack| {
        let names = user_names(stack);
        expected.iter().any(|(chain, _)| names.windows(chain.len()).any(|part| part == chain))
    });
    assert!(known as f64 > 0.99 * profile.total() as f64, "{known} in the tree:\n{}", profile.dump());
}

/// A library is there for 100 ms, and then another one at the same addresses: when the collector comes to look which file that was, it finds
/// the other one. The thread's name says in each sample which library was loaded.
#[test]
fn a_collector_that_is_late_takes_no_library_for_another() {
    /// Longer than a library is there, so that it is late for each; and time to go on in.
    const STANDS_STILL: Duration = Duration::from_millis(150);
    const TIMES: u32 = 60;
    let _alone = alone();
    let system = System::start(Options { window: "2s", store: true, ..Options::default() });
    let libraries: Vec<_> = (1..=CHURN_LIBRARIES).map(|number| churn_library(number).unwrap()).collect();
    let running = Running::start(&churn_loader().unwrap(), &libraries);
    for _ in 0..TIMES {
        system.signal_collector(Signal::STOP);
        thread::sleep(STANDS_STILL);
        system.signal_collector(Signal::CONT);
        thread::sleep(STANDS_STILL);
    }
    drop(running);
    wait_for("its last window", 30, || system.query("{comm=~\"churn-.*\"}", "").is_err().then_some(()));
    let (mut right, mut wrong) = (0, Vec::new());
    for number in 1..=CHURN_LIBRARIES {
        let (comm, file) = (format!("churn-lib-{number}"), format!("/churn-{number}.so"));
        for profile in system.stored(&comm) {
            for stack in profile.stacks.iter().filter(|stack| stack.labels.get("thread_name") == Some(&comm))
            {
                let mut libraries = stack.user().filter(|frame| {
                    frame.mapping.contains("/churn-") && Path::new(&frame.mapping).extension().is_some()
                });
                if libraries.all(|frame| frame.mapping.ends_with(&file)) {
                    right += stack.count;
                } else {
                    wrong.push(format!("{comm}: {}", stack.line()));
                }
            }
        }
    }
    println!(
        "{right} right, {} not: {:?}",
        wrong.len(),
        system.metric("bulkhead_lost_total{reason=\"not_opened\"}")
    );
    assert!(wrong.is_empty(), "{} stacks, such as:\n{}", wrong.len(), wrong[..3.min(wrong.len())].join("\n"));
    assert!(right > 500, "{right} samples are too few to tell anything");
}
