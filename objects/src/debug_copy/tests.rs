//! Against the tools that everybody has, and against the file itself: what is found by the copy is what is found by the original.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use records::ElfAddress;
use workloads::{CallTree, Language, Start, known_go, known_rust, plain, rust_release};

use super::*;
use crate::{Dwarf, ElfFacts, SymbolTable};

const LIMIT: u64 = 1 << 30;
const ROOM: usize = 256 << 20;

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {text}");
    text
}

fn copy_to(original: &Path, folder: &Path) -> PathBuf {
    let path = folder.join("copy");
    let mut out = File::create(&path).unwrap();
    let size = write_debug_copy(&File::open(original).unwrap(), &mut out, LIMIT).unwrap();
    assert_eq!(size, fs::metadata(&path).unwrap().len());
    path
}

/// Names, flags and addresses of all sections, as readelf has them, but for where they lie and what is left of them.
fn sections(path: &Path) -> Vec<(String, String)> {
    let text = run(Command::new("readelf").arg("-SW").arg(path));
    assert!(!text.to_ascii_lowercase().contains("warning"), "{text}");
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix('['));
    let fields = lines.map(|line| line.split_once(']').unwrap().1.split_whitespace().collect::<Vec<_>>());
    fields
        .filter(|fields| fields.len() > 5)
        .map(|fields| (fields[0].to_owned(), fields[2].to_owned()))
        .collect()
}

/// Addresses all over the code.
fn addresses(file: &dyn ReadAt) -> Vec<u64> {
    let facts = ElfFacts::read(file).unwrap();
    let code = facts.segments.iter().filter(|segment| segment.executable);
    code.flat_map(|segment| (0..2000).map(move |step| segment.address.0 + step * segment.file_size / 2000))
        .collect()
}

/// What is found by a file: function, file and line of each address.
fn names(path: &Path, addresses: &[u64]) -> Vec<String> {
    let file = File::open(path).unwrap();
    let table = SymbolTable::read(&file, ROOM).unwrap_or_default();
    let mut dwarf = Dwarf::read(&file, ROOM).ok();
    let name = |address: &u64| {
        let frames = dwarf.as_mut().map(|dwarf| dwarf.frames(ElfAddress(*address)).unwrap());
        format!("{:?} {frames:?}", table.lookup(ElfAddress(*address)))
    };
    addresses.iter().map(name).collect()
}

/// What a copy lacks, since it is not to be loaded: code that unwinds, and an interpreter.
const NOT_LOADED: [&str; 2] = [
    "does not have a PT_GNU_EH_FRAME program header entry",
    "static executable cannot have dynamic sections",
];

/// What a checker of the format finds, beyond what GNU's linker always makes.
fn faults(path: &Path) -> Vec<String> {
    let output = Command::new("eu-elflint").args(["--gnu-ld", "--debug"]).arg(path).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.is_empty() && *line != "No errors").map(Into::into).collect()
}

fn check(original: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let copy = copy_to(original, folder.path());
    let (file, file_of_copy) = (File::open(original).unwrap(), File::open(&copy).unwrap());
    let (faults, of_original) = (faults(&copy), faults(original));
    let new = faults.iter().filter(|fault| {
        !of_original.contains(fault) && !NOT_LOADED.iter().any(|known| fault.contains(known))
    });
    assert_eq!(new.collect::<Vec<_>>(), Vec::<&String>::new(), "{}", original.display());
    assert_eq!(sections(&copy), sections(original), "{}", original.display());
    let notes = |path: &Path| run(Command::new("readelf").arg("-nW").arg(path));
    assert_eq!(notes(&copy), notes(original));
    let id = |file: &File| ElfFacts::read(file).unwrap().id;
    if id(&file).kind != crate::IdKind::Hash {
        assert_eq!(id(&file_of_copy), id(&file));
    }
    let addresses = addresses(&file);
    let found = names(original, &addresses);
    for (ours, theirs) in names(&copy, &addresses).iter().zip(&found) {
        // Stubs are known by their code.
        assert!(ours == theirs || theirs.contains("@plt"), "{ours}, not {theirs}: {}", original.display());
    }
    assert!(
        found.iter().filter(|name| !name.starts_with("None")).count() > addresses.len() / 4,
        "{}",
        original.display()
    );
    // And what binutils find.
    let some: Vec<String> = addresses.iter().step_by(97).map(|address| format!("{address:#x}")).collect();
    let by_binutils =
        |path: &Path| run(Command::new("addr2line").args(["-f", "-i", "-e"]).arg(path).args(&some));
    assert!(by_binutils(&copy) == by_binutils(original), "{}", original.display());
    let by_elfutils = |path: &Path| {
        let output = Command::new("eu-addr2line").args(["-f", "-i", "-e"]).arg(path).args(&some).output();
        // Its status says whether everything was found.
        output.unwrap().stdout
    };
    assert!(by_elfutils(&copy) == by_elfutils(original), "{}", original.display());
    // Nothing that is loaded is left: no code, no data.
    let elf = Elf::read(&file_of_copy).unwrap();
    for section in elf.sections.iter().filter(|section| section.kind == 1) {
        let name = String::from_utf8_lossy(elf.name(section)).into_owned();
        let is_debug = name.starts_with(".debug_") || name.starts_with(".zdebug_");
        assert!(
            is_debug || KEPT.contains(&name.as_bytes()),
            "{name} is in the copy of {}",
            original.display()
        );
    }
    assert!(elf.program_headers.iter().all(|header| header.kind == PT_NOTE || header.file_size == 0));
}

