//! What the server has already, remembered across restarts: a file in the spool's folder, of a line for each build.

use std::{
    collections::HashMap,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tracing::warn;

use crate::private_file;

/// Builds that are remembered; beyond, the ones that were added first are forgotten.
const MAX_BUILDS: usize = 16_384;
/// Longest id that is remembered, in characters: linkers make 16 to 64 of them, Go some hundred.
const MAX_ID: usize = 200;
/// Largest file that is read: more than so many of the longest.
const MAX_FILE: u64 = 4 << 20;
/// After so long a server is asked again: it may have lost what it had.
const GOOD_FOR: Duration = Duration::from_hours(7 * 24);
/// The file's name.
const NAME: &str = "known-debuginfo";

/// How good what the server has of a build is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Quality {
    /// Symbols alone.
    Symbols,
    /// DWARF too: files and lines, and functions that were inlined.
    Dwarf,
}

/// The builds.
#[derive(Debug)]
pub struct Known {
    path: PathBuf,
    store: String,
    builds: HashMap<String, Entry>,
}

/// What the server has of a build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    /// How good it is, or would have been: what the server has from others may be better or worse.
    pub(super) quality: Quality,
    /// Whether it has it from here.
    pub(super) is_ours: bool,
    /// Since when, in seconds of Unix time.
    since: u64,
}

impl Known {
    /// What is known of this store. Another one has other builds.
    pub fn open(folder: &Path, store: &str) -> Self {
        let path = folder.join(NAME);
        let mut builds = HashMap::new();
        let is_small = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= MAX_FILE);
        let text = if is_small { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        let mut lines = text.lines();
        if lines.next() == Some(store) {
            builds.extend(lines.filter_map(parse).filter(|(_, entry)| is_fresh(entry.since)));
        }
        Known { path, store: store.to_owned(), builds }
    }

    /// What the server has of a build.
    pub(super) fn get(&self, id: &str) -> Option<Entry> {
        self.builds.get(id).filter(|entry| is_fresh(entry.since)).copied()
    }

    /// The server has it now. `false`: that is not remembered.
    pub(super) fn add(&mut self, id: &str, quality: Quality, is_ours: bool) -> bool {
        if id.len() > MAX_ID {
            return false;
        }
        // What was sent from here stays ours: a file that only claims to be of this build changes nothing when the store wants none of it.
        let before = self.builds.get(id).filter(|before| before.is_ours && !is_ours);
        let entry = before.copied().unwrap_or(Entry { quality, is_ours, since: now() });
        self.builds.insert(id.to_owned(), entry);
        if self.builds.len() > MAX_BUILDS {
            self.forget_oldest();
        }
        true
    }

    /// What is to be in the file, and where that is.
    pub(super) fn file(&self) -> (PathBuf, String) {
        let mut text = format!("{}\n", self.store);
        for (id, entry) in &self.builds {
            text.push_str(&line(id, *entry));
        }
        (self.path.clone(), text)
    }

    /// How many are known.
    pub(super) fn len(&self) -> usize {
        self.builds.len()
    }

    fn forget_oldest(&mut self) {
        let mut times: Vec<u64> = self.builds.values().map(|entry| entry.since).collect();
        times.sort_unstable();
        // A good deal at once, so that it is not done for each one.
        let limit = times[times.len() / 8];
        self.builds.retain(|_, entry| entry.since > limit);
    }
}

/// Writes the file, whole or not at all. Blocks.
pub(super) fn write(path: &Path, text: &str) {
    let next = path.with_extension("tmp");
    let written = private_file::create(&next)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&next, path));
    if let Err(error) = written {
        warn!("cannot write {}: {error}; after a restart the store is asked again", path.display());
    }
}

fn line(id: &str, Entry { quality, is_ours, since }: Entry) -> String {
    let from = if is_ours { "sent" } else { "had" };
    let quality = match quality {
        Quality::Symbols => "symbols",
        Quality::Dwarf => "dwarf",
    };
    format!("{id} {quality} {since} {from}\n")
}

fn parse(line: &str) -> Option<(String, Entry)> {
    let mut fields = line.split(' ');
    let (id, quality, since) = (fields.next()?, fields.next()?, fields.next()?.parse().ok()?);
    let is_ours = match fields.next()? {
        "sent" => true,
        "had" => false,
        _ => return None,
    };
    let quality = match quality {
        "symbols" => Quality::Symbols,
        "dwarf" => Quality::Dwarf,
        _ => return None,
    };
    Some((id.to_owned(), Entry { quality, is_ours, since }))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn is_fresh(since: u64) -> bool {
    now().saturating_sub(since) < GOOD_FOR.as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(known: &Known) {
        let (path, text) = known.file();
        write(&path, &text);
    }

    #[test]
    fn what_is_known_outlives_a_restart_but_not_another_store() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = Known::open(folder.path(), "a:1");
        known.add("aa", Quality::Symbols, false);
        known.add("bb", Quality::Dwarf, false);
        known.add("aa", Quality::Dwarf, true);
        known.add("ours", Quality::Symbols, true);
        known.add("ours", Quality::Dwarf, false);
        // Nobody honest has such an id.
        assert!(!known.add(&"a".repeat(MAX_ID + 1), Quality::Dwarf, true));
        save(&known);
        let known = Known::open(folder.path(), "a:1");
        let get = |id| known.get(id).map(|entry| (entry.quality, entry.is_ours));
        assert_eq!(get("aa"), Some((Quality::Dwarf, true)));
        assert_eq!(get("ours"), Some((Quality::Symbols, true)));
        assert_eq!(get("bb"), Some((Quality::Dwarf, false)));
        assert_eq!(get("cc"), None);
        let other = Known::open(folder.path(), "b:1");
        assert_eq!(other.get("aa"), None);
        save(&other);
        assert_eq!(Known::open(folder.path(), "a:1").len(), 0, "the other store's took its place");
    }

    #[test]
    fn what_is_old_or_broken_is_asked_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(NAME);
        let old = now() - GOOD_FOR.as_secs();
        fs::write(&path, format!(
            "a:1\naa dwarf {old} sent\nbb dwarf\n\ncc x 1 had\nff dwarf {0} ?\ndd symbols {0} had\nee dwa",
            now()
        ))
            .unwrap();
        let known = Known::open(folder.path(), "a:1");
        assert_eq!(known.len(), 1);
        assert_eq!(known.get("dd").map(|entry| entry.quality), Some(Quality::Symbols));
        fs::write(&path, vec![b'x'; 5 << 20]).unwrap();
        assert_eq!(Known::open(folder.path(), "a:1").len(), 0);
    }

    #[test]
    fn builds_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let mut known = Known::open(folder.path(), "a:1");
        for number in 0..=MAX_BUILDS as u64 {
            // As if one came each second.
            let since = now() - MAX_BUILDS as u64 + number;
            known.builds.insert(format!("{number}"), Entry { quality: Quality::Dwarf, is_ours: true, since });
        }
        known.add("last", Quality::Dwarf, true);
        assert!(known.len() < MAX_BUILDS && known.get("last").is_some() && known.get("0").is_none());
        save(&known);
        assert_eq!(Known::open(folder.path(), "a:1").len(), known.len());
    }
}
