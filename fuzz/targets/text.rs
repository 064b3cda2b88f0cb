//! Texts that others write: perf maps, the kernel's symbols, cgroup files, selectors of the page.
#![no_main]

use libfuzzer_sys::fuzz_target;
use objects::{KernelSymbols, PerfMap};
use records::ProcessAddress;
use uploader::{
    http::selector::Selector,
    printable::printable,
    targets::{Owner, TargetMaker, owner},
};

const LIMIT: usize = 1 << 16;
/// Longest line of a text that is read, in bytes.
const MAX_LINE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    perf_map(data);
    kernel_symbols(data);
    targets(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let labels = TargetMaker::new("n", []).labels(text, None);
        let _ = Selector::parse(text).map(|selector| selector.matches(&labels));
    }
});

/// What lines begin with and what stands behind the first blank, as numbers: where there may be code.
fn numbers(data: &[u8]) -> impl Iterator<Item = u64> {
    let words = data.split(|byte| matches!(byte, b' ' | b'\n')).take(64);
    words.filter_map(|word| u64::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
}

/// A map that grew is the same as one that was read whole.
fn perf_map(data: &[u8]) {
    let mut whole = PerfMap::new(LIMIT);
    while whole.update(&data.to_vec()).unwrap() {}
    assert!(whole.memory_size() <= LIMIT, "{}", whole.memory_size());
    let mut grown = PerfMap::new(LIMIT);
    for part in [data.len() / 3, data.len() / 2, data.len()] {
        while grown.update(&data[..part].to_vec()).unwrap() {}
    }
    let same = data.split(|byte| *byte == b'\n').all(|line| line.len() <= MAX_LINE);
    for address in numbers(data).flat_map(|start| [start, start.wrapping_sub(1), start.wrapping_add(1)]) {
        let name = whole.lookup(ProcessAddress(address));
        assert!(name.is_none_or(|name| !name.contains(char::is_control)), "{name:?}");
        assert!(!same || name == grown.lookup(ProcessAddress(address)), "{address:#x}");
    }
    let counts = |map: &PerfMap| (map.broken_lines(), map.dropped_entries());
    assert!(!same || counts(&whole) == counts(&grown));
}

fn kernel_symbols(data: &[u8]) {
    let symbols = KernelSymbols::read(&data.to_vec(), LIMIT).unwrap();
    assert!(symbols.memory_size() <= 2 * LIMIT, "{}", symbols.memory_size());
    for offset in numbers(data) {
        for module in [0, 1] {
            let name = symbols.lookup(module, offset);
            assert!(name.is_none_or(|name| !name.is_empty() && name.len() <= 512), "{name:?}");
        }
    }
}

/// Labels are text, and are found again by the selector that they are written as.
fn targets(data: &[u8]) {
    let owner = owner(data);
    if let Some(Owner::Container(name) | Owner::Unit(name)) = &owner {
        assert!(!name.is_empty() && !name.contains(char::is_control), "{name:?}");
    }
    let comm = printable(&data[..data.len().min(256)]);
    let labels = TargetMaker::new("n", []).labels(&comm, owner.as_ref());
    let written = labels.to_string();
    match Selector::parse(&written) {
        Ok(selector) => assert!(selector.matches(&labels), "{written}"),
        // A container's name may be as long as a path.
        Err(error) => assert!(written.len() > 8192, "{written}: {error}"),
    }
}
