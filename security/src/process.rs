//! What a process may become, and who may look into it.

use rustix::{
    fs::Mode,
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit, umask},
    thread::set_no_new_privs,
};
use thiserror::Error;

/// An attribute of this process could not be set.
#[derive(Debug, Error)]
#[error("cannot {action}: {source}")]
pub struct ProcessError {
    action: &'static str,
    source: rustix::io::Errno,
}

/// Makes this process one that cannot gain privileges by an exec, cannot be traced or looked into by others of its
/// user, leaves no core dump, and makes files that are its own user's alone.
pub fn harden() -> Result<(), ProcessError> {
    if cfg!(feature = "no-harden") {
        return Ok(());
    }
    // Whatever mode something is made with.
    umask(Mode::from_raw_mode(0o077));
    let error = |action| move |source| ProcessError { action, source };
    set_no_new_privs(true).map_err(error("set no_new_privs"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(error("make this process undumpable"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(error("forbid core dumps"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// Run by the test below in a process of its own: what it does cannot be undone.
    #[test]
    #[ignore = "run by what_a_hardened_process_is"]
    fn harden_and_say_what_it_is() {
        harden().unwrap();
        // No new privileges: of a thread, and of those that it starts.
        print!("{}", std::fs::read_to_string("/proc/thread-self/status").unwrap());
        print!("{}", std::fs::read_to_string("/proc/self/limits").unwrap());
        println!("{:?}", rustix::process::dumpable_behavior().unwrap());
    }

    #[test]
    fn what_a_hardened_process_is() {
        let line = ["--exact", "process::tests::harden_and_say_what_it_is", "--ignored", "--nocapture"];
        let output = Command::new(std::env::current_exe().unwrap()).args(line).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        for expected in ["NoNewPrivs: 1", "Umask: 0077", "Max core file size 0 0 bytes", "NotDumpable"] {
            assert!(lines.iter().any(|line| line == expected), "{expected}: {text}");
        }
    }
}
