//! The file of an entry: what it is called, and how it is known to be whole.
//!
//! Its name is `NUMBER.PROFILES.entry`. The number, of 20 digits, is the time at which it was made, in nanoseconds since 1970, or
//! one more than that of the entry before it, if that is later: so the order of names is that of time, whatever the clock does. Its
//! content is a mark, the CRC-32 of the payload, and the payload.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What every entry begins with: its format, and the version of that.
const MARK: &[u8; 8] = b"bulkhd\x00\x01";
/// Bytes before the payload.
const HEAD: usize = MARK.len() + 4;
/// Bytes that a file costs beside its content: the file system's own.
const FILE_COST: u64 = 4096;
/// What an entry's name ends with.
const SUFFIX: &str = ".entry";

/// An entry, by its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Entry {
    /// Its place in the order.
    pub(super) number: u64,
    /// How many profiles are in it.
    pub(super) profiles: u64,
    /// Bytes of the file.
    pub(super) size: u64,
}

impl Entry {
    /// The entry after `last` for a payload of this length.
    pub(super) fn after(last: u64, profiles: u64, payload: usize) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        Entry { number: now.max(last.saturating_add(1)), profiles, size: (HEAD + payload) as u64 }
    }

    /// The name of its file.
    pub(super) fn name(self) -> String {
        format!("{:020}.{}{SUFFIX}", self.number, self.profiles)
    }

    /// The entry that a file is, by its name; `None`: it is none.
    pub(super) fn of(name: &str, size: u64) -> Option<Self> {
        let (number, profiles) = name.strip_suffix(SUFFIX)?.split_once('.')?;
        let is_one =
            number.len() == 20 && number.bytes().chain(profiles.bytes()).all(|byte| byte.is_ascii_digit());
        is_one.then_some(Entry { number: number.parse().ok()?, profiles: profiles.parse().ok()?, size })
    }

    /// What it takes of the spool's bound.
    pub(super) fn cost(self) -> u64 {
        cost(self.size)
    }

    /// How long ago it was made.
    pub(super) fn age(self) -> Duration {
        UNIX_EPOCH
            .checked_add(Duration::from_nanos(self.number))
            .and_then(|made| made.elapsed().ok())
            .unwrap_or_default()
    }
}

/// What a file of this size takes of the spool's bound.
pub(super) fn cost(size: u64) -> u64 {
    size.saturating_add(FILE_COST)
}

/// The content of an entry's file before its payload.
pub(super) fn head(payload: &[u8]) -> [u8; HEAD] {
    let mut head = [0; HEAD];
    head[..MARK.len()].copy_from_slice(MARK);
    head[MARK.len()..].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    head
}

/// The payload of a file; `None`: it is not whole, or something else.
pub(super) fn payload(file: &[u8]) -> Option<&[u8]> {
    let (head_of_file, payload) = file.split_at_checked(HEAD)?;
    (head_of_file == head(payload)).then_some(payload)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        let entry = Entry::after(0, 7, 10);
        assert_eq!(Entry::of(&entry.name(), entry.size), Some(entry));
        assert!(entry.age() < Duration::from_mins(1));
        let later = Entry::after(u64::MAX - 1, 7, 10);
        assert_eq!(later.number, u64::MAX);
        assert_eq!(later.age(), Duration::ZERO);
        assert!(entry.name() < later.name());
        for name in [
            "",
            ".entry",
            "1.1.entry",
            "00000000000000000001.entry",
            "00000000000000000001.x.entry",
            "0000000000000000000a.1.entry",
            "99999999999999999999.1.entry",
            "00000000000000000001.1.refused",
        ] {
            assert_eq!(Entry::of(name, 1), None, "{name}");
        }
    }

    #[test]
    fn whatever_is_changed_or_cut_is_seen() {
        let file = [&head(b"payload")[..], b"payload"].concat();
        assert_eq!(payload(&file), Some(&b"payload"[..]));
        for at in 0..file.len() {
            assert_eq!(payload(&file[..at]), None, "{at}");
            let mut changed = file.clone();
            changed[at] ^= 1;
            assert_eq!(payload(&changed), None, "{at}");
        }
    }
}
