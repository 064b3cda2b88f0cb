//! The unwinder over stacks and tables made by hand.
#![expect(clippy::cast_possible_truncation, reason = "all numbers here are small")]

extern crate std;
use std::{vec, vec::Vec};

use records::{Cfa, RDI, SavedFp};

use super::*;

/// Code from [`FILE`] on is table 0 at file offset 0x1000; code from [`JIT`] on has no file.
struct World {
    base: u64,
    words: Vec<u64>,
    registers: [u64; 16],
    /// Text words by address.
    text: Vec<(u64, u64)>,
    rows: Vec<Row>,
    rules: Vec<Rule>,
    pages: Vec<Page>,
    table: TableEntry,
}

const FILE: u64 = 0x40_0000;
const JIT: u64 = 0x50_0000;
const STACK: u64 = 0x1000;

impl Machine for World {
    fn read_word(&mut self, address: u64) -> Option<u64> {
        if let Some((_, word)) = self.text.iter().find(|(at, _)| *at == address) {
            return Some(*word);
        }
        let index = usize::try_from(address.checked_sub(self.base)? / 8).ok()?;
        self.words.get(index).copied()
    }

    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
        Some([self.read_word(address)?, self.read_word(address.wrapping_add(8))?])
    }

    fn locate(&mut self, address: u64) -> Option<(u32, u64)> {
        match address {
            FILE..JIT => Some((0, address - FILE + 0x1000)),
            JIT..0x60_0000 => Some((NO_TABLE, 0)),
            _ => None,
        }
    }

    fn register(&mut self, number: u8) -> u64 {
        self.registers[usize::from(number)]
    }

    fn table(&mut self, number: u32) -> Option<TableEntry> {
        (number == 0).then_some(self.table)
    }

    fn page(&mut self, number: u32) -> Option<Page> {
        self.pages.get(number as usize).copied()
    }

    fn row(&mut self, number: u32) -> Option<Row> {
        self.rows.get(number as usize).copied()
    }

    fn rule(&mut self, number: u32) -> Option<Rule> {
        self.rules.get(number as usize).copied()
    }
}

fn world(words: &[u64]) -> World {
    World {
        base: STACK,
        words: words.to_vec(),
        registers: [0; 16],
        text: vec![],
        rows: vec![],
        rules: vec![],
        pages: vec![],
        table: TableEntry { state: TableEntry::KNOWN, ..TableEntry::default() },
    }
}

/// One page with these rows: (address, rule).
fn with_rows(words: &[u64], rows: &[(u64, Rule)]) -> World {
    let mut world = world(words);
    for (address, rule) in rows {
        world.rows.push(Row::new((address - FILE + 0x1000) as u16, world.rules.len() as u16));
        world.rules.push(*rule);
    }
    world.pages = vec![Page { first: 0, count: rows.len() as u32 }];
    world.table = TableEntry { pages: 0, first_page: 0, page_count: 1, state: TableEntry::KNOWN };
    world
}

fn cfa(cfa: Cfa, cfa_offset: i32) -> Rule {
    Rule { cfa: cfa as u8, cfa_offset, ..Rule::default() }
}

fn saving_fp(rule: Rule, fp_offset: i16) -> Rule {
    Rule { fp: SavedFp::AtCfa as u8, fp_offset, ..rule }
}

/// How a frame at `FILE + 0x20` is recorded that was interrupted there, at the first byte of its function: the byte before is
/// looked up.
const INTERRUPTED: u64 = FILE + 0x20 + 1;

fn unwind(world: &mut World, registers: Registers) -> (Vec<u64>, End, Cursor) {
    let mut frames = vec![];
    let mut cursor = Cursor::new(registers);
    loop {
        frames.push(cursor.recorded());
        match step(world, &mut cursor) {
            Ok(()) => assert!(frames.len() < 1000, "an unwind without an end"),
            Err(end) => return (frames, end, cursor),
        }
    }
}

