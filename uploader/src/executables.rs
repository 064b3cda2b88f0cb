//! Executables: a mirror of the collector's, for one session by its ids, and beyond sessions by identity.
//!
//! The open file that comes with an executable is needed twice: for its facts, at once, and for its names, when it was
//! sampled. Between the two it is held, because a process may live 20 ms and then nobody has the file mapped any more;
//! but not for long, because a held file keeps a container's mount busy.

use std::{
    collections::{HashMap, VecDeque},
    fs::File,
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use ipc::{ExecutableId, ExecutableKind, Identity};
use lru::LruCache;
use objects::ElfFacts;

use crate::printable::printable;

/// Most executables that are remembered; the one unused for longest goes first.
const MAX_EXECUTABLES: usize = 16_384;
/// Most files that are held open.
pub const MAX_HELD: usize = 512;
/// How long a file is held that nobody samples.
pub const HOLD: Duration = Duration::from_secs(30);
/// Devices of which something is known.
const MAX_DEVICES: usize = 1024;
/// So many reads within [`DEVICE_PAUSE`] that gave no answer in time close a device for as long.
const DEVICE_STRIKES: usize = 3;
/// How long nothing is read from a device that hangs, or from a file that was not read in time.
pub const DEVICE_PAUSE: Duration = Duration::from_mins(10);

/// An executable by a number of the uploader's own that is not used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ExecutableKey(pub u32);

impl ExecutableKey {
    /// What stands for executables that the collector never spoke of, or that were forgotten.
    pub const UNKNOWN: ExecutableKey = ExecutableKey(0);
}

/// What the headers of the file said.
#[derive(Clone, Debug)]
pub enum Facts {
    /// Nobody has read them yet.
    Unread,
    /// Somebody is reading them.
    Reading,
    /// They are these.
    Known(Arc<ElfFacts>),
    /// They cannot be had, for this reason. One warning was given.
    Unreadable(Arc<str>),
    /// They, or the names, were not there in time, for this reason. Nobody tries again before then.
    Late(Arc<str>, Instant),
}

/// An executable.
#[derive(Clone, Debug)]
pub struct Executable {
    /// Where it comes from.
    pub kind: ExecutableKind,
    /// For people to read, and for the mapping in profiles.
    pub path: Arc<str>,
    /// What its headers said.
    pub facts: Facts,
    /// Its open file, while it is held.
    pub file: Option<Arc<File>>,
    /// By what to ask the collector for its file, in this session.
    pub id: Option<ExecutableId>,
    /// Whether the file was asked for in this window, so that it is asked for once.
    pub asked: bool,
    /// Whether a warning about its names was given.
    pub warned: bool,
    /// Nobody reads its DWARF before then: what it costs is kept to a small share of the time.
    pub dwarf_again: Option<Instant>,
}

impl Executable {
    /// The facts, if they are known.
    pub fn known(&self) -> Option<&Arc<ElfFacts>> {
        match &self.facts {
            Facts::Known(facts) => Some(facts),
            Facts::Unread | Facts::Reading | Facts::Unreadable(_) | Facts::Late(..) => None,
        }
    }

    /// Why it cannot be read now, if it cannot.
    pub fn problem(&self) -> Option<&Arc<str>> {
        match &self.facts {
            Facts::Unreadable(reason) | Facts::Late(reason, _) => Some(reason),
            Facts::Unread | Facts::Reading | Facts::Known(_) => None,
        }
    }
}

#[derive(Debug)]
struct Device {
    /// When reads from it gave no answer: those of the last while alone.
    struck: Vec<Instant>,
    closed_until: Option<Instant>,
}

/// The mirror and the cache.
#[derive(Debug)]
pub struct Executables {
    entries: LruCache<ExecutableKey, Executable>,
    by_identity: HashMap<Identity, ExecutableKey>,
    by_id: HashMap<ExecutableId, ExecutableKey>,
    held: VecDeque<(ExecutableKey, Instant)>,
    devices: HashMap<u64, Device>,
    next: u32,
    /// Files that were closed before they were needed, because too many were held.
    pub closed_early: u64,
}

impl Default for Executables {
    fn default() -> Self {
        Self::with_capacity(NonZeroUsize::new(MAX_EXECUTABLES).unwrap_or(NonZeroUsize::MIN))
    }
}

impl Executables {
    fn with_capacity(capacity: NonZeroUsize) -> Self {
        Executables {
            // Not `LruCache::new`, which makes room for all of them at once.
            entries: {
                let mut entries = LruCache::unbounded();
                entries.resize(capacity);
                entries
            },
            by_identity: HashMap::new(),
            by_id: HashMap::new(),
            held: VecDeque::new(),
            devices: HashMap::new(),
            next: ExecutableKey::UNKNOWN.0 + 1,
            closed_early: 0,
        }
    }

    /// Forgets the ids of a session that is over. What is known of the files stays.
    pub fn end_session(&mut self) {
        self.by_id.clear();
        for (_, entry) in &mut self.entries {
            entry.id = None;
            entry.asked = false;
        }
    }

    /// An executable of the collector's, with its file if it comes with one.
    pub fn add(
        &mut self,
        executable: &ipc::Executable,
        file: Option<Arc<File>>,
        now: Instant,
    ) -> ExecutableKey {
        let known = match executable.kind {
            ExecutableKind::File(identity) => self.by_identity.get(&identity).copied(),
            ExecutableKind::Vdso | ExecutableKind::Unopened => self.by_id.get(&executable.id).copied(),
        };
        let key = known.unwrap_or_else(|| self.insert(executable));
        self.by_id.insert(executable.id, key);
        if let Some(entry) = self.entries.get_mut(&key) {
            let before = entry.id.replace(executable.id);
            if let Some(before) = before.filter(|before| *before != executable.id) {
                self.by_id.remove(&before);
            }
        }
        if let Some(file) = file {
            self.hold(key, file, now);
        }
        key
    }

    fn insert(&mut self, executable: &ipc::Executable) -> ExecutableKey {
        let key = ExecutableKey(self.next);
        self.next = self.next.checked_add(1).unwrap_or(1);
        let path = match executable.kind {
            ExecutableKind::Vdso => "[vdso]".into(),
            _ if executable.path.is_empty() => "[unknown]".into(),
            _ => printable(&executable.path),
        };
        let entry = Executable {
            kind: executable.kind,
            path: path.into(),
            facts: Facts::Unread,
            file: None,
            id: None,
            asked: false,
            warned: false,
            dwarf_again: None,
        };
        if let ExecutableKind::File(identity) = executable.kind {
            self.by_identity.insert(identity, key);
        }
        if let Some((old_key, old)) = self.entries.push(key, entry)
            && old_key != key
        {
            self.forget(old_key, &old);
        }
        key
    }

    fn forget(&mut self, key: ExecutableKey, entry: &Executable) {
        if let ExecutableKind::File(identity) = entry.kind
            && self.by_identity.get(&identity) == Some(&key)
        {
            self.by_identity.remove(&identity);
        }
        if let Some(id) = entry.id {
            self.by_id.remove(&id);
        }
        if entry.file.is_some() {
            self.held.retain(|(held, _)| *held != key);
        }
    }

    fn hold(&mut self, key: ExecutableKey, file: Arc<File>, now: Instant) {
        let Some(entry) = self.entries.get_mut(&key) else { return };
        if entry.file.replace(file).is_some() {
            self.held.retain(|(held, _)| *held != key);
        }
        self.held.push_back((key, now));
        while self.held.len() > MAX_HELD {
            if let Some((oldest, _)) = self.held.pop_front() {
                self.closed_early += 1;
                if let Some(entry) = self.entries.peek_mut(&oldest) {
                    entry.file = None;
                }
            }
        }
    }

    /// Closes the file of an executable that was symbolized, or of which nothing can be had.
    pub fn close(&mut self, key: ExecutableKey) {
        if let Some(entry) = self.entries.peek_mut(&key)
            && entry.file.take().is_some()
        {
            self.held.retain(|(held, _)| *held != key);
        }
    }

    /// Closes what was held for too long.
    pub fn close_old(&mut self, now: Instant) {
        while let Some((key, since)) = self.held.front().copied()
            && now.saturating_duration_since(since) >= HOLD
        {
            self.held.pop_front();
            if let Some(entry) = self.entries.peek_mut(&key) {
                entry.file = None;
            }
        }
    }

    /// The executable that the collector calls so in this session.
    pub fn key(&self, id: ExecutableId) -> Option<ExecutableKey> {
        self.by_id.get(&id).copied()
    }

    /// An executable, which is thereby used.
    pub fn get_mut(&mut self, key: ExecutableKey) -> Option<&mut Executable> {
        self.entries.get_mut(&key)
    }

    /// An executable.
    pub fn get(&self, key: ExecutableKey) -> Option<&Executable> {
        self.entries.peek(&key)
    }

    /// A new window: each file may be asked for once more, and what was late is tried again when it is time.
    pub fn begin_window(&mut self, now: Instant) {
        for (_, entry) in &mut self.entries {
            entry.asked = false;
            if matches!(entry.facts, Facts::Late(_, again) if now >= again) {
                entry.facts = Facts::Unread;
            }
        }
    }

    /// Whether nothing should be read from this executable's device now, because it hangs.
    pub fn is_closed(&self, kind: ExecutableKind, now: Instant) -> bool {
        let ExecutableKind::File(identity) = kind else { return false };
        let device = self.devices.get(&identity.device);
        device.and_then(|device| device.closed_until).is_some_and(|until| now < until)
    }

    /// A read from this executable gave no answer in time. `true` if its device is closed for a while now.
    pub fn strike(&mut self, kind: ExecutableKind, now: Instant) -> bool {
        let ExecutableKind::File(identity) = kind else { return false };
        if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&identity.device) {
            self.devices.retain(|_, device| device.closed_until.is_some_and(|until| now < until));
            if self.devices.len() >= MAX_DEVICES {
                return false;
            }
        }
        let device = self
            .devices
            .entry(identity.device)
            .or_insert_with(|| Device { struck: Vec::new(), closed_until: None });
        device.struck.retain(|at| now.saturating_duration_since(*at) < DEVICE_PAUSE);
        device.struck.push(now);
        if device.struck.len() >= DEVICE_STRIKES {
            device.struck.clear();
            device.closed_until = Some(now + DEVICE_PAUSE);
            return true;
        }
        false
    }

    /// Executables that are remembered.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Files that are held open.
    pub fn held(&self) -> usize {
        self.held.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(inode: u64) -> Identity {
        Identity { device: 1, inode, ctime: 2, ctime_nanos: 3, size: 4 }
    }

    fn executable(id: u32, inode: u64) -> ipc::Executable {
        let kind = ExecutableKind::File(identity(inode));
        ipc::Executable { id: ExecutableId(id), kind, path: format!("/bin/{inode}").into_bytes() }
    }

    fn file() -> Arc<File> {
        Arc::new(tempfile::tempfile().unwrap())
    }

    #[test]
    fn an_identity_is_known_beyond_its_session() {
        let mut executables = Executables::default();
        let now = Instant::now();
        let key = executables.add(&executable(1, 10), None, now);
        assert_eq!(executables.key(ExecutableId(1)), Some(key));
        executables.end_session();
        assert_eq!(executables.key(ExecutableId(1)), None);
        // The same id is another file in the next session.
        let other = executables.add(&executable(1, 11), None, now);
        assert_ne!(other, key);
        assert_eq!(executables.add(&executable(2, 10), None, now), key);
        assert_eq!(executables.get(key).unwrap().id, Some(ExecutableId(2)));
        assert_eq!(&*executables.get(key).unwrap().path, "/bin/10");
    }

    #[test]
    fn what_was_not_opened_has_no_identity() {
        let mut executables = Executables::default();
        let unopened =
            |id| ipc::Executable { id: ExecutableId(id), kind: ExecutableKind::Unopened, path: vec![] };
        let a = executables.add(&unopened(1), None, Instant::now());
        let b = executables.add(&unopened(2), None, Instant::now());
        assert_ne!(a, b);
        assert_eq!(executables.add(&unopened(1), None, Instant::now()), a);
        executables.end_session();
        assert_ne!(executables.add(&unopened(1), None, Instant::now()), a);
    }

    #[test]
    fn files_are_held_for_a_time_and_in_a_number() {
        let mut executables = Executables::default();
        let start = Instant::now();
        let first = executables.add(&executable(1, 1), Some(file()), start);
        let second = executables.add(&executable(2, 2), Some(file()), start + Duration::from_secs(20));
        executables.close_old(start + HOLD);
        assert!(executables.get(first).unwrap().file.is_none());
        assert!(executables.get(second).unwrap().file.is_some());
        executables.close(second);
        assert_eq!(executables.held(), 0);

        for id in 0..=u32::try_from(MAX_HELD).unwrap() {
            executables.add(&executable(10 + id, 10 + u64::from(id)), Some(file()), start);
        }
        assert_eq!((executables.held(), executables.closed_early), (MAX_HELD, 1));
        let oldest = executables.key(ExecutableId(10)).unwrap();
        assert!(executables.get(oldest).unwrap().file.is_none());
    }

    #[test]
    fn a_file_that_comes_again_takes_the_place_of_the_first() {
        let mut executables = Executables::default();
        let key = executables.add(&executable(1, 1), Some(file()), Instant::now());
        let again = file();
        executables.add(&executable(1, 1), Some(Arc::clone(&again)), Instant::now());
        assert_eq!(executables.held(), 1);
        assert!(Arc::ptr_eq(executables.get(key).unwrap().file.as_ref().unwrap(), &again));
    }

    #[test]
    fn the_one_unused_for_longest_is_forgotten() {
        let mut executables = Executables::with_capacity(NonZeroUsize::new(2).unwrap());
        let now = Instant::now();
        let first = executables.add(&executable(1, 1), Some(file()), now);
        executables.add(&executable(2, 2), Some(file()), now);
        executables.get_mut(first);
        executables.add(&executable(3, 3), Some(file()), now);
        assert_eq!(executables.key(ExecutableId(1)), Some(first));
        assert_eq!(executables.key(ExecutableId(2)), None);
        assert_eq!((executables.len(), executables.held()), (2, 2));
        assert_eq!((executables.by_identity.len(), executables.by_id.len()), (2, 2));
    }

    #[test]
    fn a_device_that_hangs_is_left_alone_for_a_while() {
        let mut executables = Executables::default();
        let kind = executable(1, 1).kind;
        let now = Instant::now();
        assert!(!executables.strike(kind, now) && !executables.strike(kind, now));
        assert!(!executables.is_closed(kind, now));
        assert!(executables.strike(kind, now));
        assert!(executables.is_closed(kind, now));
        assert!(!executables.is_closed(kind, now + DEVICE_PAUSE));
        assert!(!executables.is_closed(ExecutableKind::Vdso, now));
    }

    #[test]
    fn a_device_that_is_slow_now_and_then_does_not_hang() {
        let mut executables = Executables::default();
        let kind = executable(1, 1).kind;
        let now = Instant::now();
        let minute = Duration::from_mins(1);
        for at in [0, 1, 10, 11, 20, 29, 30, 60] {
            assert!(!executables.strike(kind, now + minute * at), "{at}");
        }
    }

    #[test]
    fn what_was_late_is_tried_again_when_it_is_time() {
        let mut executables = Executables::default();
        let now = Instant::now();
        let key = executables.add(&executable(1, 1), None, now);
        executables.get_mut(key).unwrap().facts = Facts::Late("late".into(), now + DEVICE_PAUSE);
        executables.begin_window(now);
        assert!(executables.get(key).unwrap().problem().is_some());
        executables.begin_window(now + DEVICE_PAUSE);
        assert!(matches!(executables.get(key).unwrap().facts, Facts::Unread));
    }
}
