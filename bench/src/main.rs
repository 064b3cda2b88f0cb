//! What Bulkhead costs: CPU and memory of both halves, on an idle machine, with two busy programs, and in a storm of
//! short processes. As root: `script/bench`. Prints a table in Markdown, and what it was made of.

mod samples;

use std::{fs, process::Command, thread, time::Duration};

use bench::usage::{kernel_memory, usage};
use tests::{
    process::Running,
    system::{Options, System},
};
use workloads::{CallTree, Start};

/// How long each load is measured, in seconds.
const SECONDS: u64 = 30;
/// Two shells that start `/bin/true` again and again.
const STORM: &str = "while :; do /bin/true; done";

fn measure(system: &System, load: &str) {
    // The first windows read the symbols of what runs.
    thread::sleep(Duration::from_secs(15));
    let pids = [system.collector_pid(), system.uploader_pid()];
    let lost = |system: &System| system.metric("bulkhead_lost_total");
    let (before, lost_before) = (pids.map(usage), lost(system));
    let samples = system.metric("bulkhead_collector_samples_total");
    let events = system.metric("bulkhead_collector_kernel_events_total");
    thread::sleep(Duration::from_secs(SECONDS));
    let after = pids.map(usage);
    let share = |half: usize| (after[half].cpu - before[half].cpu) / SECONDS as f64 * 100.0;
    println!(
        "| {load} | {:.2} % | {:.2} % | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} |",
        share(0),
        share(1),
        after[0].resident as f64 / 1024.0,
        after[1].resident as f64 / 1024.0,
        kernel_memory(pids[0]) as f64 / 1024.0,
        (system.metric("bulkhead_collector_samples_total") - samples) / SECONDS as f64,
        (system.metric("bulkhead_collector_kernel_events_total") - events) / SECONDS as f64,
        lost(system) - lost_before,
    );
}

fn main() {
    let system = System::start(Options { window: "10s", ..Options::default() });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let revision = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let revision =
        revision.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    println!(
        "script/bench, revision {revision}, kernel {}, {SECONDS} s each; CPU in percent of one core",
        kernel.trim()
    );
    println!();
    println!(
        "| load | collector | uploader | collector MiB | uploader MiB | BPF maps MiB | samples/s | records/s | lost |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    measure(&system, "idle");
    let trees = ["bench-a", "bench-b"].map(|name| CallTree::standard(name, Start::Bare).build());
    let paths: Vec<_> = trees.into_iter().flatten().collect();
    let busy: Vec<Running> = paths.iter().map(|path| Running::start(path, &[""; 0])).collect();
    measure(&system, "two busy programs");
    drop(busy);
    let storm = [0, 1].map(|_| Running::shell(STORM, &[""; 0]));
    measure(&system, "two shells in a loop of /bin/true");
    drop(storm);
    drop(system);
    println!();
    samples::table();
}
