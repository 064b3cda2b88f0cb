//! Programs whose call tree and shares are known.

use tests::{
    pprof::{Profile, Stack},
    process::Running,
    statistics::compare,
    system::System,
};
use workloads::{CallTree, Known, Program, Start, known_cpp, known_go, known_rust, program};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("known_shares_from_the_leaf_to_main", known_shares_from_the_leaf_to_main),
    ("known_shares_from_the_leaf_to_the_root", known_shares_from_the_leaf_to_the_root),
    ("deep_stacks_are_whole", deep_stacks_are_whole),
    ("cpp_has_known_shares", |system| check_known(system, known_cpp().unwrap(), 0.01)),
    ("go_has_known_shares", go_has_known_shares),
    ("rust_has_known_shares", |system| check_known(system, known_rust().unwrap(), 0.01)),
    ("inlined_functions_are_frames", inlined_functions_are_frames),
];

/// The names of the user frames. A sample in an interrupt or in a system call has kernel frames as well.
pub(crate) fn user_names(stack: &Stack) -> Vec<&str> {
    stack.user().map(|frame| frame.name.as_str()).collect()
}

/// Asserts that the stacks begin with the expected names (leaf first), in the expected shares, and that no more than
/// `others` of the samples are anywhere else in the program.
pub(crate) fn assert_truth(profile: &Profile, expected: &[(Vec<String>, f64)], others: f64) {
    // What is inlined into the leaf stands before it.
    let is_in = |stack: &Stack, names: &[String]| {
        let frames = user_names(stack);
        (0..=4).any(|inlined| frames.get(inlined..).is_some_and(|frames| frames.starts_with(&refs(names))))
    };
    let count_of = |names: &[String]| profile.count(|stack| is_in(stack, names));
    let counts: Vec<i64> = expected.iter().map(|(names, _)| count_of(names)).collect();
    let shares: Vec<f64> = expected.iter().map(|(_, share)| *share).collect();
    let other = profile.total() - counts.iter().sum::<i64>();
    let strangers: Vec<String> = profile
        .stacks
        .iter()
        .filter(|stack| !expected.iter().any(|(names, _)| is_in(stack, names)))
        .take(20)
        .map(Stack::line)
        .collect();
    assert!(
        other as f64 <= others * profile.total() as f64 + 2.0,
        "{other} samples are in no expected stack of {expected:?}:\n{}\nof {}",
        strangers.join("\n"),
        profile.dump()
    );
    let comparison = compare(&counts, &shares);
    println!("{} samples, {counts:?}: {comparison:?}", profile.total());
    assert!(comparison.agrees(), "{comparison:?}: counts {counts:?}, shares {shares:?}\n{}", profile.dump());
}

fn refs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

fn known_shares_from_the_leaf_to_main(system: &System) {
    let tree = CallTree::standard("truth-libc", Start::Libc);
    let path = tree.build().unwrap();
    let _load = Running::start(&CallTree::standard("truth-load", Start::Bare).build().unwrap(), &[""; 0]);
    let _running = Running::start(&path, &[""; 0]);
    let profile = system.collect_settled("truth-libc", 2000);
    assert_truth(&profile, &tree.expected(), 0.01);
    for stack in &profile.stacks {
        let own = stack.user().next().expect("a leaf");
        assert_eq!(own.mapping, path.canonicalize().unwrap().to_string_lossy(), "{}", stack.line());
        assert!(!own.build_id.is_empty(), "{}", stack.line());
    }
    // Whatever the leaf, main is called by the C library's start code.
    let called_by_libc = |stack: &Stack| {
        let main = user_names(stack).iter().rposition(|name| *name == "main");
        main.and_then(|main| stack.user().nth(main + 1)).is_some_and(|caller| caller.mapping.contains("libc"))
    };
    assert_nearly_all(&profile, called_by_libc);
}

/// Asserts what holds for all samples but those at the first instructions of a function, which has no frame of its own
/// yet: frame pointers leave its caller out there.
fn assert_nearly_all(profile: &Profile, holds: impl Fn(&Stack) -> bool) {
    let count = profile.count(holds);
    let least = 0.99 * profile.total() as f64;
    assert!(count as f64 >= least, "{count} of {}:\n{}", profile.total(), profile.dump());
}

