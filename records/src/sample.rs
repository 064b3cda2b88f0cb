//! The record that the BPF program writes into the ring for each sample: a fixed header, then as many 8-byte frames
//! as the stack has, kernel frames first, each half innermost first.

use crate::REGISTERS;

/// Longest command name, with its terminating NUL (`TASK_COMM_LEN` in the kernel's `include/linux/sched.h`).
pub const COMM_LENGTH: usize = 16;
/// Most kernel frames in a record (the kernel's default for `perf_event_max_stack`).
pub const MAX_KERNEL_FRAMES: usize = 127;
/// Most user frames in a record.
pub const MAX_USER_FRAMES: usize = 512;
/// Most frames in a record; a power of two minus nothing: room for both halves.
pub const MAX_FRAMES: usize = 640;
/// User frames that one BPF program unwinds before it calls the next.
pub const FRAMES_PER_CALL: usize = 16;
/// Most programs in a chain of tail calls (`MAX_TAIL_CALL_CNT` in the kernel's `include/linux/bpf.h` is 33; the
/// first program is not a call).
pub const MAX_CALLS: u32 = 33;
/// CPUs for which there are counters.
pub const MAX_CPUS: u32 = 1024;
/// Counters that each CPU has (see [`Counter`]); a power of two, so that a CPU's own lie in its own cache lines.
pub const COUNTERS_PER_CPU: u32 = 32;

/// Header of a sample record.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SampleHeader {
    /// When the sample was taken: nanoseconds, `CLOCK_MONOTONIC`.
    pub timestamp: u64,
    /// What tells one set of cgroups from another: the cgroup v2 id where v2 is all there is, else a number made
    /// of the ids in all hierarchies.
    pub cgroup: u64,
    /// Start of the process: nanoseconds since boot, suspended time included (`task_struct.start_boottime` of the
    /// thread group's leader). `/proc/PID/stat` shows the same in clock ticks.
    pub start_boottime: u64,
    /// Process id (the kernel's tgid) in the collector's pid namespace.
    pub pid: u32,
    /// Thread id (the kernel's pid) in the collector's pid namespace.
    pub tid: u32,
    /// CPU that the sample was taken on.
    pub cpu: u32,
    /// Number of kernel frames that follow.
    pub kernel_frames: u16,
    /// Number of user frames that follow the kernel frames.
    pub user_frames: u16,
    /// How the unwind of the user stack ended: the number of an [`End`](crate::End).
    pub end: u16,
    /// Frames in files that were left by frame pointers, since no unwind row covers them.
    pub guessed: u16,
    /// Bytes of the stack that follow the frames, with a [`Resume`] before them; 0: neither follows.
    pub stack_bytes: u32,
    /// What the process was called in the table that the stack was unwound by; 0: it was in none.
    pub process: u32,
    /// Always zero.
    pub reserved: u32,
    /// Command name of the thread, NUL-terminated.
    pub comm: [u8; COMM_LENGTH],
}

/// Size of [`SampleHeader`] in bytes.
pub const SAMPLE_HEADER_SIZE: usize = 72;

/// Where the unwind of a stack stopped for want of a mapping: what to go on from, once it is known. Stays in the collector.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Resume {
    /// Instruction pointer of the last frame.
    pub ip: u64,
    /// Stack pointer there; the bytes of the stack begin with it.
    pub sp: u64,
    /// Frame pointer there.
    pub fp: u64,
    /// Where the `ucontext` of the signal frame lies that was last passed through; 0: none.
    pub context: u64,
    /// Whether `ip` is an interrupted instruction, not a return address, and by what: see `unwinder`'s `Cursor`.
    pub interrupted: u32,
    /// As in the header.
    pub guessed: u32,
    /// The general registers of the innermost frame, in DWARF's order.
    pub registers: [u64; REGISTERS as usize],
}

/// Size of [`Resume`] in bytes.
pub const RESUME_SIZE: usize = 168;
/// Size of a page of memory.
pub const MEMORY_PAGE: usize = 4096;
/// Most bytes of a stack in a record: what is left of the stack pointer's page, and three pages more.
pub const MAX_STACK_BYTES: usize = 4 * MEMORY_PAGE;

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<SampleHeader>() == SAMPLE_HEADER_SIZE);
    assert!(offset_of!(SampleHeader, pid) == 24);
    assert!(offset_of!(SampleHeader, kernel_frames) == 36);
    assert!(offset_of!(SampleHeader, user_frames) == 38);
    assert!(offset_of!(SampleHeader, end) == 40);
    assert!(offset_of!(SampleHeader, guessed) == 42);
    assert!(offset_of!(SampleHeader, stack_bytes) == 44);
    assert!(offset_of!(SampleHeader, process) == 48);
    assert!(offset_of!(SampleHeader, comm) == 56);
    assert!(size_of::<Resume>() == RESUME_SIZE);
    assert!(MAX_KERNEL_FRAMES + MAX_USER_FRAMES <= MAX_FRAMES);
    assert!(FRAMES_PER_CALL * MAX_CALLS as usize >= MAX_USER_FRAMES);
    assert!(Counter::COUNT <= COUNTERS_PER_CPU);
};

/// Counters that the BPF program keeps for each CPU, at index `cpu * COUNTERS_PER_CPU + counter`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Counter {
    /// Samples written to the ring.
    Samples = 0,
    /// Samples of the idle task, of which no record is made.
    Idle = 1,
    /// [`Loss::RingFull`](crate::Loss::RingFull).
    RingFull = 2,
    /// [`Loss::OutsideNamespace`](crate::Loss::OutsideNamespace).
    OutsideNamespace = 3,
    /// Samples of cgroups that are skipped (see [`is_skipped`](crate::is_skipped)), of which no record is made.
    Skipped = 4,
    /// The first of the [`End`](crate::End)s: the unwinds that ended with reason `n` are counted at `Ends + n`.
    Ends = 16,
}

impl Counter {
    /// One more than the highest number in use.
    pub const COUNT: u32 = Counter::Ends as u32 + 16;
}
