//! Headers and symbol tables of an executable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use objects::{ElfFacts, SymbolTable};
use records::{ElfAddress, FileOffset};

const LIMIT: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let file = data.to_vec();
    let addresses: Vec<u64> =
        data.chunks_exact(8).take(64).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect();
    if let Ok(facts) = ElfFacts::read(&file) {
        assert!(!facts.id.bytes.is_empty() && facts.id.bytes.len() <= 1024 && facts.segments.len() <= 4096);
        for address in &addresses {
            let _ = facts.elf_address(FileOffset(*address));
        }
    }
    if let Ok(table) = SymbolTable::read(&file, LIMIT) {
        assert!(table.memory_size() <= LIMIT + (1 << 16), "{}", table.memory_size());
        for address in &addresses {
            if let Some((name, start)) = table.lookup(ElfAddress(*address)) {
                assert!(!name.contains('\0') && start.0 <= *address);
            }
        }
    }
});