#[test]
fn three_frames_by_frame_pointers_to_the_root() {
    // Locals of the leaf; its frame; locals of the middle; its frame; the root's frame.
    let words = [9, STACK + 4 * 8, JIT + 1, 9, STACK + 7 * 8, JIT + 2, 9, 0, FILE + 3, 1, 1];
    let unknown = [(FILE, Rule::of(Cfa::Unknown))];
    let registers = Registers { ip: JIT, sp: STACK, fp: STACK + 8 };
    let (frames, end, cursor) = unwind(&mut with_rows(&words, &unknown), registers);
    assert_eq!(frames, [JIT, JIT + 1, JIT + 2, FILE + 3]);
    assert_eq!((end, cursor.guessed), (End::Root, 1));
    // In a file the same is a guess.
    let words = [9, STACK + 4 * 8, FILE + 1, 9, 0, FILE + 2];
    let registers = Registers { ip: FILE, sp: STACK, fp: STACK + 8 };
    let (frames, end, cursor) = unwind(&mut with_rows(&words, &unknown), registers);
    assert_eq!((frames.len(), end, cursor.guessed), (3, End::Root, 3));
    // As long as its rows have not come, a zero is no root.
    let (frames, end, cursor) = unwind(&mut world(&words), registers);
    assert_eq!((frames.len(), end, cursor.guessed), (3, End::NotClimbing, 3));
}

#[test]
fn a_zero_frame_pointer_is_the_root_of_nothing_that_was_interrupted() {
    // It is zero from the start on, and a JIT compiler without frame pointers keeps what it likes in it.
    for ip in [JIT, FILE] {
        let mut world = with_rows(&[9, 9], &[(FILE, Rule::of(Cfa::Unknown))]);
        assert_eq!(unwind(&mut world, Registers { ip, sp: STACK, fp: 0 }).1, End::NotClimbing);
    }
}

#[test]
fn trampolines_without_frame_pointers_are_left_by_what_they_return_to() {
    // The leaf returns to the trampoline, which has 8 bytes of stack.
    let words = [JIT + 6, 9, FILE + 0x20, 9];
    let mut world = with_rows(&words, &[(FILE, cfa(Cfa::Sp, 8)), (FILE + 0x18, Rule::of(Cfa::Root))]);
    world.text = vec![(JIT + 6, u64::from_le_bytes([0x48, 0x83, 0xc4, 8, 0xc3, 0x66, 0x0f, 0x1f]))];
    let registers = Registers { ip: FILE, sp: STACK, fp: 7 };
    let (frames, end, cursor) = unwind(&mut world, registers);
    assert_eq!((frames, end), (vec![FILE, JIT + 6, FILE + 0x20], End::Root));
    assert_eq!(cursor.registers, Registers { ip: FILE + 0x20, sp: STACK + 0x18, fp: 7 });
    // Not where it was interrupted.
    let (frames, end, _) = unwind(&mut world, Registers { ip: JIT + 6, sp: STACK, fp: 7 });
    assert_eq!((frames.len(), end), (1, End::NotClimbing));
}

#[test]
fn what_was_interrupted_by_its_runtime_is_looked_up_where_it_was() {
    let injected = saving_fp(cfa(Cfa::SpInterrupted, 16), -16);
    let words = [5, FILE + 0x20, 9, FILE + 0x31];
    // Its caller is interrupted at its first instruction, and not called from before it.
    let rows = [
        (FILE, injected),
        (FILE + 0x10, cfa(Cfa::Sp, 80)),
        (FILE + 0x20, cfa(Cfa::Sp, 16)),
        (FILE + 0x30, Rule::of(Cfa::Root)),
    ];
    let (frames, end, _) = unwind(&mut with_rows(&words, &rows), Registers { ip: FILE, sp: STACK, fp: 7 });
    assert_eq!((frames, end), (vec![FILE, INTERRUPTED, FILE + 0x31], End::Root));
}

#[test]
fn a_zero_return_address_is_the_root() {
    let mut world = world(&[STACK + 0x10, 0, 0, 0]);
    assert_eq!(unwind(&mut world, Registers { ip: JIT, sp: STACK, fp: STACK }).1, End::Root);
    let mut world = with_rows(&[0, 0], &[(FILE, cfa(Cfa::Sp, 8))]);
    assert_eq!(unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: 0 }).1, End::Root);
}

#[test]
fn what_is_no_frame_pointer_is_not_followed() {
    // A loop, a pointer below the stack, an odd pointer, a small number (argc in glibc's start code).
    for fp in [STACK - 1, STACK + 1, 1] {
        let (frames, end, _) =
            unwind(&mut world(&[STACK, JIT, STACK, JIT]), Registers { ip: JIT, sp: STACK, fp });
        assert_eq!((frames.len(), end), (1, End::NotClimbing));
    }
    let (frames, end, _) =
        unwind(&mut world(&[STACK, JIT + 1, 2, 3]), Registers { ip: JIT, sp: STACK, fp: STACK });
    assert_eq!((frames.len(), end), (2, End::NotClimbing));
}

