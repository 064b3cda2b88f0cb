//! The collector's work, round by round: take what the kernel has recorded, put it in the order of time, apply what
//! it says of processes and mappings, place the samples' frames, and pass them on.
//!
//! Samples and records go through one line, sorted by time, so a sample meets the mappings of its own moment: those
//! before an exec the old program's, those after it the new one's.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use ipc::{
    Anonymous, CgroupId, Comm, Counters, Executable, ExecutableId, ExecutableKind, FromCollector,
    FromUploader, KernelFrame, KernelSymbols, NotReopened, Process as ProcessMessage, ProcessId, Sample,
    SkipCounters, UserFrame, Welcome,
};
use records::{End, Loss};

use crate::{
    counters::Losses,
    executables,
    kernel_events::{KernelEvent, KernelEvents},
    kernel_symbols::KernelText,
    link::Link,
    logger, perf_map,
    processes::NewProcess,
    programs::{Programs, Shared},
    registry::Registry,
    samples::{self, RawSample},
    serve,
    skipped::Skipped,
    spaces::Spaces,
    stacks,
    unwind_tables::{TableError, UnwindTables},
    waiting::{self, OnItsWay, Waiting},
};

/// What is younger than this (nanoseconds) waits for the next round: another CPU may be about to write something older.
const SETTLING: u64 = 1_000_000;
/// How long records are applied in one round. A record takes some microseconds, and many times that where a process makes it dear.
const LONGEST_APPLYING: Duration = Duration::from_millis(100);
/// A process that changes again and again is shown to the BPF programs anew after so long (nanoseconds) for each of its mappings: all of them
/// are written each time.
const PAUSE_FOR_MAPPING: u64 = 40_000;
/// How long a process is known after its end (nanoseconds): its last samples come from the kernel's own clean-up.
/// So do those that wait for unwind rows.
const LINGERING: u64 = 500_000_000 + waiting::WAIT_FOR;
/// Most samples taken in one round.
const MOST_SAMPLES: usize = 16 * 1024;
/// Room for so many records and samples stays when a burst is over.
const KEPT_ROOM: usize = 1024;
const SECOND: u64 = 1_000_000_000;
const LOOK_FOR_GONE_EVERY: u64 = 30 * SECOND;
/// How often the kernel's symbols are read again at most, when code shows up that is in none.
const READ_SYMBOLS_EVERY: u64 = 60 * SECOND;

/// All that the collector has after its start.
pub(crate) struct Profiler {
    programs: Programs,
    kernel_events: KernelEvents,
    kernel_text: KernelText,
    kernel_symbols: Option<(KernelSymbols, OwnedFd)>,
    vdso: Option<OwnedFd>,
    registry: Registry,
    tables: UnwindTables,
    spaces: Spaces,
    skipped: Skipped,
    /// What it does not count itself.
    skips: SkipCounters,
    pub(crate) link: Link,
    welcome: Welcome,
    /// What waits for its turn, sorted by time.
    events: Vec<KernelEvent>,
    samples: Vec<RawSample>,
    /// Records were left for the next round, which takes no others: the rings are where they wait, and are lost if there is no room.
    is_behind: bool,
    waiting: Waiting,
    clock_ticks: u64,
    applied_events: u64,
    /// Stacks that ended otherwise than the programs counted, by the one end and by the other.
    not_ended_so: Vec<u64>,
    ended_so: Vec<u64>,
    unknown_kernel_code: bool,
    last: Times,
}

/// When things were last done, in nanoseconds.
#[derive(Default)]
struct Times {
    tick: u64,
    look_for_gone: u64,
    read_symbols: u64,
}

/// What [`Profiler`] is made of.
pub(crate) struct Parts {
    pub(crate) programs: Programs,
    pub(crate) shared: Shared,
    pub(crate) kernel_events: KernelEvents,
    pub(crate) kernel_text: KernelText,
    pub(crate) kernel_symbols: Option<(KernelSymbols, OwnedFd)>,
    pub(crate) vdso: Option<OwnedFd>,
    pub(crate) welcome: Welcome,
    /// Whether command names may leave.
    pub(crate) command_names: bool,
}

