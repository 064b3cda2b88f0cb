//! From a frame to its caller's by the frame pointer: for code that no row covers.

use records::{End, NO_TABLE};

use crate::{Cursor, Machine, RETURN_ADDRESS, Registers, rules};

/// `mov $15, %rax; syscall`: the call of `rt_sigreturn` that a signal handler returns to. C libraries without unwind
/// information for it (musl) and Go have it in just this form; the last byte is not compared.
const SIGRETURN: u64 = u64::from_le_bytes([0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00, 0x0f]);
/// Its length, which is how far behind its start a sample stands that was taken within the call.
const SIGRETURN_LENGTH: u64 = 9;

/// `add $size, %rsp; ret` with a short size, and where the size stands: what a call without a frame pointer returns to.
/// `CPython`'s perf trampolines are made of it, one for each function (`Python/asm_trampoline.S`). Not compared
/// are the size, but for its sign, and the bytes behind the end.
const LEAVE: u64 = u64::from_le_bytes([0x48, 0x83, 0xc4, 0, 0xc3, 0, 0, 0]);
const LEAVE_MASK: u64 = u64::from_le_bytes([0xff, 0xff, 0xff, 0x80, 0xff, 0, 0, 0]);
const LEAVE_SIZE: u32 = 24;

/// The frame that a frame pointer leads to is, by the x86-64 ABI (System V psABI, section 3.2.2): the caller's frame
/// pointer at 0, the return address at 8, and the caller's stack above. The outermost frame has a frame pointer of
/// zero (section 3.4.1).
#[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
#[inline(always)]
pub(crate) fn step(machine: &mut impl Machine, cursor: &mut Cursor, table: u32) -> Result<(), End> {
    let Registers { ip, sp, fp: frame } = cursor.registers;
    // What cannot be read is neither of the two.
    let code = machine.read_word(ip).unwrap_or(0);
    if code == SIGRETURN {
        return rules::signal(machine, cursor);
    }
    if cursor.interrupted != RETURN_ADDRESS
        && machine.read_word(ip.wrapping_sub(SIGRETURN_LENGTH)) == Some(SIGRETURN)
    {
        return rules::signal(machine, cursor);
    }
    if cursor.interrupted == RETURN_ADDRESS && code & LEAVE_MASK == LEAVE {
        let at = sp.wrapping_add((code >> LEAVE_SIZE) & 0x7f);
        let ip = machine.read_word(at).ok_or(End::Memory)?;
        cursor.registers = Registers { ip, sp: at.wrapping_add(8), fp: frame };
        return Ok(());
    }
    if frame == 0 {
        // A caller that no row covers, in a file whose others are covered, is what starts a program. Elsewhere zero says
        // nothing: it is there from a program's start on until code without frame pointers first uses the register, and
        // code that is made at run time keeps anything in it.
        let has_rows = table != NO_TABLE && machine.table(table).is_some_and(|entry| entry.page_count > 0);
        return Err(if has_rows && cursor.interrupted == RETURN_ADDRESS {
            End::Root
        } else {
            End::NotClimbing
        });
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
    cursor.interrupted = RETURN_ADDRESS;
    Ok(())
}
