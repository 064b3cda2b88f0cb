//! The BPF programs: at each tick of a CPU's clock, one record of what that CPU was doing.
//!
//! `sample` fills the header and the kernel's frames, finds the user's registers and unwinds the first frames;
//! `unwind_more` goes on, a tail call for every [`FRAMES_PER_CALL`] frames; whichever finishes writes the record. Apart from them,
//! `file_open` keeps the collector itself within its fence.
#![no_std]
#![no_main]

mod fence;
mod process;
mod skipped;
mod task;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_perf_event_data,
    helpers::generated::{
        bpf_get_current_comm, bpf_get_smp_processor_id, bpf_get_stack, bpf_ktime_get_ns,
        bpf_probe_read_user, bpf_ringbuf_output, bpf_ringbuf_query,
    },
    macros::{map, perf_event},
    maps::{Array, PerCpuArray, ProgramArray, RingBuf},
    programs::PerfEventContext,
};
use core::ffi::c_void;
use records::{
    COUNTERS_PER_CPU, Counter, End, FRAMES_PER_CALL, MAX_CALLS, MAX_CPUS, MAX_FRAMES, MAX_KERNEL_FRAMES,
    MAX_STACK_BYTES, MAX_USER_FRAMES, MEMORY_PAGE, REGISTERS, RESUME_SIZE, Resume, SAMPLE_HEADER_SIZE, SampleHeader,
};
use process::{Process, Space};
use task::{Task, UserState};
use unwinder::Cursor;

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): the collector reads and writes such a map as memory, so that it
/// never needs bpf(2) after its start.
pub(crate) const MMAPABLE: u32 = 1 << 10;
/// `BPF_RB_NO_WAKEUP`, `BPF_RB_FORCE_WAKEUP`, `BPF_RB_AVAIL_DATA` (include/uapi/linux/bpf.h).
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const AVAILABLE_DATA: u64 = 0;

/// Counters, [`COUNTERS_PER_CPU`] for each CPU, each written by its own CPU only.
#[map(name = "COUNTERS")]
static COUNTERS: Array<u64> = Array::with_max_entries(COUNTERS_PER_CPU * MAX_CPUS, MMAPABLE);
/// Not 0 when the collector has shown what runs: before that every stack would have to be handed over.
#[map(name = "STARTED")]
static STARTED: Array<u64> = Array::with_max_entries(1, MMAPABLE);
/// Sample records. The collector sets the size before loading.
#[map(name = "SAMPLES")]
static SAMPLES: RingBuf = RingBuf::with_byte_size(1 << 20, 0);
/// `unwind_more`, for the tail call.
#[map(name = "UNWIND_MORE")]
static UNWIND_MORE: ProgramArray = ProgramArray::with_max_entries(1, 0);
/// The record in the making: too large for BPF's stack of 512 bytes. A CPU's clock does not interrupt its own tick.
#[map(name = "WORK")]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Wake the collector when this many bytes lie in the ring; set by the collector.
#[unsafe(no_mangle)]
static WAKE_AT: u64 = 1 << 18;

/// Reads a global that the collector set before loading; to the verifier it is a constant.
#[inline(always)]
pub(crate) fn global<T: Copy>(value: &'static T) -> T {
    // SAFETY: a reference to a static is valid; volatile, so that the compiler does not put the value of this
    // source in the place of the one that is set at load time.
    unsafe { core::ptr::read_volatile(value) }
}

/// Words for frames, and behind them for a [`Resume`] and bytes of the stack.
const WORDS: usize = MAX_FRAMES + (RESUME_SIZE + MAX_STACK_BYTES) / 8;

/// A record and the state of its unwind.
#[repr(C)]
struct Work {
    cursor: Cursor,
    /// The general registers of the innermost frame.
    registers: [u64; REGISTERS as usize],
    space: Space,
    calls: u32,
    /// Where in `words` the next frame goes.
    next: u32,
    header: SampleHeader,
    words: [u64; WORDS],
}

const _: () = assert!(core::mem::offset_of!(Work, words) - core::mem::offset_of!(Work, header) == SAMPLE_HEADER_SIZE);

#[inline(always)]
fn count(counter: u32) {
    // SAFETY: the helper has no arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() } & (MAX_CPUS - 1);
    if let Some(value) = COUNTERS.get_ptr_mut(cpu * COUNTERS_PER_CPU + (counter & (COUNTERS_PER_CPU - 1))) {
        // SAFETY: the pointer leads into the map, and only this CPU writes there; volatile, since another process
        // reads it meanwhile.
        unsafe { value.write_volatile(value.read_volatile() + 1) }
    }
}

