//! Go's functions, from the table that its runtime unwinds by: how far the stack pointer lies below the return address at
//! each place (`pcsp`). Go's own frame pointers miss the caller of each function without a frame.
//!
//! Sources: `runtime/symtab.go` (`pcvalue`, `step`: the coding of tables by address), `runtime/traceback.go`
//! (`unwinder.resolveInternal`: frames, flags, changes of stack), `cmd/internal/obj/x86/obj6.go` (`preprocess`: the frame
//! pointer is saved beneath the return address of each function that has a frame).

use std::ops::Range;

use records::{Cfa, Rule, SavedFp};

use super::{
    budget::Budget,
    entries::{self, Each, Entries, FUNCTION_COST, MAX_ENTRY, UNREADABLE},
    go_assembly::Assembly,
    innermost::Function,
    sections::MAX_SECTION,
};
use crate::{
    ObjectError,
    elf::Elf,
    gopclntab::{self, FunctionTable},
    symbols::Code,
};

/// `internal/abi/symtab.go`: nothing called this function.
const TOP_FRAME: u8 = 1;
/// It sets the stack pointer to something else, mostly to another stack.
const WRITES_SP: u8 = 2;
/// It is written in assembly, and need not save the frame pointer where compiled functions do.
const ASSEMBLY: u8 = 4;
/// Between two functions there is less than this, in bytes (`cmd/link/internal/amd64/l.go`, `funcAlign`, and more where a
/// profile says that it is worth it).
const MAX_PADDING: u64 = 64;

/// The functions that the table of an executable lists.
pub(super) struct GoFunctions<'e> {
    elf: &'e Elf<'e>,
    table: FunctionTable,
}

/// The functions of a Go program; `None` if it is none.
pub(super) fn of<'e>(elf: &'e Elf<'_>) -> Option<Result<GoFunctions<'e>, ObjectError>> {
    let section = gopclntab::section(elf)?;
    let table = FunctionTable::read(elf, section, &Code::of(elf), MAX_SECTION);
    Some(table.map(|table| GoFunctions { elf, table }))
}

/// How a function is left.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Ordinary,
    /// It was not called.
    Root,
    /// What a signal handler returns to.
    SignalReturn,
    /// The runtime lets a function that it has interrupted look as if it had called this one.
    Injected,
    /// From where it changes stacks on there is no way back: it never returns there.
    LeavesForGood,
    /// It goes on on another stack and comes back; its frame pointer stays where it was.
    ChangesStacks,
}

impl Kind {
    fn of(name: &[u8], flags: u8) -> Kind {
        match name {
            // Since Go 1.21, and before.
            b"runtime.sigreturn__sigaction" | b"runtime.sigreturn" => Kind::SignalReturn,
            b"runtime.asyncPreempt" | b"runtime.sigpanic" => Kind::Injected,
            b"runtime.mcall" | b"runtime.morestack" | b"runtime.switchToCrashStack0" => Kind::LeavesForGood,
            // The runtime takes these for the end of a stack. They return to the kernel's signal frame.
            b"runtime.sigtramp" | b"runtime.cgoSigtramp" | b"runtime.sigprofNonGoWrapper" => Kind::Ordinary,
            _ if flags & TOP_FRAME != 0 => Kind::Root,
            _ if flags & WRITES_SP != 0 => Kind::ChangesStacks,
            _ => Kind::Ordinary,
        }
    }

    /// Bytes before the function that count as its own. What returns to its first instruction was not called from
    /// there, and callers are looked up at the byte before their return address.
    fn before(self) -> u64 {
        u64::from(self == Kind::SignalReturn)
    }
}

impl Entries for GoFunctions<'_> {
    fn list(
        &mut self,
        number: u8,
        budget: &mut Budget,
        list: &mut Vec<Function>,
    ) -> (u64, Result<(), ObjectError>) {
        let mut unreadable = 0;
        for (entry, index) in (0..).zip(0..self.table.count) {
            let added = match self.table.function(index) {
                Some(function) if function.begin > 0 && function.end > function.begin => {
                    let begin = function.begin - Kind::of(function.name, function.flags).before();
                    entries::add(list, Function { begin, end: function.end, entry, section: number })
                }
                _ => {
                    unreadable += 1;
                    Ok(())
                }
            };
            if let Err(problem) = added.and_then(|()| budget.spend(FUNCTION_COST)) {
                return (unreadable, Err(problem));
            }
        }
        (unreadable, Ok(()))
    }

    fn rules(
        &mut self,
        function: Function,
        piece: Range<u64>,
        each: &mut Each<'_>,
    ) -> Result<usize, ObjectError> {
        let Some(known) = self.table.function(function.entry as usize) else {
            each(piece.start, Err(UNREADABLE))?;
            return Ok(FUNCTION_COST);
        };
        let kind = Kind::of(known.name, known.flags);
        match kind {
            Kind::Root => each(piece.start, Ok(Rule::of(Cfa::Root)))?,
            Kind::SignalReturn => each(piece.start, Ok(Rule::of(Cfa::Signal)))?,
            _ => {
                let assembly = (known.flags & (ASSEMBLY | WRITES_SP) != 0)
                    .then(|| Assembly::read(self.elf, known.begin..known.end));
                return stack_sizes(&known, &piece, kind, assembly.as_ref(), each);
            }
        }
        Ok(FUNCTION_COST)
    }
}

