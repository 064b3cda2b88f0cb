//! Lines and inlined functions of an executable, also of one that changes while it is read.
#![no_main]

use bulkhead_fuzz::Changing;
use libfuzzer_sys::fuzz_target;
use objects::{Dwarf, ElfFacts, ReadAt};
use records::ElfAddress;

const LIMIT: usize = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let file = data.to_vec();
    let segments = ElfFacts::read(&file).map(|facts| facts.segments).unwrap_or_default();
    let code = segments.iter().filter(|segment| segment.executable).take(2);
    let addresses: Vec<u64> = code
        .flat_map(|segment| [0, 1, 16, 64, 200].map(|offset| segment.address.0.wrapping_add(offset)))
        .chain([0, u64::MAX])
        .collect();
    check(&file, &addresses);
    // How long it stays as it is, its last byte says.
    let reads = data.last().copied().unwrap_or_default() % 32;
    check(&Changing::new(data, reads), &addresses);
});

fn check(file: &dyn ReadAt, addresses: &[u64]) {
    let Ok(mut dwarf) = Dwarf::read(file, LIMIT) else { return };
    for address in addresses {
        let frames = dwarf.frames(ElfAddress(*address)).unwrap_or_default();
        assert!(frames.len() <= 256);
        for text in frames.iter().flat_map(|frame| [&frame.function, &frame.file]).flatten() {
            assert!(text.len() <= 4096 && !text.contains(char::is_control), "{text:?}");
        }
        // The sections, and as much again of what was parsed of them.
        assert!(dwarf.memory_size() <= 2 * LIMIT, "{}", dwarf.memory_size());
    }
}