/// Fills the header and the kernel's frames. `None`: no record is made, or it is finished already.
#[inline(always)]
fn begin(context: &PerfEventContext) -> Option<&'static mut Work> {
    let started: *const u64 = STARTED.get(0)?;
    // SAFETY: the pointer is the map's; volatile, since the collector writes it.
    if unsafe { started.read_volatile() } == 0 {
        return None;
    }
    let task = Task::current();
    let Some(ids) = task.ids() else {
        count(Counter::OutsideNamespace as u32);
        return None;
    };
    if ids.tid == 0 {
        count(Counter::Idle as u32);
        return None;
    }
    let cgroup = task.cgroup();
    if skipped::is_skipped(cgroup) {
        count(Counter::Skipped as u32);
        return None;
    }
    // SAFETY: each CPU has its own element, and a tick is not interrupted by another.
    let work = unsafe { &mut *WORK.get_ptr_mut(0)? };
    let data = context.as_ptr() as *const bpf_perf_event_data;
    work.calls = 0;
    work.next = 0;
    let header = &mut work.header;
    header.pid = ids.pid;
    header.tid = ids.tid;
    header.reserved = 0;
    header.guessed = 0;
    header.stack_bytes = 0;
    header.process = 0;
    header.kernel_frames = 0;
    header.user_frames = 0;
    header.start_boottime = task.start_boottime();
    header.cgroup = cgroup;
    // SAFETY: `data` is the context that the kernel gave; the helpers write within the arrays whose sizes they get.
    let user_mode = unsafe {
        header.timestamp = bpf_ktime_get_ns();
        header.cpu = bpf_get_smp_processor_id();
        bpf_get_current_comm(header.comm.as_mut_ptr().cast(), header.comm.len() as u32);
        let user_mode = task::is_user_mode(&(*data).regs);
        if !user_mode {
            let room = (MAX_KERNEL_FRAMES * 8) as u32;
            let bytes = bpf_get_stack(context.as_ptr(), work.words.as_mut_ptr().cast(), room, 0);
            if bytes > 0 {
                work.next = (bytes as u32 >> 3) & 127;
                header.kernel_frames = work.next as u16;
            }
        }
        user_mode
    };
    let state = if user_mode {
        // SAFETY: as above.
        UserState::from_registers(unsafe { &(*data).regs }, &mut work.registers)
    } else {
        task.user_state(&mut work.registers)
    };
    match state {
        UserState::Registers(registers) => {
            work.cursor = Cursor::new(registers);
            work.space = Space::of(ids.pid);
            work.header.process = work.space.process();
            Some(work)
        }
        UserState::Compat(registers) => {
            push(work, registers.ip);
            finish(work, End::Compat);
            None
        }
        UserState::None => {
            finish(work, End::NoUserSpace);
            None
        }
        UserState::Unknown => {
            finish(work, End::NoRegisters);
            None
        }
    }
}

/// Writes the record, as long as its stack is.
#[inline(always)]
fn finish(work: &mut Work, end: End) {
    write(work, end, 0);
}

/// Writes the record with `extra` bytes behind its frames.
#[inline(always)]
fn write(work: &mut Work, end: End, extra: u64) {
    work.header.end = end as u16;
    work.header.guessed = work.cursor.guessed as u16;
    count(Counter::Ends as u32 + end as u32);
    let frames = work.next as u64;
    if frames > MAX_FRAMES as u64 || extra > (RESUME_SIZE + MAX_STACK_BYTES) as u64 {
        return;
    }
    work.header.user_frames = (frames as u16).wrapping_sub(work.header.kernel_frames);
    let ring = (&raw const SAMPLES).cast_mut().cast();
    // SAFETY: header and words lie one after the other (asserted above), and the lengths were checked just now.
    let failed = unsafe {
        let flags = if bpf_ringbuf_query(ring, AVAILABLE_DATA) >= global(&WAKE_AT) { FORCE_WAKEUP } else { NO_WAKEUP };
        let size = SAMPLE_HEADER_SIZE as u64 + frames * 8 + extra;
        bpf_ringbuf_output(ring, (&raw mut work.header).cast(), size, flags)
    } != 0;
    count(if failed { Counter::RingFull as u32 } else { Counter::Samples as u32 });
}

