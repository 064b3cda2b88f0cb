//! Compiles a source once: what was made is kept in a folder named after a hash of all it was made of.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock},
};

use thiserror::Error;

/// Which compiler reads a source.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Language {
    /// gcc
    C,
    /// g++
    Cpp,
    /// go build
    Go,
    /// go build, with Debian 12's release
    Go119,
    /// go build, with a release that the go command fetches
    Go127,
    /// rustc
    Rust,
}

/// Why a program could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// A file or folder could not be made.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The compiler is not there.
    #[error("cannot run {compiler} ({source}): script/setup test installs it")]
    NoCompiler {
        /// Its command.
        compiler: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The compiler refused the source.
    #[error("{command} failed:\n{stderr}")]
    Compiler {
        /// The command line.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// There is no program of this name.
    #[error("there is no program called {0}")]
    NoSuchProgram(String),
}

impl Language {
    fn compiler(self) -> &'static str {
        match self {
            Language::C => "gcc",
            Language::Cpp => "g++",
            Language::Go | Language::Go127 => "go",
            Language::Go119 => "/usr/lib/go-1.19/bin/go",
            Language::Rust => "rustc",
        }
    }

    /// Releases of Go whose function tables and assembly differ: what `go` is, one before the frame pointer led over
    /// changes of stack, and a new one where the go command can fetch it.
    pub fn releases_of_go() -> Vec<Language> {
        let newest = Language::Go127.command().arg("version").output();
        let has_newest = newest.is_ok_and(|output| output.status.success());
        let newest = has_newest.then_some(Language::Go127);
        [Language::Go, Language::Go119].into_iter().chain(newest).collect()
    }

    fn command(self) -> Command {
        let mut command = Command::new(self.compiler());
        // Go outside of any module.
        command.env("GO111MODULE", "off").env("GOFLAGS", "");
        if self == Language::Go127 {
            command.env("GOTOOLCHAIN", "go1.27.3");
        }
        command
    }

    fn extension(self) -> &'static str {
        match self {
            Language::C => "c",
            Language::Cpp => "cc",
            Language::Go | Language::Go119 | Language::Go127 => "go",
            Language::Rust => "rs",
        }
    }
}

/// The folder where built programs are kept.
fn cache() -> PathBuf {
    let target = env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from);
    target.join("workloads")
}

/// Compiles `source` to an executable called `name` and gives its path. The same call again gives the same file.
pub fn compile(name: &str, language: Language, source: &str, flags: &[&str]) -> Result<PathBuf, BuildError> {
    // One at a time: two tests that want the same program must not build it twice.
    static BUILDING: Mutex<()> = Mutex::new(());
    let _guard = BUILDING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);

    let mut hasher = DefaultHasher::new();
    (language, source, flags).hash(&mut hasher);
    let folder = cache().join(format!("{name}-{:016x}", hasher.finish()));
    let program = folder.join(name);
    if program.exists() {
        return Ok(program);
    }
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |source| BuildError::Io { path, source }
    };
    fs::create_dir_all(&folder).map_err(io_error(&folder))?;
    let source_file = folder.join(format!("{name}.{}", language.extension()));
    fs::write(&source_file, source).map_err(io_error(&source_file))?;
    let unfinished = folder.join(format!(".{name}.{}", std::process::id()));
    let mut command = language.command();
    match language {
        Language::C | Language::Cpp => {
            command.arg("-o").arg(&unfinished).arg(&source_file).args(flags);
        }
        Language::Go | Language::Go119 | Language::Go127 => {
            command.arg("build").args(flags).arg("-o").arg(&unfinished).arg(&source_file);
        }
        Language::Rust => {
            command.args(["--edition=2024", "--crate-type=bin"]).args(flags);
            command.arg("-o").arg(&unfinished).arg(&source_file);
        }
    }
    let output = command
        .output()
        .map_err(|source| BuildError::NoCompiler { compiler: language.compiler(), source })?;
    if !output.status.success() {
        return Err(BuildError::Compiler {
            command: format!("{command:?}"),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        });
    }
    fs::rename(&unfinished, &program).map_err(io_error(&program))?;
    Ok(program)
}

/// Flags that have gcc link with lld, the copy that comes with Rust.
pub fn with_lld() -> Result<[String; 2], BuildError> {
    static SYSROOT: OnceLock<String> = OnceLock::new();
    let sysroot = if let Some(known) = SYSROOT.get() {
        known
    } else {
        let output = Command::new("rustc").args(["--print", "sysroot"]).output();
        let sysroot = output.map_err(|source| BuildError::NoCompiler { compiler: "rustc", source })?.stdout;
        SYSROOT.get_or_init(|| String::from_utf8_lossy(&sysroot).trim().to_owned())
    };
    let folder = format!("{sysroot}/lib/rustlib/x86_64-unknown-linux-gnu/bin/gcc-ld");
    Ok(["-fuse-ld=lld".into(), format!("-B{folder}")])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_once_is_kept_and_what_differs_is_not_mixed_up() {
        let source = "int main(void) { return VALUE; }";
        let three = compile("unit-test", Language::C, source, &["-DVALUE=3"]).unwrap();
        let four = compile("unit-test", Language::C, source, &["-DVALUE=4"]).unwrap();
        assert_ne!(three, four);
        assert_eq!(Command::new(&three).status().unwrap().code(), Some(3));
        assert_eq!(Command::new(&four).status().unwrap().code(), Some(4));
        let built = fs::metadata(&three).unwrap().modified().unwrap();
        assert_eq!(compile("unit-test", Language::C, source, &["-DVALUE=3"]).unwrap(), three);
        assert_eq!(fs::metadata(&three).unwrap().modified().unwrap(), built);
    }

    #[test]
    fn a_compiler_that_refuses_is_quoted() {
        let error = compile("unit-test-broken", Language::C, "int main(void) { return missing; }", &[]);
        assert!(error.unwrap_err().to_string().contains("missing"));
    }
}
