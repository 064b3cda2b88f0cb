//! Cgroups whose samples the uploader does not want: known by key before anything else is looked at.

use aya_ebpf::{macros::map, maps::Array};
use records::SKIP_BITS;

use crate::MMAPABLE;

/// Their keys, as [`records::is_skipped`] finds them. The collector writes them as memory.
#[map(name = "SKIPPED")]
static SKIPPED: Array<u64> = Array::with_max_entries(1 << SKIP_BITS, MMAPABLE);

#[inline(always)]
pub(crate) fn is_skipped(cgroup: u64) -> bool {
    records::is_skipped(cgroup, |slot| {
        let word: *const u64 = SKIPPED.get(slot)?;
        // SAFETY: the pointer is the map's; volatile, since the collector writes the word meanwhile.
        Some(unsafe { word.read_volatile() })
    })
}
