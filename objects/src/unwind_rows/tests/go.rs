//! Go programs: against what Go's linker writes into `.debug_frame`, of every release that is here.

use std::{collections::HashMap, fs, path::PathBuf, process::Command};

use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EndianSlice, LittleEndian, UnwindContext, UnwindSection, X86_64,
};
use records::{Cfa, ElfAddress, Rule, SavedFp};
use workloads::{Language, compile};

use super::{ROOM, check_form, look, plain, with_fp};
use crate::{ElfFacts, SymbolTable, UnwindRows, elf::Elf, section_data::Stored};

const SOURCE: &str = r#"
package main

import (
	"fmt"
	"sort"
	"time"
)

func main() {
	numbers := []int{3, 1, 2}
	sort.Slice(numbers, func(i, j int) bool { return numbers[i] < numbers[j] })
	go fmt.Println(numbers, time.Now())
	time.Sleep(time.Millisecond)
}
"#;

/// The same, with C called and calling back.
const MIXED: &str = r#"
package main

/*
extern void callback(int);
static void down(int n) { callback(n); }
*/
import "C"
import "fmt"

//export callback
func callback(n C.int) { fmt.Println(n) }

func main() { C.down(1) }
"#;

/// Functions of the runtime that are left in another way than the size of their stack says: they change stacks, or were
/// not called.
const ODD: [&str; 26] = [
    "gogo",
    "runtime.asmcgocall",
    "runtime.asmcgocall_no_g",
    "runtime.asyncPreempt",
    "runtime.callCgoMmap",
    "runtime.callCgoMunmap",
    "runtime.callCgoSigaction",
    "runtime.cgocallback",
    "runtime.clone",
    "runtime.goexit",
    "runtime.mcall",
    "runtime.morestack",
    "runtime.mstart",
    "runtime.nanotime1",
    "runtime.rt0_go",
    "runtime.sigfwd",
    "runtime.sigpanic",
    "runtime.sigreturn",
    "runtime.sigreturn__sigaction",
    "runtime.switchToCrashStack0",
    "runtime.systemstack",
    "runtime.vgetrandom1",
    "runtime.walltime",
    "syscall.rawVforkSyscall",
    "time.now",
    "runtime.memhash_noescape",
];

fn build(name: &str, release: Language, source: &str, flags: &[&str]) -> PathBuf {
    // Uncompressed, for the comparison.
    let flags = [&["-ldflags=-compressdwarf=false"], flags].concat();
    compile(name, release, source, &flags).unwrap()
}

fn read(path: &PathBuf) -> (Vec<u8>, UnwindRows) {
    let bytes = fs::read(path).unwrap();
    let table = UnwindRows::read(&bytes, ROOM).unwrap();
    check_form(&table, ROOM);
    assert!(table.problem.is_none(), "{:?}", table.problem);
    (bytes, table)
}

