//! Log lines on standard error.

use std::io::Write;

use log::{Level, LevelFilter, Log, Metadata, Record};

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
            // What a process chose (a name, a path) must not write lines or terminal codes of its own.
            let text: String = record
                .args()
                .to_string()
                .chars()
                .map(|c| if c.is_control() { '\u{fffd}' } else { c })
                .collect();
            // A log that cannot be written is no reason to stop.
            let _ = writeln!(std::io::stderr().lock(), "bulkhead-collector: {level}: {text}");
        }
    }

    fn flush(&self) {}
}

/// Sets the logger of this process.
pub(crate) fn start(level: LevelFilter) {
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(level);
    }
}
