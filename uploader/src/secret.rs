//! A secret that lies in a file: a token. It is read again when the file changes, so that a token can be replaced while the program
//! runs, also by a link that leads elsewhere from one moment to the next, as Kubernetes replaces the files of a volume.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use thiserror::Error;
use tracing::{info, warn};

use crate::stamp::Stamp;

/// Longest secret, in bytes.
const MAX_LENGTH: u64 = 16 * 1024;

/// Why there is no secret. Never says what the file has in it.
#[derive(Debug, Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("cannot read {path} ({flag}): {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file has something else in it.
    #[error(
        "{path} ({flag}) has no token in it: one line of {shortest} to {MAX_LENGTH} printable ASCII characters, such as `openssl rand -hex 32` prints"
    )]
    Malformed {
        /// Which.
        path: PathBuf,
        /// The flag that names it.
        flag: &'static str,
        /// Fewest characters that it must have.
        shortest: usize,
    },
}

/// A secret. It can be shown to nobody by mistake.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// One line of printable ASCII characters, so many at least; an end of line behind it is no part of it.
    pub fn parse(text: &str, shortest: usize) -> Option<Self> {
        let secret = text.trim_end_matches(['\r', '\n']);
        let is_long_enough = secret.len() >= shortest.max(1) && secret.len() as u64 <= MAX_LENGTH;
        (is_long_enough && secret.bytes().all(|byte| byte.is_ascii_graphic()))
            .then(|| Secret(secret.to_owned()))
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(not shown)")
    }
}

#[derive(Debug)]
struct Current {
    secret: Arc<Secret>,
    /// What the file was like when it was read last; `None`: it could not be looked at.
    stamp: Option<Stamp>,
    /// A warning was given that it cannot be read.
    warned: bool,
}

/// The file, and what was in it last.
#[derive(Debug)]
pub struct SecretFile {
    path: PathBuf,
    flag: &'static str,
    shortest: usize,
    current: Mutex<Current>,
}

impl SecretFile {
    /// Reads the file that a flag names.
    pub fn open(path: &Path, flag: &'static str, shortest: usize) -> Result<Self, SecretError> {
        let (secret, stamp) = read(path, flag, shortest)?;
        let current = Mutex::new(Current { secret: Arc::new(secret), stamp: Some(stamp), warned: false });
        Ok(SecretFile { path: path.to_owned(), flag, shortest, current })
    }

    /// What is in it now. If that cannot be read, or is no secret, it is what was there before, and a warning is given.
    pub fn current(&self) -> Arc<Secret> {
        let stamp = fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp != current.stamp {
            match read(&self.path, self.flag, self.shortest) {
                Ok((secret, stamp)) => {
                    if secret != *current.secret {
                        info!("{} ({}) has another token in it now", self.path.display(), self.flag);
                        current.secret = Arc::new(secret);
                    }
                    (current.stamp, current.warned) = (Some(stamp), false);
                }
                Err(error) => {
                    if !std::mem::replace(&mut current.warned, true) {
                        warn!("{error}; the one that it had before is used");
                    }
                    // What could not be read may be readable the next time, and looks the same then.
                    if matches!(error, SecretError::Malformed { .. }) {
                        current.stamp = stamp;
                    }
                }
            }
        }
        Arc::clone(&current.secret)
    }
}

fn read(path: &Path, flag: &'static str, shortest: usize) -> Result<(Secret, Stamp), SecretError> {
    let error = |source| SecretError::Read { path: path.to_owned(), flag, source };
    let file = File::open(path).map_err(error)?;
    let stamp = Stamp::of(&file.metadata().map_err(error)?);
    let mut bytes = Vec::new();
    file.take(MAX_LENGTH + 2).read_to_end(&mut bytes).map_err(error)?;
    let text = String::from_utf8(bytes).unwrap_or_default();
    let secret = Secret::parse(&text, shortest);
    Ok((secret.ok_or_else(|| SecretError::Malformed { path: path.to_owned(), flag, shortest })?, stamp))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// With a character in it that neither a path nor a number has: what a file was like is shown next to it.
    const TOKEN: &str = "#123456789abcde#";

    #[test]
    fn a_file_has_one_line_and_no_error_shows_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        for end in ["", "\n", "\r\n"] {
            fs::write(&path, format!("{TOKEN}{end}")).unwrap();
            let file = SecretFile::open(&path, "--x", 16).unwrap();
            assert_eq!(file.current().reveal(), TOKEN);
            assert!(!format!("{file:?}").contains('#'), "{file:?}");
        }
        let long = "x".repeat(20_000);
        for text in ["", "short", "0123456789abcdef\nsecond", "0123456789 abcdef", "0123456789abcdefé", &long]
        {
            fs::write(&path, text).unwrap();
            let message = SecretFile::open(&path, "--x", 16).unwrap_err().to_string();
            assert!(message.contains("--x") && (text.is_empty() || !message.contains(text)), "{message}");
        }
        let message = SecretFile::open(&folder.path().join("none"), "--x", 1).unwrap_err().to_string();
        assert!(message.contains("none") && message.contains("No such file"), "{message}");
    }

    #[test]
    fn it_is_read_again_when_it_changes_and_kept_when_it_breaks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        fs::write(&path, "first").unwrap();
        let file = SecretFile::open(&path, "--x", 1).unwrap();
        // Another file of that name, of the same length.
        fs::write(folder.path().join("next"), "other").unwrap();
        fs::rename(folder.path().join("next"), &path).unwrap();
        assert_eq!(file.current().reveal(), "other");
        fs::write(&path, "").unwrap();
        assert_eq!(file.current().reveal(), "other");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.current().reveal(), "other");
        fs::write(&path, "third\n").unwrap();
        assert_eq!(file.current().reveal(), "third");
    }

    #[test]
    fn folders_are_exchanged_by_a_link_as_kubernetes_does() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for (name, token) in [("one", "first"), ("two", "second")] {
            fs::create_dir(at(name)).unwrap();
            fs::write(at(name).join("token"), token).unwrap();
        }
        symlink("one", at("..data")).unwrap();
        symlink("..data/token", at("token")).unwrap();
        let file = SecretFile::open(&at("token"), "--x", 1).unwrap();
        assert_eq!(file.current().reveal(), "first");
        symlink("two", at("..next")).unwrap();
        fs::rename(at("..next"), at("..data")).unwrap();
        assert_eq!(file.current().reveal(), "second");
    }
}
