//! When `/proc` is read again, after records were lost: in pieces, so that no sample waits for all of it, and the less often the longer it
//! takes. Who loses records on purpose, beside a thousand processes that take long to look at, has a share of the time and no more.

use std::time::{Duration, Instant};

/// How long a piece takes, and the last process in it.
const PIECE: Duration = Duration::from_millis(10);
/// From the end of one reading to the next, at least.
const EVERY: Duration = Duration::from_secs(5);
/// And so many times as long as it took.
const PAUSE: u32 = 20;

/// What is left of a reading, and when the next may begin.
#[derive(Default)]
pub(crate) struct Rescan {
    left: Vec<u32>,
    took: Duration,
    not_before: Option<Instant>,
}

impl Rescan {
    /// Whether a reading is under way.
    pub(crate) fn is_under_way(&self) -> bool {
        !self.left.is_empty()
    }

    /// Whether a reading may begin.
    pub(crate) fn may_begin(&self, now: Instant) -> bool {
        !self.is_under_way() && self.not_before.is_none_or(|not_before| now >= not_before)
    }

    /// Begins a reading of these processes.
    pub(crate) fn begin(&mut self, pids: Vec<u32>) {
        self.left = pids;
        self.took = Duration::ZERO;
    }

    /// The next process of the piece that has begun then.
    pub(crate) fn next(&mut self, begun: Instant) -> Option<u32> {
        if begun.elapsed() < PIECE { self.left.pop() } else { None }
    }

    /// The piece is over; so is the reading, if nothing is left.
    pub(crate) fn pause(&mut self, begun: Instant) {
        let now = Instant::now();
        self.took += now.duration_since(begun);
        if self.left.is_empty() {
            self.not_before = Some(now + EVERY + self.took * PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_pieces_and_then_not_for_a_while() {
        let mut rescan = Rescan::default();
        let start = Instant::now();
        assert!(rescan.may_begin(start) && !rescan.is_under_way());
        rescan.begin((0..100).collect());
        let (mut seen, mut pieces) = (0, 0);
        while rescan.is_under_way() {
            assert!(!rescan.may_begin(Instant::now() + EVERY * 100));
            let begun = Instant::now();
            while rescan.next(begun).is_some() {
                seen += 1;
                std::thread::sleep(PIECE / 4);
            }
            rescan.pause(begun);
            pieces += 1;
        }
        assert_eq!(seen, 100);
        assert!(pieces >= 10, "{pieces}");
        // It took a quarter of a second at least.
        assert!(!rescan.may_begin(start + EVERY + PIECE * 25 * PAUSE));
        assert!(rescan.may_begin(Instant::now() + EVERY + start.elapsed() * PAUSE));
    }
}
