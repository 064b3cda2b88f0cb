//! Headers of an ELF file: the three tables that everything else starts from.
//!
//! Layouts: the System V ABI, chapter 4 (<https://gabi.xinuos.com/elf/a-intro.html>), and `elf.h`.

use crate::{
    Class, ElfType, ObjectError, ReadAt,
    read_at::{read_exact, read_range},
};

/// Program headers that are looked at. Linux itself starts no program whose table is larger than 64 KiB, which is
/// 1,170 of them; this bounds what is kept, and the time of each look-up in them.
const MAX_PROGRAM_HEADERS: usize = 4096;
/// Sections that are looked at. A linked file has fewer than a hundred; more are possible only in object files.
const MAX_SECTIONS: u64 = 65_536;
/// Longest name of a section that is looked at, in bytes.
const MAX_NAME: usize = 256;
/// Largest table of section names that is read, in bytes.
const MAX_SECTION_NAMES: u64 = 1 << 20;

pub(crate) const PT_LOAD: u32 = 1;
pub(crate) const PT_NOTE: u32 = 4;
pub(crate) const PF_X: u32 = 1;
pub(crate) const SHT_SYMTAB: u32 = 2;
pub(crate) const SHT_RELA: u32 = 4;
pub(crate) const SHT_NOTE: u32 = 7;
pub(crate) const SHT_NOBITS: u32 = 8;
pub(crate) const SHT_DYNSYM: u32 = 11;
pub(crate) const SHF_EXECINSTR: u64 = 4;
pub(crate) const SHF_COMPRESSED: u64 = 0x800;
pub(crate) const EM_X86_64: u16 = 62;

/// How the file writes numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Encoding {
    pub(crate) class: Class,
    pub(crate) little_endian: bool,
}

