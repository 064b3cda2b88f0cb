//! Text files, a line at a time, in bounded memory.

use std::io;

use crate::{ObjectError, ReadAt};

/// Longest line that is given out; of a longer one the rest is skipped.
pub(crate) const MAX_LINE: usize = 4096;
const CHUNK: usize = 64 * 1024;

/// Reads lines from a position of a file to another.
pub(crate) struct Lines<'a> {
    file: &'a dyn ReadAt,
    what: &'static str,
    /// Where `buffer` ends in the file.
    offset: u64,
    end: u64,
    buffer: Vec<u8>,
    /// Where the next line begins in `buffer`.
    start: usize,
    /// The line that is being looked for began before `buffer`, and is too long.
    skipping: bool,
}

/// A line, without its line break.
pub(crate) struct Line<'a> {
    pub(crate) bytes: &'a [u8],
    /// Where in the file the next line begins.
    pub(crate) next: u64,
    /// Whether it ended with a line break, not with what could be read.
    pub(crate) is_whole: bool,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(file: &'a dyn ReadAt, what: &'static str, offset: u64, end: u64) -> Self {
        Lines { file, what, offset, end, buffer: Vec::new(), start: 0, skipping: false }
    }

    /// The next line. One that is longer than [`MAX_LINE`] comes as an empty one.
    pub(crate) fn next_line(&mut self) -> Result<Option<Line<'_>>, ObjectError> {
        let mut searched = self.start;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|byte| *byte == b'\n') {
                let range = self.start..searched + at;
                self.start = range.end + 1;
                let next = self.offset - (self.buffer.len() - self.start) as u64;
                let too_long = std::mem::take(&mut self.skipping) || range.len() > MAX_LINE;
                let bytes = if too_long { &[] } else { &self.buffer[range] };
                return Ok(Some(Line { bytes, next, is_whole: true }));
            }
            if self.buffer.len() - self.start > MAX_LINE {
                self.skipping = true;
                self.start = self.buffer.len();
            }
            if !self.fill()? {
                let range = self.start..self.buffer.len();
                self.start = range.end;
                let skipped = std::mem::take(&mut self.skipping);
                if range.is_empty() && !skipped {
                    return Ok(None);
                }
                let bytes = if skipped { &[] } else { &self.buffer[range] };
                return Ok(Some(Line { bytes, next: self.offset, is_whole: false }));
            }
            searched = self.start;
        }
    }

    /// Reads on; `false` at the end.
    fn fill(&mut self) -> Result<bool, ObjectError> {
        self.buffer.drain(..self.start);
        self.start = 0;
        let length = usize::try_from(self.end.saturating_sub(self.offset)).unwrap_or(CHUNK).min(CHUNK);
        let old = self.buffer.len();
        self.buffer.resize(old + length, 0);
        let read = loop {
            match self.file.read_at(&mut self.buffer[old..], self.offset) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => break result,
            }
        };
        let read = read.map_err(|source| ObjectError::Io { what: self.what, offset: self.offset, source });
        self.buffer.truncate(old + read.as_ref().map_or(0, |read| (*read).min(length)));
        let read = read?.min(length);
        self.offset += read as u64;
        Ok(read > 0)
    }
}

/// A number in hexadecimal, with or without `0x`.
pub(crate) fn hexadecimal(digits: &[u8]) -> Option<u64> {
    let digits = digits.strip_prefix(b"0x").unwrap_or(digits);
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &[u8]) -> Vec<(Vec<u8>, u64, bool)> {
        let text = text.to_vec();
        let mut lines = Lines::new(&text, "text", 0, text.len() as u64);
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            found.push((line.bytes.to_vec(), line.next, line.is_whole));
        }
        found
    }

    #[test]
    fn lines_are_whole_or_the_last() {
        assert_eq!(all(b""), []);
        assert_eq!(all(b"a\n\nb"), [(b"a".to_vec(), 2, true), (vec![], 3, true), (b"b".to_vec(), 4, false)]);
    }

    #[test]
    fn long_lines_are_skipped_across_chunks() {
        for length in [MAX_LINE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK] {
            let mut text = vec![b'x'; length];
            text.extend(b"\ngood\n");
            let found = all(&text);
            let expected = [(vec![], length as u64 + 1, true), (b"good".to_vec(), length as u64 + 6, true)];
            assert_eq!(found, expected, "{length}");
        }
        assert_eq!(all(&vec![b'x'; 3 * CHUNK]), [(vec![], 3 * CHUNK as u64, false)]);
    }

    #[test]
    fn chunks_do_not_break_lines() {
        let text: Vec<u8> = (0..40_000).flat_map(|i| format!("line {i}\n").into_bytes()).collect();
        let found = all(&text);
        assert_eq!(found.len(), 40_000);
        assert!(
            found
                .iter()
                .enumerate()
                .all(|(i, (line, _, whole))| *whole && *line == format!("line {i}").as_bytes())
        );
    }

    #[test]
    fn numbers() {
        assert_eq!(hexadecimal(b"7fFf"), Some(0x7fff));
        assert_eq!(hexadecimal(b"0x10"), Some(16));
        for broken in [&b""[..], b"0x", b"+1", b"g", b"11112222333344445"] {
            assert_eq!(hexadecimal(broken), None);
        }
    }
}
