//! Every row of real files: against DWARF evaluated without any short cut, and against readelf.

use std::{fs::File, os::unix::fs::FileExt, path::PathBuf, process::Command};

use gimli::{
    BaseAddresses, CfaRule, CieOrFde, EhFrame, Encoding, EndianSlice, EvaluationResult, Format, LittleEndian,
    Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection, UnwindTableRow, Value, X86_64,
};
use records::{Cfa, ElfAddress, Rule, SavedFp};

use super::{ROOM, check_form, look};
use crate::{ElfFacts, ReadAt, UnwindRows, elf::Elf, read_at::read_range};

type Slice<'a> = EndianSlice<'a, LittleEndian>;

/// A process that has a word at each address and in each register, all of them different.
struct Process {
    ip: u64,
}

impl Process {
    fn word(address: u64) -> u64 {
        // SplitMix64's finalizer.
        let mixed = (address ^ address >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    fn register(&self, register: Register) -> u64 {
        if register == X86_64::RA { self.ip } else { Process::word(!u64::from(register.0)) }
    }

    fn evaluate(
        &self,
        expression: &UnwindExpression<usize>,
        section: &EhFrame<Slice<'_>>,
        initial: Option<u64>,
    ) -> u64 {
        let encoding = Encoding { address_size: 8, format: Format::Dwarf32, version: 4 };
        let mut evaluation = expression.get(section).unwrap().evaluation(encoding);
        if let Some(value) = initial {
            evaluation.set_initial_value(value);
        }
        let mut state = evaluation.evaluate().unwrap();
        loop {
            state = match state {
                EvaluationResult::Complete => break,
                EvaluationResult::RequiresRegister { register, .. } => {
                    evaluation.resume_with_register(Value::Generic(self.register(register))).unwrap()
                }
                EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                    evaluation.resume_with_memory(Value::Generic(Process::word(address))).unwrap()
                }
                other => panic!("{other:?}"),
            }
        }
        match evaluation.as_result() {
            [gimli::Piece { location: gimli::Location::Address { address }, .. }] => *address,
            other => panic!("{other:?}"),
        }
    }

    /// The caller's value of a register (DWARF 5, section 6.4.1); of one that no rule names, its own.
    fn of_caller(
        &self,
        row: &UnwindTableRow<usize>,
        register: Register,
        cfa: u64,
        section: &EhFrame<Slice<'_>>,
    ) -> u64 {
        match row.register(register) {
            None | Some(RegisterRule::SameValue) => self.register(register),
            Some(RegisterRule::Offset(offset)) => Process::word(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::ValOffset(offset)) => cfa.wrapping_add_signed(offset),
            Some(RegisterRule::Register(other)) => self.register(other),
            Some(RegisterRule::Expression(e)) => Process::word(self.evaluate(&e, section, Some(cfa))),
            Some(RegisterRule::ValExpression(e)) => self.evaluate(&e, section, Some(cfa)),
            Some(other) => panic!("{other:?}"),
        }
    }
}

/// The caller's stack pointer, instruction pointer and frame pointer; `None`: there is no caller.
type Caller = Option<[u64; 3]>;

fn by_dwarf(process: &Process, row: &UnwindTableRow<usize>, section: &EhFrame<Slice<'_>>) -> Caller {
    if row.register(X86_64::RA) == Some(RegisterRule::Undefined) {
        return None;
    }
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            process.register(*register).wrapping_add_signed(*offset)
        }
        CfaRule::Expression(expression) => process.evaluate(expression, section, None),
    };
    let of_caller = |register| process.of_caller(row, register, cfa, section);
    Some([cfa, of_caller(X86_64::RA), of_caller(X86_64::RBP)])
}

