//! Go programs: the caller of each function without a frame, stripped or not, and stacks that change on the way.

use tests::{
    pprof::{Profile, Stack},
    process::Running,
    system::System,
};
use workloads::{Language, go_and_c, go_leaves};

use crate::{Case, truth::user_names};

pub(crate) const CASES: &[Case] =
    &[("go_leaves_without_frames", go_leaves_without_frames), ("go_calls_c_calls_go", go_calls_c_calls_go)];

/// Where Go's stacks end: a goroutine's start, a thread's, what goes on on the scheduler's stack for good, and the C
/// library's start of a thread.
const ROOTS: &[&str] = &[
    "runtime.goexit",
    "runtime.mstart",
    "runtime.mcall",
    "runtime.morestack",
    "runtime.rt0_go",
    "runtime.switchToCrashStack0",
];

fn name(stem: &str, release: Language) -> String {
    format!("{stem}-{release:?}").to_lowercase()
}

/// The names of the Go functions, without the suffix that the linker gives to assembly.
fn names(stack: &Stack) -> Vec<&str> {
    user_names(stack).into_iter().map(|name| name.strip_suffix(".abi0").unwrap_or(name)).collect()
}

fn is_rooted(stack: &Stack) -> bool {
    let last = stack.user().last();
    // Threads that C starts for Go end in the C library.
    last.is_none_or(|frame| frame.mapping.contains("libc"))
        || names(stack).last().is_some_and(|name| ROOTS.contains(name))
}

fn others(profile: &Profile, holds: impl Fn(&Stack) -> bool) -> (i64, String) {
    let wrong: Vec<&Stack> = profile.stacks.iter().filter(|stack| !holds(stack)).collect();
    let lines: Vec<String> = wrong.iter().take(20).map(|stack| stack.line()).collect();
    (profile.count(|stack| !holds(stack)), lines.join("\n"))
}

fn go_leaves_without_frames(system: &System) {
    for release in Language::releases_of_go() {
        for (stem, flags) in
            [("leaves", &[][..]), ("leaves-s", &["-ldflags=-s -w"]), ("leaves-p", &["-buildmode=pie"])]
        {
            let name = name(stem, release);
            let path = go_leaves(release, &name, flags).unwrap();
            let _running = Running::start(&path, &[""; 0]);
            let profile = system.collect_settled(&name, 200);
            let leaves = profile.count(|stack| names(stack).first() == Some(&"main.leaf"));
            assert!(leaves as f64 > 0.3 * profile.total() as f64, "{}", profile.dump());
            for stack in profile.stacks.iter().filter(|stack| names(stack).contains(&"main.leaf")) {
                let names = names(stack);
                let at = names.iter().position(|name| *name == "main.leaf").unwrap();
                let callers = &names[at + 1..];
                assert!(
                    [["main.even", "main.main", "runtime.main"], ["main.odd", "main.main", "runtime.main"]]
                        .iter()
                        .any(|known| callers.starts_with(known)),
                    "{}",
                    stack.line()
                );
            }
            // Before Go 1.21 what runs on the scheduler's stack is led back from by frame pointers alone, which leave out
            // one caller, and from the vdso as well.
            let (count, lines) = others(&profile, is_rooted);
            let most = if release == Language::Go119 { 0.1 } else { 0.005 };
            assert!(
                count as f64 <= most * profile.total() as f64,
                "{release:?}: {count} of {}:\n{lines}",
                profile.total()
            );
            if release != Language::Go119 {
                let (count, lines) = others(&profile, |stack| {
                    let names = names(stack);
                    // And by the runtime, for the times of its collections.
                    let asks = |name: &&str| *name == "main.clock" || name.starts_with("runtime.gc");
                    !names.contains(&"time.now") || names.iter().any(asks)
                });
                assert_eq!(
                    count, 0,
                    "{release:?}: the clock is asked by main.clock and collections:\n{lines}"
                );
            }
        }
    }
}

fn go_calls_c_calls_go(system: &System) {
    for release in Language::releases_of_go() {
        let name = name("mixed", release);
        let _running = Running::start(&go_and_c(release, &name).unwrap(), &[""; 0]);
        let profile = system.collect_settled(&name, 200);
        let in_go = profile.count(|stack| names(stack).contains(&"main.spin_in_go"));
        assert!(in_go as f64 > 0.2 * profile.total() as f64, "{}", profile.dump());
        for stack in profile.stacks.iter().filter(|stack| names(stack).contains(&"main.spin_in_go")) {
            let names = names(stack);
            let at = |wanted: &str| names.iter().position(|name| *name == wanted);
            let order = [
                at("main.spin_in_go"),
                at("runtime.cgocallback"),
                at("crosscall2"),
                at("runtime.asmcgocall"),
                at("main.call_c"),
                at("main.main"),
            ];
            // Before Go 1.21 the call of C has no frame that leads back.
            let order = if release == Language::Go119 { &order[..3] } else { &order[..] };
            assert!(order.is_sorted() && order.iter().all(Option::is_some), "{release:?}: {}", stack.line());
        }
        if release != Language::Go119 {
            let (count, lines) = others(&profile, is_rooted);
            assert!(
                count as f64 <= 0.005 * profile.total() as f64,
                "{count} of {}:\n{lines}",
                profile.total()
            );
        }
    }
}
