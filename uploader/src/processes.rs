//! Mirror of the collector's processes, for one session: the ids are good for no longer.

use std::collections::HashMap;

use ipc::{Cgroup, CgroupId, Comm, Process, ProcessId};

use crate::{
    printable::printable,
    targets::{CgroupFacts, Target, TargetMaker},
};

/// Most processes that are mirrored. The collector has a bound of its own; this one holds if that is broken.
const MAX_PROCESSES: usize = 65_536;
/// Most sets of cgroups that are mirrored.
const MAX_CGROUPS: usize = 65_536;

/// What is known of a process.
#[derive(Debug)]
struct Entry {
    comm: String,
    pid: u32,
    cgroup: Option<CgroupId>,
    /// Made when first asked for.
    target: Option<Target>,
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
    cgroups: HashMap<CgroupId, CgroupFacts>,
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
            .insert(process.id, Entry { comm, pid: process.pid, cgroup: process.cgroup, target: None, jit });
    }

    /// A new command name.
    pub fn rename(&mut self, comm: &Comm) {
        if let Some(entry) = self.entries.get_mut(&comm.process) {
            entry.comm = printable(&comm.comm);
            entry.target = None;
        }
    }

    /// A set of cgroups.
    pub fn add_cgroup(&mut self, cgroup: &Cgroup, maker: &TargetMaker) {
        if self.cgroups.len() >= MAX_CGROUPS && !self.cgroups.contains_key(&cgroup.id) {
            self.refused += 1;
            return;
        }
        self.cgroups.insert(cgroup.id, maker.cgroup(&cgroup.text));
    }

    /// The end of a process; the uploader's number of it, if it has one.
    pub fn remove(&mut self, process: ProcessId) -> Option<JitKey> {
        self.entries.remove(&process).and_then(|entry| entry.jit)
    }

    /// The target that a process belongs to; `None` if the process is not known.
    pub fn target(&mut self, process: ProcessId, maker: &TargetMaker) -> Option<Target> {
        let entry = self.entries.get_mut(&process)?;
        let target = entry.target.get_or_insert_with(|| {
            let cgroup = entry.cgroup.and_then(|cgroup| self.cgroups.get(&cgroup));
            maker.target(&entry.comm, Some(entry.pid), cgroup)
        });
        Some(target.clone())
    }

    /// All targets are to be made again: the rules are others.
    pub fn forget_targets(&mut self) {
        for entry in self.entries.values_mut() {
            entry.target = None;
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

    fn process(id: u32, comm: &[u8]) -> Process {
        let cgroup = Some(CgroupId(1));
        Process { id: ProcessId(id), pid: id, start_time: 0, comm: comm.to_vec(), cgroup }
    }

    #[test]
    fn labels_follow_what_is_known() {
        let maker = TargetMaker::new("n", []);
        let mut processes = Processes::default();
        let id = ProcessId(1);
        assert_eq!(processes.target(id, &maker), None);
        let text = b"0::/system.slice/a.service".to_vec();
        processes.add_cgroup(&Cgroup { id: CgroupId(1), text }, &maker);
        processes.add(&process(1, b"x\xff"));
        let mut labels = || match processes.target(id, &maker) {
            Some(Target::Of(labels)) => labels,
            other => panic!("{other:?}"),
        };
        let first = labels();
        assert_eq!(first.to_string(), r#"{comm="x\\xff", node="n", systemd_unit="a.service"}"#);
        assert!(std::sync::Arc::ptr_eq(&first, &labels()), "made once");

        processes.rename(&Comm { process: id, comm: b"y".to_vec() });
        let Some(Target::Of(labels)) = processes.target(id, &maker) else { panic!("no target") };
        assert_eq!(labels.get("comm"), "y");
        assert_eq!(processes.remove(id), None);
        assert_eq!(processes.target(id, &maker), None);
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
        for id in 0..u32::try_from(MAX_PROCESSES).unwrap() + 100 {
            processes.add(&process(id, b""));
            processes.add_cgroup(&Cgroup { id: CgroupId(id), text: vec![] }, &maker);
        }
        assert_eq!((processes.len(), processes.cgroups()), (MAX_PROCESSES, MAX_CGROUPS));
        assert_eq!(processes.refused, 200);
        processes.add(&process(5, b"known ones can change"));
        assert_eq!(processes.refused, 200);
    }
}
