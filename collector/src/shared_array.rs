//! A map of the BPF programs as memory: what changes after the start is written here, and bpf(2) is not needed again.
#![expect(unsafe_code, reason = "the kernel reads this memory while it is written")]

use std::{
    io,
    marker::PhantomData,
    os::fd::BorrowedFd,
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{MmapOptions, MmapRaw};
use records::{Page, Rule, SpaceMapping};

/// Types that may be shared so: whole words, any bits are a value, no padding.
pub(crate) trait Plain: Copy {}
impl Plain for u64 {}
impl Plain for Page {}
impl Plain for Rule {}
impl Plain for SpaceMapping {}

/// An array that the BPF programs read.
pub(crate) struct SharedArray<T> {
    memory: MmapRaw,
    length: u32,
    values: PhantomData<T>,
}

impl<T: Plain> SharedArray<T> {
    /// Maps an array of at least `length` values (`BPF_F_MMAPABLE`; values of a multiple of 8 bytes lie without gaps).
    pub(crate) fn new(map: BorrowedFd, length: u32) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let memory = MmapOptions::new().len(length as usize * size_of::<T>()).map_raw(&map)?;
        Ok(SharedArray { memory, length, values: PhantomData })
    }

    /// An array that nobody shares, for tests.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn unshared(length: u32) -> Self {
        let memory = memmap2::MmapMut::map_anon(length as usize * size_of::<T>()).expect("memory for a test");
        SharedArray { memory: memory.into(), length, values: PhantomData }
    }

    /// How many values it has.
    pub(crate) fn len(&self) -> u32 {
        self.length
    }

    fn at(&self, index: u32) -> Option<*mut T> {
        // SAFETY: the index is within the mapping, which has `length` values.
        (index < self.length).then(|| unsafe { self.memory.as_mut_ptr().cast::<T>().add(index as usize) })
    }

    pub(crate) fn get(&self, index: u32) -> Option<T> {
        // SAFETY: the memory is mapped as long as `self`, and any bits are a `T`; volatile, since it is shared.
        self.at(index).map(|value| unsafe { value.read_volatile() })
    }

    /// Writes a value; the caller sees to it that the programs do not look there meanwhile. Beyond the end: nothing.
    pub(crate) fn set(&self, index: u32, new: T) {
        debug_assert!(index < self.length);
        if let Some(value) = self.at(index) {
            // SAFETY: as in `get`.
            unsafe { value.write_volatile(new) };
        }
    }
}

impl SharedArray<u64> {
    /// Writes a word whole, after all that was written before.
    pub(crate) fn publish(&self, index: u32, new: u64) {
        debug_assert!(index < self.length);
        if let Some(word) = self.at(index) {
            // SAFETY: an aligned word in memory that stays mapped; the programs read it whole.
            unsafe { AtomicU64::from_ptr(word) }.store(new, Ordering::Release);
        }
    }
}
