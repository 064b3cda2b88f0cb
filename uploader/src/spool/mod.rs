//! Profiles that wait to be sent, as files in a folder: what was written outlives the process, and the machine. An entry is written
//! whole or not at all (written aside, brought to the disk, renamed), and is there until somebody says that it has arrived. The
//! oldest go when there is no room, in the folder's bound or on the disk, and are counted.
//!
//! A file for each entry, and no database: a damaged one is lost alone, and the room of each comes back at once.

mod entry;

use std::{
    collections::VecDeque,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use entry::Entry;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};
use thiserror::Error;
use tokio::sync::Notify;
use tracing::warn;

use crate::private_file;

/// What is being written; left over only when the process ended meanwhile.
const UNFINISHED: &str = ".tmp";
/// What an entry's name ends with that turned out to be damaged, and one that the store refused for good.
const ASIDE: [&str; 2] = [".damaged", ".refused"];
/// Errors that say nothing of a file: this process may not read it now, or has no room for it.
const PASSING: [Errno; 6] =
    [Errno::ACCESS, Errno::PERM, Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::STALE];
/// On a full disk, so many times what a new entry costs is given up for it at most.
const MOST_FREED: u64 = 8;
/// One part in so many of the bound is for what was set aside.
const ASIDE_SHARE: u64 = 8;

/// What went wrong, on which path.
#[derive(Debug, Error)]
pub enum SpoolError {
    /// The file system said no.
    #[error(
        "cannot {action} {path} (--spool-directory): {source}; is it a folder that this user may write to, with room in it?"
    )]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another process has this spool.
    #[error("{0} (--spool-directory) is in use by another bulkhead-uploader")]
    InUse(PathBuf),
    /// An entry is larger than all that the spool may hold.
    #[error("profiles of {size} bytes do not fit into a spool of {limit} (--spool-size)")]
    TooLarge {
        /// Bytes of the entry.
        size: u64,
        /// The spool's bound.
        limit: u64,
    },
}

/// What has happened to entries, since the start.
#[derive(Clone, Copy, Default, Debug)]
pub struct SpoolCounts {
    /// Profiles that were written.
    pub written: u64,
    /// Profiles that could not be written, or were removed for want of room before they were sent.
    pub dropped: u64,
    /// Bytes of these.
    pub dropped_bytes: u64,
    /// Profiles in entries that turned out to be damaged.
    pub damaged: u64,
}

/// What is in the spool now.
#[derive(Clone, Copy, Default, Debug)]
pub struct SpoolContent {
    /// Entries.
    pub entries: usize,
    /// Profiles in them.
    pub profiles: u64,
    /// Bytes on the disk, with what was set aside.
    pub bytes: u64,
    /// How long ago the oldest was made.
    pub oldest: Option<Duration>,
}

#[derive(Debug)]
struct Inner {
    /// The oldest first.
    entries: VecDeque<Entry>,
    /// How many of them, from the oldest on, are being sent: these are not removed.
    taken: usize,
    /// What was set aside, the oldest first, with its size.
    aside: VecDeque<(String, u64)>,
    /// What all of it costs.
    bytes: u64,
    counts: SpoolCounts,
}

/// The folder.
#[derive(Debug)]
pub struct Spool {
    directory: PathBuf,
    limit: u64,
    /// Locked for as long as this is open; also what is brought to the disk when names change.
    folder: File,
    /// What is there. Never locked while a file is touched: a disk that is slow, or hangs, holds up nobody who only wants to know.
    inner: Mutex<Inner>,
    /// Number of the last file. Locked for as long as it takes to write one: one at a time.
    last: Mutex<u64>,
    /// Woken when there is an entry more.
    pub arrived: Notify,
}

/// Entries that are about to be sent.
#[derive(Debug, Default)]
pub struct Taken {
    /// The payload of each, the oldest first.
    pub payloads: Vec<Vec<u8>>,
    /// How many entries they were.
    entries: usize,
}

