//! Programs for what changes all the time: libraries that come and go, executables by the thousand, threads. All without
//! frame pointers.

use std::path::PathBuf;

use crate::{BuildError, Language, WITHOUT_FRAME_POINTERS, catalogue::PRELUDE, compile};

/// How many libraries [`churn_library`] can make, and how many kinds [`tiny`] has: beyond, their frames would be too small.
pub const CHURN_LIBRARIES: u32 = 6;
/// How many instances of its recursive template [`templates`] goes through, beside the last.
pub const TEMPLATE_DEPTH: usize = 24;

fn in_c(name: &str, source: &str, flags: &[&str]) -> Result<PathBuf, BuildError> {
    // Registers are saved as if nothing were known of the callee: rbp and rbx hold what lives over a call.
    let flags = [WITHOUT_FRAME_POINTERS, &["-fno-ipa-ra"], flags].concat();
    compile(name, Language::C, source, &flags)
}

/// A library whose `library_entry` calls a chain of its own: the names of [`churn_library_chain`].
pub fn churn_library(number: u32) -> Result<PathBuf, BuildError> {
    let define = format!("-DNUMBER={number}");
    // The gap in the text is before the functions only if it stays where it is written.
    let flags = ["-shared", "-fPIC", "-nostdlib", "-fno-toplevel-reorder", &define];
    in_c(&format!("churn-{number}.so"), include_str!("../programs/churn_library.c"), &flags)
}

/// The functions of a library, the innermost first.
pub fn churn_library_chain(number: u32) -> Vec<String> {
    let own = ["leaf", "deep", "middle", "outer"].map(|part| format!("lib_{number}_{part}"));
    own.into_iter().chain(["library_entry".into()]).collect()
}

/// Loads the libraries that it is given, one after the other; see `programs/churn_loader.c`.
pub fn churn_loader() -> Result<PathBuf, BuildError> {
    let source = format!("{PRELUDE}#line 1\n{}", include_str!("../programs/churn_loader.c"));
    in_c("churn-loader", &source, &["-w", "-ldl"])
}

/// Lives 20 ms, or as many microseconds as its argument says, as [`crate::Program::Brief`], under a name of its own.
pub fn frameless_brief(name: &str) -> Result<PathBuf, BuildError> {
    in_c(name, &format!("{PRELUDE}#line 1\n{}", include_str!("../programs/brief.c")), &["-w"])
}

/// A process in each of many cgroups, whose files `cgroup.procs` stand in a file, a line each; see `programs/crowd.c`.
pub fn crowd() -> Result<PathBuf, BuildError> {
    in_c("crowd", &format!("{PRELUDE}#line 1\n{}", include_str!("../programs/crowd.c")), &["-w"])
}

/// A kind of small executable, called `tiny-KIND`, that lives some milliseconds. Its functions, the innermost first: [`tiny_chain`].
pub fn tiny(kind: u32) -> Result<PathBuf, BuildError> {
    tiny_of(kind, 1_000_000)
}

/// The same, for ten times as long.
pub fn tiny_for_longer(kind: u32) -> Result<PathBuf, BuildError> {
    tiny_of(kind, 10_000_000)
}

fn tiny_of(kind: u32, rounds: u32) -> Result<PathBuf, BuildError> {
    let (define, rounds) = (format!("-DVARIANT={kind}"), format!("-DROUNDS={rounds}"));
    let flags = [
        "-nostdlib",
        "-nostartfiles",
        "-static",
        "-no-pie",
        "-fno-stack-protector",
        "-fno-toplevel-reorder",
        // "bulkhead-test-number", where breeder.c writes another one for each copy.
        "-Wl,--build-id=0x62756c6b686561642d746573742d6e756d626572",
        &define,
        &rounds,
    ];
    in_c(&format!("tiny-{kind}"), include_str!("../programs/tiny.c"), &flags)
}

/// The same, that ends as soon as it has begun.
pub fn ends_at_once() -> Result<PathBuf, BuildError> {
    tiny_of(0, 1)
}

/// Starts a program again and again; see `programs/spawner.c`.
pub fn spawner() -> Result<PathBuf, BuildError> {
    in_c("spawner", &format!("{PRELUDE}#line 1\n{}", include_str!("../programs/spawner.c")), &["-w"])
}

/// The functions of a small executable, the innermost first.
pub fn tiny_chain(kind: u32) -> Vec<String> {
    let own = ["leaf", "inner", "outer"].map(|part| format!("tiny_{kind}_{part}"));
    own.into_iter().chain(["main", "_start"].map(Into::into)).collect()
}

/// Makes and starts copies of small executables; see `programs/breeder.c`.
pub fn breeder() -> Result<PathBuf, BuildError> {
    in_c("breeder", &format!("{PRELUDE}#line 1\n{}", include_str!("../programs/breeder.c")), &["-w"])
}

/// What an ordinary process can do to whoever looks at it; see `programs/floods.c`.
pub fn floods() -> Result<PathBuf, BuildError> {
    in_c(
        "floods",
        &format!("{PRELUDE}#line 1\n{}", include_str!("../programs/floods.c")),
        &["-w", "-pthread"],
    )
}

fn in_cpp(name: &str, source: &str) -> Result<PathBuf, BuildError> {
    let flags = ["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls", "-pthread"];
    compile(name, Language::Cpp, source, &flags)
}

/// C++ that recurses through templates; see `programs/templates.cc`.
pub fn templates() -> Result<PathBuf, BuildError> {
    in_cpp("templates", include_str!("../programs/templates.cc"))
}

/// Threads of the C library and of C++; see `programs/thread_starts.cc`.
pub fn thread_starts() -> Result<PathBuf, BuildError> {
    in_cpp("thread-starts", include_str!("../programs/thread_starts.cc"))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn libraries_have_their_functions_at_different_places() {
        let addresses = [1, CHURN_LIBRARIES].map(|number| {
            let output = Command::new("nm").arg(churn_library(number).unwrap()).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let [leaf, entry] = [format!("lib_{number}_leaf"), "library_entry".into()].map(|name| {
                let line = text.lines().find(|line| line.ends_with(&name)).unwrap();
                line.split(' ').next().unwrap().to_owned()
            });
            [leaf, entry]
        });
        assert!(addresses[0].iter().zip(&addresses[1]).all(|(one, other)| one != other), "{addresses:?}");
    }

    #[test]
    fn the_breeder_changes_starts_and_deletes() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new(breeder().unwrap());
        command.arg(folder.path()).arg("5").args([tiny(1).unwrap(), tiny(2).unwrap()]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout, b"finished 5\n");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_others_compile() {
        for path in
            [churn_loader(), floods(), frameless_brief("unit-brief"), spawner(), templates(), thread_starts()]
        {
            assert!(path.unwrap().exists());
        }
    }
}
