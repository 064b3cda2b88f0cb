//! The cgroups whose samples nobody wants: an open-addressed table of keys (see [`SampleHeader::cgroup`](crate::SampleHeader))
//! that the collector writes while the BPF program looks into it. A place is one word, written and read whole.

/// Bits of a place's number in the table of skipped keys.
pub const SKIP_BITS: u32 = 13;
/// Places that a key may lie in.
pub const SKIP_PROBES: u32 = 16;
/// A place that was used and is free again: others may lie behind it. A place that was never used is 0.
pub const FREE_SKIP: u64 = u64::MAX;

/// The `probe`-th place in which to look for a key (the multiplier is 2^64 divided by the golden ratio).
#[must_use]
pub const fn skip_slot(key: u64, probe: u32) -> u32 {
    let hash = (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SKIP_BITS)) as u32;
    (hash + probe) & ((1 << SKIP_BITS) - 1)
}

/// Whether a key is in the table, whose places `slot` reads.
#[expect(clippy::inline_always, reason = "runs in the kernel, once a sample")]
#[inline(always)]
pub fn is_skipped(key: u64, mut slot: impl FnMut(u32) -> Option<u64>) -> bool {
    for probe in 0..SKIP_PROBES {
        match slot(skip_slot(key, probe)) {
            None | Some(0) => return false,
            Some(found) if found == key => return key != FREE_SKIP,
            Some(_) => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_is_found_behind_others_and_no_further_than_it_may_lie() {
        let key = 4242;
        // What lies before it belongs to others, or is free again; `at` is where the key itself lies.
        let found = |at: u32, before: u64| {
            is_skipped(key, |slot| {
                (0..at).find(|probe| skip_slot(key, *probe) == slot).map_or(Some(key), |_| Some(before))
            })
        };
        assert!(found(0, 7) && found(3, 7) && found(3, FREE_SKIP) && found(SKIP_PROBES - 1, 7));
        assert!(!found(3, 0), "nothing lies behind a place that was never used");
        assert!(!found(SKIP_PROBES, 7));
        // What marks a place is no key.
        assert!(!is_skipped(0, |_| Some(0)) && !is_skipped(FREE_SKIP, |_| Some(FREE_SKIP)));
    }

    #[test]
    fn places_lie_in_the_table_and_neighbours_far_apart() {
        let first: [u32; 64] = core::array::from_fn(|key| skip_slot(key as u64 + 1, 0));
        for (at, slot) in first.iter().enumerate() {
            assert!(skip_slot(at as u64, SKIP_PROBES - 1) < 1 << SKIP_BITS);
            assert!(first[..at].iter().all(|other| other != slot), "ids count up: {first:?}");
        }
    }
}
