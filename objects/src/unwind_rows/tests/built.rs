//! Programs that gcc and ld make, with what only some of them have.

use std::{fs, path::PathBuf};

use records::{Cfa, Rule, SavedFp};
use workloads::{Language, compile, with_lld};

use super::{ROOM, plain, truth::compare};
use crate::UnwindRows;

/// Has a frame of unknown size with aligned variables, a call through the linkage table, and assembly that says where
/// its CFA is.
const SOURCE: &str = r#"
#include <alloca.h>
#include <stdio.h>
#include <string.h>

/* More than the stack is aligned to, and of a size that only shows at run time: the CFA is a word of the frame. */
__attribute__((noinline)) int aligned(int n) {
    _Alignas(64) volatile char here[128];
    char *there = alloca(n);
    memset(there, n, n);
    memset((char *)here, n, sizeof here);
    return there[n / 2] + here[n % 128];
}

void marked(void);
__asm__(".text\n.globl marked\n.type marked, @function\nmarked: .cfi_startproc\n"
        "sub $0x1228, %rsp\n.cfi_def_cfa_offset 0x1230\nadd $0x1228, %rsp\n.cfi_def_cfa_offset 8\n"
        "ret\n.cfi_endproc\n.size marked, . - marked\n");

int main(int argc, char **argv) {
    marked();
    printf("%d\n", aligned(argc));
    return 0;
}
"#;

fn build(name: &str, flags: &[&str]) -> PathBuf {
    compile(name, Language::C, SOURCE, &[&["-O2"], flags].concat()).unwrap()
}

#[test]
fn all_kinds_of_executables() {
    for flags in [
        &["-pie"][..],
        &["-no-pie"],
        &["-static"],
        &["-static-pie"],
        &["-shared", "-fPIC"],
        &["-no-pie", "-Wl,-z,noseparate-code"],
        &["-pie", "-Wl,--no-eh-frame-hdr"],
        &["-pie", "-mstackrealign", "-fno-omit-frame-pointer"],
        &["-pie", "-O0"],
    ] {
        let kinds = compare(&fs::read(build("rows", flags)).unwrap());
        assert!(kinds[Cfa::Sp as usize] > 0, "{flags:?}: {kinds:?}");
        // In its body the frame is found through the frame pointer, and only before that from another register.
        let from_r10 = usize::from(Rule::from_register(10, 0).cfa);
        assert!(kinds[Cfa::AtFp as usize] > 0 && kinds[from_r10] > 0, "{flags:?}: {kinds:?}");
        let has_start = !flags.contains(&"-shared");
        assert_eq!(kinds[Cfa::Root as usize] > 0, has_start, "{flags:?}: {kinds:?}");
    }
}

#[test]
fn frame_pointers_that_are_saved_where_the_frame_pointer_is() {
    let table = UnwindRows::read(&fs::read(build("rows", &["-pie"])).unwrap(), ROOM).unwrap();
    let saved = |rule: &&Rule| rule.cfa == Cfa::AtFp as u8 && rule.fp == SavedFp::AtFp as u8;
    assert!(table.rules.iter().any(|rule| saved(&rule)), "{:?}", table.rules);
}

/// With lazy binding the linkage table has an expression that depends on the address; for indirect branch tracking ld
/// makes another table, with another constant.
#[test]
fn linkage_tables() {
    for (flags, constant) in [
        (&["-pie", "-Wl,-z,lazy", "-fcf-protection=none"][..], 11),
        (&["-pie", "-Wl,-z,lazy", "-Wl,-z,ibtplt", "-fcf-protection=full"], 9),
    ] {
        let bytes = fs::read(build("plt", flags)).unwrap();
        let kinds = compare(&bytes);
        assert!(kinds[Cfa::Plt as usize] > 0, "{flags:?}: {kinds:?}");
        let table = UnwindRows::read(&bytes, ROOM).unwrap();
        assert!(table.rules.contains(&plain(Cfa::Plt, constant)), "{flags:?}: {:?}", table.rules);
    }
}

/// lld, which comes with Rust, describes no stub; the rules are those that ld writes for the same code.
#[test]
fn linkage_tables_that_nobody_describes() {
    let [lld, folder] = with_lld().unwrap();
    let flags = ["-pie", &lld, &folder, "-Wl,-z,lazy", "-fcf-protection=none"];
    let table = UnwindRows::read(&fs::read(build("lld-plt", &flags)).unwrap(), ROOM).unwrap();
    for rule in [plain(Cfa::Plt, 11), plain(Cfa::Sp, 16), plain(Cfa::Sp, 24)] {
        assert!(table.rules.contains(&rule), "{:?}", table.rules);
    }
}

/// The start files have an `.eh_frame`, and all the rest nothing but a `.debug_frame`.
#[test]
fn debug_frame_stands_in() {
    let read = |compression: &str| {
        let linker = format!("-Wl,--compress-debug-sections={compression}");
        let flags = ["-g", "-fno-asynchronous-unwind-tables", "-fno-exceptions", linker.as_str()];
        let bytes = fs::read(build("debug", &flags)).unwrap();
        let table = UnwindRows::read(&bytes, ROOM).unwrap();
        assert!(table.problem.is_none());
        table
    };
    // gcc has the assembler put all of this source's into `.debug_frame`, that of the assembly too.
    let none = read("none");
    assert!(none.rules.contains(&plain(Cfa::Root, 0)) && none.rules.contains(&plain(Cfa::Sp, 0x1230)));
    assert!(none.rules.iter().any(|rule| rule.cfa == Cfa::AtFp as u8), "{:?}", none.rules);
    for compression in ["zlib", "zlib-gnu", "zstd"] {
        let table = read(compression);
        assert_eq!((&table.rows, &table.rules), (&none.rows, &none.rules), "{compression}");
    }
    let bare = build("bare", &["-g0", "-fno-asynchronous-unwind-tables", "-fno-exceptions"]);
    let bare = UnwindRows::read(&fs::read(bare).unwrap(), ROOM).unwrap();
    assert!(bare.rules.iter().all(|rule| rule.cfa != Cfa::AtFp as u8), "{:?}", bare.rules);
}

#[test]
fn no_section_headers() {
    // Not for a program that is linked statically, which has no header of its frames either.
    for flags in [&["-pie"][..], &["-no-pie"]] {
        let mut bytes = fs::read(build("rows", flags)).unwrap();
        let whole = UnwindRows::read(&bytes, ROOM).unwrap();
        // e_shoff; e_shnum and e_shstrndx.
        bytes[40..48].fill(0);
        bytes[60..64].fill(0);
        let without = UnwindRows::read(&bytes, ROOM).unwrap();
        assert!(without.problem.is_none() && !without.rows.is_empty());
        assert_eq!((without.first_page, without.pages), (whole.first_page, whole.pages));
        assert_eq!((without.rows, without.rules), (whole.rows, whole.rules));
    }
}
