//! The privileged half of Bulkhead: loads BPF programs, samples stacks, reads `/proc`, and passes raw samples through
//! a Unix socket. Nothing else: no network, no ELF of a profiled process, no names, no policy.

#[cfg(all(
    any(
        feature = "no-peer-check",
        feature = "no-fence",
        feature = "no-frame-check",
        feature = "no-queue-bounds"
    ),
    not(debug_assertions)
))]
compile_error!("these features are for script/test-layers: what is built for use has the whole wall");

mod address_space;
mod cgroups;
mod counters;
mod executables;
mod fence;
mod flags;
mod found;
mod kernel_events;
mod kernel_symbols;
mod layout;
mod link;
mod logger;
mod mapped_code;
mod mapping_list;
mod patience;
mod perf_map;
mod policy;
mod proc_text;
mod processes;
mod procfs;
mod profiler;
mod programs;
mod ranges;
mod registry;
mod rescan;
mod reused;
mod rule_store;
mod samples;
mod serve;
mod session;
mod setup;
mod shared_array;
mod skipped;
mod socket;
mod spaces;
mod stacks;
mod unwind_tables;
mod vdso;
mod waiting;

use std::process::ExitCode;

use flags::Command;

/// What `sysexits.h` calls a temporary failure: start me again.
const EXIT_START_AGAIN: u8 = 75;

fn main() -> ExitCode {
    let flags = match flags::parse(std::env::args_os().skip(1)) {
        Ok(Command::Run(flags)) => flags,
        Ok(Command::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            eprintln!("bulkhead-collector: {error}");
            return ExitCode::from(2);
        }
    };
    logger::start(flags.log_level);
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the event loop: {error}"))
        .and_then(|runtime| {
            runtime.block_on(async {
                let ready = setup::start(&flags).map_err(|error| error.to_string())?;
                serve::run(ready).await.map_err(|error| error.to_string())
            })
        });
    match outcome {
        Ok(serve::Outcome::Stopped) => ExitCode::SUCCESS,
        Ok(serve::Outcome::StartAgain(reason)) => {
            log::info!("{reason}: to be started again (exit status {EXIT_START_AGAIN})");
            ExitCode::from(EXIT_START_AGAIN)
        }
        Err(error) => {
            log::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
