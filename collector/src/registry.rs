//! What runs on this machine, kept up to date with the kernel's records, in the order of their time.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    os::fd::OwnedFd,
    time::Instant,
};

use ipc::{ExecutableId, FromCollector, ProcessId};
use records::Loss;

use crate::{
    address_space::{AddressSpace, Code, CodeMapping, MAX_MAPPINGS},
    cgroups::Cgroups,
    counters::Losses,
    executables::{Executables, KEPT_EXECUTABLES, MAX_EXECUTABLES, VDSO},
    kernel_events::{KernelEvent, Mapped, What},
    link::Link,
    patience,
    processes::{NewProcess, Process, Processes},
    procfs,
    rescan::Rescan,
    serve,
};

/// Processes a second that are looked up in `/proc` because a record about them is missing.
const LOOK_UPS_PER_SECOND: u32 = 100;
/// Processes that are looked at later, at most. And how many are tried in a second: it takes some 70 us to find that it is too early.
const MOST_FOR_LATER: usize = 4096;
const TRIED_PER_SECOND: usize = 32;
/// Addresses from here on are the kernel's (the vsyscall page among them).
const KERNEL_HALF: u64 = 1 << 63;

/// Everything that runs.
pub(crate) struct Registry {
    pub(crate) processes: Processes,
    pub(crate) executables: Executables,
    pub(crate) cgroups: Cgroups,
    pub(crate) losses: Losses,
    /// Records were lost, so that `/proc` must be read again.
    incomplete: bool,
    rescan: Rescan,
    /// Processes whose owner's were left alone when it was time to look at them, and the one that was tried last.
    for_later: BTreeSet<u32>,
    tried_last: u32,
    look_ups: u32,
    /// When so many executables are known, those that nobody has mapped are forgotten.
    forget_above: usize,
    /// Pids of which the BPF programs must be told anew.
    pub(crate) changed: Vec<u32>,
    /// Executables that the uploader has just got the file of.
    pub(crate) passed: Vec<ExecutableId>,
    /// Processes whose last thread has ended, oldest first: when, and which.
    ended: VecDeque<(u64, u32, ProcessId)>,
}

impl Registry {
    pub(crate) fn new() -> Self {
        Registry {
            processes: Processes::default(),
            executables: Executables::new(),
            cgroups: Cgroups::default(),
            losses: Losses::new(),
            incomplete: false,
            rescan: Rescan::default(),
            for_later: BTreeSet::new(),
            tried_last: 0,
            look_ups: 0,
            forget_above: KEPT_EXECUTABLES,
            changed: Vec::new(),
            passed: Vec::new(),
            ended: VecDeque::new(),
        }
    }

    /// Reads `/proc`, at the start. `now` in nanoseconds.
    pub(crate) fn scan(&mut self, now: u64, link: &mut Link) -> io::Result<()> {
        for pid in procfs::pids()? {
            self.look_up(pid, now, link);
        }
        Ok(())
    }

    /// Reads a piece of `/proc`, if records were lost. Returns whether more of it is to be read.
    pub(crate) fn read_again(&mut self, now: u64, link: &mut Link) -> io::Result<bool> {
        let begun = Instant::now();
        if self.incomplete && self.rescan.may_begin(begun) {
            self.rescan.begin(procfs::pids()?);
            // What is lost from now on is for the next time.
            self.incomplete = false;
        }
        if !self.rescan.is_under_way() {
            return Ok(false);
        }
        while let Some(pid) = self.rescan.next(begun) {
            self.look_up(pid, now, link);
        }
        if !self.rescan.is_under_way() {
            self.remove_gone(link);
        }
        self.rescan.pause(begun);
        Ok(self.rescan.is_under_way())
    }

