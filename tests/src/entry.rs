//! Where a program begins, by its file: what the last frame of a whole stack lies in, with a name or without.

use std::{fs, ops::Range, path::Path};

/// Its first instructions, up to the call that never returns: from `e_entry` of the header on (System V ABI, chapter 4).
#[must_use]
pub fn first_instructions(program: &Path) -> Range<u64> {
    const FIRST_CALL: u64 = 16;
    let header = fs::read(program).expect("a program of the test's");
    let entry = u64::from_le_bytes(header[24..32].try_into().expect("eight bytes"));
    entry..entry + FIRST_CALL
}
