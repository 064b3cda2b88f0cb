//! The kernel's own records of what is mapped where and which process is which: `PERF_RECORD_MMAP2`, `FORK`,
//! `COMM` and `EXIT` (`perf_event_open(2)`), from one ring a CPU. Of different CPUs they come in any order; who applies them sorts
//! them by their time.
#![expect(unsafe_code, reason = "perf-event2 gives its files as plain numbers")]

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd},
};

use perf_event::{
    Builder, Clock, Record, SampleFlag, Sampler,
    data::{
        Comm, Exit, Fork, Lost, Mmap2, RecordMetadata, Visitor,
        endian::Native,
        parse::{ParseConfig, Parser},
    },
    events::Software,
};
use thiserror::Error;

/// Size of a CPU's ring, in bytes: 0.2 s of 2,500 execs a second. The kernel lets every user have 516 KiB a CPU
/// (`perf_event_mlock_kb`).
const RING_SIZE: usize = 256 * 1024;
/// Most records taken from one CPU's ring at a time, so that a storm cannot keep the collector from its samples.
const MOST_AT_ONCE: usize = 16 * 1024;
/// `PERF_RECORD_MISC_COMM_EXEC` (`include/uapi/linux/perf_event.h`).
const MISC_COMM_EXEC: u16 = 1 << 13;
/// `PROT_EXEC`.
const PROT_EXEC: u32 = 4;

#[derive(Debug, Error)]
#[error("cannot hear of the mappings and processes of CPU {cpu}: {source}")]
pub(crate) struct KernelEventsError {
    cpu: u32,
    source: io::Error,
}

/// What the kernel said, and when (nanoseconds, `CLOCK_MONOTONIC`).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KernelEvent {
    pub(crate) timestamp: u64,
    pub(crate) what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A thread (when `pid` is `parent`) or a process was made.
    Fork { pid: u32, parent: u32 },
    /// The process runs another program from now on.
    Exec { pid: u32, comm: Vec<u8> },
    /// A thread has a new name; the process, if `tid` is `pid`.
    Comm { pid: u32, tid: u32, comm: Vec<u8> },
    /// Something executable was mapped.
    Map(Box<Mapped>),
    /// A thread ended.
    Exit { pid: u32 },
    /// The kernel could not write so many records.
    Lost(u64),
}

/// A mapping as the kernel tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mapped {
    pub(crate) pid: u32,
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// Bounds of a mapping by which its file can be opened: its own, but for memory that stands for text of a file.
    pub(crate) opened_at: (u64, u64),
    pub(crate) offset: u64,
    pub(crate) file: FileNumbers,
    pub(crate) path: Vec<u8>,
}

impl Mapped {
    /// Whether it shows a file. Memory of these kinds has an inode, but nothing that could be read as a file with code:
    /// it is what run-time compilers write their code to.
    pub(crate) fn is_file(&self) -> bool {
        const NO_FILES: [&[u8]; 4] = [b"//", b"/dev/zero", b"/SYSV", b"/anon_hugepage"];
        self.file.inode != 0
            && self.path.starts_with(b"/")
            && !NO_FILES.iter().any(|prefix| self.path.starts_with(prefix))
    }

    /// Whether both lie in memory as they do in one file.
    pub(crate) fn is_one_with(&self, other: &Mapped) -> bool {
        self.file == other.file
            && self.start.wrapping_sub(self.offset) == other.start.wrapping_sub(other.offset)
    }
}

/// The numbers that a mapping record gives of a file. They find a known file again; what file it is, only `fstat`
/// says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileNumbers {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) inode: u64,
    pub(crate) generation: u64,
}

/// The rings of all sampled CPUs.
pub(crate) struct KernelEvents {
    rings: Vec<Sampler>,
    config: ParseConfig<Native>,
    /// A record, contiguous.
    buffer: Vec<u8>,
}

