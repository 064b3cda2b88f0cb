//! The BPF program's counters, read as memory: bpf(2) is not needed.
#![expect(unsafe_code, reason = "the kernel writes this memory while it is read")]

use std::os::fd::AsFd;

use memmap2::{MmapOptions, MmapRaw};
use records::{COUNTERS_PER_CPU, Counter, End, Loss, MAX_CPUS};

/// The map of counters.
pub(crate) struct KernelCounters {
    memory: MmapRaw,
    cpus: usize,
}

/// Sums over all CPUs since the programs were loaded.
#[derive(Default)]
pub(crate) struct KernelTotals {
    pub(crate) samples: u64,
    pub(crate) idle: u64,
    pub(crate) ring_full: u64,
    pub(crate) outside_namespace: u64,
    pub(crate) skipped: u64,
    /// By the number of an [`End`].
    pub(crate) ends: Vec<u64>,
}

impl KernelCounters {
    /// Maps the counters of the CPUs up to `cpus`.
    pub(crate) fn new(map: impl AsFd, cpus: usize) -> std::io::Result<Self> {
        let cpus = cpus.min(MAX_CPUS as usize);
        let memory =
            MmapOptions::new().len(cpus * COUNTERS_PER_CPU as usize * 8).map_raw_read_only(&map.as_fd())?;
        Ok(KernelCounters { memory, cpus })
    }

    fn get(&self, cpu: usize, counter: usize) -> u64 {
        debug_assert!(cpu < self.cpus && counter < COUNTERS_PER_CPU as usize);
        let index = cpu * COUNTERS_PER_CPU as usize + counter;
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping begins at a page")]
        let counters = self.memory.as_ptr().cast::<u64>();
        // SAFETY: the index is within the mapping (its length is cpus times COUNTERS_PER_CPU words, checked above);
        // the memory is the kernel's own and stays mapped as long as `self.memory`. An aligned word is read whole.
        unsafe { counters.add(index).read_volatile() }
    }

    /// Adds up what all CPUs have counted.
    pub(crate) fn totals(&self) -> KernelTotals {
        let mut totals = KernelTotals { ends: vec![0; End::ALL.len() + 1], ..KernelTotals::default() };
        for cpu in 0..self.cpus {
            totals.samples += self.get(cpu, Counter::Samples as usize);
            totals.idle += self.get(cpu, Counter::Idle as usize);
            totals.ring_full += self.get(cpu, Counter::RingFull as usize);
            totals.outside_namespace += self.get(cpu, Counter::OutsideNamespace as usize);
            totals.skipped += self.get(cpu, Counter::Skipped as usize);
            for end in End::ALL {
                totals.ends[*end as usize] += self.get(cpu, Counter::Ends as usize + *end as usize);
            }
        }
        totals
    }
}

/// What this half itself has counted since its start.
pub(crate) struct Losses([u64; Loss::ALL.len() + 1]);

impl Losses {
    pub(crate) fn new() -> Self {
        Losses([0; Loss::ALL.len() + 1])
    }

    pub(crate) fn add(&mut self, loss: Loss, count: u64) {
        self.0[loss as usize] += count;
    }

    /// By the number of a [`Loss`], the kernel's counts included.
    pub(crate) fn with(&self, kernel: &KernelTotals) -> Vec<u64> {
        let mut all = self.0.to_vec();
        all[Loss::RingFull as usize] += kernel.ring_full;
        all[Loss::OutsideNamespace as usize] += kernel.outside_namespace;
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_a_place() {
        let mut losses = Losses::new();
        for loss in Loss::ALL {
            losses.add(*loss, u64::from(*loss as u8));
        }
        let kernel = KernelTotals { ring_full: 100, outside_namespace: 200, ..KernelTotals::default() };
        let all = losses.with(&kernel);
        assert_eq!(all[Loss::RingFull as usize], 101);
        assert_eq!(all[Loss::OutsideNamespace as usize], 202);
        assert_eq!(all[Loss::UnknownKernelCode as usize], 11);
    }
}
