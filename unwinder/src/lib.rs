//! The unwinder: one step from a frame to its caller, generic over where memory and tables are read. The same code
//! runs in the kernel (called by `collector-ebpf`), in the collector (for stacks that the kernel could not place) and
//! in tests.
//!
//! A step first asks for the unwind row at the frame's address. Where there is none it goes on by frame pointers, and
//! says so.
#![no_std]

mod frame_pointers;
mod registers;
mod rules;
mod search;

pub use search::{find_mapping, find_space};

use records::{End, NO_TABLE, Page, Row, Rule, TableEntry};

/// The registers that unwinding needs (x86-64: rip, rsp, rbp).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers {
    /// Instruction pointer: of an interrupted frame the instruction itself, of all others a return address.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer.
    pub fp: u64,
}

/// The process that is unwound, and the tables for its code.
pub trait Machine {
    /// Reads a word of the process's memory; `None` if it cannot be read.
    fn read_word(&mut self, address: u64) -> Option<u64>;

    /// Reads two words that lie one after the other.
    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]>;

    /// The table ([`NO_TABLE`] for code without a file) and the file offset for an address; `None` if it is in no
    /// executable mapping that is known.
    fn locate(&mut self, address: u64) -> Option<(u32, u64)>;

    /// What the kernel saved of a general register when it took the sample: `number` is one of [`records::REGISTERS`].
    fn register(&mut self, number: u8) -> u64;

    /// What is in the stores, by number. All of it may be anything: it was written by the other half.
    fn table(&mut self, number: u32) -> Option<TableEntry>;
    /// See [`Machine::table`].
    fn page(&mut self, number: u32) -> Option<Page>;
    /// See [`Machine::table`].
    fn row(&mut self, number: u32) -> Option<Row>;
    /// See [`Machine::table`].
    fn rule(&mut self, number: u32) -> Option<Rule>;
}

/// A return address: it may lie behind the end of its function, the call before it does not.
pub const RETURN_ADDRESS: u32 = 0;
/// The instruction that the sample interrupted.
pub const INNERMOST: u32 = 1;
/// An instruction that a signal interrupted.
pub const BY_SIGNAL: u32 = 2;

/// A frame on the way to its caller.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Cursor {
    /// Where it is.
    pub registers: Registers,
    /// Where the `ucontext` of the signal frame lies that was last passed through, and so the other registers of what it
    /// interrupted; 0: none was, and the kernel has saved them.
    pub context: u64,
    /// What `registers.ip` is: [`RETURN_ADDRESS`], [`INNERMOST`] or [`BY_SIGNAL`].
    pub interrupted: u32,
    /// Frames that lie in files and were left by frame pointers, since no row covers them.
    pub guessed: u32,
}

impl Cursor {
    /// The innermost frame.
    #[must_use]
    pub const fn new(registers: Registers) -> Self {
        Cursor { registers, context: 0, interrupted: INNERMOST, guessed: 0 }
    }

    /// How the frame stands in a record. Of all but the innermost the byte before is what is looked up, so that of a return address
    /// it is the call; what a signal interrupted may be the first instruction of its function, and is recorded as if it followed a
    /// call.
    #[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
    #[inline(always)]
    #[must_use]
    pub const fn recorded(&self) -> u64 {
        self.registers.ip.wrapping_add((self.interrupted >> 1) as u64)
    }
}

/// Moves `cursor` to the caller's frame, or says why it cannot.
///
/// # Errors
///
/// How the unwind ends. After [`End::NotPlaced`] the cursor is as it was: whoever knows more of the process's mappings, or
/// has the rows that are still to come, can go on from there.
#[expect(clippy::inline_always, reason = "a call costs the verifier as much as it costs the kernel")]
#[inline(always)]
pub fn step(machine: &mut impl Machine, cursor: &mut Cursor) -> Result<(), End> {
    let back = u64::from(cursor.interrupted == RETURN_ADDRESS);
    let address = cursor.registers.ip.wrapping_sub(back);
    let (table, offset) = machine.locate(address).ok_or(End::NotPlaced)?;
    let rule = if table == NO_TABLE { None } else { search::find_rule(machine, table, offset)? };
    if let Some(rule) = rule {
        return rules::apply(machine, cursor, rule);
    }
    if table != NO_TABLE {
        cursor.guessed = cursor.guessed.wrapping_add(1);
    }
    frame_pointers::step(machine, cursor, table)
}

#[cfg(test)]
mod tests;
