//! Which cgroups a process is in. The BPF program says in each sample what tells one set of cgroups from another (a
//! key); the paths are in `/proc/PID/cgroup`. They are remembered by key, so that a process that is gone has its
//! sibling's answer.

use std::collections::HashMap;

use ipc::{Cgroup, CgroupId};

use crate::procfs;

/// Sets that are remembered; a host has thousands at most.
const MAX_SETS: usize = 16 * 1024;
/// How long an answer is good, in nanoseconds: where a key is made of an address in the kernel, another set may get it.
const GOOD_FOR: u64 = 10_000_000_000;

/// What is known of cgroups.
#[derive(Default)]
pub(crate) struct Cgroups {
    by_key: HashMap<u64, Known>,
    ids: HashMap<Vec<u8>, CgroupId>,
    texts: HashMap<CgroupId, Entry>,
    last: u32,
}

struct Known {
    id: CgroupId,
    learnt: u64,
}

struct Entry {
    text: Vec<u8>,
    /// The session that was told of it, and the one that does not want its samples.
    told: u32,
    unwanted: u32,
}

impl Cgroups {
    /// The cgroups behind a key, of which the process that `pid` was at `start_time` (in clock ticks) is a member;
    /// `now` in nanoseconds.
    pub(crate) fn of(&mut self, key: u64, pid: u32, start_time: u64, now: u64) -> Option<CgroupId> {
        let known = self.by_key.get(&key);
        if let Some(known) = known.filter(|known| now.saturating_sub(known.learnt) < GOOD_FOR) {
            return Some(known.id);
        }
        let known = known.map(|known| known.id);
        let Some(text) = procfs::cgroup_text(pid) else { return known };
        // Read after the text: if the pid is still the same process now, the text was its own.
        if procfs::stat(pid).is_none_or(|stat| stat.start_time != start_time) {
            return known;
        }
        if self.by_key.len() >= MAX_SETS || self.texts.len() >= MAX_SETS {
            // Cgroups come and go. What is forgotten here is learnt again at its next sample, under a new id.
            self.by_key.clear();
            self.ids.clear();
            self.texts.clear();
        }
        let id = self.intern(text);
        self.by_key.insert(key, Known { id, learnt: now });
        Some(id)
    }

    fn intern(&mut self, text: Vec<u8>) -> CgroupId {
        if let Some(id) = self.ids.get(&text) {
            return *id;
        }
        self.last += 1;
        let id = CgroupId(self.last);
        self.ids.insert(text.clone(), id);
        self.texts.insert(id, Entry { text, told: 0, unwanted: 0 });
        id
    }

    /// Whether this id still means something: not after its set was forgotten.
    pub(crate) fn knows(&self, id: CgroupId) -> bool {
        self.texts.contains_key(&id)
    }

    /// Until when the answer is good that this key is of this set; `None`: it is not good any more.
    pub(crate) fn good_until(&self, key: u64, id: CgroupId, now: u64) -> Option<u64> {
        let known = self.by_key.get(&key).filter(|known| known.id == id)?;
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
        Some(Cgroup { id, text: entry.text.clone() })
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
        assert_eq!(cgroups.of(7, u32::MAX, 0, 0), None);
        let id = cgroups.of(7, pid, start, 0).unwrap();
        assert_eq!(cgroups.of(7, u32::MAX, 0, 1), Some(id));
        // Also when the answer is old, if there is no better one.
        assert_eq!(cgroups.of(7, u32::MAX, 0, GOOD_FOR * 2), Some(id));
        // Another key with the same cgroups is the same set.
        assert_eq!(cgroups.of(8, pid, start, 0), Some(id));
        assert!(cgroups.tell(id, 1).is_some_and(|told| !told.text.is_empty()));
        assert_eq!(cgroups.tell(id, 1), None);
        assert!(cgroups.tell(id, 2).is_some());
        assert_eq!(cgroups.tell(CgroupId(99), 2), None);
    }

    #[test]
    fn a_reused_pid_does_not_lend_its_cgroups() {
        let (pid, start) = own();
        assert_eq!(Cgroups::default().of(7, pid, start + 1, 0), None);
    }

    #[test]
    fn only_what_was_told_can_be_refused_and_by_that_session_alone() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        let id = cgroups.of(7, pid, start, 0).unwrap();
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
        let id = cgroups.of(7, pid, start, 5).unwrap();
        assert_eq!(cgroups.good_until(7, id, 5), Some(5 + GOOD_FOR));
        assert_eq!(cgroups.good_until(7, id, 5 + GOOD_FOR), None);
        assert_eq!(
            (cgroups.good_until(8, id, 5), cgroups.good_until(7, CgroupId(id.0 + 1), 5)),
            (None, None)
        );
        // A process that is gone cannot be asked: the answer is the old one, and no better.
        assert_eq!(cgroups.of(7, u32::MAX, 0, 5 + GOOD_FOR), Some(id));
        assert_eq!(cgroups.good_until(7, id, 5 + GOOD_FOR), None);
        // One that is there can, and the key may be another set's by now: then that is the answer.
        cgroups.by_key.insert(7, Known { id: CgroupId(99), learnt: 5 });
        assert_eq!(cgroups.of(7, pid, start, 5 + GOOD_FOR), Some(id));
        assert_eq!(cgroups.good_until(7, id, 5 + GOOD_FOR), Some(5 + 2 * GOOD_FOR));
    }

    #[test]
    fn there_is_a_bound() {
        let mut cgroups = Cgroups::default();
        let (pid, start) = own();
        let first = cgroups.of(0, pid, start, 0).unwrap();
        for key in 0..MAX_SETS as u64 + 100 {
            cgroups.of(key, pid, start, 0);
        }
        assert!(cgroups.by_key.len() <= MAX_SETS);
        // All keys are of one set of cgroups: it is forgotten with them, and learnt again under another id.
        assert!(!cgroups.knows(first) && cgroups.of(0, pid, start, 0).is_some_and(|id| cgroups.knows(id)));
    }
}
