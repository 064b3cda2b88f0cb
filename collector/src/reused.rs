//! Addresses that lately came to show something else: a library is mapped where another one was a moment ago.
//!
//! The kernel tells of what is mapped, not of what is unmapped, and the BPF programs hear of it some milliseconds later. Until then
//! they take such an address for one in what was there before. So it is remembered which stacks they may have got wrong, and such
//! addresses are hidden from them for a while: what changes once is likely to change again, and a stack that meets memory unknown
//! to the programs is unwound in this process, where everything is in the order of time.

/// Most areas that are remembered of one address space.
const MAX_AREAS: usize = 256;
/// How long they stay hidden after the last change (nanoseconds).
const HIDDEN_FOR: u64 = 2_000_000_000;

/// The areas of one address space, the oldest first.
#[derive(Clone, Default)]
pub(crate) struct Reused(Vec<Area>);

#[derive(Clone, Copy)]
struct Area {
    start: u64,
    end: u64,
    /// Since when the programs do not see it (nanoseconds); `None`: they still see what was there before.
    hidden: Option<u64>,
    /// Until when; `None`: it has changed since the programs were last shown anything.
    until: Option<u64>,
}

impl Reused {
    /// These addresses show something else from now on.
    pub(crate) fn add(&mut self, start: u64, end: u64) {
        if let Some(area) = self.0.iter_mut().find(|area| area.start <= start && end <= area.end) {
            area.until = None;
            return;
        }
        if self.0.len() >= MAX_AREAS {
            self.0.remove(0);
        }
        self.0.push(Area { start, end, hidden: None, until: None });
    }

    /// Whether something of these addresses is to be hidden from the programs.
    pub(crate) fn hides(&self, start: u64, end: u64) -> bool {
        self.0.iter().any(|area| area.start < end && start < area.end)
    }

    /// The programs have been shown the address space as it is, without what is hidden.
    pub(crate) fn shown(&mut self, now: u64) {
        for area in &mut self.0 {
            area.hidden.get_or_insert(now);
            area.until.get_or_insert(now.saturating_add(HIDDEN_FOR));
        }
    }

    /// Forgets what has not changed for a while; returns whether there was something.
    pub(crate) fn settle(&mut self, now: u64) -> bool {
        let before = self.0.len();
        self.0.retain(|area| area.until.is_none_or(|until| now < until));
        self.0.len() < before
    }

    /// Whether the programs took an address, at this time, for one in what was there before.
    pub(crate) fn was_mistaken(&self, address: u64, at: u64) -> bool {
        self.0.iter().any(|area| {
            (area.start..area.end).contains(&address) && area.hidden.is_none_or(|hidden| at <= hidden)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_mistaken_until_it_is_hidden() {
        let mut reused = Reused::default();
        reused.add(0x2000, 0x3000);
        assert!(reused.was_mistaken(0x2fff, 5) && !reused.was_mistaken(0x3000, 5));
        assert!(reused.hides(0x1000, 0x2001) && !reused.hides(0x1000, 0x2000));
        reused.shown(10);
        reused.shown(20);
        assert!(reused.was_mistaken(0x2000, 10) && !reused.was_mistaken(0x2000, 11));
        // The next one in its place is nobody's mistake, and keeps it hidden.
        reused.add(0x2000, 0x2800);
        assert!(!reused.was_mistaken(0x2000, 30) && !reused.settle(20 + HIDDEN_FOR));
        reused.shown(40);
        assert!(!reused.settle(39 + HIDDEN_FOR) && reused.settle(40 + HIDDEN_FOR));
        assert!(!reused.hides(0, u64::MAX));
    }

    #[test]
    fn there_is_a_bound() {
        let mut reused = Reused::default();
        (0..1000).for_each(|i| reused.add(i * 0x1000, i * 0x1000 + 0x1000));
        assert_eq!(reused.0.len(), MAX_AREAS);
        assert!(reused.was_mistaken(999 * 0x1000, 0));
    }
}
