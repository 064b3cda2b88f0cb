//! How complete the stacks of real programs are: each runs under load while both halves do, and its profiles say how
//! the unwinds ended. As root: `script/bench-programs`. Prints tables in Markdown.

mod ends;
mod first_rows;
mod load;
mod perf;
mod programs;
mod roots;

use std::{
    collections::BTreeMap,
    env, fs,
    path::Path,
    process::Command,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use records::End;
use tests::{
    pprof::Profile,
    process::cpu_seconds,
    system::{Options, System, UPLOADER_USER, ids},
    wait::wait_for,
};

use crate::{ends::Ends, load::Load, perf::Perf, programs::PROGRAMS, programs::Program};

/// How long each program is measured.
const SECONDS: u64 = 10;
/// What passes before: the rows of a program's executables are computed when it first runs, which is measured apart.
const SETTLE: Duration = Duration::from_secs(4);

/// What the profiles of one program say.
#[derive(Default)]
struct Findings {
    samples: i64,
    /// Unwinds of user stacks by how they ended.
    complete: u64,
    total: u64,
    others: BTreeMap<&'static str, u64>,
    /// The command names that were sampled.
    commands: Vec<String>,
    ends: Ends,
}

/// What one run gave.
struct Run {
    name: &'static str,
    findings: Findings,
    /// Samples of the whole machine, and those of them with frames that were left by frame pointers.
    machine: (f64, f64),
    /// CPU of both halves in seconds.
    cpu: f64,
    perf: Option<Perf>,
}

fn main() {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let (flags, names): (Vec<_>, Vec<_>) = arguments.iter().partition(|argument| argument.starts_with("--"));
    let shows_ends = flags.iter().any(|flag| *flag == "--ends");
    let store = tempfile::Builder::new().prefix("bulkhead-programs.").tempdir().expect("a temporary folder");
    let (user, group) = ids(UPLOADER_USER);
    std::os::unix::fs::chown(store.path(), Some(user), Some(group)).expect("root may");
    let flag = format!("--local-store-directory={}", store.path().display());
    // Short windows: what is measured begins and ends with one.
    let system = System::start(Options { window: "1s", uploader_flags: vec![flag], ..Options::default() });
    head();
    let own = flags.iter().filter_map(|flag| flag.strip_prefix("--script=")).map(own_program);
    let mut programs: Vec<Program> = own.collect();
    if programs.is_empty() || !names.is_empty() {
        let wanted = |program: &&Program| names.is_empty() || names.iter().any(|name| *name == program.name);
        programs.extend(PROGRAMS.iter().filter(wanted));
    }
    let mut runs = Vec::new();
    for program in &programs {
        match measure(&system, program, store.path()) {
            Ok(run) => {
                println!("{}", line(&run));
                if shows_ends {
                    run.findings.ends.print();
                }
                runs.push(run);
            }
            Err(why) => println!("| {} | skipped: {why} | | | | |", program.name),
        }
    }
    println!();
    compare(&runs);
    println!();
    tables(&system);
    if programs.len() == PROGRAMS.len() || flags.iter().any(|flag| *flag == "--rows") {
        println!();
        drop(system);
        first_rows::measure();
    }
}

/// A load from a file: a script as those in `programs.rs`.
fn own_program(path: &str) -> Program {
    let script = fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    let name = Path::new(path).file_stem().map(|name| name.to_string_lossy().into_owned());
    // Two strings for the whole run.
    Program { name: name.unwrap_or_default().leak(), needs: &[], script: script.leak(), perf: false }
}

fn head() {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let revision = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let revision =
        revision.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    println!("script/bench-programs, revision {revision}, kernel {}, {SECONDS} s each", kernel.trim());
    println!();
    println!(
        "| program | samples | complete | outermost frame is a thread's start | how the incomplete ended | by frame pointers, \
         whole machine |"
    );
    println!("|---|---|---|---|---|---|");
}

fn line(run: &Run) -> String {
    let Findings { samples, complete, total, others, ends, .. } = &run.findings;
    let mut others: Vec<_> = others.iter().collect();
    others.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let others: Vec<_> = others.iter().map(|(label, count)| format!("{label} {count}")).collect();
    format!(
        "| {} | {samples} | {} | {} | {} | {} |",
        run.name,
        percent(*complete as f64, *total as f64),
        percent(ends.rooted as f64, ends.user as f64),
        if others.is_empty() { "-".to_owned() } else { others.join(", ") },
        percent(run.machine.1, run.machine.0),
    )
}

/// A share of something, which may be nothing.
fn percent(part: f64, whole: f64) -> String {
    if whole == 0.0 { "-".into() } else { format!("{:.2} %", 100.0 * part / whole) }
}

/// Runs a program under load and gathers what both halves say of it; else why that could not be.
fn measure(system: &System, program: &Program, store: &Path) -> Result<Run, String> {
    if let Some(missing) = program.needs.iter().find(|command| !load::is_there(command)) {
        return Err(format!("no {missing}"));
    }
    let load = Load::start(program)?;
    thread::sleep(SETTLE);
    let halves = [system.collector_pid(), system.uploader_pid()];
    let counts = || {
        let metrics = system.metrics();
        let of = |name: &str| metrics.get(name).copied().unwrap_or_default();
        (of("bulkhead_samples_total"), of("bulkhead_samples_by_frame_pointers_total"))
    };
    let (begun, before, cpu) = (nanos(), counts(), halves.map(cpu_seconds));
    thread::sleep(Duration::from_secs(SECONDS));
    let (ended, after) = (nanos(), counts());
    let cpu = halves.map(cpu_seconds).iter().sum::<f64>() - cpu.iter().sum::<f64>();
    let windows = system.metric("bulkhead_windows_total");
    // A window that ended meanwhile has its names looked up first.
    wait_for("the last window is written", 60, || {
        (system.metric("bulkhead_windows_total") >= windows + 3.0).then_some(())
    });
    let findings = findings(store, &load.unit, begun, ended);
    if findings.samples == 0 {
        return Err(format!("it was not seen to run: {}", load.output()));
    }
    // The stacks are told of, also where perf cannot be run.
    let perf = program
        .perf
        .then(|| perf::record(&findings.commands, SECONDS))
        .and_then(|perf| perf.inspect_err(|error| println!("{}: {error}", program.name)).ok());
    Ok(Run { name: program.name, findings, machine: (after.0 - before.0, after.1 - before.1), cpu, perf })
}

fn nanos() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// What the stored profiles of a unit say that lie between two times.
fn findings(store: &Path, unit: &str, begun: i64, ended: i64) -> Findings {
    let mut findings = Findings::default();
    let mut all = Profile::default();
    for folder in fs::read_dir(store).into_iter().flatten().flatten() {
        // A target's folder is called COMM_UNIT_HASH.
        let name = folder.file_name().to_string_lossy().into_owned();
        let Some((command, _)) = name.split_once(&format!("_{unit}")) else { continue };
        let mut is_in = false;
        for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
            let Ok(bytes) = fs::read(file.path()) else { continue };
            let profile = Profile::read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            if profile.time_nanos < begun || profile.time_nanos + profile.duration_nanos > ended {
                continue;
            }
            is_in = true;
            findings.samples += profile.total();
            profile.comments.iter().for_each(|comment| findings.add_ends(comment));
            all.append(profile);
        }
        if is_in {
            findings.commands.push(command.to_owned());
        }
    }
    findings.ends = Ends::of(&all);
    findings
}

