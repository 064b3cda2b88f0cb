//! A file that changes under its reader.

use std::{cell::Cell, io};

use objects::ReadAt;

/// Bytes that are overwritten, and cut to half, after a number of reads: as a process does with a file of its own that
/// it lets itself be profiled by.
pub struct Changing<'a> {
    bytes: &'a [u8],
    reads: Cell<u8>,
}

impl<'a> Changing<'a> {
    /// Stays as it is for so many reads.
    pub fn new(bytes: &'a [u8], reads: u8) -> Self {
        Changing { bytes, reads: Cell::new(reads) }
    }

    fn now(&self) -> &'a [u8] {
        let length = if self.reads.get() == 0 { self.bytes.len() / 2 } else { self.bytes.len() };
        &self.bytes[..length]
    }
}

impl ReadAt for Changing<'_> {
    fn size(&self) -> u64 {
        self.now().size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.now().read_at(buffer, offset)?;
        match self.reads.get() {
            0 => buffer[..read].iter_mut().for_each(|byte| *byte = !*byte),
            left => self.reads.set(left - 1),
        }
        Ok(read)
    }
}
