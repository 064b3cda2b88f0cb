//! What a process may become, and who may look into it.

use rustix::{
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
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
/// user, and leaves no core dump.
pub fn harden() -> Result<(), ProcessError> {
    let error = |action| move |source| ProcessError { action, source };
    set_no_new_privs(true).map_err(error("set no_new_privs"))?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).map_err(error("make this process undumpable"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(error("forbid core dumps"))
}
