//! What the unprivileged half keeps of what it was started with: nothing (promise W9).

use security::{Call, Only};
use thiserror::Error;
use tracing::warn;

/// Why the uploader does not run.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A capability could not be given up.
    #[error(transparent)]
    Capabilities(#[from] security::CapabilityError),
    /// An attribute of the process could not be set.
    #[error(transparent)]
    Process(#[from] security::ProcessError),
    /// System calls could not be restricted.
    #[error(transparent)]
    SystemCalls(#[from] security::SeccompError),
}

/// Gives up every privilege, for good, and says so if there was one to give up. To be called before there is another
/// thread and before anything is read.
pub fn drop_everything() -> Result<(), PolicyError> {
    let had = security::effective()?;
    if rustix::process::getuid().is_root() {
        warn!("started as root: give the uploader a user of its own; it goes on without any capability");
    } else if !had.is_empty() {
        warn!("started with capabilities, which it does not need; they are dropped");
    }
    security::keep_exactly(&[])?;
    security::harden()?;
    security::allow_only(CALLS)?;
    Ok(())
}

const fn call(name: &'static str, only: &'static [Only], reason: &'static str) -> Call {
    Call { name, only, reason }
}

const PROT_EXEC: u32 = libc::PROT_EXEC.cast_unsigned();
/// Memory without a file.
const ANONYMOUS: Only = Only::With(3, libc::MAP_ANONYMOUS.cast_unsigned());
/// Kinds of sockets (socket(2)): to the collector; the page, and name servers and stores. No raw packets, no netlink, no kernel
/// cryptography.
const FAMILIES: [u32; 3] =
    [libc::AF_UNIX.cast_unsigned(), libc::AF_INET.cast_unsigned(), libc::AF_INET6.cast_unsigned()];
/// Commands of fcntl(2).
const FCNTL: [u32; 5] = [
    libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    libc::F_GETFL.cast_unsigned(),
    libc::F_SETFL.cast_unsigned(),
    libc::F_GETFD.cast_unsigned(),
    libc::F_SETFD.cast_unsigned(),
];

/// Options of prctl(2). `PR_GET_AUXV` (`include/uapi/linux/prctl.h`) reads this process's own auxiliary vector.
const PRCTL: [u32; 2] = [libc::PR_SET_NAME.cast_unsigned(), 0x4155_5856];

/// The system calls that the uploader makes. No program is executed, nothing traced or mounted, no user changed, no memory made
/// executable; and no file that it was passed is mapped: memory comes without a file (W9).
pub const CALLS: &[Call] = &[
    // Passed files, and its own.
    call("pread64", &[], "executables that the collector passed"),
    call("read", &[], "files, connections"),
    call("write", &[], "files, connections, the log"),
    call("writev", &[], "answers of the page"),
    call("open", &[], "its own files"),
    call("openat", &[], "its own files"),
    call("close", &[], "files that are done with"),
    call("fstat", &[], "sizes of files"),
    call("statx", &[], "sizes of files"),
    call("newfstatat", &[], "its own files"),
    call("lseek", &[], "how much of a file is left"),
    call("getdents64", &[], "what is stored locally"),
    call("mkdir", &[], "the local store"),
    call("mkdirat", &[], "the local store"),
    call("rename", &[], "the local store"),
    call("renameat", &[], "the local store"),
    call("renameat2", &[], "the local store"),
    call("link", &[], "the local store"),
    call("linkat", &[], "the local store"),
    call("unlink", &[], "the local store"),
    call("unlinkat", &[], "the local store"),
    call("rmdir", &[], "the local store"),
    call("fsync", &[], "the local store"),
    call("fdatasync", &[], "the local store"),
    call("ftruncate", &[], "the local store"),
    call("chmod", &[], "the local store"),
    call("fchmod", &[], "the local store"),
    call("flock", &[], "the local store"),
    call("umask", &[], "the local store"),
    call("readlink", &[], "its own files"),
    call("readlinkat", &[], "its own files"),
    // Connections.
    call("socket", &[Only::OneOf(0, &FAMILIES)], "the collector, the page"),
    call("socketpair", &[Only::OneOf(0, &FAMILIES)], "a signal came, said within the process"),
    call("connect", &[], "the collector"),
    call("bind", &[], "the page"),
    call("listen", &[], "the page"),
    call("accept4", &[], "the page"),
    call("getsockname", &[], "the page's address"),
    call("getpeername", &[], "who asks"),
    call("getsockopt", &[], "whether a connection is made"),
    call("setsockopt", &[], "the page"),
    call("shutdown", &[], "a connection ends"),
    call("recvmsg", &[], "what the collector says, with files"),
    call("sendmsg", &[], "what the collector is asked"),
    call("recvfrom", &[], "connections"),
    call("sendto", &[], "connections"),
    call("fcntl", &[Only::OneOf(1, &FCNTL)], "files"),
    call("ioctl", &[Only::Fails(libc::ENOTTY)], "whether the log is a terminal"),
    call("uname", &[], "the machine's name"),
    // The event loop and its threads.
    call("epoll_create1", &[], "the loop"),
    call("epoll_ctl", &[], "the loop"),
    call("epoll_wait", &[], "the loop"),
    call("epoll_pwait", &[], "the loop"),
    call("eventfd2", &[], "waking the loop"),
    call("poll", &[], "one connection"),
    call("futex", &[], "locks"),
    call("sched_yield", &[], "locks"),
    call("nanosleep", &[], "waiting"),
    call("clock_nanosleep", &[], "waiting"),
    call("clock_gettime", &[], "where the vdso cannot tell"),
    call("restart_syscall", &[], "the kernel's own, after a stop"),
    // Its flags lie where no filter sees them; the C library then uses clone.
    call("clone3", &[Only::Fails(libc::ENOSYS)], "threads"),
    call("clone", &[Only::With(0, libc::CLONE_THREAD.cast_unsigned())], "threads, no processes"),
    call("set_robust_list", &[], "threads"),
    call("rseq", &[], "threads"),
    call("sched_getaffinity", &[], "how many CPUs there are, a thread's stack"),
    call(
        "prctl",
        &[Only::OneOf(0, &PRCTL)],
        "names of threads, what the kernel told the process at its start",
    ),
    call("gettid", &[], "threads"),
    call("getpid", &[], "abort"),
    call("tgkill", &[Only::Own(0)], "abort"),
    call("exit", &[], "the end of a thread"),
    call("exit_group", &[], "the end"),
    call("sigaltstack", &[], "threads"),
    call("rt_sigaction", &[], "SIGTERM and SIGINT"),
    call("rt_sigprocmask", &[], "threads"),
    call("rt_sigreturn", &[], "the end of a signal handler"),
    call("prlimit64", &[], "how many files may be open, a thread's stack"),
    // Memory. With a file it would be the end when that file is cut short.
    call("mmap", &[Only::Without(2, PROT_EXEC), ANONYMOUS], "the allocator, threads"),
    call("mprotect", &[Only::Without(2, PROT_EXEC)], "the allocator, threads"),
    call("mremap", &[], "the allocator"),
    call("munmap", &[], "the allocator, threads"),
    call("madvise", &[], "memory given back"),
    call("brk", &[], "the allocator"),
    call("getrandom", &[], "seeds of hash maps"),
    call("getuid", &[], "who it is"),
    call("geteuid", &[], "who it is"),
    call("getgid", &[], "who it is"),
    call("getegid", &[], "who it is"),
];
