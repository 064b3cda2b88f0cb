//! The forms of flags' values.

use std::{str::FromStr, time::Duration};

use thiserror::Error;

/// Shortest and longest window. Shorter ones would cost more than they show; longer ones would hold too much.
const WINDOWS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_hours(1);

/// What is wrong with a value.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{0}")]
pub struct ValueError(String);

impl ValueError {
    pub(super) fn new(text: &str) -> Self {
        ValueError(text.into())
    }
}

/// `--http-address`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HttpAddress {
    /// `:PORT`: every address of the machine.
    Every(u16),
    /// A host (a name or an address, without brackets) and a port.
    Host(String, u16),
}

impl FromStr for HttpAddress {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError("write HOST:PORT, such as 127.0.0.1:7071 or [::1]:7071, or :PORT".into());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() {
            return Ok(HttpAddress::Every(port));
        }
        let host = match host.strip_prefix('[') {
            Some(rest) => rest.strip_suffix(']').ok_or_else(wrong)?,
            None if host.contains(':') => return Err(wrong()),
            None => host,
        };
        Ok(HttpAddress::Host(host.to_owned(), port))
    }
}

/// `--profiling-duration`, in the forms of Go: `10s`, `1m30s`, `500ms`, `1.5h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ProfilingDuration(pub Duration);

impl FromStr for ProfilingDuration {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // "Leave this empty to use the defaults", says the seed.
        let duration = if text.is_empty() { Duration::from_secs(10) } else { go_duration(text)? };
        if WINDOWS.contains(&duration) {
            Ok(ProfilingDuration(duration))
        } else {
            Err(ValueError("a profile can be 100ms to 1h long".into()))
        }
    }
}

/// A duration as Go's `time.ParseDuration` reads it, without a sign.
pub(super) fn go_duration(text: &str) -> Result<Duration, ValueError> {
    let wrong = || ValueError("write a duration such as 10s, 1m30s or 500ms".into());
    let mut nanos = 0.0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let number_ends = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(number_ends);
        let number: f64 = number.parse().map_err(|_| wrong())?;
        let unit_ends = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_ends);
        nanos += number
            * match unit {
                "ns" => 1.0,
                "us" | "µs" | "μs" => 1e3,
                "ms" => 1e6,
                "s" => 1e9,
                "m" => 60e9,
                "h" => 3600e9,
                _ => return Err(wrong()),
            };
        rest = tail;
    }
    Duration::try_from_secs_f64(nanos / 1e9).map_err(|_| wrong())
}

/// A number of bytes: `1GiB`, `500MB`, `1048576`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let wrong = || ValueError("write a size such as 1GiB, 500MB or 1048576".into());
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let factor = match unit.trim_start() {
            "" | "B" => 1,
            "KB" | "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            "G" | "GiB" => 1 << 30,
            "T" | "TiB" => 1 << 40,
            _ => return Err(wrong()),
        };
        number.checked_mul(factor).map(ByteSize).ok_or_else(wrong)
    }
}

/// One `--external-label`: `KEY=VALUE`, or several with `;` between them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExternalLabels(pub Vec<(String, String)>);

impl FromStr for ExternalLabels {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let labels = text.split(';').filter(|part| !part.trim().is_empty()).map(|part| {
            let (name, value) =
                part.split_once('=').ok_or_else(|| ValueError("write KEY=VALUE;KEY=VALUE".into()))?;
            let name = name.trim();
            if !is_label_name(name) {
                let rule = "letters, digits and _, not a digit first, not __ first";
                return Err(ValueError(format!("`{name}` is no name of a label ({rule})")));
            }
            Ok((name.to_owned(), value.to_owned()))
        });
        labels.collect::<Result<_, _>>().map(ExternalLabels)
    }
}

/// Whether a label may be called so: the rule of Prometheus, names with `__` in front are its own.
fn is_label_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.starts_with("__")
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        let host = |host: &str, port| Ok(HttpAddress::Host(host.into(), port));
        assert_eq!(":7071".parse(), Ok(HttpAddress::Every(7071)));
        assert_eq!("127.0.0.1:80".parse(), host("127.0.0.1", 80));
        assert_eq!("localhost:0".parse(), host("localhost", 0));
        assert_eq!("[::1]:80".parse(), host("::1", 80));
        for wrong in ["", "7071", "host", "host:", "host:99999", "::1:80", "[::1:80", "host:-1"] {
            assert!(wrong.parse::<HttpAddress>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, millis) in
            [("10s", 10_000), ("1m30s", 90_000), ("500ms", 500), ("1.5m", 90_000), ("0.5h30m", 3_600_000)]
        {
            assert_eq!(text.parse(), Ok(ProfilingDuration(Duration::from_millis(millis))), "{text}");
        }
        assert_eq!("".parse(), Ok(ProfilingDuration(Duration::from_secs(10))));
        for wrong in ["10", "s", "10 s", "-1s", "1d", "1..5s", "0s", "99ms", "2h", "1e3s", "9999999999999h"] {
            assert!(wrong.parse::<ProfilingDuration>().is_err(), "{wrong}");
        }
        assert_eq!(go_duration("1us"), Ok(Duration::from_micros(1)));
        assert_eq!(go_duration("2µs3ns"), Ok(Duration::from_nanos(2003)));
    }

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("1048576", 1 << 20), ("1GiB", 1 << 30), ("2 MB", 2_000_000), ("3K", 3072)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for wrong in ["", "GiB", "-1", "1.5GiB", "1XB", "99999999999999TiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn label_lists() {
        let labels = |text: &str| text.parse::<ExternalLabels>().map(|labels| labels.0);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(labels("a=b;c=d"), Ok(vec![pair("a", "b"), pair("c", "d")]));
        assert_eq!(labels("a=b;"), Ok(vec![pair("a", "b")]));
        assert_eq!(labels("a=b=c; d=e f"), Ok(vec![pair("a", "b=c"), pair("d", "e f")]));
        for wrong in ["a", "=b", "1a=b", "a.b=c", "a b=c", "__name__=x", "é=x"] {
            assert!(labels(wrong).is_err(), "{wrong}");
        }
    }
}