#[test]
fn a_stack_that_cannot_be_read_says_so() {
    let mut world = world(&[0x9000, JIT]);
    assert_eq!(unwind(&mut world, Registers { ip: JIT, sp: STACK, fp: STACK }).1, End::Memory);
    assert_eq!(unwind(&mut world, Registers { ip: JIT, sp: STACK, fp: !7 }).1, End::Memory);
    let mut world = with_rows(&[], &[(FILE, cfa(Cfa::Sp, 8))]);
    assert_eq!(unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: 0 }).1, End::Memory);
}

#[test]
fn rows_find_callers_without_frame_pointers() {
    let rows = [
        (FILE, cfa(Cfa::Sp, 8)),
        (FILE + 0x10, saving_fp(cfa(Cfa::Sp, 32), -16)),
        (FILE + 0x20, saving_fp(cfa(Cfa::Fp, 16), -16)),
        (FILE + 0x30, Rule::of(Cfa::Root)),
    ];
    // Leaf: return address at once. Middle: a word, the frame pointer, the return address. Then by frame pointer.
    let words = [FILE + 0x18, 7, 7, STACK + 6 * 8, FILE + 0x28, 7, 0x77, FILE + 0x30 + 1];
    let mut world = with_rows(&words, &rows);
    let (frames, end, cursor) = unwind(&mut world, Registers { ip: FILE + 4, sp: STACK, fp: 5 });
    assert_eq!(frames, [FILE + 4, FILE + 0x18, FILE + 0x28, FILE + 0x31]);
    assert_eq!((end, cursor.registers.fp, cursor.guessed), (End::Root, 0x77, 0));
}

#[test]
fn a_return_address_is_looked_up_at_the_call_and_an_interrupted_one_where_it_is() {
    let rows = [(FILE, cfa(Cfa::Sp, 8)), (FILE + 0x10, Rule::of(Cfa::Root))];
    // The call is the last instruction of the first function: it returns to where the next one begins.
    let mut world = with_rows(&[FILE + 0x10, 0], &rows);
    let (frames, end, _) = unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: 0 });
    assert_eq!(
        (frames.len(), end),
        (2, End::Root),
        "by the rule of the caller, whose return address is zero"
    );
    let (frames, ..) = unwind(&mut world, Registers { ip: FILE + 0x10, sp: STACK, fp: 0 });
    assert_eq!(frames.len(), 1);
}

#[test]
fn signals_lead_to_what_they_interrupted() {
    let mut words = vec![0; 40];
    words[0] = FILE + 0x10; // the handler returns to the trampoline
    let context = 1; // in words from the start of the stack
    words[context + 15] = 0xf; // rbp
    words[context + 20] = STACK + 30 * 8; // rsp
    words[context + 21] = FILE + 0x20; // rip
    let rows =
        [(FILE, cfa(Cfa::Sp, 8)), (FILE + 0xf, Rule::of(Cfa::Signal)), (FILE + 0x20, Rule::of(Cfa::Root))];
    let (frames, end, cursor) =
        unwind(&mut with_rows(&words, &rows), Registers { ip: FILE, sp: STACK, fp: 3 });
    assert_eq!(frames, [FILE, FILE + 0x10, INTERRUPTED]);
    assert_eq!((end, cursor.registers.sp, cursor.registers.fp), (End::Root, STACK + 30 * 8, 0xf));
    // The same without rows for the trampoline, which is known by its code.
    let mut world = with_rows(&words, &[(FILE, cfa(Cfa::Sp, 8)), (FILE + 0x8, Rule::default())]);
    world.text = vec![(FILE + 0x10, u64::from_le_bytes([0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f]))];
    let (frames, ..) = unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: 3 });
    assert_eq!(frames, [FILE, FILE + 0x10, INTERRUPTED]);
    // Interrupted within the call: behind the two instructions, the handler's return address already taken.
    let (frames, ..) = unwind(&mut world, Registers { ip: FILE + 0x19, sp: STACK + 8, fp: 3 });
    assert_eq!(frames, [FILE + 0x19, INTERRUPTED]);
}

