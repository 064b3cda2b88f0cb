//! The messages, a closed type for each direction. A half cannot even name a message of the wrong direction.
//!
//! Ids (of processes, executables, cgroups) are handed out by the collector, count up from 1 and are good for one
//! session: from one handshake to the end of that connection.

use records::{FileOffset, ProcessAddress, Rule};
use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
        pub struct $name(pub $inner);
    };
}

id! {
    /// A process, from its fork or exec to its next exec or its end: a reused pid is another process, and so is the
    /// program that an exec puts in the place of the old one.
    ProcessId(u32)
}
id! {
    /// An executable file, by its [`Identity`].
    ExecutableId(u32)
}
id! {
    /// A set of cgroups (one in each hierarchy) that processes are in.
    CgroupId(u32)
}
id! {
    /// Where kernel code lies: 0 is the kernel itself, the others index [`KernelSymbols::modules`].
    ModuleId(u16)
}

impl ModuleId {
    /// The kernel itself.
    pub const KERNEL: ModuleId = ModuleId(0);
}

/// From the collector to the uploader.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum FromCollector {
    /// The first message of a session.
    Welcome(Welcome),
    /// The kernel's symbols, in the file that comes with the message. Sent again when modules came or went.
    KernelSymbols(KernelSymbols),
    /// A set of cgroups that a [`Process`] names from now on.
    Cgroup(Cgroup),
    /// A process that was sampled for the first time, or of which something changed.
    Process(Process),
    /// The process (not one of its threads) has a new command name.
    Comm(Comm),
    /// A file with code that some process has mapped; comes with its open file if it could be opened.
    Executable(Executable),
    /// The process was sampled in code without a file. Comes with its open perf map if there is one.
    Anonymous(Anonymous),
    /// Samples, oldest first.
    Samples(Vec<Sample>),
    /// The process ended, or was replaced by an exec. No sample names it from now on.
    Exit(ProcessId),
    /// What the collector has counted since its start.
    Counters(Counters),
    /// The answer to [`FromUploader::Reopen`] when the file cannot be had. (Else the answer is an
    /// [`FromCollector::Executable`] with its file.)
    NotReopened(NotReopened),
    /// The collector has no unwind rows of this executable, which is in use.
    WantRows(ExecutableId),
}

/// From the uploader to the collector.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FromUploader {
    /// Open this executable once more and pass the file.
    Reopen(ExecutableId),
    /// Open the perf map of this process once more and pass the file.
    ReopenPerfMap(ProcessId),
    /// Begins the unwind table of an executable. What follows belongs to it, in the order of these variants, each as
    /// often as it takes; one that was begun before and not ended is dropped.
    TableBegin(TableBegin),
    /// Its rules, in the order of the table's own numbers.
    TableRules(Vec<Rule>),
    /// Its pages of text, in order.
    TablePages(Vec<PageRows>),
    /// Its rows, in order: each a [`records::Row`] with the table's own number of the rule.
    TableRows(Vec<u32>),
    /// That was all of it.
    TableEnd,
    /// Processes in these cgroups need not be sampled, as long as the session lasts.
    Skip(CgroupId),
}

/// What is to come of an unwind table. An executable without rows has a table too: an empty one, so that it is not asked
/// for again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TableBegin {
    /// The executable.
    pub executable: ExecutableId,
    /// Number of its first page of text: file offset `>> records::PAGE_BITS`.
    pub first_page: u32,
    /// Number of pages.
    pub pages: u32,
    /// Number of rows.
    pub rows: u32,
}

/// The rows of a page of text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PageRows {
    /// The first one, counted from the table's first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// What the uploader should know of the collector.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// A random number that is the same as long as the collector lives.
    pub epoch: u64,
    /// Samples a second on each CPU.
    pub sampling_frequency: u32,
    /// CPUs that are being sampled.
    pub cpus: u32,
    /// `uname -r`.
    pub kernel_release: String,
    /// What this collector cannot do on this machine.
    pub limitations: Vec<Limitation>,
}

/// Something that is missing on this machine, for people to see.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum Limitation {
    /// The kernel hides its addresses (`kptr_restrict`, or no `CAP_SYSLOG`): kernel frames have no names.
    KernelAddressesHidden,
    /// The collector runs in a pid namespace and sees that namespace only.
    PidNamespace,
    /// The collector may not open the files that other processes have mapped: user frames have no names.
    ExecutablesNotOpened,
    /// No BPF LSM keeps the collector from opening files that nobody has mapped.
    NoFence,
}