impl Spool {
    /// Opens the folder, making it if it is not there, and finds what was left in it.
    pub fn open(directory: &Path, limit: u64) -> Result<Self, SpoolError> {
        let failed = |action, source| SpoolError::File { action, path: directory.to_owned(), source };
        private_file::make_folder(directory).map_err(|source| failed("make", source))?;
        let folder = File::open(directory).map_err(|source| failed("open", source))?;
        flock(&folder, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => SpoolError::InUse(directory.to_owned()),
            error => failed("lock", error.into()),
        })?;
        let mut inner = Inner {
            entries: VecDeque::new(),
            taken: 0,
            aside: VecDeque::new(),
            bytes: 0,
            counts: SpoolCounts::default(),
        };
        let last = inner.find(directory).map_err(|source| failed("read", source))?;
        let spool = Spool {
            directory: directory.to_owned(),
            limit,
            folder,
            inner: Mutex::new(inner),
            last: Mutex::new(last),
            arrived: Notify::new(),
        };
        // Whether it can be written to shows now, and not when there is something to lose.
        let trial = directory.join(format!("trial{UNFINISHED}"));
        match Self::write_file(&trial, &[b""]) {
            Ok(()) => fs::remove_file(&trial).map_err(|source| failed("remove from", source))?,
            // What waits is sent, and there is room again.
            Err(error) if error.is_full() => warn!("{error}"),
            Err(error) => return Err(error),
        }
        spool.make_room(0);
        Ok(spool)
    }

    /// Writes an entry, and returns when it is on the disk. Blocks.
    pub fn put(&self, payload: &[u8], profiles: u64) -> Result<(), SpoolError> {
        let result = self.write_entry(payload, profiles);
        let mut inner = self.lock();
        match &result {
            Ok(()) => inner.counts.written += profiles,
            Err(_) => inner.counts.count_dropped(profiles, payload.len() as u64),
        }
        drop(inner);
        self.arrived.notify_one();
        result
    }

    fn write_entry(&self, payload: &[u8], profiles: u64) -> Result<(), SpoolError> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = Entry::after(*last, profiles, payload.len());
        if entry.cost() > self.limit {
            return Err(SpoolError::TooLarge { size: entry.cost(), limit: self.limit });
        }
        self.make_room(entry.cost());
        let head = entry::head(payload);
        let before = self.lock().bytes;
        let still = |inner: &Inner| before.saturating_sub(inner.bytes) < entry.cost() * MOST_FREED;
        loop {
            match self.write_whole(&entry.name(), &[&head, payload]) {
                Ok(()) => break,
                // The disk is full: of what is here, the newest is worth the most. But not all the others, if somebody else takes
                // whatever becomes free.
                Err(error) if error.is_full() && self.remove_oldest_if(still) => {}
                Err(error) => return Err(error),
            }
        }
        *last = entry.number;
        let mut inner = self.lock();
        inner.bytes += entry.cost();
        inner.entries.push_back(entry);
        Ok(())
    }

    /// The oldest entries, of so many bytes together or one; `None`: there is none that can be read. They stay until [`Spool::remove`]
    /// is called; nobody else may call this before. One that is damaged is set aside. Blocks.
    pub fn take(&self, most_bytes: u64) -> Option<Taken> {
        let mut taken = Taken { payloads: Vec::new(), entries: 0 };
        self.take_more(&mut taken, most_bytes).then_some(taken)
    }

    /// Those that follow on what was taken. `false`: there is none. Blocks.
    pub fn take_more(&self, taken: &mut Taken, most_bytes: u64) -> bool {
        let before = taken.entries;
        let mut bytes = 0;
        loop {
            let entry = {
                let mut inner = self.lock();
                let Some(entry) = inner.entries.get(taken.entries).copied() else { break };
                if taken.entries > before && bytes + entry.size > most_bytes {
                    break;
                }
                inner.taken = taken.entries + 1;
                entry
            };
            let path = self.directory.join(entry.name());
            match fs::read(&path) {
                Ok(file) => match entry::payload(&file) {
                    Some(payload) => {
                        bytes += entry.size;
                        taken.payloads.push(payload.to_vec());
                        taken.entries += 1;
                    }
                    None => self.set_damaged_aside(taken.entries, "it is not what was written"),
                },
                // No fault of the entry's: it is tried again.
                Err(error)
                    if PASSING.map(|errno| Some(errno.raw_os_error())).contains(&error.raw_os_error()) =>
                {
                    warn!("cannot read {} (--spool-directory): {error}; it is tried again", path.display());
                    break;
                }
                Err(error) => self.set_damaged_aside(taken.entries, &error.to_string()),
            }
        }
        self.lock().taken = taken.entries;
        taken.entries > before
    }

    /// Removes entries that have arrived, or that nobody will ever take. Blocks.
    pub fn remove(&self, taken: &Taken) {
        let gone: Vec<Entry> = {
            let mut inner = self.lock();
            inner.taken = 0;
            let count = taken.entries.min(inner.entries.len());
            let gone: Vec<Entry> = inner.entries.drain(..count).collect();
            inner.bytes = inner.bytes.saturating_sub(gone.iter().map(|entry| entry.cost()).sum());
            gone
        };
        for entry in gone {
            self.remove_file(&entry.name());
        }
    }

    /// Keeps what the store refuses for good, for whoever wants to look at it, as long as there is room. Blocks.
    pub fn keep_refused(&self, payload: &[u8]) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let number = Entry::after(*last, 0, 0).number;
        let name = format!("{number:020}{}", ASIDE[1]);
        if self.write_whole(&name, &[payload]).is_ok() {
            *last = number;
            self.lock().put_aside(name, payload.len() as u64);
            self.make_room(0);
        }
    }

    /// Profiles (or entries, where nobody can tell) turned out to be nothing that can be sent.
    pub fn count_damaged(&self, count: u64) {
        self.lock().counts.damaged += count;
    }

    /// What is in it.
    pub fn content(&self) -> SpoolContent {
        let inner = self.lock();
        SpoolContent {
            entries: inner.entries.len(),
            profiles: inner.entries.iter().map(|entry| entry.profiles).sum(),
            bytes: inner.bytes,
            oldest: inner.entries.front().map(|entry| entry.age()),
        }
    }

    /// What has happened.
    pub fn counts(&self) -> SpoolCounts {
        self.lock().counts
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_damaged_aside(&self, index: usize, reason: &str) {
        let removed = {
            let mut inner = self.lock();
            let removed = inner.entries.remove(index);
            if let Some(entry) = removed {
                inner.bytes = inner.bytes.saturating_sub(entry.cost());
                inner.counts.damaged += entry.profiles;
            }
            removed
        };
        let Some(entry) = removed else { return };
        let path = self.directory.join(entry.name());
        warn!("{} profiles are lost: {} is set aside: {reason}", entry.profiles, path.display());
        let aside = format!("{}{}", entry.name(), ASIDE[0]);
        if fs::rename(path, self.directory.join(&aside)).is_ok() {
            self.lock().put_aside(aside, entry.size);
            self.make_room(0);
        }
    }

    /// Removes what there is no room for beside `more` bytes.
    fn make_room(&self, more: u64) {
        while self.remove_oldest_if(|inner| inner.aside_bytes() > self.limit / ASIDE_SHARE) {}
        while self.remove_oldest_if(|inner| inner.bytes.saturating_add(more) > self.limit) {}
    }

    /// Removes what is worth the least, if that is so: what was set aside, then the oldest that is not being sent. `false`: it is not so,
    /// or there is nothing.
    fn remove_oldest_if(&self, is_so: impl Fn(&Inner) -> bool) -> bool {
        let name = {
            let mut inner = self.lock();
            if !is_so(&inner) {
                return false;
            }
            if let Some((name, size)) = inner.aside.pop_front() {
                inner.bytes = inner.bytes.saturating_sub(entry::cost(size));
                name
            } else {
                let taken = inner.taken;
                let Some(entry) = inner.entries.remove(taken) else { return false };
                inner.bytes = inner.bytes.saturating_sub(entry.cost());
                inner.counts.count_dropped(entry.profiles, entry.size);
                entry.name()
            }
        };
        self.remove_file(&name);
        true
    }

    fn remove_file(&self, name: &str) {
        let path = self.directory.join(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                warn!("cannot remove {} (--spool-directory): {error}", path.display());
            }
            _ => {}
        }
    }

    /// Writes a file so that it is there whole, or not at all, whenever the machine stops.
    fn write_whole(&self, name: &str, parts: &[&[u8]]) -> Result<(), SpoolError> {
        let path = self.directory.join(name);
        let unfinished = self.directory.join(format!("{name}{UNFINISHED}"));
        let written = Self::write_file(&unfinished, parts).and_then(|()| {
            fs::rename(&unfinished, &path)
                // So that its name is on the disk too.
                .and_then(|()| self.folder.sync_all())
                .map_err(|source| SpoolError::File { action: "write", path, source })
        });
        if written.is_err() {
            // One of them is there, or none. What is said not to be there is not to turn up later.
            let _ = fs::remove_file(&unfinished);
            let _ = fs::remove_file(self.directory.join(name));
        }
        written
    }

    fn write_file(path: &Path, parts: &[&[u8]]) -> Result<(), SpoolError> {
        let write = || {
            let mut file = private_file::create(path)?;
            for part in parts {
                file.write_all(part)?;
            }
            file.sync_all()
        };
        write().map_err(|source| SpoolError::File { action: "write", path: path.to_owned(), source })
    }
}

