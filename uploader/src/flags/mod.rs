//! The command line: the seed's flags with the seed's names, defaults and forms, and some of our own.

mod names;
mod selection;
mod store;
mod values;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Command, CommandFactory, FromArgMatches, Parser, ValueEnum};

pub use names::NameFlags;
pub use selection::SelectionFlags;
pub use store::{BatchInterval, DebugInfoFlags, PathRule, StoreAddress, StoreFlags, StoreHeader};
pub use values::{ByteSize, ExternalLabels, HttpAddress, ProfilingDuration, ValueError};

use crate::{printable::printable, targets::Selection};

/// Labels that the uploader gives itself: no `--external-label` may take their place.
pub const OWN_LABELS: &[&str] =
    &["node", "comm", "container", "containerid", "namespace", "pod", "systemd_unit"];

/// How much is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum LogLevel {
    /// What needs somebody's attention.
    Error,
    /// Also what goes on with something missing.
    Warn,
    /// Also what happens, a line for each change.
    Info,
    /// Also why.
    Debug,
}

/// Turns the samples of Bulkhead's collector into profiles, and shows them at --http-address.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "bulkhead-uploader",
    version,
    about = "The unprivileged half of Bulkhead: turns the collector's samples into pprof profiles and shows them.",
    after_help = "Runs as a user of its own, without any capability. The collector (bulkhead-collector) must be \
                  running and must let this user connect (its --uploader-user).\n\n\
                  bulkhead-uploader check [OPTIONS] shows instead, for each process that runs now, the labels that these \
                  flags and rules give it, and ends."
)]
pub struct Flags {
    /// How much is logged
    #[arg(long, value_enum, default_value = "info", value_name = "LEVEL")]
    pub log_level: LogLevel,

    /// Where to serve the page, /query and /metrics; ":PORT" means every address of the machine
    #[arg(long, default_value = ":7071", value_name = "HOST:PORT")]
    pub http_address: HttpAddress,

    /// Where to serve /metrics, /healthz and /readyz alone, for who watches over many machines while the page stays on this one
    #[arg(long, value_name = "ADDRESS")]
    pub status_address: Option<HttpAddress>,

    /// Another name that the page may be asked for by (Host header); may be given several times
    #[arg(long, value_name = "NAME")]
    pub http_allowed_host: Vec<String>,

    /// File with a token that whoever asks for the page must give, as a bearer token or as the password of any user;
    /// read again when it changes
    #[arg(long, value_name = "FILE")]
    pub http_token_file: Option<PathBuf>,

    /// Name of this machine, the label "node" [default: the host name]
    #[arg(long, default_value = "", hide_default_value = true, value_name = "NAME")]
    pub node: String,

    /// Labels to attach to all profiles; may be given several times
    #[arg(long, value_name = "KEY=VALUE;...")]
    pub external_label: Vec<ExternalLabels>,

    /// Length of a profile, such as 10s, 1m30s or 500ms
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    pub profiling_duration: ProfilingDuration,

    /// Whether samples say of which thread they are
    #[arg(
        long, default_value_t = true, default_missing_value = "true", num_args = 0..=1, require_equals = true,
        action = ArgAction::Set, value_name = "BOOL"
    )]
    pub thread_labels: bool,

    /// Most memory for names that were found: half for symbol tables, half for the names of single addresses
    #[arg(long, default_value = "20MiB", value_name = "SIZE", value_parser = at_least_a_mebibyte)]
    pub name_cache_size: ByteSize,

    /// Socket of the collector
    #[arg(long, default_value = "/run/bulkhead/collector.sock", value_name = "PATH")]
    pub collector_socket: PathBuf,

    /// Folder to write each profile to, as TARGET/TIME.pb.gz
    #[arg(long, value_name = "DIR")]
    pub local_store_directory: Option<PathBuf>,

    /// Most bytes that --local-store-directory may hold; the oldest profiles go first
    #[arg(long, default_value = "1GiB", value_name = "SIZE")]
    pub local_store_size: ByteSize,

    /// What is profiled
    #[command(flatten)]
    pub selection: SelectionFlags,

    /// Who knows containers
    #[command(flatten)]
    pub names: NameFlags,

    /// Where profiles are sent
    #[command(flatten)]
    pub store: StoreFlags,

    /// Of what debug information is sent
    #[command(flatten)]
    pub debug_info: DebugInfoFlags,
}

impl Flags {
    /// Reads a command line, the program's name first. The error is to be shown with [`clap::Error::exit`]: it is
    /// the answer to `--help` and `--version` too.
    pub fn parse_line(
        line: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    ) -> Result<Self, clap::Error> {
        let mut command = Self::command();
        let matches = command.try_get_matches_from_mut(line)?;
        let mut flags = Self::from_arg_matches(&matches).map_err(|error| error.format(&mut command))?;
        if flags.node.is_empty() {
            flags.node = printable(rustix::system::uname().nodename().to_bytes());
        }
        flags.check_labels(&mut command)?;
        let names = flags.names.problem().map(str::to_owned);
        if let Some(problem) = flags.store.problem().map(Into::into).or(names) {
            return Err(command.error(clap::error::ErrorKind::ArgumentConflict, problem));
        }
        Ok(flags)
    }

    /// What is profiled.
    pub fn selection(&self) -> Selection {
        let pods = !self.names.pod_label_selector.is_empty();
        Selection { pods, ..self.selection.selection() }
    }

    /// Length of a window.
    pub fn window(&self) -> Duration {
        self.profiling_duration.0
    }

    /// All external labels, in the order they were given.
    pub fn external_labels(&self) -> Vec<(String, String)> {
        self.external_label.iter().flat_map(|labels| labels.0.iter().cloned()).collect()
    }

