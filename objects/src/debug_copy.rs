//! A copy of an ELF file with what names are found by, and without code and data: what a server needs to symbolize.
//!
//! Its section headers are those of the file, in the same order; a section whose content is left out has the type `SHT_NOBITS`, as in
//! the files that `objcopy --only-keep-debug` makes. Program headers say where things were loaded, as tools want to know it; but for notes
//! nothing of it is there. Written from its first byte to its last, a piece at a time: the file may be a GiB, and changes under our hands.

use std::io::Write;

use crate::{
    Class, ObjectError, ReadAt,
    elf::{Elf, PT_NOTE, ProgramHeader, SHT_DYNSYM, SHT_NOBITS, SHT_NOTE, SHT_SYMTAB, Section},
    read_at::{read_exact, read_range},
};

const PT_NULL: u32 = 0;
const PT_INTERP: u32 = 3;
const PT_PHDR: u32 = 6;
const SHT_NULL: u32 = 0;
const SHT_STRTAB: u32 = 3;
const SHT_SYMTAB_SHNDX: u32 = 18;
/// Notes that are kept: beyond, something is wrong with the file.
const MAX_NOTES: usize = 64;
/// Bytes that are copied at once.
const PIECE: usize = 256 * 1024;
/// Largest alignment that a section is given.
const MAX_ALIGN: u64 = 4096;

/// Sections that are kept by their names' beginning: DWARF, compressed or not.
const KEPT_BEGINNINGS: [&[u8]; 2] = [b".debug_", b".zdebug_"];
/// Where the other half of a file's DWARF is that `dwz` made: names that it shares with other files (DWARF's version 5, section 7.3.6,
/// has the like as supplementary object files).
const SHARED_DWARF: &str = ".gnu_debugaltlink";
/// Sections that are kept by their names: Go's tables, which functions the linkage table leads to (not its stubs, which are code), what
/// made the file, a compressed symbol table, and which file shares DWARF with this one.
const KEPT: [&[u8]; 10] = [
    b".gopclntab",
    b".data.rel.ro.gopclntab",
    b".go.buildinfo",
    b".go.module",
    b".gosymtab",
    b".rela.plt",
    b".rel.plt",
    b".comment",
    b".gnu_debugdata",
    SHARED_DWARF.as_bytes(),
];

/// Where a piece of the file comes to lie in the copy.
struct Piece {
    from: u64,
    size: u64,
    to: u64,
}

/// What the copy will be.
struct Plan {
    /// The file's header, changed.
    header: Vec<u8>,
    /// Program headers, changed.
    program_headers: Vec<u8>,
    pieces: Vec<Piece>,
    /// Section headers, changed.
    section_headers: Vec<u8>,
    section_headers_at: u64,
}

/// Writes the copy, of at most `limit` bytes, and gives its size.
///
/// # Errors
///
/// [`ObjectError::Missing`] where the file has nothing that names are found by; [`ObjectError::TooLarge`] beyond the limit, before
/// anything is written. Whatever else goes wrong, what has been written is no copy.
pub fn write_debug_copy(file: &dyn ReadAt, out: &mut dyn Write, limit: u64) -> Result<u64, ObjectError> {
    let elf = Elf::read(file)?;
    let plan = plan(&elf, limit)?;
    let size = plan.section_headers_at.saturating_add(plan.section_headers.len() as u64);
    if size > limit {
        return Err(ObjectError::TooLarge { what: "copy for symbolization", size, limit });
    }
    let mut out = Counted { out, at: 0, limit };
    out.write(&plan.header)?;
    out.write(&plan.program_headers)?;
    let mut buffer = vec![0; PIECE];
    for piece in &plan.pieces {
        out.pad_to(piece.to)?;
        let mut done = 0;
        while done < piece.size {
            let length = usize::try_from(piece.size - done).unwrap_or(PIECE).min(PIECE);
            read_exact(file, "section", piece.from + done, &mut buffer[..length])?;
            out.write(&buffer[..length])?;
            done += length as u64;
        }
    }
    out.pad_to(plan.section_headers_at)?;
    out.write(&plan.section_headers)?;
    Ok(out.at)
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    at: u64,
    limit: u64,
}