impl KernelEvents {
    /// Opens them. Needs `CAP_PERFMON`.
    pub(crate) fn open(cpus: &[u32]) -> Result<Self, KernelEventsError> {
        let mut builder = Builder::new(Software::DUMMY);
        builder
            .any_pid()
            .enabled(true)
            .exclude_kernel(true)
            .exclude_hv(true)
            .mmap(true)
            .mmap2(true)
            .comm(true)
            .comm_exec(true)
            .task(true)
            .sample_id_all(true)
            .sample(SampleFlag::TID)
            .sample(SampleFlag::TIME)
            .clockid(Clock::MONOTONIC)
            // Not `wakeup_events`: that counts samples only, of which this event has none.
            .wakeup_watermark(1);
        let config = ParseConfig::from(*builder.attrs());
        let mut rings = Vec::new();
        for cpu in cpus {
            let ring = builder.one_cpu(*cpu as usize).build().and_then(|counter| counter.sampled(RING_SIZE));
            rings.push(ring.map_err(|source| KernelEventsError { cpu: *cpu, source })?);
        }
        Ok(KernelEvents { rings, config, buffer: Vec::new() })
    }

    /// The files that become readable with the first record.
    pub(crate) fn files(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.rings.iter().map(|ring| {
            // SAFETY: the file is open as long as its ring, which the borrow outlasts.
            unsafe { BorrowedFd::borrow_raw(ring.as_counter().as_raw_fd()) }
        })
    }

    /// Takes what is there; returns how many records were not of the agreed form.
    pub(crate) fn drain(&mut self, into: &mut Vec<KernelEvent>) -> u64 {
        let mut bad = 0;
        for ring in &mut self.rings {
            for _ in 0..MOST_AT_ONCE {
                let Some(record) = ring.next_record() else { break };
                copy(&record, &mut self.buffer);
                match parse(&self.buffer, &self.config) {
                    Ok(event) => into.extend(event),
                    Err(Malformed) => bad += 1,
                }
            }
        }
        bad
    }
}

/// The bytes of a record with its header (`struct perf_event_header`: type u32, misc u16, size u16).
fn copy(record: &Record, buffer: &mut Vec<u8>) {
    let size = u16::try_from(record.len() + 8).unwrap_or(u16::MAX);
    buffer.clear();
    buffer.extend(record.ty().to_ne_bytes());
    buffer.extend(record.misc().to_ne_bytes());
    buffer.extend(size.to_ne_bytes());
    for part in record.data() {
        buffer.extend_from_slice(part);
    }
}

/// A record that is not of the agreed form.
#[derive(Debug, PartialEq, Eq)]
struct Malformed;

/// The event that a record tells of, if it is of interest.
fn parse(record: &[u8], config: &ParseConfig<Native>) -> Result<Option<KernelEvent>, Malformed> {
    let parsed = Parser::new(record, config.clone()).parse_record(Reader);
    let (timestamp, what) = parsed.map_err(|_| Malformed)?;
    let Some(what) = what else { return Ok(None) };
    Ok(Some(KernelEvent { timestamp: timestamp.ok_or(Malformed)?, what }))
}

struct Reader;

impl<'a> Visitor<'a> for Reader {
    type Output = (Option<u64>, Option<What>);

    fn visit_unimplemented(self, metadata: RecordMetadata) -> Self::Output {
        (metadata.sample_id().time(), None)
    }

    fn visit_fork(self, fork: Fork, metadata: RecordMetadata) -> Self::Output {
        (metadata.sample_id().time(), Some(What::Fork { pid: fork.pid, parent: fork.ppid }))
    }

    fn visit_exit(self, exit: Exit, metadata: RecordMetadata) -> Self::Output {
        (metadata.sample_id().time(), Some(What::Exit { pid: exit.pid }))
    }

    fn visit_comm(self, comm: Comm<'a>, metadata: RecordMetadata) -> Self::Output {
        let name = until_nul(&comm.comm);
        let what = if metadata.misc() & MISC_COMM_EXEC == 0 {
            What::Comm { pid: comm.pid, tid: comm.tid, comm: name }
        } else {
            What::Exec { pid: comm.pid, comm: name }
        };
        (metadata.sample_id().time(), Some(what))
    }

    fn visit_mmap2(self, map: Mmap2<'a>, metadata: RecordMetadata) -> Self::Output {
        let (start, end) = (map.addr, map.addr.saturating_add(map.len));
        let what = (map.prot & PROT_EXEC != 0).then(|| {
            What::Map(Box::new(Mapped {
                pid: map.pid,
                start,
                end,
                opened_at: (start, end),
                offset: map.pgoff,
                file: FileNumbers {
                    major: map.maj().unwrap_or(0),
                    minor: map.min().unwrap_or(0),
                    inode: map.ino().unwrap_or(0),
                    generation: map.ino_generation().unwrap_or(0),
                },
                path: until_nul(&map.filename),
            }))
        });
        (metadata.sample_id().time(), what)
    }

