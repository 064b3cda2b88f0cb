//! Where unwind information lies in a file: `.eh_frame` and `.debug_frame`.
//!
//! Sources: System V ABI for x86-64, section 4.2.4 (`.eh_frame`, whose section may be of type `SHT_X86_64_UNWIND`);
//! Linux Standard Base 5.0, section 10.6 (`.eh_frame_hdr`); DWARF 5, section 6.4 (`.debug_frame`).

use gimli::{BaseAddresses, EhFrameHdr, EndianSlice, LittleEndian, Pointer};

use crate::{
    ObjectError,
    elf::{Elf, SHF_COMPRESSED, Section},
    read_at::read_range,
    section_data::Stored,
};

/// Largest section that is read, in bytes; of a larger one, its beginning. The largest seen has 25 MiB.
pub(super) const MAX_SECTION: u64 = 64 << 20;
/// Bytes of `.eh_frame_hdr` that are read: version, three encodings, and two numbers of at most 8 bytes.
const HEADER: u64 = 4 + 2 * 8;
/// `PT_GNU_EH_FRAME` (Linux Standard Base 5.0, section 10.6.2).
const PT_GNU_EH_FRAME: u32 = 0x6474_e550;
pub(super) const WHAT: &str = "unwind information";

/// Which of the two formats.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Format {
    EhFrame,
    DebugFrame,
}

/// A section with unwind information.
pub(super) struct FrameSection {
    pub(super) format: Format,
    pub(super) bytes: Vec<u8>,
    /// ELF address of the first byte; of no meaning in a `.debug_frame`.
    pub(super) address: u64,
    /// Whether an entry of length 0 ends it. If the section's size is known, more may follow one: linkers put a
    /// terminator where an object file that has one happens to stand.
    pub(super) ends_at_terminator: bool,
}

/// Reads what there is, and says what could not be read of it.
///
/// Both sections count: the start files of every libc have an `.eh_frame`, also where all the rest of the program has
/// nothing but a `.debug_frame`.
pub(super) fn read(elf: &Elf<'_>) -> Result<(Vec<FrameSection>, Option<ObjectError>), ObjectError> {
    let mut sections = Vec::new();
    let mut problem = None;
    let eh_frame = match elf.section(".eh_frame") {
        Some(section) => beginning(elf, section, Format::EhFrame).map(Some),
        // In a file of debug information it has a header and no content.
        None if elf.sections.iter().any(|section| elf.name(section) == b".eh_frame") => Ok(None),
        None => by_header(elf).map(|section| section.map(|section| (section, None))),
    };
    let debug_frame = [".debug_frame", ".zdebug_frame"].iter().find_map(|name| elf.section(name));
    let debug_frame = debug_frame.map(|section| beginning(elf, section, Format::DebugFrame)).transpose();
    for read in [eh_frame, debug_frame] {
        match read {
            Ok(None) => {}
            Ok(Some((section, cut))) => {
                sections.push(section);
                problem = problem.or(cut);
            }
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    match problem {
        Some(problem) if sections.is_empty() => Err(problem),
        None if sections.is_empty() => Err(ObjectError::Missing(WHAT)),
        problem => Ok((sections, problem)),
    }
}

/// The section, and why it is not all of it.
fn beginning(
    elf: &Elf<'_>,
    section: &Section,
    format: Format,
) -> Result<(FrameSection, Option<ObjectError>), ObjectError> {
    let mut problem = None;
    let stored = Stored::of(elf, section, WHAT)?;
    let is_plain = section.flags & SHF_COMPRESSED == 0 && !elf.name(section).starts_with(b".z");
    let bytes = if is_plain {
        let Section { offset, size, .. } = *section;
        let in_file = elf.file.size().saturating_sub(offset);
        if size > MAX_SECTION {
            problem = Some(ObjectError::TooLarge { what: WHAT, size, limit: MAX_SECTION });
        } else if size > in_file {
            problem = Some(ObjectError::Truncated { what: WHAT, offset, wanted: size });
        }
        let size = size.min(MAX_SECTION).min(in_file);
        read_range(elf.file, WHAT, offset, size, MAX_SECTION)?
    } else {
        stored.load(elf.file, WHAT, MAX_SECTION)?
    };
    Ok((FrameSection { format, bytes, address: section.address, ends_at_terminator: false }, problem))
}

/// Finds `.eh_frame` where no section header names it, as the C++ runtime does: through `.eh_frame_hdr`, which has a
/// segment of its own and begins with a pointer to it.
fn by_header(elf: &Elf<'_>) -> Result<Option<FrameSection>, ObjectError> {
    let Some(header) = elf.program_headers.iter().find(|header| header.kind == PT_GNU_EH_FRAME) else {
        return Ok(None);
    };
    let bytes = read_range(elf.file, WHAT, header.offset, header.file_size.min(HEADER), HEADER)?;
    let bases = BaseAddresses::default().set_eh_frame_hdr(header.address);
    let parsed = EhFrameHdr::from(EndianSlice::new(&bytes, LittleEndian)).parse(&bases, 8);
    let Ok(Pointer::Direct(address)) = parsed.map(|parsed| parsed.eh_frame_ptr()) else { return Ok(None) };
    let Some((offset, size)) = elf.bytes_from(address) else { return Ok(None) };
    let in_file = elf.file.size().saturating_sub(offset);
    let size = size.min(MAX_SECTION).min(in_file);
    let bytes = read_range(elf.file, WHAT, offset, size, MAX_SECTION)?;
    Ok(Some(FrameSection { format: Format::EhFrame, bytes, address, ends_at_terminator: true }))
}
