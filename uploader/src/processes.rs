//! Mirror of the collector's processes, for one session: the ids are good for no longer.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ipc::{Cgroup, CgroupId, Comm, Process, ProcessId};

use crate::{
    printable::printable,
    targets::{CgroupFacts, Origin, TargetMaker},
};

/// Most processes that are mirrored. The collector has a bound of its own; this one holds if that is broken.
const MAX_PROCESSES: usize = 65_536;
/// Most sets of cgroups that are mirrored.
pub const MAX_CGROUPS: usize = 65_536;

/// What is known of a process.
#[derive(Debug)]
struct Entry {
    comm: String,
    pid: u32,
    cgroup: Option<CgroupId>,
    /// Made when first asked for.
    origin: Option<Arc<Origin>>,
    /// The uploader's own number of the process, if it runs code without a file: see [`JitKey`].
    jit: Option<JitKey>,
}

/// A process with code that has no file, by a number of the uploader's own that is not used again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct JitKey(pub u32);

/// The mirror.
#[derive(Debug, Default)]
pub struct Processes {
    entries: HashMap<ProcessId, Entry>,
    cgroups: HashMap<CgroupId, Arc<CgroupFacts>>,
    /// Processes and cgroups that were refused, for want of room.
    pub refused: u64,
}

impl Processes {
    /// Forgets all: the session is over.
    pub fn end_session(&mut self) {
        self.entries = HashMap::new();
        self.cgroups = HashMap::new();
    }

    /// A process that is new, or of which something changed.
    pub fn add(&mut self, process: &Process) {
        if self.entries.len() >= MAX_PROCESSES && !self.entries.contains_key(&process.id) {
            self.refused += 1;
            return;
        }
        let comm = printable(&process.comm);
        let jit = self.entries.get(&process.id).and_then(|entry| entry.jit);
        self.entries
            .insert(process.id, Entry { comm, pid: process.pid, cgroup: process.cgroup, origin: None, jit });
    }

    /// A new command name.
    pub fn rename(&mut self, comm: &Comm) {
        if let Some(entry) = self.entries.get_mut(&comm.process) {
            entry.comm = printable(&comm.comm);
            entry.origin = None;
        }
    }

    /// A set of cgroups. Returns whether samples of it are kept.
    pub fn add_cgroup(&mut self, cgroup: &Cgroup, maker: &TargetMaker) -> bool {
        let facts = maker.cgroup(&cgroup.text);
        let is_kept = facts.is_kept();
        if self.cgroups.len() >= MAX_CGROUPS && !self.cgroups.contains_key(&cgroup.id) {
            // Cgroups come and go, and nobody tells of their end: the last process that was in one does.
            let used: HashSet<_> = self.entries.values().filter_map(|entry| entry.cgroup).collect();
            self.cgroups.retain(|id, _| used.contains(id));
            if self.cgroups.len() >= MAX_CGROUPS {
                self.refused += 1;
                return is_kept;
            }
        }
        self.cgroups.insert(cgroup.id, Arc::new(facts));
        is_kept
    }

    /// The end of a process; the uploader's number of it, if it has one.
    pub fn remove(&mut self, process: ProcessId) -> Option<JitKey> {
        self.entries.remove(&process).and_then(|entry| entry.jit)
    }

    /// Where samples of a process come from; `None` if the process is not known.
    pub fn origin(&mut self, process: ProcessId, maker: &TargetMaker) -> Option<Arc<Origin>> {
        let entry = self.entries.get_mut(&process)?;
        let origin = entry.origin.get_or_insert_with(|| {
            let cgroup = entry.cgroup.and_then(|cgroup| self.cgroups.get(&cgroup)).map(Arc::clone);
            let pid = maker.wants_pids().then_some(entry.pid);
            Arc::new(Origin { comm: entry.comm.clone(), pid, cgroup })
        });
        Some(Arc::clone(origin))
    }

    /// All origins are to be made again: the rules want to know other things.
    pub fn forget_origins(&mut self) {
        for entry in self.entries.values_mut() {
            entry.origin = None;
        }
    }

    /// The uploader's number of a process, made by `make` if it has none yet; `None` if the process is not known.
    pub fn jit(&mut self, process: ProcessId, make: impl FnOnce() -> JitKey) -> Option<JitKey> {
        let entry = self.entries.get_mut(&process)?;
        Some(*entry.jit.get_or_insert_with(make))
    }

    /// Processes that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Sets of cgroups that are known.
    pub fn cgroups(&self) -> usize {
        self.cgroups.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{discovery::Discovery, targets::Target};

    fn process(id: u32, comm: &[u8]) -> Process {
        let cgroup = Some(CgroupId(1));
        Process { id: ProcessId(id), pid: id, start_time: 0, comm: comm.to_vec(), cgroup }
    }

    #[test]
    fn origins_follow_what_is_known() {
        let maker = TargetMaker::new("n", []);
        let discovery = Discovery::default();
        let mut processes = Processes::default();
        let id = ProcessId(1);
        assert_eq!(processes.origin(id, &maker), None);
        let text = b"0::/system.slice/a.service".to_vec();
        processes.add_cgroup(&Cgroup { id: CgroupId(1), text }, &maker);
        processes.add(&process(1, b"x\xff"));
        let first = processes.origin(id, &maker).unwrap();
        let Target::Of(labels) = maker.target(&first, &discovery) else { panic!("no target") };
        assert_eq!(labels.to_string(), r#"{comm="x\\xff", node="n", systemd_unit="a.service"}"#);
        assert!(Arc::ptr_eq(&first, &processes.origin(id, &maker).unwrap()), "made once");

        processes.rename(&Comm { process: id, comm: b"y".to_vec() });
        assert_eq!(processes.origin(id, &maker).unwrap().comm, "y");
        assert_eq!(processes.remove(id), None);
        assert_eq!(processes.origin(id, &maker), None);
        assert_eq!(processes.len(), 0);
    }

    #[test]
    fn a_number_of_its_own_survives_an_update() {
        let mut processes = Processes::default();
        let id = ProcessId(1);
        assert_eq!(processes.jit(id, || JitKey(7)), None);
        processes.add(&process(1, b"x"));
        assert_eq!(processes.jit(id, || JitKey(7)), Some(JitKey(7)));
        processes.add(&process(1, b"y"));
        assert_eq!(processes.jit(id, || JitKey(8)), Some(JitKey(7)));
        assert_eq!(processes.remove(id), Some(JitKey(7)));
    }

    #[test]
    fn growth_is_bounded() {
        let maker = TargetMaker::new("n", []);
        let mut processes = Processes::default();
        let of = |id| Process { cgroup: Some(CgroupId(id)), ..process(id, b"") };
        for id in 0..u32::try_from(MAX_PROCESSES).unwrap() + 100 {
            processes.add_cgroup(&Cgroup { id: CgroupId(id), text: vec![] }, &maker);
            processes.add(&of(id));
        }
        assert_eq!((processes.len(), processes.cgroups()), (MAX_PROCESSES, MAX_CGROUPS));
        assert_eq!(processes.refused, 200);
        processes.add(&process(5, b"known ones can change"));
        assert_eq!(processes.refused, 200);
        // What no process is in any more makes room.
        processes.remove(ProcessId(6));
        processes.add_cgroup(&Cgroup { id: CgroupId(u32::MAX), text: vec![] }, &maker);
        processes.add(&of(u32::MAX));
        assert!(processes.origin(ProcessId(u32::MAX), &maker).unwrap().cgroup.is_some());
        assert_eq!((processes.cgroups(), processes.refused), (MAX_CGROUPS - 1, 200));
    }
}