    fn visit_lost(self, lost: Lost, metadata: RecordMetadata) -> Self::Output {
        (metadata.sample_id().time(), Some(What::Lost(lost.lost)))
    }
}

/// Strings in records are padded with NUL.
fn until_nul(bytes: &[u8]) -> Vec<u8> {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ParseConfig<Native> {
        let mut builder = Builder::new(Software::DUMMY);
        builder.sample_id_all(true).sample(SampleFlag::TID).sample(SampleFlag::TIME);
        ParseConfig::from(*builder.attrs())
    }

    /// A record of `kind` with `body`, and the trailing sample id: pid, tid, time.
    fn record(kind: u32, misc: u16, body: &[u8], time: u64) -> Vec<u8> {
        let mut bytes = kind.to_ne_bytes().to_vec();
        bytes.extend(misc.to_ne_bytes());
        bytes.extend(u16::try_from(8 + body.len() + 16).unwrap().to_ne_bytes());
        bytes.extend(body);
        bytes.extend(1u32.to_ne_bytes());
        bytes.extend(2u32.to_ne_bytes());
        bytes.extend(time.to_ne_bytes());
        bytes
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    #[test]
    fn a_mapping_is_read_whole() {
        // PERF_RECORD_MMAP2 is 10.
        let mut body = words(&[5, 6]);
        for word in [0x40_0000u64, 0x2000, 0x1000] {
            body.extend(word.to_ne_bytes());
        }
        body.extend(words(&[8, 1]));
        body.extend(77u64.to_ne_bytes());
        body.extend(3u64.to_ne_bytes());
        body.extend(words(&[PROT_EXEC | 1, 2]));
        body.extend(b"/usr/bin/a b\0\0\0\0");
        let whole = record(10, 0, &body, 99);
        let event = parse(&whole, &config()).unwrap().unwrap();
        assert_eq!(event.timestamp, 99);
        let What::Map(mapped) = event.what else { panic!("{event:?}") };
        assert_eq!((mapped.pid, mapped.start, mapped.end, mapped.offset), (5, 0x40_0000, 0x40_2000, 0x1000));
        assert_eq!(mapped.file, FileNumbers { major: 8, minor: 1, inode: 77, generation: 3 });
        assert_eq!(mapped.path, b"/usr/bin/a b");
        for length in 0..whole.len() {
            // Cut anywhere: an error, never a panic.
            let _ = parse(&whole[..length], &config());
        }
    }

    #[test]
    fn an_exec_is_told_from_a_new_name() {
        // PERF_RECORD_COMM is 3.
        let mut body = words(&[5, 5]);
        body.extend(b"name\0\0\0\0");
        let renamed = parse(&record(3, 0, &body, 7), &config()).unwrap().unwrap();
        assert_eq!(renamed.what, What::Comm { pid: 5, tid: 5, comm: b"name".to_vec() });
        let exec = parse(&record(3, MISC_COMM_EXEC, &body, 7), &config()).unwrap().unwrap();
        assert_eq!(exec.what, What::Exec { pid: 5, comm: b"name".to_vec() });
    }

    #[test]
    fn forks_exits_and_losses() {
        // PERF_RECORD_LOST is 2, EXIT 4, FORK 7, THROTTLE 5.
        let body = words(&[5, 4, 6, 4, 0, 0]);
        assert_eq!(
            parse(&record(7, 0, &body, 1), &config()).unwrap().unwrap().what,
            What::Fork { pid: 5, parent: 4 }
        );
        assert_eq!(parse(&record(4, 0, &body, 1), &config()).unwrap().unwrap().what, What::Exit { pid: 5 });
        let lost = words(&[1, 0, 9, 0]);
        assert_eq!(parse(&record(2, 0, &lost, 1), &config()).unwrap().unwrap().what, What::Lost(9));
        assert_eq!(parse(&record(5, 0, &words(&[0; 6]), 1), &config()), Ok(None));
    }
}
