//! How long it may take to read the unwind information of one executable.

use std::time::{Duration, Instant};

use super::sections::WHAT;
use crate::ObjectError;

/// Work between two looks at the clock: about 500 functions, which take a millisecond.
const LOOK: usize = 64 * 1024;

/// The time that is left. A forged file can have each of a million functions begin with a thousand instructions, or one
/// function that a million others interrupt; work is what such things have in common, counted in bytes of instructions.
pub(super) struct Budget {
    deadline: Instant,
    until_look: usize,
}

impl Budget {
    pub(super) fn new(time: Duration) -> Self {
        Budget { deadline: Instant::now() + time, until_look: LOOK }
    }

    /// Counts work that was done.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), ObjectError> {
        if let Some(left) = self.until_look.checked_sub(bytes) {
            self.until_look = left;
            return Ok(());
        }
        self.until_look = LOOK;
        if Instant::now() > self.deadline { Err(ObjectError::TooMuchWork(WHAT)) } else { Ok(()) }
    }
}
