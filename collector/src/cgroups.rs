//! Which cgroups a process is in. The BPF program says in each sample what tells one set of cgroups from another (a
//! key); the paths are in `/proc/PID/cgroup`. They are remembered by key, so that a process that is gone has its
//! sibling's answer.

use std::{collections::HashMap, rc::Rc};

use ipc::{Cgroup, CgroupId};

use crate::{procfs, serve};

/// Sets that are remembered; a host has thousands at most.
const MAX_SETS: usize = 16 * 1024;
/// Bytes of their texts; a text has some hundred, and 8 KiB at most.
const MAX_BYTES: usize = 8 << 20;
/// How long an answer is good, in nanoseconds: where a key is made of an address in the kernel, another set may get it.
const GOOD_FOR: u64 = 10_000_000_000;

/// What is known of cgroups.
#[derive(Default)]
pub(crate) struct Cgroups {
    by_key: HashMap<u64, Known>,
    ids: HashMap<Rc<[u8]>, CgroupId>,
    texts: HashMap<CgroupId, Entry>,
    bytes: usize,
    last: u32,
}

struct Known {
    id: CgroupId,
    learnt: u64,
    /// When it was read. Whose key it was may have been moved between its sample and that.
    read: u64,
    /// A sample from after that has the key still, and who was sampled these cgroups.
    is_sure: bool,
}

struct Entry {
    text: Rc<[u8]>,
    /// The session that was told of it, and the one that does not want its samples.
    told: u32,
    unwanted: u32,
}

impl Cgroups {
    /// The cgroups behind the key of a sample, of which the process that `pid` was at `start_time` (in clock ticks) was a member when it was
    /// `sampled`; that and `now` in nanoseconds.
    pub(crate) fn of(
        &mut self,
        key: u64,
        pid: u32,
        start_time: u64,
        sampled: u64,
        now: u64,
    ) -> Option<CgroupId> {
        let known = self.by_key.get(&key);
        let is_fresh = |known: &&Known| now.saturating_sub(known.learnt) < GOOD_FOR;
        if let Some(known) = known.filter(is_fresh).filter(|known| known.is_sure) {
            return Some(known.id);
        }
        let read_before = known.filter(is_fresh).map(|known| (known.id, known.read));
        let known = known.map(|known| known.id);
        let Some(text) = procfs::cgroup_text(pid) else { return known };
        // Read after the text: if the pid is still the same process now, the text was its own.
        if procfs::stat(pid).is_none_or(|stat| stat.start_time != start_time) {
            return known;
        }
        if self.by_key.len() >= MAX_SETS || self.texts.len() >= MAX_SETS || self.bytes >= MAX_BYTES {
            // Cgroups come and go. What is forgotten here is learnt again at its next sample, under a new id.
            self.by_key.clear();
            self.ids.clear();
            self.texts.clear();
            self.bytes = 0;
        }
        let id = self.intern(&text);
        let is_sure = read_before.is_some_and(|(before, read)| before == id && read < sampled);
        self.by_key.insert(key, Known { id, learnt: now, read: serve::now(), is_sure });
        Some(id)
    }

    /// A process of which it is known that it is in these cgroups was `sampled` with this key.
    pub(crate) fn confirm(&mut self, key: u64, id: CgroupId, sampled: u64) {
        if let Some(known) = self.by_key.get_mut(&key).filter(|known| known.id == id && known.read < sampled)
        {
            known.is_sure = true;
        }
    }

    fn intern(&mut self, text: &[u8]) -> CgroupId {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let text: Rc<[u8]> = text.into();
        self.bytes += text.len();
        self.last += 1;
        let id = CgroupId(self.last);
        self.ids.insert(Rc::clone(&text), id);
        self.texts.insert(id, Entry { text, told: 0, unwanted: 0 });
        id
    }

    /// Whether this id still means something: not after its set was forgotten.
    pub(crate) fn knows(&self, id: CgroupId) -> bool {
        self.texts.contains_key(&id)
    }

    /// Until when the answer is good that this key is of this set; `None`: it is not good any more, or not sure yet.
    pub(crate) fn good_until(&self, key: u64, id: CgroupId, now: u64) -> Option<u64> {
        let known = self.by_key.get(&key).filter(|known| known.id == id && known.is_sure)?;
        Some(known.learnt.saturating_add(GOOD_FOR)).filter(|until| now < *until)
    }

    /// `session` does not want samples of this set. `false`: it was not told of such a set, or the set is forgotten.
    pub(crate) fn refuse(&mut self, id: CgroupId, session: u32) -> bool {
        let entry = self.texts.get_mut(&id).filter(|entry| entry.told == session);
        entry.map(|entry| entry.unwanted = session).is_some()
    }

    /// Whether this session, if there is one, does not want samples of this set.
    pub(crate) fn is_refused(&self, id: CgroupId, session: Option<u32>) -> bool {
        self.texts.get(&id).is_some_and(|entry| Some(entry.unwanted) == session)
    }

