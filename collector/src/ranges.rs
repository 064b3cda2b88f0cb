//! Parts of an array: which are taken, which are free, and which will be free when nobody can be reading them any more.

use std::collections::{BTreeMap, VecDeque};

/// How long a part is left alone after its last use (nanoseconds): a BPF program that began before may still read it. It
/// runs for microseconds, but on a virtual machine its CPU may be taken away for a while.
const GRACE: u64 = 500_000_000;

/// A part of an array.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Range {
    pub(crate) first: u32,
    pub(crate) count: u32,
}

/// The parts of one array.
pub(crate) struct Ranges {
    /// First and count, without neighbours: those are one.
    free: BTreeMap<u32, u32>,
    leaving: VecDeque<(u64, Range)>,
    length: u32,
    taken: u32,
}

impl Ranges {
    /// All of an array of this length is free.
    pub(crate) fn new(length: u32) -> Self {
        let free = if length == 0 { BTreeMap::new() } else { BTreeMap::from([(0, length)]) };
        Ranges { free, leaving: VecDeque::new(), length, taken: 0 }
    }

    /// Takes the first part that is large enough.
    pub(crate) fn take(&mut self, count: u32) -> Option<Range> {
        if count == 0 {
            return Some(Range { first: 0, count: 0 });
        }
        let (first, size) = self.free.iter().find(|(_, size)| **size >= count).map(|(a, b)| (*a, *b))?;
        self.free.remove(&first);
        if size > count {
            self.free.insert(first + count, size - count);
        }
        self.taken += count;
        Some(Range { first, count })
    }

    /// Gives a part back that the programs may be reading; `now` in nanoseconds.
    pub(crate) fn release(&mut self, range: Range, now: u64) {
        if range.count > 0 {
            self.leaving.push_back((now, range));
        }
    }

    /// Gives a part back that the programs have never seen.
    pub(crate) fn give_back(&mut self, range: Range) {
        let Range { mut first, mut count } = range;
        if count == 0 {
            return;
        }
        self.taken = self.taken.saturating_sub(count);
        if let Some(behind) = self.free.remove(&(first + count)) {
            count += behind;
        }
        if let Some((&before, &size)) = self.free.range(..first).next_back()
            && before + size == first
        {
            (first, count) = (before, count + size);
        }
        self.free.insert(first, count);
    }

    /// Frees what was released long enough ago.
    pub(crate) fn settle(&mut self, now: u64) {
        while let Some((_, range)) = self.leaving.pop_front_if(|(since, _)| *since + GRACE <= now) {
            self.give_back(range);
        }
    }

    /// How much was released and is not free yet.
    pub(crate) fn leaving(&self) -> u32 {
        self.leaving.iter().map(|(_, range)| range.count).sum()
    }

    /// How much is free or will be.
    pub(crate) fn in_reach(&self) -> u32 {
        self.length - self.taken + self.leaving()
    }

    /// How much there is in all.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    /// How much is not free.
    pub(crate) fn taken(&self) -> u32 {
        self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_back_after_a_while_and_grow_together() {
        let mut ranges = Ranges::new(10);
        let [a, b, c] = [3, 3, 4].map(|count| ranges.take(count).unwrap());
        assert_eq!((a.first, b.first, c.first), (0, 3, 6));
        assert_eq!(ranges.take(1), None);
        ranges.release(a, 5);
        ranges.settle(5);
        assert_eq!((ranges.take(1), ranges.taken()), (None, 10));
        ranges.settle(5 + GRACE);
        assert_eq!(ranges.taken(), 7);
        ranges.give_back(c);
        assert_eq!(ranges.take(5), None, "what is free does not lie together");
        ranges.give_back(b);
        assert_eq!(ranges.take(10), Some(Range { first: 0, count: 10 }));
    }

    #[test]
    fn parts_never_overlap() {
        let mut ranges = Ranges::new(1000);
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            u32::try_from(state % below).unwrap()
        };
        let mut owner = vec![None; 1000];
        let mut taken: Vec<Range> = Vec::new();
        for step in 0..5000 {
            if random(2) == 0 {
                if let Some(range) = ranges.take(1 + random(60)) {
                    for place in &mut owner[range.first as usize..(range.first + range.count) as usize] {
                        assert_eq!(place.replace(step), None);
                    }
                    taken.push(range);
                }
            } else if !taken.is_empty() {
                let range = taken.swap_remove(random(taken.len() as u64) as usize);
                owner[range.first as usize..(range.first + range.count) as usize].fill(None);
                ranges.give_back(range);
            }
            assert_eq!(ranges.taken() as usize, owner.iter().flatten().count());
        }
    }

    #[test]
    fn nothing_is_a_part_too() {
        let mut ranges = Ranges::new(0);
        let nothing = ranges.take(0).unwrap();
        ranges.release(nothing, 0);
        ranges.give_back(nothing);
        ranges.settle(u64::MAX);
        assert_eq!((ranges.take(1), ranges.taken()), (None, 0));
    }
}
