//! Stacks that the BPF programs could not unwind to their end, because they did not know yet what a process has mapped: a
//! program that was started a millisecond ago. By the time that its sample is read, this half knows.

use records::{End, MAX_USER_FRAMES, NO_TABLE, Page, REGISTERS, Row, Rule, TableEntry};
use unwinder::Machine;

use crate::{
    address_space::{AddressSpace, Code},
    samples::Rest,
    unwind_tables::UnwindTables,
};

/// Goes on where the programs stopped: appends the frames, and says how the unwind ended and how many frames were left
/// by frame pointers.
pub(crate) fn finish(
    rest: &Rest,
    space: &AddressSpace,
    tables: &mut UnwindTables,
    user: &mut Vec<u64>,
) -> (End, u16) {
    let mut cursor = rest.cursor;
    let base = cursor.registers.sp;
    let mut machine = Copied { base, stack: &rest.stack, registers: &rest.registers, space, tables };
    let end = loop {
        if let Err(end) = unwinder::step(&mut machine, &mut cursor) {
            break end;
        }
        if user.len() >= MAX_USER_FRAMES {
            break End::TooDeep;
        }
        user.push(cursor.registers.ip);
    };
    (end, u16::try_from(cursor.guessed).unwrap_or(u16::MAX))
}

/// A process as it was: a copy of a part of its stack.
struct Copied<'a> {
    base: u64,
    stack: &'a [u8],
    registers: &'a [u64; REGISTERS as usize],
    space: &'a AddressSpace,
    tables: &'a mut UnwindTables,
}

impl Machine for Copied<'_> {
    fn read_word(&mut self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.base)?).ok()?;
        Some(u64::from_ne_bytes(self.stack.get(at..at.checked_add(8)?)?.try_into().ok()?))
    }

    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
        Some([self.read_word(address)?, self.read_word(address.checked_add(8)?)?])
    }

    fn locate(&mut self, address: u64) -> Option<(u32, u64)> {
        let mapping = self.space.find(address)?;
        let table = match mapping.code {
            Code::File(id) => self.tables.number(id).unwrap_or(NO_TABLE),
            Code::Anonymous => NO_TABLE,
        };
        Some((table, address.wrapping_sub(mapping.start).wrapping_add(mapping.offset)))
    }

    fn register(&mut self, number: u8) -> u64 {
        self.registers.get(usize::from(number)).copied().unwrap_or(0)
    }

    fn table(&mut self, number: u32) -> Option<TableEntry> {
        self.tables.table(number)
    }

    fn page(&mut self, number: u32) -> Option<Page> {
        self.tables.page(number)
    }

    fn row(&mut self, number: u32) -> Option<Row> {
        self.tables.row(number)
    }

    fn rule(&mut self, number: u32) -> Option<Rule> {
        self.tables.rule(number)
    }
}

#[cfg(test)]
mod tests {
    use ipc::{ExecutableId, PageRows, TableBegin};
    use records::Cfa;
    use unwinder::{Cursor, Registers};

    use super::*;
    use crate::{address_space::CodeMapping, shared_array::SharedArray, unwind_tables::TableArrays};

    fn tables() -> UnwindTables {
        let mut tables = UnwindTables::new(TableArrays {
            rows: SharedArray::unshared(8),
            pages: SharedArray::unshared(8),
            rules: SharedArray::unshared(8),
            entries: SharedArray::unshared(8),
        });
        let executable = ExecutableId(1);
        tables.number(executable).unwrap();
        // Everywhere: the caller's frame begins two words higher; from 0x100 on: the root.
        tables.begin(TableBegin { executable, first_page: 0, pages: 1, rows: 2 }, 0).unwrap();
        let rule = Rule { cfa: Cfa::Sp as u8, cfa_offset: 16, ..Rule::default() };
        tables.add_rules(&[rule, Rule::of(Cfa::Root)]).unwrap();
        tables.add_pages(&[PageRows { first: 0, count: 2 }]).unwrap();
        tables.add_rows(&[Row::new(0, 0).0, Row::new(0x100, 1).0]).unwrap();
        tables.end(0).unwrap();
        tables
    }

    fn space() -> AddressSpace {
        let mut space = AddressSpace::default();
        let code = Code::File(ExecutableId(1));
        space.map(CodeMapping { start: 0x4000, end: 0x5000, offset: 0, code }).unwrap();
        space
    }

    fn rest(words: &[u64]) -> Rest {
        let stack = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let cursor = Cursor::new(Registers { ip: 0x4010, sp: 0x7000, fp: 0 });
        Rest { cursor, registers: [0; REGISTERS as usize], stack }
    }

    #[test]
    fn the_rest_of_a_stack_is_unwound_from_its_copy() {
        let mut user = vec![0x4010];
        let end = finish(&rest(&[9, 0x4020, 9, 0x4110]), &space(), &mut tables(), &mut user);
        assert_eq!((user, end), (vec![0x4010, 0x4020, 0x4110], (End::Root, 0)));
    }

    #[test]
    fn where_the_copy_ends_so_does_the_stack() {
        let mut user = vec![0x4010];
        let end = finish(&rest(&[9, 0x4020, 9]), &space(), &mut tables(), &mut user);
        assert_eq!((user.len(), end), (2, (End::Memory, 0)));
        let mut user = vec![0x4010];
        let end = finish(&rest(&[9, 0x9999, 9]), &space(), &mut tables(), &mut user);
        assert_eq!((user.len(), end), (2, (End::NotPlaced, 0)));
    }

    #[test]
    fn there_is_a_bound() {
        let words: Vec<u64> = (0..2000).map(|i| if i % 2 == 1 { 0x4020 } else { 9 }).collect();
        let mut user = vec![0x4010];
        let end = finish(&rest(&words), &space(), &mut tables(), &mut user);
        assert_eq!((user.len(), end.0), (MAX_USER_FRAMES, End::TooDeep));
    }
}
