//! What the proxy may do once it listens: talk through Unix sockets, and wait. It keeps no capability, opens no file, makes no socket of the
//! network, and starts no thread and no program.

use security::{Call, Only};

/// Kinds of sockets (socket(2)).
const FAMILIES: [u32; 1] = [libc::AF_UNIX.cast_unsigned()];
/// Commands of fcntl(2).
const FCNTL: [u32; 3] =
    [libc::F_GETFD.cast_unsigned(), libc::F_GETFL.cast_unsigned(), libc::F_SETFL.cast_unsigned()];

/// Gives up every privilege, for good; what is left is being in the group that may open the runtime's socket.
pub(crate) fn drop_privileges() -> Result<(), Box<dyn std::error::Error>> {
    security::keep_exactly(&[])?;
    security::harden()?;
    Ok(())
}

/// The system calls that are left.
pub(crate) const CALLS: &[Call] = &[
    Call::new("socket", &[Only::OneOf(0, &FAMILIES)], "the runtime"),
    Call::new("connect", &[], "the runtime"),
    Call::new("accept4", &[], "the uploader"),
    Call::new("getsockopt", &[], "whose connection it is, whether one is made"),
    Call::new("recvfrom", &[], "connections"),
    Call::new("sendto", &[], "connections, a signal came, readiness"),
    Call::new("read", &[], "the loop was woken"),
    Call::new("write", &[], "connections, the log"),
    Call::new("writev", &[], "connections"),
    Call::new("fcntl", &[Only::OneOf(1, &FCNTL)], "connections"),
    Call::new("shutdown", &[], "a connection ends"),
    Call::new("close", &[], "a connection ends"),
    Call::new("epoll_ctl", &[], "the loop"),
    Call::new("epoll_wait", &[], "the loop"),
    Call::new("futex", &[], "locks"),
    Call::new("clock_gettime", &[], "where the vdso cannot tell"),
    Call::new("restart_syscall", &[], "the kernel's own, after a stop"),
    Call::new("rt_sigaction", &[], "the end"),
    Call::new("rt_sigprocmask", &[], "abort"),
    Call::new("rt_sigreturn", &[], "the end of a signal handler"),
    Call::new("sigaltstack", &[], "the end"),
    Call::new("gettid", &[], "abort"),
    Call::new("getpid", &[], "abort"),
    Call::new("tgkill", &[Only::Own(0)], "abort"),
    Call::new("exit_group", &[], "the end"),
    Call::new("mmap", &[Only::NOT_EXECUTABLE, Only::ANONYMOUS], "the allocator"),
    Call::new("mprotect", &[Only::NOT_EXECUTABLE], "the allocator"),
    Call::new("mremap", &[], "the allocator"),
    Call::new("munmap", &[], "the allocator"),
    Call::new("madvise", &[], "the allocator"),
    Call::new("brk", &[], "the allocator"),
    Call::new("getrandom", &[], "seeds of hash maps"),
];
