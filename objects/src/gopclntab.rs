//! Go's own function table, which is there even in stripped programs: the runtime needs it.
//!
//! Layout since Go 1.18: `runtime/symtab.go` (`pcHeader`, `functab`, `moduledata`) and `runtime/runtime2.go` (`_func`).
//! Since Go 1.26 the header no longer says where the text starts; the module data does.

use std::ops::Range;

use crate::{
    Class, ObjectError,
    elf::{Elf, Encoding, SHT_RELA, Section},
    plt::each_relocation,
    read_at::{read_exact, read_range},
    symbols::{Candidate, Code},
    symtab::Found,
};

/// Of Go 1.18 and 1.19.
const MAGIC_1_18: u32 = 0xffff_fff0;
/// Of Go 1.20 and later.
const MAGIC_1_20: u32 = 0xffff_fff1;
/// The module data's field `text`, in words.
const MODULE_TEXT: u64 = 22;
/// Relocations that are looked at.
const MAX_RELOCATIONS: u64 = 4 << 20;
const R_X86_64_RELATIVE: u32 = 8;
const R_AARCH64_RELATIVE: u32 = 1027;
/// `_func.pcsp` and `_func.flag` (which Go 1.20 moved by putting `startLine` before it), in bytes.
const PC_SP: usize = 16;
const FLAGS_1_18: usize = 37;
const FLAGS_1_20: usize = 41;
/// Smallest `_func`, in bytes.
const DESCRIPTION: usize = 40;
const WHAT: &str = "Go function table";

/// The section that the table is in.
pub(crate) fn section<'e>(elf: &'e Elf<'_>) -> Option<&'e Section> {
    elf.section(".gopclntab").or_else(|| elf.section(".data.rel.ro.gopclntab"))
}

/// The table.
pub(crate) struct FunctionTable {
    bytes: Vec<u8>,
    encoding: Encoding,
    /// Functions.
    pub(crate) count: usize,
    /// Address that functions are counted from.
    text: u64,
    /// Where their names lie, in bytes of the table.
    names: Range<usize>,
    /// From here on their list and descriptions lie.
    descriptions: usize,
    /// From here on their tables by address lie.
    by_address: usize,
    /// Where in a description the flags are.
    flags_at: usize,
}

/// A function of the table.
pub(crate) struct Function<'t> {
    /// First ELF address.
    pub(crate) begin: u64,
    /// One more than the last ELF address, padding included.
    pub(crate) end: u64,
    /// Where its name begins among the names, in bytes.
    name_at: usize,
    /// Its name.
    pub(crate) name: &'t [u8],
    /// What the runtime must know of it (`internal/abi/symtab.go`, `FuncFlag`).
    pub(crate) flags: u8,
    /// How far the stack pointer lies below the return address, by address (`pcsp`); the table runs on behind its end.
    pub(crate) stack_sizes: &'t [u8],
}

impl FunctionTable {
    /// Reads the table, if it is at most `limit` bytes.
    pub(crate) fn read(
        elf: &Elf<'_>,
        section: &Section,
        code: &Code,
        limit: u64,
    ) -> Result<Self, ObjectError> {
        let malformed = |problem: &str| ObjectError::Malformed { what: WHAT, problem: problem.to_owned() };
        let bytes = read_range(elf.file, WHAT, section.offset, section.size, limit)?;
        let encoding = elf.encoding;
        let flags_at = match encoding.u32(&bytes, 0) {
            MAGIC_1_18 => FLAGS_1_18,
            MAGIC_1_20 => FLAGS_1_20,
            _ => return Err(ObjectError::Unsupported("the function table of a Go before 1.18")),
        };
        let pointer_size = encoding.size(4, 8);
        if bytes.get(7).map(|size| usize::from(*size)) != Some(pointer_size) {
            return Err(malformed("pointers of another size than the file's"));
        }
        let word = |index: usize| encoding.word(&bytes, 8 + index * 4, 8 + index * 8);
        let part = |index: usize| usize::try_from(word(index)).ok().filter(|at| *at <= bytes.len());
        let names = part(3).ok_or_else(|| malformed("names beyond its end"))?;
        // They are followed by the table of compilation units.
        let names = names..part(4).filter(|end| *end >= names).unwrap_or(bytes.len());
        let by_address = part(6).ok_or_else(|| malformed("tables by address beyond its end"))?;
        let descriptions = part(7).ok_or_else(|| malformed("functions beyond its end"))?;
        let count = usize::try_from(word(0)).unwrap_or(usize::MAX);
        // A function takes 8 bytes here and at least 40 for its description.
        if count > (bytes.len() - descriptions) / (8 + DESCRIPTION) {
            return Err(malformed("more functions than it has room for"));
        }
        let text =
            text_start(elf, section, word(2), code).ok_or_else(|| malformed("no start of the text"))?;
        Ok(FunctionTable { bytes, encoding, count, text, names, descriptions, by_address, flags_at })
    }

    /// A function by its number; `None` if its description is broken.
    pub(crate) fn function(&self, index: usize) -> Option<Function<'_>> {
        let functions = self.bytes.get(self.descriptions..)?;
        // The entry after the last one has the end of the text.
        let [begin, end] = [0, 8].map(|next| self.encoding.u32(functions, index * 8 + next));
        let at = self.encoding.u32(functions, index * 8 + 4) as usize;
        let description = functions.get(at..).filter(|rest| rest.len() >= DESCRIPTION)?;
        let names = self.bytes.get(self.names.clone())?;
        let name_at = self.encoding.u32(description, 4) as usize;
        let name = names.get(name_at..)?.split(|byte| *byte == 0).next()?;
        let stack_sizes = self.bytes.get(self.by_address..)?;
        let stack_sizes =
            stack_sizes.get(self.encoding.u32(description, PC_SP) as usize..).unwrap_or_default();
        Some(Function {
            begin: self.text.wrapping_add(u64::from(begin)),
            end: self.text.wrapping_add(u64::from(end)),
            name_at,
            name,
            flags: description.get(self.flags_at).copied().unwrap_or_default(),
            stack_sizes,
        })
    }
}

/// Adds the names of the table's functions.
pub(crate) fn read_names(
    elf: &Elf<'_>,
    section: &Section,
    code: &Code,
    max_bytes: usize,
    found: &mut Found,
) -> Result<(), ObjectError> {
    // The names go a second time into what is found, and the functions are counted as well.
    let limit = found.room(max_bytes) as u64 / 2;
    let table = FunctionTable::read(elf, section, code, limit)?;
    let names = table.bytes.get(table.names.clone()).unwrap_or_default();
    let names_at = found.names.len();
    if found.room(max_bytes) < names.len() + table.bytes.len() + table.count * size_of::<Candidate>() {
        return Err(ObjectError::TooLarge { what: WHAT, size: section.size, limit });
    }
    found.names.extend(names);
    // So that the last name does not run on into what another table adds.
    found.names.push(0);
    found.candidates.reserve_exact(table.count);
    for function in (0..table.count).filter_map(|index| table.function(index)) {
        let Some(start) = code.relative(function.begin) else { continue };
        let Ok(name) = u32::try_from(names_at + function.name_at) else { continue };
        let size = u32::try_from(function.end.saturating_sub(function.begin)).unwrap_or_default();
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
