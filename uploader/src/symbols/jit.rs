//! Names of code that processes make at run time, from their perf maps.
//!
//! A map is read when its process was sampled at addresses that have no name yet, and then only what it has grown by.
//! Addresses that no map names are remembered for a minute, so that they do not make it be read again in every window.

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ipc::ProcessId;
use lru::LruCache;
use objects::{ObjectError, PerfMap};
use records::ProcessAddress;
use security::TimeShare;

use crate::{printable::printable, processes::JitKey};

/// Most processes whose code without a file is named at one time.
pub const MAX_JIT_PROCESSES: usize = 128;
/// Most memory for the map of one process, in bytes.
const MAX_MAP: usize = 8 << 20;
/// Most memory for all maps, in bytes; of the one unused for longest only what was resolved stays.
const MAX_MAPS: usize = 24 << 20;
/// Most addresses of one process of which the name, or that there is none, is remembered.
const MAX_NAMES: usize = 16_384;
/// Most reads of one map for one window: 64 MiB.
const MAX_READS: usize = 4;

#[derive(Debug)]
struct Jit {
    /// By what to ask the collector, as long as the process lives.
    process: Option<ProcessId>,
    /// The open map, until it is read.
    file: Option<Arc<File>>,
    /// What was read of it. Locked while a thread reads.
    map: Arc<Mutex<PerfMap>>,
    names: HashMap<u64, Arc<str>>,
    /// Addresses without a name, and when they were looked up.
    nameless: HashMap<u64, Instant>,
}

/// What has no name is looked up again after so long: a map may begin later than its process, and grow after its code has run.
const AGAIN: Duration = Duration::from_mins(1);

/// Of the time, so much goes to reading maps at most: one part in so many,
const SHARE: u32 = 10;
/// and so much at once.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Less than this is read always: a millisecond.
const LITTLE: u64 = 128 * 1024;

/// The processes that run code without a file.
#[derive(Debug)]
pub struct JitProcesses {
    entries: LruCache<JitKey, Jit>,
    next: u32,
    reading: TimeShare,
    /// Whether a large map is being read.
    is_reading: bool,
}

impl Default for JitProcesses {
    fn default() -> Self {
        let capacity = NonZeroUsize::new(MAX_JIT_PROCESSES).unwrap_or(NonZeroUsize::MIN);
        JitProcesses {
            entries: LruCache::new(capacity),
            next: 1,
            reading: TimeShare::new(AT_ONCE, SHARE),
            is_reading: false,
        }
    }
}

impl JitProcesses {
    /// A number that is not used again (not for 4 thousand million processes).
    pub fn make_key(&mut self) -> JitKey {
        let key = JitKey(self.next);
        self.next = self.next.wrapping_add(1);
        key
    }

    /// A process runs code without a file; its map, if it came along.
    pub fn add(&mut self, key: JitKey, process: ProcessId, file: Option<Arc<File>>) {
        let entry = self.entries.get_or_insert_mut(key, || Jit {
            process: None,
            file: None,
            map: Arc::new(Mutex::new(PerfMap::new(MAX_MAP))),
            names: HashMap::new(),
            nameless: HashMap::new(),
        });
        entry.process = Some(process);
        if file.is_some() {
            entry.file = file;
        }
    }

    /// The process is gone: there is nobody to ask for its map any more.
    pub fn end(&mut self, key: JitKey) {
        if let Some(entry) = self.entries.peek_mut(&key) {
            entry.process = None;
        }
    }

    /// All processes are out of reach: the session is over.
    pub fn end_all(&mut self) {
        for (_, entry) in &mut self.entries {
            entry.process = None;
        }
    }

    /// The addresses that are to be looked up now.
    pub fn unresolved(&mut self, key: JitKey, addresses: &BTreeSet<u64>, now: Instant) -> Vec<u64> {
        let Some(entry) = self.entries.get(&key) else { return Vec::new() };
        let is_due = |since: &Instant| now.saturating_duration_since(*since) >= AGAIN;
        let is_unresolved = |address: &&u64| {
            !entry.names.contains_key(address) && entry.nameless.get(address).is_none_or(is_due)
        };
        addresses.iter().filter(is_unresolved).copied().collect()
    }

    /// By what to ask for the process's map, unless its file is here.
    pub fn to_ask(&self, key: JitKey) -> Option<ProcessId> {
        let entry = self.entries.peek(&key)?;
        if entry.file.is_some() { None } else { entry.process }
    }

    /// What a thread needs to resolve addresses of a process. The file is closed when it is done.
    pub fn question(&mut self, key: JitKey, addresses: Vec<u64>) -> Option<JitQuestion> {
        let entry = self.entries.get_mut(&key)?;
        Some(JitQuestion { file: entry.file.take(), map: Arc::clone(&entry.map), addresses })
    }

