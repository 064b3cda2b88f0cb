//! Functions, inlined functions and lines from DWARF.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use addr2line::Context;
use gimli::{RunTimeEndian, SectionId};
use records::ElfAddress;

use crate::{
    ElfType, ObjectError, ReadAt,
    dwarf_reader::{BYTES_PER_UNIT, Budget, SectionData, SectionReader},
    elf::Elf,
    section_data::Stored,
    symbol_names::MAX_NAME,
};

/// What addr2line looks into.
const SECTIONS: [SectionId; 10] = [
    SectionId::DebugAbbrev,
    SectionId::DebugAddr,
    SectionId::DebugAranges,
    SectionId::DebugInfo,
    SectionId::DebugLine,
    SectionId::DebugLineStr,
    SectionId::DebugStr,
    SectionId::DebugStrOffsets,
    SectionId::DebugRanges,
    SectionId::DebugRngLists,
];
/// Functions at one address, with those inlined in one another.
const MAX_FRAMES: usize = 256;
/// Longest path of a source file that is kept, in bytes.
const MAX_PATH: usize = 4096;
/// How long it may take to find the units of a file: a second for each 100 MB that were loaded, and this.
const MAX_OPEN_TIME: Duration = Duration::from_secs(5);
/// How long one look-up may take: it parses a unit, at most.
const MAX_LOOKUP_TIME: Duration = Duration::from_secs(2);
/// How long all look-ups of a file may take together. There is no time limit on an honest file that comes near it:
/// gimli parses 50 MB a second and more.
const MAX_TOTAL_TIME: Duration = Duration::from_mins(1);

/// One of the functions at an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// Its linkage name if there is one (mangled), else its plain name. `None` where the DWARF has lines only: ask the
    /// symbol table.
    pub function: Option<String>,
    /// The source file, with its folder as the compiler saw it.
    pub file: Option<String>,
    /// The line in it; for a function that others are inlined in, the line of the call.
    pub line: Option<u32>,
}

/// DWARF of one file. `Send`, not `Sync`.
pub struct Dwarf {
    sections: Vec<Arc<SectionData>>,
    budget: Arc<Budget>,
    /// Units of work that may be kept as memory, and that one step may take.
    units: u64,
    /// `None` after it was thrown away for having grown.
    context: Option<Context<SectionReader>>,
    /// Units of work that went into the context.
    used: u64,
    /// In look-ups.
    time: Duration,
    given_up: bool,
}

impl fmt::Debug for Dwarf {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Dwarf").field("memory_size", &self.memory_size()).finish_non_exhaustive()
    }
}

impl Dwarf {
    /// Reads the sections into memory, uncompressed at most `max_bytes` of them. What is parsed of them later may take
    /// as much again.
    ///
    /// Split DWARF (`.dwo`) and supplementary files (`.gnu_debugaltlink`) are not looked for: names that are there only
    /// are missing.
    pub fn read(file: &dyn ReadAt, max_bytes: usize) -> Result<Self, ObjectError> {
        let what = "DWARF";
        let elf = Elf::read(file)?;
        if elf.kind == ElfType::Relocatable {
            return Err(ObjectError::Unsupported("DWARF of an object file that is not linked"));
        }
        let limit = max_bytes as u64;
        let mut stored = Vec::new();
        let mut size = 0u64;
        for id in SECTIONS {
            let old_name = id.name().replace(".debug_", ".zdebug_");
            let section = elf.section(id.name()).or_else(|| elf.section(&old_name));
            let Some(section) = section else { continue };
            let section = Stored::of(&elf, section, id.name())?;
            size = size.saturating_add(section.size);
            stored.push((id, section));
        }
        for needed in [SectionId::DebugInfo, SectionId::DebugAbbrev] {
            if !stored.iter().any(|(id, _)| *id == needed) {
                return Err(ObjectError::Missing(what));
            }
        }
        if size > limit {
            return Err(ObjectError::TooLarge { what, size, limit });
        }
        let budget = Arc::new(Budget::default());
        let endian = if elf.encoding.little_endian { RunTimeEndian::Little } else { RunTimeEndian::Big };
        let mut sections = Vec::new();
        for (id, stored) in stored {
            let bytes = stored.load(file, id.name(), limit)?;
            sections.push(Arc::new(SectionData { id, bytes, endian, budget: Arc::clone(&budget) }));
        }
        let mut dwarf = Dwarf {
            sections,
            budget,
            units: limit / BYTES_PER_UNIT,
            context: None,
            used: 0,
            time: Duration::ZERO,
            given_up: false,
        };
        dwarf.open()?;
        Ok(dwarf)
    }

