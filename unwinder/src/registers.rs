//! Registers other than the three that every step restores: as they were where the process was interrupted, by the sample or
//! by the last signal that the unwind went through.

use records::{End, REGISTERS};

use crate::{Cursor, Machine, RETURN_ADDRESS};

/// Where the general registers stand in a `ucontext` (`gregs` in `sys/ucontext.h`; the kernel's `struct sigcontext_64` in
/// `arch/x86/include/uapi/asm/sigcontext.h`), and in which place each of DWARF's order is: four bits each.
const UCONTEXT_REGISTERS: u64 = 40;
const PLACES: u64 = 0x7654_3210_FA89_BECD;
/// Registers that a function restores before it returns (System V psABI, section 3.2.1): rbx, rbp, rsp, r12 to r15, by number.
const SAVED_BY_CALLEES: u32 = 1 << 3 | 1 << 6 | 1 << 7 | 0xf << 12;

/// The register in the cursor's frame.
///
/// What a callee restores, it may have used for something else meanwhile: of such only an interrupted frame's own is known.
/// The others are nobody's, so code that keeps something there over a call knows that its callee leaves them alone.
#[expect(clippy::inline_always, reason = "runs in the kernel")]
#[inline(always)]
pub(crate) fn get(machine: &mut impl Machine, cursor: &Cursor, number: u8) -> Result<u64, End> {
    let number = number % REGISTERS;
    if cursor.interrupted == RETURN_ADDRESS && SAVED_BY_CALLEES >> number & 1 == 1 {
        return Err(End::NoRule);
    }
    if cursor.context == 0 {
        return Ok(machine.register(number));
    }
    let place = PLACES >> (u32::from(number) * 4) & 15;
    machine.read_word(cursor.context.wrapping_add(UCONTEXT_REGISTERS + place * 8)).ok_or(End::Memory)
}
