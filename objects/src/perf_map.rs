//! `/tmp/perf-PID.map`: names of code that a process makes at run time, written by itself.
//!
//! Lines `START SIZE NAME`, numbers in hexadecimal (linux/tools/perf/Documentation/jit-interface.txt).

use std::collections::BTreeMap;

use records::ProcessAddress;

use crate::{
    ObjectError, ReadAt,
    lines::{Lines, hexadecimal},
};

/// Most bytes that one update reads.
const MAX_UPDATE: u64 = 16 << 20;
/// Longest name that is kept, in bytes.
const MAX_NAME: usize = 1024;
/// What an entry takes besides its name, in bytes, about.
const ENTRY: usize = 64;

/// Names of code made at run time.
#[derive(Debug, Default)]
pub struct PerfMap {
    /// By first address; no two overlap.
    entries: BTreeMap<u64, Entry>,
    max_bytes: usize,
    size: usize,
    /// How much of the file was read.
    read: u64,
    broken_lines: u64,
    dropped_entries: u64,
}

#[derive(Clone, Debug)]
struct Entry {
    end: u64,
    name: Box<str>,
}

impl PerfMap {
    /// An empty map that will hold at most about `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        PerfMap { max_bytes, ..PerfMap::default() }
    }

    /// Reads what the file has grown by since the last time, at most 16 MiB. `true` when there is more. A file that is
    /// shorter than what was read of it is read from its start.
    pub fn update(&mut self, file: &dyn ReadAt) -> Result<bool, ObjectError> {
        let size = file.size();
        if size < self.read {
            *self = PerfMap::new(self.max_bytes);
        }
        let end = size.min(self.read.saturating_add(MAX_UPDATE));
        let mut lines = Lines::new(file, "perf map", self.read, end);
        let mut read = self.read;
        while let Some(line) = lines.next_line()? {
            // A last line without its end may still be written; it is read again, whole, the next time.
            if !line.is_whole && line.next >= size && !line.bytes.is_empty() {
                break;
            }
            if !line.is_whole && line.next < size && line.next - read < MAX_UPDATE {
                break;
            }
            read = line.next;
            let parsed = parse(line.bytes).map(|(start, end, name)| (start, end, printable(name)));
            match parsed {
                Some((start, end, name)) => self.insert(start, end, name),
                None => self.broken_lines += 1,
            }
        }
        let progressed = read > self.read;
        self.read = read;
        Ok(progressed && read < size && end < size)
    }

    /// Puts an entry in the place of all that it overlaps.
    fn insert(&mut self, start: u64, end: u64, name: String) {
        let before = self.entries.range(..start).next_back().map(|(at, entry)| (*at, entry.end));
        if let Some((at, old_end)) = before.filter(|(_, old_end)| *old_end > start) {
            let rest = self.entries.get_mut(&at).map(|entry| {
                entry.end = start;
                entry.name.clone()
            });
            if let Some(name) = rest.filter(|_| old_end > end) {
                self.add(end, old_end, name);
            }
        }
        while let Some((at, old_end)) =
            self.entries.range(start..end).next().map(|(at, entry)| (*at, entry.end))
        {
            if let Some(old) = self.entries.remove(&at) {
                self.size = self.size.saturating_sub(ENTRY + old.name.len());
                if old_end > end {
                    self.add(end, old_end, old.name);
                }
            }
        }
        self.add(start, end, name.into());
    }

    fn add(&mut self, start: u64, end: u64, name: Box<str>) {
        let size = ENTRY + name.len();
        if self.size + size > self.max_bytes {
            self.dropped_entries += 1;
            return;
        }
        self.size += size;
        self.entries.insert(start, Entry { end, name });
    }

    /// The name of the code at an address: the last line that covers it.
    pub fn lookup(&self, address: ProcessAddress) -> Option<&str> {
        let (_, entry) = self.entries.range(..=address.0).next_back()?;
        (address.0 < entry.end).then_some(&entry.name)
    }

    /// Lines that are no entry, so far.
    pub fn broken_lines(&self) -> u64 {
        self.broken_lines
    }

    /// Entries for which there was no room, so far.
    pub fn dropped_entries(&self) -> u64 {
        self.dropped_entries
    }

    /// Bytes of the file that were read so far.
    pub fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Bytes of memory it holds, about.
    pub fn memory_size(&self) -> usize {
        self.size
    }
}

