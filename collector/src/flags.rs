//! The collector's flags. Few, so they are read by hand.

use std::{ffi::OsString, path::PathBuf};

use lexopt::prelude::*;
use thiserror::Error;

/// Where the uploader looks by default.
pub(crate) const DEFAULT_SOCKET: &str = "/run/bulkhead/collector.sock";
const DEFAULT_UPLOADER_USER: &str = "bulkhead-uploader";
const DEFAULT_FREQUENCY: u32 = 100;
/// More than this costs more than it tells.
const MAX_FREQUENCY: u32 = 1000;
const DEFAULT_TABLE_MEMORY: u64 = 64 << 20;
/// Less than this does not hold a C library and a program; more than this no array can have.
const TABLE_MEMORY: std::ops::RangeInclusive<u64> = (1 << 20)..=(4 << 30);

const HELP: &str = "\
bulkhead-collector: the privileged half of the Bulkhead profiler

Samples the stacks of every CPU with BPF and passes them to bulkhead-uploader through a Unix socket.

Usage: bulkhead-collector [FLAGS]

Flags:
      --socket=PATH               Socket to listen on. [default: /run/bulkhead/collector.sock]
      --uploader-user=USER        User, by name or number, that may connect to the socket; nobody else can.
                                  [default: bulkhead-uploader]
      --sampling-frequency=HZ     Samples a second on each CPU, 1 to 1000. [default: 100]
      --unwind-table-memory=SIZE  Kernel memory for unwind rows, taken at the start, 1MiB to 4GiB. [default: 64MiB]
      --command-names=BOOL        Whether names that processes and threads give themselves are passed on; without them,
                                  what is in no container or systemd unit is one target. [default: true]
      --log-level=LEVEL           error, warn, info or debug. [default: info]
  -h, --help                      Show this help.
  -V, --version                   Show the version.

It needs CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE, CAP_DAC_READ_SEARCH, CAP_CHECKPOINT_RESTORE and CAP_SYSLOG, not root,
and drops what it no longer needs once it is set up.

Exit status: 0 when told to stop, 1 after an error, 75 when it must be started again because something came that it
no longer has the privilege for (a CPU that came online, kernel addresses that became readable).
";

/// What the command line asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Run(Flags),
    /// Print this and stop.
    Print(String),
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) socket: PathBuf,
    pub(crate) uploader_user: String,
    pub(crate) sampling_frequency: u32,
    /// In bytes.
    pub(crate) table_memory: u64,
    /// Whether command names are passed on.
    pub(crate) command_names: bool,
    pub(crate) log_level: log::LevelFilter,
}

#[derive(Debug, Error)]
pub(crate) enum FlagsError {
    #[error("{0}; bulkhead-collector --help lists the flags")]
    Parser(#[from] lexopt::Error),
    #[error("--sampling-frequency={0}: a frequency is a whole number from 1 to {MAX_FREQUENCY}")]
    Frequency(String),
    #[error(
        "--unwind-table-memory={0}: a size is a whole number with KiB, MiB or GiB behind it, from 1MiB to 4GiB"
    )]
    TableMemory(String),
    #[error("--command-names={0}: it is true or false")]
    CommandNames(String),
    #[error("--log-level={0}: a level is error, warn, info or debug")]
    LogLevel(String),
}

/// Reads the arguments, without the program's name.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, FlagsError> {
    let mut flags = Flags {
        socket: DEFAULT_SOCKET.into(),
        uploader_user: DEFAULT_UPLOADER_USER.into(),
        sampling_frequency: DEFAULT_FREQUENCY,
        table_memory: DEFAULT_TABLE_MEMORY,
        command_names: true,
        log_level: log::LevelFilter::Info,
    };
    let mut parser = lexopt::Parser::from_args(arguments);
    while let Some(argument) = parser.next()? {
        match argument {
            Short('h') | Long("help") => return Ok(Command::Print(HELP.into())),
            Short('V') | Long("version") => {
                return Ok(Command::Print(format!("bulkhead-collector {}\n", env!("CARGO_PKG_VERSION"))));
            }
            Long("socket") => flags.socket = parser.value()?.into(),
            Long("uploader-user") => flags.uploader_user = parser.value()?.string()?,
            Long("sampling-frequency") => {
                let value = parser.value()?.string()?;
                flags.sampling_frequency = match value.parse() {
                    Ok(frequency @ 1..=MAX_FREQUENCY) => frequency,
                    _ => return Err(FlagsError::Frequency(value)),
                };
            }
            Long("unwind-table-memory") => {
                let value = parser.value()?.string()?;
                flags.table_memory = match bytes(&value) {
                    Some(bytes) if TABLE_MEMORY.contains(&bytes) => bytes,
                    _ => return Err(FlagsError::TableMemory(value)),
                };
            }
            Long("command-names") => {
                let value = parser.value()?.string()?;
                flags.command_names = value.parse().map_err(|_| FlagsError::CommandNames(value))?;
            }
            Long("log-level") => {
                let value = parser.value()?.string()?;
                flags.log_level = match value.as_str() {
                    "error" => log::LevelFilter::Error,
                    "warn" => log::LevelFilter::Warn,
                    "info" => log::LevelFilter::Info,
                    "debug" => log::LevelFilter::Debug,
                    _ => return Err(FlagsError::LogLevel(value)),
                };
            }
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(Command::Run(flags))
}

/// `64MiB` in bytes; without a unit it is bytes already.
fn bytes(text: &str) -> Option<u64> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30)];
    let unit = units.iter().find_map(|(unit, bits)| Some((text.strip_suffix(unit)?, *bits)));
    let (number, bits) = unit.unwrap_or((text, 0));
    number.trim().parse::<u64>().ok()?.checked_mul(1 << bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(arguments: &[&str]) -> Result<Command, FlagsError> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn defaults_and_both_forms_of_a_value() {
        let Ok(Command::Run(flags)) = run(&[]) else { panic!() };
        assert_eq!((flags.socket.to_str(), flags.sampling_frequency), (Some(DEFAULT_SOCKET), 100));
        let Ok(Command::Run(flags)) = run(&[
            "--socket=/a",
            "--uploader-user",
            "nobody",
            "--sampling-frequency",
            "19",
            "--log-level=debug",
            "--unwind-table-memory=2MiB",
            "--command-names=false",
        ]) else {
            panic!()
        };
        assert_eq!(flags.socket.to_str(), Some("/a"));
        assert_eq!(flags.uploader_user, "nobody");
        assert_eq!((flags.sampling_frequency, flags.table_memory), (19, 2 << 20));
        assert_eq!(flags.log_level, log::LevelFilter::Debug);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (arguments, part) in [
            (&["--sampling-frequency=0"][..], "1 to 1000"),
            (&["--sampling-frequency=1001"], "=1001"),
            (&["--sampling-frequency=x"], "=x"),
            (&["--log-level=loud"], "=loud"),
            (&["--unwind-table-memory=5GiB"], "5GiB: a size"),
            (&["--unwind-table-memory=1"], "from 1MiB"),
            (&["--unwind-table-memory=99999999999GiB"], "from 1MiB"),
            (&["--unwind-table-memory=MiB"], "from 1MiB"),
            (&["--bogus"], "--bogus"),
            (&["--socket"], "--socket"),
            (&["surplus"], "surplus"),
        ] {
            let error = run(arguments).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn help_names_every_flag() {
        let Ok(Command::Print(help)) = run(&["--help"]) else { panic!() };
        for flag in
            ["socket", "uploader-user", "sampling-frequency", "unwind-table-memory", "log-level", "version"]
        {
            assert!(help.contains(&format!("--{flag}")));
        }
    }
}
