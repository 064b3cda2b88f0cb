//! Programs that replaced their own text by anonymous memory, for huge pages: names and whole stacks as before.

use tests::{
    process::Running,
    system::{Options, System},
};
use workloads::{CallTree, Program, Remapped, Start, plugin, program, remapped};

use crate::{Case, truth::assert_truth, unwinding::assert_rooted};

pub(crate) const CASES: &[Case] = &[
    ("text_replaced_at_once", |system| check(system, "text-at-once", Remapped::AtOnce)),
    ("text_replaced_in_pieces", |system| check(system, "text-in-pieces", Remapped::InPieces)),
    ("text_replaced_by_memory_that_is_moved", |system| check(system, "text-moved", Remapped::Moved)),
    ("text_replaced_before_the_collector_starts", text_replaced_before_the_collector_starts),
    ("code_in_the_place_of_a_library_is_not_the_library_s", code_in_the_place_of_a_library),
];

fn check(system: &System, name: &str, how: Remapped) {
    let tree = CallTree::standard(name, Start::Libc);
    let _running = Running::start(&remapped(&tree, how).unwrap(), &[""; 0]);
    assert_whole(system, &tree);
}

fn assert_whole(system: &System, tree: &CallTree) {
    let profile = system.collect_settled(&tree.name, 400);
    assert_rooted(&profile, &["_start"]);
    assert_truth(&profile, &tree.expected(), 0.005);
}

fn text_replaced_before_the_collector_starts(_: &System) {
    let trees = [
        ("text-early", Remapped::AtOnce),
        ("text-early-bits", Remapped::InPieces),
        ("text-early-move", Remapped::Moved),
    ]
    .map(|(name, how)| (CallTree::standard(name, Start::Libc), how));
    let mut running =
        trees.each_ref().map(|(tree, how)| Running::start(&remapped(tree, *how).unwrap(), &[""; 0]));
    for running in &mut running {
        running.wait_ready();
    }
    let system = System::start(Options::default());
    for (tree, _) in &trees {
        assert_whole(&system, tree);
    }
}

/// The kernel tells nobody that the library is gone.
fn code_in_the_place_of_a_library(system: &System) {
    let library = plugin("plugin-replaced.so", "replaced").unwrap();
    let mut running = Running::start(&program(Program::InPlace).unwrap(), &[&library]);
    running.wait_ready();
    let profile = system.collect_settled("in-place", 150);
    let right = profile.count(|stack| {
        let frames: Vec<_> = stack.user().collect();
        frames.len() > 2
            && frames[0].name.is_empty()
            && frames[1].name == "call_in_place"
            && frames[2].name == "main"
    });
    assert!(right as f64 > 0.95 * profile.total() as f64, "{right} of {}", profile.dump());
    let wrong = profile.count(|stack| stack.user().any(|frame| frame.mapping.contains("plugin-replaced")));
    assert_eq!(wrong, 0, "the library is gone:\n{}", profile.dump());
}
