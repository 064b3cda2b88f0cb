//! What profiles say, compared with what is known of the profiled programs: one pair of halves profiles the whole
//! machine, and every case brings programs of its own.

#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

mod churn;
mod files;
mod format;
mod go;
mod jit;
mod kernel;
mod places;
mod processes;
mod remapped;
mod truth;
mod unwinding;

use std::{
    process::ExitCode,
    sync::{Arc, PoisonError, RwLock},
};

use libtest_mimic::{Arguments, Trial};
use tests::system::{Options, System};

/// A case: its name, and what it does.
type Case = (&'static str, fn(&System));

/// Cases beside which there is no other: real-time processes take a CPU from everybody, the halves among them.
const ALONE: [&str; 1] = ["short_processes_against_perf"];

/// More at once would leave each case's programs too little of two cores.
const CASES_AT_ONCE: usize = 4;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads.get_or_insert(CASES_AT_ONCE);
    let cases: Vec<Case> = [
        truth::CASES,
        unwinding::CASES,
        remapped::CASES,
        kernel::CASES,
        processes::CASES,
        files::CASES,
        places::CASES,
        jit::CASES,
        go::CASES,
        format::CASES,
        churn::CASES,
    ]
    .concat();
    if arguments.list {
        let trials = cases.into_iter().map(|(name, _)| Trial::test(name, || Ok(()))).collect();
        return libtest_mimic::run(&arguments, trials).exit_code();
    }
    // The compiler is large, and its rows would keep others' waiting.
    let _ = workloads::with_lld();
    let system = Arc::new(System::start(Options { store: true, ..Options::default() }));
    let place = Arc::new(RwLock::new(()));
    let trials = cases
        .into_iter()
        .map(|(name, case)| {
            let (system, place) = (Arc::clone(&system), Arc::clone(&place));
            Trial::test(name, move || {
                if ALONE.contains(&name) {
                    let _alone = place.write().unwrap_or_else(PoisonError::into_inner);
                    case(&system);
                } else {
                    let _among_others = place.read().unwrap_or_else(PoisonError::into_inner);
                    case(&system);
                }
                Ok(())
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if conclusion.has_failed() {
        system.print_logs();
    }
    conclusion.exit_code()
}
