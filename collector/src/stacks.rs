//! User stacks as the BPF programs left them: cut where they relied on what was no longer so, unwound to their end where the programs
//! knew too little (a program that was started a millisecond ago, rows that had not come), and placed in what was mapped.

use ipc::{ExecutableId, ProcessId, UserFrame};
use records::{
    End, FileOffset, MAX_USER_FRAMES, NO_TABLE, Page, ProcessAddress, REGISTERS, Row, Rule, TableEntry,
};
use unwinder::Machine;

use crate::{
    address_space::{AddressSpace, Code, CodeMapping},
    samples::{RawSample, Rest},
    unwind_tables::UnwindTables,
};

/// Cuts off what was found by mappings that were no longer there. `id`: whose the sample is.
pub(crate) fn cut_stale(raw: &mut RawSample, id: ProcessId, space: &AddressSpace) {
    if raw.process == 0 {
        // The programs knew nothing of the process.
        return;
    }
    let kept = if raw.process != id.0 && raw.user.len() > 1 {
        // Unwound by what was mapped before an exec: anything but the first frame may be wrong.
        Some(1)
    } else {
        // Such a frame is right, and its caller was found by the rows of what was mapped there before. What the programs only
        // located, to stop there, is not stepped from by rows of theirs.
        let mistaken = raw.user.iter().enumerate().position(|(i, address)| {
            let is_stepped = i + 1 < raw.user.len() || raw.rest.is_none();
            is_stepped && space.was_mistaken(in_code(i, *address), raw.timestamp)
        });
        mistaken.map(|last| last + 1)
    };
    if let Some(kept) = kept {
        raw.user.truncate(kept);
        raw.rest = None;
        raw.end = End::Stale as u8;
    }
}

/// Goes on where the programs stopped: appends the frames, and sets how the unwind ended and how many frames were left by frame
/// pointers. Returns the executable whose rows are still to come, if that is what it ended for: it can be called again then.
pub(crate) fn finish(
    raw: &mut RawSample,
    space: &AddressSpace,
    tables: &mut UnwindTables,
) -> Option<ExecutableId> {
    let Rest { cursor, registers, base, stack } = &mut **raw.rest.as_mut()?;
    let mut machine = Copied { base: *base, stack, registers, space, tables };
    let mut end = loop {
        if let Err(end) = unwinder::step(&mut machine, cursor) {
            break end;
        }
        if raw.user.len() >= MAX_USER_FRAMES {
            break End::TooDeep;
        }
        raw.user.push(cursor.recorded());
    };
    let mut awaited = None;
    if end == End::NotPlaced {
        let back = u64::from(cursor.interrupted == unwinder::RETURN_ADDRESS);
        awaited = space.find(cursor.registers.ip.wrapping_sub(back)).and_then(CodeMapping::file);
        if awaited.is_some() {
            end = End::RowsMissing;
        }
    }
    raw.end = end as u8;
    raw.guessed = u16::try_from(cursor.guessed).unwrap_or(u16::MAX);
    awaited
}

/// Where the user frames of a sample lie.
#[derive(Default)]
pub(crate) struct Placed {
    pub(crate) frames: Vec<UserFrame>,
    /// The mapping of each executable that a frame lies in, once.
    pub(crate) files: Vec<(ExecutableId, CodeMapping)>,
    /// Whether a frame lies in code without a file.
    pub(crate) anonymous: bool,
}

/// Places the frames. What lies in no executable mapping is no code address and stays here (W7); the stack is cut there.
pub(crate) fn place(user: &[u64], space: &AddressSpace) -> Placed {
    let mut placed = Placed { frames: Vec::with_capacity(user.len()), ..Placed::default() };
    for (i, address) in user.iter().enumerate() {
        let Some(mapping) = space.find(in_code(i, *address)) else {
            if cfg!(feature = "no-frame-check") {
                placed.frames.push(UserFrame::Anonymous(ProcessAddress(*address)));
                continue;
            }
            break;
        };
        placed.frames.push(match mapping.code {
            Code::Anonymous => {
                placed.anonymous = true;
                UserFrame::Anonymous(ProcessAddress(*address))
            }
            Code::File(id) => {
                if !placed.files.iter().any(|(other, _)| *other == id) {
                    placed.files.push((id, *mapping));
                }
                let (start, offset) = (ProcessAddress(mapping.start), FileOffset(mapping.offset));
                UserFrame::File(id, ProcessAddress(*address).file_offset(start, offset))
            }
        });
    }
    placed
}

