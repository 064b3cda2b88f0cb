//! Unwind rows: as an executable, also one that changes while it is read, and as the bytes of a section alone.
#![no_main]

use bulkhead_fuzz::Changing;
use libfuzzer_sys::fuzz_target;
use objects::{ReadAt, UnwindRows};

const MAX_ROWS: usize = 10_000;
/// Where the bytes of the section begin in the file that is made around them.
const HEADERS: usize = 0x400;

fuzz_target!(|data: &[u8]| {
    check(&data.to_vec());
    let file = executable(data);
    check(&file);
    // How long it stays as it is, its last byte says.
    check(&Changing::new(&file, data.last().copied().unwrap_or_default() % 32));
});

fn check(file: &dyn ReadAt) {
    let Ok(table) = UnwindRows::read(file, MAX_ROWS) else { return };
    assert!(table.rows.len() <= MAX_ROWS);
    assert!(table.rules.iter().all(records::Rule::is_sound));
    for row in &table.rows {
        assert!(usize::from(row.rule()) < table.rules.len());
    }
    for page in &table.pages {
        let rows = &table.rows[page.first as usize..(page.first + page.count) as usize];
        assert!(rows.len() <= records::MAX_ROWS_PER_PAGE as usize);
        // The first may stand in a page before.
        assert!(rows.get(1..).unwrap_or_default().is_sorted_by(|a, b| a.offset() < b.offset()));
    }
}

/// An executable with one segment of code at 0, and this as its `.eh_frame`.
fn executable(section: &[u8]) -> Vec<u8> {
    let mut file = vec![0; HEADERS];
    file[..16].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let names = b"\0.eh_frame\0.shstrtab\0";
    put(16, &3u16.to_le_bytes());
    put(18, &62u16.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(32, &64u64.to_le_bytes()); // program headers
    put(40, &128u64.to_le_bytes()); // section headers
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    put(58, &64u16.to_le_bytes());
    put(60, &3u16.to_le_bytes());
    put(62, &2u16.to_le_bytes());
    let size = (HEADERS + section.len()) as u64;
    for (at, word) in [(64, 1 | 5 << 32), (64 + 32, size), (64 + 40, size), (64 + 48, 0x1000)] {
        put(at, &u64::to_le_bytes(word));
    }
    let mut header = |index: usize, name: u32, kind: u32, address: u64, offset: u64, size: u64| {
        let at = 128 + index * 64;
        put(at, &name.to_le_bytes());
        put(at + 4, &kind.to_le_bytes());
        for (place, word) in [(16, address), (24, offset), (32, size)] {
            put(at + place, &word.to_le_bytes());
        }
    };
    header(1, 1, 1, HEADERS as u64, HEADERS as u64, section.len() as u64);
    header(2, 11, 3, 0, 0x3c0, names.len() as u64);
    put(0x3c0, names);
    file.extend_from_slice(section);
    file
}
