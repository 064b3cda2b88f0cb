//! Programs that are compiled without frame pointers, as most of what runs on a Linux host.

use std::path::PathBuf;

use crate::{BuildError, Language, catalogue::PRELUDE, compile};

/// What makes the stacks of a program hard to unwind; see `programs/frameless.c`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Frameless {
    /// A signal handler that is busy.
    Signals,
    /// Recursion of this depth, with frames whose size is known only at run time.
    Recursion(u32),
    /// Frames of 60,000 and 100,000 bytes.
    LargeFrames,
    /// Time is asked of the vdso.
    Vdso,
    /// A tiny function in a library is called through the linkage table.
    Stubs,
    /// A function ends with a call that never returns.
    LastCall,
    /// Two threads.
    Threads,
    /// A stack is realigned.
    Aligned,
    /// The stack is full of [`SECRET`]s.
    Secrets,
    /// Assembly keeps the old stack pointer in one register or another.
    Registers,
    /// The first instruction of a function is one that the processor refuses; the handler of that signal is busy.
    Trap,
}

/// What [`Frameless::Secrets`] has on its stack, plus a small number: like an address, and in no mapping.
pub const SECRET: u64 = 0x5ec2_e7c0_d000;

const FLAGS: &[&str] = &[
    "-O2",
    "-fomit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-fno-ipa-icf",
    "-w",
    "-include",
    "signal.h",
    "-pthread",
];

impl Frameless {
    fn mode(self) -> u32 {
        match self {
            Frameless::Signals => 1,
            Frameless::Recursion(_) => 2,
            Frameless::LargeFrames => 3,
            Frameless::Vdso => 4,
            Frameless::Stubs => 5,
            Frameless::LastCall => 6,
            Frameless::Threads => 7,
            Frameless::Aligned => 8,
            Frameless::Secrets => 9,
            Frameless::Registers => 10,
            Frameless::Trap => 11,
        }
    }
}

/// Compiles a program with further flags.
pub fn frameless(name: &str, what: Frameless, flags: &[&str]) -> Result<PathBuf, BuildError> {
    let depth = if let Frameless::Recursion(depth) = what { depth } else { 0 };
    let (mode, depth) = (format!("-DMODE={}", what.mode()), format!("-DDEPTH={depth}"));
    let secret = format!("-DSECRET={SECRET:#x}ul");
    let mut all: Vec<String> = FLAGS.iter().chain(flags).map(|flag| (*flag).to_owned()).collect();
    all.extend([mode, depth, secret]);
    if what == Frameless::Stubs {
        let source = "unsigned long tiny(unsigned long x) { return x * 7 + 1; }\n";
        let library = format!("{name}-library");
        let library =
            compile(&library, Language::C, source, &["-O2", "-fomit-frame-pointer", "-shared", "-fPIC"])?;
        all.push(library.display().to_string());
    }
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    let source = format!("{PRELUDE}#line 1\n{}", include_str!("../programs/frameless.c"));
    compile(name, Language::C, &source, &all)
}

/// Compiles C++ that throws and catches exceptions.
pub fn exceptions() -> Result<PathBuf, BuildError> {
    compile(
        "exceptions",
        Language::Cpp,
        include_str!("../programs/exceptions.cc"),
        &["-O2", "-fomit-frame-pointer"],
    )
}

/// Compiles the known Rust program as for release: without frame pointers.
pub fn rust_release() -> Result<PathBuf, BuildError> {
    let flags = ["-Copt-level=3", "-Cforce-frame-pointers=no"];
    compile("rust-release", Language::Rust, include_str!("../programs/known.rs"), &flags)
}