#[test]
fn stubs_of_the_linkage_table_and_saved_stack_pointers() {
    let rows = |rule| [(FILE, rule), (FILE + 0x20, Rule::of(Cfa::Root))];
    let target = FILE + 0x21;
    // Before its push a stub has the return address on top, after it one word lower.
    for (ip, words) in [(FILE, [target, 0]), (FILE + 0xb, [9, target]), (FILE + 0x1a, [target, 0])] {
        let mut world = with_rows(&words, &rows(cfa(Cfa::Plt, 11)));
        assert_eq!(unwind(&mut world, Registers { ip, sp: STACK, fp: 0 }).0, [ip, target]);
    }
    for (kind, word) in [(Cfa::AtSp, STACK + 0x18), (Cfa::AtFp, STACK + 0x18), (Cfa::AtSpPlus8, STACK + 0x10)]
    {
        let mut world = with_rows(&[0, word, target], &rows(cfa(kind, 8)));
        let (frames, end, _) = unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: STACK });
        assert_eq!((frames, end), (vec![FILE, target], End::Root), "{kind:?}");
    }
}

#[test]
fn a_return_address_in_a_register_is_known_of_the_innermost_frame() {
    let rows = [(FILE, cfa(Cfa::SpReturnInDi, 0)), (FILE + 0x20, Rule::of(Cfa::Root))];
    let mut world = with_rows(&[FILE + 1, 2], &rows);
    let registers = Registers { ip: FILE, sp: STACK, fp: 9 };
    assert_eq!(unwind(&mut world, registers).1, End::NoRule);
    world.registers[usize::from(RDI)] = FILE + 0x21;
    let mut cursor = Cursor::new(registers);
    assert_eq!(step(&mut world, &mut cursor), Ok(()));
    assert_eq!(cursor.registers, Registers { ip: FILE + 0x21, sp: STACK, fp: 9 });
    let mut cursor = Cursor { interrupted: 0, ..Cursor::new(registers) };
    cursor.registers.ip = FILE + 1;
    assert_eq!(step(&mut world, &mut cursor), Err(End::NoRule));
}

/// As in OpenSSL's AES-GCM: a caller keeps the old stack pointer where its callee, which is called from nowhere else, leaves it.
#[test]
fn assembly_keeps_the_old_stack_pointer_in_any_register() {
    // r11 is anybody's, rbx is restored by callees.
    for (number, of_a_caller) in
        [(0, true), (1, true), (9, true), (11, true), (3, false), (12, false), (15, false)]
    {
        let rows = [
            (FILE, cfa(Cfa::Sp, 8)),
            (FILE + 0x10, saving_fp(Rule::from_register(number, 8), -16)),
            (FILE + 0x20, Rule::of(Cfa::Root)),
        ];
        let words = [FILE + 0x11, 9, 9, 0x77, FILE + 0x21];
        let mut world = with_rows(&words, &rows);
        world.registers[usize::from(number)] = STACK + 4 * 8;
        let (frames, end, cursor) = unwind(&mut world, Registers { ip: FILE + 0x10, sp: STACK + 8, fp: 5 });
        assert_eq!((frames, end), (vec![FILE + 0x10, FILE + 0x21], End::Root));
        assert_eq!((cursor.registers.sp, cursor.registers.fp), (STACK + 5 * 8, 0x77));
        let (frames, end, _) = unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: 5 });
        let expected = if of_a_caller { (3, End::Root) } else { (2, End::NoRule) };
        assert_eq!((frames.len(), end), expected, "register {number}");
    }
}

#[test]
fn behind_a_signal_the_registers_are_those_that_it_saved() {
    // sigcontext_64: r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip.
    let places = [13, 12, 14, 11, 9, 8, 10, 15, 0, 1, 2, 3, 4, 5, 6, 7];
    for (number, place) in (0u8..).zip(places) {
        let mut words = vec![0; 40];
        words[0] = FILE + 0x10;
        let context = 1;
        words[context + 5 + 15] = STACK + 20 * 8;
        words[context + 5 + 16] = FILE + 0x20;
        words[context + 5 + place] = STACK + 35 * 8;
        words[35] = FILE + 0x31;
        let rows = [
            (FILE, cfa(Cfa::Sp, 8)),
            (FILE + 0xf, Rule::of(Cfa::Signal)),
            (FILE + 0x20, Rule::from_register(number, 8)),
            (FILE + 0x30, Rule::of(Cfa::Root)),
        ];
        let mut world = with_rows(&words, &rows);
        world.registers = [1; 16];
        let (frames, end, _) = unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: 3 });
        assert_eq!((frames, end), (vec![FILE, FILE + 0x10, INTERRUPTED, FILE + 0x31], End::Root), "{number}");
    }
}