impl Profiler {
    pub(crate) fn new(parts: Parts, now: u64) -> std::io::Result<Self> {
        let mut profiler = Profiler {
            programs: parts.programs,
            kernel_events: parts.kernel_events,
            kernel_text: parts.kernel_text,
            kernel_symbols: parts.kernel_symbols,
            vdso: parts.vdso,
            registry: Registry::new(),
            tables: UnwindTables::new(parts.shared.tables),
            spaces: Spaces::new(parts.shared.spaces),
            skipped: Skipped::new(parts.shared.skipped),
            skips: SkipCounters::default(),
            link: Link::new(parts.command_names),
            welcome: parts.welcome,
            events: Vec::new(),
            samples: Vec::new(),
            is_behind: false,
            waiting: Waiting::default(),
            clock_ticks: rustix::param::clock_ticks_per_second(),
            applied_events: 0,
            not_ended_so: vec![0; End::ALL.len() + 1],
            ended_so: vec![0; End::ALL.len() + 1],
            unknown_kernel_code: false,
            last: Times { tick: now, look_for_gone: now, read_symbols: now },
        };
        profiler.registry.scan(now, &mut profiler.link)?;
        profiler.show(now);
        parts.shared.started.publish(0, 1);
        Ok(profiler)
    }

    /// CPUs that are sampled.
    pub(crate) fn cpus(&self) -> &[u32] {
        &self.programs.cpus
    }

    /// One round. Returns whether something waits for the next one already. `now`: nanoseconds, `CLOCK_MONOTONIC`.
    pub(crate) fn round(&mut self, now: u64) -> bool {
        let begun = Instant::now();
        if !self.is_behind {
            self.take();
        }
        let settled = now.saturating_sub(SETTLING);
        let due_events = self.events.partition_point(|event| event.timestamp <= settled);
        let due_samples = self.samples.partition_point(|sample| sample.timestamp <= settled);
        // Taken out and put back, so that their memory is used again.
        let mut events = std::mem::take(&mut self.events);
        let mut samples = std::mem::take(&mut self.samples);
        let mut due = samples.drain(..due_samples).peekable();
        let mut due_events = events.drain(..due_events);
        for event in due_events.by_ref() {
            while let Some(sample) = due.next_if(|sample| sample.timestamp < event.timestamp) {
                self.sample(sample, now);
            }
            self.applied_events += 1;
            self.registry.apply(event, now, &mut self.link);
            if begun.elapsed() > LONGEST_APPLYING {
                break;
            }
        }
        let later_events: Vec<KernelEvent> = due_events.collect();
        self.is_behind = !later_events.is_empty();
        let later_samples: Vec<RawSample> = if self.is_behind {
            due.collect()
        } else {
            due.for_each(|sample| self.sample(sample, now));
            Vec::new()
        };
        events.splice(..0, later_events);
        samples.splice(..0, later_samples);
        self.events = events;
        self.samples = samples;
        for sample in self.waiting.take(now, |executable| self.tables.awaits(executable)) {
            self.unwind_rest(sample, now);
        }
        self.show(now);
        self.link.flush(&mut self.registry.losses);
        self.registry.forget_ended(settled.saturating_sub(LINGERING), &mut self.link);
        self.housekeeping(now);
        let is_scanning = self.registry.read_again(now, &mut self.link).unwrap_or_else(|error| {
            logger::sparingly(
                log::Level::Warn,
                format_args!("cannot read /proc again after records were lost: {error}"),
            );
            false
        });
        is_scanning || !self.events.is_empty()
    }

