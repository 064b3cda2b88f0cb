//! Log lines that others can cause as often as they like: few of them, and a count of the rest. Nobody is to fill the disk.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// So many lines at once, and one more each time that this has passed.
const LINES_AT_ONCE: u32 = 10;
const NEXT_LINE: Duration = Duration::from_secs(1);

/// How many lines of a kind may still be said.
#[derive(Debug)]
pub struct Sparing(Mutex<Allowance>);

impl Sparing {
    /// Ten at once, and one a second.
    #[must_use]
    pub const fn new() -> Self {
        Sparing(Mutex::new(Allowance { left: LINES_AT_ONCE, filled: None, left_out: 0 }))
    }

    /// Whether a line may be said now: how many were left out before it.
    pub fn take(&self, now: Instant) -> Option<u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take(now)
    }
}

impl Default for Sparing {
    fn default() -> Self {
        Sparing::new()
    }
}

#[derive(Debug)]
struct Allowance {
    left: u32,
    filled: Option<Instant>,
    left_out: u64,
}

impl Allowance {
    fn take(&mut self, now: Instant) -> Option<u64> {
        let filled = *self.filled.get_or_insert(now);
        let earned = now.saturating_duration_since(filled).as_secs() / NEXT_LINE.as_secs();
        if earned > 0 {
            self.left =
                u32::try_from(earned).unwrap_or(u32::MAX).saturating_add(self.left).min(LINES_AT_ONCE);
            self.filled = Some(now);
        }
        if self.left == 0 {
            self.left_out += 1;
            return None;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_others_cause_are_few_and_the_others_counted() {
        let (lines, start) = (Sparing::new(), Instant::now());
        // Ten thousand a second, for a minute.
        let said: Vec<u64> =
            (0..600_000).filter_map(|line| lines.take(start + Duration::from_micros(100 * line))).collect();
        assert_eq!(said.len(), 10 + 59);
        let left_out = lines.0.lock().unwrap().left_out;
        assert_eq!(said.iter().sum::<u64>() + left_out + 69, 600_000);
        // A quiet time earns no more than there was at first.
        let later = start + Duration::from_hours(1);
        assert_eq!((0..1000).filter(|_| lines.take(later).is_some()).count(), 10);
    }
}
