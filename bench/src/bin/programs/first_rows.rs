//! How long it takes from the start of a program that nobody has seen to its unwind rows: for a small one, for gcc's
//! compiler, and for rustc with its driver and LLVM. Each is a copy, and so another file.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tests::{
    process::Running,
    system::{Options, System},
};

use crate::programs::{files, large_rust};

/// How often each is measured.
const TIMES: usize = 5;
/// How long rows are waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// Times of one start, in milliseconds.
struct Times {
    /// Until the uploader had computed the rows.
    computed: f64,
    /// Until the collector had said that the BPF programs have them; it speaks once a second.
    shown: f64,
    rows: f64,
}

pub(crate) fn measure() {
    println!(
        "| first start of | new files | rows | ms until computed: median, most | ms until the collector says that they \
         are used: least, most |"
    );
    println!("|---|---|---|---|---|");
    let small = |folder: &Path| {
        let source = folder.join("small.c");
        fs::write(&source, "int main(void) { for (;;) __asm__ volatile(\"\"); }").ok()?;
        let program = folder.join("small");
        let built = Command::new("gcc").arg(&source).arg("-o").arg(&program).status().ok()?;
        built.success().then(|| vec![program.display().to_string()])
    };
    line("a small program", 1, small);
    line("cc1", 1, |folder| {
        let found = output("gcc", &["-print-prog-name=cc1"])?;
        let program = copy(Path::new(&found), folder)?;
        let source = folder.join("large.c");
        Some(vec![program, "-quiet".into(), "-O2".into(), source.display().to_string(), "-o/dev/null".into()])
    });
    // rustc itself does nothing but call its driver: it is not sampled, and may have no rows.
    line("rustc's driver and LLVM", 2, |folder| {
        let root = PathBuf::from(output("rustc", &["--print", "sysroot"])?);
        for name in ["bin", "lib"] {
            fs::create_dir(folder.join(name)).ok()?;
        }
        let program = copy(&root.join("bin/rustc"), &folder.join("bin"))?;
        for file in fs::read_dir(root.join("lib")).ok()?.flatten() {
            if file.path().is_file() {
                copy(&file.path(), &folder.join("lib"))?;
            }
        }
        let mut line = vec![program, "--sysroot".into(), root.display().to_string()];
        let rest = ["--edition=2021", "--crate-type=lib", "-O", "-o/dev/null"];
        line.extend(rest.map(str::to_owned));
        line.push(folder.join("long.rs").display().to_string());
        // Long enough to be there until its rows are.
        fs::write(folder.join("long.rs"), large_rust(1000)).ok()?;
        Some(line)
    });
}

fn output(command: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(command).args(arguments).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn copy(from: &Path, folder: &Path) -> Option<String> {
    let to = folder.join(from.file_name()?);
    fs::copy(from, &to).ok()?;
    Some(to.display().to_string())
}

/// Measures starts of what `make` makes in a new folder: a command line.
fn line(name: &str, new: u32, make: impl Fn(&Path) -> Option<Vec<String>>) {
    // A new pair, whose store of rows is empty.
    let system = System::start(Options { window: "1s", ..Options::default() });
    let mut all = Vec::new();
    for _ in 0..TIMES {
        let folder = tempfile::Builder::new().prefix("bulkhead-rows.").tempdir().expect("a temporary folder");
        for (name, text) in files() {
            fs::write(folder.path().join(name), text).expect("root may");
        }
        let Some(line) = make(folder.path()) else {
            println!("| {name} | skipped: it is not here | | | |");
            return;
        };
        // Before it: what else has been started meanwhile has its rows by then.
        thread::sleep(Duration::from_secs(2));
        match start(&system, new, &line) {
            Some(times) => all.push(times),
            None => eprintln!("{name}: no rows within {} s", PATIENCE.as_secs()),
        }
    }
    let sorted = |of: fn(&Times) -> f64| {
        let mut times: Vec<f64> = all.iter().map(of).collect();
        times.sort_by(f64::total_cmp);
        times
    };
    let (computed, shown) = (sorted(|times| times.computed), sorted(|times| times.shown));
    let at = |times: &[f64], index: usize| times.get(index).copied().unwrap_or(f64::NAN);
    let last = all.len().saturating_sub(1);
    println!(
        "| {name} | {new} | {} | {:.0}, {:.0} | {:.0}, {:.0} |",
        all.first().map_or(0.0, |times| times.rows),
        at(&computed, all.len() / 2),
        at(&computed, last),
        at(&shown, 0),
        at(&shown, last),
    );
}

/// Starts a command line and polls `/metrics` until so many executables more have rows.
fn start(system: &System, new: u32, line: &[String]) -> Option<Times> {
    const COMPUTED: &str = "bulkhead_unwind_executables_total{outcome=\"with_rows\"}";
    const SHOWN: &str = "bulkhead_unwind_table_events_total{event=\"shown\"}";
    const ROWS: &str = "bulkhead_unwind_rows_total";
    let counts = || {
        let metrics = system.metrics();
        [COMPUTED, SHOWN, ROWS].map(|name| metrics.get(name).copied().unwrap_or_default())
    };
    let before = counts();
    let begun = Instant::now();
    let _running = Running::start(Path::new(&line[0]), &line[1..]);
    let mut computed = None;
    while begun.elapsed() < PATIENCE {
        let now = counts();
        let elapsed = begun.elapsed().as_secs_f64() * 1000.0;
        let new = f64::from(new);
        if now[0] >= before[0] + new && computed.is_none() {
            computed = Some((elapsed, now[2] - before[2]));
        }
        if now[1] >= before[1] + new
            && let Some((computed, rows)) = computed
        {
            return Some(Times { computed, shown: elapsed, rows });
        }
        thread::sleep(Duration::from_millis(2));
    }
    None
}
