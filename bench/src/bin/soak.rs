//! Whether both halves stay as large as they are: half an hour on a machine where programs work, start, end, are made and load
//! libraries all the time. As root: `script/soak [MINUTES]`. Prints a table in Markdown, a line a minute, and fails if something
//! grows.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    process::ExitCode,
    thread,
    time::Duration,
};

use bench::usage::kernel_memory;
use tests::{
    process::{Running, open_files, own_memory},
    system::{Options, System},
};
use workloads::{CHURN_LIBRARIES, CallTree, Start, churn_library, churn_loader};

/// How long it takes, in minutes, when nothing is said.
const MINUTES: usize = 30;
/// How often both halves are looked at in a minute. No multiple of the windows in one: what they hold grows until a window ends, and looks
/// in step with that would see how the two drift apart.
const LOOKS: u32 = 13;
/// A process after the other, a program that nobody has seen before every other second, and copies of it, which are files that nobody has
/// seen before. Two of these make so many that whatever holds or remembers files has soon no room for more, whatever the machine's speed.
const STARTS: &str = "cd \"$1\"; i=0; while :; do i=$((i + 1)); \
    echo \"int main(void) { volatile int i = 0; while (i < 5000000 + $i) i++; }\" >new.c; cc -O1 -o new new.c; ./new; \
    j=0; while [ $j -lt 30 ]; do j=$((j + 1)); cp new copy; ./copy; rm copy; done; rm new; \
    j=0; while [ $j -lt 50 ]; do j=$((j + 1)); /bin/true; done; done";
/// What grows by less than this share and this much from one third of the time to the next is flat: chance does as much.
const FLAT_SHARE: f64 = 0.05;
const COLUMNS: [(&str, f64); 5] = [
    ("collector MiB", 1.0),
    ("uploader MiB", 4.0),
    ("BPF maps MiB", 0.5),
    ("collector's files", 2.0),
    ("uploader's files", 20.0),
];

fn look(system: &System) -> [f64; COLUMNS.len()] {
    let (collector, uploader) = (system.collector_pid(), system.uploader_pid());
    [
        own_memory(collector) as f64 / 1024.0,
        own_memory(uploader) as f64 / 1024.0,
        kernel_memory(collector) as f64 / 1024.0,
        open_files(collector) as f64,
        open_files(uploader) as f64,
    ]
}

/// The mean of each column.
fn mean(rows: &[[f64; COLUMNS.len()]]) -> [f64; COLUMNS.len()] {
    let mut mean = [0.0; COLUMNS.len()];
    for row in rows {
        for (mean, value) in mean.iter_mut().zip(row) {
            *mean += value / rows.len() as f64;
        }
    }
    mean
}

/// What the uploader itself says that it holds: name of a gauge to value.
fn held(system: &System) -> BTreeMap<String, f64> {
    let is_of_it = |name: &str| {
        ["bulkhead_entries{", "bulkhead_bytes{", "bulkhead_debuginfo_known"]
            .iter()
            .any(|of| name.starts_with(of))
    };
    system.metrics().into_iter().filter(|(name, _)| is_of_it(name)).collect()
}

fn cells(row: &[f64]) -> String {
    row.iter().map(|value| format!("{value:.1}")).collect::<Vec<_>>().join(" | ")
}

fn main() -> ExitCode {
    let minutes = env::args().nth(1).map_or(Ok(MINUTES), |text| text.parse());
    let Ok(minutes @ 3..) = minutes else {
        eprintln!("usage: soak [MINUTES], at least 3");
        return ExitCode::FAILURE;
    };
    // Little, so that what remembers names is full within minutes: what grows then is something else.
    let uploader_flags = vec!["--name-cache-size=2MiB".to_owned()];
    let system = System::start(Options { window: "10s", store: true, uploader_flags, ..Options::default() });
    let trees = ["soak-a", "soak-b"].map(|name| CallTree::standard(name, Start::Bare).build());
    let trees: Vec<_> = trees.into_iter().map(|path| path.expect("a compiler")).collect();
    let libraries: Vec<_> =
        (1..=CHURN_LIBRARIES).map(|number| churn_library(number).expect("a compiler")).collect();
    let folders = [(), ()].map(|()| tempfile::tempdir().expect("a temporary folder"));
    let loader = churn_loader().expect("a compiler");
    let start: Vec<Box<dyn Fn() -> Running>> = vec![
        Box::new(|| Running::start(&trees[0], &[""; 0])),
        Box::new(|| Running::start(&trees[1], &[""; 0])),
        Box::new(|| Running::start(&loader, &libraries)),
        Box::new(|| Running::shell(STARTS, &[folders[0].path()])),
        Box::new(|| Running::shell(STARTS, &[folders[1].path()])),
    ];
    let mut load: Vec<Running> = start.iter().map(|start| start()).collect();

    let names = COLUMNS.map(|(name, _)| name).join(" | ");
    println!("| minute | {names} | samples | records | lost | profiles |");
    println!("|---|{}---|---|---|---|", "---|".repeat(COLUMNS.len()));
    let (mut rows, mut holdings) = (Vec::new(), Vec::new());
    for minute in 1..=minutes {
        let begin = rows.len();
        for _ in 0..LOOKS {
            thread::sleep(Duration::from_mins(1) / LOOKS);
            rows.push(look(&system));
            // Programs with a known profile end by themselves after ten minutes.
            for (running, start) in load.iter_mut().zip(&start) {
                if running.status().is_some() {
                    *running = start();
                }
            }
        }
        let counts = [
            "bulkhead_collector_samples_total",
            "bulkhead_collector_kernel_events_total",
            "bulkhead_lost_total",
            "bulkhead_profiles_total",
        ];
        let counts = counts.map(|name| format!("{:.0}", system.metric(name))).join(" | ");
        println!("| {minute} | {} | {counts} |", cells(&mean(&rows[begin..])));
        if minute % (minutes / 3) == 0 {
            holdings.push((minute, held(&system)));
        }
    }
    drop(load);

    // Where the uploader grew, this says what has.
    let minutes =
        holdings.iter().map(|(minute, _)| format!("minute {minute}")).collect::<Vec<_>>().join(" | ");
    println!("\n| the uploader holds | {minutes} |\n|---|{}", "---|".repeat(holdings.len()));
    for name in holdings.iter().flat_map(|(_, held)| held.keys()).collect::<BTreeSet<_>>() {
        let values: Vec<_> =
            holdings.iter().map(|(_, held)| held.get(name).copied().unwrap_or(0.0).to_string()).collect();
        println!("| `{name}` | {} |", values.join(" | "));
    }

    let third = rows.len() / 3;
    let (before, after) = (mean(&rows[third..2 * third]), mean(&rows[2 * third..]));
    println!();
    println!("| part | {names} |\n|---|{}", "---|".repeat(COLUMNS.len()));
    println!("| second third | {} |\n| last third | {} |", cells(&before), cells(&after));
    let mut code = ExitCode::SUCCESS;
    for ((name, least), (before, after)) in COLUMNS.iter().zip(before.iter().zip(after)) {
        if after - before > least.max(FLAT_SHARE * before) {
            println!("{name}: grew from {before:.1} to {after:.1}");
            code = ExitCode::FAILURE;
        }
    }
    code
}