impl Findings {
    /// Reads the profile's own sentence of how complete its stacks are.
    fn add_ends(&mut self, comment: &str) {
        let Some((counts, rest)) = comment.split_once(" user stacks are complete to their root") else {
            return;
        };
        let number = |text: &str| text.parse::<u64>().unwrap_or(0);
        let (complete, total) = counts.split_once(" of ").unwrap_or_default();
        self.complete += number(complete);
        self.total += number(total);
        for part in rest.split("; ").skip(1) {
            let (count, sentence) = part.split_once(": ").unwrap_or_default();
            let end = End::ALL.iter().find(|end| end.sentence() == sentence);
            *self.others.entry(end.map_or("unknown", |end| end.label())).or_default() += number(count);
        }
    }
}

/// The same loads under `perf record --call-graph dwarf`.
fn compare(runs: &[Run]) {
    println!(
        "| program | complete | perf: reach a root | stored by perf, MiB | CPU of both halves, s | of perf record, s | of \
         perf script, s |"
    );
    println!("|---|---|---|---|---|---|---|");
    for run in runs {
        let Some(perf) = &run.perf else { continue };
        println!(
            "| {} | {} | {} of {} | {:.1} | {:.2} | {:.2} | {:.1} |",
            run.name,
            percent(run.findings.complete as f64, run.findings.total as f64),
            percent(perf.rooted as f64, perf.samples as f64),
            perf.samples,
            perf.bytes as f64 / f64::from(1 << 20),
            run.cpu,
            perf.record_seconds,
            perf.script_seconds,
        );
    }
}

/// What the rows of all executables of the run take.
fn tables(system: &System) {
    let metrics = system.metrics();
    let of = |name: &str| metrics.get(name).copied().unwrap_or_default();
    println!("| unwind tables after the run | |\n|---|---|");
    println!("| executables with a table | {} |", of("bulkhead_unwind_tables"));
    println!("| rows that were computed | {} |", of("bulkhead_unwind_rows_total"));
    println!("| distinct rules | {} |", of("bulkhead_unwind_rules"));
    println!(
        "| kernel memory of rows, MiB | {:.1} |",
        of("bulkhead_unwind_table_bytes") / f64::from(1 << 20)
    );
    println!(
        "| bytes a row | {:.3} |",
        of("bulkhead_unwind_table_bytes") / of("bulkhead_unwind_rows_total").max(1.0)
    );
    for (name, count) in metrics.iter().filter(|(name, _)| name.starts_with("bulkhead_unwind_table_events")) {
        println!("| `{name}` | {count} |");
    }
}
