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

/// The descriptor that keeps up the fence around this process's reading: below the usual soft limit, above what is open at the start.
pub(crate) const FENCE_LINK: i32 = 1000;

/// The system calls that are left after the start. No socket can be made, no program executed, nothing opened for writing, no
/// memory made executable.
pub(crate) const CALLS: &[Call] = &[
    // Reading /proc and what is mapped.
    Call::new("open", &[Only::Without(1, TO_WRITE)], "map_files and perf maps"),
    Call::new("openat", &[Only::Without(2, TO_WRITE)], "/proc, cgroups, perf maps"),
    Call::new("read", &[], "files, timers, signals that came"),
    Call::new("pread64", &[], "the kernel's symbols"),
    Call::new("lseek", &[], "how much of a file is left"),
    Call::new("fstat", &[], "which file a mapping shows"),
    Call::new("statx", &[], "the size of what is read"),
    Call::new("newfstatat", &[], "whether a process is there"),
    Call::new("readlinkat", &[], "where a /tmp that is a link leads, and the path of an open file"),
    Call::new("getdents64", &[], "the processes and threads in /proc"),
    Call::new(
        "close",
        &[Only::Not(0, FENCE_LINK.cast_unsigned())],
        "files that are done with, but not the fence",
    ),
    // The uploader's connection.
    Call::new("accept4", &[], "the uploader connects"),
    Call::new("getsockopt", &[], "whose connection it is"),
    Call::new("recvmsg", &[], "what the uploader asks"),
    Call::new("sendmsg", &[], "samples, with files"),
    Call::new("recvfrom", &[], "a signal came, said within the process"),
    Call::new("sendto", &[], "a signal came, said within the process"),
    Call::new("shutdown", &[], "a connection ends"),
    Call::new("fcntl", &[Only::OneOf(1, &FCNTL)], "a file passed on twice, and sealed"),
    Call::new("memfd_create", &[], "the kernel's symbols, for the uploader"),
    Call::new("write", &[], "the log, the kernel's symbols, waking the loop"),
    // The event loop.
    Call::new("epoll_wait", &[], "the loop"),
    Call::new("epoll_pwait", &[], "the loop"),
    Call::new("epoll_ctl", &[], "connections that come and go"),
    Call::new("clock_nanosleep", &[], "gathering records"),
    Call::new("clock_gettime", &[], "where the vdso cannot tell"),
    Call::new("restart_syscall", &[], "the kernel's own, after a stop"),
    Call::new("rt_sigreturn", &[], "the end of a signal handler"),
    Call::new("futex", &[], "locks of the runtime"),
    Call::new("sched_yield", &[], "locks of the runtime"),
    // Memory.
    Call::new("mmap", &[Only::NOT_EXECUTABLE, Only::ANONYMOUS], "the allocator"),
    Call::new("mprotect", &[Only::NOT_EXECUTABLE], "the allocator"),
    Call::new("mremap", &[], "the allocator"),
    Call::new("munmap", &[], "the allocator, and maps at the end"),
    Call::new("madvise", &[], "memory given back"),
    Call::new("brk", &[], "the allocator"),
    Call::new("getrandom", &[], "seeds of hash maps"),
    // The end.
    Call::new("exit_group", &[], "the end"),
    Call::new("sigaltstack", &[], "the end of a thread"),
    Call::new("rt_sigprocmask", &[], "abort"),
    Call::new("getpid", &[], "abort"),
    Call::new("gettid", &[], "abort"),
    Call::new("tgkill", &[Only::Own(0)], "abort"),
    // What libraries try, and go on without.
    Call::new("ioctl", &[Only::Fails(libc::ENOTTY)], "whether the log is a terminal"),
];

/// Commands of fcntl(2).
const FCNTL: [u32; 4] = [
    libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    libc::F_GETFL.cast_unsigned(),
    libc::F_GETFD.cast_unsigned(),
    libc::F_ADD_SEALS.cast_unsigned(),
];
