//! The flags that say where profiles are sent, and how they wait. Today's Parca Agent calls some of them otherwise; these names are
//! taken too.

use std::{fmt, path::PathBuf, str::FromStr, time::Duration};

use clap::{ArgAction, Args};
use regex::Regex;

use super::values::{ByteSize, ValueError, go_duration};
use crate::expression::whole;

/// The port that gRPC takes when none is named.
const DEFAULT_PORT: u16 = 443;
/// How often profiles may be sent.
const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// `--store-address`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoreAddress {
    /// A name or an address, without brackets; empty: there is no store.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl FromStr for StoreAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError::new("write HOST:PORT, such as parca.example.com:443 or [::1]:7070");
        if text.contains("://") || text.contains('/') {
            return Err(ValueError::new("write HOST:PORT alone; --insecure says whether it is without TLS"));
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (text, DEFAULT_PORT),
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        if host.is_empty() != text.is_empty() || port == 0 {
            return Err(wrong());
        }
        Ok(StoreAddress { host: host.to_owned(), port })
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let StoreAddress { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// `--batch-write-interval`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BatchInterval(pub Duration);

impl FromStr for BatchInterval {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let interval = go_duration(text)?;
        if INTERVALS.contains(&interval) {
            Ok(BatchInterval(interval))
        } else {
            Err(ValueError::new("100ms to 1h"))
        }
    }
}

/// `--bearer-token`. It can be shown to nobody by mistake.
#[derive(Clone, PartialEq, Eq)]
pub struct BearerToken(pub String);

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken(not shown)")
    }
}

impl FromStr for BearerToken {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(BearerToken(text.to_owned()))
    }
}

/// One `--store-header`: `NAME=VALUE`. What it has may be a secret, and is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreHeader {
    /// Its name, in small letters.
    pub name: String,
    /// Its value.
    pub value: String,
}

impl fmt::Debug for StoreHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StoreHeader({}, not shown)", self.name)
    }
}

impl FromStr for StoreHeader {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (name, value) = text.split_once('=').ok_or_else(|| ValueError::new("write NAME=VALUE"))?;
        let name = name.trim().to_ascii_lowercase();
        // The rule of gRPC's metadata; names that end in -bin have other values, those of gRPC's own are not for others.
        let is_name = !name.is_empty()
            && name
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-_.".contains(&byte));
        let is_free =
            !name.ends_with("-bin") && !name.starts_with("grpc-") && name != "authorization" && name != "te";
        if !is_name || !is_free {
            return Err(ValueError::new(
                "a name has letters, digits and -_. and is neither gRPC's own (grpc-...), nor ...-bin, nor authorization (--bearer-token-file)",
            ));
        }
        if value.is_empty() || !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return Err(ValueError::new("a value is printable ASCII text"));
        }
        Ok(StoreHeader { name, value: value.to_owned() })
    }
}

