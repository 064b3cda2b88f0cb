//! What the kernel programs and both halves share: the sample record, address types, limits, and the one list of
//! reasons why an unwind ended or a sample was lost.
//!
//! No `std` and no dependency (serde, for the address types, only where `ipc` asks for it): this crate is compiled
//! for the BPF target too. Layouts that cross from the kernel are asserted at compile time.
#![no_std]

mod address;
mod reasons;
mod sample;

pub use address::{ElfAddress, FileOffset, ProcessAddress};
pub use reasons::{End, Loss};
pub use sample::{
    COMM_LENGTH, COUNTERS_PER_CPU, Counter, FRAMES_PER_CALL, MAX_CALLS, MAX_CPUS, MAX_FRAMES,
    MAX_KERNEL_FRAMES, MAX_USER_FRAMES, SAMPLE_HEADER_SIZE, SampleHeader,
};
