//! Frame sections that no compiler writes, and some that old or odd ones do.

use std::time::Duration;

use records::{Cfa, MAX_ROWS_PER_PAGE, Rule};

use super::{
    ROOM, check_form,
    forge::{CODE, CODE_OFFSET, Entries, FRAMES, File, HEAD, advance, offset},
    is_unknown, look, plain,
};
use crate::{ObjectError, ReadAt, UnwindRows};

fn read(file: &dyn ReadAt) -> UnwindRows {
    let table = UnwindRows::read(file, ROOM).unwrap();
    check_form(&table, ROOM);
    table
}

/// The rule at a place of the code.
fn at(table: &UnwindRows, place: u64) -> Option<Rule> {
    look(table, CODE_OFFSET + place)
}

/// The offsets from rsp at these places; 0 where nothing is known.
fn offsets<const N: usize>(table: &UnwindRows, places: [u64; N]) -> [i32; N] {
    places.map(|place| match at(table, place) {
        Some(rule) if rule.cfa == Cfa::Sp as u8 => rule.cfa_offset,
        rule if is_unknown(rule) => 0,
        rule => panic!("{rule:?} at {place:#x}"),
    })
}

/// Two changes: 8 from rsp at first, then 16, then 24.
fn two_pushes() -> Vec<u8> {
    [advance(4), offset(16), advance(4), offset(24)].concat()
}

#[test]
fn gaps_are_unknown_and_padding_is_not() {
    let entries = Entries::default()
        .plain_head()
        .function(0x100, 0x20, &two_pushes())
        .function(0x12f, 0x11, &[])
        .function(0x150, 0x10, &offset(32));
    let table = read(&File::of(entries).bytes());
    assert!(table.problem.is_none() && table.misfits.is_empty());
    assert_eq!(offsets(&table, [0xff, 0x100, 0x103, 0x104, 0x107, 0x108, 0x11f]), [0, 8, 8, 16, 16, 24, 24]);
    assert_eq!(offsets(&table, [0x12e, 0x12f, 0x13f]), [24, 8, 8], "15 bytes are padding");
    assert_eq!(offsets(&table, [0x140, 0x14f, 0x150, 0x15f, 0x160, 0xffff]), [0, 0, 32, 32, 0, 0]);
    // The page of text that ends before it has no rows, the one that begins there has.
    assert_eq!(u64::from(table.first_page), (CODE_OFFSET + 0x100) >> 16);
}

#[test]
fn order_overlap_and_emptiness_do_not_matter() {
    let entries = Entries::default()
        .plain_head()
        .function(0x300, 0x10, &offset(40))
        .function(0x200, 0, &offset(48))
        .function(0x100, 0x100, &two_pushes())
        .function(0x140, 0x10, &offset(56))
        .function(0x180, 0x100, &offset(64));
    let table = read(&File::of(entries).bytes());
    assert!(table.problem.is_none() && table.misfits.is_empty());
    assert_eq!(offsets(&table, [0x100, 0x104, 0x108, 0x13f, 0x140, 0x14f]), [8, 16, 24, 24, 56, 56]);
    assert_eq!(offsets(&table, [0x150, 0x17f, 0x180, 0x200, 0x27f]), [24, 24, 64, 64, 64]);
    assert_eq!(offsets(&table, [0x280, 0x2ff, 0x300]), [0, 0, 40]);
}

#[test]
fn what_lies_outside_of_code_or_wraps_around_is_left_out() {
    let file = |outside: bool| {
        let mut entries = Entries::default().plain_head().function(0x100, 0x10, &[]);
        if outside {
            entries = entries
                .function(0u64.wrapping_sub(CODE), 0x80_0000, &offset(16))
                .function(0x20_0000, 0x10, &offset(16))
                .function(FRAMES - CODE, 0x10, &offset(16))
                .function(0x200, u64::MAX, &offset(16))
                .function(0x200, 0u64.wrapping_sub(CODE + 0x200), &offset(16))
                .function(u64::MAX - CODE, 1, &offset(16));
        }
        File::of(entries).bytes()
    };
    let (with, without) = (read(&file(true)), read(&file(false)));
    assert_eq!((with.rows, with.pages), (without.rows, without.pages));
    // What begins in code and goes on behind it ends with it.
    let table = read(&File::of(Entries::default().plain_head().function(0xf_fff0, 0x1000, &[])).bytes());
    assert_eq!(offsets(&table, [0xf_ffef, 0xf_fff0, 0xf_ffff, 0x10_0000]), [0, 8, 8, 0]);
}

