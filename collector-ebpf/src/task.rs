//! What is read of the kernel's own structures. Their layouts differ between kernels: the collector finds the offsets
//! in the kernel's BTF and sets them here before loading; an offset of [`ABSENT`] says that this kernel has no such
//! member.

use aya_ebpf::{
    bindings::pt_regs,
    helpers::generated::{
        bpf_get_current_cgroup_id, bpf_get_current_pid_tgid, bpf_get_current_task, bpf_get_current_task_btf,
        bpf_probe_read_kernel, bpf_task_pt_regs,
    },
};
use core::{ffi::c_void, mem::MaybeUninit};
use records::REGISTERS;
use unwinder::Registers;

use crate::global;

/// Not a member of this kernel's structure.
pub(crate) const ABSENT: u32 = u32::MAX;
/// `PF_KTHREAD` (include/linux/sched.h).
const PF_KTHREAD: u32 = 0x0020_0000;
/// User code segments of 64-bit and 32-bit code (`__USER_CS`, `__USER32_CS` in arch/x86/include/asm/segment.h).
const USER_CS: u64 = 0x33;
const USER32_CS: u64 = 0x23;
/// Deepest nesting of pid namespaces (`MAX_PID_NS_LEVEL` in kernel/pid_namespace.c is 32; who nests deeper than this
/// is counted as outside).
const MAX_LEVELS: u32 = 8;
/// `sizeof(struct upid)`: a number, and a pointer to its namespace.
const UPID_SIZE: u64 = 16;

macro_rules! globals {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $value:expr;)*) => {
        $($(#[$doc])* #[unsafe(no_mangle)] static $name: $type = $value;)*
    };
}
pub(crate) use globals;

globals! {
    /// Inode of the collector's pid namespace; 0: the initial one, whose ids the kernel gives by itself.
    PID_NAMESPACE: u32 = 0;
    /// Whether the helper bpf_task_pt_regs is there (5.15).
    HAVE_TASK_PT_REGS: u32 = 0;
    /// Size of a kernel stack.
    KERNEL_STACK_SIZE: u64 = 16384;
    /// Whether cgroup v1 hierarchies are mounted, so that the v2 id does not tell all.
    CGROUP_V1: u32 = 0;
    /// Offsets in `task_struct`.
    TASK_STACK: u32 = ABSENT;
    TASK_FLAGS: u32 = ABSENT;
    TASK_MM: u32 = ABSENT;
    TASK_GROUP_LEADER: u32 = ABSENT;
    TASK_START_BOOTTIME: u32 = ABSENT;
    TASK_THREAD_PID: u32 = ABSENT;
    TASK_CGROUPS: u32 = ABSENT;
    /// Offset in `mm_struct`.
    MM_START_CODE: u32 = ABSENT;
    /// Offsets in `struct pid`, and of the namespace's inode in `struct pid_namespace`.
    PID_LEVEL: u32 = ABSENT;
    PID_NUMBERS: u32 = ABSENT;
    PID_NAMESPACE_INUM: u32 = ABSENT;
    /// Offset in `css_set` of the state of the memory, the cpu and the pids controller.
    CSS_SET_MEMORY: u32 = ABSENT;
    CSS_SET_CPU: u32 = ABSENT;
    CSS_SET_PIDS: u32 = ABSENT;
    /// Offsets in `cgroup_subsys_state`, `cgroup` and `kernfs_node`.
    CSS_CGROUP: u32 = ABSENT;
    CGROUP_KN: u32 = ABSENT;
    KERNFS_NODE_ID: u32 = ABSENT;
}

/// Reads kernel memory, which may be anything: a failure is `None`.
#[inline(always)]
pub(crate) fn read<T: Copy>(base: u64, offset: &'static u32) -> Option<T> {
    let offset = global(offset);
    if offset == ABSENT || base == 0 {
        return None;
    }
    read_at(base.wrapping_add(offset as u64))
}

#[inline(always)]
pub(crate) fn read_at<T: Copy>(address: u64) -> Option<T> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper fills `value` or fails; the types read here are plain numbers and pt_regs.
    unsafe {
        if bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const c_void) != 0 {
            return None;
        }
        Some(value.assume_init())
    }
}

