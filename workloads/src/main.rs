//! Builds one of the programs and prints where it is, for benches and for a look by hand:
//! `perf record -g $(cargo run -q -p workloads -- tree)`.

use std::{path::PathBuf, process::ExitCode};

use workloads::{BuildError, CallTree, Program, Start, known_cpp, known_go, known_rust, program};

const NAMES: &str = "tree, tree-bare, tree-DEPTH, cpp, go, rust, brief, forks, jit, storm, syscalls, vforks";

fn build(name: &str) -> Result<PathBuf, BuildError> {
    match name {
        "tree" => CallTree::standard(name, Start::Libc).build(),
        "tree-bare" => CallTree::standard(name, Start::Bare).build(),
        "cpp" => Ok(known_cpp()?.0),
        "go" => Ok(known_go()?.0),
        "rust" => Ok(known_rust()?.0),
        "brief" => program(Program::Brief),
        "forks" => program(Program::Forks),
        "jit" => program(Program::Jit),
        "storm" => program(Program::Storm),
        "syscalls" => program(Program::Syscalls),
        "vforks" => program(Program::Vforks),
        _ => match name.strip_prefix("tree-").and_then(|depth| depth.parse().ok()) {
            Some(recursion) => CallTree { recursion, ..CallTree::standard(name, Start::Bare) }.build(),
            None => Err(BuildError::NoSuchProgram(format!("{name}; there are {NAMES}"))),
        },
    }
}

fn main() -> ExitCode {
    let Some(name) = std::env::args().nth(1) else {
        eprintln!("usage: workloads NAME, of: {NAMES}");
        return ExitCode::from(2);
    };
    match build(&name) {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("workloads: {error}");
            ExitCode::FAILURE
        }
    }
}
