//! The program `bulkhead-uploader`: see the library.

use std::process::ExitCode;

use uploader::{app, check, flags::Flags};

fn main() -> ExitCode {
    let mut line: Vec<_> = std::env::args_os().collect();
    let checks = line.get(1).is_some_and(|word| word == "check");
    if checks {
        line.remove(1);
    }
    let flags = Flags::parse_line(line).unwrap_or_else(|error| error.exit());
    match if checks { check::run(&flags) } else { app::run(&flags) } {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-uploader: {error}");
            ExitCode::FAILURE
        }
    }
}
