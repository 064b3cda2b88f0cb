//! Stubs of the procedure linkage table (x86-64): each jumps through a slot of the GOT, and the relocation of that slot
//! says to which function. That holds for every linker, however its stubs look otherwise.

use records::ElfAddress;

use crate::{
    Class,
    elf::{EM_X86_64, Elf, SHT_DYNSYM, SHT_RELA, Section},
    read_at::{read_exact, read_range},
    symbol_names::{name_at, printable},
    symtab::{self, Symbol},
};

/// Sections of stubs, and the largest that is looked at, in bytes: 65,536 stubs.
const NAMES: [&str; 3] = [".plt", ".plt.sec", ".plt.got"];
const MAX_SECTION: u64 = 1 << 20;
/// Relocations that are looked at. Big programs have more than a million, most of them without a symbol.
const MAX_RELOCATIONS: u64 = 4 << 20;
/// Relocations that are read at a time.
const BATCH: u64 = 4096;

const RELOCATION_SIZE: u64 = 24;
const R_X86_64_GLOB_DAT: u32 = 6;
const R_X86_64_JUMP_SLOT: u32 = 7;

/// A stub.
pub(crate) struct Stub {
    pub(crate) address: ElfAddress,
    /// In bytes.
    pub(crate) size: u32,
    /// Where it jumps.
    pub(crate) name: String,
}

/// The sections of stubs, each with its bytes; those that cannot be read are left out.
pub(crate) fn code<'e>(elf: &'e Elf<'_>) -> Vec<(&'e Section, Vec<u8>)> {
    let sections = NAMES.iter().filter_map(|name| elf.section(name));
    let with_code = |section: &'e Section| {
        let code = read_range(elf.file, "PLT", section.offset, section.size, MAX_SECTION).ok()?;
        Some((section, code))
    };
    sections.filter_map(with_code).collect()
}

/// All stubs, as long as they take no more than about `room` bytes. None if anything about them is odd: they are a nicety.
pub(crate) fn stubs(elf: &Elf<'_>, room: usize) -> Vec<Stub> {
    if elf.machine != EM_X86_64 || elf.encoding.class != Class::Elf64 {
        return Vec::new();
    }
    let Some(dynsym) = elf.section_of_kind(SHT_DYNSYM) else { return Vec::new() };
    let sections = code(elf);
    if sections.is_empty() {
        return Vec::new();
    }
    let limit = room as u64 / 4;
    let symbols = read_range(elf.file, "dynamic symbols", dynsym.offset, dynsym.size, limit);
    let names = symtab::read_names(elf, dynsym, limit);
    let (Ok(symbols), Ok(names)) = (symbols, names) else { return Vec::new() };
    let slots = slots(elf, room / 4);

    let mut stubs = Vec::new();
    let mut used = 0;
    for (section, code) in sections {
        let size = if section.entry_size == 8 { 8 } else { 16 };
        for (index, stub) in code.chunks_exact(size).enumerate() {
            let address = section.address.wrapping_add((index * size) as u64);
            let Some(slot) = jump_slot(stub, address) else { continue };
            let Ok(at) = slots.binary_search_by_key(&slot, |slot| slot.0) else { continue };
            let entry_size = symtab::entry_size(elf);
            let entry = (slots[at].1 as usize).checked_mul(entry_size).and_then(|at| symbols.get(at..));
            let Some(entry) = entry.and_then(|rest| rest.get(..entry_size)) else { continue };
            let name = name_at(&names, Symbol::parse(elf, entry).name);
            used += name.len() + size_of::<Stub>() * 2;
            if used > room / 4 {
                return stubs;
            }
            if !name.is_empty() {
                let size = if size == 8 { 8 } else { 16 };
                stubs.push(Stub { address: ElfAddress(address), size, name: printable(name.to_vec()) });
            }
        }
    }
    stubs
}

/// The slot that the stub's `jmp *DISPLACEMENT(%rip)` (ff 25) goes through.
fn jump_slot(stub: &[u8], address: u64) -> Option<u64> {
    let at = stub.windows(6).position(|window| window.starts_with(&[0xff, 0x25]))?;
    let displacement = i32::from_le_bytes(*stub.get(at + 2..)?.first_chunk()?);
    let next = address.wrapping_add(at as u64 + 6);
    Some(next.wrapping_add_signed(i64::from(displacement)))
}

/// GOT slots and the indexes of the symbols that they are filled with, sorted.
fn slots(elf: &Elf<'_>, room: usize) -> Vec<(u64, u32)> {
    let mut slots = Vec::new();
    let mut left = MAX_RELOCATIONS;
    let tables = elf.sections.iter().filter(|section| section.kind == SHT_RELA).take(16);
    for table in tables {
        each_relocation(elf, table, &mut left, |address, kind, symbol, _| {
            if matches!(kind, R_X86_64_GLOB_DAT | R_X86_64_JUMP_SLOT) && slots.len() < room / 32 {
                slots.push((address, symbol));
            }
        });
    }
    slots.sort_unstable();
    slots
}

/// Calls `visit` with address, type, symbol and addend of the relocations of a 64-bit table, as long as some are `left`.
pub(crate) fn each_relocation(
    elf: &Elf<'_>,
    table: &Section,
    left: &mut u64,
    mut visit: impl FnMut(u64, u32, u32, u64),
) {
    let count = (table.size / RELOCATION_SIZE).min(*left);
    let mut batch = Vec::new();
    let mut done = 0;
    while done < count {
        let size = (count - done).min(BATCH) * RELOCATION_SIZE;
        batch.resize(usize::try_from(size).unwrap_or_default(), 0);
        let offset = table.offset.saturating_add(done * RELOCATION_SIZE);
        if read_exact(elf.file, "relocations", offset, &mut batch).is_err() {
            return;
        }
        done += size / RELOCATION_SIZE;
        *left -= size / RELOCATION_SIZE;
        for entry in batch.as_chunks::<24>().0 {
            let [kind, symbol] = [elf.encoding.u32(entry, 8), elf.encoding.u32(entry, 12)];
            visit(elf.encoding.u64(entry, 0), kind, symbol, elf.encoding.u64(entry, 16));
        }
    }
}