/// Kernel symbols: the file is text, a line each `MODULE OFFSET NAME`, `MODULE` decimal, `OFFSET` in hexadecimal from
/// the module's base (the kernel's: `_text`), `NAME` as the kernel spells it. Not sorted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KernelSymbols {
    /// Names of modules; the index is the [`ModuleId`]. The first is the kernel itself, and its name is empty. Once
    /// given, an index keeps its name.
    pub modules: Vec<String>,
}

/// A set of cgroups.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Cgroup {
    /// The id that processes name it by.
    pub id: CgroupId,
    /// The text of `/proc/PID/cgroup`: a line `HIERARCHY:CONTROLLERS:PATH` for each hierarchy.
    pub text: Vec<u8>,
}

/// A process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Process {
    /// Its id.
    pub id: ProcessId,
    /// Process id in the collector's pid namespace.
    pub pid: u32,
    /// Start of the process in clock ticks since boot, as in `/proc/PID/stat`.
    pub start_time: u64,
    /// Command name, without a NUL. Any bytes: the process chooses them.
    pub comm: Vec<u8>,
    /// Its cgroups; `None` if the process was gone before they could be read.
    pub cgroup: Option<CgroupId>,
}

/// A new command name of a process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Comm {
    /// The process.
    pub process: ProcessId,
    /// Command name, without a NUL.
    pub comm: Vec<u8>,
}

/// What makes a file the same file: what `fstat` says of it. Never the build id, which any file can copy.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct Identity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_ctime`, seconds.
    pub ctime: i64,
    /// `st_ctime`, nanoseconds.
    pub ctime_nanos: u32,
    /// `st_size`, in bytes.
    pub size: u64,
}

/// Where an executable comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum ExecutableKind {
    /// A file that `fstat` identified.
    File(Identity),
    /// The kernel's vdso, the same in all processes.
    Vdso,
    /// A file that could not be opened; there is no identity to remember it by.
    Unopened,
}

/// A file with code.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Executable {
    /// Its id.
    pub id: ExecutableId,
    /// Its identity, if it could be opened.
    pub kind: ExecutableKind,
    /// The path as the process that mapped it saw it, without the kernel's ` (deleted)`. For people to read: it is
    /// never opened. Any bytes but NUL.
    pub path: Vec<u8>,
}

/// A process with code that has no file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Anonymous {
    /// The process.
    pub process: ProcessId,
}

/// A sample.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// Nanoseconds, `CLOCK_MONOTONIC` of the host.
    pub timestamp: u64,
    /// The process.
    pub process: ProcessId,
    /// Thread id in the collector's pid namespace.
    pub tid: u32,
    /// CPU that the sample was taken on.
    pub cpu: u32,
    /// Command name of the thread, without a NUL.
    pub thread_comm: Vec<u8>,
    /// How the unwind of the user stack ended: the number of a [`records::End`].
    pub end: u8,
    /// Frames in files that were left by frame pointers, since no unwind row covers them.
    pub guessed: u16,
    /// Kernel frames, innermost first; empty if the sample was taken in user space. All but the first are return
    /// addresses.
    pub kernel: Vec<KernelFrame>,
    /// User frames, innermost first. The first is the interrupted instruction (or, when there are kernel frames,
    /// the one after the system call); all others are return addresses, or one byte behind what a signal interrupted: look them up
    /// at one byte less.
    pub user: Vec<UserFrame>,
}

/// A frame in the kernel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum KernelFrame {
    /// An offset from the base of the kernel or of a module.
    Known(ModuleId, u64),
    /// In no known kernel text, or the kernel hides its addresses.
    Unknown,
}

/// A frame in user space.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub enum UserFrame {
    /// At an offset in a file.
    File(ExecutableId, FileOffset),
    /// In executable memory that has no file: code made at run time.
    Anonymous(ProcessAddress),
}

/// Counters since the start of the collector, indexed by the reason's number.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Samples that the BPF program recorded.
    pub samples: u64,
    /// Samples of the idle task, of which no record is made.
    pub idle: u64,
    /// By [`records::End`].
    pub ends: Vec<u64>,
    /// By [`records::Loss`].
    pub losses: Vec<u64>,
    /// Records of mappings and processes that were read.
    pub kernel_events: u64,
    /// Processes that the collector knows of now.
    pub processes: u64,
    /// Executables that the collector knows of now.
    pub executables: u64,
    /// Of unwind tables.
    pub tables: TableCounters,
    /// Of what [`FromUploader::Skip`] names.
    pub skips: SkipCounters,
}

