//! Processes: who they are, from one exec to the next, and where their code lies.

use std::collections::{HashMap, HashSet};

use ipc::{CgroupId, ExecutableId, ProcessId};

use crate::address_space::{AddressSpace, Code, CodeMapping};

/// Processes that are known at a time. A kernel allows up to four million; a host runs thousands.
pub(crate) const MAX_PROCESSES: usize = 64 * 1024;

/// A process, from its fork or exec to its next exec or its end.
pub(crate) struct Process {
    pub(crate) id: ProcessId,
    /// Command name of the process (of its main thread).
    pub(crate) comm: Vec<u8>,
    /// Whether the session was told of another name.
    pub(crate) renamed: bool,
    pub(crate) space: AddressSpace,
    /// When the BPF programs were last shown it (nanoseconds).
    pub(crate) shown: u64,
    /// Threads that run. When the last one ends, so does the process: the main thread may end before others.
    pub(crate) threads: u32,
    /// Records older than this are in the number of threads already (nanoseconds).
    pub(crate) counted_at: u64,
    /// In clock ticks since boot, once a sample or `/proc` has told it.
    pub(crate) start_time: Option<u64>,
    /// What the last sample said of its cgroups, and which those are.
    pub(crate) cgroup_key: Option<u64>,
    pub(crate) cgroup: Option<CgroupId>,
    /// The session that was told of it, and of its code without a file.
    pub(crate) told: u32,
    pub(crate) told_anonymous: u32,
}

/// All processes, by pid.
#[derive(Default)]
pub(crate) struct Processes {
    by_pid: HashMap<u32, Process>,
    pids: HashMap<ProcessId, u32>,
    last: u32,
}

/// There are [`MAX_PROCESSES`] already.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooMany;

impl Processes {
    pub(crate) fn get_mut(&mut self, pid: u32) -> Option<&mut Process> {
        self.by_pid.get_mut(&pid)
    }

    pub(crate) fn by_id(&self, id: ProcessId) -> Option<(u32, &Process)> {
        let pid = *self.pids.get(&id)?;
        Some((pid, self.by_pid.get(&pid)?))
    }

    pub(crate) fn len(&self) -> usize {
        self.by_pid.len()
    }

    pub(crate) fn pids(&self) -> impl Iterator<Item = u32> {
        self.by_pid.keys().copied()
    }

    /// Puts a process in the place of whatever had this pid, which is returned.
    pub(crate) fn insert(&mut self, pid: u32, new: NewProcess) -> Result<Option<Process>, TooMany> {
        if self.by_pid.len() >= MAX_PROCESSES && !self.by_pid.contains_key(&pid) {
            return Err(TooMany);
        }
        self.last = self.last.wrapping_add(1).max(1);
        let process = Process {
            id: ProcessId(self.last),
            comm: new.comm,
            space: new.space,
            threads: new.threads,
            counted_at: new.counted_at,
            start_time: new.start_time,
            cgroup_key: None,
            cgroup: new.cgroup,
            renamed: false,
            shown: 0,
            told: 0,
            told_anonymous: 0,
        };
        self.pids.insert(process.id, pid);
        let old = self.by_pid.insert(pid, process);
        if let Some(old) = &old {
            self.pids.remove(&old.id);
        }
        Ok(old)
    }

    pub(crate) fn remove(&mut self, pid: u32) -> Option<Process> {
        let process = self.by_pid.remove(&pid)?;
        self.pids.remove(&process.id);
        Some(process)
    }

    /// Processes whose mappings have stopped to change; see [`AddressSpace::settle`].
    pub(crate) fn settle(&mut self, now: u64) -> impl Iterator<Item = u32> {
        self.by_pid.iter_mut().filter_map(move |(pid, process)| process.space.settle(now).then_some(*pid))
    }

    /// Executables that some process has mapped.
    pub(crate) fn mapped_executables(&self) -> HashSet<ExecutableId> {
        let mappings = self.by_pid.values().flat_map(|process| process.space.mappings());
        mappings.filter_map(CodeMapping::file).collect()
    }

    /// Where an executable is mapped: pid, first and last address.
    pub(crate) fn mapping_of(&self, executable: ExecutableId) -> impl Iterator<Item = (u32, u64, u64)> {
        self.by_pid.iter().flat_map(move |(pid, process)| {
            let mappings = process.space.mappings().iter();
            mappings
                .filter(move |mapping| mapping.code == Code::File(executable))
                .map(|mapping| (*pid, mapping.start, mapping.end))
        })
    }
}

/// What is known of a process when it comes.
#[derive(Default)]
pub(crate) struct NewProcess {
    pub(crate) comm: Vec<u8>,
    pub(crate) space: AddressSpace,
    pub(crate) threads: u32,
    pub(crate) counted_at: u64,
    pub(crate) start_time: Option<u64>,
    pub(crate) cgroup: Option<CgroupId>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address_space::CodeMapping;

    #[test]
    fn a_reused_pid_is_another_process() {
        let mut processes = Processes::default();
        processes.insert(7, NewProcess { comm: b"a".to_vec(), ..NewProcess::default() }).unwrap();
        let first = processes.get_mut(7).unwrap().id;
        let old = processes
            .insert(7, NewProcess { comm: b"b".to_vec(), ..NewProcess::default() })
            .unwrap()
            .unwrap();
        assert_eq!(old.id, first);
        let second = processes.get_mut(7).unwrap().id;
        assert_ne!(first, second);
        assert!(processes.by_id(first).is_none());
        assert_eq!(processes.by_id(second).unwrap().0, 7);
        assert_eq!(processes.remove(7).unwrap().comm, b"b");
        assert!(processes.by_id(second).is_none() && processes.remove(7).is_none() && processes.len() == 0);
    }

    #[test]
    fn there_is_a_bound() {
        let mut processes = Processes::default();
        for pid in 0..u32::try_from(MAX_PROCESSES).unwrap() {
            processes.insert(pid, NewProcess::default()).unwrap();
        }
        assert_eq!(processes.insert(u32::MAX, NewProcess::default()).err(), Some(TooMany));
        assert!(processes.insert(0, NewProcess::default()).is_ok());
    }

    #[test]
    fn who_has_an_executable_mapped_is_found() {
        let mut processes = Processes::default();
        let mut space = AddressSpace::default();
        let code = Code::File(ExecutableId(5));
        space.map(CodeMapping { start: 0x1000, end: 0x2000, offset: 0, code }).unwrap();
        processes.insert(7, NewProcess { space, ..NewProcess::default() }).unwrap();
        assert_eq!(processes.mapping_of(ExecutableId(5)).collect::<Vec<_>>(), [(7, 0x1000, 0x2000)]);
        assert_eq!(processes.mapping_of(ExecutableId(6)).count(), 0);
        assert_eq!(processes.mapped_executables(), HashSet::from([ExecutableId(5)]));
    }
}
