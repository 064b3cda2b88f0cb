//! Unwind rows: what an executable says of how to get from a frame to its caller's, as small as it can be.
//!
//! Sources: Go's function table; `.eh_frame` (Linux Standard Base 5.0, section 10.6; DWARF 5, section 6.4);
//! `.debug_frame`; the code itself for the stubs of the linkage table; where two speak of a function, in this order. Call frame instructions are executed by gimli, function
//! by function in the order of addresses, and each of their rows becomes a [`Rule`] if it is one of the forms that
//! compilers use.

mod budget;
mod entries;
mod frames;
mod go;
mod go_assembly;
mod innermost;
mod linkage;
mod rule;
mod sections;
mod sink;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, time::Duration};

use records::{Page, Row, Rule};

use crate::{
    Class, ElfType, ObjectError, ReadAt,
    elf::{EM_X86_64, Elf},
};

/// Most time for one executable: more than 30 million rows of an honest one, and less than its reader waits.
const MAX_TIME: Duration = Duration::from_secs(10);

/// The unwind rows of an executable.
#[derive(Debug, Default)]
pub struct UnwindRows {
    /// Number of the first page of text: file offset `>> PAGE_BITS`.
    pub first_page: u32,
    /// A page of text each, from `first_page` on. Their `first` counts `rows`, and may be the row that is in force at
    /// the page's start, although it stands in a page before.
    pub pages: Vec<Page>,
    /// The rows; their rules count `rules`.
    pub rows: Vec<Row>,
    /// The distinct rules.
    pub rules: Vec<Rule>,
    /// What could not be said in a row, by kind: how often.
    pub misfits: BTreeMap<&'static str, u64>,
    /// Why not all of it was read. What was read before is good.
    pub problem: Option<ObjectError>,
}

impl UnwindRows {
    /// Reads the rows of an executable for x86-64, at most `max_rows`. Memory: 4 bytes a row, the bytes of the sections
    /// (64 MiB each, at most), and 24 bytes for each function. Time: 10 seconds and a little at most.
    ///
    /// What could not be read at all is in `problem`; what could be read of the rest is good, and where nothing is known
    /// the rule is [`records::Cfa::Unknown`].
    ///
    /// # Errors
    ///
    /// [`ObjectError::Missing`] if the file has no unwind information; otherwise as for all files.
    pub fn read(file: &dyn ReadAt, max_rows: usize) -> Result<Self, ObjectError> {
        Self::read_within(file, max_rows, MAX_TIME)
    }

    /// The same in less time, or more. When it is over, `problem` is [`ObjectError::TooMuchWork`].
    ///
    /// # Errors
    ///
    /// As for [`UnwindRows::read`].
    pub fn read_within(file: &dyn ReadAt, max_rows: usize, time: Duration) -> Result<Self, ObjectError> {
        let elf = Elf::read(file)?;
        if elf.machine != EM_X86_64 || !elf.encoding.little_endian || elf.encoding.class != Class::Elf64 {
            return Err(ObjectError::Unsupported("the unwind information of this machine"));
        }
        if elf.kind == ElfType::Relocatable {
            return Err(ObjectError::Unsupported("the unwind information of an object file"));
        }
        let (go, go_problem) = match go::of(&elf) {
            Some(Ok(functions)) => (Some(functions), None),
            Some(Err(problem)) => (None, Some(problem)),
            None => (None, None),
        };
        let (sections, cut) = match sections::read(&elf) {
            Ok(read) => read,
            // A Go program without C in it needs no other.
            Err(ObjectError::Missing(_)) if go.is_some() => (Vec::new(), None),
            Err(error) if go.is_some() => (Vec::new(), Some(error)),
            Err(error) => return Err(error),
        };
        let mut sink = sink::Sink::new(max_rows);
        let mut budget = budget::Budget::new(time);
        let end = frames::read(&elf, go, &sections, &mut budget, &mut sink);
        Ok(sink.finish(go_problem.or(cut).or(end.err())))
    }
}
