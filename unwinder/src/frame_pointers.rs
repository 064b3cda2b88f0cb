//! From a frame to its caller's by the frame pointer: for code that no row covers.

use records::End;

use crate::{Cursor, Machine, Registers, rules};

/// `mov $15, %rax; syscall`: the call of `rt_sigreturn` that a signal handler returns to. C libraries without unwind
/// information for it (musl) and Go have it in just this form; the last byte is not compared.
const SIGRETURN: u64 = u64::from_le_bytes([0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f]);

/// The frame that a frame pointer leads to is, by the x86-64 ABI (System V psABI, section 3.2.2): the caller's frame
/// pointer at 0, the return address at 8, and the caller's stack above. The outermost frame has a frame pointer of
/// zero (section 3.4.1).
#[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
#[inline(always)]
pub(crate) fn step(machine: &mut impl Machine, cursor: &mut Cursor) -> Result<(), End> {
    let Registers { ip, sp, fp: frame } = cursor.registers;
    if machine.read_word(ip) == Some(SIGRETURN) {
        return rules::signal(machine, cursor);
    }
    if frame == 0 {
        return Err(End::Root);
    }
    // Callers lie higher on the stack. What does not climb is no frame pointer but some value that code compiled
    // without them keeps in the register; following it would invent frames.
    if frame < sp || frame & 7 != 0 {
        return Err(End::NotClimbing);
    }
    let [fp, ip] = machine.read_pair(frame).ok_or(End::Memory)?;
    if ip == 0 {
        return Err(End::Root);
    }
    cursor.registers = Registers { ip, sp: frame.wrapping_add(16), fp };
    cursor.di = 0;
    cursor.interrupted = 0;
    Ok(())
}