    /// What `session` must be told before it hears of this id, if it was not yet.
    pub(crate) fn tell(&mut self, id: CgroupId, session: u32) -> Option<Cgroup> {
        let entry = self.texts.get_mut(&id).filter(|entry| entry.told != session)?;
        entry.told = session;
        Some(Cgroup { id, text: entry.text.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> (u32, u64) {
        let pid = std::process::id();
        (pid, procfs::stat(pid).unwrap().start_time)
    }

    #[test]
    fn a_key_is_remembered_when_its_process_is_gone() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        assert_eq!(cgroups.of(7, u32::MAX, 0, 0, 0), None);
        let id = cgroups.of(7, pid, start, 0, 0).unwrap();
        assert_eq!(cgroups.of(7, u32::MAX, 0, 0, 1), Some(id));
        // Also when the answer is old, if there is no better one.
        assert_eq!(cgroups.of(7, u32::MAX, 0, 0, GOOD_FOR * 2), Some(id));
        // Another key with the same cgroups is the same set.
        assert_eq!(cgroups.of(8, pid, start, 0, 0), Some(id));
        assert!(cgroups.tell(id, 1).is_some_and(|told| !told.text.is_empty()));
        assert_eq!(cgroups.tell(id, 1), None);
        assert!(cgroups.tell(id, 2).is_some());
        assert_eq!(cgroups.tell(CgroupId(99), 2), None);
    }

    #[test]
    fn a_reused_pid_does_not_lend_its_cgroups() {
        let (pid, start) = own();
        assert_eq!(Cgroups::default().of(7, pid, start + 1, 0, 0), None);
    }

    #[test]
    fn only_what_was_told_can_be_refused_and_by_that_session_alone() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        let id = cgroups.of(7, pid, start, 0, 0).unwrap();
        assert!(!cgroups.refuse(id, 1) && !cgroups.is_refused(id, Some(1)));
        cgroups.tell(id, 1);
        assert!(!cgroups.refuse(CgroupId(id.0 + 1), 1) && !cgroups.refuse(id, 2));
        assert!(
            cgroups.refuse(id, 1)
                && cgroups.is_refused(id, Some(1))
                && !cgroups.is_refused(id, Some(2))
                && !cgroups.is_refused(id, None)
        );
        // The next session begins anew.
        cgroups.tell(id, 2);
        assert!(!cgroups.is_refused(id, Some(2)));
    }

    #[test]
    fn an_answer_is_good_for_a_while_and_for_its_own_key() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        let id = cgroups.of(7, pid, start, 0, 5).unwrap();
        assert_eq!(
            cgroups.good_until(7, id, 5),
            None,
            "who was sampled may have been moved before it was read"
        );
        for (key, id, sampled) in [(8, id, u64::MAX), (7, CgroupId(id.0 + 1), u64::MAX), (7, id, 5)] {
            cgroups.confirm(key, id, sampled);
            assert_eq!(cgroups.good_until(7, id, 5), None);
        }
        cgroups.confirm(7, id, u64::MAX);
        assert_eq!(cgroups.good_until(7, id, 5), Some(5 + GOOD_FOR));
        assert_eq!(cgroups.good_until(7, id, 5 + GOOD_FOR), None);
        assert_eq!(
            (cgroups.good_until(8, id, 5), cgroups.good_until(7, CgroupId(id.0 + 1), 5)),
            (None, None)
        );
        // A process that is gone cannot be asked: the answer is the old one, and no better.
        assert_eq!(cgroups.of(7, u32::MAX, 0, 0, 5 + GOOD_FOR), Some(id));
        assert_eq!(cgroups.good_until(7, id, 5 + GOOD_FOR), None);
        // One that is there can, and the key may be another set's by now: then that is the answer.
        cgroups.by_key.insert(7, Known { id: CgroupId(99), learnt: 5, read: 0, is_sure: true });
        assert_eq!(cgroups.of(7, pid, start, 0, 5), Some(CgroupId(99)));
        assert_eq!(cgroups.of(7, pid, start, 0, 5 + GOOD_FOR), Some(id));
        // Sampled after that, and still so.
        assert_eq!(cgroups.of(7, pid, start, u64::MAX, 5 + GOOD_FOR), Some(id));
        assert_eq!(cgroups.good_until(7, id, 5 + GOOD_FOR), Some(5 + 2 * GOOD_FOR));
    }

    /// A service's child is sampled in the service's cgroup, and has its own by the time that this is read.
    #[test]
    fn who_was_moved_does_not_take_others_along() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        let moved = cgroups.intern(b"0::/where/it/is/now");
        cgroups.by_key.insert(7, Known { id: moved, learnt: 0, read: 1, is_sure: false });
        // Who is gone can say nothing better.
        assert_eq!(cgroups.of(7, u32::MAX, 0, 2, 0), Some(moved));
        let id = cgroups.of(7, pid, start, 2, 0).unwrap();
        assert_ne!(id, moved);
        assert_eq!(cgroups.of(7, pid, start, u64::MAX, 0), Some(id));
        assert!(cgroups.good_until(7, id, 0).is_some() && cgroups.good_until(7, moved, 0).is_none());
    }

    #[test]
    fn there_is_a_bound() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        let first = cgroups.of(0, pid, start, 0, 0).unwrap();
        for key in 0..MAX_SETS as u64 + 100 {
            cgroups.of(key, pid, start, 0, 0);
        }
        assert!(cgroups.by_key.len() <= MAX_SETS);
        // All keys are of one set of cgroups: it is forgotten with them, and learnt again under another id.
        assert!(!cgroups.knows(first) && cgroups.of(0, pid, start, 0, 0).is_some_and(|id| cgroups.knows(id)));
    }

    #[test]
    fn long_texts_are_bounded_in_bytes() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        let text = |number: usize| format!("0::/{number}/{}", "x".repeat(8000)).into_bytes();
        let first = cgroups.intern(&text(0));
        for number in 1.. {
            if cgroups.bytes >= MAX_BYTES {
                break;
            }
            cgroups.intern(&text(number));
        }
        assert!(cgroups.texts.len() < MAX_SETS / 8 && cgroups.knows(first));
        let id = cgroups.of(7, pid, start, 0, 0).unwrap();
        assert!(cgroups.knows(id) && !cgroups.knows(first));
        assert_eq!(cgroups.bytes, cgroups.texts[&id].text.len());
    }
}
