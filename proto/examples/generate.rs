//! Writes the Rust code of every .proto file into the folder given as the only argument. Run by `script/build-proto`,
//! and by the test that compares.

use std::{env, path::Path, process::ExitCode};

#[path = "../generate.rs"]
mod generate;

use generate::generate;

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1) else {
        eprintln!("generate: name the folder to write to");
        return ExitCode::from(2);
    };
    match generate(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("generate: {error}");
            ExitCode::FAILURE
        }
    }
}
