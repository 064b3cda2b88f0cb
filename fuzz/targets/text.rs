//! Texts that others write: perf maps, the kernel's symbols, cgroup files, selectors of the page.
#![no_main]

use libfuzzer_sys::fuzz_target;
use objects::{KernelSymbols, PerfMap};
use records::ProcessAddress;
use uploader::{http::selector::Selector, targets::owner};

const LIMIT: usize = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let file = data.to_vec();
    let mut map = PerfMap::new(LIMIT);
    let _ = map.update(&file);
    let _ = map.update(&file);
    assert!(map.memory_size() <= 2 * LIMIT);
    if let Ok(symbols) = KernelSymbols::read(&file, LIMIT) {
        assert!(symbols.memory_size() <= 2 * LIMIT);
        let _ = symbols.lookup(0, 1);
    }
    let _ = map.lookup(ProcessAddress(0x7000_0000));
    let _ = owner(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Selector::parse(text);
    }
});
