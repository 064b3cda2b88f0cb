//! What Bulkhead costs: CPU and memory of both halves, on an idle machine, with two busy programs, and in a storm of
//! short processes. As root: `script/bench`. Prints a table in Markdown, and what it was made of.

use std::{collections::HashSet, fs, path::Path, process::Command, thread, time::Duration};

use tests::{
    process::{Running, cpu_seconds},
    system::{Options, System},
};
use workloads::{CallTree, Start, WITHOUT_FRAME_POINTERS};

/// How long each load is measured, in seconds.
const SECONDS: u64 = 30;
/// Two shells that start `/bin/true` again and again.
const STORM: &str = "while :; do /bin/true; done";

/// What one half has used and holds.
#[derive(Clone, Copy)]
struct Usage {
    /// CPU since its start, in seconds.
    cpu: f64,
    /// Resident memory, in KiB.
    resident: u64,
}

fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: u64 = resident.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    // The kernel's own memory, which is counted apart.
    let resident = resident.saturating_sub(mapped_maps(pid));
    Usage { cpu: cpu_seconds(pid), resident }
}

/// Memory of BPF maps that a process has mapped, in KiB (`proc_pid_smaps(5)`).
fn mapped_maps(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut is_map, mut sum) = (false, 0);
    for line in text.lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            let size = size.split_whitespace().next().and_then(|size| size.parse::<u64>().ok());
            sum += size.filter(|_| is_map).unwrap_or(0);
        } else if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
            is_map = line.contains("bpf-map");
        }
    }
    sum
}

/// Memory of the BPF maps of a process, in KiB: those that it has mapped, and those whose files it holds, as the kernel
/// counts them (`memlock` in fdinfo).
fn kernel_memory(pid: u32) -> u64 {
    let folder = format!("/proc/{pid}/fdinfo");
    let infos = fs::read_dir(Path::new(&folder)).into_iter().flatten().flatten();
    let texts = infos
        .filter_map(|info| fs::read_to_string(info.path()).ok())
        .filter(|text| text.contains("map_type:"));
    texts
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok())
        })
        .sum::<u64>()
        / 1024
        + mapped_maps(pid)
}

/// Nanoseconds that the BPF programs of a process took in all, and how often they ran, while `kernel.bpf_stats_enabled`
/// is 1. A tail call counts to the program that made it.
fn bpf_time(pid: u32) -> (u64, u64) {
    let folder = format!("/proc/{pid}/fdinfo");
    let infos = fs::read_dir(Path::new(&folder)).into_iter().flatten().flatten();
    let number = |text: &str, name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let mut seen = HashSet::new();
    infos
        .filter_map(|info| fs::read_to_string(info.path()).ok())
        .filter(|text| text.contains("prog_type:") && seen.insert(number(text, "prog_id:")))
        .map(|text| (number(&text, "run_time_ns:"), number(&text, "run_cnt:")))
        .fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

/// Flags for a program that has frame pointers and no unwind information.
const WITHOUT_ROWS: &[&str] = &["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];

/// Time of a sample by the depth of its stack, with rows and with frame pointers.
fn depths(system: &System) {
    const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";
    let before = fs::read_to_string(STATISTICS).unwrap_or_default();
    if fs::write(STATISTICS, "1").is_err() {
        println!("(no time of the BPF programs: {STATISTICS} cannot be written)");
        return;
    }
    println!("| frames below main | us a sample, by rows | by frame pointers |\n|---|---|---|");
    for depth in [8, 32, 77, 127, 400] {
        let time = |flags: &[&str], name: &str| {
            let trees = ["a", "b"].map(|which| {
                let tree = CallTree {
                    recursion: depth,
                    ..CallTree::standard(&format!("{name}-{depth}-{which}"), Start::Libc)
                };
                tree.build_with(flags)
            });
            let _busy: Vec<Running> =
                trees.iter().flatten().map(|path| Running::start(path, &[""; 0])).collect();
            thread::sleep(Duration::from_secs(4));
            let begun = bpf_time(system.collector_pid());
            thread::sleep(Duration::from_secs(6));
            let ended = bpf_time(system.collector_pid());
            (ended.0 - begun.0) as f64 / 1000.0 / (ended.1 - begun.1).max(1) as f64
        };
        println!(
            "| {depth} | {:.1} | {:.1} |",
            time(WITHOUT_FRAME_POINTERS, "rows"),
            time(WITHOUT_ROWS, "fp")
        );
    }
    // A machine's own setting comes back.
    let _ = fs::write(STATISTICS, before.trim());
}

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
    println!();
    depths(&system);
}
