//! The entries of one section: the functions that it lists, and what it says of each.

use std::{collections::HashMap, ops::Range};

use gimli::{
    BaseAddresses, CommonInformationEntry, DebugFrame, EhFrame, Error, FrameDescriptionEntry, LittleEndian,
    UnwindContext, UnwindOffset, UnwindSection,
};
use records::Rule;

use super::{
    budget::Budget,
    innermost::Function,
    rule::{self, Bytes},
    sections::{Format, FrameSection, WHAT},
};
use crate::ObjectError;

/// Most functions of an executable; the largest have half a million.
const MAX_FUNCTIONS: usize = 4 << 20;
/// Longest head (CIE) that functions share, in bytes. Its instructions are executed for each function; compilers write
/// 24 bytes.
const MAX_HEAD: usize = 4096;
/// Longest entry of a function (FDE), in bytes: half a million places at which something changes.
pub(super) const MAX_ENTRY: usize = 1 << 20;
/// Heads that are kept parsed.
const MAX_HEADS: usize = 1024;
/// What a function costs that has no instructions, in bytes of instructions.
pub(super) const FUNCTION_COST: usize = 64;
/// The kind of misfit for a function that gimli, or a bound above, refuses.
pub(super) const UNREADABLE: &str = "a function that cannot be read";

type Head<'a> = CommonInformationEntry<Bytes<'a>>;

/// The entries of a section, whatever its format.
pub(super) trait Entries {
    /// Adds all functions to the list, and says how many could not be read. What is wrong with the section ends it, but
    /// not what was found before.
    fn list(
        &mut self,
        number: u8,
        budget: &mut Budget,
        list: &mut Vec<Function>,
    ) -> (u64, Result<(), ObjectError>);

    /// Calls `each` with every change of rule in a piece of a function: from which address on, and what. What cannot be
    /// said has the name of its kind instead. Returns the work that it was.
    fn rules(
        &mut self,
        function: Function,
        piece: Range<u64>,
        each: &mut Each<'_>,
    ) -> Result<usize, ObjectError>;
}

/// Adds a function to the list, if there is room.
pub(super) fn add(list: &mut Vec<Function>, function: Function) -> Result<(), ObjectError> {
    if list.len() == MAX_FUNCTIONS {
        let (size, limit) = (list.len() as u64 + 1, MAX_FUNCTIONS as u64);
        return Err(ObjectError::TooLarge { what: "list of functions", size, limit });
    }
    list.push(function);
    Ok(())
}

/// Takes a change of rule.
pub(super) type Each<'e> = dyn FnMut(u64, Result<Rule, &'static str>) -> Result<(), ObjectError> + 'e;

/// The entries of this section. `bases` has the addresses of what pointers may be relative to.
pub(super) fn of<'a>(section: &'a FrameSection, bases: BaseAddresses) -> Box<dyn Entries + 'a> {
    let bytes = section.bytes.as_slice();
    let ends_at_terminator = section.ends_at_terminator;
    let context = UnwindContext::new();
    match section.format {
        Format::EhFrame => {
            let bases = bases.set_eh_frame(section.address);
            let section = EhFrame::new(bytes, LittleEndian);
            Box::new(Parsed { section, bytes, bases, ends_at_terminator, heads: HashMap::new(), context })
        }
        Format::DebugFrame => {
            let mut section = DebugFrame::new(bytes, LittleEndian);
            section.set_address_size(8);
            Box::new(Parsed { section, bytes, bases, ends_at_terminator, heads: HashMap::new(), context })
        }
    }
}

struct Parsed<'a, S> {
    section: S,
    bytes: &'a [u8],
    bases: BaseAddresses,
    ends_at_terminator: bool,
    /// Heads by their place; those that cannot be parsed too, so that nobody tries twice.
    heads: HashMap<usize, gimli::Result<Head<'a>>>,
    context: UnwindContext<usize>,
}

/// The bytes of an entry after its length, which is 4 bytes or 0xffffffff and 8 more (DWARF 5, section 7.4).
fn entry(bytes: &[u8], at: usize) -> Option<Range<usize>> {
    let short = u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?);
    let (begin, length) = if short == u32::MAX {
        let begin = at.checked_add(12)?;
        (begin, usize::try_from(u64::from_le_bytes(*bytes.get(at + 4..)?.first_chunk()?)).ok()?)
    } else {
        (at + 4, usize::try_from(short).ok()?)
    };
    let end = begin.checked_add(length)?;
    (end <= bytes.len()).then_some(begin..end)
}