    /// Whether another map may be read now, of which so many bytes are unread: a large one, if no other is, and within the share of the time.
    pub fn begin_reading(&mut self, unread: u64, now: Instant) -> bool {
        if unread <= LITTLE {
            return true;
        }
        let begins = !self.is_reading && self.reading.wait(now).is_zero();
        self.is_reading |= begins;
        begins
    }

    /// It has been read, and that took so long.
    pub fn end_reading(&mut self, unread: u64, took: Duration, now: Instant) {
        if unread > LITTLE {
            self.is_reading = false;
            self.reading.spend(took, now);
        }
    }

    /// Remembers what was found.
    pub fn answer(&mut self, key: JitKey, answer: &JitAnswer, now: Instant) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.nameless.retain(|_, since| now.saturating_duration_since(*since) < AGAIN);
            if entry.names.len() + entry.nameless.len() + answer.names.len() > MAX_NAMES {
                entry.nameless.clear();
            }
            if entry.names.len() + answer.names.len() > MAX_NAMES {
                entry.names.clear();
            }
            for (address, name) in &answer.names {
                match name {
                    Some(name) => {
                        entry.nameless.remove(address);
                        entry.names.insert(*address, Arc::clone(name));
                    }
                    None => _ = entry.nameless.insert(*address, now),
                }
            }
        }
        // What a thread is reading in just now keeps its memory.
        let size = |entry: &Jit| entry.map.try_lock().map_or(0, |map| map.memory_size());
        let mut total: usize = self.entries.iter().map(|(_, entry)| size(entry)).sum();
        for (_, entry) in self.entries.iter_mut().rev() {
            if total <= MAX_MAPS {
                break;
            }
            total -= size(entry);
            entry.map = Arc::new(Mutex::new(PerfMap::new(MAX_MAP)));
        }
    }

    /// The name at an address.
    pub fn name(&self, key: JitKey, address: u64) -> Option<Arc<str>> {
        self.entries.peek(&key)?.names.get(&address).cloned()
    }

    /// Processes that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// Addresses of a process that have no name yet.
#[derive(Debug)]
pub struct JitQuestion {
    file: Option<Arc<File>>,
    map: Arc<Mutex<PerfMap>>,
    addresses: Vec<u64>,
}

/// What was found out.
#[derive(Debug)]
pub struct JitAnswer {
    /// By address; `None` where the map is silent.
    names: Vec<(u64, Option<Arc<str>>)>,
    /// What was wrong with the map, for one warning.
    pub problem: Option<String>,
}

impl JitQuestion {
    /// How much of the map is to be read for it, in bytes. Blocks.
    pub fn unread(&self) -> u64 {
        let length =
            self.file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        // One that is read just now is begun by somebody else. One that has shrunk is read from its start.
        let read = self.map.try_lock().map_or(0, |map| map.bytes_read());
        length.checked_sub(read).unwrap_or(length)
    }

    /// Answers it. Blocks.
    pub fn answer(self) -> JitAnswer {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        let problem = self.file.and_then(|file| read(&mut map, &file).err()).map(|error| error.to_string());
        let name = |address: &u64| {
            let name = map.lookup(ProcessAddress(*address));
            (*address, name.map(|name| printable(name.as_bytes()).into()))
        };
        JitAnswer { names: self.addresses.iter().map(name).collect(), problem }
    }
}

