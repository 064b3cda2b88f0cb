//! Code made at run time, and the maps that programs leave for it.

use tests::{process::Running, system::System};
use workloads::{Program, program};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("jit_code_is_named_by_its_perf_map", |system| check(system, "good", &[NAME])),
    ("bad_lines_of_a_perf_map_cost_only_themselves", |system| check(system, "broken", &[NAME])),
    ("jit_code_without_a_perf_map_keeps_its_frames", |system| check(system, "none", &[""])),
    ("a_perf_map_that_is_a_link_is_not_followed", |system| check(system, "symlink", &[""])),
    ("a_perf_map_that_is_a_pipe_does_not_block", |system| check(system, "fifo", &[""])),
    ("a_perf_map_that_is_a_device_is_not_opened", |system| check(system, "device", &[""])),
    ("a_perf_map_that_is_a_folder", |system| check(system, "folder", &[""])),
    ("a_perf_map_of_a_tebibyte", |system| check(system, "huge", &[NAME])),
    ("a_perf_map_that_changes_all_the_time", |system| check(system, "changing", &[NAME, ""])),
    ("thousands_of_small_regions_do_no_harm", thousands_of_small_regions_do_no_harm),
];

/// Markup in a name is text like any other.
const NAME: &str = "jit_function<\"with & markup\">";

/// Runs a program with that kind of perf map. Its code is called one of `names`.
fn check(system: &System, kind: &str, names: &[&str]) {
    // A copy, for a command name of its own.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("jit-{kind}"));
    std::fs::copy(program(Program::Jit).unwrap(), &path).unwrap();
    let mut running = Running::start(&path, &[kind]);
    let pid = running.wait_ready();
    let profile = system.collect_settled(&format!("jit-{kind}"), 150);
    drop(running);
    let map = format!("/tmp/perf-{pid}.map");
    let _ = std::fs::remove_file(&map).or_else(|_| std::fs::remove_dir(&map));

    let right = profile.count(|stack| {
        let frames: Vec<_> = stack.user().collect();
        frames.len() > 2
            && names.contains(&frames[0].name.as_str())
            && frames[1].name == "call_jit"
            && frames[2].name == "main"
    });
    assert!(right as f64 > 0.95 * profile.total() as f64, "{right} of {}", profile.dump());
}

fn thousands_of_small_regions_do_no_harm(system: &System) {
    let mut running = Running::start(&program(Program::Storm).unwrap(), &["5000"]);
    running.wait_ready();
    let profile = system.collect_settled("storm", 300);
    let named = profile.count(|stack| stack.has_run(&["storm_leaf", "storm_named", "main"]));
    let region = profile.count(|stack| {
        let frames: Vec<_> = stack.user().collect();
        frames.len() > 2
            && frames[0].name.is_empty()
            && frames[1].name == "storm_region"
            && frames[2].name == "main"
    });
    assert!(named > 0 && region > 0, "named code and regions: {named}, {region}\n{}", profile.dump());
    assert!((named + region) as f64 > 0.97 * profile.total() as f64, "{}", profile.dump());
}