/// Linkers leave the entries of functions that they dropped, at address 0.
#[test]
fn dropped_functions_are_left_out() {
    let entries = Entries::default()
        .plain_head()
        .function(0u64.wrapping_sub(CODE), 0x1000, &offset(16))
        .function(0x200u64.wrapping_sub(CODE), 0x10, &offset(24));
    let table = read(&File { address: 0, ..File::of(entries) }.bytes());
    assert_eq!(offsets(&table, [0, 0x1ff, 0x200, 0x20f, 0x210, 0xfff]), [0, 0, 24, 24, 0, 0]);
}

#[test]
fn rules_go_on_over_pages_of_text() {
    let entries = Entries::default().plain_head().function(4, 0x4_0000, &two_pushes());
    let table = read(&File::of(entries).bytes());
    assert_eq!((table.pages.len(), table.rows.len()), (5, 5), "and no row is there twice");
    assert_eq!(offsets(&table, [3, 4, 7, 8, 11, 12]), [0, 8, 8, 16, 16, 24]);
    assert_eq!(offsets(&table, [0x1_0007, 0x1_0008, 0x3_ffff, 0x4_0003, 0x4_0004]), [24, 24, 24, 24, 0]);
}

#[test]
fn a_section_is_found_by_name_or_by_its_header() {
    let entries = Entries::default().plain_head().function(0x100, 0x10, &offset(16)).terminator();
    let expected = read(&File::of(entries.clone()).bytes());
    assert_eq!(offsets(&expected, [0x100]), [16]);
    // SHT_X86_64_UNWIND.
    let unwind_type = File { kind: 0x7000_0001, ..File::of(entries.clone()) };
    // After the terminator: what else the segment has.
    let with_more = entries.clone().function(0x300, 0x10, &[]);
    let pointer = (0x100i32 - 4).to_le_bytes();
    let relative = [&[1, 0x1b, 0xff, 0xff], pointer.as_slice()].concat();
    let absolute = [&[1, 0x04, 0x03, 0x3b], FRAMES.to_le_bytes().as_slice(), &[0; 4]].concat();
    let to_header = [&[1, 0x3b, 0x03, 0x3b], 0x100i32.to_le_bytes().as_slice(), &[0; 4]].concat();
    for file in [
        unwind_type,
        File { header: Some(relative), ..File::of(with_more.clone()) },
        File { header: Some(absolute), ..File::of(with_more.clone()) },
        File { header: Some(to_header), ..File::of(with_more.clone()) },
    ] {
        let table = read(&file.bytes());
        assert_eq!((table.rows, table.rules), (expected.rows.clone(), expected.rules.clone()));
    }
    // With a section's header the size is known, and what stands behind a terminator counts.
    assert_eq!(offsets(&read(&File::of(with_more.clone()).bytes()), [0x100, 0x300]), [16, 8]);
    for header in
        [vec![], vec![1], vec![2, 0x1b, 0xff, 0xff, 0, 0, 0, 0], vec![1, 0x9b, 0xff, 0xff, 0, 0, 0, 0]]
    {
        let file = File { header: Some(header), ..File::of(with_more.clone()) };
        let error = UnwindRows::read(&file.bytes(), ROOM).unwrap_err();
        assert!(matches!(error, ObjectError::Missing(_)), "{error}");
    }
}

#[test]
fn signal_frames_and_linkage_tables_only_in_the_usual_form() {
    // The CFA: the word at rsp and n; rbp and the return address at rsp and n (signed LEB128, two bytes).
    let signal = |cfa: [u8; 2], rbp: [u8; 2], return_address: [u8; 2], more: &[u8]| {
        let at = |register, [low, high]: [u8; 2]| [0x10, register, 3, 0x77, low, high];
        let cfa =
            [&[0x0f, 4 + u8::try_from(more.len()).unwrap(), 0x77], cfa.as_slice(), &[0x06], more].concat();
        [cfa.as_slice(), &at(6, rbp), &at(16, return_address)].concat()
    };
    let rule = |augmentation: &[u8], instructions: &[u8]| {
        let entries = Entries::default().head(augmentation, &[], &HEAD).function(0x100, 0x10, instructions);
        at(&read(&File::of(entries).bytes()), 0x100).unwrap()
    };
    let [at_112, at_120, at_160, at_168] = [[0xf0, 0], [0xf8, 0], [0xa0, 1], [0xa8, 1]];
    let usual = signal(at_160, at_120, at_168, &[]);
    assert_eq!(rule(b"S\0", &usual), Rule::of(Cfa::Signal));
    for other in [
        signal(at_168, at_120, at_168, &[]),
        signal(at_160, at_112, at_168, &[]),
        signal(at_160, at_120, at_160, &[]),
        signal(at_160, at_120, at_168, &[0x06]),
        usual[..usual.len() - 6].to_vec(),
        Vec::new(),
    ] {
        assert_eq!(rule(b"S\0", &other), Rule::of(Cfa::Unsupported), "{other:x?}");
    }
    assert_eq!(rule(b"\0", &usual), Rule::of(Cfa::Unsupported), "no signal frame");
    let plt = |n: u8, mask: u8| [0x0f, 11, 0x77, 8, 0x80, 0, mask, 0x1a, 0x30 + n, 0x2a, 0x33, 0x24, 0x22];
    assert_eq!(rule(b"\0", &plt(11, 0x3f)), plain(Cfa::Plt, 11));
    assert_eq!(rule(b"\0", &plt(9, 0x3f)), plain(Cfa::Plt, 9));
    assert_eq!(rule(b"\0", &plt(11, 0x37)), Rule::of(Cfa::Unsupported), "another mask");
}

