//! Numbers for `/metrics`.

use std::{collections::BTreeMap, time::Duration};

use ipc::{Counters, SkipCounters};
use objects::UnwindRows;

/// What the collectors have counted, all that were met together: a collector counts from its own start.
#[derive(Clone, Debug, Default)]
pub struct CollectorCounters {
    before: Counters,
    now: Counters,
}

impl CollectorCounters {
    /// The collector's latest.
    pub fn update(&mut self, counters: Counters) {
        // Numbers that went back are those of another collector, even if it says that it is the same.
        if counters.samples < self.now.samples || counters.kernel_events < self.now.kernel_events {
            self.restarted();
        }
        self.now = counters;
    }

    /// Another collector begins to count.
    pub fn restarted(&mut self) {
        self.before = self.total();
        self.now = Counters::default();
    }

    /// The sums. `processes` and `executables` are those of the present collector.
    pub fn total(&self) -> Counters {
        let sum = |before: &[u64], now: &[u64]| {
            let at = |list: &[u64], index| list.get(index).copied().unwrap_or(0);
            // As many as there can be numbers of reasons; a broken collector could send more.
            let length = before.len().max(now.len()).min(256);
            (0..length).map(|index| at(before, index).saturating_add(at(now, index))).collect()
        };
        Counters {
            samples: self.before.samples.saturating_add(self.now.samples),
            idle: self.before.idle.saturating_add(self.now.idle),
            ends: sum(&self.before.ends, &self.now.ends),
            losses: sum(&self.before.losses, &self.now.losses),
            kernel_events: self.before.kernel_events.saturating_add(self.now.kernel_events),
            processes: self.now.processes,
            executables: self.now.executables,
            // As they are in the present collector; counts of what happened begin anew with it.
            tables: self.now.tables,
            skips: self.skips(),
        }
    }

    fn skips(&self) -> SkipCounters {
        let (before, now) = (&self.before.skips, &self.now.skips);
        SkipCounters {
            in_kernel: before.in_kernel.saturating_add(now.in_kernel),
            in_collector: before.in_collector.saturating_add(now.in_collector),
            unknown: before.unknown.saturating_add(now.unknown),
            no_room: before.no_room.saturating_add(now.no_room),
        }
    }
}

/// What the uploader has counted since its start.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// Messages received.
    pub messages: u64,
    /// Connections to a collector.
    pub sessions: u64,
    /// Times that the collector was another one than before.
    pub collector_restarts: u64,
    /// Time without a collector, after the first was met.
    pub disconnected: Duration,
    /// Connections that ended because of what the collector sent.
    pub faults: u64,
    /// Samples received.
    pub samples: u64,
    /// Samples with frames in files that no unwind row covers: those were left by frame pointers.
    pub samples_guessed: u64,
    /// Samples of processes that the collector has not spoken of: kept, under the name of their thread.
    pub samples_unknown_process: u64,
    /// Samples of what is not to be profiled: by flags or rules.
    pub samples_not_selected: u64,
    /// Configurations that were read again and taken, and those that were refused.
    pub configurations: [u64; 2],
    /// Frames in executables that the collector has not spoken of.
    pub frames_unknown_executable: u64,
    /// Samples of which part was merged into a marked stack or target, because a window was full.
    pub merged_samples: u64,
    /// Windows that became profiles.
    pub windows: u64,
    /// Windows that were thrown away, because those before them were not finished yet.
    pub windows_dropped: u64,
    /// Samples in them.
    pub samples_dropped: u64,
    /// Executables whose unwind rows were to be computed, and were not yet, because others waited or took long.
    pub rows_put_off: u64,
    /// Perf maps that were to be read, and were not, for a window, because others had taken long.
    pub perf_maps_put_off: u64,
    /// Profiles made.
    pub profiles: u64,
    /// Executables whose names were read (or found to be missing) from their file.
    pub executables_named: u64,
    /// Executables that could not be read: no ELF file, or a broken one.
    pub executables_unreadable: u64,
    /// Executables whose file system gave no answer in time.
    pub executables_timed_out: u64,
    /// Executables whose file could not be had when names were needed.
    pub executables_unavailable: u64,
    /// Requests to the collector.
    pub requests: u64,
    /// Requests that were not made, because there were too many.
    pub requests_refused: u64,
    /// Requests for a file that the collector could not fulfil.
    pub not_reopened: u64,
    /// Files that the local store wrote, and failed to.
    pub stored: u64,
    /// Files that the local store could not write.
    pub store_failures: u64,
    /// Executables whose unwind rows were computed.
    pub with_rows: u64,
    /// Executables that have none, or whose could not be read.
    pub without_rows: u64,
    /// Unwind rows.
    pub rows: u64,
    /// What could not be put in a row, by kind.
    pub misfits: BTreeMap<&'static str, u64>,
}

impl Counts {
    /// Counts the rows of an executable.
    pub fn rows_computed(&mut self, rows: &UnwindRows) {
        self.with_rows += 1;
        self.rows += rows.rows.len() as u64;
        for (kind, count) in &rows.misfits {
            *self.misfits.entry(kind).or_default() += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_go_on_over_restarts() {
        let counters =
            |samples, losses: &[u64]| Counters { samples, losses: losses.to_vec(), ..Counters::default() };
        let mut total = CollectorCounters::default();
        total.update(counters(10, &[0, 1]));
        total.update(counters(20, &[0, 2]));
        assert_eq!(total.total(), counters(20, &[0, 2]));
        total.restarted();
        total.update(counters(5, &[0, 1, 7]));
        assert_eq!(total.total(), counters(25, &[0, 3, 7]));
        // Went back without another word.
        total.update(counters(1, &[1]));
        assert_eq!(total.total(), counters(26, &[1, 3, 7]));
        total.update(counters(u64::MAX, &[u64::MAX; 1000]));
        assert_eq!(total.total().samples, u64::MAX);
        assert_eq!(total.total().losses.len(), 256);
        let skips = SkipCounters { in_kernel: 1, in_collector: 2, unknown: 3, no_room: 4 };
        let counters = Counters { skips, ..Counters::default() };
        let mut total = CollectorCounters::default();
        total.update(counters.clone());
        total.restarted();
        total.update(counters);
        let twice = SkipCounters { in_kernel: 2, in_collector: 4, unknown: 6, no_room: 8 };
        assert_eq!(total.total().skips, twice);
    }
}
