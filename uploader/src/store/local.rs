//! Profiles as files: `DIR/TARGET/TIME.pb.gz`, readable by their owner alone, written whole or not at all, and in all no
//! larger than a bound: the oldest go first.

use std::{
    fs,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use thiserror::Error;

use crate::{private_file, targets::Labels};

/// Bytes that a file costs beside its content: the file system's own.
const FILE_COST: u64 = 4096;
/// Longest name of a folder, in bytes; file systems have 255.
const MAX_NAME: usize = 150;
/// When the bound is reached, so much is freed at once (one part in 16), so that folders are not read for each profile.
const SLACK: u64 = 16;
/// What is being written; left over only when the machine stopped.
const UNFINISHED: &str = ".tmp";

/// What went wrong, on which path.
#[derive(Debug, Error)]
#[error(
    "cannot {action} {path} (--local-store-directory): {source}; is it a folder that this user may write to, with room in it?"
)]
pub struct StoreError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// The folder.
#[derive(Debug)]
pub struct LocalStore {
    directory: PathBuf,
    limit: u64,
    /// Bytes that are in use; counted anew each time something is removed.
    used: Mutex<u64>,
}

impl LocalStore {
    /// Opens the folder, making it if it is not there, and tries that it can be written to.
    pub fn open(directory: &Path, limit: u64) -> Result<Self, StoreError> {
        make_folder(directory)?;
        let store = LocalStore { directory: directory.to_owned(), limit, used: Mutex::new(0) };
        let trial = directory.join(format!("trial{UNFINISHED}"));
        write_file(&trial, b"")?;
        fs::remove_file(&trial).map_err(|source| StoreError { action: "remove", path: trial, source })?;
        let used = store.shrink_to(limit)?;
        *store.used.lock().unwrap_or_else(PoisonError::into_inner) = used;
        Ok(store)
    }

    /// Writes a profile. Blocks.
    pub fn write(&self, labels: &Labels, time_nanos: i64, pprof: &[u8]) -> Result<(), StoreError> {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = pprof.len() as u64 + FILE_COST;
        if *used + cost > self.limit {
            *used = self.shrink_to((self.limit - self.limit / SLACK).saturating_sub(cost))?;
        }
        let folder = self.directory.join(folder_name(labels));
        make_folder(&folder)?;
        let path = folder.join(format!("{}.pb.gz", time_name(time_nanos)));
        let unfinished = path.with_extension(format!("gz{UNFINISHED}"));
        write_file(&unfinished, pprof)?;
        fs::rename(&unfinished, &path).map_err(|source| StoreError { action: "write", path, source })?;
        *used += cost;
        Ok(())
    }

    /// Removes the oldest profiles until no more than `goal` bytes are left, and says how many are.
    fn shrink_to(&self, goal: u64) -> Result<u64, StoreError> {
        let error = |path: &Path, source| StoreError { action: "read", path: path.to_owned(), source };
        // By the time in their names: what the clock of the file system says may be another matter.
        let mut files: Vec<(Vec<u8>, PathBuf, u64)> = Vec::new();
        let mut used = 0;
        let folders = fs::read_dir(&self.directory).map_err(|source| error(&self.directory, source))?;
        for folder in folders.flatten() {
            if !folder.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            for file in fs::read_dir(folder.path()).into_iter().flatten().flatten() {
                let (Ok(metadata), name) = (file.metadata(), file.file_name()) else { continue };
                let name = name.into_encoded_bytes();
                // Nothing is touched that this store does not write.
                if !metadata.is_file() {
                    continue;
                }
                if name.ends_with(UNFINISHED.as_bytes()) {
                    let _ = fs::remove_file(file.path());
                } else if name.ends_with(b".pb.gz") {
                    used += metadata.len() + FILE_COST;
                    files.push((name, file.path(), metadata.len() + FILE_COST));
                }
            }
        }
        files.sort();
        for (_, path, size) in files {
            if used <= goal {
                break;
            }
            fs::remove_file(&path).map_err(|source| StoreError {
                action: "remove",
                path: path.clone(),
                source,
            })?;
            used -= size;
            // Succeeds for the last file of a folder alone.
            if let Some(folder) = path.parent() {
                let _ = fs::remove_dir(folder);
            }
        }
        Ok(used)
    }
}

fn make_folder(path: &Path) -> Result<(), StoreError> {
    private_file::make_folder(path).map_err(|source| StoreError {
        action: "make",
        path: path.to_owned(),
        source,
    })
}

