//! Time in the kernel.

use std::{collections::HashSet, fs};

use tests::{process::Running, system::System};
use workloads::{Program, program};

use crate::Case;

pub(crate) const CASES: &[Case] =
    &[("kernel_frames_have_right_names_above_user_frames", kernel_frames_have_right_names_above_user_frames)];

/// The function that enters the kernel for a system call, and the functions of the program that do so, each with one
/// of the kernel's own functions on its way.
const CALLERS: [(&str, &[&str]); 3] = [
    ("ask_parent", &["__x64_sys_getppid", "__do_sys_getppid"]),
    ("read_zeroes", &["ksys_read", "vfs_read"]),
    ("read_file", &["ksys_pread64", "vfs_read", "__x64_sys_pread64"]),
];

fn kernel_frames_have_right_names_above_user_frames(system: &System) {
    let _running = Running::start(&program(Program::Syscalls).unwrap(), &[""; 0]);
    let profile = system.collect_settled("syscalls", 1000);
    let symbols: HashSet<String> = fs::read_to_string("/proc/kallsyms")
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2).map(str::to_owned))
        .collect();

    let mut in_kernel = 0;
    for stack in profile.stacks.iter().filter(|stack| stack.frames[0].is_kernel()) {
        in_kernel += stack.count;
        let kernel = stack.frames.iter().take_while(|frame| frame.is_kernel()).count();
        for frame in &stack.frames[..kernel] {
            assert!(
                symbols.contains(&frame.name),
                "no kernel symbol is called {}: {}",
                frame.name,
                stack.line()
            );
            assert_eq!(frame.mapping, "[kernel.kallsyms]", "{}", stack.line());
        }
        assert!(stack.frames[kernel..].iter().all(|frame| !frame.is_kernel()), "{}", stack.line());
        assert!(stack.frames[kernel..].iter().any(|frame| frame.name == "main"), "{}", stack.line());
    }
    assert!(in_kernel as f64 > 0.8 * profile.total() as f64, "it lives in the kernel:\n{}", profile.dump());

    for (function, on_the_way) in CALLERS {
        let from = |stack: &tests::pprof::Stack| {
            stack.frames[0].is_kernel() && stack.user().take(2).any(|frame| frame.name == function)
        };
        let all = profile.count(from);
        // How much of its time the shortest of all system calls takes differs between machines: a hundredth, on some.
        let least = if function == "ask_parent" { 2 } else { 10 };
        assert!(all > least, "{function} was seen {all} times:\n{}", profile.dump());
        let right = profile.count(|stack| {
            from(stack) && on_the_way.iter().any(|name| stack.frames.iter().any(|frame| frame.name == *name))
        });
        // The first and last instructions of the kernel's entry are on no further function's way.
        assert!(
            right > 0 && (function == "ask_parent" || right as f64 > 0.9 * all as f64),
            "{function}: {right} of {all}\n{}",
            profile.dump()
        );
    }
}