#[test]
fn c_with_dwarf_of_each_version_and_compressed() {
    for (name, flags) in [
        ("copy-dwarf4", &["-g", "-gdwarf-4"][..]),
        ("copy-dwarf5", &["-g", "-gdwarf-5"]),
        ("copy-no-pie", &["-g", "-no-pie"]),
        ("copy-static-pie", &["-g", "-static-pie"]),
        ("copy-zlib", &["-g", "-gz=zlib"]),
        ("copy-zlib-gnu", &["-g", "-gz=zlib-gnu"]),
        ("copy-library.so", &["-g", "-shared", "-fPIC"]),
        ("copy-no-build-id", &["-g", "-Wl,--build-id=none"]),
        ("copy-symbols", &[]),
    ] {
        check(&plain(name, include_str!("../../../workloads/programs/inlined.c"), flags).unwrap());
    }
    let folder = tempfile::tempdir().unwrap();
    let original =
        plain("copy-dwarf5", include_str!("../../../workloads/programs/inlined.c"), &["-g", "-gdwarf-5"])
            .unwrap();
    let zstd = folder.path().join("zstd");
    run(Command::new("objcopy").arg("--compress-debug-sections=zstd").arg(&original).arg(&zstd));
    check(&zstd);
}

/// Two programs whose common DWARF `dwz` has put into a third file, which nobody sends: the symbol table names their functions.
#[test]
fn what_shares_its_dwarf_has_names_without_the_other_file() {
    let folder = tempfile::tempdir().unwrap();
    let source = include_str!("../../../workloads/programs/inlined.c");
    let programs = ["copy-dwz-a", "copy-dwz-b"].map(|name| {
        let path = folder.path().join(name);
        fs::copy(plain(name, source, &["-g"]).unwrap(), &path).unwrap();
        path
    });
    let expected = function_names(&programs[0]);
    let shared = folder.path().join("shared");
    // Binutils look for it beside the program alone.
    run(Command::new("dwz").arg("-m").arg(&shared).args(["-M", "shared"]).args(&programs));
    assert!(run(Command::new("readelf").arg("-SW").arg(&programs[0])).contains(SHARED_DWARF));
    assert_eq!(function_names(&programs[0]), expected);
    fs::remove_file(&shared).unwrap();
    assert_ne!(function_names(&programs[0]), expected, "the other file is needed");
    let copy = copy_to(&programs[0], folder.path());
    assert_eq!(function_names(&copy), expected);
    assert_eq!(sections(&copy), sections(&programs[0]));
    // Where there is no symbol table, half of the DWARF is better than nothing.
    let stripped = folder.path().join("stripped");
    run(Command::new("strip")
        .args(["-s", "--keep-section=.debug_*", "--keep-section=.gnu_debugaltlink", "-o"])
        .arg(&stripped)
        .arg(&programs[0]));
    let copy = copy_to(&stripped, folder.path());
    assert!(ElfFacts::read(&File::open(&copy).unwrap()).unwrap().contents.dwarf);
}