/// Process and thread id, as the collector's pid namespace numbers them.
pub(crate) struct Ids {
    pub(crate) pid: u32,
    pub(crate) tid: u32,
}

/// Where a task was in user space when it was sampled.
pub(crate) enum UserState {
    /// There.
    Registers(Registers),
    /// There, in 32-bit code.
    Compat(Registers),
    /// It has no user space.
    None,
    /// It cannot be found out.
    Unknown,
}

#[inline(always)]
pub(crate) fn is_user_mode(registers: &pt_regs) -> bool {
    registers.cs & 3 == 3
}

impl UserState {
    /// Takes the registers apart; `general` gets those of [`records::REGISTERS`], in that order.
    #[inline(always)]
    pub(crate) fn from_registers(saved: &pt_regs, general: &mut [u64; REGISTERS as usize]) -> Self {
        // SAFETY: fields of a structure behind a reference; volatile, since the compiler would otherwise make one read of those
        // of several callers, through pointers of different kinds, which the verifier refuses.
        let (registers, cs) = unsafe {
            *general = [
                (&raw const saved.rax).read_volatile(),
                (&raw const saved.rdx).read_volatile(),
                (&raw const saved.rcx).read_volatile(),
                (&raw const saved.rbx).read_volatile(),
                (&raw const saved.rsi).read_volatile(),
                (&raw const saved.rdi).read_volatile(),
                (&raw const saved.rbp).read_volatile(),
                (&raw const saved.rsp).read_volatile(),
                (&raw const saved.r8).read_volatile(),
                (&raw const saved.r9).read_volatile(),
                (&raw const saved.r10).read_volatile(),
                (&raw const saved.r11).read_volatile(),
                (&raw const saved.r12).read_volatile(),
                (&raw const saved.r13).read_volatile(),
                (&raw const saved.r14).read_volatile(),
                (&raw const saved.r15).read_volatile(),
            ];
            let registers = Registers {
                ip: (&raw const saved.rip).read_volatile(),
                sp: (&raw const saved.rsp).read_volatile(),
                fp: (&raw const saved.rbp).read_volatile(),
            };
            (registers, (&raw const saved.cs).read_volatile())
        };
        match cs {
            USER_CS => UserState::Registers(registers),
            USER32_CS => UserState::Compat(registers),
            _ => UserState::Unknown,
        }
    }
}

/// The task that was interrupted: the address of its `task_struct`.
pub(crate) struct Task(u64);

impl Task {
    #[inline(always)]
    pub(crate) fn current() -> Self {
        // SAFETY: the helper has no arguments.
        Task(unsafe { bpf_get_current_task() })
    }

    /// `None`: the task is not in the collector's pid namespace or one below it. The idle task has thread id 0.
    #[inline(always)]
    pub(crate) fn ids(&self) -> Option<Ids> {
        // SAFETY: the helper has no arguments.
        let both = unsafe { bpf_get_current_pid_tgid() };
        let host = Ids { pid: (both >> 32) as u32, tid: both as u32 };
        if global(&PID_NAMESPACE) == 0 || host.tid == 0 {
            return Some(host);
        }
        let leader: u64 = read(self.0, &TASK_GROUP_LEADER)?;
        Some(Ids { pid: number_in_namespace(leader)?, tid: number_in_namespace(self.0)? })
    }

    /// When the process started, in nanoseconds since boot.
    #[inline(always)]
    pub(crate) fn start_boottime(&self) -> u64 {
        let leader = read(self.0, &TASK_GROUP_LEADER).unwrap_or(self.0);
        read(leader, &TASK_START_BOOTTIME).unwrap_or(0)
    }