impl Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        let offset = self.at;
        // Whatever the plan said.
        grown(offset, bytes.len() as u64, self.limit)?;
        self.out.write_all(bytes).map_err(|source| ObjectError::Io { what: "the copy", offset, source })?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn pad_to(&mut self, to: u64) -> Result<(), ObjectError> {
        while self.at < to {
            let length = usize::try_from(to - self.at).unwrap_or(64).min(64);
            self.write(&[0; 64][..length])?;
        }
        Ok(())
    }
}

/// Whether the DWARF is not to be sent: half of it is in a file that the server does not have, and by what is left functions have no
/// names, which is worse than what the symbol table says.
fn is_half(elf: &Elf<'_>) -> bool {
    elf.section(SHARED_DWARF).is_some() && elf.section_of_kind(SHT_SYMTAB).is_some()
}

fn is_kept(elf: &Elf<'_>, section: &Section, without_dwarf: bool) -> bool {
    let name = elf.name(section);
    let is_dwarf = KEPT_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning));
    if without_dwarf && (is_dwarf || name == SHARED_DWARF.as_bytes()) {
        return false;
    }
    let by_kind = matches!(section.kind, SHT_SYMTAB | SHT_STRTAB | SHT_DYNSYM | SHT_NOTE | SHT_SYMTAB_SHNDX);
    section.kind != SHT_NOBITS && (by_kind || KEPT.contains(&name) || is_dwarf)
}

/// Whether names can be found by it.
fn has_names(elf: &Elf<'_>) -> bool {
    let by_name = [".debug_info", ".zdebug_info", ".gopclntab", ".data.rel.ro.gopclntab", ".gnu_debugdata"];
    by_name.iter().any(|name| elf.section(name).is_some())
        || [SHT_SYMTAB, SHT_DYNSYM].iter().any(|kind| elf.section_of_kind(*kind).is_some())
}

fn plan(elf: &Elf<'_>, limit: u64) -> Result<Plan, ObjectError> {
    if elf.sections.is_empty() || !has_names(elf) {
        return Err(ObjectError::Missing("anything that names are found by"));
    }
    let encoding = elf.encoding;
    let header_size = encoding.size(52, 64);
    let mut header = vec![0; header_size];
    read_exact(elf.file, "ELF header", 0, &mut header)?;
    let has_note = |header: &&ProgramHeader| header.kind == PT_NOTE && header.file_size > 0;
    let entry_size = encoding.size(32, 56);
    let mut at = (header_size + entry_size * elf.program_headers.len()) as u64;
    let mut pieces = Vec::new();
    let mut program_headers = Vec::new();
    for header in &elf.program_headers {
        if has_note(&header) && pieces.len() < MAX_NOTES {
            at = aligned(at, header.align)?;
            program_headers.extend(program_header(elf, header, at, header.file_size));
            let size = within(elf, header.offset, header.file_size)?;
            pieces.push(Piece { from: header.offset, size, to: at });
            at = grown(at, size, limit)?;
        } else {
            // What is only of use to who loads the file is not there at all.
            let kind = if matches!(header.kind, PT_PHDR | PT_INTERP) { PT_NULL } else { header.kind };
            // Where it would be in its page.
            let offset = header.address % header.align.clamp(1, 1 << 30);
            program_headers.extend(program_header(elf, &ProgramHeader { kind, ..*header }, offset, 0));
        }
    }
    let notes = pieces.len();
    let without_dwarf = is_half(elf);
    let (raw_at, entry_size) = (encoding.word(&header, 32, 40), encoding.size(40, 64));
    let size = (elf.sections.len() * entry_size) as u64;
    let mut section_headers = read_range(elf.file, "section header table", raw_at, size, size)?;
    for (section, entry) in elf.sections.iter().zip(section_headers.chunks_exact_mut(entry_size)) {
        if section.kind == SHT_NULL {
            continue;
        }
        let kept = is_kept(elf, section, without_dwarf);
        let piece = pieces.iter().take(notes).find(|piece| {
            let end = piece.from + piece.size;
            kept && section.kind == SHT_NOTE
                && section.offset >= piece.from
                && section.offset.saturating_add(section.size) <= end
        });
        let to = match piece {
            Some(piece) => piece.to + (section.offset - piece.from),
            None if kept => {
                at = aligned(at, section.align)?;
                pieces.push(Piece {
                    from: section.offset,
                    size: within(elf, section.offset, section.size)?,
                    to: at,
                });
                let to = at;
                at = grown(at, section.size, limit)?;
                to
            }
            None => at,
        };
        if !kept {
            put(elf, &mut entry[4..8], u64::from(SHT_NOBITS));
        }
        put_word(elf, entry, 16, 24, to);
    }
    let section_headers_at = aligned(at, 8)?;
    let has_program_headers = !elf.program_headers.is_empty();
    put_word(elf, &mut header, 28, 32, if has_program_headers { header_size as u64 } else { 0 });
    put_word(elf, &mut header, 32, 40, section_headers_at);
    let at = encoding.size(44, 56);
    put(elf, &mut header[at..at + 2], elf.program_headers.len() as u64);
    Ok(Plan { header, program_headers, pieces, section_headers, section_headers_at })
}