    /// Shows the BPF programs what has changed, and asks for the rows of what is new.
    fn show(&mut self, now: u64) {
        let Profiler { registry, tables, spaces, link, .. } = self;
        // Several changes of one process are one.
        registry.changed.sort_unstable();
        registry.changed.dedup();
        let mut later = Vec::new();
        for pid in registry.changed.drain(..) {
            match registry.processes.get_mut(pid) {
                Some(process) if process.threads > 0 => {
                    let pause = PAUSE_FOR_MAPPING.saturating_mul(process.space.mappings().len() as u64);
                    if now.saturating_sub(process.shown) < pause {
                        later.push(pid);
                        continue;
                    }
                    process.shown = now;
                    spaces.show(pid, process.id.0, &process.space, tables, now);
                    // Not the time at which the round began: the programs may have looked meanwhile.
                    process.space.shown_at(serve::now());
                }
                _ => spaces.hide(pid, now),
            }
        }
        registry.changed = later;
        for executable in registry.passed.drain(..) {
            // Before a sample needs them, as long as they take no room from what is sampled.
            if let Some(session) = link.session()
                && tables.has_room_to_spare()
            {
                want_rows(tables, link, &mut registry.losses, executable, session, now);
            }
        }
        tables.settle(now);
        spaces.settle(now);
    }

    /// Takes what the kernel has recorded.
    fn take(&mut self) {
        let bad = self.kernel_events.drain(&mut self.events);
        self.registry.losses.add(Loss::BadRecord, bad);
        // The sorts are stable and meet mostly sorted input: one run for each CPU.
        self.events.sort_by_key(|event| event.timestamp);
        for _ in 0..MOST_SAMPLES {
            let Some(record) = self.programs.ring.next() else { break };
            match samples::parse(&record) {
                Some(sample) => self.samples.push(sample),
                None => self.registry.losses.add(Loss::BadRecord, 1),
            }
        }
        self.samples.sort_by_key(|sample| sample.timestamp);
    }

    fn housekeeping(&mut self, now: u64) {
        if now.saturating_sub(self.last.tick) >= SECOND {
            self.last.tick = now;
            self.skipped.expire(now);
            self.registry.look_again(now, &mut self.link);
            if self.registry.tick(now) {
                let executables = &self.registry.executables;
                self.tables.retain(|id| executables.get(id).is_some(), now);
            }
            if self.link.session().is_some() {
                let counters = FromCollector::Counters(self.counters());
                self.link.tell(&counters, None, &mut self.registry.losses);
            }
        }
        if now.saturating_sub(self.last.look_for_gone) >= LOOK_FOR_GONE_EVERY {
            self.last.look_for_gone = now;
            self.registry.remove_gone(&mut self.link);
            // What a burst has taken would else be kept for good.
            self.events.shrink_to(KEPT_ROOM);
            self.samples.shrink_to(KEPT_ROOM);
            security::give_back_memory();
        }
        if self.unknown_kernel_code && now.saturating_sub(self.last.read_symbols) >= READ_SYMBOLS_EVERY {
            self.last.read_symbols = now;
            self.unknown_kernel_code = false;
            match self.kernel_text.read() {
                Ok(symbols) => {
                    self.kernel_symbols = symbols;
                    self.tell_kernel_symbols();
                }
                Err(error) => log::warn!("cannot read the kernel's symbols again: {error}"),
            }
        }
    }

    fn counters(&self) -> Counters {
        let kernel = self.programs.counters.totals();
        let mut ends = kernel.ends.clone();
        for (end, (less, more)) in ends.iter_mut().zip(self.not_ended_so.iter().zip(&self.ended_so)) {
            *end = (*end + more).saturating_sub(*less);
        }
        Counters {
            samples: kernel.samples,
            idle: kernel.idle,
            ends,
            losses: self.registry.losses.with(&kernel),
            kernel_events: self.applied_events,
            processes: self.registry.processes.len() as u64,
            executables: self.registry.executables.len() as u64,
            tables: self.tables.counters(),
            skips: SkipCounters { in_kernel: kernel.skipped, no_room: self.skipped.no_room, ..self.skips },
        }
    }

    /// Takes in an uploader that has greeted.
    pub(crate) fn begin_session(&mut self, channel: ipc::CollectorEnd) {
        self.tables.end_session();
        self.skipped.clear();
        self.link.begin(channel);
        let welcome = FromCollector::Welcome(self.welcome.clone());
        self.link.tell(&welcome, None, &mut self.registry.losses);
        self.tell_kernel_symbols();
    }