impl Inner {
    /// What a process before this one has left; the number of the last entry.
    fn find(&mut self, directory: &Path) -> io::Result<u64> {
        let mut last = 0;
        for file in fs::read_dir(directory)? {
            let file = file?;
            let (name, metadata) = (file.file_name(), file.metadata()?);
            // Nothing is touched that this spool does not write.
            let Some(name) = name.to_str().filter(|_| metadata.is_file()) else { continue };
            if name.strip_suffix(UNFINISHED).is_some_and(is_own) {
                fs::remove_file(file.path())?;
            } else if let Some(entry) = Entry::of(name, metadata.len()) {
                self.bytes += entry.cost();
                last = last.max(entry.number);
                self.entries.push_back(entry);
            } else if ASIDE.iter().any(|suffix| name.ends_with(suffix)) && is_own(name) {
                self.put_aside(name.to_owned(), metadata.len());
            }
        }
        self.entries.make_contiguous().sort_unstable();
        self.aside.make_contiguous().sort_unstable();
        Ok(last)
    }

    /// What all that was set aside costs.
    fn aside_bytes(&self) -> u64 {
        self.aside.iter().map(|(_, size)| entry::cost(*size)).sum()
    }

    fn put_aside(&mut self, name: String, size: u64) {
        self.bytes += entry::cost(size);
        self.aside.push_back((name, size));
    }
}

impl SpoolCounts {
    fn count_dropped(&mut self, profiles: u64, bytes: u64) {
        self.dropped += profiles;
        self.dropped_bytes += bytes;
    }
}

/// Whether a file's name begins as those of the spool do: with a number, or the trial of the start.
fn is_own(name: &str) -> bool {
    let number = name.split('.').next().unwrap_or_default();
    name == "trial" || (number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

impl SpoolError {
    fn is_full(&self) -> bool {
        let SpoolError::File { source, .. } = self else { return false };
        matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
}

#[cfg(test)]
mod tests;