/// A program header whose content lies elsewhere, or is not there.
fn program_header(elf: &Elf<'_>, header: &ProgramHeader, offset: u64, file_size: u64) -> Vec<u8> {
    let mut entry = vec![0; elf.encoding.size(32, 56)];
    put(elf, &mut entry[..4], u64::from(header.kind));
    let flags = elf.encoding.size(24, 4);
    put(elf, &mut entry[flags..flags + 4], u64::from(header.flags));
    for (at_32, at_64, value) in [
        (4, 8, offset),
        (8, 16, header.address),
        // The physical address, which nobody uses.
        (12, 24, header.address),
        (16, 32, file_size),
        (20, 40, header.memory_size),
        (28, 48, header.align),
    ] {
        put_word(elf, &mut entry, at_32, at_64, value);
    }
    entry
}

/// One more piece; refused as soon as it is too much, so that no sum of forged sizes comes round to a small one.
fn grown(at: u64, size: u64, limit: u64) -> Result<u64, ObjectError> {
    let sum = at.saturating_add(size);
    if sum > limit {
        return Err(ObjectError::TooLarge { what: "copy for symbolization", size: sum, limit });
    }
    Ok(sum)
}

fn aligned(at: u64, align: u64) -> Result<u64, ObjectError> {
    at.checked_next_multiple_of(align.clamp(1, MAX_ALIGN)).ok_or_else(|| beyond(at, align))
}

/// The size of a part of the file, if the file has it.
fn within(elf: &Elf<'_>, offset: u64, size: u64) -> Result<u64, ObjectError> {
    let end = offset.checked_add(size).filter(|end| *end <= elf.file.size());
    end.map(|_| size).ok_or_else(|| beyond(offset, size))
}

fn beyond(offset: u64, wanted: u64) -> ObjectError {
    ObjectError::Truncated { what: "section", offset, wanted }
}

/// Writes a number into all of `field`.
fn put(elf: &Elf<'_>, field: &mut [u8], value: u64) {
    let length = field.len();
    if elf.encoding.little_endian {
        field.copy_from_slice(&value.to_le_bytes()[..length]);
    } else {
        field.copy_from_slice(&value.to_be_bytes()[8 - length..]);
    }
}

/// Writes a number that is as wide as the class.
fn put_word(elf: &Elf<'_>, bytes: &mut [u8], at_32: usize, at_64: usize, value: u64) {
    let (at, length) = match elf.encoding.class {
        Class::Elf32 => (at_32, 4),
        Class::Elf64 => (at_64, 8),
    };
    put(elf, &mut bytes[at..at + length], value);
}

#[cfg(test)]
mod tests;
