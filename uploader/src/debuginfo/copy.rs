//! The copy that is sent: of which file it is made, and where it lies meanwhile.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufWriter, Seek as _, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use objects::{ElfFacts, IdKind, ObjectError, write_debug_copy};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::Candidate;
use crate::{
    private_file,
    worker::{JobError, Worker},
};

/// Largest copy: what a Parca server takes.
const MAX_COPY: u64 = 1_000_000_000;
/// How long a copy may take: of a GiB on a slow disk.
const COPY_LIMIT: Duration = Duration::from_mins(5);
/// A read that hangs cannot be ended; it is not waited for any longer.
const HUNG_LIMIT: Duration = Duration::from_mins(6);
/// Where packages put separate debug files.
const DEBUG_FILES: &str = "/usr/lib/debug";

/// Why there is no copy.
#[derive(Debug, Error)]
pub(super) enum CopyError {
    /// It has nothing that names are found by.
    #[error("it has nothing that names are found by")]
    Nothing,
    /// It would be too large.
    #[error("{0}")]
    TooLarge(ObjectError),
    /// It cannot be read.
    #[error("cannot read it: {0}")]
    Read(ObjectError),
    /// It was written to meanwhile.
    #[error("it changed while it was copied")]
    Changed,
    /// The copy cannot be written.
    #[error("cannot write the copy to {folder} (--temp-dir): {source}")]
    Write {
        /// Where.
        folder: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It took too long, or the parser failed.
    #[error(transparent)]
    Job(#[from] JobError),
}

impl CopyError {
    /// By what name it is counted.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            CopyError::Nothing => "nothing_to_send",
            CopyError::TooLarge(_) => "too_large",
            CopyError::Read(_) | CopyError::Job(_) => "unreadable",
            CopyError::Changed => "changed",
            CopyError::Write { .. } => "no_room",
        }
    }
}

/// A copy.
#[derive(Debug)]
pub(super) struct Copy {
    /// Its content. It has no name any more, and is gone when it is closed.
    pub(super) file: Arc<File>,
    /// Bytes.
    pub(super) size: u64,
    /// SHA-256 of the content, in hexadecimal.
    pub(super) hash: String,
}

/// Makes copies.
#[derive(Clone, Debug)]
pub struct DebugFiles {
    folder: PathBuf,
    worker: Worker,
}

impl DebugFiles {
    /// Copies lie in this folder (`--temp-dir`) while they are sent.
    pub fn new(folder: PathBuf) -> Self {
        DebugFiles { folder, worker: Worker::new(1) }
    }

    /// Copies the separate debug file of an executable, if this machine has it, else the executable.
    pub(super) async fn copy(&self, candidate: &Candidate) -> Result<Copy, CopyError> {
        let (folder, file) = (self.folder.clone(), Arc::clone(&candidate.file));
        let (facts, path) = (Arc::clone(&candidate.facts), Arc::clone(&candidate.path));
        let job = move || {
            let separate = if facts.contents.dwarf { None } else { separate_file(&facts, &path) };
            copy(separate.as_ref().unwrap_or(&file), &folder)
        };
        self.worker.run(HUNG_LIMIT, job).await?
    }
}

