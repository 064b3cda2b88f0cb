//! What the collector may do, as data, a reason for each line.

use security::{Call, Capability, Only};

/// What must be there at the start, and what for.
pub(crate) const NEEDED_AT_START: [(Capability, &str); 2] = [
    (Capability::CAP_BPF, "load the BPF programs and make their maps"),
    (Capability::CAP_PERFMON, "sample every CPU and hear of every mapping and process"),
];

/// What is kept after the start. Opening `/proc/PID/map_files/START-END` takes all three
/// (`proc_map_files_get_link` and `proc_map_files_lookup` in the kernel's `fs/proc/base.c`).
pub(crate) const KEPT: [(Capability, &str); 3] = [
    (Capability::CAP_SYS_PTRACE, "look into other users' /proc/PID"),
    (Capability::CAP_DAC_READ_SEARCH, "open files that only their owner may read"),
    (Capability::CAP_CHECKPOINT_RESTORE, "follow the links in /proc/PID/map_files"),
];

/// Used at the start where it is there; without it, kernel frames have no names.
pub(crate) const READS_KERNEL_ADDRESSES: Capability = Capability::CAP_SYSLOG;

/// Flags of open(2) that would create or change something; `O_TMPFILE` without the bit that says `O_DIRECTORY`.
const TO_WRITE: u32 = (libc::O_WRONLY
    | libc::O_RDWR
    | libc::O_CREAT
    | libc::O_TRUNC
    | libc::O_APPEND
    | (libc::O_TMPFILE & !libc::O_DIRECTORY))
    .cast_unsigned();

const fn call(name: &'static str, only: &'static [Only], reason: &'static str) -> Call {
    Call { name, only, reason }
}

/// The system calls that are left after the start. No socket can be made, no program executed, nothing opened for writing, no
/// memory made executable.
pub(crate) const CALLS: &[Call] = &[
    // Reading /proc and what is mapped.
    call("open", &[Only::Without(1, TO_WRITE)], "map_files and perf maps"),
    call("openat", &[Only::Without(2, TO_WRITE)], "/proc, cgroups, perf maps"),
    call("read", &[], "files, timers, signals that came"),
    call("pread64", &[], "the kernel's symbols"),
    call("lseek", &[], "how much of a file is left"),
    call("fstat", &[], "which file a mapping shows"),
    call("statx", &[], "the size of what is read"),
    call("newfstatat", &[], "whether a process is there"),
    call("stat", &[], "whether a process is there"),
    call("readlinkat", &[], "where a /tmp that is a link leads"),
    call("getdents64", &[], "the processes and threads in /proc"),
    call("close", &[], "files that are done with"),
    // The uploader's connection.
    call("accept4", &[], "the uploader connects"),
    call("getsockopt", &[], "whose connection it is"),
    call("recvmsg", &[], "what the uploader asks"),
    call("sendmsg", &[], "samples, with files"),
    call("recvfrom", &[], "a signal came, said within the process"),
    call("sendto", &[], "a signal came, said within the process"),
    call("shutdown", &[], "a connection ends"),
    call("fcntl", &[Only::OneOf(1, &FCNTL)], "a file passed on twice, and sealed"),
    call("memfd_create", &[], "the kernel's symbols, for the uploader"),
    call("write", &[], "the log, the kernel's symbols, waking the loop"),
    // The event loop.
    call("epoll_wait", &[], "the loop"),
    call("epoll_pwait", &[], "the loop"),
    call("epoll_ctl", &[], "connections that come and go"),
    call("clock_nanosleep", &[], "gathering records"),
    call("clock_gettime", &[], "where the vdso cannot tell"),
    call("restart_syscall", &[], "the kernel's own, after a stop"),
    call("rt_sigreturn", &[], "the end of a signal handler"),
    call("futex", &[], "locks of the runtime"),
    call("sched_yield", &[], "locks of the runtime"),
    // Memory.
    call("mmap", &[Only::Without(2, PROT_EXEC), ANONYMOUS], "the allocator"),
    call("mprotect", &[Only::Without(2, PROT_EXEC)], "the allocator"),
    call("mremap", &[], "the allocator"),
    call("munmap", &[], "the allocator, and maps at the end"),
    call("madvise", &[], "memory given back"),
    call("brk", &[], "the allocator"),
    call("getrandom", &[], "seeds of hash maps"),
    call("prctl", &[Only::OneOf(0, &[PR_GET_AUXV])], "what the kernel told the process at its start"),
    // The end.
    call("exit_group", &[], "the end"),
    call("sigaltstack", &[], "the end of a thread"),
    call("rt_sigprocmask", &[], "abort"),
    call("getpid", &[], "abort"),
    call("gettid", &[], "abort"),
    call("tgkill", &[Only::Own(0)], "abort"),
    // What libraries try, and go on without.
    call("ioctl", &[Only::Fails(libc::ENOTTY)], "whether the log is a terminal"),
];

/// Reads this process's own auxiliary vector (`include/uapi/linux/prctl.h`).
const PR_GET_AUXV: u32 = 0x4155_5856;
const PROT_EXEC: u32 = libc::PROT_EXEC.cast_unsigned();
/// Memory without a file.
const ANONYMOUS: Only = Only::With(3, libc::MAP_ANONYMOUS.cast_unsigned());
/// Commands of fcntl(2).
const FCNTL: [u32; 4] = [
    libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    libc::F_GETFL.cast_unsigned(),
    libc::F_GETFD.cast_unsigned(),
    libc::F_ADD_SEALS.cast_unsigned(),
];
