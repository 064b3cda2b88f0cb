//! Programs without frame pointers: every stack is whole, and no frame is wrong.

use std::path::Path;

use tests::{
    pprof::{Profile, Stack},
    process::Running,
    system::System,
};
use workloads::{
    CallTree, Frameless, Start, WITHOUT_FRAME_POINTERS, exceptions, frameless, rust_release, with_lld,
};

use crate::{
    Case,
    truth::{assert_truth, user_names},
};

pub(crate) const CASES: &[Case] = &[
    ("without_frame_pointers_o2", |system| {
        check_tree(system, "frameless-o2", &[]);
        assert_eq!(system.target("frameless-o2")["by_frame_pointers"], 0.0);
    }),
    ("without_frame_pointers_o3", |system| check_tree(system, "frameless-o3", &["-O3"])),
    ("without_frame_pointers_cet", |system| {
        check_tree(system, "frameless-cet", &["-fcf-protection=full"]);
    }),
    ("without_frame_pointers_static_pie", |system| {
        check_tree(system, "frameless-pie", &["-static-pie"]);
    }),
    ("without_frame_pointers_musl", |system| {
        check_tree(system, "frameless-musl", &["-static", MUSL]);
        assert_eq!(system.target("frameless-musl")["by_frame_pointers"], 1.0, "musl's start has no rows");
    }),
    ("signal_handlers_lead_to_what_they_interrupted", |system| {
        signal_handlers_lead_to_what_they_interrupted(system, "signals", &[], &["_start"]);
    }),
    ("signal_handlers_of_musl_do_too", |system| {
        signal_handlers_lead_to_what_they_interrupted(system, "signals-musl", &["-static", MUSL], STARTS);
    }),
    ("a_signal_at_the_first_instruction_of_a_function", |system| {
        // The red zone is not to be called into.
        let flags = &["-mno-red-zone"];
        check(system, "trap", Frameless::Trap, flags, &["spin", "on_trap", "trap", "run", "main"]);
    }),
    ("recursion_without_frame_pointers", recursion_without_frame_pointers),
    ("large_frames", |system| {
        check(
            system,
            "large-frames",
            Frameless::LargeFrames,
            &[],
            &["spin", "inner", "outer", "run", "main"],
        );
    }),
    ("realigned_stacks", |system| {
        check(system, "realigned", Frameless::Aligned, &[], &["spin", "aligned", "run", "main"]);
    }),
    ("old_stack_pointers_in_registers", |system| {
        // The red zone is not to be called into.
        let flags = &["-mno-red-zone"];
        let chain = &["in_rbx", "in_r11", "in_rax", "run", "main"];
        check(system, "registers", Frameless::Registers, flags, chain);
    }),
    ("the_vdso", |system| check(system, "vdso", Frameless::Vdso, &[], &["ask_time", "run", "main"])),
    ("lazy_stubs", |system| {
        check(system, "lazy-stubs", Frameless::Stubs, &["-Wl,-z,lazy"], &["call_tiny", "run", "main"]);
    }),
    ("cet_stubs", |system| {
        let flags = &["-fcf-protection=full", "-Wl,-z,now,-z,ibtplt"];
        check(system, "cet-stubs", Frameless::Stubs, flags, &["call_tiny", "run", "main"]);
    }),
    ("lld_stubs", |system| {
        let [lld, folder] = with_lld().unwrap();
        let flags = &["-Wl,-z,lazy", &lld, &folder];
        check(system, "lld-stubs", Frameless::Stubs, flags, &["call_tiny", "run", "main"]);
    }),
    ("a_call_is_the_last_instruction", |system| {
        let chain = &["spin", "forever", "last_call", "run", "main"];
        check(system, "last-call", Frameless::LastCall, &[], chain);
    }),
    ("threads_end_at_their_start", threads_end_at_their_start),
    ("cpp_exceptions", cpp_exceptions),
    ("rust_without_frame_pointers", rust_without_frame_pointers),
];

const MUSL: &str = "-specs=/usr/lib/x86_64-linux-musl/musl-gcc.specs";
/// Where a program starts. musl's own code has no unwind information: its start is left by frame pointers, and one or two of
/// its frames are missed there.
const STARTS: &[&str] = &["_start", "libc_start_main_stage2", "_start_c"];

/// Asserts that every sample with user frames ends at the program's very start.
pub(crate) fn assert_rooted(profile: &Profile, roots: &[&str]) {
    let user = profile.count(|stack| !user_names(stack).is_empty());
    let rooted = profile.count(|stack| user_names(stack).last().is_some_and(|name| roots.contains(name)));
    assert_eq!(rooted, user, "every stack ends at {roots:?}:\n{}", profile.dump());
}

/// Asserts that the frames of the program itself are, in every stack, a tail of the chain: none is missing between two,
/// and none is there that was not called.
fn assert_chain(profile: &Profile, program: &Path, chain: &[&str]) {
    let program = program.canonicalize().unwrap();
    let whole: Vec<&str> = chain.iter().copied().chain(["_start"]).collect();
    let own = |stack: &Stack| -> Vec<String> {
        let frames = stack.user().filter(|frame| Path::new(&frame.mapping) == program);
        // A stub of the linkage table stands for the function that it jumps to.
        frames
            .map(|frame| frame.name.clone())
            .filter(|name| !name.contains("@plt") && !name.contains("+0x"))
            .collect()
    };
    for stack in profile.stacks.iter().filter(|stack| stack.user().next().is_some()) {
        let names = own(stack);
        assert!(whole.ends_with(&names.iter().map(String::as_str).collect::<Vec<_>>()), "{}", stack.line());
    }
    let in_chain = profile.count(|stack| own(stack).len() == whole.len());
    assert!(in_chain as f64 > 0.9 * profile.total() as f64, "it is mostly in {chain:?}:\n{}", profile.dump());
}