/// As `records` describes the rules.
fn by_rule(process: &Process, rule: Rule) -> Caller {
    let (sp, fp) = (process.register(X86_64::RSP), process.register(X86_64::RBP));
    let offset = i64::from(rule.cfa_offset);
    let cfa = match rule.cfa {
        1 | 10 => sp.wrapping_add_signed(offset),
        2 => fp.wrapping_add_signed(offset),
        3 => Process::word(fp.wrapping_add_signed(offset)),
        4 => Process::word(sp.wrapping_add_signed(offset)),
        5 => Process::word(sp.wrapping_add_signed(offset)).wrapping_add(8),
        6 if process.ip & 15 >= offset.cast_unsigned() => sp.wrapping_add(16),
        6 => sp.wrapping_add(8),
        7 => return Some([160, 168, 120].map(|at| Process::word(sp.wrapping_add(at)))),
        8 => return None,
        cfa if cfa >= Cfa::FROM_REGISTERS => {
            process.register(Register((cfa - Cfa::FROM_REGISTERS).into())).wrapping_add_signed(offset)
        }
        _ => panic!("{rule:?}"),
    };
    let fp_offset = i64::from(rule.fp_offset);
    let fp = match rule.fp {
        fp_rule if fp_rule == SavedFp::Same as u8 => fp,
        fp_rule if fp_rule == SavedFp::AtCfa as u8 => Process::word(cfa.wrapping_add_signed(fp_offset)),
        _ => Process::word(fp.wrapping_add_signed(fp_offset)),
    };
    let return_address = match rule.cfa {
        10 => process.register(X86_64::RDI),
        _ => Process::word(cfa.wrapping_sub(8)),
    };
    Some([cfa, return_address, fp])
}

/// File offset of an address in code.
fn offset_of(facts: &ElfFacts, address: u64) -> Option<u64> {
    facts.file_offset(ElfAddress(address)).map(|offset| offset.0)
}

/// How many places had which kind of rule.
type Kinds = [u64; Cfa::COUNT as usize];

/// Compares all places of an `.eh_frame` at which something changes, the place before the next change, and one between.
pub(super) fn compare(file: &dyn ReadAt) -> Kinds {
    let table = UnwindRows::read(file, ROOM).unwrap();
    assert!(table.problem.is_none(), "{:?}", table.problem);
    check_form(&table, ROOM);
    let facts = ElfFacts::read(file).unwrap();
    let elf = Elf::read(file).unwrap();
    let found = elf.section(".eh_frame").unwrap();
    let bytes = read_range(file, "test", found.offset, found.size, 1 << 30).unwrap();
    let section = EhFrame::new(&bytes, LittleEndian);
    let bases = BaseAddresses::default().set_eh_frame(found.address);
    let mut context = UnwindContext::new();
    let mut entries = section.entries(&bases);
    let mut kinds = Kinds::default();
    let mut misfits = 0;
    while let Some(entry) = entries.next().unwrap() {
        let CieOrFde::Fde(entry) = entry else { continue };
        let function = entry.parse(EhFrame::cie_from_offset).unwrap();
        let mut rows = function.rows(&section, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let (first, last) = (row.start_address(), row.end_address().saturating_sub(1));
            if last < first || offset_of(&facts, first).is_none() {
                continue;
            }
            let is_misfit =
                look(&table, offset_of(&facts, first).unwrap()) == Some(Rule::of(Cfa::Unsupported));
            misfits += u64::from(is_misfit);
            for ip in [first, last, first + Process::word(first) % (last - first + 1)] {
                let rule = look(&table, offset_of(&facts, ip).unwrap()).unwrap();
                kinds[usize::from(rule.cfa)] += 1;
                assert_ne!(rule, Rule::of(Cfa::Unknown), "{ip:#x}");
                if rule == Rule::of(Cfa::Unsupported) {
                    assert!(is_misfit, "{ip:#x}");
                } else {
                    let process = Process { ip };
                    let expected = by_dwarf(&process, row, &section);
                    assert_eq!(by_rule(&process, rule), expected, "{ip:#x}: {rule:?} for {row:?}");
                }
            }
        }
    }
    assert_eq!(misfits, table.misfits.values().sum::<u64>(), "{:?}", table.misfits);
    kinds
}

/// A library that this test itself has mapped.
fn mapped(name: &str) -> PathBuf {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5));
    path.filter(|path| path.contains(name)).map(PathBuf::from).next().unwrap()
}

