//! `perf record --call-graph dwarf` beside the same load: copies of the stack, unwound later by `perf script`.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use crate::roots::Roots;

/// What perf took and found.
pub(crate) struct Perf {
    /// Of the programs that were asked for.
    pub(crate) samples: u64,
    /// Those of them whose outermost frame is where a thread starts.
    pub(crate) rooted: u64,
    /// Size of perf.data.
    pub(crate) bytes: u64,
    pub(crate) record_seconds: f64,
    pub(crate) script_seconds: f64,
}

/// Where threads start, by the names that perf gives.
const ROOTS: &[&str] = &[
    "_start",
    "_dl_start",
    "_dl_start_user",
    "__libc_start_call_main",
    "__libc_start_main",
    "__libc_start_main@@GLIBC_2.34",
    "__libc_start_main_impl",
    "clone",
    "__clone",
    "clone3",
    "__clone3",
    "__GI___clone3",
    "start_thread",
];

/// How perf calls a frame without a name, such as the start of a stripped program.
const UNNAMED: &str = "[unknown]";

/// Records the whole machine, as Bulkhead does, and counts the stacks of these commands.
pub(crate) fn record(commands: &[String], seconds: u64) -> Result<Perf, String> {
    let folder =
        tempfile::Builder::new().prefix("bulkhead-perf.").tempdir().map_err(|error| error.to_string())?;
    let data = folder.path().join("perf.data");
    let data = data.display().to_string();
    let record = "perf record -q -a -F 100 --call-graph dwarf,16384 -o \"$1\" -- sleep \"$2\"";
    let (record_seconds, _) = timed(record, &[&data, &seconds.to_string()])?;
    let stacks = folder.path().join("stacks");
    let script = "perf script -i \"$1\" --no-inline --comms \"$2\" -F comm,ip,sym,dso > \"$3\"";
    let stacks = stacks.display().to_string();
    let (script_seconds, _) = timed(script, &[&data, &commands.join(","), &stacks])?;
    let bytes = std::fs::metadata(&data).map_err(|error| error.to_string())?.len();
    let (samples, rooted) = count(&stacks).map_err(|error| error.to_string())?;
    Ok(Perf { samples, rooted, bytes, record_seconds, script_seconds })
}

/// Runs a shell script; its CPU time in seconds (that of what it waited for), and what it printed to stderr.
fn timed(script: &str, arguments: &[&str]) -> Result<(f64, String), String> {
    // bash says what its children took, in a form that can be chosen.
    let whole = format!("TIMEFORMAT='cpu %U %S'; time {{ {script}; }}; exit");
    let output = Command::new("bash")
        .args(["-c", &whole, "bash"])
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cannot run bash: {error}"))?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let times = text.lines().rev().find_map(|line| line.strip_prefix("cpu "));
    let seconds = times.map(|times| times.split(' ').filter_map(|time| time.parse::<f64>().ok()).sum());
    match seconds {
        Some(seconds) if output.status.success() => Ok((seconds, text)),
        _ => Err(format!("perf failed: {text}")),
    }
}

/// Samples, and those that reach a root: blocks of lines, the command first, then a frame a line, the innermost first.
fn count(path: &str) -> std::io::Result<(u64, u64)> {
    let (mut samples, mut rooted) = (0, 0);
    let mut others: BTreeMap<String, u64> = BTreeMap::new();
    let mut last: Option<String> = None;
    let mut is_in = false;
    let mut roots = Roots::default();
    let lines = BufReader::new(File::open(path)?).lines().map_while(Result::ok);
    for line in lines.chain([String::new()]) {
        if !line.trim().is_empty() {
            if is_in {
                last = Some(line);
            }
            is_in = true;
        } else if is_in {
            samples += 1;
            is_in = false;
            let line = last.take().unwrap_or_default();
            let (address, rest) = line.trim().split_once(' ').unwrap_or_default();
            let (name, file) = rest.rsplit_once(" (").unwrap_or((rest, ""));
            let address = u64::from_str_radix(address, 16).unwrap_or(0);
            if ROOTS.contains(&name)
                || name == UNNAMED && roots.may_begin_at(file.trim_end_matches(')'), address)
            {
                rooted += 1;
            } else {
                *others.entry(name.to_owned()).or_default() += 1;
            }
        }
    }
    if std::env::args().any(|argument| argument == "--ends") {
        let mut others: Vec<_> = others.into_iter().collect();
        others.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        println!("    perf ends elsewhere: {:?}", &others[..others.len().min(12)]);
    }
    Ok((samples, rooted))
}
