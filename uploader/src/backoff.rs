//! How long to wait before the next try: longer and longer, and never as long as others do, so that a fleet whose store was away does not
//! come back to it at one time.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Pauses after failures that follow on each other.
#[derive(Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    most: Duration,
}

impl Backoff {
    /// From the first pause, at most, to the longest.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, most: first }
    }

    /// It works again: the next failure is the first.
    pub(crate) fn reset(&mut self) {
        self.most = self.first;
    }

    /// The next pause: anything from half of what it may be at most.
    pub(crate) fn next(&mut self) -> Duration {
        // The seed of a hash map is random, and there is no need for better.
        let random = RandomState::new().hash_one(0) % 1000;
        let half = self.most / 2;
        let pause = half + half.mul_f64(random as f64 / 1000.0);
        self.most = (self.most * 2).min(self.longest);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_mins(1);

    #[test]
    fn pauses_grow_to_a_bound_and_differ() {
        let pauses = |_| {
            let mut backoff = Backoff::new(FIRST, LONGEST);
            (0..12).map(|_| backoff.next()).collect::<Vec<_>>()
        };
        let all: Vec<_> = (0..20).map(pauses).collect();
        for pauses in &all {
            assert!((FIRST / 2..=FIRST).contains(&pauses[0]), "{pauses:?}");
            assert!(pauses[8..].iter().all(|pause| (LONGEST / 2..=LONGEST).contains(pause)), "{pauses:?}");
        }
        let mut lasts: Vec<_> = all.iter().map(|pauses| pauses[11]).collect();
        lasts.dedup();
        assert!(lasts.len() > 10, "{lasts:?}");
        let mut backoff = Backoff::new(FIRST, LONGEST);
        while backoff.next() < LONGEST / 2 {}
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
