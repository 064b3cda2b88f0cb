//! Work that others can cause as often as they like: so much at once, and after that a share of the time.

use std::time::{Duration, Instant};

/// What was spent, of what is not forgotten yet.
#[derive(Debug)]
pub struct TimeShare {
    at_once: Duration,
    /// One part of the time in so many.
    parts: u32,
    spent: Duration,
    as_of: Instant,
}

impl TimeShare {
    /// So much at once, and after that one part of the time in so many.
    pub fn new(at_once: Duration, parts: u32) -> Self {
        TimeShare { at_once, parts, spent: Duration::ZERO, as_of: Instant::now() }
    }

    /// What is not forgotten now.
    pub fn spent(&self, now: Instant) -> Duration {
        self.spent.saturating_sub(now.saturating_duration_since(self.as_of) / self.parts)
    }

    /// How long the next must wait; nothing, if it may begin now.
    pub fn wait(&self, now: Instant) -> Duration {
        self.spent(now).saturating_sub(self.at_once) * self.parts
    }

    /// It has taken so long, and is over now.
    pub fn spend(&mut self, took: Duration, now: Instant) {
        self.spent = self.spent(now) + took;
        self.as_of = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_share() {
        let (at_once, parts) = (Duration::from_secs(2), 10);
        let mut share = TimeShare::new(at_once, parts);
        let begun = Instant::now();
        let (mut now, mut spent, each) = (begun, Duration::ZERO, Duration::from_millis(700));
        while now.duration_since(begun) < Duration::from_mins(10) {
            now += share.wait(now) + each;
            share.spend(each, now);
            spent += each;
        }
        let exact = Duration::from_mins(10) / parts + at_once;
        assert!(spent + each >= exact && spent <= exact + 2 * each, "{spent:?}");
        // Who is seldom there need not wait.
        let mut share = TimeShare::new(at_once, parts);
        for hour in 0..100 {
            let now = begun + Duration::from_hours(1 + hour);
            assert_eq!(share.wait(now), Duration::ZERO);
            share.spend(at_once, now);
        }
    }
}
