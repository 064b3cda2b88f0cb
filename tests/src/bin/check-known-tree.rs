//! For `script/test-kernels`: builds the program with the known tree, and checks a profile of it that was taken elsewhere.
//!
//! `check-known-tree program` prints the program's path; `check-known-tree FILE` checks the profile in the file.

use std::process::ExitCode;

use tests::{pprof::Profile, statistics::compare};
use workloads::{CallTree, Start, WITHOUT_FRAME_POINTERS};

/// Fewer samples than this in ten seconds of an emulated machine tell nothing.
const LEAST: i64 = 200;

fn main() -> ExitCode {
    let argument = std::env::args().nth(1).unwrap_or_default();
    let result = if argument == "program" { program() } else { check(&argument) };
    match result {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn tree() -> CallTree {
    CallTree::standard("kernel-tree", Start::Libc)
}

fn program() -> Result<String, String> {
    let path = tree().build_with(WITHOUT_FRAME_POINTERS).map_err(|error| error.to_string())?;
    Ok(path.display().to_string())
}

fn check(file: &str) -> Result<String, String> {
    let bytes = std::fs::read(file).map_err(|error| format!("cannot read {file}: {error}"))?;
    let profile = Profile::read(&bytes)?;
    let total = profile.total();
    if total < LEAST {
        return Err(format!("{total} samples are too few"));
    }
    let names = |stack: &tests::pprof::Stack| -> Vec<String> {
        stack.user().map(|frame| frame.name.clone()).collect()
    };
    let user = profile.count(|stack| !names(stack).is_empty());
    let rooted = profile.count(|stack| names(stack).last().is_some_and(|name| name == "_start"));
    let expected = tree().expected();
    let counts: Vec<i64> =
        expected.iter().map(|(stack, _)| profile.count(|found| names(found).starts_with(stack))).collect();
    let shares: Vec<f64> = expected.iter().map(|(_, share)| *share).collect();
    let comparison = compare(&counts, &shares);
    let elsewhere = user - counts.iter().sum::<i64>();
    let summary = format!(
        "{total} samples, {rooted} of {user} whole, {elsewhere} in no expected stack, distance to the truth {:.3} \
         where chance gives {:.3}",
        comparison.distance, comparison.expected_distance
    );
    // An emulated machine is interrupted where it pleases: a few stacks may lie in main or at a function's edge.
    let right = rooted == user && elsewhere <= 2 + user / 100 && comparison.agrees();
    if right { Ok(summary) } else { Err(format!("{summary}\n{}", profile.dump())) }
}
