//! Lines and inlined functions of an executable.
#![no_main]

use libfuzzer_sys::fuzz_target;
use objects::{Dwarf, ElfFacts};
use records::ElfAddress;

fuzz_target!(|data: &[u8]| {
    let file = data.to_vec();
    let Ok(mut dwarf) = Dwarf::read(&file, 1 << 20) else { return };
    let starts = ElfFacts::read(&file).map(|facts| facts.segments).unwrap_or_default();
    for segment in starts.iter().filter(|segment| segment.executable).take(2) {
        for offset in [0, 1, 16, 64, 200] {
            let address = ElfAddress(segment.address.0.wrapping_add(offset));
            if let Ok(frames) = dwarf.frames(address) {
                assert!(frames.len() <= 256);
            }
        }
    }
});
