//! Tries one thing that a half of Bulkhead must not be able to do, from within the very filter that this half ships:
//! `attempt HALF WHAT`. HALF is `collector`, `uploader`, or `none` for no filter at all: then the attempt reaches the kernel.
//! WHAT is a name, or a system call's number and arguments in one word with commas. Prints what came of it, if the process lives
//! that long. `attempt HALF forbidden` prints all that the policy forbids: each call that is not in it, and each that is with
//! arguments that it may not have.
#![expect(unsafe_code, reason = "system calls that no library makes")]

#[allow(dead_code, reason = "the collector's own policy, of which only the calls are used here")]
#[path = "../../../collector/src/policy.rs"]
mod collector_policy;

use std::{ffi::CStr, io, process::exit};

use libc::c_long;
use security::{Call, Only};

/// The system call of this name, and arguments with which it could do no harm.
fn attempt(name: &str) -> Option<(c_long, [c_long; 6])> {
    let text = |text: &'static CStr| text.as_ptr() as c_long;
    let nowhere = text(c"/nowhere/at/all");
    let own_parent = c_long::from(std::os::unix::process::parent_id().cast_signed());
    let (number, arguments): (c_long, &[c_long]) = match name {
        "socket" => (libc::SYS_socket, &[libc::AF_PACKET.into(), libc::SOCK_RAW.into()]),
        "execve" => (libc::SYS_execve, &[nowhere]),
        "execveat" => (libc::SYS_execveat, &[-1, nowhere]),
        "ptrace" => (libc::SYS_ptrace, &[libc::PTRACE_SEIZE.into(), 1]),
        "process_vm_readv" => (libc::SYS_process_vm_readv, &[1]),
        "process_vm_writev" => (libc::SYS_process_vm_writev, &[1]),
        // 5: load a program.
        "bpf" => (libc::SYS_bpf, &[5]),
        "perf_event_open" => (libc::SYS_perf_event_open, &[0, -1, -1]),
        "mount" => (libc::SYS_mount, &[]),
        "setuid" => (libc::SYS_setuid, &[-1]),
        "setresuid" => (libc::SYS_setresuid, &[-1, -1, -1]),
        "capset" => (libc::SYS_capset, &[]),
        "unshare" => (libc::SYS_unshare, &[]),
        "setns" => (libc::SYS_setns, &[-1]),
        "chroot" => (libc::SYS_chroot, &[nowhere]),
        "init_module" => (libc::SYS_init_module, &[]),
        "keyctl" => (libc::SYS_keyctl, &[-1]),
        "userfaultfd" => (libc::SYS_userfaultfd, &[-1]),
        "io_uring_setup" => (libc::SYS_io_uring_setup, &[]),
        "openat2" => (libc::SYS_openat2, &[-1, nowhere]),
        "open_by_handle_at" => (libc::SYS_open_by_handle_at, &[-1]),
        "seccomp" => (libc::SYS_seccomp, &[-1]),
        "fork" => (libc::SYS_fork, &[]),
        "clone" => (libc::SYS_clone, &[]),
        "kill" => (libc::SYS_kill, &[own_parent]),
        "tgkill" => (libc::SYS_tgkill, &[1, 1]),
        "prctl" => (libc::SYS_prctl, &[libc::PR_SET_DUMPABLE.into(), 1]),
        "mprotect" => (libc::SYS_mprotect, &[0, 0, (libc::PROT_READ | libc::PROT_EXEC).into()]),
        // A file: standard input.
        "mmap" => (libc::SYS_mmap, &[0, 4096, libc::PROT_READ.into(), libc::MAP_PRIVATE.into()]),
        "openat" => (libc::SYS_openat, &[libc::AT_FDCWD.into(), nowhere, libc::O_WRONLY.into()]),
        "open" => (libc::SYS_open, &[nowhere, libc::O_CREAT.into()]),
        "unlink" => (libc::SYS_unlink, &[nowhere]),
        "rename" => (libc::SYS_rename, &[nowhere, nowhere]),
        "connect" => (libc::SYS_connect, &[-1]),
        // What keeps up the fence around the collector's reading.
        "close" => (libc::SYS_close, &[collector_policy::FENCE_LINK.into()]),
        "bind" => (libc::SYS_bind, &[-1]),
        _ => return None,
    };
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    Some((number, all))
}

