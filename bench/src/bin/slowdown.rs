//! By how much programs slow down that are profiled: with both halves as they should be, with an uploader that is stopped, dead or
//! floods the collector. As root: `script/bench-slowdown`. Prints a table in Markdown.
//!
//! Each load is a fixed amount of work. In each round it runs in every state of the halves, one after the other, so that what
//! changes on the machine meets all of them; what counts is the median over the rounds of the ratio to the same round's run
//! without Bulkhead.

use std::{
    thread,
    time::{Duration, Instant},
};

use ipc::{ExecutableId, FromUploader, ProcessId};
use rustix::{net::Shutdown, process::Signal};
use tests::{
    peer::Peer,
    process::{Running, seconds_of_children},
    system::{CAPABILITIES, Options, Place, System},
    wait::wait_for,
};

const ROUNDS: usize = 9;
/// Fixed amounts of work, about three seconds each on a slow machine: computing, starting processes, and system calls.
const LOADS: [(&str, &str); 3] = [
    ("a shell that computes", "i=0; while [ $i -lt 3000000 ]; do i=$((i + 1)); done"),
    ("1,500 processes, one after the other", "i=0; while [ $i -lt 1500 ]; do /bin/true; i=$((i + 1)); done"),
    ("2,000,000 system calls", "dd if=/dev/zero of=/dev/null bs=1 count=1000000 2>/dev/null"),
];
const STATES: [&str; 5] = ["without", "both halves", "uploader stopped", "uploader dead", "uploader floods"];

/// CPU time and time of a load, in seconds.
#[derive(Clone, Copy)]
struct Times {
    cpu: f64,
    real: f64,
}

fn run(script: &str) -> Times {
    let begun = Instant::now();
    let mut running = Running::shell(&format!("sh -c '{script}'; times"), &[""; 0]);
    // The shell is asked for often enough that it does not matter when.
    while running.status().is_none() {
        thread::sleep(Duration::from_millis(5));
    }
    let real = begun.elapsed().as_secs_f64();
    Times { cpu: seconds_of_children(&running.output()).expect("what times says"), real }
}

/// Sends requests for what was never handed out, as fast as they are taken, while the loads run.
fn flooded(measure: impl FnOnce() -> [Times; LOADS.len()]) -> [Times; LOADS.len()] {
    let place = Place::new();
    let _collector = place.collector_with(&CAPABILITIES, &["--uploader-user=0".to_owned()]);
    let patience = Duration::from_secs(20);
    let peer = wait_for("the collector listens", 20, || Peer::greeted(&place.socket(), patience));
    let requests =
        [FromUploader::Reopen(ExecutableId(u32::MAX)), FromUploader::ReopenPerfMap(ProcessId(u32::MAX))];
    let requests = requests.map(|request| ipc::encode(&request).expect("a message"));
    let (sender, reader) =
        (Peer(peer.0.try_clone().expect("a descriptor")), Peer(peer.0.try_clone().expect("a descriptor")));
    let threads = [
        thread::spawn(move || while requests.iter().all(|request| sender.send(request).is_some()) {}),
        thread::spawn(move || while reader.packet().is_some() {}),
    ];
    let times = measure();
    // The collector may have had enough of it before.
    let _ = rustix::net::shutdown(&peer.0, Shutdown::Both);
    for thread in threads {
        thread.join().expect("no panic");
    }
    times
}

fn main() {
    let measure = || LOADS.map(|(_, script)| run(script));
    // Files that are in the page cache.
    measure();
    let mut rounds: Vec<[[Times; LOADS.len()]; STATES.len()]> = Vec::new();
    for round in 1..=ROUNDS {
        eprintln!("round {round} of {ROUNDS}");
        let without = measure();
        let system = System::start(Options::default());
        let both = measure();
        system.signal_uploader(Signal::STOP);
        // Until what it has not read fills the collector's queue.
        run(LOADS[1].1);
        let stopped = measure();
        system.stop_uploader(Signal::KILL);
        let dead = measure();
        drop(system);
        rounds.push([without, both, stopped, dead, flooded(measure)]);
    }
    println!("CPU time of the same work, and time, against none of Bulkhead; medians of {ROUNDS} rounds:\n");
    println!("| load | {} |\n|---|{}", STATES[1..].join(" | "), "---|".repeat(STATES.len() - 1));
    for (load, (name, _)) in LOADS.iter().enumerate() {
        let cells = (1..STATES.len()).map(|state| {
            let ratio = |of: fn(&Times) -> f64| {
                median(rounds.iter().map(|round| of(&round[state][load]) / of(&round[0][load])).collect())
            };
            let percent = |ratio: f64| 100.0 * (ratio - 1.0);
            format!(
                "{:+.1} % CPU, {:+.1} % time",
                percent(ratio(|times| times.cpu)),
                percent(ratio(|times| times.real))
            )
        });
        println!("| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
