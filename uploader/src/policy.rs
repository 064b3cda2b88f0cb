//! What the unprivileged half keeps of what it was started with: nothing (promise W9).

use thiserror::Error;
use tracing::warn;

/// Why the uploader does not run.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A capability could not be given up.
    #[error(transparent)]
    Capabilities(#[from] security::CapabilityError),
    /// An attribute of the process could not be set.
    #[error(transparent)]
    Process(#[from] security::ProcessError),
}

/// Gives up every privilege, for good, and says so if there was one to give up. To be called before there is another
/// thread and before anything is read.
pub fn drop_everything() -> Result<(), PolicyError> {
    let had = security::effective()?;
    if rustix::process::getuid().is_root() {
        warn!("started as root: give the uploader a user of its own; it goes on without any capability");
    } else if !had.is_empty() {
        warn!("started with capabilities, which it does not need; they are dropped");
    }
    security::keep_exactly(&[])?;
    security::harden()?;
    Ok(())
}