#[test]
fn all_of_the_libc() {
    let kinds = compare(&File::open(mapped("libc.so")).unwrap());
    for kind in [Cfa::Sp, Cfa::Fp, Cfa::Plt, Cfa::Signal, Cfa::Root, Cfa::Unsupported, Cfa::SpReturnInDi] {
        assert!(kinds[kind as usize] > 0, "no {kind:?}: {kinds:?}");
    }
    assert!(kinds[Cfa::Sp as usize] > 10_000);
    assert!(kinds[Cfa::Unsupported as usize] < kinds[Cfa::Sp as usize] / 100, "{kinds:?}");
}

#[test]
fn all_of_this_test() {
    let kinds = compare(&File::open(std::env::current_exe().unwrap()).unwrap());
    assert!(kinds[Cfa::Sp as usize] > 10_000 && kinds[Cfa::Unsupported as usize] < 100, "{kinds:?}");
}

/// The vdso has no file; the collector passes a copy of it.
#[test]
fn all_of_the_vdso() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps.lines().find(|line| line.ends_with("[vdso]")).unwrap();
    let (begin, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
    let [begin, end] = [begin, end].map(|text| u64::from_str_radix(text, 16).unwrap());
    let mut bytes = vec![0; usize::try_from(end - begin).unwrap()];
    File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, begin).unwrap();
    let kinds = compare(&bytes);
    assert!(kinds[Cfa::Sp as usize] > 0 && kinds[Cfa::Unsupported as usize] == 0, "{kinds:?}");
}

/// `rsp+16`, `c-16`: the letters and the number.
fn term(text: &str) -> (&str, i64) {
    let at = text.find(['+', '-']).unwrap_or(text.len());
    (&text[..at], text[at..].parse().unwrap_or(0))
}

/// The plain rules that readelf prints, with the address from which each is in force.
fn readelf(path: &PathBuf) -> Vec<(u64, Rule)> {
    let output = Command::new("readelf").arg("--debug-dump=frames-interp").arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut columns: Vec<&str> = Vec::new();
    let mut is_function = false;
    let mut rules = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [_, _, _, kind, ..] = words.as_slice()
            && ["CIE", "FDE"].contains(kind)
        {
            is_function = *kind == "FDE";
        } else if words.first() == Some(&"LOC") {
            columns = words;
        } else if is_function && words.len() == columns.len() && !words.is_empty() {
            let column = |name| columns.iter().position(|column| *column == name).map(|at| words[at]);
            let (base, offset) = term(column("CFA").unwrap());
            let (saved, fp_offset) = term(column("rbp").unwrap_or("u"));
            let cfa = match base {
                "rsp" => Cfa::Sp,
                "rbp" => Cfa::Fp,
                _ => continue,
            };
            let fp = match saved {
                "u" | "s" => SavedFp::Same,
                "c" => SavedFp::AtCfa,
                _ => continue,
            };
            if column("ra") != Some("c-8") {
                continue;
            }
            let rule =
                super::with_fp(cfa, i32::try_from(offset).unwrap(), fp, i16::try_from(fp_offset).unwrap());
            rules.push((u64::from_str_radix(words[0], 16).unwrap(), rule));
        }
    }
    rules
}

#[test]
fn readelf_says_the_same() {
    for path in [mapped("libc.so"), std::env::current_exe().unwrap()] {
        let file = File::open(&path).unwrap();
        let table = UnwindRows::read(&file, ROOM).unwrap();
        let facts = ElfFacts::read(&file).unwrap();
        let rules = readelf(&path);
        assert!(rules.len() > 10_000, "{} rows", rules.len());
        let mut last = None;
        for (i, (address, rule)) in rules.iter().enumerate() {
            // Of two for the same place the second counts.
            if rules.get(i + 1).is_some_and(|next| next.0 == *address) {
                continue;
            }
            let Some(offset) = offset_of(&facts, *address) else { continue };
            last = look(&table, offset);
            assert_eq!(last, Some(*rule), "{address:#x} in {}", path.display());
        }
        assert!(last.is_some());
    }
}
