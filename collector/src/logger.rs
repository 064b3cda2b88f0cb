//! Log lines on standard error.

use std::{fmt::Arguments, io::Write, time::Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use security::Sparing;

struct Logger;

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        // The libraries' own chatter helps nobody; their warnings do.
        metadata.target().starts_with("bulkhead") || metadata.level() <= Level::Warn
    }

    fn log(&self, record: &Record) {
        if self.enabled(record.metadata()) {
            let level = match record.level() {
                Level::Error => "error",
                Level::Warn => "warning",
                Level::Info => "info",
                Level::Debug | Level::Trace => "debug",
            };
            let text = one_line(&record.args().to_string());
            // A log that cannot be written is no reason to stop.
            let _ = writeln!(std::io::stderr().lock(), "bulkhead-collector: {level}: {text}");
        }
    }

    fn flush(&self) {}
}

/// What others chose (a name, a path, a release) must not write lines or terminal codes of its own.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Logs what others can cause as often as they like: not all of it, but how many lines were left out.
pub(crate) fn sparingly(level: Level, line: Arguments) {
    static LINES: Sparing = Sparing::new();
    match LINES.take(Instant::now()) {
        Some(0) => log::log!(level, "{line}"),
        Some(left_out) => {
            log::log!(level, "{line} (before this, {left_out} such lines were left out)");
        }
        None => {}
    }
}

/// Sets the logger of this process.
pub(crate) fn start(level: LevelFilter) {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_chose_stays_on_its_line() {
        assert_eq!(one_line("a name: größe ✓ \"<b>\""), "a name: größe ✓ \"<b>\"");
        let hostile = "a\n\r\t\0\x07\x08\x1b[31m\x1b]0;title\x07\x7f\u{85}\u{9b}2J";
        assert_eq!(one_line(hostile).chars().filter(|c| *c == '\u{fffd}').count(), 12);
        assert!(!one_line(hostile).contains(char::is_control));
    }
}