/// Where profiles are sent.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sending profiles to a Parca server")]
pub struct StoreFlags {
    /// Where to send profiles (gRPC); nothing is sent without it
    #[arg(
        long,
        default_value = "",
        hide_default_value = true,
        value_name = "HOST:PORT",
        alias = "remote-store-address"
    )]
    pub store_address: StoreAddress,

    /// Token to send with each call; it shows in the list of processes, --bearer-token-file does not
    #[arg(
        long,
        value_name = "TOKEN",
        alias = "remote-store-bearer-token",
        default_value = "",
        hide_default_value = true
    )]
    pub bearer_token: BearerToken,

    /// File with the token to send with each call; read again when it changes
    #[arg(long, value_name = "FILE", alias = "remote-store-bearer-token-file")]
    pub bearer_token_file: Option<PathBuf>,

    /// Speak to the store without TLS; a token is then sent in plain text
    #[arg(
        long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true,
        action = ArgAction::Set, value_name = "BOOL", alias = "remote-store-insecure"
    )]
    pub insecure: bool,

    /// Take the store's certificate as it is, whoever has made it
    #[arg(
        long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true,
        action = ArgAction::Set, value_name = "BOOL", alias = "remote-store-insecure-skip-verify"
    )]
    pub insecure_skip_verify: bool,

    /// File with the certificates (PEM) by which the store's is checked, in place of the system's
    #[arg(long, value_name = "FILE")]
    pub store_ca_file: Option<PathBuf>,

    /// File with the certificate (PEM, with those between it and the root) to show to the store
    #[arg(long, value_name = "FILE", requires = "store_client_key", alias = "remote-store-client-cert")]
    pub store_client_certificate: Option<PathBuf>,

    /// File with the key (PEM) of that certificate
    #[arg(
        long,
        value_name = "FILE",
        requires = "store_client_certificate",
        alias = "remote-store-client-key"
    )]
    pub store_client_key: Option<PathBuf>,

    /// Header to send with each call; may be given several times, and shows in the list of processes
    #[arg(long, value_name = "NAME=VALUE", alias = "remote-store-grpc-headers")]
    pub store_header: Vec<StoreHeader>,

    /// How often what has gathered is sent
    #[arg(long, default_value = "10s", value_name = "DURATION")]
    pub batch_write_interval: BatchInterval,

    /// Folder where profiles wait to be sent
    #[arg(
        long,
        value_name = "DIR",
        help = "Folder where profiles wait to be sent [default: spool, in $STATE_DIRECTORY or /var/lib/bulkhead-uploader]"
    )]
    pub spool_directory: Option<PathBuf>,

    /// Most bytes that --spool-directory may hold; the oldest profiles go first
    #[arg(long, default_value = "512MiB", value_name = "SIZE")]
    pub spool_size: ByteSize,
}

/// One `--debug-info-allow` or `--debug-info-deny`: an expression for whole paths.
#[derive(Clone, Debug)]
pub struct PathRule(pub Regex);

impl FromStr for PathRule {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        whole(text).map(PathRule).map_err(|problem| ValueError::new(&problem))
    }
}

/// `--debug-info-rate`: bytes a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DebugInfoRate(pub u64);

impl FromStr for DebugInfoRate {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let ByteSize(rate) = text.parse()?;
        if rate < 64 << 10 {
            return Err(ValueError::new("64KiB or more; --debug-info-disable sends none"));
        }
        Ok(DebugInfoRate(rate))
    }
}

/// Of which executables debug information is sent.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Debug information for the Parca server")]
pub struct DebugInfoFlags {
    /// Send none
    #[arg(
        long, default_value_t = false, default_missing_value = "true", num_args = 0..=1, require_equals = true,
        action = ArgAction::Set, value_name = "BOOL"
    )]
    pub debug_info_disable: bool,

    /// Send it only of executables whose path matches; may be given several times
    #[arg(long, value_name = "REGEX")]
    pub debug_info_allow: Vec<PathRule>,

    /// Never send it of executables whose path matches; may be given several times
    #[arg(long, value_name = "REGEX")]
    pub debug_info_deny: Vec<PathRule>,

    /// Port of addresses that the server names for uploads; may be given several times
    #[arg(long, value_name = "PORT", default_value = "443")]
    pub debug_info_upload_port: Vec<u16>,

    /// Most bytes a second that it is sent with
    #[arg(long, value_name = "SIZE", default_value = "4MiB")]
    pub debug_info_rate: DebugInfoRate,

    /// Folder for what is being sent [default: that of the spool]
    #[arg(long, value_name = "DIR")]
    pub temp_dir: Option<PathBuf>,
}

impl StoreFlags {
    /// Whether there is a store.
    pub fn has_store(&self) -> bool {
        !self.store_address.host.is_empty()
    }