    /// The session has failed.
    pub(crate) fn end_session(&mut self, reason: &crate::session::SessionError) {
        self.skipped.clear();
        self.link.end(reason, &mut self.registry.losses);
    }

    fn tell_kernel_symbols(&mut self) {
        if let Some((symbols, file)) = &self.kernel_symbols
            && let Ok(file) = file.try_clone()
        {
            self.link.tell(
                &FromCollector::KernelSymbols(symbols.clone()),
                Some(file),
                &mut self.registry.losses,
            );
        }
    }

    /// Takes in one sample, in the order of time.
    fn sample(&mut self, mut raw: RawSample, now: u64) {
        let start_time = raw.start_boottime / (SECOND / self.clock_ticks);
        let Some(id) = self.process_of(&raw, start_time, now) else { return };
        let Some(process) = self.registry.processes.get_mut(raw.pid) else { return };
        let (counted, space) = (raw.end, process.space.clone());
        stacks::cut_stale(&mut raw, id, &space);
        let until = now.saturating_add(waiting::WAIT_FOR);
        self.unwind_rest(OnItsWay { raw, counted, process: id, space, until }, now);
    }

    /// Unwinds what the programs left, places the frames, and passes the sample on, or lets it wait for rows.
    fn unwind_rest(&mut self, mut sample: OnItsWay, now: u64) {
        let awaited = stacks::finish(&mut sample.raw, &sample.space, &mut self.tables);
        let placed = stacks::place(&sample.raw.user, &sample.space);
        let Some(session) = self.link.session() else {
            self.pass_on(sample, placed.frames);
            return;
        };
        for (id, mapping) in &placed.files {
            self.tell_used(*id, sample.raw.pid, mapping.start, mapping.end);
            let Profiler { tables, link, registry, .. } = self;
            want_rows(tables, link, &mut registry.losses, *id, session, now);
        }
        if placed.anonymous {
            self.tell_anonymous(sample.raw.pid);
        }
        if let Some(executable) = awaited {
            if now < sample.until {
                match self.waiting.add(executable, sample) {
                    None => return,
                    Some(no_room) => sample = no_room,
                }
            } else {
                self.tables.give_up(executable);
            }
        }
        self.pass_on(sample, placed.frames);
    }

    /// Sends a sample to the uploader.
    fn pass_on(&mut self, sample: OnItsWay, user: Vec<UserFrame>) {
        let OnItsWay { mut raw, counted, process, .. } = sample;
        let kernel = self.kernel_frames(&raw.kernel);
        if user.len() < raw.user.len() {
            raw.end = End::NotCode as u8;
        }
        if raw.end != counted {
            let count =
                |counts: &mut Vec<u64>, end: u8| counts.get_mut(usize::from(end)).map(|count| *count += 1);
            count(&mut self.not_ended_so, counted);
            count(&mut self.ended_so, raw.end);
        }
        if self.link.session().is_none() {
            self.registry.losses.add(Loss::NoUploader, 1);
            return;
        }
        let sample = Sample {
            timestamp: raw.timestamp,
            process,
            tid: raw.tid,
            cpu: raw.cpu,
            thread_comm: raw.comm,
            end: raw.end,
            guessed: raw.guessed,
            kernel,
            user,
        };
        self.link.sample(sample, &mut self.registry.losses);
    }

