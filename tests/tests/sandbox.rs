//! What neither half can do any more after its start: each attempt is made from within the very filter that ships, ends the
//! process, and is named. Without the filter each reaches the kernel: the tests can fail.
#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::process::{Command, Output};

/// What both halves must not be able to do.
const BOTH: &[&str] = &[
    "socket",
    "execve",
    "execveat",
    "ptrace",
    "process_vm_readv",
    "process_vm_writev",
    "bpf",
    "perf_event_open",
    "mount",
    "setuid",
    "setresuid",
    "capset",
    "unshare",
    "setns",
    "chroot",
    "init_module",
    "keyctl",
    "userfaultfd",
    "io_uring_setup",
    "openat2",
    "open_by_handle_at",
    "seccomp",
    "fork",
    "clone",
    "kill",
    "tgkill",
    "prctl",
    "mprotect",
    "mmap",
];
/// What only the collector must not be able to do. What the uploader may write to is said by other means than system calls.
const COLLECTOR: &[&str] = &["openat", "open", "unlink", "rename", "connect", "bind", "close"];

fn attempt(half: &str, what: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_attempt")).args([half, what]).output().unwrap()
}

fn assert_refused(half: &str, attempts: &[&str]) {
    for what in attempts {
        let output = attempt(half, what);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(security::REFUSED), "{half} {what}: {said}");
        assert!(
            output.stdout.is_empty() && said.contains(&format!("the system call {what} (")),
            "{half} {what}: {said}"
        );
    }
}

#[test]
fn the_collector_can_do_nothing_but_its_work() {
    assert_refused("collector", BOTH);
    assert_refused("collector", COLLECTOR);
}

#[test]
fn the_uploader_can_do_nothing_but_its_work() {
    assert_refused("uploader", BOTH);
}

/// Every number that the policy does not have, also as the x32 ABI counts, and every argument that it forbids.
#[test]
fn nothing_but_what_the_policy_says() {
    for half in ["collector", "uploader"] {
        let forbidden = attempt(half, "forbidden").stdout;
        let forbidden = String::from_utf8(forbidden).unwrap();
        assert!(forbidden.lines().count() > 400, "{forbidden}");
        for line in forbidden.lines() {
            let (what, error) = line.split_once(' ').unwrap();
            let output = attempt(half, what);
            let said = String::from_utf8_lossy(&output.stderr);
            if error == "0" {
                assert_eq!(output.status.code(), Some(security::REFUSED), "{half} {what}: {output:?}");
                assert!(
                    output.stdout.is_empty() && said.contains("made the system call"),
                    "{half} {what}: {said}"
                );
            } else {
                let failed =
                    format!("gave -1: {}", std::io::Error::from_raw_os_error(error.parse().unwrap()));
                assert!(
                    String::from_utf8_lossy(&output.stdout).contains(&failed),
                    "{half} {what}: {output:?}"
                );
            }
        }
    }
}

#[test]
fn without_the_filter_each_attempt_reaches_the_kernel() {
    for what in BOTH.iter().chain(COLLECTOR) {
        let output = attempt("none", what);
        assert!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