impl Encoding {
    /// Bytes past the end of `bytes` count as 0: whoever calls has read whole records.
    fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; N])
    }

    pub(crate) fn u16(self, bytes: &[u8], at: usize) -> u16 {
        let value = Self::array(bytes, at);
        if self.little_endian { u16::from_le_bytes(value) } else { u16::from_be_bytes(value) }
    }

    pub(crate) fn u32(self, bytes: &[u8], at: usize) -> u32 {
        let value = Self::array(bytes, at);
        if self.little_endian { u32::from_le_bytes(value) } else { u32::from_be_bytes(value) }
    }

    pub(crate) fn u64(self, bytes: &[u8], at: usize) -> u64 {
        let value = Self::array(bytes, at);
        if self.little_endian { u64::from_le_bytes(value) } else { u64::from_be_bytes(value) }
    }

    /// A number as wide as the class: at one place in 32-bit files, at another in 64-bit files.
    pub(crate) fn word(self, bytes: &[u8], at_32: usize, at_64: usize) -> u64 {
        match self.class {
            Class::Elf32 => u64::from(self.u32(bytes, at_32)),
            Class::Elf64 => self.u64(bytes, at_64),
        }
    }

    /// `size_32` or `size_64`.
    pub(crate) fn size(self, size_32: usize, size_64: usize) -> usize {
        match self.class {
            Class::Elf32 => size_32,
            Class::Elf64 => size_64,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct ProgramHeader {
    pub(crate) kind: u32,
    pub(crate) flags: u32,
    pub(crate) offset: u64,
    pub(crate) address: u64,
    pub(crate) file_size: u64,
    pub(crate) memory_size: u64,
    pub(crate) align: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Section {
    name: u32,
    pub(crate) kind: u32,
    pub(crate) flags: u64,
    pub(crate) address: u64,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) link: u32,
    pub(crate) align: u64,
    pub(crate) entry_size: u64,
}

/// A file with its headers.
pub(crate) struct Elf<'a> {
    pub(crate) file: &'a dyn ReadAt,
    pub(crate) encoding: Encoding,
    pub(crate) kind: ElfType,
    pub(crate) machine: u16,
    pub(crate) program_headers: Vec<ProgramHeader>,
    /// Empty if there are none, or if their table cannot be read: then whatever needs sections is missing, and the
    /// segments still say where code lies.
    pub(crate) sections: Vec<Section>,
    section_names: Vec<u8>,
}

impl<'a> Elf<'a> {
    pub(crate) fn read(file: &'a dyn ReadAt) -> Result<Self, ObjectError> {
        let mut ident = [0; 16];
        // A file of less than 16 bytes is no truncated ELF file, it is none.
        match read_exact(file, "ELF header", 0, &mut ident) {
            Ok(()) if ident.starts_with(b"\x7fELF") => {}
            Ok(()) | Err(ObjectError::Truncated { .. }) => return Err(ObjectError::NotElf),
            Err(error) => return Err(error),
        }
        let class = match ident[4] {
            1 => Class::Elf32,
            2 => Class::Elf64,
            _ => return Err(ObjectError::Unsupported("this ELF class")),
        };
        let little_endian = match ident[5] {
            1 => true,
            2 => false,
            _ => return Err(ObjectError::Unsupported("this ELF byte order")),
        };
        let encoding = Encoding { class, little_endian };
        let mut header = [0; 64];
        let header = &mut header[..encoding.size(52, 64)];
        read_exact(file, "ELF header", 0, header)?;
        let kind = match encoding.u16(header, 16) {
            1 => ElfType::Relocatable,
            2 => ElfType::Executable,
            3 => ElfType::Dynamic,
            other => ElfType::Other(other),
        };
        let machine = encoding.u16(header, 18);
        let program_headers = program_headers(file, encoding, header)?;
        let mut elf = Elf {
            file,
            encoding,
            kind,
            machine,
            program_headers,
            sections: sections(file, encoding, header).unwrap_or_default(),
            section_names: Vec::new(),
        };
        elf.read_section_names(encoding.u16(header, encoding.size(50, 62)));
        Ok(elf)
    }

    fn read_section_names(&mut self, index: u16) {
        // SHN_XINDEX: the index did not fit and stands in the first section's link.
        let index = match index {
            0xffff => self.sections.first().map_or(0, |first| first.link),
            index => u32::from(index),
        };
        let Some(names) = self.sections.get(index as usize) else { return };
        if names.kind != SHT_NOBITS {
            self.section_names =
                read_range(self.file, "section names", names.offset, names.size, MAX_SECTION_NAMES)
                    .unwrap_or_default();
        }
    }

    pub(crate) fn name(&self, section: &Section) -> &[u8] {
        let rest = self.section_names.get(section.name as usize..).unwrap_or_default();
        // A forged table has no end of a name for a long way.
        let rest = &rest[..rest.len().min(MAX_NAME)];
        rest.split(|byte| *byte == 0).next().unwrap_or_default()
    }

    /// The first section of that name that has content.
    pub(crate) fn section(&self, name: &str) -> Option<&Section> {
        self.sections.iter().find(|section| {
            section.kind != SHT_NOBITS && section.size > 0 && self.name(section) == name.as_bytes()
        })
    }

    /// The first section of that type that has content.
    pub(crate) fn section_of_kind(&self, kind: u32) -> Option<&Section> {
        self.sections.iter().find(|section| section.kind == kind && section.size > 0)
    }

    pub(crate) fn segments(&self) -> impl Iterator<Item = &ProgramHeader> {
        self.program_headers.iter().filter(|header| header.kind == PT_LOAD)
    }

    /// Where in the file the bytes lie that are loaded from an address to the end of its segment: offset and size.
    pub(crate) fn bytes_from(&self, address: u64) -> Option<(u64, u64)> {
        self.segments().find_map(|segment| {
            let before = address.checked_sub(segment.address)?;
            let size = segment.file_size.checked_sub(before).filter(|size| *size > 0)?;
            Some((segment.offset.saturating_add(before), size))
        })
    }
}

fn program_headers(
    file: &dyn ReadAt,
    encoding: Encoding,
    header: &[u8],
) -> Result<Vec<ProgramHeader>, ObjectError> {
    let offset = encoding.word(header, 28, 32);
    let entry_size = usize::from(encoding.u16(header, encoding.size(42, 54)));
    let count = usize::from(encoding.u16(header, encoding.size(44, 56))).min(MAX_PROGRAM_HEADERS);
    if count == 0 {
        return Ok(Vec::new());
    }
    let expected = encoding.size(32, 56);
    if entry_size != expected {
        let problem = format!("entries of {entry_size} bytes instead of {expected}");
        return Err(ObjectError::Malformed { what: "program header table", problem });
    }
    let size = count * entry_size;
    let bytes = read_range(file, "program header table", offset, size as u64, size as u64)?;
    let parse = |entry: &[u8]| ProgramHeader {
        kind: encoding.u32(entry, 0),
        flags: encoding.u32(entry, encoding.size(24, 4)),
        offset: encoding.word(entry, 4, 8),
        address: encoding.word(entry, 8, 16),
        file_size: encoding.word(entry, 16, 32),
        memory_size: encoding.word(entry, 20, 40),
        align: encoding.word(entry, 28, 48),
    };
    Ok(bytes.chunks_exact(entry_size).map(parse).collect())
}

fn sections(file: &dyn ReadAt, encoding: Encoding, header: &[u8]) -> Result<Vec<Section>, ObjectError> {
    let what = "section header table";
    let offset = encoding.word(header, 32, 40);
    let entry_size = encoding.size(40, 64);
    if offset == 0 || usize::from(encoding.u16(header, encoding.size(46, 58))) != entry_size {
        return Ok(Vec::new());
    }
    let parse = |entry: &[u8]| Section {
        name: encoding.u32(entry, 0),
        kind: encoding.u32(entry, 4),
        flags: encoding.word(entry, 8, 8),
        address: encoding.word(entry, 12, 16),
        offset: encoding.word(entry, 16, 24),
        size: encoding.word(entry, 20, 32),
        link: encoding.u32(entry, encoding.size(24, 40)),
        align: encoding.word(entry, 32, 48),
        entry_size: encoding.word(entry, 36, 56),
    };
    let mut count = u64::from(encoding.u16(header, encoding.size(48, 60)));
    if count == 0 {
        // The count did not fit in 16 bits and stands in the first section's size.
        let first = read_range(file, what, offset, entry_size as u64, entry_size as u64)?;
        count = parse(&first).size;
    }
    let size = count.min(MAX_SECTIONS) * entry_size as u64;
    let bytes = read_range(file, what, offset, size, size)?;
    Ok(bytes.chunks_exact(entry_size).map(parse).collect())
}