    /// The process of a sample, with all that the uploader must know of it told; `None` if it does not want the sample.
    fn process_of(&mut self, raw: &RawSample, start_time: u64, now: u64) -> Option<ProcessId> {
        let Profiler { registry, link, skipped, skips, .. } = self;
        let is_same = |start: Option<u64>| start.is_none_or(|start| start == start_time);
        if registry.processes.get_mut(raw.pid).is_none_or(|process| !is_same(process.start_time)) {
            registry.look_up_limited(raw.pid, now, link);
        }
        if registry.processes.get_mut(raw.pid).is_none_or(|process| !is_same(process.start_time)) {
            // Gone before anything was learnt of it, or another one has its pid by now. Its time is not lost, and
            // its kernel frames are right.
            registry.losses.add(Loss::UnknownProcess, 1);
            let new = NewProcess {
                comm: raw.comm.clone(),
                threads: 1,
                counted_at: raw.timestamp,
                start_time: Some(start_time),
                ..NewProcess::default()
            };
            registry.insert(raw.pid, new, link);
        }
        if raw.pid == raw.tid {
            registry.rename(raw.pid, raw.comm.clone());
        }
        let process = registry.processes.get_mut(raw.pid)?;
        process.start_time = Some(start_time);
        let before = process.cgroup;
        let session = link.session();
        let is_good = process
            .cgroup
            .is_some_and(|id| registry.cgroups.knows(id) && !registry.cgroups.is_refused(id, session));
        // What is skipped is looked at again with each sample that comes through: see `skipped`.
        if process.cgroup_key != Some(raw.cgroup) || !is_good {
            process.cgroup_key = Some(raw.cgroup);
            if let Some(cgroup) = registry.cgroups.of(raw.cgroup, raw.pid, start_time, raw.timestamp, now) {
                process.cgroup = Some(cgroup);
            }
        } else if let Some(id) = process.cgroup {
            registry.cgroups.confirm(raw.cgroup, id, raw.timestamp);
        }
        if let Some(id) = process.cgroup.filter(|id| registry.cgroups.is_refused(*id, session)) {
            skips.in_collector += 1;
            if let Some(until) = registry.cgroups.good_until(raw.cgroup, id, now) {
                skipped.skip(raw.cgroup, until);
            }
            return None;
        }
        if let Some(session) = session
            && (process.told != session || process.cgroup != before)
        {
            process.told = session;
            if let Some(cgroup) = process.cgroup.and_then(|id| registry.cgroups.tell(id, session)) {
                link.tell(&FromCollector::Cgroup(cgroup), None, &mut registry.losses);
            }
            let message = ProcessMessage {
                id: process.id,
                pid: raw.pid,
                start_time,
                comm: process.comm.clone(),
                cgroup: process.cgroup,
            };
            link.tell(&FromCollector::Process(message), None, &mut registry.losses);
        } else if process.renamed {
            let message = Comm { process: process.id, comm: process.comm.clone() };
            link.tell(&FromCollector::Comm(message), None, &mut registry.losses);
        }
        process.renamed = false;
        Some(process.id)
    }

    fn kernel_frames(&mut self, addresses: &[u64]) -> Vec<KernelFrame> {
        let frames: Vec<KernelFrame> =
            addresses.iter().map(|address| self.kernel_text.frame(*address)).collect();
        if self.kernel_text.is_known() {
            let unknown = frames.iter().filter(|frame| **frame == KernelFrame::Unknown).count();
            self.registry.losses.add(Loss::UnknownKernelCode, unknown as u64);
            self.unknown_kernel_code |= unknown > 0;
        }
        frames
    }

    /// Tells of an executable that a sample is in, with its file, if this session was not told yet.
    fn tell_used(&mut self, id: ExecutableId, pid: u32, start: u64, end: u64) {
        let Some(session) = self.link.session() else { return };
        let Some(executable) = self.registry.executables.tell(id, session) else { return };
        let file = match executable.kind {
            ExecutableKind::Vdso => self.vdso.as_ref().and_then(|vdso| vdso.try_clone().ok()),
            ExecutableKind::Unopened => None,
            ExecutableKind::File(identity) => executables::open(pid, start, end, |found| *found == identity)
                .ok()
                .filter(|opened| opened.identity == identity)
                .map(|opened| opened.file),
        };
        self.link.tell(&FromCollector::Executable(executable), file, &mut self.registry.losses);
    }

