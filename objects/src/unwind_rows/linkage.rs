//! The stubs of the procedure linkage table, for linkers that write no unwind information for them (lld, and so by default
//! whatever Rust links): each stub is known by its first bytes.

use std::ops::Range;

use records::{Cfa, Rule};

use super::{
    budget::Budget,
    entries::{self, Each, Entries},
    innermost::Function,
};
use crate::{ObjectError, elf::Elf, plt};

/// Size of a stub. (Those of `.plt.got` may have half of it; all of these have one rule.)
const STUB: usize = 16;

/// The sections of stubs: their addresses, and their code.
pub(super) struct Linkage(Vec<(u64, Vec<u8>)>);

impl Linkage {
    /// Those of a file; none if anything about them is odd.
    pub(super) fn of(elf: &Elf<'_>) -> Self {
        let sections = plt::code(elf).into_iter().map(|(section, code)| (section.address, code));
        Linkage(sections.filter(|(address, _)| address.is_multiple_of(STUB as u64)).collect())
    }
}

impl Entries for Linkage {
    fn list(
        &mut self,
        number: u8,
        _budget: &mut Budget,
        list: &mut Vec<Function>,
    ) -> (u64, Result<(), ObjectError>) {
        for (entry, (begin, code)) in (0..).zip(&self.0) {
            let end = begin.saturating_add(code.len() as u64);
            if let Err(error) = entries::add(list, Function { begin: *begin, end, entry, section: number }) {
                return (0, Err(error));
            }
        }
        (0, Ok(()))
    }

    fn rules(
        &mut self,
        function: Function,
        piece: Range<u64>,
        each: &mut Each<'_>,
    ) -> Result<usize, ObjectError> {
        let Some((begin, code)) = self.0.get(function.entry as usize) else { return Ok(0) };
        let mut before = None;
        for (address, stub) in (*begin..).step_by(STUB).zip(code.chunks(STUB)) {
            for (place, rule) in rules_of(stub) {
                let address = address + place;
                // What is in force at the start of the piece may have begun before it.
                if address < piece.end && before != Some(rule) {
                    each(address.max(piece.start), Ok(rule))?;
                    before = Some(rule);
                }
            }
        }
        Ok(code.len())
    }
}

/// The rules of a stub, and from which of its bytes on (x86-64 psABI, section 5.2; lld's `ELF/Arch/X86_64.cpp`).
fn rules_of(stub: &[u8]) -> impl Iterator<Item = (u64, Rule)> {
    let plain = |cfa, cfa_offset| Rule { cfa_offset, ..Rule::of(cfa) };
    let pushed_at = match stub {
        // The first one: push the object, jump to the resolver. Another word is there already.
        [0xff, 0x35, ..] => {
            return [Some((0, plain(Cfa::Sp, 16))), Some((6, plain(Cfa::Sp, 24)))].into_iter().flatten();
        }
        // jmp *slot; push number; jmp first
        [0xff, 0x25, _, _, _, _, 0x68, ..] => Some(11),
        // endbr64; push number; jmp first
        [0xf3, 0x0f, 0x1e, 0xfa, 0x68, ..] => Some(9),
        _ => None,
    };
    [Some((0, pushed_at.map_or(plain(Cfa::Sp, 8), |at| plain(Cfa::Plt, at)))), None].into_iter().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_is_known_by_its_code() {
        let plain = |cfa, cfa_offset| Rule { cfa_offset, ..Rule::of(cfa) };
        let rules = |stub: &[u8]| rules_of(stub).collect::<Vec<_>>();
        let first = [0xff, 0x35, 1, 2, 3, 4, 0xff, 0x25, 1, 2, 3, 4, 0x0f, 0x1f, 0x40, 0];
        assert_eq!(rules(&first), [(0, plain(Cfa::Sp, 16)), (6, plain(Cfa::Sp, 24))]);
        let lazy = [0xff, 0x25, 1, 2, 3, 4, 0x68, 0, 0, 0, 0, 0xe9, 1, 2, 3, 4];
        assert_eq!(rules(&lazy), [(0, plain(Cfa::Plt, 11))]);
        let tracked = [0xf3, 0x0f, 0x1e, 0xfa, 0x68, 0, 0, 0, 0, 0xe9, 1, 2, 3, 4, 0x66, 0x90];
        assert_eq!(rules(&tracked), [(0, plain(Cfa::Plt, 9))]);
        let jump = [0xf3, 0x0f, 0x1e, 0xfa, 0xff, 0x25, 1, 2, 3, 4];
        assert_eq!(rules(&jump), [(0, plain(Cfa::Sp, 8))]);
        assert_eq!(rules(&[]), [(0, plain(Cfa::Sp, 8))]);
    }
}