/// The functions `outer` and `main`, as binutils find them by their addresses.
fn function_names(path: &Path) -> Vec<String> {
    let symbols = run(Command::new("nm").arg(path));
    let wanted = symbols.lines().filter_map(|line| line.split_once(" T "));
    let addresses: Vec<&str> =
        wanted.filter(|(_, name)| ["outer", "main"].contains(name)).map(|(address, _)| address).collect();
    assert_eq!(addresses.len(), 2, "{symbols}");
    let text = run(Command::new("addr2line").args(["-f", "-e"]).arg(path).args(addresses));
    text.lines().step_by(2).map(str::to_owned).collect()
}

#[test]
fn go_and_rust_stripped_and_not() {
    let go = known_go().unwrap().0;
    check(&go);
    let source = include_str!("../../../workloads/programs/known.go");
    check(&workloads::compile("copy-stripped-go", Language::Go, source, &["-ldflags=-s -w"]).unwrap());
    check(&known_rust().unwrap().0);
    check(&rust_release().unwrap());
}

#[test]
fn what_is_stripped_has_its_dynamic_symbols_and_stubs() {
    let library = plain(
        "copy-stripped.so",
        include_str!("../../../workloads/programs/inlined.c"),
        &["-shared", "-fPIC", "-s", "-Wl,-z,lazy"],
    );
    check(&library.unwrap());
}

#[test]
fn this_program_with_its_hundred_thousand_functions() {
    check(&std::env::current_exe().unwrap());
}

#[test]
fn what_has_no_names_is_not_copied_and_limits_hold() {
    let bare =
        CallTree::standard("copy-bare", Start::Bare).build_with(&["-s", "-static", "-nostdlib"]).unwrap();
    let mut out = Vec::new();
    assert!(matches!(
        write_debug_copy(&File::open(bare).unwrap(), &mut out, LIMIT),
        Err(ObjectError::Missing(_))
    ));
    let own = File::open(std::env::current_exe().unwrap()).unwrap();
    assert!(matches!(write_debug_copy(&own, &mut out, 1 << 20), Err(ObjectError::TooLarge { .. })));
    assert!(out.is_empty());
    assert!(matches!(write_debug_copy(&b"#!/bin/sh\n".to_vec(), &mut out, LIMIT), Err(ObjectError::NotElf)));
}

#[test]
fn a_file_that_is_cut_or_changed_makes_no_harm() {
    let original = plain("copy-cut", include_str!("../../../workloads/programs/inlined.c"), &["-g"]).unwrap();
    let bytes = fs::read(original).unwrap();
    for length in (0..bytes.len()).step_by(311) {
        let cut = bytes[..length].to_vec();
        assert!(write_debug_copy(&cut, &mut Vec::new(), LIMIT).is_err(), "{length}");
    }
    let table = usize::try_from(u64::from_le_bytes(bytes[40..48].try_into().unwrap())).unwrap();
    for at in (0..64).chain(table..bytes.len()) {
        for value in [0, 0x7f, 0xff] {
            let mut changed = bytes.clone();
            changed[at] = value;
            let mut out = Vec::new();
            if let Ok(size) = write_debug_copy(&changed, &mut out, 1 << 20) {
                assert_eq!(size, out.len() as u64);
                assert!(size <= 1 << 20);
            }
        }
    }
}

/// A file of five exabytes, nearly all of it a hole, whose notes' sizes add up to 2^64.
#[test]
fn sizes_that_come_round_to_nothing_are_too_large() {
    struct Sparse(Vec<u8>);
    impl ReadAt for Sparse {
        fn size(&self) -> u64 {
            5 << 60
        }
        fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
            let head = self.0.read_at(buffer, offset)?;
            buffer[head..].fill(0);
            Ok(buffer.len())
        }
    }
    let original = plain("copy-cut", include_str!("../../../workloads/programs/inlined.c"), &["-g"]).unwrap();
    let mut bytes = fs::read(original).unwrap();
    let count = usize::from(u16::from_le_bytes([bytes[56], bytes[57]]));
    for entry in bytes[64..64 + 56 * count.min(4)].chunks_exact_mut(56) {
        entry[..4].copy_from_slice(&PT_NOTE.to_le_bytes());
        entry[32..40].copy_from_slice(&(1u64 << 62).to_le_bytes());
    }
    let mut out = Vec::new();
    let result = write_debug_copy(&Sparse(bytes), &mut out, 1 << 20);
    assert!(matches!(result, Err(ObjectError::TooLarge { .. })), "{result:?}");
    assert!(out.is_empty());
}
