//! `.symtab` and `.dynsym`.
//!
//! Layout: System V ABI, chapter 4, "Symbol Table".

use crate::{
    Class, ElfType, ObjectError,
    elf::{Elf, SHF_EXECINSTR, SHT_DYNSYM, SHT_NOBITS, SHT_SYMTAB, Section},
    read_at::{read_exact, read_range},
    symbols::{Candidate, Code},
};

/// Symbols that are read at a time.
const BATCH: u64 = 4096;

const STT_NOTYPE: u8 = 0;
const STT_FUNC: u8 = 2;
const STT_GNU_IFUNC: u8 = 10;
const STB_LOCAL: u8 = 0;
const SHN_UNDEF: u16 = 0;
/// From here on section indexes are no indexes (`SHN_ABS`, `SHN_COMMON`).
const SHN_LORESERVE: u16 = 0xff00;
const SHN_XINDEX: u16 = 0xffff;

/// What the tables of a file have.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) candidates: Vec<Candidate>,
    /// The string tables, one after the other.
    pub(crate) names: Vec<u8>,
    /// There was a `.symtab` with functions in it.
    pub(crate) complete: bool,
    pub(crate) problem: Option<ObjectError>,
}

impl Found {
    /// How many bytes may still be used.
    pub(crate) fn room(&self, max_bytes: usize) -> usize {
        let used = self.names.len() + self.candidates.len() * size_of::<Candidate>();
        max_bytes.saturating_sub(used)
    }
}

/// One symbol.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Symbol {
    pub(crate) name: u32,
    info: u8,
    section: u16,
    value: u64,
    size: u64,
}

impl Symbol {
    pub(crate) fn parse(elf: &Elf<'_>, entry: &[u8]) -> Self {
        let encoding = elf.encoding;
        let (info, section) = match encoding.class {
            Class::Elf32 => (12, 14),
            Class::Elf64 => (4, 6),
        };
        Symbol {
            name: encoding.u32(entry, 0),
            info: entry.get(info).copied().unwrap_or_default(),
            section: encoding.u16(entry, section),
            value: encoding.word(entry, 4, 8),
            size: encoding.word(entry, 8, 16),
        }
    }

    /// A function's rank among its aliases, or `None` if it is no function.
    fn rank(self, elf: &Elf<'_>) -> Option<u8> {
        let in_code = || {
            let section = elf.sections.get(usize::from(self.section));
            section.is_some_and(|section| section.flags & SHF_EXECINSTR != 0)
        };
        if self.section == SHN_UNDEF || (self.section >= SHN_LORESERVE && self.section != SHN_XINDEX) {
            return None;
        }
        let label = match self.info & 0xf {
            STT_FUNC | STT_GNU_IFUNC => false,
            // Hand-written assembler often has no types.
            STT_NOTYPE if in_code() => true,
            _ => return None,
        };
        let local = self.info >> 4 == STB_LOCAL;
        Some(u8::from(self.size == 0) << 2 | u8::from(label) << 1 | u8::from(local))
    }
}

pub(crate) fn entry_size(elf: &Elf<'_>) -> usize {
    elf.encoding.size(16, 24)
}

pub(crate) fn read(elf: &Elf<'_>, code: &Code, max_bytes: usize) -> Found {
    let mut found = Found::default();
    // Symbols of an object file are counted from their sections, not in addresses.
    if elf.kind == ElfType::Relocatable {
        found.problem = Some(ObjectError::Unsupported("an object file that is not linked"));
        return found;
    }
    for kind in [SHT_SYMTAB, SHT_DYNSYM] {
        let Some(table) = elf.section_of_kind(kind) else { continue };
        if let Err(error) = read_table(elf, table, code, max_bytes, &mut found) {
            found.problem.get_or_insert(error);
        }
        found.complete |= kind == SHT_SYMTAB && !found.candidates.is_empty();
    }
    found
}

fn read_table(
    elf: &Elf<'_>,
    table: &Section,
    code: &Code,
    max_bytes: usize,
    found: &mut Found,
) -> Result<(), ObjectError> {
    let what = "symbol table";
    let names = read_names(elf, table, found.room(max_bytes) as u64)?;
    let names_at = found.names.len();
    let names_size = names.len();
    if names_at == 0 {
        found.names = names;
    } else {
        found.names.extend(names);
    }
    let entry_size = entry_size(elf) as u64;
    let count = table.size / entry_size;
    let mut batch = Vec::new();
    for first in (0..count).step_by(usize::try_from(BATCH).unwrap_or(1)) {
        let size = (count - first).min(BATCH) * entry_size;
        batch.resize(usize::try_from(size).unwrap_or_default(), 0);
        let offset = table.offset.saturating_add(first * entry_size);
        read_exact(elf.file, what, offset, &mut batch)?;
        for entry in batch.chunks_exact(usize::try_from(entry_size).unwrap_or(1)) {
            let symbol = Symbol::parse(elf, entry);
            let Some(rank) = symbol.rank(elf) else { continue };
            let Some(start) = code.relative(symbol.value) else { continue };
            let name = names_at.saturating_add(symbol.name as usize);
            if symbol.name == 0 || symbol.name as usize >= names_size {
                continue;
            }
            let Ok(name) = u32::try_from(name) else { continue };
            // One entry doubles the vector, so twice the room must be there.
            if found.room(max_bytes) < found.candidates.capacity() * size_of::<Candidate>() {
                let limit = max_bytes as u64;
                return Err(ObjectError::TooLarge { what, size: table.size, limit });
            }
            let size = u32::try_from(symbol.size).unwrap_or(u32::MAX);
            found.candidates.push(Candidate { start, size, name, rank });
        }
    }
    Ok(())
}

/// The names that a symbol table refers to.
pub(crate) fn read_names(elf: &Elf<'_>, table: &Section, limit: u64) -> Result<Vec<u8>, ObjectError> {
    let what = "names of symbols";
    let names = elf.sections.get(table.link as usize).filter(|names| names.kind != SHT_NOBITS);
    let names = names.ok_or(ObjectError::Missing(what))?;
    read_range(elf.file, what, names.offset, names.size, limit.min(u64::from(u32::MAX / 2)))
}