/// Writes the record of a stack that goes on in memory of which nothing is known here, with what the collector needs to go
/// on: it knows more of the process by the time that it reads this.
#[inline(always)]
fn hand_over(work: &mut Work) {
    // SAFETY: as in `push`.
    let at = unsafe { (&raw const work.next).read_volatile() } as usize;
    if at > MAX_FRAMES {
        return;
    }
    let Cursor { registers, context, interrupted, guessed } = work.cursor;
    // SAFETY: `at` was checked just now: behind it there is room for a `Resume` and `MAX_STACK_BYTES`. Of the first page
    // no more is read than there is up to its end.
    let bytes = unsafe {
        let resume = work.words.as_mut_ptr().add(at).cast::<Resume>();
        // Field by field: the whole would take a third of BPF's own stack.
        (&raw mut (*resume).ip).write(registers.ip);
        (&raw mut (*resume).sp).write(registers.sp);
        (&raw mut (*resume).fp).write(registers.fp);
        (&raw mut (*resume).context).write(context);
        (&raw mut (*resume).interrupted).write(interrupted);
        (&raw mut (*resume).guessed).write(guessed);
        (&raw mut (*resume).registers).write(work.registers);
        let stack = resume.cast::<u8>().add(RESUME_SIZE);
        let first = MEMORY_PAGE - (registers.sp as usize & (MEMORY_PAGE - 1));
        let read = |into: *mut u8, size: usize, from: u64| {
            bpf_probe_read_user(into.cast(), size as u32, from as *const c_void) == 0
        };
        let from = registers.sp;
        if !read(stack, first, from) {
            0
        } else if !read(stack.add(first), MEMORY_PAGE, from.wrapping_add(first as u64)) {
            first
        } else if !read(stack.add(first + MEMORY_PAGE), MEMORY_PAGE, from.wrapping_add((first + MEMORY_PAGE) as u64)) {
            first + MEMORY_PAGE
        } else if !read(
            stack.add(first + 2 * MEMORY_PAGE),
            MEMORY_PAGE,
            from.wrapping_add((first + 2 * MEMORY_PAGE) as u64),
        ) {
            first + 2 * MEMORY_PAGE
        } else {
            first + 3 * MEMORY_PAGE
        }
    };
    if bytes == 0 {
        finish(work, End::NotPlaced);
        return;
    }
    work.header.stack_bytes = bytes as u32;
    write(work, End::NotPlaced, (RESUME_SIZE + bytes) as u64);
}

/// Puts a frame down; says whether there was room.
#[inline(always)]
fn push(work: &mut Work, frame: u64) -> bool {
    // SAFETY: a field of a structure that this program alone uses; volatile, since the compiler would otherwise
    // compute the place of a frame before the check that the verifier wants to see.
    let at = unsafe { (&raw const work.next).read_volatile() };
    if at as usize >= MAX_FRAMES || at >= work.header.kernel_frames as u32 + MAX_USER_FRAMES as u32 {
        return false;
    }
    work.words[at as usize] = frame;
    // SAFETY: as above.
    unsafe { (&raw mut work.next).write_volatile(at + 1) };
    true
}

/// Puts the frame down and moves to its caller. `None`: go on.
#[inline(always)]
fn one_frame(work: &mut Work) -> Option<End> {
    if !push(work, work.cursor.recorded()) {
        return Some(End::TooDeep);
    }
    let mut cursor = work.cursor;
    let mut process = Process { space: &mut work.space, registers: &work.registers };
    let result = unwinder::step(&mut process, &mut cursor);
    work.cursor = cursor;
    result.err()
}

#[inline(always)]
fn some_frames(context: &PerfEventContext, work: &mut Work) {
    for _ in 0..FRAMES_PER_CALL {
        match one_frame(work) {
            None => {}
            Some(End::NotPlaced) => return hand_over(work),
            Some(end) => return finish(work, end),
        }
    }
    work.calls += 1;
    if work.calls < MAX_CALLS {
        // SAFETY: the context is this program's own; a call that succeeds does not return.
        unsafe {
            let _ = UNWIND_MORE.tail_call(context, 0);
        }
    }
    finish(work, End::OutOfCalls);
}

/// The first program of a sample.
#[perf_event]
pub fn sample(context: PerfEventContext) -> u32 {
    if let Some(work) = begin(&context) {
        some_frames(&context, work);
    }
    0
}

/// Goes on with the unwind that `sample` began.
#[perf_event]
pub fn unwind_more(context: PerfEventContext) -> u32 {
    if let Some(work) = WORK.get_ptr_mut(0) {
        // SAFETY: as in `begin`: this is the same tick.
        some_frames(&context, unsafe { &mut *work });
    }
    0
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The helpers that a profiler needs are for programs under a licence compatible with the GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