/// Calls `each` for the piece of a function whose stack sizes say how it is left. Returns the work that it was.
fn stack_sizes(
    function: &gopclntab::Function<'_>,
    piece: &Range<u64>,
    kind: Kind,
    assembly: Option<&Assembly>,
    each: &mut Each<'_>,
) -> Result<usize, ObjectError> {
    let mut steps = Steps { bytes: function.stack_sizes, at: function.begin, value: -1, is_first: true };
    let mut covered = piece.start;
    let mut saved_fp = None;
    while covered < piece.end && function.stack_sizes.len() - steps.bytes.len() < MAX_ENTRY {
        let begin = steps.at;
        let Some(size) = steps.next() else { break };
        let end = steps.at.min(piece.end);
        if let Some((place, from_sp)) = assembly.and_then(Assembly::saves_fp)
            && (begin..steps.at).contains(&place)
        {
            saved_fp = Some(SavedAt { place, size, offset: i32::from(from_sp) - 8 - size });
        }
        // Within a step the rule changes where the assembly says so.
        let changes = assembly.map(Assembly::changes).into_iter().flatten();
        let mut places: Vec<u64> = changes.filter(|place| (begin + 1..end).contains(place)).collect();
        places.push(begin);
        places.sort_unstable();
        let ends = places.iter().skip(1).copied().chain([end]);
        for (place, end) in places.iter().zip(ends) {
            if end > covered {
                each(covered, rule(kind, size, *place, assembly, saved_fp.as_ref()))?;
                covered = end;
            }
        }
    }
    // Behind the last function up to the next one is padding.
    if piece.end - covered >= MAX_PADDING {
        each(covered, Err(UNREADABLE))?;
    }
    Ok(FUNCTION_COST + function.stack_sizes.len() - steps.bytes.len())
}

/// Where assembly has saved the frame pointer, if not in a frame of the usual form.
struct SavedAt {
    /// From here on.
    place: u64,
    /// Size of the stack when it was done. When it is smaller again, the frame pointer is back.
    size: i32,
    /// Offset from the CFA.
    offset: i32,
}

/// The rule at a place where the stack pointer lies `size` bytes below the return address.
fn rule(
    kind: Kind,
    size: i32,
    place: u64,
    assembly: Option<&Assembly>,
    saved_fp: Option<&SavedAt>,
) -> Result<Rule, &'static str> {
    let Some(cfa_offset) = size.checked_add(8).filter(|offset| *offset >= 8) else { return Err(UNREADABLE) };
    let has_left = assembly.is_some_and(|assembly| assembly.has_left(place));
    let has_frame = size >= 8 && assembly.is_none_or(|assembly| assembly.has_frame(place));
    let saved_fp = saved_fp.filter(|saved| place >= saved.place && size >= saved.size);
    let (fp, fp_offset) = match saved_fp.and_then(|saved| i16::try_from(saved.offset).ok()) {
        _ if has_frame => (SavedFp::AtCfa, -16),
        Some(offset) => (SavedFp::AtCfa, offset),
        None => (SavedFp::Same, 0),
    };
    let rule = |cfa, cfa_offset| Ok(Rule { cfa: cfa as u8, fp: fp as u8, fp_offset, cfa_offset });
    match kind {
        Kind::LeavesForGood if has_left => Ok(Rule::of(Cfa::Root)),
        Kind::ChangesStacks if has_frame => rule(Cfa::Fp, 16),
        // Go 1.20 and before: nothing but the scheduler's own data leads back. The frame pointer is the caller's.
        Kind::ChangesStacks if has_left && !assembly.is_some_and(Assembly::ever_has_frame) => {
            Ok(Rule::of(Cfa::Unknown))
        }
        Kind::Injected => rule(Cfa::SpInterrupted, cfa_offset),
        _ => rule(Cfa::Sp, cfa_offset),
    }
}

/// A table by address: pairs of how much the value changes (zigzag) and for how many bytes of code it then holds.
struct Steps<'t> {
    bytes: &'t [u8],
    at: u64,
    value: i32,
    is_first: bool,
}

impl Steps<'_> {
    /// The next value, which holds from where `at` was to where it is then; `None` at the end of the table.
    fn next(&mut self) -> Option<i32> {
        let change = self.number()?;
        if change == 0 && !self.is_first {
            return None;
        }
        self.is_first = false;
        let change = (change >> 1).cast_signed() ^ -(change & 1).cast_signed();
        self.value = self.value.checked_add(change)?;
        // The smallest instruction of x86-64 has one byte.
        let bytes = self.number().filter(|bytes| *bytes > 0)?;
        self.at = self.at.checked_add(u64::from(bytes))?;
        Some(self.value)
    }

    /// A number in base 128, lowest digit first; each byte but the last has its highest bit set.
    fn number(&mut self) -> Option<u32> {
        let mut number = 0;
        for shift in [0, 7, 14, 21, 28] {
            let (byte, rest) = self.bytes.split_first()?;
            self.bytes = rest;
            number |= u32::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}