    /// Looks at some of those that could not be looked at before, in turn. Called once a second.
    pub(crate) fn look_again(&mut self, now: u64, link: &mut Link) {
        let last = self.tried_last;
        let (before, behind) =
            (self.for_later.range(..=last), self.for_later.range(last.saturating_add(1)..));
        let pids: Vec<u32> = behind.chain(before).take(TRIED_PER_SECOND).copied().collect();
        for pid in pids {
            self.tried_last = pid;
            self.for_later.remove(&pid);
            self.look_up(pid, now, link);
        }
    }

    fn look_later(&mut self, pid: u32) {
        if self.for_later.len() < MOST_FOR_LATER {
            self.for_later.insert(pid);
        }
    }

    /// Removes processes whose end was not heard of.
    pub(crate) fn remove_gone(&mut self, link: &mut Link) {
        let gone: Vec<u32> = self.processes.pids().filter(|pid| !procfs::exists(*pid)).collect();
        for pid in gone {
            let removed = self.processes.remove(pid);
            self.changed.push(pid);
            self.tell_end(removed.as_ref(), link);
        }
    }

    /// Called once a second; `now` in nanoseconds. Returns whether executables were forgotten.
    pub(crate) fn tick(&mut self, now: u64) -> bool {
        self.look_ups = 0;
        self.changed.extend(self.processes.settle(now));
        let too_many = self.executables.len() > self.forget_above;
        if too_many {
            self.executables.retain(&self.processes.mapped_executables());
            // Where that many are mapped, not each second anew.
            self.forget_above = (2 * self.executables.len()).clamp(KEPT_EXECUTABLES, MAX_EXECUTABLES - 1);
        }
        too_many
    }

    /// Applies one record.
    pub(crate) fn apply(&mut self, event: KernelEvent, now: u64, link: &mut Link) {
        let at = event.timestamp;
        match event.what {
            // What the kernel writes for processes that have no number in the collector's pid namespace (`perf_event_pid_type`,
            // kernel/events/core.c), and for those that are gone.
            What::Fork { pid: 0 | u32::MAX, .. }
            | What::Exec { pid: 0 | u32::MAX, .. }
            | What::Exit { pid: 0 | u32::MAX } => {}
            What::Map(mapped) if matches!(mapped.pid, 0 | u32::MAX) => {}
            What::Fork { pid, parent } if pid == parent => {
                if let Some(process) = self.processes.get_mut(pid).filter(|process| process.counted_at < at) {
                    process.threads = process.threads.saturating_add(1);
                }
            }
            What::Fork { pid, parent } => self.fork(pid, parent, at, link),
            What::Exec { pid, comm } => self.exec(pid, comm, at, link),
            What::Comm { pid, tid, comm } if pid == tid => self.rename(pid, comm),
            What::Comm { .. } => {}
            What::Map(mapped) => self.map(&mapped, now, link),
            What::Exit { pid } => self.exit(pid, at),
            What::Lost(records) => {
                self.losses.add(Loss::KernelEvents, records);
                self.incomplete = true;
            }
        }
    }

    /// The child has what its parent had, until it maps something or execs.
    fn fork(&mut self, pid: u32, parent: u32, at: u64, link: &mut Link) {
        if self.for_later.contains(&parent) {
            self.look_later(pid);
        }
        let Some(parent) = self.processes.get_mut(parent) else { return };
        let child = NewProcess {
            comm: parent.comm.clone(),
            space: parent.space.clone(),
            threads: 1,
            counted_at: at,
            start_time: None,
            cgroup: parent.cgroup,
        };
        self.insert(pid, child, link);
    }

    /// Another program: nothing of the old one's mappings is left, nor its other threads.
    fn exec(&mut self, pid: u32, comm: Vec<u8>, at: u64, link: &mut Link) {
        let old = self.processes.get_mut(pid);
        let new = NewProcess {
            comm,
            space: AddressSpace::default(),
            threads: 1,
            counted_at: at,
            start_time: old.as_ref().and_then(|old| old.start_time),
            cgroup: old.and_then(|old| old.cgroup),
        };
        self.insert(pid, new, link);
    }

