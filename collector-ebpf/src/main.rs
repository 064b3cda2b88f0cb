//! The BPF programs: at each tick of a CPU's clock, one record of what that CPU was doing.
//!
//! `sample` fills the header and the kernel's frames, finds the user's registers and unwinds the first frames;
//! `unwind_more` goes on, a tail call for every [`FRAMES_PER_CALL`] frames; whichever finishes writes the record.
#![no_std]
#![no_main]

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
    MAX_USER_FRAMES, SAMPLE_HEADER_SIZE, SampleHeader,
};
use task::{Task, UserState};
use unwinder::{Memory, Registers};

/// `BPF_F_MMAPABLE` (include/uapi/linux/bpf.h): the collector reads and writes such a map as memory, so that it
/// never needs bpf(2) after its start.
const MMAPABLE: u32 = 1 << 10;
/// `BPF_RB_NO_WAKEUP`, `BPF_RB_FORCE_WAKEUP`, `BPF_RB_AVAIL_DATA` (include/uapi/linux/bpf.h).
const NO_WAKEUP: u64 = 1;
const FORCE_WAKEUP: u64 = 2;
const AVAILABLE_DATA: u64 = 0;

/// Counters, [`COUNTERS_PER_CPU`] for each CPU, each written by its own CPU only.
#[map(name = "COUNTERS")]
static COUNTERS: Array<u64> = Array::with_max_entries(COUNTERS_PER_CPU * MAX_CPUS, MMAPABLE);
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

/// A record and the state of its unwind.
#[repr(C)]
struct Work {
    registers: Registers,
    calls: u32,
    /// Where in `frames` the next frame goes.
    next: u32,
    header: SampleHeader,
    frames: [u64; MAX_FRAMES],
}

const _: () = assert!(core::mem::offset_of!(Work, frames) - core::mem::offset_of!(Work, header) == SAMPLE_HEADER_SIZE);

struct UserMemory;

impl Memory for UserMemory {
    #[inline(always)]
    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
        let mut pair = [0u64; 2];
        // SAFETY: the helper writes 16 bytes to `pair`, or fails; the address may be anything.
        let failed = unsafe { bpf_probe_read_user((&raw mut pair).cast(), 16, address as *const c_void) } != 0;
        if failed { None } else { Some(pair) }
    }
}

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
    let task = Task::current();
    let Some(ids) = task.ids() else {
        count(Counter::OutsideNamespace as u32);
        return None;
    };
    if ids.tid == 0 {
        count(Counter::Idle as u32);
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
    header.kernel_frames = 0;
    header.user_frames = 0;
    header.start_boottime = task.start_boottime();
    header.cgroup = task.cgroup();
    // SAFETY: `data` is the context that the kernel gave; the helpers write within the arrays whose sizes they get.
    let user_mode = unsafe {
        header.timestamp = bpf_ktime_get_ns();
        header.cpu = bpf_get_smp_processor_id();
        bpf_get_current_comm(header.comm.as_mut_ptr().cast(), header.comm.len() as u32);
        let user_mode = task::is_user_mode(&(*data).regs);
        if !user_mode {
            let room = (MAX_KERNEL_FRAMES * 8) as u32;
            let bytes = bpf_get_stack(context.as_ptr(), work.frames.as_mut_ptr().cast(), room, 0);
            if bytes > 0 {
                work.next = (bytes as u32 >> 3) & 127;
                header.kernel_frames = work.next as u16;
            }
        }
        user_mode
    };
    let state = if user_mode {
        // SAFETY: as above.
        UserState::from_registers(unsafe { &(*data).regs })
    } else {
        task.user_state()
    };
    match state {
        UserState::Registers(registers) => {
            work.registers = registers;
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
    work.header.end = end as u32;
    count(Counter::Ends as u32 + end as u32);
    let frames = work.next as u64;
    if frames > MAX_FRAMES as u64 {
        return;
    }
    work.header.user_frames = (frames as u16).wrapping_sub(work.header.kernel_frames);
    let ring = (&raw const SAMPLES).cast_mut().cast();
    // SAFETY: header and frames lie one after the other (asserted above), and the length was checked just now.
    let failed = unsafe {
        let flags = if bpf_ringbuf_query(ring, AVAILABLE_DATA) >= global(&WAKE_AT) { FORCE_WAKEUP } else { NO_WAKEUP };
        bpf_ringbuf_output(ring, (&raw mut work.header).cast(), SAMPLE_HEADER_SIZE as u64 + frames * 8, flags)
    } != 0;
    count(if failed { Counter::RingFull as u32 } else { Counter::Samples as u32 });
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
    work.frames[at as usize] = frame;
    // SAFETY: as above.
    unsafe { (&raw mut work.next).write_volatile(at + 1) };
    true
}

/// Puts the frame down and moves to its caller. `None`: go on.
#[inline(always)]
fn one_frame(work: &mut Work) -> Option<End> {
    if !push(work, work.registers.ip) {
        return Some(End::TooDeep);
    }
    let mut registers = work.registers;
    let result = unwinder::step(&mut UserMemory, &mut registers);
    work.registers = registers;
    result.err()
}

#[inline(always)]
fn some_frames(context: &PerfEventContext, work: &mut Work) {
    for _ in 0..FRAMES_PER_CALL {
        if let Some(end) = one_frame(work) {
            finish(work, end);
            return;
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
