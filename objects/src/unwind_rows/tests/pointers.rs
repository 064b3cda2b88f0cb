//! Pointers in frame sections, in every way in which they can be written (Linux Standard Base 5.0, section 10.5.1): where a
//! function is must be understood, or is counted; what else there is to point to must not get in the way.

use records::{Cfa, Rule};

use super::{
    ROOM, check_form,
    forge::{CODE, CODE_OFFSET, Entries, FRAMES, File, HEAD, offset},
    is_unknown, look, plain,
};
use crate::UnwindRows;

/// What a pointer is relative to, or that it is none.
const PC_RELATIVE: u8 = 0x10;
const TEXT_RELATIVE: u8 = 0x20;
const DATA_RELATIVE: u8 = 0x30;
const FUNCTION_RELATIVE: u8 = 0x40;
const ALIGNED: u8 = 0x50;
const INDIRECT: u8 = 0x80;
const OMITTED: u8 = 0xff;
/// What is written: a word, numbers of variable length, and of 2, 4 and 8 bytes, without sign and with.
const FORMS: [u8; 9] = [0, 1, 2, 3, 4, 9, 0xa, 0xb, 0xc];

const FUNCTION: u64 = CODE + 0x100;
/// Where `.text`, and the place that data is relative to, are near enough to the function for two bytes.
const TEXT: u64 = CODE + 0x1000;
const GOT: u64 = CODE + 0x2000;

fn write(form: u8, value: u64) -> Vec<u8> {
    match form & 0xf {
        // Of variable length: all bits, the sign is the highest of 64.
        1 | 9 => {
            let last = if form & 0xf == 9 && value >> 63 == 1 { 0x7f } else { value.to_le_bytes()[7] >> 7 };
            (0..9).map(|i| (value >> (7 * i)).to_le_bytes()[0] | 0x80).chain([last]).collect()
        }
        2 | 0xa => value.to_le_bytes()[..2].to_vec(),
        3 | 0xb => value.to_le_bytes()[..4].to_vec(),
        _ => value.to_le_bytes().to_vec(),
    }
}

/// The rule at a function whose place is written so, and how many functions could not be read.
fn read(entries: Entries, others: &[(&'static str, u64)]) -> (Option<Rule>, u64) {
    let table =
        UnwindRows::read(&File { others: others.to_vec(), ..File::of(entries) }.bytes(), ROOM).unwrap();
    check_form(&table, ROOM);
    let rule = look(&table, CODE_OFFSET + FUNCTION - CODE);
    assert!(is_unknown(look(&table, CODE_OFFSET + FUNCTION - CODE - 1)));
    let unreadable = table.misfits.get("a function that cannot be read").copied();
    (rule.filter(|rule| !is_unknown(Some(*rule))), unreadable.unwrap_or(0))
}

const UNDERSTOOD: (Option<Rule>, u64) =
    (Some(Rule { cfa: Cfa::Sp as u8, fp: 0, fp_offset: 0, cfa_offset: 72 }), 0);
const COUNTED: (Option<Rule>, u64) = (None, 1);

/// An entry of a function whose place is written so, relative to `base`.
fn placed(encoding: u8, base: impl Fn(u64) -> u64) -> Entries {
    let head = Entries::default().head(b"zR\0", &[1, encoding], &HEAD);
    // Behind the length and the pointer to the head.
    let here = FRAMES + head.bytes.len() as u64 + 8;
    let place = write(encoding, FUNCTION.wrapping_sub(base(here)));
    // The place, the length in the same form, no augmentation data, an instruction.
    head.raw_function(&[place, write(encoding, 0x10), vec![0], offset(72).to_vec()].concat())
}

#[test]
fn a_function_is_where_its_pointer_says_or_is_counted() {
    assert_eq!(UNDERSTOOD.0, Some(plain(Cfa::Sp, 72)));
    let others = [(".text", TEXT), (".got", 0x1000), (".got.plt", GOT)];
    for form in FORMS {
        // Two bytes do not reach so far, and four without a sign not back.
        if form & 7 != 2 {
            assert_eq!(read(placed(form, |_| 0), &others), UNDERSTOOD, "{form:#x}");
            if form != 3 {
                assert_eq!(read(placed(form | PC_RELATIVE, |here| here), &others), UNDERSTOOD, "{form:#x}");
            }
        }
        let bases = [(TEXT_RELATIVE, TEXT), (DATA_RELATIVE, GOT)];
        for (relative, base) in bases.into_iter().filter(|_| !matches!(form, 2 | 3)) {
            let entries = || placed(form | relative, |_| base);
            assert_eq!(read(entries(), &others), UNDERSTOOD, "{form:#x}, {relative:#x}");
            assert_eq!(read(entries(), &[]), COUNTED, "{form:#x}, {relative:#x}: to what is not there");
        }
        // In memory, at this place: that takes a running program. Relative to itself, or after bytes of padding: nobody's.
        for other in [INDIRECT, INDIRECT | PC_RELATIVE, FUNCTION_RELATIVE, ALIGNED, 0x60] {
            assert_eq!(read(placed(form | other, |_| 0), &others), COUNTED, "{form:#x}, {other:#x}");
        }
    }
    // Without a sign, from below.
    for form in [2, 3] {
        assert_eq!(read(placed(form | TEXT_RELATIVE, |_| CODE), &[(".text", CODE)]), UNDERSTOOD);
    }
    assert_eq!(read(placed(OMITTED, |_| 0), &others), COUNTED);
    // Where there is nothing to be called lazily, there is one table only.
    assert_eq!(read(placed(0xb | DATA_RELATIVE, |_| GOT), &[(".got", GOT)]), UNDERSTOOD);
}

#[test]
fn what_else_is_pointed_to_does_not_get_in_the_way() {
    // Personality routine and language-specific data: neither is ever followed.
    let function = |personality: u8, data: u8| {
        let pointer = write(personality, 0x1234);
        let augmentation =
            [&[u8::try_from(pointer.len()).unwrap() + 3, personality], pointer.as_slice(), &[data, 0]]
                .concat();
        let data = write(data, 0x5678);
        let head = Entries::default().head(b"zPLR\0", &augmentation, &HEAD);
        let place = [FUNCTION.to_le_bytes(), 0x10u64.to_le_bytes()].concat();
        let data = [&[u8::try_from(data.len()).unwrap()], data.as_slice()].concat();
        head.raw_function(&[place, data, offset(72).to_vec()].concat())
    };
    let others = [(".text", TEXT), (".got", GOT)];
    for form in FORMS {
        for relative in [0, PC_RELATIVE, TEXT_RELATIVE, DATA_RELATIVE] {
            for indirect in [0, INDIRECT] {
                let encoding = form | relative | indirect;
                assert_eq!(read(function(encoding, 0x1b), &others), UNDERSTOOD, "{encoding:#x}");
                assert_eq!(read(function(0x9b, encoding), &others), UNDERSTOOD, "{encoding:#x}");
            }
        }
    }
    // What is not read is counted: forms that nobody writes here, and no form at all.
    for other in [ALIGNED, OMITTED, 0x05, 0x60] {
        assert_eq!(read(function(other, 0x1b), &others), COUNTED, "{other:#x}");
        assert_eq!(read(function(0x9b, other), &others), COUNTED, "{other:#x}");
    }
}
