//! Go's own function table, which is there even in stripped programs: the runtime needs it.
//!
//! Layout since Go 1.18: `runtime/symtab.go` (`pcHeader`, `functab`, `moduledata`) and `runtime/runtime2.go` (`_func`).
//! Since Go 1.26 the header no longer says where the text starts; the module data does.

use crate::{
    Class, ObjectError,
    elf::{Elf, SHT_RELA, Section},
    plt::each_relocation,
    read_at::{read_exact, read_range},
    symbols::{Candidate, Code},
    symtab::Found,
};

/// Of Go 1.18 and 1.19, and of 1.20 and later.
const MAGICS: [u32; 2] = [0xffff_fff0, 0xffff_fff1];
/// The module data's field `text`, in words.
const MODULE_TEXT: u64 = 22;
/// Relocations that are looked at.
const MAX_RELOCATIONS: u64 = 4 << 20;
const R_X86_64_RELATIVE: u32 = 8;
const R_AARCH64_RELATIVE: u32 = 1027;

/// The section that the table is in.
pub(crate) fn section<'e>(elf: &'e Elf<'_>) -> Option<&'e Section> {
    elf.section(".gopclntab").or_else(|| elf.section(".data.rel.ro.gopclntab"))
}

/// Adds the functions of the table.
pub(crate) fn read(
    elf: &Elf<'_>,
    section: &Section,
    code: &Code,
    max_bytes: usize,
    found: &mut Found,
) -> Result<(), ObjectError> {
    let what = "Go function table";
    let malformed = |problem: &str| ObjectError::Malformed { what, problem: problem.to_owned() };
    // The names go a second time into what is found, and the functions are counted as well.
    let limit = found.room(max_bytes) as u64 / 2;
    let table = read_range(elf.file, what, section.offset, section.size, limit)?;
    let encoding = elf.encoding;
    if !MAGICS.contains(&encoding.u32(&table, 0)) {
        return Err(ObjectError::Unsupported("the function table of a Go before 1.18"));
    }
    let pointer_size = encoding.size(4, 8);
    if table.get(7).map(|size| usize::from(*size)) != Some(pointer_size) {
        return Err(malformed("pointers of another size than the file's"));
    }
    let word = |index: usize| encoding.word(&table, 8 + index * 4, 8 + index * 8);
    let part = |index: usize| usize::try_from(word(index)).ok().and_then(|at| table.get(at..));
    let names = part(3).ok_or_else(|| malformed("names beyond its end"))?;
    // The names are followed by the table of compilation units.
    let names_size = word(4).checked_sub(word(3)).and_then(|size| usize::try_from(size).ok());
    let names = names_size.and_then(|size| names.get(..size)).unwrap_or(names);
    let functions = part(7).ok_or_else(|| malformed("functions beyond its end"))?;
    let count = usize::try_from(word(0)).unwrap_or(usize::MAX);
    // A function takes 8 bytes here and at least 40 for its description.
    if count > functions.len() / 48 {
        return Err(malformed("more functions than it has room for"));
    }
    let text = text_start(elf, section, word(2), code).ok_or_else(|| malformed("no start of the text"))?;

    let names_at = found.names.len();
    if found.room(max_bytes) < names.len() + table.len() + count * size_of::<Candidate>() {
        return Err(ObjectError::TooLarge { what, size: section.size, limit });
    }
    found.names.extend(names);
    // So that the last name does not run on into what another table adds.
    found.names.push(0);
    found.candidates.reserve_exact(count);
    for index in 0..count {
        let start = encoding.u32(functions, index * 8);
        let description = encoding.u32(functions, index * 8 + 4) as usize;
        let end = encoding.u32(functions, index * 8 + 8);
        let Some(description) = functions.get(description..).filter(|rest| rest.len() >= 8) else { continue };
        let name = encoding.u32(description, 4) as usize;
        let address = text.wrapping_add(u64::from(start));
        let (Some(start), true) = (code.relative(address), name < names.len()) else { continue };
        let Ok(name) = u32::try_from(names_at + name) else { continue };
        let size = end.saturating_sub(encoding.u32(functions, index * 8));
        found.candidates.push(Candidate { start, size, name, rank: 0 });
    }
    Ok(())
}

/// Where the text starts that functions are counted from. With cgo it is not the start of `.text`, where C's own start-up
/// code comes first.
fn text_start(elf: &Elf<'_>, section: &Section, in_header: u64, code: &Code) -> Option<u64> {
    let word_size = elf.encoding.size(4, 8) as u64;
    let header_field = section.address.wrapping_add(8 + 2 * word_size);
    let module_field = elf.section(".go.module").map(|module| {
        let mut bytes = [0; 8];
        let bytes = &mut bytes[..elf.encoding.size(4, 8)];
        let at = module.offset.saturating_add(MODULE_TEXT * word_size);
        let read = read_exact(elf.file, "Go module data", at, bytes);
        (module.address.wrapping_add(MODULE_TEXT * word_size), read.map(|()| elf.encoding.word(bytes, 0, 0)))
    });
    let written =
        [Some(in_header), module_field.as_ref().and_then(|(_, value)| value.as_ref().ok().copied())];
    let relocated = || {
        // In position-independent programs the fields are filled by relocations.
        let fields = [Some(header_field), module_field.as_ref().map(|(address, _)| *address)];
        let mut values = [None; 2];
        let mut left = MAX_RELOCATIONS;
        let tables = elf.sections.iter().filter(|section| section.kind == SHT_RELA).take(16);
        for table in tables.filter(|_| elf.encoding.class == Class::Elf64) {
            each_relocation(elf, table, &mut left, |address, kind, _, addend| {
                for (field, value) in fields.iter().zip(&mut values) {
                    if *field == Some(address) && matches!(kind, R_X86_64_RELATIVE | R_AARCH64_RELATIVE) {
                        *value = Some(addend);
                    }
                }
            });
        }
        values.into_iter().flatten().find(|address| code.end(*address).is_some())
    };
    let found = written.into_iter().flatten().find(|address| code.end(*address).is_some());
    found.or_else(relocated).or_else(|| elf.section(".text").map(|text| text.address))
}
