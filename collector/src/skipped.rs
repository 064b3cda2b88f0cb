//! The cgroups that the BPF programs do not sample, since the uploader has no use for them: the keys that their samples
//! would have, in memory that the programs look into before anything else.
//!
//! Which cgroups those are is kept by [`Cgroups`](crate::cgroups::Cgroups); a key comes here with a sample of theirs. It stays
//! for as long only as the answer is good of whose it is: where a key is made of an address in the kernel, another set of
//! cgroups may get it, and nobody would notice as long as no sample has it. After that one sample comes through, and whose
//! it is is looked at again.

use std::collections::HashMap;

use records::{FREE_SKIP, SKIP_PROBES, skip_slot};

use crate::shared_array::SharedArray;

/// The keys, as the programs see them and with what they need not know.
pub(crate) struct Skipped {
    slots: SharedArray<u64>,
    keys: HashMap<u64, Place>,
    /// Times that a key found no room.
    pub(crate) no_room: u64,
}

struct Place {
    slot: u32,
    /// In nanoseconds.
    until: u64,
}

impl Skipped {
    /// None yet.
    pub(crate) fn new(slots: SharedArray<u64>) -> Self {
        Skipped { slots, keys: HashMap::new(), no_room: 0 }
    }

    /// Has samples with this key dropped until then (in nanoseconds).
    pub(crate) fn skip(&mut self, key: u64, until: u64) {
        if let Some(place) = self.keys.get_mut(&key) {
            place.until = until;
            return;
        }
        let free = |slot: &u32| matches!(self.slots.get(*slot), Some(0 | FREE_SKIP));
        let slot = (0..SKIP_PROBES).map(|probe| skip_slot(key, probe)).find(free);
        match slot {
            Some(slot) if key != 0 && key != FREE_SKIP => {
                self.slots.publish(slot, key);
                self.keys.insert(key, Place { slot, until });
            }
            _ => self.no_room += 1,
        }
    }

    /// Lets samples through of what is skipped long enough.
    pub(crate) fn expire(&mut self, now: u64) {
        let Skipped { slots, keys, .. } = self;
        keys.retain(|_, place| {
            let stays = now < place.until;
            if !stays {
                free(slots, place.slot);
            }
            stays
        });
    }

    /// Nothing is skipped any more.
    pub(crate) fn clear(&mut self) {
        self.expire(u64::MAX);
    }
}

/// Frees a place. One behind which nothing lies is as if it had never been used, and so are those before it that are free: else
/// the programs would look through all that was ever skipped.
fn free(slots: &SharedArray<u64>, slot: u32) {
    let last = slots.len() - 1;
    let next = if slot == last { 0 } else { slot + 1 };
    if slots.get(next) != Some(0) {
        slots.publish(slot, FREE_SKIP);
        return;
    }
    let mut at = slot;
    loop {
        slots.publish(at, 0);
        at = if at == 0 { last } else { at - 1 };
        if slots.get(at) != Some(FREE_SKIP) {
            break;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use records::SKIP_BITS;

    use super::*;

    fn skipped() -> Skipped {
        Skipped::new(SharedArray::unshared(1 << SKIP_BITS))
    }

    /// As the BPF program would find it.
    fn finds(skipped: &Skipped, key: u64) -> bool {
        records::is_skipped(key, |slot| skipped.slots.get(slot))
    }

    fn used(skipped: &Skipped) -> usize {
        (0..skipped.slots.len()).filter(|slot| skipped.slots.get(*slot) != Some(0)).count()
    }

    /// Keys that fall on the same place, near the end of the table.
    fn same_place() -> impl Iterator<Item = u64> {
        (1..).filter(|key| skip_slot(*key, 0) == (1 << SKIP_BITS) - 3)
    }

    #[test]
    fn a_key_is_skipped_until_its_time_is_over() {
        let mut skipped = skipped();
        assert!(!finds(&skipped, 7));
        skipped.skip(7, 10);
        skipped.skip(8, 20);
        assert!(finds(&skipped, 7) && finds(&skipped, 8) && !finds(&skipped, 9));
        skipped.expire(9);
        assert!(finds(&skipped, 7));
        skipped.expire(10);
        assert!(!finds(&skipped, 7) && finds(&skipped, 8));
        // Looked at again, and still to be skipped; then a second time while it is.
        skipped.skip(7, 30);
        skipped.skip(7, 40);
        skipped.expire(30);
        assert!(finds(&skipped, 7) && !finds(&skipped, 8));
        assert_eq!((skipped.keys.len(), used(&skipped)), (1, 1));
        skipped.clear();
        assert!(!finds(&skipped, 7));
        assert_eq!((skipped.keys.len(), used(&skipped)), (0, 0));
    }

    #[test]
    fn what_lies_behind_a_key_that_goes_is_still_found() {
        let keys: Vec<u64> = same_place().take(8).collect();
        for gone in 0..1_u32 << keys.len() {
            let mut skipped = skipped();
            let goes = |at: usize| gone >> at & 1 == 1;
            for (at, key) in keys.iter().enumerate() {
                skipped.skip(*key, if goes(at) { 1 } else { 2 });
            }
            skipped.expire(1);
            for (at, key) in keys.iter().enumerate() {
                assert_eq!(finds(&skipped, *key), !goes(at), "{gone:b}, number {at}");
            }
            // No more is left than leads to those that are there.
            let last = (0..keys.len()).rev().find(|at| !goes(*at));
            assert_eq!(used(&skipped), last.map_or(0, |at| at + 1), "{gone:b}");
            skipped.clear();
            assert_eq!(used(&skipped), 0, "{gone:b}");
        }
    }

    #[test]
    fn it_is_the_same_set_whatever_comes_and_goes() {
        let mut skipped = skipped();
        let mut expected = BTreeSet::new();
        // Few places, many keys: a generator of numbers with a period of its own (Knuth's MMIX).
        let keys: Vec<u64> = same_place().take(12).collect();
        let mut number = 1_u64;
        for now in 0..10_000_u64 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let key = keys[usize::try_from(number >> 33).unwrap() % keys.len()];
            let until = now + 1 + (number >> 20) % 20;
            expected.retain(|(other, ends)| *other != key && now < *ends);
            expected.insert((key, until));
            skipped.expire(now);
            skipped.skip(key, until);
            for key in &keys {
                let is_expected = expected.iter().any(|(expected, _)| expected == key);
                assert_eq!(finds(&skipped, *key), is_expected, "{key} at {now}");
            }
        }
        assert_eq!(skipped.no_room, 0);
    }

    #[test]
    fn who_finds_no_room_is_not_skipped_and_is_counted() {
        let mut skipped = skipped();
        let keys: Vec<u64> = same_place().take(20).collect();
        for key in &keys {
            skipped.skip(*key, 1);
        }
        assert_eq!(keys.iter().filter(|key| finds(&skipped, **key)).count(), 16);
        assert_eq!((skipped.no_room, skipped.keys.len()), (4, 16));
        // What marks a place cannot lie in one.
        skipped.clear();
        skipped.skip(0, 1);
        skipped.skip(FREE_SKIP, 1);
        assert_eq!((skipped.no_room, used(&skipped)), (6, 0));
    }
}