/// Beyond the numbers of all system calls of this kernel and the next ones.
const NUMBERS: std::ops::Range<c_long> = 0..520;
/// `uretprobe` and `uprobe`, which newer kernels let through every filter: made by any but a trampoline of the kernel's own, they fail
/// or end the process (`seccomp_uprobe_exception` in `kernel/seccomp.c`).
const OF_PROBES: [c_long; 2] = [335, 336];
/// Calls of the x32 ABI have this bit (`arch/x86/include/uapi/asm/unistd.h`): what is allowed is not allowed by its number there.
const X32: c_long = 0x4000_0000;

/// Number, arguments, and the error that it fails with, if it does not end the process.
type Forbidden = (c_long, [c_long; 6], Option<i32>);

/// All that a policy forbids.
fn forbidden(policy: &[Call]) -> Vec<Forbidden> {
    let number = |call: &Call| security::system_call_number(call.name).expect("a system call");
    let allowed: Vec<c_long> = policy.iter().map(number).collect();
    let others = NUMBERS.filter(|number| !allowed.contains(number) && !OF_PROBES.contains(number));
    let of_x32 = allowed.iter().map(|number| number | X32);
    let mut all: Vec<Forbidden> = others.chain(of_x32).map(|number| (number, [-1; 6], None)).collect();
    for call in policy {
        let with = |only: &Only, is_right: bool, arguments: &mut [c_long; 6]| {
            let (argument, right, wrong) = match *only {
                Only::Without(argument, bits) => (argument, 0, bits),
                Only::With(argument, bits) => (argument, bits, 0),
                Only::OneOf(argument, values) => (argument, values[0], u32::MAX - 100),
                Only::Not(argument, value) => (argument, value + 1, value),
                // Init.
                Only::Own(argument) => (argument, std::process::id(), 1),
                Only::Fails(_) => return,
            };
            arguments[usize::from(argument)] = c_long::from(if is_right { right } else { wrong });
        };
        for wrong in call.only {
            let mut arguments = [0; 6];
            call.only.iter().for_each(|only| with(only, true, &mut arguments));
            with(wrong, false, &mut arguments);
            let error = if let Only::Fails(error) = wrong { Some(*error) } else { None };
            all.push((number(call), arguments, error));
            // One bit of several is enough.
            if let Only::Without(argument, bits) = *wrong {
                for bit in (0..32).map(|bit| 1u32 << bit).filter(|bit| bits & bit != 0) {
                    arguments[usize::from(argument)] = bit.into();
                    all.push((number(call), arguments, None));
                }
            }
        }
    }
    all
}

/// A number and up to six arguments, with commas between.
fn parse(text: &str) -> Option<(c_long, [c_long; 6])> {
    let mut words = text.split(',').map(|word| word.parse().ok());
    let number = words.next()??;
    let mut arguments = [0; 6];
    for (argument, word) in arguments.iter_mut().zip(words) {
        *argument = word?;
    }
    Some((number, arguments))
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [half, what] = arguments.as_slice() else {
        eprintln!("attempt HALF WHAT");
        exit(2);
    };
    let policy = match half.as_str() {
        "collector" => Some(collector_policy::CALLS),
        "uploader" => Some(uploader::policy::CALLS),
        _ => None,
    };
    if what == "forbidden" {
        for (number, arguments, error) in policy.map(forbidden).unwrap_or_default() {
            let arguments = arguments.map(|argument| argument.to_string()).join(",");
            println!("{number},{arguments} {}", error.unwrap_or(0));
        }
        return;
    }
    let Some((number, with)) = attempt(what).or_else(|| parse(what)) else {
        eprintln!("no attempt {what}");
        exit(2);
    };
    if let Some(policy) = policy {
        let hardened = security::harden().map_err(|error| error.to_string());
        let restricted =
            hardened.and_then(|()| security::allow_only(policy).map_err(|error| error.to_string()));
        if let Err(error) = restricted {
            eprintln!("{error}");
            exit(3);
        }
    }
    // SAFETY: the kernel checks each argument; none leads to memory that it would write to.
    let result = unsafe { libc::syscall(number, with[0], with[1], with[2], with[3], with[4], with[5]) };
    if matches!(what.as_str(), "fork" | "clone") {
        // There are two by now.
        // SAFETY: ends the process.
        unsafe { libc::_exit(0) };
    }
    let error = io::Error::last_os_error();
    println!("{what} gave {result}: {error}");
}
