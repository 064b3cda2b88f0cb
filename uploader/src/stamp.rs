//! Whether a file is still what it was when it was read.

use std::{fs::Metadata, os::unix::fs::MetadataExt};

/// What changes about a file when it has something else in it, or is another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp([i64; 5], [u64; 2]);

impl Stamp {
    /// That of a file with these facts.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        let times = [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()];
        let [a, b, c, d] = times;
        Stamp(
            [a, b, c, d, i64::try_from(metadata.size()).unwrap_or(i64::MAX)],
            [metadata.dev(), metadata.ino()],
        )
    }
}
