//! What the uploader must know of an executable before anything else: who it is, and where in it code lies.

use records::{ElfAddress, FileOffset};

use crate::{ObjectError, ReadAt};

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
    /// A compressed symbol table (`.gnu_debugdata`, MiniDebugInfo).
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

impl ElfFacts {
    /// Reads them: headers and notes, and some of the content if there is no id (bounded, see [`IdKind::Hash`]).
    pub fn read(file: &dyn ReadAt) -> Result<Self, ObjectError> {
        let _ = file.size();
        Err(ObjectError::NotElf)
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
}

/// In lower-case hexadecimal, as `readelf -n` prints the GNU id. So are the others, for stores that take nothing else.
impl std::fmt::Display for FileId {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bytes.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}
