//! What the uploader must know of an executable before anything else: who it is, and where in it code lies.

use records::{ElfAddress, FileOffset};

use sha2::{Digest, Sha256};

use crate::{
    ObjectError, ReadAt,
    elf::{Elf, PF_X, SHT_DYNSYM, SHT_SYMTAB, Section},
    gopclntab, notes,
    read_at::{read_exact, read_range},
};

/// 32 or 64 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// `ELFCLASS32`.
    Elf32,
    /// `ELFCLASS64`.
    Elf64,
}

/// What kind of file it is (`e_type`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ElfType {
    /// `ET_REL`: not linked, has no addresses.
    Relocatable,
    /// `ET_EXEC`: a program at fixed addresses.
    Executable,
    /// `ET_DYN`: a library or a position-independent program.
    Dynamic,
    /// `ET_CORE`, or a number that nobody knows.
    Other(u16),
}

/// Where a [`FileId`] comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum IdKind {
    /// The linker's note `GNU`/`NT_GNU_BUILD_ID`.
    Gnu,
    /// Go's note `Go`/4; the bytes are its text.
    Go,
    /// Neither was there: a hash of the content, see [`ElfFacts::read`].
    Hash,
}

/// What tells one build from another.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct FileId {
    /// Where it comes from.
    pub kind: IdKind,
    /// The id itself, 1 to 1,024 bytes.
    pub bytes: Vec<u8>,
}

/// A part of the file that is loaded (`PT_LOAD`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    /// `p_vaddr`.
    pub address: ElfAddress,
    /// `p_memsz`, in bytes.
    pub memory_size: u64,
    /// `p_offset`.
    pub offset: FileOffset,
    /// `p_filesz`, in bytes.
    pub file_size: u64,
    /// `PF_X`.
    pub executable: bool,
}

#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a fact of its own, and any mix of them is possible"
)]
/// What the file can be symbolized by. Said by section headers; nothing of it was parsed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    /// A `.symtab` that is not empty.
    pub symbol_table: bool,
    /// A `.dynsym` that is not empty.
    pub dynamic_symbols: bool,
    /// DWARF with lines (`.debug_info` and `.debug_line`, compressed or not).
    pub dwarf: bool,
    /// The name of the file that has the DWARF (`.gnu_debuglink`): without a `/`, as the format demands.
    pub debug_link: Option<String>,
    /// A file that shares DWARF with others (`.gnu_debugaltlink`, made by dwz).
    pub debug_alt_link: bool,
    /// A compressed symbol table (`.gnu_debugdata`, "mini debug info").
    pub debug_data: bool,
    /// Go's function table (`.gopclntab`).
    pub go_functions: bool,
}

/// Facts of an ELF file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ElfFacts {
    /// 32 or 64 bits.
    pub class: Class,
    /// Whether numbers are little endian.
    pub little_endian: bool,
    /// `e_machine`: 62 is x86-64, 183 aarch64.
    pub machine: u16,
    /// What kind of file it is.
    pub elf_type: ElfType,
    /// What tells this build from others.
    pub id: FileId,
    /// Loaded parts in the order of the file's table; at most 4,096.
    pub segments: Vec<Segment>,
    /// What it can be symbolized by.
    pub contents: Contents,
}

/// Bytes at the start of the file that go into a content hash: all its headers.
const HASHED_HEAD: u64 = 64 * 1024;
/// Pieces of code that go into a content hash, spread evenly over each executable segment.
const HASHED_PIECES: u64 = 16;
/// Bytes of each such piece.
const HASHED_PIECE: u64 = 64 * 1024;
/// Executable segments that are hashed.
const HASHED_SEGMENTS: usize = 4;

impl ElfFacts {
    /// Reads them: headers and notes and, if there is no build id, the content that its replacement is a hash of.
    ///
    /// That hash is the first 20 bytes of SHA-256 over the size of the file, its first 64 KiB (so all headers of a
    /// linked file), and of each executable segment (the first four) the whole if it is at most 1 MiB, else 16 pieces
    /// of 64 KiB, evenly spread. So it reads at most about 4 MiB, and two builds of which only data differs can share
    /// an id: names, which is what ids are compared for, are then the same.
    pub fn read(file: &dyn ReadAt) -> Result<Self, ObjectError> {
        let elf = Elf::read(file)?;
        let segments = elf.segments().map(|header| Segment {
            address: ElfAddress(header.address),
            memory_size: header.memory_size,
            offset: FileOffset(header.offset),
            file_size: header.file_size,
            executable: header.flags & PF_X != 0,
        });
        let segments: Vec<_> = segments.collect();
        let id = match notes::build_id(&elf) {
            Some(id) => id,
            None => content_hash(file, &segments)?,
        };
        Ok(ElfFacts {
            class: elf.encoding.class,
            little_endian: elf.encoding.little_endian,
            machine: elf.machine,
            elf_type: elf.kind,
            id,
            segments,
            contents: contents(&elf),
        })
    }