fn known_shares_from_the_leaf_to_the_root(system: &System) {
    let tree = CallTree::standard("truth-bare", Start::Bare);
    let _running = Running::start(&tree.build().unwrap(), &[""; 0]);
    let profile = system.collect_settled("truth-bare", 1000);
    assert_truth(&profile, &tree.expected(), 0.01);
    // Every one, without exception, ends at the root.
    let rooted = profile.count(|stack| user_names(stack).last() == Some(&"_start"));
    assert_eq!(rooted, profile.total(), "every stack ends at the root:\n{}", profile.dump());
    assert_nearly_all(&profile, |stack| user_names(stack).ends_with(&["main", "_start"]));
}

fn deep_stacks_are_whole(system: &System) {
    let trees = [8, 32, 77, 127, 400].map(|recursion| CallTree {
        recursion,
        ..CallTree::standard(&format!("deep-{recursion}"), Start::Bare)
    });
    for tree in &trees {
        let _running = Running::start(&tree.build().unwrap(), &[""; 0]);
        let profile = system.collect_settled(&tree.name, 200);
        assert_truth(&profile, &tree.expected(), 0.05);
        let rooted = profile.count(|stack| user_names(stack).last() == Some(&"_start"));
        assert_eq!(rooted, profile.total(), "every stack ends at the root:\n{}", profile.dump());
        assert_nearly_all(&profile, |stack| user_names(stack).ends_with(&["main", "_start"]));
        // The way down and back up, and main itself where it shuffles, are the only other places.
        let depth = |stack: &Stack| user_names(stack).iter().filter(|name| **name == "descend").count();
        let whole = profile.count(|stack| depth(stack) == tree.recursion as usize);
        assert!(
            whole as f64 >= 0.97 * profile.total() as f64,
            "{whole} of {}:\n{}",
            profile.total(),
            profile.dump()
        );
    }
}

fn check_known(system: &System, (path, expected): Known, others: f64) {
    let _running = Running::start(&path, &[""; 0]);
    let comm = path.file_name().unwrap().to_string_lossy().into_owned();
    let profile = system.collect_settled(&comm, 500);
    assert_truth(&profile, &expected, others);
}

/// How much the runtime does for itself depends on the machine: it preempts the goroutine by a signal each 10 ms, and then
/// schedules and wakes. So only stacks with functions of the program count, and of these from there on.
fn go_has_known_shares(system: &System) {
    let (path, expected) = known_go().unwrap();
    let _running = Running::start(&path, &[""; 0]);
    let comm = path.file_name().unwrap().to_string_lossy().into_owned();
    let mut profile = system.collect_settled(&comm, 500);
    let all = profile.total();
    let first = |stack: &Stack| stack.frames.iter().position(|frame| frame.name.starts_with("main."));
    profile.stacks.retain_mut(|stack| {
        let first = first(stack);
        stack.frames.drain(..first.unwrap_or_default());
        first.is_some()
    });
    assert!(profile.total() as f64 > 0.5 * all as f64, "{} of {all}:\n{}", profile.total(), profile.dump());
    // The shuffle takes a little.
    assert_truth(&profile, &expected, 0.02);
}

fn inlined_functions_are_frames(system: &System) {
    let _running = Running::start(&program(Program::Inlined).unwrap(), &[""; 0]);
    let profile = system.collect_settled("inlined", 100);
    let whole = ["innermost", "middle", "outer", "main"];
    let inlined = profile.count(|stack| user_names(stack).starts_with(&whole));
    // What is met in a later window than the first may have to do without DWARF, which has a share of the time.
    let with_lines = profile.count(|stack| stack.user().next().is_some_and(|frame| frame.line > 0));
    assert!(with_lines as f64 >= 0.5 * profile.total() as f64, "{}", profile.dump());
    assert!(inlined as f64 >= 0.99 * with_lines as f64, "{inlined} of {with_lines}: {}", profile.dump());
    for stack in profile.stacks.iter().filter(|stack| stack.has_run(&whole)) {
        for frame in stack.user().take(whole.len()) {
            assert!(frame.line > 0 && frame.file.ends_with("inlined.c"), "{frame:?}");
        }
        // One machine address, three functions.
        let addresses: Vec<_> = stack.user().take(3).map(|frame| frame.address).collect();
        assert!(addresses.windows(2).all(|pair| pair[0] == pair[1]), "{addresses:x?}");
    }
}
