//! Headers and symbol tables of an executable, also of one that changes while it is read.
#![no_main]

use bulkhead_fuzz::Changing;
use libfuzzer_sys::fuzz_target;
use objects::{ElfFacts, ReadAt, SymbolTable, write_debug_copy};
use records::{ElfAddress, FileOffset};

const LIMIT: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    check(&data.to_vec(), data);
    // How long it stays as it is, its last byte says.
    let reads = data.last().copied().unwrap_or_default() % 32;
    check(&Changing::new(data, reads), data);
});

fn check(file: &dyn ReadAt, data: &[u8]) {
    let mut addresses: Vec<u64> =
        data.chunks_exact(8).take(64).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    if let Ok(facts) = ElfFacts::read(file) {
        assert!(!facts.id.bytes.is_empty() && facts.id.bytes.len() <= 1024 && facts.segments.len() <= 4096);
        if let Some(name) = &facts.contents.debug_link {
            assert!(!name.is_empty() && !name.contains(['/', '\0']), "{name:?}");
        }
        for address in &addresses {
            let _ = facts.elf_address(FileOffset(*address));
        }
        for segment in facts.segments.iter().take(4) {
            assert!(segment.file_size == 0 || facts.elf_address(segment.offset).is_some());
            addresses.extend((0..64).map(|step| segment.address.0.wrapping_add(step * 16)));
        }
    }
    let mut copy = Vec::new();
    if let Ok(size) = write_debug_copy(file, &mut copy, LIMIT as u64) {
        assert!(size == copy.len() as u64 && size <= LIMIT as u64);
    }
    if let Ok(table) = SymbolTable::read(file, LIMIT) {
        assert!(!table.is_empty() && table.memory_size() <= LIMIT + (1 << 16), "{}", table.memory_size());
        for address in &addresses {
            if let Some((name, start)) = table.lookup(ElfAddress(*address)) {
                assert!(start.0 <= *address);
                // A stub's name has `@plt` behind it.
                assert!(!name.is_empty() && name.len() <= 4096 + 4, "{} bytes", name.len());
                assert!(!name.contains(char::is_control), "{name:?}");
            }
        }
    }
}
