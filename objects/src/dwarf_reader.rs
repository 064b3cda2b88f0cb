//! What gimli reads DWARF through: a section in memory that counts what is read of it.
//!
//! gimli and addr2line trust DWARF to be as a compiler makes it. A forged file can make them recurse once for each byte,
//! walk the same list of ranges for each of a million functions, or keep hundreds of bytes for each byte of a file table.
//! They have no limits for that, but all of it goes through this reader, which can refuse.

use std::{
    borrow::Cow,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use gimli::{Error, ReaderOffsetId, RunTimeEndian, SectionId};

/// Stack that gimli and addr2line may use, in bytes. The nesting of inlined functions is what they recurse in: in
/// optimized builds this is enough for more than 1,000 levels, without optimization for more than 100.
const MAX_STACK: usize = 512 * 1024;
/// Largest header of a line program, in bytes, with its table of files. gimli sets memory aside for as many files as the
/// header has bytes.
const MAX_LINE_HEADER: usize = 512 * 1024;
/// Units of work between two looks at the clock. There are loops that read next to nothing.
const CLOCK_INTERVAL: u64 = 64;

/// How much work is left. A unit of work is a read, and stands for [`BYTES_PER_UNIT`] of memory.
///
/// Only one thread uses it at a time (`Dwarf` wants `&mut`); the atomics make it `Sync` as gimli's sharing needs it.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    left: AtomicU64,
    exhausted: AtomicBool,
    /// Where the stack was when the work began.
    stack: AtomicUsize,
    /// Nanoseconds since `epoch`.
    deadline: AtomicU64,
    epoch: Epoch,
}

#[derive(Debug)]
struct Epoch(Instant);

impl Default for Epoch {
    fn default() -> Self {
        Epoch(Instant::now())
    }
}

/// Memory that a unit of work leads to, at most, in bytes.
pub(crate) const BYTES_PER_UNIT: u64 = 16;

impl Budget {
    /// Allows `units` of work until `time` has passed.
    pub(crate) fn begin(&self, units: u64, time: Duration) {
        self.left.store(units, Relaxed);
        self.exhausted.store(false, Relaxed);
        self.stack.store(stack_position(), Relaxed);
        let deadline = self.epoch.0.elapsed().saturating_add(time).as_nanos();
        self.deadline.store(u64::try_from(deadline).unwrap_or(u64::MAX), Relaxed);
    }

    pub(crate) fn left(&self) -> u64 {
        self.left.load(Relaxed)
    }

    /// Whether something was refused since the begin.
    pub(crate) fn is_exhausted(&self) -> bool {
        self.exhausted.load(Relaxed)
    }

    #[inline]
    fn charge(&self, units: u64) -> gimli::Result<()> {
        let left = self.left.load(Relaxed);
        let too_deep = self.stack.load(Relaxed).abs_diff(stack_position()) > MAX_STACK;
        if left < units || too_deep {
            return self.refuse();
        }
        self.left.store(left - units, Relaxed);
        if left / CLOCK_INTERVAL != (left - units) / CLOCK_INTERVAL
            && self.epoch.0.elapsed().as_nanos() > u128::from(self.deadline.load(Relaxed))
        {
            return self.refuse();
        }
        Ok(())
    }

    #[cold]
    fn refuse(&self) -> gimli::Result<()> {
        self.exhausted.store(true, Relaxed);
        // So that whoever goes on after an error does not go far.
        self.left.store(0, Relaxed);
        Err(Error::Io)
    }
}

/// About where the top of the stack is.
#[inline]
fn stack_position() -> usize {
    let here = 0u8;
    std::ptr::from_ref(std::hint::black_box(&here)).addr()
}

/// A section in memory.
pub(crate) struct SectionData {
    pub(crate) id: SectionId,
    pub(crate) bytes: Vec<u8>,
    pub(crate) endian: RunTimeEndian,
    pub(crate) budget: Arc<Budget>,
}

/// A position in a section, and an end.
#[derive(Clone)]
pub(crate) struct SectionReader {
    section: Arc<SectionData>,
    start: usize,
    end: usize,
}

impl fmt::Debug for SectionReader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}[{:#x}..{:#x}]", self.section.id, self.start, self.end)
    }
}