fn read(map: &mut PerfMap, file: &File) -> Result<(), ObjectError> {
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(ObjectError::Unsupported("what is no regular file"));
    }
    for _ in 0..MAX_READS {
        if !map.update(file)? {
            break;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_map_is_read_when_there_is_something_new() {
        let mut jit = JitProcesses::default();
        let key = jit.make_key();
        let mut file = tempfile::tempfile().unwrap();
        writeln!(file, "1000 10 first\nbroken\n2000 10 second <&>").unwrap();
        jit.add(key, ProcessId(1), Some(Arc::new(file.try_clone().unwrap())));
        assert_eq!(jit.to_ask(key), None, "its file is here");
        let addresses = BTreeSet::from([0x1001, 0x2002, 0x3000]);
        let now = Instant::now();
        let unresolved = jit.unresolved(key, &addresses, now);
        assert_eq!(unresolved.len(), 3);
        let answer = jit.question(key, unresolved).unwrap().answer();
        assert_eq!(answer.problem, None);
        jit.answer(key, &answer, now);
        assert_eq!(jit.name(key, 0x1001).as_deref(), Some("first"));
        assert_eq!(jit.name(key, 0x2002).as_deref(), Some("second <&>"));
        assert_eq!(jit.name(key, 0x3000), None);
        assert!(
            jit.unresolved(key, &addresses, now).is_empty(),
            "what has no name is not looked for at once"
        );
        assert_eq!(jit.unresolved(key, &addresses, now + AGAIN), [0x3000]);

        assert_eq!(jit.to_ask(key), Some(ProcessId(1)), "the file was closed");
        writeln!(file, "4000 10 third\n3000 10 late").unwrap();
        jit.add(key, ProcessId(1), Some(Arc::new(file.try_clone().unwrap())));
        let answer = jit.question(key, vec![0x4000, 0x1008, 0x3000]).unwrap().answer();
        jit.answer(key, &answer, now);
        assert_eq!(jit.name(key, 0x3000).as_deref(), Some("late"));
        assert!(jit.unresolved(key, &addresses, now + AGAIN).is_empty());
        assert_eq!(jit.name(key, 0x4000).as_deref(), Some("third"));
        assert_eq!(jit.name(key, 0x1008).as_deref(), Some("first"));
        jit.add(key, ProcessId(1), Some(Arc::new(file.try_clone().unwrap())));
        assert_eq!(jit.question(key, Vec::new()).unwrap().unread(), 0);
        let length = file.metadata().unwrap().len();
        file.set_len(length - 1).unwrap();
        jit.add(key, ProcessId(1), Some(Arc::new(file)));
        assert_eq!(jit.question(key, Vec::new()).unwrap().unread(), length - 1, "it is read from its start");
        jit.end(key);
        assert_eq!(jit.to_ask(key), None);
    }

    #[test]
    fn a_process_without_a_map_is_asked_again() {
        let mut jit = JitProcesses::default();
        let (key, now) = (jit.make_key(), Instant::now());
        jit.add(key, ProcessId(1), None);
        let addresses = BTreeSet::from([0x1000]);
        let answer = jit.question(key, vec![0x1000]).unwrap().answer();
        jit.answer(key, &answer, now);
        assert!(jit.unresolved(key, &addresses, now).is_empty());
        assert_eq!(jit.unresolved(key, &addresses, now + AGAIN), [0x1000]);
        // What has none again and again takes no room from names.
        let names = |range: std::ops::Range<u64>, name: Option<&str>| JitAnswer {
            names: range.map(|address| (address, name.map(Into::into))).collect(),
            problem: None,
        };
        let (half, most) = (MAX_NAMES as u64 / 2, MAX_NAMES as u64);
        jit.answer(key, &names(0..half, Some("name")), now);
        for minute in 1..4 {
            jit.answer(key, &names(half..most, None), now + AGAIN * minute);
        }
        jit.answer(key, &names(most..most + half, None), now + AGAIN * 3);
        assert!(jit.name(key, 0).is_some() && jit.name(key, half).is_none());
        jit.answer(key, &names(most..most + half + 1, Some("name")), now);
        assert!(jit.name(key, 0).is_none() && jit.name(key, most).is_some());
    }

    #[test]
    fn a_map_that_is_no_file_is_refused() {
        let mut jit = JitProcesses::default();
        let key = jit.make_key();
        jit.add(key, ProcessId(1), Some(Arc::new(File::open("/dev/zero").unwrap())));
        let answer = jit.question(key, vec![1]).unwrap().answer();
        assert!(answer.problem.is_some());
    }

    #[test]
    fn large_maps_wait_and_small_ones_do_not() {
        let mut jit = JitProcesses::default();
        let now = Instant::now();
        let large = LITTLE + 1;
        assert!(
            jit.begin_reading(large, now) && !jit.begin_reading(large, now) && jit.begin_reading(LITTLE, now)
        );
        jit.end_reading(LITTLE, AT_ONCE * 100, now);
        assert!(!jit.begin_reading(large, now));
        jit.end_reading(large, AT_ONCE * 2, now);
        assert!(!jit.begin_reading(large, now) && jit.begin_reading(LITTLE, now));
        let second = Duration::from_secs(1);
        // Half of what it took is forgotten a share of the time later.
        assert!(!jit.begin_reading(large, now + AT_ONCE * SHARE / 2));
        assert!(jit.begin_reading(large, now + AT_ONCE * SHARE + second));
    }

    #[test]
    fn processes_are_bounded() {
        let mut jit = JitProcesses::default();
        for id in 0..1000 {
            let key = jit.make_key();
            jit.add(key, ProcessId(id), None);
        }
        assert_eq!(jit.len(), MAX_JIT_PROCESSES);
    }
}
