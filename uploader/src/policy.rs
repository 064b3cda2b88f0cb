//! What the unprivileged half keeps of what it was started with: nothing (promise W9).

use security::{Call, Only};
use thiserror::Error;
use tracing::warn;

use crate::confine::{ConfineError, Confinement, Needs, confine};

/// Why the uploader does not run.
#[derive(Debug, Error)]
pub enum PolicyError {
    /// A capability could not be given up.
    #[error(transparent)]
    Capabilities(#[from] security::CapabilityError),
    /// An attribute of the process could not be set.
    #[error(transparent)]
    Process(#[from] security::ProcessError),
    /// Files and ports could not be restricted.
    #[error(transparent)]
    Confine(#[from] ConfineError),
    /// System calls could not be restricted.
    #[error(transparent)]
    SystemCalls(#[from] security::SeccompError),
}

/// Gives up every privilege, for good, and says so if there was one to give up. To be called before there is another
/// thread and before anything is read.
pub fn drop_privileges() -> Result<(), PolicyError> {
    let had = security::effective()?;
    if rustix::process::getuid().is_root() {
        warn!("started as root: give the uploader a user of its own; it goes on without any capability");
    } else if !had.is_empty() {
        warn!("started with capabilities, which it does not need; they are dropped");
    }
    security::keep_exactly(&[])?;
    security::harden()?;
    Ok(())
}

/// Leaves no file, port or system call but those that are needed. To be called before there is another thread, and before anything
/// comes from outside.
pub fn lock_down(needs: &Needs) -> Result<Confinement, PolicyError> {
    let confinement = confine(needs)?;
    security::allow_only(CALLS)?;
    Ok(confinement)
}

/// Kinds of sockets (socket(2)): to the collector; the page, and name servers and stores. No raw packets, no netlink, no kernel
/// cryptography.
const FAMILIES: [u32; 3] =
    [libc::AF_UNIX.cast_unsigned(), libc::AF_INET.cast_unsigned(), libc::AF_INET6.cast_unsigned()];
/// Protocols of these: the usual one, TCP, UDP. Landlock's rules for ports hold for TCP, and not for MPTCP, which connects by TCP where the other side
/// knows no better (landlock(7); `security/landlock/errata/abi-4.h`).
const PROTOCOLS: [u32; 3] = [0, libc::IPPROTO_TCP.cast_unsigned(), libc::IPPROTO_UDP.cast_unsigned()];
/// A flag of send(2) by which a connection is made without connect(2), and so without a question to landlock.
const FAST_OPEN: u32 = libc::MSG_FASTOPEN.cast_unsigned();
/// Commands of fcntl(2).
const FCNTL: [u32; 5] = [
    libc::F_DUPFD_CLOEXEC.cast_unsigned(),
    libc::F_GETFL.cast_unsigned(),
    libc::F_SETFL.cast_unsigned(),
    libc::F_GETFD.cast_unsigned(),
    libc::F_SETFD.cast_unsigned(),
];

/// Options of prctl(2).
const PRCTL: [u32; 1] = [libc::PR_SET_NAME.cast_unsigned()];

/// The system calls that the uploader makes. No program is executed, nothing traced or mounted, no user changed, no memory made
/// executable; and no file that it was passed is mapped: memory comes without a file (W9).
pub const CALLS: &[Call] = &[
    // Passed files, and its own.
    Call::new("pread64", &[], "executables that the collector passed"),
    Call::new("read", &[], "files, connections"),
    Call::new("write", &[], "files, connections, the log"),
    Call::new("writev", &[], "answers of the page"),
    Call::new("openat", &[], "its own files"),
    Call::new("close", &[], "files that are done with"),
    Call::new("fstat", &[], "sizes of files"),
    Call::new("statx", &[], "sizes of files"),
    Call::new("newfstatat", &[], "its own files"),
    Call::new("lseek", &[], "how much of a file is left"),
    Call::new("getdents64", &[], "what is stored locally"),
    Call::new("mkdir", &[], "the local store"),
    Call::new("rename", &[], "the local store, the spool"),
    Call::new("unlink", &[], "the local store, the spool"),
    Call::new("fsync", &[], "the spool"),
    Call::new("fstatfs", &[], "whether there is room for a copy"),
    Call::new("rmdir", &[], "the local store"),
    // Connections.
    Call::new(
        "socket",
        &[Only::OneOf(0, &FAMILIES), Only::OneOf(2, &PROTOCOLS)],
        "the collector, the page, the store",
    ),
    Call::new("socketpair", &[Only::OneOf(0, &FAMILIES)], "a signal came, said within the process"),
    Call::new("connect", &[], "the collector"),
    Call::new("bind", &[], "the page"),
    Call::new("listen", &[], "the page"),
    Call::new("accept4", &[], "the page"),
    Call::new("getsockname", &[], "the page's address"),
    Call::new("getpeername", &[], "the store's address"),
    Call::new("getsockopt", &[], "whether a connection is made"),
    Call::new("setsockopt", &[], "the page"),
    Call::new("shutdown", &[], "a connection ends"),
    Call::new("recvmsg", &[], "what the collector says, with files"),
    Call::new("sendmsg", &[Only::Without(2, FAST_OPEN)], "what the collector is asked"),
    Call::new("recvfrom", &[], "connections"),
    Call::new("sendto", &[Only::Without(3, FAST_OPEN)], "connections"),
    Call::new("fcntl", &[Only::OneOf(1, &FCNTL)], "files"),
    Call::new("ioctl", &[Only::Fails(libc::ENOTTY)], "whether the log is a terminal"),
    Call::new("uname", &[], "the machine's name"),
    Call::new("geteuid", &[], "who it is, said to the system bus"),
    // The event loop and its threads.
    Call::new("epoll_create1", &[], "the loop"),
    Call::new("epoll_ctl", &[], "the loop"),
    Call::new("epoll_wait", &[], "the loop"),
    Call::new("epoll_pwait", &[], "the loop"),
    Call::new("eventfd2", &[], "waking the loop"),
    Call::new("poll", &[], "one connection"),
    Call::new("futex", &[], "locks"),
    Call::new("sched_yield", &[], "locks"),
    Call::new("clock_nanosleep", &[], "waiting"),
    Call::new("clock_gettime", &[], "where the vdso cannot tell"),
    Call::new("restart_syscall", &[], "the kernel's own, after a stop"),
    // Its flags lie where no filter sees them; the C library then uses clone.
    Call::new("clone3", &[Only::Fails(libc::ENOSYS)], "threads"),
    Call::new("clone", &[Only::With(0, libc::CLONE_THREAD.cast_unsigned())], "threads, no processes"),
    Call::new("set_robust_list", &[], "threads"),
    Call::new("rseq", &[], "threads"),
    Call::new("sched_getaffinity", &[], "how many CPUs there are, a thread's stack"),
    Call::new("prctl", &[Only::OneOf(0, &PRCTL)], "names of threads"),
    Call::new("gettid", &[], "threads"),
    Call::new("getpid", &[], "abort"),
    Call::new("tgkill", &[Only::Own(0)], "abort"),
    Call::new("exit", &[], "the end of a thread"),
    Call::new("exit_group", &[], "the end"),
    Call::new("sigaltstack", &[], "threads"),
    Call::new("rt_sigaction", &[], "SIGTERM and SIGINT"),
    Call::new("rt_sigprocmask", &[], "threads"),
    Call::new("rt_sigreturn", &[], "the end of a signal handler"),
    Call::new("prlimit64", &[], "how many files may be open, a thread's stack"),
    // Memory. With a file it would be the end when that file is cut short.
    Call::new("mmap", &[Only::NOT_EXECUTABLE, Only::ANONYMOUS], "the allocator, threads"),
    Call::new("mprotect", &[Only::NOT_EXECUTABLE], "the allocator, threads"),
    Call::new("mremap", &[], "the allocator"),
    Call::new("munmap", &[], "the allocator, threads"),
    Call::new("madvise", &[], "memory given back"),
    Call::new("brk", &[], "the allocator"),
    Call::new("getrandom", &[], "seeds of hash maps"),
];