/// A return address may be the first byte after its mapping; the call before it is not.
fn in_code(frame: usize, address: u64) -> u64 {
    address.wrapping_sub(u64::from(frame > 0))
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
    use ipc::{PageRows, TableBegin};
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
        show(&mut tables, executable);
        tables
    }

    fn show(tables: &mut UnwindTables, executable: ExecutableId) {
        tables.number(executable).unwrap();
        // Everywhere: the caller's frame begins two words higher; from 0x100 on: the root.
        tables.begin(TableBegin { executable, first_page: 0, pages: 1, rows: 2 }, 0).unwrap();
        let rule = Rule { cfa: Cfa::Sp as u8, cfa_offset: 16, ..Rule::default() };
        tables.add_rules(&[rule, Rule::of(Cfa::Root)]).unwrap();
        tables.add_pages(&[PageRows { first: 0, count: 2 }]).unwrap();
        tables.add_rows(&[Row::new(0, 0).0, Row::new(0x100, 1).0]).unwrap();
        tables.end(0).unwrap();
    }

    fn space() -> AddressSpace {
        let mut space = AddressSpace::default();
        let code = Code::File(ExecutableId(1));
        space.map(CodeMapping { start: 0x4000, end: 0x5000, offset: 0, code }).unwrap();
        space
    }

    /// Interrupted in the program, with these words on the stack.
    fn sample(words: &[u64]) -> RawSample {
        let cursor = Cursor::new(Registers { ip: 0x4010, sp: 0x7000, fp: 0 });
        let stack = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let rest = Rest { cursor, registers: [0; REGISTERS as usize], base: 0x7000, stack };
        RawSample {
            timestamp: 100,
            end: End::NotPlaced as u8,
            process: 3,
            user: vec![0x4010],
            rest: Some(Box::new(rest)),
            ..RawSample::default()
        }
    }

    fn end(sample: &RawSample) -> End {
        End::from_id(sample.end).unwrap()
    }

    #[test]
    fn the_rest_of_a_stack_is_unwound_from_its_copy() {
        let mut sample = sample(&[9, 0x4020, 9, 0x4110]);
        assert_eq!(finish(&mut sample, &space(), &mut tables()), None);
        assert_eq!((end(&sample), &sample.user[..]), (End::Root, &[0x4010, 0x4020, 0x4110][..]));
        let placed = place(&sample.user, &space());
        assert_eq!((placed.frames.len(), placed.files.len(), placed.anonymous), (3, 1, false));
    }

    #[test]
    fn where_the_copy_ends_so_does_the_stack() {
        for (words, expected) in [([9, 0x4020, 9], End::Memory), ([9, 0x9999, 9], End::NotPlaced)] {
            let mut sample = sample(&words);
            assert_eq!(finish(&mut sample, &space(), &mut tables()), None);
            assert_eq!((end(&sample), sample.user.len()), (expected, 2));
        }
    }

    #[test]
    fn there_is_a_bound() {
        let words: Vec<u64> = (0..2000).map(|i| if i % 2 == 1 { 0x4020 } else { 9 }).collect();
        let mut sample = sample(&words);
        finish(&mut sample, &space(), &mut tables());
        assert_eq!((end(&sample), sample.user.len()), (End::TooDeep, MAX_USER_FRAMES));
    }

    #[test]
    fn it_goes_on_when_the_rows_have_come() {
        let executable = ExecutableId(2);
        let mut space = space();
        space
            .map(CodeMapping { start: 0x9000, end: 0xa000, offset: 0, code: Code::File(executable) })
            .unwrap();
        let mut tables = tables();
        let mut sample = sample(&[9, 0x9020, 9, 0x4110]);
        for _ in 0..2 {
            assert_eq!(finish(&mut sample, &space, &mut tables), Some(executable));
            assert_eq!((end(&sample), &sample.user[..]), (End::RowsMissing, &[0x4010, 0x9020][..]));
        }
        show(&mut tables, executable);
        assert_eq!(finish(&mut sample, &space, &mut tables), None);
        assert_eq!((end(&sample), &sample.user[..]), (End::Root, &[0x4010, 0x9020, 0x4110][..]));
    }

    #[test]
    fn what_was_found_by_what_is_gone_is_cut() {
        let stepped =
            |process, user: &[u64]| RawSample { process, user: user.to_vec(), rest: None, ..sample(&[]) };
        let mut space = space();
        let cut = |sample: &mut RawSample, space: &AddressSpace| {
            cut_stale(sample, ProcessId(3), space);
            (sample.user.len(), sample.end == End::Stale as u8)
        };
        assert_eq!(cut(&mut stepped(3, &[0x4010, 0x4020]), &space), (2, false));
        assert_eq!(cut(&mut stepped(2, &[0x4010, 0x4020]), &space), (1, true), "another program by now");
        assert_eq!(cut(&mut stepped(0, &[0x4010, 0x4020]), &space), (2, false), "unknown to the programs");
        let code = Code::File(ExecutableId(2));
        space.map(CodeMapping { start: 0x4100, end: 0x4200, offset: 0, code }).unwrap();
        assert_eq!(cut(&mut stepped(3, &[0x4010, 0x4110, 0x4020]), &space), (2, true));
        assert_eq!(cut(&mut stepped(3, &[0x4010, 0x4100]), &space), (2, false), "the call lies before it");
        // Handed over at a place in it: nothing was made of it yet.
        let mut handed = RawSample { user: vec![0x4010, 0x4110], ..sample(&[9]) };
        assert_eq!(cut(&mut handed, &space), (2, false));
        assert!(handed.rest.is_some());
    }
}
