//! Warnings that profiled processes can cause as often as they like, by what they have mapped: few, short, and the rest counted.

use std::{fmt::Arguments, time::Instant};

use security::Sparing;
use tracing::warn;

/// Longest line, in characters: a path alone can have 4,096.
const MAX_LINE: usize = 600;

/// Warns of what is wrong with a file or a process, unless that was just done ten times; how many lines were left out is said then.
pub(crate) fn warn_sparingly(line: Arguments) {
    static LINES: Sparing = Sparing::new();
    match LINES.take(Instant::now()) {
        Some(0) => warn!("{}", shortened(&line.to_string())),
        Some(left_out) => warn!(
            "{} (before this, {left_out} lines about files were left out)",
            shortened(&line.to_string())
        ),
        None => {}
    }
}

/// The line, without its middle if it is too long: what went wrong is at the end.
fn shortened(line: &str) -> String {
    let length = line.chars().count();
    if length <= MAX_LINE {
        return line.to_owned();
    }
    let begin: String = line.chars().take(MAX_LINE / 2).collect();
    let end: String = line.chars().skip(length - MAX_LINE / 2).collect();
    format!("{begin}...{end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_keeps_its_ends() {
        assert_eq!(shortened("cannot read /x: broken"), "cannot read /x: broken");
        let long = format!("cannot read /{}: broken", "ä".repeat(4000));
        let short = shortened(&long);
        assert_eq!(short.chars().count(), MAX_LINE + 3);
        assert!(short.starts_with("cannot read /ä") && short.ends_with("ä: broken"), "{short}");
    }
}
