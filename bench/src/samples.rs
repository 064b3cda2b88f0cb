//! What a sample costs in the kernel: by the depth of its stack, with unwind rows and with frame pointers, and for a compiler.
//!
//! At 100 Hz all that an unwind reads has left the processor's caches since the last sample; at 1000 Hz less of it has.

use std::{collections::HashSet, fs, path::Path, thread, time::Duration};

use tests::{
    process::Running,
    system::{Options, System},
};
use workloads::{CallTree, Start, WITHOUT_FRAME_POINTERS};

/// Flags for a program that has frame pointers and no unwind information.
const WITHOUT_ROWS: &[&str] = &["-fno-asynchronous-unwind-tables", "-fno-unwind-tables"];
/// Compiles the same file again and again. gcc's own code is 20 MiB, with 430,000 rows.
const COMPILER: &str = "cd \"$1\"; i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); \
    echo \"int f$i(int *a, int n) { int s = $i; for (int i = 0; i < n; i++) s += a[i] * a[n - i - 1]; return s; }\"; done >f.c; \
    while :; do cc -O2 -c -o f.o f.c; done";
const STATISTICS: &str = "/proc/sys/kernel/bpf_stats_enabled";

/// Prints the table.
pub(crate) fn table() {
    let before = fs::read_to_string(STATISTICS).unwrap_or_default();
    if fs::write(STATISTICS, "1").is_err() {
        println!("(no time of the BPF programs: {STATISTICS} cannot be written)");
        return;
    }
    let systems = [100, 1000].map(|frequency| move || start(frequency, &[]));
    println!(
        "| stack | user frames | us a sample, by rows, at 100 Hz | at 1000 Hz | by frame pointers, at 100 Hz |"
    );
    println!("|---|---|---|---|---|");
    let depths = [8, 32, 77, 127, 400];
    let [at_100, at_1000] = &systems;
    let columns =
        [(at_100, WITHOUT_FRAME_POINTERS), (at_1000, WITHOUT_FRAME_POINTERS), (at_100, WITHOUT_ROWS)];
    let columns = columns.map(|(start, flags)| {
        let system = start();
        depths.map(|depth| {
            let name = format!("deep-{}-{depth}", flags.len());
            let tree = CallTree { recursion: depth, ..CallTree::standard(&name, Start::Libc) };
            let path = tree.build_with(flags).expect("a compiler");
            let _busy = [0, 1].map(|_| Running::start(&path, &[""; 0]));
            thread::sleep(Duration::from_secs(4));
            a_sample(&system, &name)
        })
    });
    for (i, depth) in depths.iter().enumerate() {
        let [cold, warm, by_frame_pointers] = columns.each_ref().map(|column| &column[i]);
        println!(
            "| recursion of {depth} | {:.0} | {:.1} | {:.1} | {:.1} |",
            cold.frames, cold.microseconds, warm.microseconds, by_frame_pointers.microseconds
        );
    }
    let [cold, warm] = systems.map(|start| {
        let system = start();
        let folders = [0, 1].map(|_| tempfile::tempdir().expect("a temporary folder"));
        let _busy = folders.each_ref().map(|folder| Running::shell(COMPILER, &[folder.path()]));
        // Until its rows are there.
        thread::sleep(Duration::from_secs(10));
        a_sample(&system, "cc1")
    });
    println!("| gcc | {:.0} | {:.1} | {:.1} | |", cold.frames, cold.microseconds, warm.microseconds);
    let [cold, warm] = [100, 1000].map(not_selected);
    println!("| recursion of 77, not selected | | {cold:.1} | {warm:.1} | |");
    // A machine's own setting comes back.
    let _ = fs::write(STATISTICS, before.trim());
}

fn start(frequency: u32, uploader_flags: &[&str]) -> System {
    System::start(Options {
        window: "5s",
        collector_flags: vec![format!("--sampling-frequency={frequency}")],
        uploader_flags: uploader_flags.iter().map(|flag| (*flag).to_owned()).collect(),
        ..Options::default()
    })
}

/// Microseconds that a sample costs in the kernel where none is wanted.
fn not_selected(frequency: u32) -> f64 {
    let system = start(frequency, &["--cgroups=nothing-is-in-this"]);
    let tree = CallTree { recursion: 77, ..CallTree::standard("deep-left-out", Start::Libc) };
    let path = tree.build_with(WITHOUT_FRAME_POINTERS).expect("a compiler");
    let _busy = [0, 1].map(|_| Running::start(&path, &[""; 0]));
    // Until the collector was asked to skip it.
    thread::sleep(Duration::from_secs(4));
    let begun = bpf_time(system.collector_pid());
    thread::sleep(Duration::from_secs(20));
    let ended = bpf_time(system.collector_pid());
    (ended.0 - begun.0) as f64 / 1000.0 / (ended.1 - begun.1).max(1) as f64
}

/// The mean of a program's samples.
struct Sample {
    frames: f64,
    microseconds: f64,
}

fn a_sample(system: &System, comm: &str) -> Sample {
    let begun = bpf_time(system.collector_pid());
    let profile = system.collect(&format!("{{comm=\"{comm}\"}}"), 500, 60);
    let ended = bpf_time(system.collector_pid());
    let frames: f64 =
        profile.stacks.iter().map(|stack| stack.user().count() as f64 * stack.count as f64).sum();
    Sample {
        frames: frames / profile.total() as f64,
        microseconds: (ended.0 - begun.0) as f64 / 1000.0 / (ended.1 - begun.1).max(1) as f64,
    }
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