/// Refuses a head whose functions are where a pointer in the memory of a running program says; gimli takes the place of
/// that pointer for the function's.
fn with_direct_addresses(head: Head<'_>) -> gimli::Result<Head<'_>> {
    match head.fde_address_encoding() {
        Some(encoding) if encoding.is_indirect() => Err(Error::UnsupportedPointerEncoding(encoding)),
        _ => Ok(head),
    }
}

impl<'a, S> Parsed<'a, S>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    fn function(&mut self, at: usize) -> gimli::Result<FrameDescriptionEntry<Bytes<'a>>> {
        let Parsed { section, bytes, bases, heads, .. } = self;
        if entry(bytes, at).is_none_or(|entry| entry.len() > MAX_ENTRY) {
            return Err(Error::UnsupportedOffset);
        }
        section.fde_from_offset(bases, S::Offset::from(at), |section, bases, offset| {
            let at = UnwindOffset::into(offset);
            if let Some(head) = heads.get(&at) {
                return head.clone();
            }
            let head = match entry(bytes, at) {
                Some(entry) if entry.len() <= MAX_HEAD => {
                    section.cie_from_offset(bases, offset).and_then(with_direct_addresses)
                }
                _ => Err(Error::UnsupportedOffset),
            };
            if heads.len() == MAX_HEADS {
                heads.clear();
            }
            heads.insert(at, head.clone());
            head
        })
    }
}

impl<'a, S> Entries for Parsed<'a, S>
where
    S: UnwindSection<Bytes<'a>>,
    S::Offset: UnwindOffset<usize>,
{
    fn list(
        &mut self,
        number: u8,
        budget: &mut Budget,
        list: &mut Vec<Function>,
    ) -> (u64, Result<(), ObjectError>) {
        let mut unreadable = 0;
        let mut at = 0;
        // gimli's own iterator ends at the first entry that it does not know.
        while at < self.bytes.len() {
            let Some(entry) = entry(self.bytes, at) else {
                let problem = format!("the entry at {at:#x} of its section is cut short");
                return (unreadable, Err(ObjectError::Malformed { what: WHAT, problem }));
            };
            if entry.is_empty() {
                if self.ends_at_terminator {
                    break;
                }
                at = entry.end;
                continue;
            }
            let mut cost = FUNCTION_COST;
            match self.function(at) {
                Ok(function) => {
                    let (begin, end) = (function.initial_address(), function.end_address());
                    cost += function.cie().entry_len();
                    // At address 0 lies the ELF header: that is what linkers leave of functions that they dropped.
                    if begin > 0 && end > begin {
                        let entry = u32::try_from(at).unwrap_or(u32::MAX);
                        if let Err(problem) = add(list, Function { begin, end, entry, section: number }) {
                            return (unreadable, Err(problem));
                        }
                    }
                }
                Err(Error::NotCiePointer(_)) => {}
                Err(_) => {
                    cost += MAX_HEAD;
                    unreadable += 1;
                }
            }
            if let Err(problem) = budget.spend(cost) {
                return (unreadable, Err(problem));
            }
            at = entry.end;
        }
        (unreadable, Ok(()))
    }

    fn rules(
        &mut self,
        function: Function,
        piece: Range<u64>,
        each: &mut Each<'_>,
    ) -> Result<usize, ObjectError> {
        let mut at = piece.start;
        let Ok(entry) = self.function(function.entry as usize) else {
            each(at, Err(UNREADABLE))?;
            return Ok(FUNCTION_COST + MAX_HEAD);
        };
        let cost = FUNCTION_COST + entry.entry_len() + entry.cie().entry_len();
        let cie = entry.cie();
        let form = rule::Form {
            is_signal_frame: cie.is_signal_trampoline(),
            return_address: cie.return_address_register(),
        };
        let Ok(mut rows) = entry.rows(&self.section, &self.bases, &mut self.context) else {
            each(at, Err(UNREADABLE))?;
            return Ok(cost);
        };
        loop {
            match rows.next_row() {
                // Instructions need not stay within their function.
                Ok(Some(row)) if row.start_address() >= piece.end => break,
                Ok(Some(row)) if row.end_address() <= at => {}
                Ok(Some(row)) => {
                    each(at, rule::convert(row, form, &self.section))?;
                    at = row.end_address();
                }
                Err(_) if at < piece.end => {
                    each(at, Err(UNREADABLE))?;
                    break;
                }
                Ok(None) | Err(_) => break,
            }
        }
        Ok(cost)
    }
}