fn copy(file: &File, folder: &Path) -> Result<Copy, CopyError> {
    let write_error = |source| CopyError::Write { folder: folder.to_owned(), source };
    let before = state(file);
    let out = unnamed(folder).map_err(write_error)?;
    // No more than half of what is free: others need room too, the spool first of all.
    let room = rustix::fs::fstatvfs(&out).map_err(|error| write_error(error.into()))?;
    let room = room.f_bavail.saturating_mul(room.f_frsize) / 2;
    let limit = MAX_COPY.min(honest_size(file));
    let mut hashing = Hashing {
        out: BufWriter::with_capacity(1 << 20, out),
        hash: Sha256::new(),
        until: Instant::now() + COPY_LIMIT,
    };
    let size = write_debug_copy(file, &mut hashing, limit.min(room)).map_err(|error| match error {
        ObjectError::TooLarge { size, .. } if size <= limit => write_error(io::ErrorKind::StorageFull.into()),
        ObjectError::Missing(_) | ObjectError::NotElf => CopyError::Nothing,
        ObjectError::TooLarge { .. } => CopyError::TooLarge(error),
        ObjectError::Io { what: "the copy", source, .. } => write_error(source),
        error => CopyError::Read(error),
    })?;
    let Hashing { out: buffered, hash, .. } = hashing;
    let mut out = buffered.into_inner().map_err(|error| write_error(error.into_error()))?;
    let hash = hexadecimal(&hash.finalize());
    if state(file) != before {
        return Err(CopyError::Changed);
    }
    out.rewind().map_err(write_error)?;
    Ok(Copy { file: Arc::new(out), size, hash })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// How large a copy of an honest file can be: no larger than the file, but for what aligning it takes, and not many times what it has
/// on the disk. A forged one is a hole, or has the same bytes in a thousand sections.
fn honest_size(file: &File) -> u64 {
    let Ok(metadata) = file.metadata() else { return 0 };
    // A file system that compresses keeps fewer.
    let on_disk = metadata.blocks().saturating_mul(512).saturating_mul(16);
    metadata.len().min(on_disk).saturating_add(1 << 20)
}

/// What changes when somebody writes to a file.
fn state(file: &File) -> Option<(u64, i64, i64, i64, i64)> {
    let metadata = file.metadata().ok()?;
    let (modified, changed) = (metadata.mtime_nsec(), metadata.ctime_nsec());
    Some((metadata.len(), metadata.mtime(), modified, metadata.ctime(), changed))
}

/// A file that nobody else can open, and that is gone when it is closed, however this process ends.
fn unnamed(folder: &Path) -> io::Result<File> {
    let path = folder.join(format!("debuginfo-{}.tmp", std::process::id()));
    let file = private_file::create(&path)?;
    fs::remove_file(&path)?;
    Ok(file)
}

struct Hashing<W> {
    out: W,
    hash: Sha256,
    /// Nothing is written any more after that.
    until: Instant,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if Instant::now() > self.until {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let length = self.out.write(bytes)?;
        self.hash.update(&bytes[..length]);
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The separate debug file of an executable: by its build id, or by its link, if what lies there is of the same build and has DWARF.
/// (GDB's manual, "Debugging Information in Separate Files".)
fn separate_file(facts: &ElfFacts, path: &str) -> Option<File> {
    let mut places = Vec::new();
    if facts.id.kind == IdKind::Gnu {
        let id = facts.id.to_string();
        if let Some((first, rest)) = id.split_at_checked(2) {
            places.push(Path::new(DEBUG_FILES).join(format!(".build-id/{first}/{rest}.debug")));
        }
    }
    if let Some(link) = &facts.contents.debug_link {
        let folder = Path::new(path).parent().and_then(|folder| folder.strip_prefix("/").ok());
        // The path is what a process says; its name is looked up in one folder alone, and leads up nowhere.
        let is_plain = |folder: &&Path| !folder.as_os_str().as_bytes().windows(2).any(|two| two == b"..");
        if let Some(folder) = folder.filter(is_plain) {
            places.push(Path::new(DEBUG_FILES).join(folder).join(link));
        }
    }
    places.into_iter().find_map(|place| {
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(place).ok()?;
        let found =
            file.metadata().is_ok_and(|metadata| metadata.is_file()).then(|| ElfFacts::read(&file))?.ok()?;
        (found.contents.dwarf && found.id == facts.id).then_some(file)
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn a_copy_has_no_name_and_its_hash() {
        let folder = tempfile::tempdir().unwrap();
        let own = File::open(std::env::current_exe().unwrap()).unwrap();
        let made = copy(&own, folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut bytes = Vec::new();
        let _ = (&*made.file).read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len() as u64, made.size);
        assert_eq!(made.hash, hexadecimal(&Sha256::digest(&bytes)));
        assert!(ElfFacts::read(&bytes).unwrap().contents.dwarf);
    }

    #[test]
    fn what_cannot_be_copied_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let script = folder.path().join("script");
        fs::write(&script, "#!/bin/sh\n").unwrap();
        assert!(matches!(copy(&File::open(&script).unwrap(), folder.path()), Err(CopyError::Nothing)));
        let own = File::open(std::env::current_exe().unwrap()).unwrap();
        let error = copy(&own, &folder.path().join("none")).unwrap_err();
        assert!(
            matches!(&error, CopyError::Write { .. }) && error.to_string().contains("--temp-dir"),
            "{error}"
        );
    }
}
