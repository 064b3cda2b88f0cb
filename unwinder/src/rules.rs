//! From a frame to its caller's by a rule (DWARF 5, section 6.4.3, in the few forms that compilers use on x86-64).

use records::{Cfa, End, RDI, Rule, SavedFp};

use crate::{BY_SIGNAL, Cursor, Machine, RETURN_ADDRESS, Registers, registers};

/// Where a signal frame's `ucontext` has the interrupted registers, from the stack pointer at the call of
/// `rt_sigreturn`: `uc_mcontext` at 40, in it `gregs[REG_RBP]`, `[REG_RSP]` and `[REG_RIP]` (`sys/ucontext.h`; the
/// kernel's `struct sigcontext_64` in `arch/x86/include/uapi/asm/sigcontext.h`).
const UCONTEXT_RBP: u64 = 120;
const UCONTEXT_RSP: u64 = 160;
const UCONTEXT_RIP: u64 = 168;

/// Executes a rule.
#[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
#[inline(always)]
pub(crate) fn apply(machine: &mut impl Machine, cursor: &mut Cursor, rule: Rule) -> Result<(), End> {
    let Registers { ip, sp, fp } = cursor.registers;
    let offset = i64::from(rule.cfa_offset).cast_unsigned();
    let (from_stack, from_frame) = (sp.wrapping_add(offset), fp.wrapping_add(offset));
    let cfa = match rule.cfa {
        cfa if cfa == Cfa::Sp as u8 || cfa == Cfa::SpReturnInDi as u8 || cfa == Cfa::SpInterrupted as u8 => {
            from_stack
        }
        cfa if cfa == Cfa::Fp as u8 => from_frame,
        cfa if cfa == Cfa::AtFp as u8 => machine.read_word(from_frame).ok_or(End::Memory)?,
        cfa if cfa == Cfa::AtSp as u8 => machine.read_word(from_stack).ok_or(End::Memory)?,
        cfa if cfa == Cfa::AtSpPlus8 as u8 => {
            machine.read_word(from_stack).ok_or(End::Memory)?.wrapping_add(8)
        }
        cfa if cfa == Cfa::Plt as u8 => sp.wrapping_add(if (ip & 15) >= offset { 16 } else { 8 }),
        cfa if cfa == Cfa::Signal as u8 => return signal(machine, cursor),
        cfa if cfa == Cfa::Root as u8 => return Err(End::Root),
        cfa @ Cfa::FROM_REGISTERS..Cfa::COUNT => {
            registers::get(machine, cursor, cfa.wrapping_sub(Cfa::FROM_REGISTERS))?.wrapping_add(offset)
        }
        _ => return Err(End::NoRule),
    };
    let (saved_fp, return_address) = if rule.cfa == Cfa::SpReturnInDi as u8 {
        // Of a frame that was not interrupted it is not known: a callee may have used it.
        match registers::get(machine, cursor, RDI)? {
            0 => return Err(End::NoRule),
            _ if cursor.interrupted == RETURN_ADDRESS => return Err(End::NoRule),
            di => (fp, di),
        }
    } else if rule.fp == SavedFp::AtCfa as u8 && rule.fp_offset == -16 {
        // Nearly always: both words lie together.
        let [fp, ip] = machine.read_pair(cfa.wrapping_sub(16)).ok_or(End::Memory)?;
        (fp, ip)
    } else {
        let ip = machine.read_word(cfa.wrapping_sub(8)).ok_or(End::Memory)?;
        let offset = i64::from(rule.fp_offset).cast_unsigned();
        let saved = match rule.fp {
            saved if saved == SavedFp::AtCfa as u8 => Some(cfa.wrapping_add(offset)),
            saved if saved == SavedFp::AtFp as u8 => Some(fp.wrapping_add(offset)),
            _ => None,
        };
        match saved {
            Some(address) => (machine.read_word(address).ok_or(End::Memory)?, ip),
            None => (fp, ip),
        }
    };
    if return_address == 0 {
        return Err(End::Root);
    }
    cursor.registers = Registers { ip: return_address, sp: cfa, fp: saved_fp };
    cursor.interrupted = if rule.cfa == Cfa::SpInterrupted as u8 { BY_SIGNAL } else { RETURN_ADDRESS };
    Ok(())
}

/// From the return of a signal handler to what the signal interrupted.
#[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
#[inline(always)]
pub(crate) fn signal(machine: &mut impl Machine, cursor: &mut Cursor) -> Result<(), End> {
    let context = cursor.registers.sp;
    let fp = machine.read_word(context.wrapping_add(UCONTEXT_RBP)).ok_or(End::Memory)?;
    let sp = machine.read_word(context.wrapping_add(UCONTEXT_RSP)).ok_or(End::Memory)?;
    let ip = machine.read_word(context.wrapping_add(UCONTEXT_RIP)).ok_or(End::Memory)?;
    cursor.registers = Registers { ip, sp, fp };
    cursor.context = context;
    cursor.interrupted = BY_SIGNAL;
    Ok(())
}
