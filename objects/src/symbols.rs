//! The function symbols of a file, compact and sorted.

use records::ElfAddress;

use crate::{
    ObjectError, ReadAt,
    elf::Elf,
    gopclntab, plt,
    symbol_names::{compact, head_of_name, printable},
    symtab,
};

/// Entries that a look-up goes back, for functions that hold others.
const MAX_NESTED: usize = 64;

/// Function names by address: 12 bytes an entry, and the names.
#[derive(Debug, Default)]
pub struct SymbolTable {
    /// Addresses are counted from here, the start of the first code.
    base: u64,
    /// Sorted by start.
    entries: Vec<Entry>,
    /// Each name ends at a NUL.
    names: String,
    problem: Option<ObjectError>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    start: u32,
    /// First address after it.
    end: u32,
    /// Where in the names.
    name: u32,
}

/// A symbol that a table of the file has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Candidate {
    /// From the base.
    pub(crate) start: u32,
    /// 0 if unknown.
    pub(crate) size: u32,
    /// Where in the names.
    pub(crate) name: u32,
    /// The less the better, before names are compared.
    pub(crate) rank: u8,
}

/// Where code lies: sections if there are any, else segments. Sorted.
#[derive(Debug)]
pub(crate) struct Code {
    ranges: Vec<(u64, u64)>,
}

impl Code {
    pub(crate) fn of(elf: &Elf<'_>) -> Self {
        let sections = elf.sections.iter().filter(|section| {
            section.flags & crate::elf::SHF_EXECINSTR != 0 && section.address != 0 && section.size != 0
        });
        let mut ranges: Vec<_> =
            sections.map(|section| (section.address, section.address.saturating_add(section.size))).collect();
        if ranges.is_empty() {
            let segments = elf.segments().filter(|segment| segment.flags & crate::elf::PF_X != 0);
            ranges = segments
                .map(|segment| (segment.address, segment.address.saturating_add(segment.memory_size)))
                .collect();
        }
        ranges.sort_unstable();
        Code { ranges }
    }

    pub(crate) fn base(&self) -> u64 {
        self.ranges.first().map_or(0, |range| range.0)
    }

    /// The end of the code that holds the address.
    pub(crate) fn end(&self, address: u64) -> Option<u64> {
        let after = self.ranges.partition_point(|range| range.0 <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        (address < range.1).then_some(range.1)
    }

    /// The address counted from the base, if there is code.
    pub(crate) fn relative(&self, address: u64) -> Option<u32> {
        self.end(address)?;
        u32::try_from(address - self.base()).ok()
    }
}

impl SymbolTable {
    /// Reads `.symtab` and `.dynsym`, names PLT stubs, and falls back to Go's function table. Neither while it reads
    /// nor later does it hold more than about `max_bytes`; a table that would is left out ([`SymbolTable::problem`]).
    ///
    /// An error only if the file has no function names that can be read at all.
    pub fn read(file: &dyn ReadAt, max_bytes: usize) -> Result<Self, ObjectError> {
        let elf = Elf::read(file)?;
        let code = Code::of(&elf);
        let mut found = symtab::read(&elf, &code, max_bytes);
        // A Go program without .symtab may still have a .dynsym, of the C library's functions.
        if !found.complete
            && let Some(section) = gopclntab::section(&elf)
            && let Err(error) = gopclntab::read_names(&elf, section, &code, max_bytes, &mut found)
        {
            found.problem.get_or_insert(error);
        }
        let symtab::Found { candidates, names, problem, .. } = found;
        let mut table = SymbolTable { base: code.base(), problem, ..SymbolTable::default() };
        table.fill(candidates, names, &code);
        let room = max_bytes.saturating_sub(table.memory_size());
        table.add_stubs(&plt::stubs(&elf, room));
        match (table.is_empty(), table.problem.take()) {
            (true, Some(problem)) => Err(problem),
            (true, None) => Err(ObjectError::Missing("function symbols")),
            (false, problem) => {
                table.problem = problem;
                Ok(table)
            }
        }
    }

