//! What the kernel programs and both halves share: the sample record, address types, limits, and the one list of
//! reasons why an unwind ended or a sample was lost.
//!
//! No `std` and no dependency (serde, for the address types, only where `ipc` asks for it): this crate is compiled
//! for the BPF target too. Layouts that cross from the kernel are asserted at compile time.
#![no_std]

mod address;
mod reasons;
mod sample;
mod skipped;
mod unwind;

pub use address::{ElfAddress, FileOffset, ProcessAddress};
pub use reasons::{End, Loss};
pub use sample::{
    COMM_LENGTH, COUNTERS_PER_CPU, Counter, FRAMES_PER_CALL, MAX_CALLS, MAX_CPUS, MAX_FRAMES,
    MAX_KERNEL_FRAMES, MAX_STACK_BYTES, MAX_USER_FRAMES, MEMORY_PAGE, RESUME_SIZE, Resume,
    SAMPLE_HEADER_SIZE, SampleHeader,
};
pub use skipped::{FREE_SKIP, SKIP_BITS, SKIP_PROBES, is_skipped, skip_slot};
pub use unwind::{
    Cfa, FREE_SLOT, MAPPING_STEPS, MAX_ROWS_PER_PAGE, MAX_RULES, MAX_SPACE_MAPPINGS, NO_TABLE, PAGE_BITS,
    Page, RDI, REGISTERS, ROW_STEPS, Row, Rule, SLOT_BITS, SLOT_PROBES, SavedFp, SpaceMapping, SpaceSlot,
    TableEntry, slot_of,
};