#[test]
fn the_cfa_may_be_in_any_register() {
    for register in (0..16).filter(|register| ![6, 7].contains(register)) {
        let instructions = [0x0c, register, 24];
        let table =
            read(&File::of(Entries::default().plain_head().function(0x100, 0x10, &instructions)).bytes());
        assert_eq!((at(&table, 0x100), table.misfits.len()), (Some(Rule::from_register(register, 24)), 0));
    }
}

#[test]
fn what_cannot_be_said_is_counted_by_kind() {
    // Register numbers: 3 rbx, 6 rbp, 16 the return address.
    let cases: [(&[u8], &str); 11] = [
        (&[0x0d, 16], "CFA from what is no register"),
        (&[0x0d, 17], "CFA from what is no register"),
        (&[0x0c, 7, 0x80, 0x80, 0x80, 0x80, 0x10], "CFA far away"),
        (&[0x0f, 2, 0x77, 8], "CFA by an expression"),
        (&[0x0f, 3, 0x77, 8, 0xff], "CFA by an expression"),
        (&[0x09, 6, 3], "rbp in a register"),
        (&[0x86, 0x80, 0x80, 1], "rbp far away"),
        (&[0x10, 6, 2, 0x73, 0], "rbp by an expression"),
        (&[0x14, 6, 1], "rbp by another rule"),
        (&[0x09, 16, 4], "return address in a register"),
        (&[0x90, 2], "return address elsewhere"),
    ];
    for (instructions, kind) in cases {
        let later = [&advance(8), instructions].concat();
        let entries = Entries::default().plain_head().function(0x100, 0x10, &later);
        let table = read(&File::of(entries).bytes());
        assert_eq!(table.misfits.into_iter().collect::<Vec<_>>(), [(kind, 1)]);
        let table = read(&File::of(Entries::default().plain_head().function(0x100, 0x10, &later)).bytes());
        assert_eq!(at(&table, 0x107), Some(plain(Cfa::Sp, 8)));
        assert_eq!(at(&table, 0x108), Some(Rule::of(Cfa::Unsupported)), "{kind}");
        assert!(is_unknown(at(&table, 0x110)));
    }
    // The head says which column is the return address, behind its version, augmentation and two factors.
    let mut entries = Entries::default().plain_head().function(0x100, 0x10, &[]);
    assert_eq!(std::mem::replace(&mut entries.bytes[12], 17), 16);
    let table = read(&File::of(entries).bytes());
    assert_eq!(at(&table, 0x100), Some(Rule::of(Cfa::Unsupported)));
    assert_eq!(table.misfits.get("return address in another column"), Some(&1));
    // An undefined return address (0x07) is the root, also where nothing else can be said.
    let root = [&[0x0d, 17], [0x07, 16].as_slice()].concat();
    let table = read(&File::of(Entries::default().plain_head().function(0x100, 0x10, &root)).bytes());
    assert_eq!((at(&table, 0x100), table.misfits.len()), (Some(Rule::of(Cfa::Root)), 0));
}