fn write_file(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    private_file::create(path).and_then(|mut file| file.write_all(bytes)).map_err(|source| StoreError {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

/// A name for a target's folder: its labels but the node (which is the same for all), made safe, with a hash that
/// keeps targets apart whose safe names are equal.
fn folder_name(labels: &Labels) -> String {
    let mut name = String::new();
    for label in ["comm", "containerid", "systemd_unit"] {
        let value = labels.get(label);
        if value.is_empty() {
            continue;
        }
        if !name.is_empty() {
            name.push('_');
        }
        let safe = |c: char| if c.is_ascii_alphanumeric() || "-_.@".contains(c) { c } else { '_' };
        name.extend(value.chars().map(safe));
    }
    name.truncate(MAX_NAME);
    // Neither hidden nor a way up.
    let name = name.trim_start_matches('.');
    format!("{}_{:016x}", if name.is_empty() { "target" } else { name }, hash(labels))
}

/// FNV-1a, 64 bits (<http://www.isthe.com/chongo/tech/comp/fnv/>): the same on every machine and in every release.
fn hash(labels: &Labels) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    for (name, value) in &labels.0 {
        for byte in name.bytes().chain([0]).chain(value.bytes()).chain([0]) {
            add(byte);
        }
    }
    hash
}

/// The time as a name whose order is that of time: `20261125T045100.123Z`.
fn time_name(time_nanos: i64) -> String {
    crate::time::format(time_nanos, "", "")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::targets::TargetMaker;

    const SECOND: i64 = 1_000_000_000;

    fn labels(comm: &str) -> Labels {
        (*TargetMaker::new("n", []).labels(comm, None)).clone()
    }

    fn files(directory: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        for folder in fs::read_dir(directory).unwrap() {
            files.extend(fs::read_dir(folder.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
        }
        files.sort();
        files
    }

    #[test]
    fn profiles_are_written_whole_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        let store = LocalStore::open(&path, 1 << 20).unwrap();
        store.write(&labels("x"), 1_764_046_260 * SECOND + 5_000_000, b"profile").unwrap();
        let files = files(&path);
        assert_eq!(files.len(), 1);
        assert!(files[0].to_str().unwrap().ends_with("/20251125T045100.005Z.pb.gz"), "{files:?}");
        assert_eq!(fs::read(&files[0]).unwrap(), b"profile");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&files[0]), mode(files[0].parent().unwrap()), mode(&path)), (0o600, 0o700, 0o700));
    }

    #[test]
    fn names_of_targets_cannot_leave_the_folder() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::open(directory.path(), 1 << 20).unwrap();
        let hostile =
            ["../../x", "..", ".", "/etc/passwd", "a\nb", "a/b", "a_b", "", "\u{202e}x", &"long".repeat(100)];
        for comm in hostile {
            store.write(&labels(comm), SECOND, b"x").unwrap();
        }
        let files = files(directory.path());
        assert_eq!(files.len(), hostile.len(), "each in a folder of its own");
        for file in files {
            let folder = file.parent().unwrap();
            assert_eq!(folder.parent().unwrap(), directory.path());
            let name = folder.file_name().unwrap().to_str().unwrap();
            assert!(name.is_ascii() && name.len() < 200 && !name.starts_with('.'), "{name}");
        }
        assert!(folder_name(&labels("nginx")).starts_with("nginx_"));
    }

    #[test]
    fn the_oldest_go_when_there_is_no_room() {
        let directory = tempfile::tempdir().unwrap();
        let room_for = 8;
        let limit = room_for * (1000 + FILE_COST);
        let store = LocalStore::open(directory.path(), limit).unwrap();
        for time in 0..30 {
            let comm = if time == 0 { "first" } else { "x" };
            store.write(&labels(comm), time * SECOND, &[0; 1000]).unwrap();
            assert!(files(directory.path()).len() as u64 <= room_for);
        }
        let left = files(directory.path());
        assert!(left.len() >= 6, "{left:?}");
        assert!(left.last().unwrap().to_str().unwrap().contains("19700101T000029"));
        assert!(
            !fs::read_dir(directory.path())
                .unwrap()
                .any(|folder| { folder.unwrap().file_name().to_str().unwrap().starts_with("first") }),
            "an empty folder goes too"
        );

        fs::write(left[0].with_extension("gz.tmp"), "left over").unwrap();
        fs::write(directory.path().join("README"), "not ours").unwrap();
        let store = LocalStore::open(directory.path(), 2 * (1000 + FILE_COST)).unwrap();
        store.write(&labels("x"), 31 * SECOND, &[0; 1000]).unwrap();
        let names: Vec<_> =
            fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(names.iter().any(|name| name == "README"));
        fs::remove_file(directory.path().join("README")).unwrap();
        assert!(files(directory.path()).len() <= 2);
        assert!(files(directory.path()).iter().all(|file| file.extension().unwrap() == "gz"));
    }

    #[test]
    fn a_link_in_the_way_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let store_path = directory.path().join("store");
        let store = LocalStore::open(&store_path, 1 << 20).unwrap();
        let victim = directory.path().join("victim");
        fs::write(&victim, "precious").unwrap();
        let folder = store_path.join(folder_name(&labels("x")));
        fs::create_dir(&folder).unwrap();
        symlink(&victim, folder.join("19700101T000001.000Z.pb.gz.tmp")).unwrap();
        store.write(&labels("x"), SECOND, b"profile").unwrap();
        assert_eq!(fs::read(&victim).unwrap(), b"precious");
    }

    #[test]
    fn a_folder_that_is_none_is_an_error_of_one_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for path in [file.path().to_owned(), file.path().join("below"), "/proc/nowhere".into()] {
            let message = LocalStore::open(&path, 1).unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()) && !message.contains('\n'), "{message}");
        }
    }
}
