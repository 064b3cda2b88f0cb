//! From the functions of an executable, in the order of their addresses, to rows by file offset.

use gimli::BaseAddresses;
use records::{Cfa, Rule};

use super::{
    budget::Budget,
    entries::{self, Entries, UNREADABLE},
    go::GoFunctions,
    innermost::{self, Function},
    linkage::Linkage,
    sections::FrameSection,
    sink::Sink,
};
use crate::{
    ObjectError,
    elf::{Elf, PF_X, ProgramHeader},
};

/// Less than this between two functions is padding, in bytes: nobody is ever sampled there, and the row before it may
/// stay in force.
const PADDING: u64 = 16;

/// Puts the rows of all functions into the sink.
pub(super) fn read(
    elf: &Elf<'_>,
    go: Option<GoFunctions<'_>>,
    sections: &[FrameSection],
    budget: &mut Budget,
    sink: &mut Sink,
) -> Result<(), ObjectError> {
    let mut bases = BaseAddresses::default();
    if let Some(text) = elf.section(".text") {
        bases = bases.set_text(text.address);
    }
    // What GCC's runtime takes from `DT_PLTGOT` (libgcc, `unwind-dw2-fde-dip.c`).
    if let Some(got) = elf.section(".got.plt").or_else(|| elf.section(".got")) {
        bases = bases.set_got(got.address);
    }
    let is_go = go.is_some();
    // Of functions that two list, the first counts.
    let mut entries: Vec<Box<dyn Entries>> = Vec::new();
    entries.extend(go.map(|functions| Box::new(functions) as Box<dyn Entries>));
    entries.extend(sections.iter().map(|section| entries::of(section, bases.clone())));
    entries.push(Box::new(Linkage::of(elf)));
    let mut functions = Vec::new();
    let mut problem = None;
    for (number, section) in (0..).zip(&mut entries) {
        let (unreadable, end) = section.list(number, budget, &mut functions);
        sink.misfits(UNREADABLE, unreadable);
        problem = problem.or(end.err());
    }
    innermost::sort(&mut functions);
    if is_go {
        leave_to_go(&mut functions);
    }
    let mut segments: Vec<_> = elf.segments().filter(|segment| segment.flags & PF_X != 0).collect();
    segments.sort_by_key(|segment| segment.offset);
    for segment in segments {
        Text { segment, sink, budget, entries: &mut entries }.read(&functions)?;
    }
    problem.map_or(Ok(()), Err)
}

/// Takes out, of sorted functions, what other sections than Go's own (the first) say of Go's functions: Go's linker
/// describes them in `.debug_frame` a second time, and does not know there what only the runtime's table says.
fn leave_to_go(functions: &mut Vec<Function>) {
    let is_go = |function: &Function| function.section == 0;
    let go: Vec<Function> = functions.iter().copied().filter(is_go).collect();
    functions.retain(|function| {
        let after = go.partition_point(|known| known.begin <= function.begin);
        is_go(function) || go[..after].last().is_none_or(|known| known.end <= function.begin)
    });
}

/// A segment with code, and what its rows are made with.
struct Text<'t, 's> {
    segment: &'t ProgramHeader,
    sink: &'t mut Sink,
    budget: &'t mut Budget,
    entries: &'t mut [Box<dyn Entries + 's>],
}

impl Text<'_, '_> {
    /// Of `functions`, which are all there are, those that begin in this segment.
    fn read(&mut self, functions: &[Function]) -> Result<(), ObjectError> {
        let begin = self.segment.address;
        let end = begin.saturating_add(self.segment.file_size);
        let first = functions.partition_point(|function| function.begin < begin);
        let after = functions.partition_point(|function| function.begin < end).max(first);
        let mut covered = begin;
        innermost::pieces(&functions[first..after], |function, mut piece| {
            piece.end = piece.end.min(end);
            if piece.is_empty() {
                return Ok(());
            }
            if piece.start - covered >= PADDING {
                self.push(covered, Rule::of(Cfa::Unknown))?;
            }
            covered = piece.end;
            let Text { segment, sink, budget, entries } = self;
            let Some(section) = entries.get_mut(usize::from(function.section)) else { return Ok(()) };
            let work = section.rules(function, piece, &mut |address, rule| {
                let rule = rule.unwrap_or_else(|kind| {
                    sink.misfits(kind, 1);
                    Rule::of(Cfa::Unsupported)
                });
                push(segment, sink, address, rule)
            })?;
            // What was done until here stays good.
            budget.spend(work).or_else(|problem| {
                self.push(covered, Rule::of(Cfa::Unknown))?;
                Err(problem)
            })
        })?;
        self.push(covered, Rule::of(Cfa::Unknown))
    }

    fn push(&mut self, address: u64, rule: Rule) -> Result<(), ObjectError> {
        push(self.segment, self.sink, address, rule)
    }
}

/// An address becomes a file offset through its segment.
fn push(segment: &ProgramHeader, sink: &mut Sink, address: u64, rule: Rule) -> Result<(), ObjectError> {
    sink.push(segment.offset.saturating_add(address - segment.address), rule)
}
