//! Waiting for a condition, never for a time.

use std::{
    thread::sleep,
    time::{Duration, Instant},
};

/// How often a condition is looked at.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits until `condition` gives something; panics with `what` when it did not within `seconds`.
pub fn wait_for<T>(what: &str, seconds: u64, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        // It is looked at once more after that time: this process may have stood still itself.
        let is_over = start.elapsed() >= Duration::from_secs(seconds);
        if let Some(value) = condition() {
            return value;
        }
        assert!(!is_over, "not within {seconds} s: {what}");
        sleep(PAUSE);
    }
}