    /// Finds the units.
    fn open(&mut self) -> Result<(), ObjectError> {
        let size: usize = self.sections.iter().map(|section| section.bytes.len()).sum();
        let time = Duration::from_secs(size as u64 / 100_000_000) + MAX_OPEN_TIME;
        self.budget.begin(self.units, time);
        let endian = self.sections.first().map_or(RunTimeEndian::Little, |section| section.endian);
        let empty =
            |id| Arc::new(SectionData { id, bytes: Vec::new(), endian, budget: Arc::clone(&self.budget) });
        let find = |id| {
            let section = self.sections.iter().find(|section| section.id == id);
            Ok(SectionReader::new(section.map_or_else(|| empty(id), Arc::clone)))
        };
        let context = gimli::Dwarf::load(find).and_then(Context::from_dwarf);
        self.used = self.units - self.budget.left();
        match context {
            // Units that cannot be read are left out in silence, also when it is the budget that is at its end.
            Ok(context) if !self.budget.is_exhausted() => {
                self.context = Some(context);
                Ok(())
            }
            Ok(_) => Err(self.give_up()),
            Err(error) => Err(self.error(error)),
        }
    }

    fn give_up(&mut self) -> ObjectError {
        self.given_up = true;
        self.context = None;
        ObjectError::TooMuchWork("DWARF")
    }

    fn error(&mut self, error: gimli::Error) -> ObjectError {
        if self.budget.is_exhausted() {
            return self.give_up();
        }
        ObjectError::Malformed { what: "DWARF", problem: error.to_string() }
    }

    /// The functions at an address, the innermost inlined one first. Empty if the DWARF does not know the address.
    /// After an error, ask the symbol table. After [`ObjectError::TooMuchWork`] every further call fails at once.
    pub fn frames(&mut self, address: ElfAddress) -> Result<Vec<Frame>, ObjectError> {
        if self.given_up || self.time > MAX_TOTAL_TIME {
            return Err(self.give_up());
        }
        // addr2line adds 1.
        if address.0 == u64::MAX {
            return Ok(Vec::new());
        }
        let start = Instant::now();
        if self.context.is_none() {
            self.open()?;
        }
        self.budget.begin(self.units, MAX_LOOKUP_TIME);
        let result = self.context.as_ref().map_or(Ok(Vec::new()), |context| frames(context, address));
        self.used = self.used.saturating_add(self.units - self.budget.left());
        self.time += start.elapsed();
        let result = match result {
            // An error may have been swallowed on the way (a name that could not be read); the frames are right.
            Ok(frames) if !self.budget.is_exhausted() => Ok(frames),
            Ok(_) => Err(self.give_up()),
            Err(error) => Err(self.error(error)),
        };
        // What was parsed is kept for the next address, until it is too much.
        if self.used > self.units {
            self.context = None;
            self.used = 0;
        }
        result
    }

    /// Bytes of memory it holds: the sections, and an upper estimate of what was parsed of them so far.
    pub fn memory_size(&self) -> usize {
        let sections: usize = self.sections.iter().map(|section| section.bytes.capacity()).sum();
        sections.saturating_add(usize::try_from(self.used * BYTES_PER_UNIT).unwrap_or(usize::MAX))
    }
}

fn frames(context: &Context<SectionReader>, address: ElfAddress) -> Result<Vec<Frame>, gimli::Error> {
    let mut found = context.find_frames(address.0).skip_all_loads()?;
    let mut frames = Vec::new();
    while let Some(frame) = found.next()? {
        let location = frame.location.as_ref();
        let function = frame.function.as_ref().and_then(|function| function.raw_name().ok());
        frames.push(Frame {
            function: function.filter(|name| !name.is_empty()).map(|name| cut(&name, MAX_NAME)),
            file: location.and_then(|location| location.file).map(|file| cut(file, MAX_PATH)),
            line: location.and_then(|location| location.line),
        });
        if frames.len() == MAX_FRAMES {
            break;
        }
    }
    Ok(frames)
}

/// A name as text: cut to `length` bytes, and without control characters.
fn cut(name: &str, length: usize) -> String {
    let name = &name[..name.floor_char_boundary(length)];
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_can_be_sent_to_another_thread() {
        fn is_send<T: Send>() {}
        is_send::<Dwarf>();
    }

    #[test]
    fn names_are_cut_between_characters() {
        assert_eq!(cut("a\u{e4}\u{e4}", 4), "a\u{e4}");
        assert_eq!(cut("a\nb", 100), "a?b");
    }
}
