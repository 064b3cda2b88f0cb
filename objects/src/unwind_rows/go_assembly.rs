//! What the code of Go's own assembly says that no table does: where it has the frame pointer, and where it leaves its
//! stack. Read are the few instructions that the assembler and the runtime's source make of that; these functions are
//! few, short, and the same in all programs.

use std::ops::Range;

use crate::{elf::Elf, read_at::read_range};

/// Most bytes of a function that are looked at; the longest, `runtime.cgocallback`, has 500.
const MAX_CODE: u64 = 2048;
/// The prologue lies within so many bytes, behind a check whether the stack has room.
const MAX_PROLOGUE: usize = 64;

/// Places in a function, all as addresses. Each is one byte behind the first of an instruction, or where one begins: who
/// is interrupted there has executed it, or has not.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    /// From here on the frame pointer points to where the caller's was saved, beneath the return address.
    frame: Option<u64>,
    /// From here on the stack is, or may be, another one.
    left: Option<u64>,
    /// From here on the frame pointer is saved at this offset from what was the stack pointer there.
    saved: Option<(u64, u8)>,
}

impl Assembly {
    /// Looks at a function. What cannot be read has no such places.
    pub(super) fn read(elf: &Elf<'_>, function: Range<u64>) -> Self {
        let Some((offset, size)) = elf.bytes_from(function.start) else { return Assembly::default() };
        let size = size.min(function.end - function.start).min(MAX_CODE);
        let code = read_range(elf.file, "Go function", offset, size, MAX_CODE).unwrap_or_default();
        Assembly::of(&code, function.start)
    }

    fn of(code: &[u8], begin: u64) -> Self {
        let at = |find: &dyn Fn(&[u8]) -> Option<usize>, within: usize| {
            (0..code.len().min(within)).find_map(|at| Some(begin + (at + find(code.get(at..)?)?) as u64))
        };
        Assembly {
            frame: at(&has_frame, MAX_PROLOGUE),
            left: at(&writes_sp, code.len()),
            saved: (0..code.len()).find_map(|at| match code.get(at..)? {
                // mov %rbp, offset(%rsp); beyond 0x7f it would be negative
                [0x48, 0x89, 0x6c, 0x24, offset @ 0..=0x7f, ..] => Some((begin + at as u64 + 1, *offset)),
                _ => None,
            }),
        }
    }

    /// Where the rule may change, other than with the size of the stack.
    pub(super) fn changes(&self) -> impl Iterator<Item = u64> {
        [self.frame, self.left, self.saved.map(|saved| saved.0)].into_iter().flatten()
    }

    /// From where on the frame pointer is saved, and at which offset from what the stack pointer is there.
    pub(super) fn saves_fp(&self) -> Option<(u64, u8)> {
        self.saved
    }

    /// Whether the frame pointer is the function's own at this place, unless it was already taken back.
    pub(super) fn has_frame(&self, place: u64) -> bool {
        self.frame.is_some_and(|from| place >= from)
    }

    /// Whether it is so anywhere.
    pub(super) fn ever_has_frame(&self) -> bool {
        self.frame.is_some()
    }

    /// Whether the stack may be another one at this place.
    pub(super) fn has_left(&self, place: u64) -> bool {
        self.left.is_some_and(|from| place >= from)
    }
}

/// The end of a prologue, in bytes.
fn has_frame(code: &[u8]) -> Option<usize> {
    match code {
        // push %rbp; mov %rsp, %rbp
        [0x55, 0x48, 0x89, 0xe5, ..] => Some(2),
        // mov %rbp, offset(%rsp); lea offset(%rsp), %rbp, with a short and a long offset: before Go 1.21
        [0x48, 0x89, 0x6c, 0x24, saved, 0x48, 0x8d, 0x6c, 0x24, frame, ..] if saved == frame => Some(6),
        [0x48, 0x89, 0xac, 0x24, _, _, _, _, 0x48, 0x8d, 0xac, 0x24, ..] => Some(9),
        _ => None,
    }
}

/// The place behind the first byte of `mov` with the stack pointer as its destination.
fn writes_sp(code: &[u8]) -> Option<usize> {
    match code {
        // From memory or a register, and from a register the other way round (Intel's manual, volume 2, "MOV").
        [0x48 | 0x49, 0x8b, operands, ..] if operands & 0x38 == 0x20 => Some(1),
        [0x48 | 0x4c, 0x89, operands, ..] if operands & 0xc7 == 0xc4 => Some(1),
        _ => None,
    }
}
