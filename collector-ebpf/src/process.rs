//! The process that is unwound: its memory, and the tables that the collector keeps of it and of its code.
//!
//! The collector writes these maps as memory while samples are taken. So whatever is read here may be old, or of another
//! moment than what was read before it: every number is only ever used through a checked look-up, and an address that
//! is found leaves the collector only if it lies in code.

use aya_ebpf::{helpers::generated::bpf_probe_read_user, macros::map, maps::Array};
use core::ffi::c_void;
use records::{MAX_RULES, Page, REGISTERS, Row, Rule, SLOT_BITS, SpaceMapping, SpaceSlot, TableEntry};
use unwinder::Machine;

use crate::MMAPABLE;

/// Rows, two to a value: an array map rounds each value up to 8 bytes. The collector sets the sizes of these maps
/// before loading.
#[map(name = "ROWS")]
static ROWS: Array<u64> = Array::with_max_entries(1, MMAPABLE);
/// Pages of text, each executable's one after the other.
#[map(name = "PAGES")]
static PAGES: Array<Page> = Array::with_max_entries(1, MMAPABLE);
/// The distinct rules of all executables.
#[map(name = "RULES")]
static RULES: Array<Rule> = Array::with_max_entries(MAX_RULES, MMAPABLE);
/// Executables.
#[map(name = "TABLES")]
static TABLES: Array<TableEntry> = Array::with_max_entries(1, MMAPABLE);
/// Executable mappings, each address space's one after the other.
#[map(name = "MAPPINGS")]
static MAPPINGS: Array<SpaceMapping> = Array::with_max_entries(1, MMAPABLE);
/// Processes, by pid.
#[map(name = "SPACES")]
static SPACES: Array<SpaceSlot> = Array::with_max_entries(1 << SLOT_BITS, MMAPABLE);

/// An address space, and the mapping that was found last: callers often lie in the same one.
#[repr(C)]
pub(crate) struct Space {
    slot: SpaceSlot,
    last: SpaceMapping,
}

impl Space {
    #[inline(always)]
    pub(crate) fn of(pid: u32) -> Self {
        let slot = unwinder::find_space(pid, |number| {
            let slot: *const SpaceSlot = SPACES.get(number)?;
            // SAFETY: the pointer is the map's; each word is read whole, as the collector writes it.
            let (owner, mappings, again) = unsafe {
                (
                    (&raw const (*slot).owner).read_volatile(),
                    (&raw const (*slot).mappings).read_volatile(),
                    (&raw const (*slot).owner).read_volatile(),
                )
            };
            // Another process may have been given the place between the two words.
            if owner == again { Some(SpaceSlot { owner, mappings }) } else { None }
        });
        Space { slot: slot.unwrap_or(SpaceSlot { owner: 0, mappings: 0 }), last: SpaceMapping { start: 0, end: 0, offset: 0, table: 0, reserved: 0 } }
    }

    /// What the collector calls the process; 0: it is not in the table.
    #[inline(always)]
    pub(crate) fn process(&self) -> u32 {
        (self.slot.owner >> 32) as u32
    }
}

/// The current process, with what is known of its address space.
pub(crate) struct Process<'a> {
    pub(crate) space: &'a mut Space,
    /// The general registers of the innermost frame, in DWARF's order.
    pub(crate) registers: &'a [u64; REGISTERS as usize],
}

impl Machine for Process<'_> {
    #[inline(always)]
    fn read_word(&mut self, address: u64) -> Option<u64> {
        let mut word = 0u64;
        // SAFETY: the helper writes 8 bytes to `word`, or fails; the address may be anything.
        let failed = unsafe { bpf_probe_read_user((&raw mut word).cast(), 8, address as *const c_void) } != 0;
        if failed { None } else { Some(word) }
    }

    #[inline(always)]
    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
        let mut pair = [0u64; 2];
        // SAFETY: the helper writes 16 bytes to `pair`, or fails; the address may be anything.
        let failed = unsafe { bpf_probe_read_user((&raw mut pair).cast(), 16, address as *const c_void) } != 0;
        if failed { None } else { Some(pair) }
    }

    #[inline(always)]
    fn locate(&mut self, address: u64) -> Option<(u32, u64)> {
        let Space { slot, last } = &mut *self.space;
        let within = address.wrapping_sub(last.start);
        if within < last.end.wrapping_sub(last.start) {
            return Some((last.table, within.wrapping_add(last.offset)));
        }
        let (first, count) = (slot.mappings as u32, (slot.mappings >> 32) as u32);
        let found = unwinder::find_mapping(first, count, address, |number| MAPPINGS.get(number))?;
        *last = *found;
        Some((found.table, address.wrapping_sub(found.start).wrapping_add(found.offset)))
    }

    #[inline(always)]
    fn register(&mut self, number: u8) -> u64 {
        // Masked, so that the verifier sees the bound.
        self.registers[usize::from(number & (REGISTERS - 1))]
    }

    #[inline(always)]
    fn table(&mut self, number: u32) -> Option<TableEntry> {
        let entry: *const TableEntry = TABLES.get(number)?;
        // SAFETY: the pointer is the map's. The count first, with the state in one word: the collector writes it last, and
        // clears it first.
        unsafe {
            let last = (&raw const (*entry).page_count).cast::<u64>().read_volatile();
            let pages = (&raw const (*entry).pages).read_volatile();
            let first_page = (&raw const (*entry).first_page).read_volatile();
            Some(TableEntry { pages, first_page, page_count: last as u32, state: (last >> 32) as u32 })
        }
    }

    #[inline(always)]
    fn page(&mut self, number: u32) -> Option<Page> {
        PAGES.get(number).copied()
    }

    #[inline(always)]
    fn row(&mut self, number: u32) -> Option<Row> {
        let pair = *ROWS.get(number >> 1)?;
        Some(Row((pair >> ((number & 1) << 5)) as u32))
    }

    #[inline(always)]
    fn rule(&mut self, number: u32) -> Option<Rule> {
        RULES.get(number).copied()
    }
}