impl SectionReader {
    pub(crate) fn new(section: Arc<SectionData>) -> Self {
        let end = section.bytes.len();
        SectionReader { section, start: 0, end }
    }

    fn bytes(&self) -> &[u8] {
        self.section.bytes.get(self.start..self.end).unwrap_or_default()
    }

    #[inline]
    fn charge(&self, units: usize) -> gimli::Result<()> {
        self.section.budget.charge(units as u64)
    }

    fn end_of_input<T>(&self) -> gimli::Result<T> {
        Err(Error::UnexpectedEof(gimli::Reader::offset_id(self)))
    }

    /// Takes as many bytes as the array has.
    #[inline]
    fn take<const N: usize>(&mut self) -> gimli::Result<[u8; N]> {
        self.charge(1)?;
        match self.bytes().first_chunk() {
            Some(bytes) => {
                let bytes = *bytes;
                self.start += N;
                Ok(bytes)
            }
            None => self.end_of_input(),
        }
    }
}

impl gimli::Reader for SectionReader {
    type Endian = RunTimeEndian;
    type Offset = usize;

    fn endian(&self) -> RunTimeEndian {
        self.section.endian
    }

    #[inline]
    fn len(&self) -> usize {
        self.end - self.start
    }

    fn empty(&mut self) {
        self.end = self.start;
    }

    fn truncate(&mut self, length: usize) -> gimli::Result<()> {
        if length > self.len() {
            return self.end_of_input();
        }
        if self.section.id == SectionId::DebugLine {
            // In this section that is how gimli delimits the header of a program.
            if length > MAX_LINE_HEADER {
                return Err(Error::UnsupportedOffset);
            }
            // A file takes as little as a byte here and 10 units in memory.
            self.charge(length)?;
        }
        self.end = self.start + length;
        Ok(())
    }

    fn offset_from(&self, base: &Self) -> usize {
        self.start.saturating_sub(base.start)
    }

    fn offset_id(&self) -> ReaderOffsetId {
        ReaderOffsetId((self.section.id as u64) << 56 | self.start as u64)
    }

    fn lookup_offset_id(&self, id: ReaderOffsetId) -> Option<usize> {
        let delta = id.0.checked_sub(self.offset_id().0).and_then(|delta| usize::try_from(delta).ok())?;
        (delta <= self.len()).then_some(delta)
    }

    fn find(&self, byte: u8) -> gimli::Result<usize> {
        if let Some(at) = self.bytes().iter().position(|other| *other == byte) {
            self.charge(1 + at / 64)?;
            return Ok(at);
        }
        self.charge(1 + self.len() / 64)?;
        self.end_of_input()
    }

    #[inline]
    fn skip(&mut self, length: usize) -> gimli::Result<()> {
        self.charge(1)?;
        if length > self.len() {
            return self.end_of_input();
        }
        self.start += length;
        Ok(())
    }

    #[inline]
    fn split(&mut self, length: usize) -> gimli::Result<Self> {
        self.charge(1)?;
        if length > self.len() {
            return self.end_of_input();
        }
        let mut first = self.clone();
        self.start += length;
        first.end = self.start;
        Ok(first)
    }

    fn to_slice(&self) -> gimli::Result<Cow<'_, [u8]>> {
        Ok(Cow::Borrowed(self.bytes()))
    }

    fn to_string(&self) -> gimli::Result<Cow<'_, str>> {
        self.charge(1 + self.len() / 16)?;
        std::str::from_utf8(self.bytes()).map(Cow::Borrowed).map_err(|_| Error::BadUtf8)
    }

    /// Copied by whoever asks, so it is charged as memory.
    fn to_string_lossy(&self) -> gimli::Result<Cow<'_, str>> {
        self.charge(1 + self.len() / 16)?;
        Ok(String::from_utf8_lossy(self.bytes()))
    }

    #[inline]
    fn read_slice(&mut self, buffer: &mut [u8]) -> gimli::Result<()> {
        self.charge(1)?;
        let Some(bytes) = self.bytes().get(..buffer.len()) else { return self.end_of_input() };
        buffer.copy_from_slice(bytes);
        self.start += buffer.len();
        Ok(())
    }

    #[inline]
    fn read_u8(&mut self) -> gimli::Result<u8> {
        self.take().map(|[byte]| byte)
    }
}