fn check_tree(system: &System, name: &str, flags: &[&str]) {
    let flags = [WITHOUT_FRAME_POINTERS, flags].concat();
    let tree = CallTree::standard(name, Start::Libc);
    let _running = Running::start(&tree.build_with(&flags).unwrap(), &[""; 0]);
    let profile = system.collect_settled(name, 400);
    assert_rooted(&profile, STARTS);
    assert_truth(&profile, &tree.expected(), 0.005);
}

fn check(system: &System, name: &str, what: Frameless, flags: &[&str], chain: &[&str]) {
    let path = frameless(name, what, flags).unwrap();
    let _running = Running::start(&path, &[""; 0]);
    let profile = system.collect_settled(name, 200);
    assert_rooted(&profile, &["_start"]);
    assert_chain(&profile, &path, chain);
}

fn signal_handlers_lead_to_what_they_interrupted(
    system: &System,
    name: &str,
    flags: &[&str],
    starts: &[&str],
) {
    let path = frameless(name, Frameless::Signals, flags).unwrap();
    let _running = Running::start(&path, &[""; 0]);
    let profile = system.collect_settled(name, 200);
    assert_rooted(&profile, starts);
    let in_handler = |stack: &Stack| user_names(stack).contains(&"on_signal");
    let handled = profile.count(in_handler);
    assert!(handled as f64 > 0.3 * profile.total() as f64, "it handles signals:\n{}", profile.dump());
    for stack in profile.stacks.iter().filter(|stack| in_handler(stack)) {
        let names = user_names(stack);
        let at = |name: &str| names.iter().position(|other| *other == name);
        assert!(at("on_signal") < at("interrupted"), "{}", stack.line());
        assert!(at("interrupted") < at("run") && at("run") < at("main"), "{}", stack.line());
    }
}

fn recursion_without_frame_pointers(system: &System) {
    for depth in [40, 100, 400] {
        let name = format!("recursion-{depth}");
        let path = frameless(&name, Frameless::Recursion(depth), &[]).unwrap();
        let _running = Running::start(&path, &[""; 0]);
        let profile = system.collect_settled(&name, 100);
        assert_rooted(&profile, &["_start"]);
        // In the work the stack is of one depth, exactly; on the way down and back up of any below it. How long the way takes
        // against the work is the machine's affair.
        let mut at_work = 0;
        for stack in &profile.stacks {
            let names = user_names(stack);
            let descended = names.iter().filter(|name| **name == "descend").count();
            if names.first() == Some(&"spin") {
                at_work += stack.count;
                assert_eq!(descended, depth as usize, "{}", stack.line());
            } else {
                assert!(descended <= depth as usize, "{}", stack.line());
            }
        }
        assert!(
            at_work as f64 > 0.5 * profile.total() as f64,
            "{at_work} of {}:\n{}",
            profile.total(),
            profile.dump()
        );
    }
}

fn threads_end_at_their_start(system: &System) {
    let path = frameless("threads", Frameless::Threads, &[]).unwrap();
    let _running = Running::start(&path, &[""; 0]);
    let profile = system.collect_settled("threads", 200);
    for stack in profile.stacks.iter().filter(|stack| user_names(stack).contains(&"in_thread")) {
        // start_thread and clone3 of the C library, and nothing beyond.
        let names = user_names(stack);
        let at = names.iter().position(|name| *name == "in_thread").unwrap();
        let beyond: Vec<_> = stack.user().skip(at + 1).collect();
        assert!(
            beyond.len() == 2 && beyond.iter().all(|frame| frame.mapping.contains("libc")),
            "{}",
            stack.line()
        );
    }
    let in_thread = profile.count(|stack| user_names(stack).contains(&"in_thread"));
    assert!(in_thread as f64 > 0.95 * profile.total() as f64, "{}", profile.dump());
}

fn cpp_exceptions(system: &System) {
    let _running = Running::start(&exceptions().unwrap(), &[""; 0]);
    let profile = system.collect_settled("exceptions", 200);
    // The last instructions of the unwinder of exceptions itself have a stack pointer that no row can say: it has just been
    // replaced.
    let rooted = profile.count(|stack| user_names(stack).last() == Some(&"_start"));
    assert!(
        rooted as f64 >= 0.99 * profile.total() as f64,
        "{rooted} of {}:\n{}",
        profile.total(),
        profile.dump()
    );
    let whole = profile.count(|stack| {
        let names = user_names(stack);
        names.contains(&"attempt(int)") && names.contains(&"main")
    });
    assert!(whole as f64 > 0.95 * profile.total() as f64, "{}", profile.dump());
}

fn rust_without_frame_pointers(system: &System) {
    let _running = Running::start(&rust_release().unwrap(), &[""; 0]);
    let profile = system.collect_settled("rust-release", 200);
    assert_rooted(&profile, &["_start"]);
    let dispatched = profile.count(|stack| user_names(stack).iter().any(|name| name.contains("dispatch")));
    assert!(dispatched as f64 > 0.98 * profile.total() as f64, "{}", profile.dump());
}