/// What the collector has counted of cgroups that need not be sampled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SkipCounters {
    /// Samples that the BPF program dropped before it looked at their stacks.
    pub in_kernel: u64,
    /// Samples that were recorded, and dropped by the collector itself.
    pub in_collector: u64,
    /// Requests with an id that was not handed out in this session, or is forgotten.
    pub unknown: u64,
    /// Times that a key found no room among those that the BPF program knows.
    pub no_room: u64,
}

/// What the collector has counted of unwind tables.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TableCounters {
    /// Tables that are there now.
    pub tables: u64,
    /// Bytes that their rows take now, and that they may take.
    pub row_bytes: u64,
    /// See `row_bytes`.
    pub row_bytes_most: u64,
    /// Distinct rules.
    pub rules: u64,
    /// Tables that were shown.
    pub shown: u64,
    /// Tables that made room for others.
    pub evicted: u64,
    /// Tables that were refused because something in them was wrong.
    pub refused: u64,
    /// Tables that have more rows than the whole store.
    pub too_large: u64,
    /// Tables that found no room at the time.
    pub no_room: u64,
    /// Rules that found no room: their rows end an unwind.
    pub rules_full: u64,
}

/// A file that was asked for and cannot be had.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NotReopened {
    /// No process has it mapped any more, or it has changed since, or too much was asked for in a short time.
    Executable(ExecutableId),
    /// The process is gone or has no perf map that can be trusted.
    PerfMap(ProcessId),
}

#[cfg(test)]
pub(crate) mod examples {
    use super::*;

    /// One of each message.
    pub(crate) fn from_collector() -> Vec<FromCollector> {
        let process = ProcessId(3);
        vec![
            FromCollector::Welcome(Welcome {
                epoch: u64::MAX,
                sampling_frequency: 100,
                cpus: 2,
                kernel_release: "6.18.0".into(),
                limitations: vec![Limitation::KernelAddressesHidden, Limitation::PidNamespace],
            }),
            FromCollector::KernelSymbols(KernelSymbols { modules: vec![String::new(), "ext4".into()] }),
            FromCollector::Cgroup(Cgroup { id: CgroupId(1), text: b"0::/system.slice/a.service\n".to_vec() }),
            FromCollector::Process(Process {
                id: process,
                pid: 4_194_304,
                start_time: 12_345_678,
                comm: b"a\xff\"\n".to_vec(),
                cgroup: Some(CgroupId(1)),
            }),
            FromCollector::Comm(Comm { process, comm: b"b".to_vec() }),
            FromCollector::Executable(Executable {
                id: ExecutableId(70_000),
                kind: ExecutableKind::File(Identity {
                    device: 64768,
                    inode: 99,
                    ctime: -1,
                    ctime_nanos: 999_999_999,
                    size: 1 << 40,
                }),
                path: b"/usr/bin/a b".to_vec(),
            }),
            FromCollector::Anonymous(Anonymous { process }),
            FromCollector::Samples(vec![Sample {
                timestamp: 1,
                process,
                tid: 5,
                cpu: 1,
                thread_comm: b"t".to_vec(),
                end: 1,
                guessed: 2,
                kernel: vec![KernelFrame::Known(ModuleId::KERNEL, 0x1234), KernelFrame::Unknown],
                user: vec![
                    UserFrame::File(ExecutableId(70_000), FileOffset(0x1010)),
                    UserFrame::Anonymous(ProcessAddress(0x1000)),
                ],
            }]),
            FromCollector::Exit(process),
            FromCollector::Counters(Counters {
                samples: 1,
                ends: vec![0, 1],
                losses: vec![2],
                ..Counters::default()
            }),
            FromCollector::NotReopened(NotReopened::PerfMap(process)),
            FromCollector::WantRows(ExecutableId(5)),
        ]
    }

    /// One of each message.
    pub(crate) fn from_uploader() -> Vec<FromUploader> {
        let rule = Rule { cfa: 1, fp: 1, fp_offset: -16, cfa_offset: 8 };
        vec![
            FromUploader::Reopen(ExecutableId(u32::MAX)),
            FromUploader::ReopenPerfMap(ProcessId(1)),
            FromUploader::TableBegin(TableBegin {
                executable: ExecutableId(1),
                first_page: 1,
                pages: 2,
                rows: u32::MAX,
            }),
            FromUploader::TableRules(vec![rule]),
            FromUploader::TablePages(vec![PageRows { first: 0, count: 7 }]),
            FromUploader::TableRows(vec![0, u32::MAX]),
            FromUploader::TableEnd,
            FromUploader::Skip(CgroupId(u32::MAX)),
        ]
    }
}