#[test]
fn a_bad_entry_costs_only_itself() {
    let good = |entries: Entries| entries.plain_head().function(0x300, 0x10, &offset(16));
    let bad = [
        // A version that there is not, in a head without functions and in one with.
        Entries {
            bytes: [&8u32.to_le_bytes(), [0, 0, 0, 0, 9, 9, 9, 9].as_slice()].concat(),
            ..Entries::default()
        },
        Entries::default().head(b"zQ\0", &[0], &HEAD).function(0x100, 0x10, &[]),
        // Shorter than its own addresses.
        Entries::default().plain_head().raw_function(&[1, 2, 3]),
        // Too short for a pointer to a head.
        Entries { bytes: [&1u32.to_le_bytes(), [7].as_slice()].concat(), ..Entries::default() },
    ];
    for (i, entries) in bad.into_iter().enumerate() {
        let table = read(&File::of(good(entries)).bytes());
        assert_eq!(offsets(&table, [0x100, 0x2ff, 0x300]), [0, 0, 16], "{i}");
        // A head that nobody uses does no harm.
        let expected = (i > 0).then_some(&1);
        assert_eq!(table.misfits.get("a function that cannot be read"), expected, "{i}");
        assert!(table.problem.is_none());
    }
    // An instruction that there is not: what is before it stays, what is behind it is not known.
    let instructions = [&two_pushes()[..], &advance(2), &[0x3f]].concat();
    let table =
        read(&File::of(good(Entries::default().plain_head().function(0x100, 0x20, &instructions))).bytes());
    assert_eq!(offsets(&table, [0x100, 0x104, 0x108, 0x109]), [8, 16, 24, 24]);
    assert_eq!(at(&table, 0x10a), Some(Rule::of(Cfa::Unsupported)));
    assert_eq!(at(&table, 0x11f), Some(Rule::of(Cfa::Unsupported)));
    assert_eq!(offsets(&table, [0x120, 0x300]), [0, 16]);
}

#[test]
fn a_file_cut_anywhere_gives_an_error_or_what_is_left() {
    let entries = (0..20)
        .fold(Entries::default().plain_head(), |entries, i| entries.function(0x100 * i, 0x40, &two_pushes()));
    let pointer = (0x100i32 - 4).to_le_bytes();
    let header = Some([&[1, 0x1b, 0xff, 0xff], pointer.as_slice()].concat());
    for file in [File::of(entries.clone()), File { header, ..File::of(entries.terminator()) }] {
        let bytes = file.bytes();
        let whole = read(&bytes);
        assert!(whole.problem.is_none() && whole.rows.len() > 60);
        let mut partly = 0;
        for length in 0..bytes.len() {
            let Ok(table) = UnwindRows::read(&bytes[..length].to_vec(), ROOM) else { continue };
            check_form(&table, ROOM);
            partly += u64::from(!table.rows.is_empty() && table.rows.len() < whole.rows.len());
            for place in (0..0x1500).step_by(2) {
                let found = at(&table, place);
                assert!(is_unknown(found) || found == at(&whole, place), "{place:#x}: {found:?}");
            }
        }
        // Without their header at the file's end sections cannot be found; without section headers, all is as it was.
        assert_eq!(partly > 0, file.header.is_some());
    }
}

/// Every byte of the frames replaced by some others: nothing to expect but a table that holds together.
#[test]
fn no_byte_is_trusted() {
    let entries = Entries::default().head(b"zR\0", &[1, 0x00], &HEAD).plain_head();
    let entries = (0..4).fold(entries, |entries, i| entries.function(0x100 * i, 0x40, &two_pushes()));
    let file = File::of(entries);
    for at in 0..file.frames.len() {
        for value in [0, 1, 2, 7, 0x0f, 0x10, 0x7f, 0x80, 0xff] {
            let mut frames = file.frames.clone();
            frames[at] = value;
            if let Ok(table) = UnwindRows::read(&File { frames, ..File::of(Entries::default()) }.bytes(), 30)
            {
                check_form(&table, 30);
            }
        }
    }
}

#[test]
fn a_bound_on_rows_keeps_what_is_there() {
    let functions = |count| {
        let entries = Entries::default().plain_head();
        File::of((0..count).fold(entries, |entries, i| entries.function(0x40 * i, 0x40, &two_pushes())))
            .bytes()
    };
    let (some, all) = (UnwindRows::read(&functions(100), 50).unwrap(), read(&functions(100)));
    check_form(&some, 50);
    assert!(matches!(some.problem, Some(ObjectError::TooLarge { .. })));
    assert!(all.problem.is_none());
    let known = (0..0x1900).filter(|place| !is_unknown(at(&some, *place))).count();
    assert!(known > 0x40 * 15, "{known}");
    for place in 0..0x1900 {
        assert!(is_unknown(at(&some, place)) || at(&some, place) == at(&all, place));
    }
    // More rows than a search finds in a page: none there, all others as ever.
    let dense: Vec<u8> = (0..=MAX_ROWS_PER_PAGE)
        .flat_map(|i| [advance(1), offset(if i % 2 == 0 { 16 } else { 24 })])
        .flatten()
        .collect();
    let entries = Entries::default().plain_head().function(0x1000, 0x8000, &dense);
    let entries = entries.function(0x2_0000, 0x10, &offset(32));
    let table = read(&File::of(entries).bytes());
    assert_eq!(table.misfits.get("a page with too many rows"), Some(&1));
    assert_eq!(at(&table, 0x2000), None);
    assert_eq!(offsets(&table, [0x1_ffff, 0x2_0000]), [0, 32]);
}