    /// What tells one set of cgroups from another.
    #[inline(always)]
    pub(crate) fn cgroup(&self) -> u64 {
        // SAFETY: the helper has no arguments.
        let v2 = unsafe { bpf_get_current_cgroup_id() };
        if global(&CGROUP_V1) == 0 {
            return v2;
        }
        // A css_set stands for one combination of cgroups in all hierarchies, named ones too, but its address may be
        // used again; the ids of cgroups are not.
        let set: u64 = read(self.0, &TASK_CGROUPS).unwrap_or(0);
        let mut key = mix(v2, set);
        key = mix(key, controller_cgroup(set, &CSS_SET_MEMORY).unwrap_or(0));
        key = mix(key, controller_cgroup(set, &CSS_SET_CPU).unwrap_or(0));
        mix(key, controller_cgroup(set, &CSS_SET_PIDS).unwrap_or(0))
    }

    /// The user's registers of a task that was interrupted in the kernel; see [`UserState::from_registers`].
    #[inline(always)]
    pub(crate) fn user_state(&self, general: &mut [u64; REGISTERS as usize]) -> UserState {
        // A process that ends gives up its memory before its last kernel code runs. A kernel thread may borrow some.
        let memory = read::<u64>(self.0, &TASK_MM);
        if memory == Some(0) || read::<u32>(self.0, &TASK_FLAGS).is_some_and(|flags| flags & PF_KTHREAD != 0) {
            return UserState::None;
        }
        // Within exec, the old program's memory is gone while its registers are still there. Where the new one's code
        // begins is the last that the kernel writes down before it sets them (load_elf_binary in fs/binfmt_elf.c).
        if memory.is_some_and(|memory| read::<u64>(memory, &MM_START_CODE) == Some(0)) {
            return UserState::None;
        }
        if global(&HAVE_TASK_PT_REGS) != 0 {
            // SAFETY: the helpers give a pointer that the verifier lets the program read.
            let saved = unsafe { &*(bpf_task_pt_regs(bpf_get_current_task_btf()) as *const pt_regs) };
            return UserState::from_registers(saved, general);
        }
        // Before 5.15: they lie at the top of the kernel's stack (task_pt_regs in arch/x86/include/asm/processor.h).
        let Some(stack) = read::<u64>(self.0, &TASK_STACK) else { return UserState::Unknown };
        let top = stack.wrapping_add(global(&KERNEL_STACK_SIZE));
        match read_at::<pt_regs>(top.wrapping_sub(size_of::<pt_regs>() as u64)) {
            Some(saved) => UserState::from_registers(&saved, general),
            None => UserState::Unknown,
        }
    }
}

/// The number of a task in the collector's pid namespace.
#[inline(always)]
fn number_in_namespace(task: u64) -> Option<u32> {
    let pid: u64 = read(task, &TASK_THREAD_PID)?;
    let level: u32 = read(pid, &PID_LEVEL)?;
    let numbers = pid.wrapping_add(global(&PID_NUMBERS) as u64);
    for i in 0..MAX_LEVELS {
        if i > level {
            break;
        }
        let upid = numbers.wrapping_add(i as u64 * UPID_SIZE);
        let namespace: u64 = read_at(upid.wrapping_add(8))?;
        if read::<u32>(namespace, &PID_NAMESPACE_INUM)? == global(&PID_NAMESPACE) {
            return read_at(upid);
        }
    }
    None
}

/// The id of the cgroup that a controller of this css_set belongs to.
#[inline(always)]
fn controller_cgroup(set: u64, controller: &'static u32) -> Option<u64> {
    let state: u64 = read(set, controller)?;
    let cgroup: u64 = read(state, &CSS_CGROUP)?;
    let node: u64 = read(cgroup, &CGROUP_KN)?;
    read(node, &KERNFS_NODE_ID)
}

/// Mixes a number into a key (the multiplier is 2^64 divided by the golden ratio).
#[inline(always)]
fn mix(key: u64, value: u64) -> u64 {
    (key ^ value).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)
}