    /// The ELF address of a byte of the file, by the segment that holds it; one that is executable wins.
    pub fn elf_address(&self, offset: FileOffset) -> Option<ElfAddress> {
        let holds = |segment: &&Segment| {
            offset.0.checked_sub(segment.offset.0).is_some_and(|delta| delta < segment.file_size)
        };
        let executable = self.segments.iter().filter(|segment| segment.executable).find(holds);
        let segment = executable.or_else(|| self.segments.iter().find(holds))?;
        Some(ElfAddress(segment.address.0.wrapping_add(offset.0 - segment.offset.0)))
    }

    /// The byte of the file that is loaded at an ELF address; that of an executable segment wins.
    pub fn file_offset(&self, address: ElfAddress) -> Option<FileOffset> {
        let holds = |segment: &&Segment| {
            address.0.checked_sub(segment.address.0).is_some_and(|delta| delta < segment.file_size)
        };
        let executable = self.segments.iter().filter(|segment| segment.executable).find(holds);
        let segment = executable.or_else(|| self.segments.iter().find(holds))?;
        Some(FileOffset(segment.offset.0.wrapping_add(address.0 - segment.address.0)))
    }
}

/// In lower-case hexadecimal, as `readelf -n` prints the GNU id. So are the others, for stores that take nothing else.
impl std::fmt::Display for FileId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

fn content_hash(file: &dyn ReadAt, segments: &[Segment]) -> Result<FileId, ObjectError> {
    let what = "content for an id";
    let size = file.size();
    let mut hash = Sha256::new();
    hash.update(size.to_le_bytes());
    let mut buffer = vec![0; usize::try_from(HASHED_HEAD.max(HASHED_PIECE)).unwrap_or_default()];
    let mut add = |offset: u64, length: u64| -> Result<(), ObjectError> {
        let length = length.min(size.saturating_sub(offset));
        let piece = &mut buffer[..usize::try_from(length).unwrap_or_default()];
        read_exact(file, what, offset, piece)?;
        hash.update(piece);
        Ok(())
    };
    add(0, HASHED_HEAD)?;
    for segment in segments.iter().filter(|segment| segment.executable).take(HASHED_SEGMENTS) {
        // Without what the file does not hold, so that a forged size does not spread the pieces over nothing.
        let length = segment.file_size.min(size.saturating_sub(segment.offset.0));
        let pieces = length.div_ceil(HASHED_PIECE).min(HASHED_PIECES);
        for piece in 0..pieces {
            // The pieces begin evenly spread, the last ends with the segment.
            let spread = length.saturating_sub(HASHED_PIECE);
            let step = if pieces > 1 { spread / (pieces - 1) } else { 0 };
            let at = if length <= HASHED_PIECES * HASHED_PIECE { piece * HASHED_PIECE } else { piece * step };
            add(segment.offset.0 + at, HASHED_PIECE.min(length - at))?;
        }
    }
    Ok(FileId { kind: IdKind::Hash, bytes: hash.finalize()[..20].to_vec() })
}

fn contents(elf: &Elf<'_>) -> Contents {
    let has = |name: &str| elf.section(name).is_some();
    Contents {
        symbol_table: elf.section_of_kind(SHT_SYMTAB).is_some(),
        dynamic_symbols: elf.section_of_kind(SHT_DYNSYM).is_some(),
        dwarf: (has(".debug_info") && has(".debug_line")) || (has(".zdebug_info") && has(".zdebug_line")),
        debug_link: elf.section(".gnu_debuglink").and_then(|section| debug_link(elf, section)),
        debug_alt_link: has(".gnu_debugaltlink"),
        debug_data: has(".gnu_debugdata"),
        go_functions: gopclntab::section(elf).is_some(),
    }
}

/// A file name, NUL, padding to 4, a CRC-32 (which nobody needs: the build id says more).
fn debug_link(elf: &Elf<'_>, section: &Section) -> Option<String> {
    let bytes = read_range(elf.file, "debug link", section.offset, section.size, 4096).ok()?;
    let name = bytes.split(|byte| *byte == 0).next()?;
    let name = std::str::from_utf8(name).ok()?;
    // It names a file beside others, and must not be able to point elsewhere.
    let plain = !name.is_empty() && name.len() <= 255 && name != "." && name != ".." && !name.contains('/');
    plain.then(|| name.to_owned())
}