    fn fill(&mut self, mut candidates: Vec<Candidate>, mut names: Vec<u8>, code: &Code) {
        // So that a name at the very end stops, too.
        names.push(0);
        candidates.sort_unstable_by_key(|candidate| (candidate.start, candidate.rank, candidate.name));
        let mut entries: Vec<Entry> = Vec::with_capacity(candidates.len());
        // End of the sized functions so far. Labels inside a function are not functions.
        let mut covered = 0;
        let mut aliases = candidates.chunk_by(|one, other| one.start == other.start).peekable();
        while let Some(group) = aliases.next() {
            let Some(best) = best_alias(group, &names) else { continue };
            let own = code.end(self.base + u64::from(best.start)).unwrap_or_default();
            let mut limit = u32::try_from(own - self.base.min(own)).unwrap_or(u32::MAX);
            let size = group.iter().map(|alias| alias.size).find(|size| *size > 0).unwrap_or_default();
            if size > 0 {
                let end = best.start.saturating_add(size).min(limit);
                covered = covered.max(end);
                entries.push(Entry { start: best.start, end, name: best.name });
            } else if best.start >= covered {
                if let Some(next) = aliases.peek().and_then(|next| next.first()) {
                    limit = limit.min(next.start);
                }
                entries.push(Entry { start: best.start, end: limit, name: best.name });
            }
        }
        drop(candidates);
        entries.shrink_to_fit();
        // Names in the order of the file's string table, so that those that share a tail go on sharing it.
        entries.sort_unstable_by_key(|entry| entry.name);
        compact(&mut names, entries.iter_mut().map(|entry| &mut entry.name));
        entries.sort_unstable();
        self.entries = entries;
        self.names = printable(names);
    }

    fn add_stubs(&mut self, stubs: &[plt::Stub]) {
        let mut added = Vec::new();
        for stub in stubs {
            let start = stub.address.0.checked_sub(self.base).and_then(|start| u32::try_from(start).ok());
            let name = u32::try_from(self.names.len());
            if let (Some(start), Ok(name), None) = (start, name, self.lookup(stub.address)) {
                added.push(Entry { start, end: start.saturating_add(stub.size), name });
                self.names.push_str(&stub.name);
                self.names.push_str("@plt\0");
            }
        }
        if !added.is_empty() {
            self.entries.extend(added);
            self.entries.sort_unstable();
            self.names.shrink_to_fit();
            self.entries.shrink_to_fit();
        }
    }

    /// The function that holds the address: its name as the file spells it (mangled; a PLT stub's is `NAME@plt`; at
    /// most 4 KiB), and where it starts.
    pub fn lookup(&self, address: ElfAddress) -> Option<(&str, ElfAddress)> {
        let address = u32::try_from(address.0.checked_sub(self.base)?).ok()?;
        let after = self.entries.partition_point(|entry| entry.start <= address);
        let before = self.entries.get(..after)?.iter().rev().take(MAX_NESTED);
        let entry = before.into_iter().find(|entry| address < entry.end)?;
        let name = self.names.get(entry.name as usize..)?.split('\0').next()?;
        // A forged name may begin where another one is cut (`compact`).
        if name.is_empty() {
            return None;
        }
        Some((name, ElfAddress(self.base + u64::from(entry.start))))
    }

    /// Number of functions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The first thing that was wrong with the tables, when names are missing for it.
    pub fn problem(&self) -> Option<&ObjectError> {
        self.problem.as_ref()
    }

    /// Bytes of memory it holds.
    pub fn memory_size(&self) -> usize {
        size_of::<Self>() + self.names.capacity() + self.entries.capacity() * size_of::<Entry>()
    }
}

/// The name to show, of several at one address: by rank (sized before unsized, functions before mere labels, visible
/// before local), then the fewest leading underscores (`write`, not `__write`), then the shortest, then the first in the
/// alphabet; so each build and each table of the same file gives the same one.
fn best_alias<'a>(group: &'a [Candidate], names: &[u8]) -> Option<&'a Candidate> {
    let heads = group.iter().map(|candidate| (candidate, head_of_name(names, candidate.name)));
    let best = heads.filter(|(_, name)| !name.is_empty()).min_by_key(|(candidate, name)| {
        let underscores = name.iter().take_while(|byte| **byte == b'_').count();
        (candidate.rank, underscores, name.len(), *name)
    });
    best.map(|(candidate, _)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_nothing_but_a_version_is_none() {
        let code = Code { ranges: vec![(0x1000, 0x2000)] };
        let candidate = |start, name| Candidate { start, size: 16, name, rank: 0 };
        let mut table = SymbolTable { base: code.base(), ..SymbolTable::default() };
        // The second name begins where the first one ends: at its version.
        table.fill(vec![candidate(0, 1), candidate(16, 4)], b"\0one@V1\0".to_vec(), &code);
        assert_eq!(table.lookup(ElfAddress(0x100f)), Some(("one", ElfAddress(0x1000))));
        assert_eq!(table.lookup(ElfAddress(0x1010)), None);
    }
}