/// A line's first address, the one after its last, and its name.
fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let mut fields = line.splitn(3, |byte| *byte == b' ');
    let start = hexadecimal(fields.next()?)?;
    let size = hexadecimal(fields.next()?)?;
    let name = fields.next()?;
    let end = start.checked_add(size)?;
    (size > 0 && !name.is_empty()).then_some((start, end, name))
}

fn printable(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(&name[..name.len().min(MAX_NAME)]);
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &[u8]) -> PerfMap {
        let mut map = PerfMap::new(1 << 20);
        assert!(!map.update(&text.to_vec()).unwrap());
        map
    }

    fn at(map: &PerfMap, address: u64) -> Option<&str> {
        map.lookup(ProcessAddress(address))
    }

    #[test]
    fn an_address_has_the_name_of_the_last_line_that_covers_it() {
        let map = map(b"1000 100 old\n2000 10 b c;d\n1040 20 new\n");
        assert_eq!(at(&map, 0xfff), None);
        assert_eq!(at(&map, 0x103f), Some("old"));
        assert_eq!(at(&map, 0x1040), Some("new"));
        assert_eq!(at(&map, 0x105f), Some("new"));
        assert_eq!(at(&map, 0x1060), Some("old"));
        assert_eq!(at(&map, 0x1100), None);
        assert_eq!(at(&map, 0x200f), Some("b c;d"));
    }

    #[test]
    fn broken_lines_cost_only_themselves() {
        let map =
            map(b"1000\n\n1000 zz a\n1000 10\n1000 0 empty\nffffffffffffffff 10 over\n1000 10 a\0\xffb\n20");
        assert_eq!(at(&map, 0x1000), Some("a?\u{fffd}b"));
        assert_eq!(map.broken_lines(), 6);
    }

    #[test]
    fn a_file_that_grows_is_read_on_and_one_that_was_cut_anew() {
        let mut map = PerfMap::new(1 << 20);
        map.update(&b"1000 10 a\n2000 10 half".to_vec()).unwrap();
        assert_eq!((at(&map, 0x1000), at(&map, 0x2000)), (Some("a"), None));
        map.update(&b"1000 10 a\n2000 10 half and whole\n".to_vec()).unwrap();
        assert_eq!(at(&map, 0x2000), Some("half and whole"));
        map.update(&b"3000 10 c\n".to_vec()).unwrap();
        assert_eq!((at(&map, 0x1000), at(&map, 0x3000)), (None, Some("c")));
    }

    #[test]
    fn memory_is_bounded_and_long_files_come_in_parts() {
        let text: Vec<u8> =
            (0..1_000_000u64).flat_map(|i| format!("{:x} 8 f{i}\n", i * 16).into_bytes()).collect();
        let mut map = PerfMap::new(1 << 20);
        let mut updates = 1;
        while map.update(&text).unwrap() {
            updates += 1;
        }
        assert_eq!(updates, text.len().div_ceil(16 << 20));
        assert!(map.memory_size() <= 1 << 20 && map.dropped_entries() > 900_000);
        assert_eq!(map.broken_lines(), 0);
    }

    #[test]
    fn a_line_without_an_end_is_not_waited_for_for_ever() {
        let mut map = PerfMap::new(1 << 20);
        let text = vec![b'x'; 40 << 20];
        let mut updates = 0;
        while map.update(&text).unwrap() {
            updates += 1;
            assert!(updates < 10);
        }
    }

    #[test]
    fn random_lines_match_a_model() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..200 {
            let mut model = vec![None; 64];
            let mut text = Vec::new();
            for i in 0..30 {
                let (start, size) = (random(48), 1 + random(16));
                text.push(format!("{start:x} {size:x} n{i}\n"));
                for byte in model
                    .iter_mut()
                    .skip(usize::try_from(start).unwrap())
                    .take(usize::try_from(size).unwrap())
                {
                    *byte = Some(format!("n{i}"));
                }
            }
            let map = map(text.concat().as_bytes());
            for (address, expected) in (0..).zip(&model) {
                assert_eq!(at(&map, address), expected.as_deref());
            }
        }
    }
}