#[test]
fn what_no_table_covers_goes_by_frame_pointers_and_what_no_rule_says_ends() {
    let words = [0, FILE + 0x8_0000];
    let mut world = with_rows(&words, &[(FILE, Rule::of(Cfa::Unsupported))]);
    assert_eq!(unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: STACK }).1, End::NoRule);
    let mut world = with_rows(&words, &[(FILE, cfa(Cfa::Sp, 8))]);
    world.rules[0].cfa = 200;
    assert_eq!(unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: STACK }).1, End::NoRule);
    // Far behind the last page.
    let (frames, end, cursor) = unwind(&mut world, Registers { ip: JIT - 1, sp: STACK, fp: STACK });
    assert_eq!((frames.len(), end, cursor.guessed), (2, End::Root, 2));
}

#[test]
fn rows_that_are_not_there_are_not_guessed() {
    // A frame pointer that leads somewhere, as any value can.
    let registers = Registers { ip: FILE + 1, sp: STACK, fp: STACK };
    for (state, expected) in [(TableEntry::AWAITED, End::NotPlaced), (TableEntry::ABSENT, End::RowsMissing)] {
        let mut world = world(&[0, FILE + 2]);
        world.table.state = state;
        let (frames, end, cursor) = unwind(&mut world, registers);
        assert_eq!((frames.len(), end, cursor), (1, expected, Cursor::new(registers)));
    }
    let (frames, end, cursor) = unwind(&mut world(&[0, FILE + 2]), registers);
    assert_eq!((frames.len(), end, cursor.guessed), (2, End::NotClimbing, 2));
}

#[test]
fn an_address_in_no_mapping_leaves_the_cursor_where_it_was() {
    let mut world = with_rows(&[0x99, 0], &[(FILE, cfa(Cfa::Sp, 8))]);
    let (frames, end, cursor) = unwind(&mut world, Registers { ip: FILE, sp: STACK, fp: 7 });
    assert_eq!((frames, end), (vec![FILE, 0x99], End::NotPlaced));
    assert_eq!(cursor.registers, Registers { ip: 0x99, sp: STACK + 8, fp: 7 });
}

#[test]
fn searches_find_what_a_scan_finds() {
    let mappings: Vec<records::SpaceMapping> = (0..100u64)
        .map(|i| records::SpaceMapping {
            start: i * 10,
            end: i * 10 + 7,
            table: i as u32,
            ..Default::default()
        })
        .collect();
    for count in [0, 1, 2, 3, 63, 64, 65, 100] {
        for address in 0..1010 {
            let found = find_mapping(0, count, address, |i| mappings.get(i as usize));
            let expected = mappings[..count as usize].iter().find(|m| m.start <= address && address < m.end);
            assert_eq!(found, expected);
        }
    }
    let rows: Vec<(u64, Rule)> = (0..77).map(|i| (FILE + i * 3, cfa(Cfa::Sp, i as i32))).collect();
    let mut world = with_rows(&[], &rows);
    for address in FILE..FILE + 300 {
        let expected = rows.iter().rev().find(|row| row.0 <= address).map(|row| row.1);
        assert_eq!(search::find_rule(&mut world, 0, address - FILE + 0x1000), Ok(expected));
    }
}

#[test]
fn a_process_is_found_behind_others() {
    let mut slots = vec![records::SpaceSlot::default(); 1 << records::SLOT_BITS];
    let at = |probe| records::slot_of(7, probe) as usize;
    assert_eq!(find_space(7, |i| slots.get(i as usize).copied()), None);
    slots[at(0)] = records::SpaceSlot { owner: 8, mappings: 1 };
    slots[at(1)] = records::SpaceSlot { owner: records::FREE_SLOT, mappings: 1 };
    slots[at(2)] = records::SpaceSlot { owner: 7 | 5 << 32, mappings: 3 };
    assert_eq!(find_space(7, |i| slots.get(i as usize).copied()).map(|slot| slot.mappings), Some(3));
    assert_eq!(find_space(u32::MAX - 1, |i| slots.get(i as usize).copied()), None);
}