    /// The process has a new name. The uploader is told with the next sample: a process can have more names than anybody could be told.
    pub(crate) fn rename(&mut self, pid: u32, comm: Vec<u8>) {
        if let Some(process) = self.processes.get_mut(pid).filter(|process| process.comm != comm) {
            process.comm = comm;
            process.renamed = true;
        }
    }

    fn exit(&mut self, pid: u32, at: u64) {
        let Some(process) = self.processes.get_mut(pid).filter(|process| process.counted_at < at) else {
            return;
        };
        process.threads = process.threads.saturating_sub(1);
        if process.threads == 0 {
            self.changed.push(pid);
            self.ended.push_back((at, pid, process.id));
        }
    }

    /// Forgets the processes that ended before `time` (nanoseconds). Not at once: after its record a thread still runs
    /// in the kernel for a while, and is sampled there.
    pub(crate) fn forget_ended(&mut self, time: u64, link: &mut Link) {
        while let Some((_, pid, id)) = self.ended.pop_front_if(|(ended, ..)| *ended < time) {
            // Another process may have the pid by now, and the end of this one is told already.
            let Some(process) = self.processes.get_mut(pid).filter(|process| process.id == id) else {
                continue;
            };
            if process.threads > 0 {
                // It has not ended: one of its threads was not heard of then.
                self.changed.push(pid);
            } else {
                let removed = self.processes.remove(pid);
                self.tell_end(removed.as_ref(), link);
            }
        }
    }

    fn map(&mut self, mapped: &Mapped, now: u64, link: &mut Link) {
        if self.processes.get_mut(mapped.pid).is_none() {
            // Its fork was not heard of. What `/proc` says includes this mapping.
            self.look_up_limited(mapped.pid, now, link);
        }
        let text = self.replaced_text(mapped);
        if text.is_empty() {
            self.map_one(mapped, now, link);
        }
        for piece in &text {
            self.map_one(piece, now, link);
        }
    }

    fn map_one(&mut self, mapped: &Mapped, now: u64, link: &mut Link) {
        if let Some((mapping, file)) = self.code_mapping(mapped, now) {
            // Before the process ends. Where there is no room, when it is sampled.
            if let (Code::File(id), Some(file)) = (mapping.code, file)
                && link.has_room_to_spare()
            {
                self.tell_executable(id, Some(file), link);
            }
            if let Some(process) = self.processes.get_mut(mapped.pid)
                && process.space.map(mapping).is_err()
            {
                self.losses.add(Loss::TooManyMappings, 1);
            }
            self.changed.push(mapped.pid);
        }
    }

    /// If memory was mapped over a file: the pieces of the file's text that it stands for. None if it is code made at run
    /// time, where a file was before; the kernel does not tell of what is unmapped, so `/proc` decides.
    fn replaced_text(&mut self, mapped: &Mapped) -> Vec<Mapped> {
        let Mapped { pid, start, end, .. } = *mapped;
        let shows_file = |process: &mut Process| process.space.shows_file(start, end);
        if mapped.is_file() || !self.processes.get_mut(pid).is_some_and(shows_file) {
            return Vec::new();
        }
        let Some(Ok(mut mappings)) = self.limited(|_| procfs::executable_mappings(pid, MAX_MAPPINGS)) else {
            self.look_later(pid);
            return Vec::new();
        };
        mappings.retain(|piece| piece.start < end && start < piece.end && piece.is_file());
        mappings
    }

    /// What a mapping shows; with the file, if it was opened to know.
    fn code_mapping(&mut self, mapped: &Mapped, now: u64) -> Option<(CodeMapping, Option<OwnedFd>)> {
        if mapped.start >= KERNEL_HALF {
            return None;
        }
        let (code, file) = if mapped.path == b"[vdso]" {
            (Code::File(VDSO), None)
        } else if mapped.is_file() {
            let (id, file) = self.executables.of(mapped, now, &mut self.losses);
            (Code::File(id), file)
        } else {
            (Code::Anonymous, None)
        };
        let offset = if code == Code::File(VDSO) { 0 } else { mapped.offset };
        Some((CodeMapping { start: mapped.start, end: mapped.end, offset, code }, file))
    }

