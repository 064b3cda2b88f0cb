//! Code made at run time, and the maps that programs leave for it.

use std::{ffi::OsStr, fs::Permissions, os::unix::fs::PermissionsExt as _, path::Path};

use tests::{process::Running, system::System};
use workloads::{Program, program};

use crate::Case;

pub(crate) const CASES: &[Case] = &[
    ("jit_code_is_named_by_its_perf_map", |system| check(system, "good", &[NAME])),
    ("bad_lines_of_a_perf_map_cost_only_themselves", |system| check(system, "broken", &[NAME])),
    ("jit_code_without_a_perf_map_keeps_its_frames", |system| check(system, "none", &[""])),
    ("a_perf_map_that_is_a_link_is_not_followed", |system| check(system, "symlink", &[""])),
    ("a_perf_map_that_is_mounted_there_is_not_opened", a_perf_map_that_is_mounted_there_is_not_opened),
    ("a_perf_map_on_a_file_system_of_another_process_is_not_opened", a_perf_map_on_fuse_is_not_opened),
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

/// A user without privilege mounts a file that only root may read in the place of the perf map, as in any user namespace: it would name
/// all code there is.
fn a_perf_map_that_is_mounted_there_is_not_opened(system: &System) {
    const SCRIPT: &str = ": >/tmp/perf-$$.map && mount --bind \"$1\" /tmp/perf-$$.map && exec \"$2\" none";
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
    let [secret, path] = ["secret", "jit-mounted"].map(|name| folder.path().join(name));
    std::fs::write(&secret, "0 7fffffffffff secret\n").unwrap();
    std::fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    std::fs::copy(program(Program::Jit).unwrap(), &path).unwrap();
    let user = ["--reuid=65534", "--regid=65534", "--clear-groups", "unshare", "--map-root-user", "--mount"];
    let mut line: Vec<&OsStr> = user.iter().map(OsStr::new).collect();
    line.extend(["sh", "-c", SCRIPT, "sh"].map(OsStr::new));
    line.extend([secret.as_os_str(), path.as_os_str()]);
    let mut running = Running::start(Path::new("/usr/bin/setpriv"), &line);
    let pid = running.wait_ready();
    let profile = system.collect_settled("jit-mounted", 150);
    drop(running);
    std::fs::remove_file(format!("/tmp/perf-{pid}.map")).unwrap();
    let read = profile.count(|stack| stack.frames.iter().any(|frame| frame.name == "secret"));
    let run = profile.count(|stack| stack.user().nth(1).is_some_and(|frame| frame.name == "call_jit"));
    assert!(run > 0 && read == 0, "{read} of {run} are named by it: {}", profile.dump());
}

/// The process's `/tmp` is on FUSE, and whose process answers there stops: whoever looked for the perf map would wait for good.
fn a_perf_map_on_fuse_is_not_opened(system: &System) {
    const SCRIPT: &str = "set -e; place=$(mktemp -d); mount -t tmpfs tmpfs \"$place\"; cd \"$place\"; mkdir real; : >real/there
        cp \"$1\" jit-on-fuse; bindfs -f -o allow_other,nonempty real /tmp & server=$!
        until [ -e /tmp/there ]; do sleep 0.05; done
        ./jit-on-fuse good >said & until [ -s said ]; do sleep 0.05; done
        set real/perf-*.map; [ -s \"$1\" ]; kill -STOP $server; echo ready $server; wait";
    let flags = ["-m", "-p", "-f", "--mount-proc", "--kill-child"];
    let mut running = Running::unshared_shell(&flags, SCRIPT, &[program(Program::Jit).unwrap()]);
    running.wait_ready();
    let profile = system.collect_settled("jit-on-fuse", 150);
    let run = |name: &str| {
        profile
            .count(|stack| stack.has_run(&["call_jit", "main"]) && stack.user().next().unwrap().name == name)
    };
    assert!(run("") > 0 && run(NAME) == 0, "its perf map was opened: {}", profile.dump());
    // Nobody waits there: the code of others is named.
    check(system, "good", &[NAME]);
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
