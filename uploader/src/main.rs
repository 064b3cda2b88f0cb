//! The program `bulkhead-uploader`: see the library.

use std::process::ExitCode;

use uploader::{app, flags::Flags};

fn main() -> ExitCode {
    let flags = Flags::parse_line(std::env::args_os()).unwrap_or_else(|error| error.exit());
    match app::run(&flags) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead-uploader: {error}");
            ExitCode::FAILURE
        }
    }
}
