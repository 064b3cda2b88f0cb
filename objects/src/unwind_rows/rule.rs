//! From what gimli says of a place to a [`Rule`].

use gimli::{
    CfaRule, Encoding, EndianSlice, Format, LittleEndian, Operation, Register, RegisterRule,
    UnwindExpression, UnwindSection, UnwindTableRow, X86_64,
};
use records::{Cfa, REGISTERS, Rule, SavedFp};

pub(super) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

const ENCODING: Encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };
/// Operations of an expression that are looked at; the longest that compilers use has nine.
const MAX_OPERATIONS: usize = 16;

/// What the head of an entry says of all its rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Form {
    /// Whether what is called is not a function but the return from a signal handler (`S` in the augmentation).
    pub(super) is_signal_frame: bool,
    /// The column that stands for the return address.
    pub(super) return_address: Register,
}

/// The rule, or the kind of what it cannot say.
pub(super) fn convert<'a, S: UnwindSection<Bytes<'a>>>(
    row: &UnwindTableRow<usize>,
    form: Form,
    section: &S,
) -> Result<Rule, &'static str> {
    if form.return_address != X86_64::RA {
        return Err("return address in another column");
    }
    // A return address that is undefined says that there is no caller (DWARF 5, section 6.4.4).
    let return_address = row.register(X86_64::RA);
    if matches!(return_address, Some(RegisterRule::Undefined)) {
        return Ok(Rule::of(Cfa::Root));
    }
    if form.is_signal_frame {
        return signal(row, section);
    }
    let Rule { mut cfa, cfa_offset, .. } = cfa(row, section)?;
    match return_address {
        Some(RegisterRule::Offset(-8)) => {}
        Some(RegisterRule::Register(X86_64::RDI)) if cfa == Cfa::Sp as u8 => cfa = Cfa::SpReturnInDi as u8,
        Some(RegisterRule::Register(_)) => return Err("return address in a register"),
        Some(RegisterRule::Expression(_) | RegisterRule::ValExpression(_)) => {
            return Err("return address by an expression");
        }
        _ => return Err("return address elsewhere"),
    }
    let (fp, fp_offset) = match row.register(X86_64::RBP) {
        // Of a register that no rule names nothing is said: it was not touched.
        None | Some(RegisterRule::SameValue | RegisterRule::Undefined) => (SavedFp::Same, 0),
        Some(RegisterRule::Offset(offset)) => (SavedFp::AtCfa, offset),
        Some(RegisterRule::Expression(expression)) => match operations(&expression, section).as_slice() {
            [Operation::RegisterOffset { register: X86_64::RBP, offset, .. }] => (SavedFp::AtFp, *offset),
            _ => return Err("rbp by an expression"),
        },
        Some(RegisterRule::Register(_)) => return Err("rbp in a register"),
        Some(_) => return Err("rbp by another rule"),
    };
    let fp_offset = i16::try_from(fp_offset).map_err(|_| "rbp far away")?;
    Ok(Rule { cfa, fp: fp as u8, fp_offset, cfa_offset })
}

/// The part of the rule that says where the CFA is.
fn cfa<'a, S: UnwindSection<Bytes<'a>>>(
    row: &UnwindTableRow<usize>,
    section: &S,
) -> Result<Rule, &'static str> {
    let offset = |offset| i32::try_from(offset).map_err(|_| "CFA far away");
    let from = |cfa, at| Ok(Rule { cfa_offset: offset(at)?, ..Rule::of(cfa) });
    match row.cfa() {
        CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } => from(Cfa::Sp, *offset),
        CfaRule::RegisterAndOffset { register: X86_64::RBP, offset } => from(Cfa::Fp, *offset),
        CfaRule::RegisterAndOffset { register, offset: at } => match u8::try_from(register.0) {
            Ok(register @ ..REGISTERS) => Ok(Rule::from_register(register, offset(*at)?)),
            _ => Err("CFA from what is no register"),
        },
        CfaRule::Expression(expression) => {
            let (cfa, at) = by_expression(&operations(expression, section))?;
            from(cfa, at)
        }
    }
}

fn by_expression(operations: &[Operation<Bytes<'_>>]) -> Result<(Cfa, i64), &'static str> {
    use Operation::{
        And, Deref, Ge, Plus, PlusConstant, RegisterOffset as At, Shl, UnsignedConstant as Number,
    };
    match operations {
        [At { register: X86_64::RBP, offset, .. }, Deref { size: 8, space: false, .. }] => {
            Ok((Cfa::AtFp, *offset))
        }
        [At { register: X86_64::RSP, offset, .. }, Deref { size: 8, space: false, .. }] => {
            Ok((Cfa::AtSp, *offset))
        }
        [
            At { register: X86_64::RSP, offset, .. },
            Deref { size: 8, space: false, .. },
            PlusConstant { value: 8 },
        ] => Ok((Cfa::AtSpPlus8, *offset)),
        // Of a linkage table's stubs (binutils, `elf_x86_64_eh_frame_plt` in bfd/elf64-x86-64.c):
        // rsp + 8 + ((rip & 15) >= n) * 8.
        [
            At { register: X86_64::RSP, offset: 8, .. },
            At { register: X86_64::RA, offset: 0, .. },
            Number { value: 15 },
            And,
            Number { value },
            Ge,
            Number { value: 3 },
            Shl,
            Plus,
        ] => i64::try_from(*value).map(|value| (Cfa::Plt, value)).map_err(|_| "CFA by an expression"),
        _ => Err("CFA by an expression"),
    }
}

/// The return from a signal handler. Only where the registers lie as in a `ucontext` at the stack pointer (the kernel's
/// `arch/x86/include/uapi/asm/ucontext.h` and `sigcontext.h`, described by glibc's
/// `sysdeps/unix/sysv/linux/x86_64/libc_sigaction.c`): rbp at 120, rsp at 160, rip at 168 bytes.
fn signal<'a, S: UnwindSection<Bytes<'a>>>(
    row: &UnwindTableRow<usize>,
    section: &S,
) -> Result<Rule, &'static str> {
    use Operation::{Deref, RegisterOffset as At};
    let is_at = |register, wanted| match row.register(register) {
        Some(RegisterRule::Expression(expression)) => matches!(operations(&expression, section).as_slice(),
            [At { register: X86_64::RSP, offset, .. }] if *offset == wanted),
        _ => false,
    };
    let cfa = match row.cfa() {
        CfaRule::Expression(expression) => matches!(
            operations(expression, section).as_slice(),
            [At { register: X86_64::RSP, offset: 160, .. }, Deref { size: 8, space: false, .. }]
        ),
        CfaRule::RegisterAndOffset { .. } => false,
    };
    if cfa && is_at(X86_64::RBP, 120) && is_at(X86_64::RA, 168) {
        Ok(Rule::of(Cfa::Signal))
    } else {
        Err("a signal frame of another form")
    }
}

/// The whole of an expression, or nothing.
fn operations<'a, S: UnwindSection<Bytes<'a>>>(
    expression: &UnwindExpression<usize>,
    section: &S,
) -> Vec<Operation<Bytes<'a>>> {
    let Ok(expression) = expression.get(section) else { return Vec::new() };
    let mut found = Vec::new();
    let mut operations = expression.operations(ENCODING);
    loop {
        match operations.next() {
            Ok(Some(operation)) if found.len() < MAX_OPERATIONS => found.push(operation),
            Ok(None) => return found,
            _ => return Vec::new(),
        }
    }
}