    /// What the flags together say wrongly.
    pub(super) fn problem(&self) -> Option<&'static str> {
        if !self.bearer_token.0.is_empty() && self.bearer_token_file.is_some() {
            return Some("--bearer-token and --bearer-token-file: give one of them");
        }
        let tls = self.insecure_skip_verify
            || self.store_ca_file.is_some()
            || self.store_client_certificate.is_some();
        if self.insecure && tls {
            return Some(
                "--insecure: without TLS there is no certificate; leave out --insecure-skip-verify, --store-ca-file and --store-client-certificate, or --insecure itself",
            );
        }
        (self.insecure_skip_verify && self.store_ca_file.is_some())
            .then_some("--insecure-skip-verify does not look at what --store-ca-file says: give one of them")
    }

    /// The spool's folder.
    pub fn spool(&self) -> PathBuf {
        self.spool_directory.clone().unwrap_or_else(|| {
            // Set by systemd (systemd.exec(5)); several are parted by colons.
            let state = std::env::var_os("STATE_DIRECTORY").unwrap_or_default();
            let first = std::env::split_paths(&state).next().filter(|path| path.is_absolute());
            first.unwrap_or_else(|| "/var/lib/bulkhead-uploader".into()).join("spool")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::Flags;

    fn parse(line: &[&str]) -> Result<StoreFlags, clap::Error> {
        Flags::parse_line([&["bulkhead-uploader"], line].concat()).map(|flags| flags.store)
    }

    #[test]
    fn addresses() {
        let address = |host: &str, port| Ok(StoreAddress { host: host.into(), port });
        assert_eq!("parca.example:7070".parse(), address("parca.example", 7070));
        assert_eq!("parca.example".parse(), address("parca.example", 443));
        assert_eq!("[::1]:80".parse(), address("::1", 80));
        assert_eq!("[::1]".parse(), address("::1", 443));
        assert_eq!("".parse(), address("", 443));
        for wrong in [":80", "a:", "a:99999", "a:0", "::1:80", "[::1", "http://a:80", "a:80/x", "a:-1"] {
            assert!(wrong.parse::<StoreAddress>().is_err(), "{wrong}");
        }
        assert_eq!("[::1]:80".parse::<StoreAddress>().unwrap().to_string(), "[::1]:80");
    }

    #[test]
    fn nothing_is_sent_unless_asked_for() {
        let flags = parse(&[]).unwrap();
        assert!(!flags.has_store() && !flags.insecure && flags.store_header.is_empty());
        assert_eq!((flags.batch_write_interval.0, flags.spool_size.0), (Duration::from_secs(10), 512 << 20));
        // Of the early agent's command lines.
        assert!(
            !parse(&["--store-address=", "--insecure", "--batch-write-interval=10s"]).unwrap().has_store()
        );
    }

    #[test]
    fn the_names_of_todays_agent_are_taken() {
        let flags = parse(&[
            "--remote-store-address=a:1",
            "--remote-store-bearer-token-file=/t",
            "--remote-store-insecure-skip-verify",
            "--remote-store-client-cert=/c",
            "--remote-store-client-key=/k",
            "--remote-store-grpc-headers=X-Scope=a=b",
            "--batch-write-interval=1m",
        ])
        .unwrap();
        assert_eq!(flags.store_address.to_string(), "a:1");
        assert!(flags.insecure_skip_verify && flags.store_client_key.is_some());
        let header = &flags.store_header[0];
        assert_eq!((header.name.as_str(), header.value.as_str()), ("x-scope", "a=b"));
        assert!(!format!("{header:?}").contains("a=b"));
        assert_eq!(flags.batch_write_interval.0, Duration::from_mins(1));
    }

    #[test]
    fn a_token_is_not_shown() {
        let flags = parse(&["--bearer-token=secret"]).unwrap();
        assert_eq!(flags.bearer_token.0, "secret");
        assert!(!format!("{flags:?}").contains("secret"));
    }

    #[test]
    fn content_is_sent_at_a_rate() {
        let rate = |text: &str| text.parse::<DebugInfoRate>().map(|rate| rate.0);
        assert_eq!(rate("1MiB"), Ok(1 << 20));
        assert!(rate("1KiB").is_err() && rate("0").is_err());
    }

    #[test]
    fn what_cannot_be_together_is_refused() {
        for line in [
            &["--bearer-token=x", "--bearer-token-file=/x"][..],
            &["--insecure", "--insecure-skip-verify"],
            &["--insecure", "--store-ca-file=/x"],
            &["--insecure-skip-verify", "--store-ca-file=/x"],
            &["--store-client-key=/x"],
            &["--store-client-certificate=/x"],
            &["--store-header=authorization=x"],
            &["--store-header=grpc-timeout=x"],
            &["--store-header=x"],
            &["--store-header=x=\n"],
            &["--store-header=a b=x"],
            &["--batch-write-interval=1ms"],
        ] {
            assert_eq!(parse(line).unwrap_err().exit_code(), 2, "{line:?}");
        }
    }
}