    fn check_labels(&self, command: &mut Command) -> Result<(), clap::Error> {
        let labels = self.external_labels();
        for (index, (name, _)) in labels.iter().enumerate() {
            let problem = if OWN_LABELS.contains(&name.as_str()) {
                let hint = if name == "node" { ": use --node" } else { "" };
                format!("--external-label: the label `{name}` is set by Bulkhead itself{hint}")
            } else if labels[..index].iter().any(|(other, _)| other == name) {
                format!("--external-label: the label `{name}` is given twice")
            } else {
                continue;
            };
            return Err(command.error(clap::error::ErrorKind::ValueValidation, problem));
        }
        Ok(())
    }
}

/// Less would have everything looked up again for each window.
fn at_least_a_mebibyte(text: &str) -> Result<ByteSize, ValueError> {
    let size: ByteSize = text.parse()?;
    if size.0 < 1 << 20 { Err(ValueError::new("at least 1MiB")) } else { Ok(size) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &[&str]) -> Result<Flags, clap::Error> {
        Flags::parse_line([&["bulkhead-uploader"], line].concat())
    }

    fn error(line: &[&str]) -> String {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line:?}");
        error.to_string()
    }

    #[test]
    fn the_definition_is_consistent() {
        Flags::command().debug_assert();
    }

    #[test]
    fn defaults_are_those_of_the_seed() {
        let flags = parse(&[]).unwrap();
        assert_eq!(flags.log_level, LogLevel::Info);
        assert_eq!(flags.http_address, HttpAddress::Every(7071));
        assert_eq!(flags.window(), Duration::from_secs(10));
        assert_eq!(flags.collector_socket, PathBuf::from("/run/bulkhead/collector.sock"));
        assert_eq!((flags.local_store_size.0, flags.name_cache_size.0), (1 << 30, 20 << 20));
        assert_eq!(flags.local_store_directory, None);
        assert!(flags.thread_labels);
        assert!(flags.external_labels().is_empty());
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        assert_eq!(flags.node, host);
    }

    #[test]
    fn each_flag_is_read() {
        let flags = parse(&[
            "--log-level=debug",
            "--http-address=127.0.0.1:0",
            "--http-allowed-host=profiler.example",
            "--node=n1",
            "--external-label=a=b;c=d=e",
            "--external-label",
            "f=",
            "--profiling-duration=1m30s",
            "--thread-labels=false",
            "--collector-socket=/tmp/c.sock",
            "--local-store-directory=/tmp/d",
            "--local-store-size=10MiB",
            "--name-cache-size=1MiB",
            "--kubernetes=false",
        ])
        .unwrap();
        assert_eq!(flags.log_level, LogLevel::Debug);
        assert_eq!(flags.http_address, HttpAddress::Host("127.0.0.1".into(), 0));
        assert_eq!(flags.http_allowed_host, ["profiler.example"]);
        assert_eq!(flags.node, "n1");
        let expected = [("a", "b"), ("c", "d=e"), ("f", "")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(flags.external_labels(), expected);
        assert_eq!(flags.window(), Duration::from_secs(90));
        assert!(!flags.thread_labels);
        assert_eq!(flags.collector_socket, PathBuf::from("/tmp/c.sock"));
        assert_eq!(flags.local_store_directory, Some(PathBuf::from("/tmp/d")));
        assert_eq!((flags.local_store_size.0, flags.name_cache_size.0), (10 << 20, 1 << 20));
    }

    #[test]
    fn booleans_take_three_forms() {
        assert!(parse(&["--thread-labels"]).unwrap().thread_labels);
        assert!(parse(&["--thread-labels=true"]).unwrap().thread_labels);
        assert!(!parse(&["--thread-labels=false"]).unwrap().thread_labels);
        assert!(error(&["--thread-labels=maybe"]).contains("maybe"));
    }

    #[test]
    fn an_empty_duration_or_node_is_the_default() {
        let flags = parse(&["--profiling-duration=", "--node="]).unwrap();
        assert_eq!(flags.window(), Duration::from_secs(10));
        assert!(!flags.node.is_empty());
    }

    #[test]
    fn labels_are_checked_together() {
        assert!(error(&["--external-label=node=x"]).contains("use --node"));
        assert!(error(&["--external-label=comm=x"]).contains("`comm`"));
        assert!(error(&["--external-label=a=x", "--external-label=a=y"]).contains("twice"));
        assert!(error(&["--external-label=a"]).contains("KEY=VALUE"));
    }

    #[test]
    fn unknown_flags_and_arguments_are_errors() {
        assert!(error(&["--no-such-flag"]).contains("--no-such-flag"));
        assert!(error(&["stray"]).contains("stray"));
        assert!(error(&["--log-level=loud"]).contains("loud"));
        assert!(error(&["--name-cache-size=1023KiB"]).contains("at least 1MiB"));
    }

    #[test]
    fn help_and_version_are_answers() {
        let help = parse(&["--help"]).unwrap_err();
        assert_eq!(help.exit_code(), 0);
        let help = help.to_string();
        for flag in
            ["--http-address", "--node", "--external-label", "--profiling-duration", "--collector-socket"]
        {
            assert!(help.contains(flag), "{flag} is missing in:\n{help}");
        }
        assert!(help.contains("[default: the host name]"));
        assert!(help.contains("--store-address"), "the flags to come are named:\n{help}");
        let version = parse(&["--version"]).unwrap_err();
        assert_eq!(version.exit_code(), 0);
        assert_eq!(version.to_string(), format!("bulkhead-uploader {}\n", env!("CARGO_PKG_VERSION")));
    }
}