    /// A process that was not heard of, from `/proc`, as often as that is affordable.
    pub(crate) fn look_up_limited(&mut self, pid: u32, now: u64, link: &mut Link) {
        self.limited(|registry| registry.look_up(pid, now, link));
    }

    /// Looks something up in `/proc`, if that is affordable now.
    fn limited<T>(&mut self, look_up: impl FnOnce(&mut Self) -> T) -> Option<T> {
        if self.look_ups >= LOOK_UPS_PER_SECOND {
            return None;
        }
        let begin = Instant::now();
        let found = look_up(self);
        // A process with very many mappings takes longer than a millisecond, and counts as many.
        let milliseconds = u32::try_from(begin.elapsed().as_millis()).unwrap_or(LOOK_UPS_PER_SECOND);
        self.look_ups = self.look_ups.saturating_add(milliseconds).saturating_add(1);
        Some(found)
    }

    /// Puts what `/proc` says of a process in the place of what was known of it. A process that is known and still
    /// the same keeps its id.
    fn look_up(&mut self, pid: u32, now: u64, link: &mut Link) {
        // Not of the whole round, which may have begun long ago: threads that ended since are not in what it says.
        let counted_at = serve::now();
        let Some(stat) = procfs::stat(pid) else { return };
        self.changed.push(pid);
        let mut space = AddressSpace::default();
        let mappings = procfs::executable_mappings(pid, MAX_MAPPINGS);
        let is_read = mappings.is_ok();
        if mappings.as_ref().is_err_and(patience::is_for_later) {
            self.look_later(pid);
        }
        for mapped in mappings.unwrap_or_default() {
            if let Some((mapping, _)) = self.code_mapping(&mapped, now)
                && space.map(mapping).is_err()
            {
                self.losses.add(Loss::TooManyMappings, 1);
            }
        }
        if let Some(process) = self.processes.get_mut(pid)
            && process.comm == stat.comm
            && process.start_time.is_none_or(|start_time| start_time == stat.start_time)
        {
            // Its owner's processes may be left alone just now: then what is known of it is better than nothing.
            if is_read {
                process.space = space;
            }
            process.threads = stat.threads;
            process.counted_at = counted_at;
            process.start_time = Some(stat.start_time);
            return;
        }
        let new = NewProcess {
            comm: stat.comm,
            space,
            threads: stat.threads,
            counted_at,
            start_time: Some(stat.start_time),
            cgroup: None,
        };
        self.insert(pid, new, link);
    }

    /// Adds a process; whatever had its pid before has ended.
    pub(crate) fn insert(&mut self, pid: u32, new: NewProcess, link: &mut Link) {
        self.changed.push(pid);
        match self.processes.insert(pid, new) {
            Ok(old) => self.tell_end(old.as_ref(), link),
            Err(_) => self.losses.add(Loss::TooManyProcesses, 1),
        }
    }

    fn tell_end(&mut self, ended: Option<&Process>, link: &mut Link) {
        if let Some(ended) = ended.filter(|ended| link.session() == Some(ended.told)) {
            link.tell(&FromCollector::Exit(ended.id), None, &mut self.losses);
        }
    }

    /// Tells of an executable, if this session was not told yet.
    pub(crate) fn tell_executable(&mut self, id: ExecutableId, file: Option<OwnedFd>, link: &mut Link) {
        if let Some(session) = link.session()
            && let Some(executable) = self.executables.tell(id, session)
        {
            if file.is_some() {
                self.passed.push(id);
            }
            link.tell(&FromCollector::Executable(executable), file, &mut self.losses);
        }
    }

    /// The pid of a process that this session was told of and that is still there.
    pub(crate) fn told_process(&self, id: ProcessId, link: &Link) -> Option<(u32, &Process)> {
        self.processes.by_id(id).filter(|(_, process)| link.session() == Some(process.told))
    }
}

#[cfg(test)]
mod tests;