    /// Tells that a process has code without a file, if this session was not told yet.
    fn tell_anonymous(&mut self, pid: u32) {
        let Some(session) = self.link.session() else { return };
        let Some(process) = self.registry.processes.get_mut(pid) else { return };
        if process.told_anonymous != session {
            process.told_anonymous = session;
            let message = FromCollector::Anonymous(Anonymous { process: process.id });
            self.link.tell(&message, perf_map::open_of(pid).ok(), &mut self.registry.losses);
        }
    }

    /// Answers what the uploader asks. Ids that were not handed out to it, and more than its allowance, are refused.
    pub(crate) fn answer(&mut self, request: &FromUploader, now: u64) {
        let tables = &mut self.tables;
        let taken = match request {
            FromUploader::Reopen(_) | FromUploader::ReopenPerfMap(_) => {
                return self.reopen_one(request, now);
            }
            FromUploader::Skip(id) => return self.skip(*id),
            FromUploader::TableBegin(begin) => tables.begin(*begin, now),
            FromUploader::TableRules(rules) => tables.add_rules(rules),
            FromUploader::TablePages(pages) => tables.add_pages(pages),
            FromUploader::TableRows(rows) => tables.add_rows(rows),
            FromUploader::TableEnd => tables.end(now),
        };
        match taken {
            // The rest of a table that was refused already.
            Ok(()) | Err(TableError::NotBegun) => {}
            Err(error) => log::debug!("unwind rows of the uploader's were refused: {error}"),
        }
    }

    /// Notes that samples of these cgroups are not wanted. The programs are shown when the next one comes.
    fn skip(&mut self, id: CgroupId) {
        let session = self.link.session();
        let is_told = session.is_some_and(|session| self.registry.cgroups.refuse(id, session));
        self.skips.unknown += u64::from(!is_told);
    }

    fn reopen_one(&mut self, request: &FromUploader, now: u64) {
        let allowed = self.link.may_ask(now);
        let (message, file) = match *request {
            FromUploader::Reopen(id) => match allowed.then(|| self.reopen(id)).flatten() {
                Some((executable, file)) => (FromCollector::Executable(executable), Some(file)),
                None => (FromCollector::NotReopened(NotReopened::Executable(id)), None),
            },
            FromUploader::ReopenPerfMap(id) => match allowed.then(|| self.reopen_perf_map(id)).flatten() {
                Some(file) => (FromCollector::Anonymous(Anonymous { process: id }), Some(file)),
                None => (FromCollector::NotReopened(NotReopened::PerfMap(id)), None),
            },
            _ => return,
        };
        self.link.tell(&message, file, &mut self.registry.losses);
    }

    /// The file of an executable, through a process that has it mapped.
    fn reopen(&self, id: ExecutableId) -> Option<(Executable, OwnedFd)> {
        /// Processes that are tried: any may be gone by now.
        const TRIES: usize = 8;
        let executable = self.registry.executables.get(id)?;
        let file = match executable.kind {
            ExecutableKind::Unopened => None,
            ExecutableKind::Vdso => self.vdso.as_ref()?.try_clone().ok(),
            ExecutableKind::File(identity) => self
                .registry
                .processes
                .mapping_of(id)
                .take(TRIES)
                .filter_map(|(pid, start, end)| {
                    executables::open(pid, start, end, |found| *found == identity).ok()
                })
                .find(|opened| opened.identity == identity)
                .map(|opened| opened.file),
        };
        Some((executable, file?))
    }

    /// The perf map of a process that was told of as one with code without a file.
    fn reopen_perf_map(&self, id: ProcessId) -> Option<OwnedFd> {
        let (pid, process) = self.registry.told_process(id, &self.link)?;
        if self.link.session() != Some(process.told_anonymous) {
            return None;
        }
        perf_map::open_of(pid).ok()
    }
}

/// Asks the uploader for the rows of an executable, if there are none and it was not asked lately.
fn want_rows(
    tables: &mut UnwindTables,
    link: &mut Link,
    losses: &mut Losses,
    executable: ExecutableId,
    session: u32,
    now: u64,
) {
    if tables.used(executable, session, now) {
        link.tell(&FromCollector::WantRows(executable), None, losses);
    }
}
