//! The programs by name, and what is known of them.

use std::path::PathBuf;

use crate::{BuildError, Language, compile};

/// Programs in C that do odd things; what each does stands at the head of its source under `programs/`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// Lives 20 ms.
    Brief,
    /// Forks and does not exec.
    Forks,
    /// Has functions that exist only inlined, and debug information.
    Inlined,
    /// Makes machine code where a library was.
    InPlace,
    /// Makes machine code at run time.
    Jit,
    /// Its first thread ends.
    Leaderless,
    /// Maps files executable.
    Mapper,
    /// Has odd names.
    Names,
    /// Loads and unloads libraries.
    Plugins,
    /// Runs code in a mapped file.
    Runner,
    /// Maps thousands of small regions of code.
    Storm,
    /// Spends its time in the kernel.
    Syscalls,
    /// Calls vfork in a loop.
    Vforks,
}

pub(crate) const PRELUDE: &str = include_str!("../programs/prelude.h");
const PLAIN_FLAGS: &[&str] = &[
    "-O0",
    "-fno-omit-frame-pointer",
    "-fcf-protection=none",
    "-w",
    "-include",
    "signal.h",
    "-ldl",
    "-pthread",
];

/// Compiles one of the odd programs; its command name is the variant's, in small letters.
pub fn program(program: Program) -> Result<PathBuf, BuildError> {
    let (name, source, flags): (_, _, &[&str]) = match program {
        Program::Brief => ("brief", include_str!("../programs/brief.c"), &[]),
        Program::Forks => ("forks", include_str!("../programs/forks.c"), &[]),
        Program::InPlace => ("in-place", include_str!("../programs/in_place.c"), &[]),
        Program::Inlined => ("inlined", include_str!("../programs/inlined.c"), &["-g"]),
        Program::Jit => ("jit", include_str!("../programs/jit.c"), &[]),
        Program::Leaderless => ("leaderless", include_str!("../programs/leaderless.c"), &[]),
        Program::Mapper => ("mapper", include_str!("../programs/mapper.c"), &[]),
        Program::Names => ("names", include_str!("../programs/names.c"), &[]),
        Program::Plugins => ("plugins", include_str!("../programs/plugins.c"), &[]),
        Program::Runner => ("runner", include_str!("../programs/runner.c"), &[]),
        Program::Storm => ("storm", include_str!("../programs/storm.c"), &[]),
        Program::Syscalls => ("syscalls", include_str!("../programs/syscalls.c"), &[]),
        Program::Vforks => ("vforks", include_str!("../programs/vforks.c"), &[]),
    };
    plain(name, source, flags)
}

/// Compiles a C source with a frame in every function, after the prelude of `programs/prelude.h`.
pub fn plain(name: &str, source: &str, flags: &[&str]) -> Result<PathBuf, BuildError> {
    let flags: Vec<&str> = PLAIN_FLAGS.iter().chain(flags).copied().collect();
    compile(name, Language::C, &format!("{PRELUDE}#line 1\n{source}"), &flags)
}

/// The stages of an exec: each works in `work_of_stage_STAGE` (see `programs/stages.c`), and `fixed` puts both
/// stages' functions at the same fixed addresses.
pub fn stage(name: &str, stage: &str, fixed: bool) -> Result<PathBuf, BuildError> {
    let define = format!("-DSTAGE={stage}");
    let flags: &[&str] = if fixed { &[&define, "-no-pie"] } else { &[&define] };
    plain(name, include_str!("../programs/stages.c"), flags)
}

/// A version of a library that works in `plugin_work_VERSION`.
pub fn plugin(name: &str, version: &str) -> Result<PathBuf, BuildError> {
    let define = format!("-DVERSION={version}");
    plain(name, include_str!("../programs/plugin.c"), &["-shared", "-fPIC", &define])
}

/// A program with the stacks it is known to have, leaf first, and the share of each.
pub type Known = (PathBuf, Vec<(Vec<String>, f64)>);