/// Work that grows with the square of the size: each is refused at its root or ended by time, long before a person
/// would notice.
#[test]
fn forged_work_has_an_end() {
    // A head of 8 MiB that each function would have parsed again.
    let augmentation = [b"z".as_slice(), &vec![b'S'; 8 << 20], b"Q\0"].concat();
    let entries = Entries::default().head(&augmentation, &[0], &HEAD);
    let entries = (0..50_000).fold(entries, |entries, i| entries.function(16 * i, 16, &[]));
    let table = read(&File::of(entries).bytes());
    assert!(table.problem.is_none(), "{:?}", table.problem);
    // The head is one, too: longer than an entry may be.
    assert_eq!(table.misfits.into_iter().collect::<Vec<_>>(), [("a function that cannot be read", 50_001)]);
    // A head of instructions that each function would have executed.
    let entries = Entries::default().head(b"\0", &[], &[HEAD.as_slice(), &vec![0; 8 << 20]].concat());
    let entries = (0..50_000).fold(entries, |entries, i| entries.function(16 * i, 16, &[]));
    assert_eq!(read(&File::of(entries).bytes()).misfits.values().sum::<u64>(), 50_001);
    // A function that many others interrupt, so that it would be executed for each of them.
    let long: Vec<u8> = (0..200_000).flat_map(|_| advance(1)).collect();
    let entries = Entries::default().plain_head().function(0, 0xf_0000, &long);
    let entries = (0..20_000).fold(entries, |entries, i| entries.function(0x100 + 32 * i, 16, &offset(16)));
    let file = File::of(entries).bytes();
    let table = UnwindRows::read_within(&file, ROOM, Duration::from_millis(300)).unwrap();
    check_form(&table, ROOM);
    assert!(matches!(table.problem, Some(ObjectError::TooMuchWork(_))), "{:?}", table.problem);
    assert_eq!(offsets(&table, [0, 0xff, 0x100, 0x10f, 0x110, 0xf_0000]), [8, 8, 16, 16, 8, 0]);
    // Wherever time was over: what is before is right, and nothing is said of what is behind.
    let expected = |place: u64| if place >= 0x100 && place % 32 < 16 { 16 } else { 8 };
    let end = (0..0xf_0000).step_by(8).find(|place| is_unknown(at(&table, *place))).unwrap();
    for place in (0..0xf_0000).step_by(8) {
        assert_eq!(offsets(&table, [place]), [if place < end { expected(place) } else { 0 }], "{place:#x}");
    }
}

#[test]
fn what_the_section_is_too_large_for_is_left_out() {
    // Sparse: one function, and then zeros beyond the limit.
    struct Sparse(Vec<u8>);
    impl ReadAt for Sparse {
        fn size(&self) -> u64 {
            1 << 32
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
            buffer.fill(0);
            self.0.read_at(buffer, offset)?;
            Ok(buffer.len())
        }
    }
    let mut entries = Entries::default().plain_head().function(0x100, 0x10, &offset(16));
    // What follows it in the file shall not be read as entries.
    entries.bytes.extend([0xff; 12]);
    let mut bytes = File::of(entries).bytes();
    let headers = bytes.len() - 3 * 64;
    // sh_size of the second section; the names stay where they are.
    bytes[headers + 64 + 32..][..8].copy_from_slice(&(1u64 << 31).to_le_bytes());
    let table = read(&Sparse(bytes));
    assert!(matches!(table.problem, Some(ObjectError::TooLarge { .. })), "{:?}", table.problem);
    assert_eq!(offsets(&table, [0x100, 0x110]), [16, 0]);
}

#[test]
fn other_machines_are_refused() {
    let bytes = File::of(Entries::default().plain_head().function(0x100, 0x10, &[])).bytes();
    assert!(UnwindRows::read(&bytes, ROOM).is_ok());
    // Class, byte order, type, machine.
    for (at, value) in [(4, 1), (5, 2), (16, 1), (18, 183)] {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        assert!(UnwindRows::read(&bytes, ROOM).is_err(), "{at}");
    }
    let mut bytes = bytes;
    bytes[18] = 183;
    assert!(matches!(UnwindRows::read(&bytes, ROOM), Err(ObjectError::Unsupported(_))));
}
