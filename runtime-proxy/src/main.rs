//! Holds the socket of a container runtime in the uploader's place, for whoever may open that is as good as root: it can start a container
//! with the whole machine in it. What comes through here are lists of pods and containers, field by field, and nothing else: calls that
//! start, change, enter or inspect anything do not exist on this side, nor do fields that may hold secrets (environment, command line,
//! annotations, mounts).

mod cri;
mod docker;
mod flags;
mod policy;
mod serve;

use std::process::ExitCode;

use flags::{Command, Flags};
use tokio::net::UnixListener;

fn main() -> ExitCode {
    match flags::parse(std::env::args_os().skip(1)) {
        Ok(Command::Print(text)) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Ok(Command::Run(flags)) => match run(&flags) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say(&error);
                ExitCode::FAILURE
            }
        },
        Err(error) => {
            say(&error);
            ExitCode::from(2)
        }
    }
}

/// A line of the log.
fn say(text: &dyn std::fmt::Display) {
    eprintln!("bulkhead-runtime-proxy: {text}");
}

fn run(flags: &Flags) -> Result<(), Box<dyn std::error::Error>> {
    let user = security::uid_of(&flags.user)?;
    policy::drop_privileges()?;
    let supervisor = security::Supervisor::of_environment()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = security::listen_privately(&flags.socket, |path| UnixListener::bind(path))?;
        let (terminate, interrupt) = serve::signals()?;
        // From here on no file can be opened, nor anything but a Unix socket.
        security::allow_only(policy::CALLS)?;
        say(&format_args!(
            "passing on lists of {} to user {} ({user}) at {}",
            flags.runtime.display(),
            flags.user,
            flags.socket.display()
        ));
        supervisor.ready();
        serve::run(listener, &flags.runtime, user, terminate, interrupt).await;
        supervisor.stopping();
        Ok(())
    })
}