fn known(path: PathBuf, stacks: &[(&[&str], f64)]) -> Known {
    let stacks = stacks
        .iter()
        .map(|(names, share)| (names.iter().map(|name| (*name).to_owned()).collect(), *share))
        .collect();
    (path, stacks)
}

/// C++: methods of a template.
pub fn known_cpp() -> Result<Known, BuildError> {
    let path = compile(
        "known-cpp",
        Language::Cpp,
        include_str!("../programs/known.cc"),
        &["-O0", "-g", "-fno-omit-frame-pointer", "-fcf-protection=none"],
    )?;
    let serve = "shop::serve(shop::Basket<int>&, bool)";
    Ok(known(
        path,
        &[
            (&["shop::Basket<int>::add(int)", serve, "main"], 0.6),
            (&["shop::Basket<int>::operator()(char const*)", serve, "main"], 0.4),
        ],
    ))
}

/// Go, as its compiler builds it: with frame pointers.
pub fn known_go() -> Result<Known, BuildError> {
    let path = compile("known-go", Language::Go, include_str!("../programs/known.go"), &[])?;
    Ok(known(
        path,
        &[
            (&["main.(*engine).turn", "main.drive", "main.main", "runtime.main"], 0.7),
            (&["main.idle", "main.drive", "main.main", "runtime.main"], 0.3),
        ],
    ))
}

/// Rust with frame pointers.
pub fn known_rust() -> Result<Known, BuildError> {
    let path = compile(
        "known-rust",
        Language::Rust,
        include_str!("../programs/known.rs"),
        &["-Copt-level=1", "-Cforce-frame-pointers=yes", "-g", "-Csymbol-mangling-version=v0"],
    )?;
    Ok(known(
        path,
        &[
            (
                &[
                    "<known_rust::Heavy as known_rust::Work>::perform",
                    "known_rust::dispatch",
                    "known_rust::main",
                ],
                0.75,
            ),
            (&["known_rust::light::<u32>", "known_rust::dispatch", "known_rust::main"], 0.25),
        ],
    ))
}

/// Go functions without frames, and what the runtime does on stacks of its own.
///
/// # Errors
///
/// As for [`compile`].
pub fn go_leaves(release: Language, name: &str, flags: &[&str]) -> Result<PathBuf, BuildError> {
    compile(name, release, include_str!("../programs/leaves.go"), flags)
}

/// Go that calls C that calls Go.
///
/// # Errors
///
/// As for [`compile`].
pub fn go_and_c(release: Language, name: &str) -> Result<PathBuf, BuildError> {
    compile(name, release, include_str!("../programs/mixed.go"), &["-ldflags=-s -w"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_compiles() {
        for which in [
            Program::Brief,
            Program::Forks,
            Program::InPlace,
            Program::Inlined,
            Program::Jit,
            Program::Leaderless,
            Program::Mapper,
            Program::Names,
            Program::Plugins,
            Program::Runner,
            Program::Storm,
            Program::Syscalls,
            Program::Vforks,
        ] {
            assert!(program(which).unwrap().exists(), "{which:?}");
        }
        assert!(stage("stage-one", "one", true).unwrap().exists());
        assert!(plugin("plugin-one.so", "one").unwrap().exists());
        for known in [known_cpp(), known_go(), known_rust()] {
            let (path, stacks) = known.unwrap();
            assert!(path.exists());
            assert!((stacks.iter().map(|(_, share)| share).sum::<f64>() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn both_stages_have_their_function_at_one_address() {
        let addresses = ["one", "two"].map(|name| {
            let path = stage(&format!("unit-stage-{name}"), name, true).unwrap();
            let output = std::process::Command::new("nm").arg(path).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let line = text.lines().find(|line| line.ends_with(&format!("work_of_stage_{name}"))).unwrap();
            line.split(' ').next().unwrap().to_owned()
        });
        assert_eq!(addresses[0], addresses[1]);
    }
}