/// Compares the CFA of every place; gives the names of the functions where it is another one.
#[expect(clippy::ptr_arg, reason = "what is read from is sized")]
fn differing(bytes: &Vec<u8>, table: &UnwindRows) -> (Vec<String>, usize) {
    let elf = Elf::read(bytes).unwrap();
    let facts = ElfFacts::read(bytes).unwrap();
    let symbols = SymbolTable::read(bytes, 64 << 20).unwrap();
    let section = elf.section(".debug_frame").expect("a .debug_frame");
    let data = Stored::of(&elf, section, "test").unwrap().load(bytes, "test", 64 << 20).unwrap();
    let mut frames = DebugFrame::new(&data, LittleEndian);
    frames.set_address_size(8);
    let bases = BaseAddresses::default();
    let mut context = UnwindContext::new();
    let (mut names, mut same) = (Vec::new(), 0);
    let mut entries = frames.entries(&bases);
    while let Some(entry) = entries.next().unwrap() {
        let gimli::CieOrFde::Fde(partial) = entry else { continue };
        let entry =
            partial.parse(|s: &DebugFrame<EndianSlice<'_, _>>, b, o| s.cie_from_offset(b, o)).unwrap();
        let name = symbols.lookup(ElfAddress(entry.initial_address()));
        let name = name.map_or_else(|| "?".to_owned(), |(name, _)| name.to_owned());
        let mut rows = entry.rows(&frames, &bases, &mut context).unwrap();
        while let Some(row) = rows.next_row().unwrap() {
            let CfaRule::RegisterAndOffset { register: X86_64::RSP, offset } = *row.cfa() else {
                continue;
            };
            for address in row.start_address()..row.end_address() {
                let rule = look(table, facts.file_offset(ElfAddress(address)).unwrap().0).unwrap();
                let is_same = rule.cfa == Cfa::Sp as u8 && i64::from(rule.cfa_offset) == offset;
                // Of the frame pointer it says nothing: each function with a frame that is no assembly has saved it.
                let is_compiled =
                    ["main.", "sort.", "fmt.", "strconv.", "os."].iter().any(|p| name.starts_with(p));
                let fp = if offset > 8 { (SavedFp::AtCfa, -16) } else { (SavedFp::Same, 0) };
                if is_same && (!is_compiled || (rule.fp, rule.fp_offset) == (fp.0 as u8, fp.1)) {
                    same += 1;
                } else if names.last() != Some(&name) {
                    names.push(name.clone());
                }
            }
        }
    }
    names.sort_unstable();
    names.dedup();
    (names, same)
}

#[test]
fn every_place_of_a_go_program_has_the_frame_that_its_linker_says() {
    for release in Language::releases_of_go() {
        let (bytes, table) = read(&build("go-rows", release, SOURCE, &[]));
        let (names, same) = differing(&bytes, &table);
        assert!(same > 300_000, "{release:?}: {same}");
        println!("{release:?}: {same} places alike; not in {names:?}");
        let odd = |name: &String| ODD.contains(&name.strip_suffix(".abi0").unwrap_or(name));
        assert!(names.iter().all(odd) && names.len() > 8, "{release:?}: {names:?}");
    }
}

#[test]
fn stripped_go_programs_have_the_same_rows() {
    for release in Language::releases_of_go() {
        for mode in ["-buildmode=exe", "-buildmode=pie"] {
            let (_, whole) = read(&build("go-rows", release, SOURCE, &[mode]));
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("stripped");
            let mut strip = Command::new("strip");
            strip.arg("-o").arg(&path).arg(build("go-rows", release, SOURCE, &[mode]));
            assert!(strip.status().unwrap().success());
            let (_, stripped) = read(&path);
            assert_eq!(whole.rows, stripped.rows, "{release:?} {mode}");
            assert_eq!(whole.rules, stripped.rules, "{release:?} {mode}");
        }
    }
}

#[test]
fn what_the_runtime_calls_in_odd_ways() {
    let go_119 = Language::Go119;
    for release in Language::releases_of_go() {
        let path = compile("go-mixed", release, MIXED, &[]).unwrap();
        let (bytes, table) = read(&path);
        let facts = ElfFacts::read(&bytes).unwrap();
        let symbols = SymbolTable::read(&bytes, 64 << 20).unwrap();
        let segments: Vec<_> = facts.segments.iter().filter(|segment| segment.executable).collect();
        let places = segments.iter().flat_map(|segment| {
            (0..segment.file_size).map(|at| (ElfAddress(segment.address.0 + at), segment.offset.0 + at))
        });
        let mut rules: HashMap<&str, Vec<Rule>> = HashMap::new();
        for (address, offset) in places {
            let Some((name, start)) = symbols.lookup(address) else { continue };
            let rules = rules.entry(name).or_default();
            // Whoever returns to a signal's return is looked up at the byte before it.
            let before = u64::from(name.starts_with("runtime.sigreturn") && start == address);
            let rule = look(&table, offset - before).unwrap();
            if rules.last() != Some(&rule) {
                rules.push(rule);
            }
        }
        let of = |name: &str| {
            let assembly = format!("{name}.abi0");
            rules.get(assembly.as_str()).or_else(|| rules.get(name)).unwrap_or_else(|| panic!("{name}"))
        };
        let root = plain(Cfa::Root, 0);
        let by_fp = with_fp(Cfa::Fp, 16, SavedFp::AtCfa, -16);
        assert_eq!(*of("runtime.goexit"), [root]);
        assert_eq!(*of("runtime.mstart"), [root]);
        for leaves in ["runtime.mcall", "runtime.morestack"] {
            assert_eq!(of(leaves).first(), Some(&plain(Cfa::Sp, 8)), "{release:?} {leaves}");
            assert_eq!(of(leaves).last(), Some(&root), "{release:?} {leaves}");
        }
        let sigreturn = if release == go_119 { "runtime.sigreturn" } else { "runtime.sigreturn__sigaction" };
        assert_eq!(*of(sigreturn), [plain(Cfa::Signal, 0)]);
        for injected in ["runtime.asyncPreempt", "runtime.sigpanic"] {
            let rules = of(injected);
            assert!(rules.iter().all(|rule| rule.cfa == Cfa::SpInterrupted as u8), "{release:?} {rules:?}");
        }
        for changes in ["runtime.systemstack", "runtime.asmcgocall"] {
            let rules = of(changes);
            // Before Go 1.21 they had no frame, and nothing leads back but frame pointers.
            let rule = if release == go_119 { plain(Cfa::Unknown, 0) } else { by_fp };
            assert!(rules.contains(&rule), "{release:?} {changes}: {rules:?}");
        }
        // On the stack of C that called back lies its frame, and on the goroutine's a copy.
        assert!(of("runtime.cgocallback").contains(&by_fp), "{release:?}");
        for saving in ["crosscall2", "runtime.sigtramp"] {
            // Saved in the middle of the frame, or beneath the return address.
            let in_call = of(saving).iter().max_by_key(|rule| rule.cfa_offset).unwrap();
            let slot = (SavedFp::AtCfa as u8, -16);
            assert_eq!((in_call.fp, in_call.fp_offset), slot, "{release:?} {saving}: {in_call:?}");
            assert!(in_call.cfa_offset > 56);
        }
    }
}
