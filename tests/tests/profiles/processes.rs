//! Processes that come, go, and turn into others.

use std::{fs, path::Path};

use rustix::process::Signal;
use tests::{
    cgroup::{Cgroup, hierarchy},
    pprof::{Profile, Stack},
    process::Running,
    system::System,
};
use workloads::{CallTree, Program, Start, plugin, program, stage};

use crate::{Case, churn::collect_all};

pub(crate) const CASES: &[Case] = &[
    ("processes_of_20_ms_are_profiled_like_any_other", processes_of_20_ms_are_profiled_like_any_other),
    ("a_fork_without_an_exec", a_fork_without_an_exec),
    ("vfork_in_a_loop", vfork_in_a_loop),
    ("an_exec_makes_another_program", an_exec_makes_another_program),
    ("an_exec_from_a_shell_takes_the_new_name", an_exec_from_a_shell_takes_the_new_name),
    ("libraries_come_and_go", libraries_come_and_go),
    ("a_process_whose_first_thread_ended", a_process_whose_first_thread_ended),
    ("a_reused_pid_is_another_process", a_reused_pid_is_another_process),
    ("odd_names_are_text", odd_names_are_text),
    ("a_container_like_cgroup_v2", |system| container(system, "cgroup2", "ctr-v2", '1')),
    ("a_container_like_cgroup_v1", |system| container(system, "cpu", "ctr-v1", '2')),
    ("a_container_like_cgroup_of_systemd_s_hierarchy", |system| {
        container(system, "name=systemd", "ctr-sd", '3');
    }),
    ("a_unit_s_cgroup", a_unit_s_cgroup),
    ("a_process_in_a_pid_namespace", a_process_in_a_pid_namespace),
];

/// Asserts that nearly all samples have these names in a row, and that none has any of the others.
fn assert_only(profile: &Profile, run: &[&str], never: &[&str]) {
    let right = profile.count(|stack| stack.has_run(run));
    assert!(right as f64 >= 0.97 * profile.total() as f64, "{run:?} in {right} of {}", profile.dump());
    for name in never {
        let wrong = profile.count(|stack| stack.frames.iter().any(|frame| frame.name == *name));
        assert_eq!(wrong, 0, "{name} has no place here:\n{}", profile.dump());
    }
}

fn processes_of_20_ms_are_profiled_like_any_other(system: &System) {
    const PROCESSES: i64 = 200;
    let path = program(Program::Brief).unwrap();
    let script = format!("i=0; while [ $i -lt {PROCESSES} ]; do \"$1\" || exit 1; i=$((i + 1)); done");
    let mut running = Running::shell(&script, &[&path]);
    let all = collect_all(system, "brief", &mut running);
    // 20 ms of the clock that the program reads, 100 samples a second. How many of them a busy machine takes is compared with
    // perf's elsewhere.
    let expected = PROCESSES as f64 * 0.020 * 100.0;
    let whole = profile_of_brief(&all);
    assert!(
        whole as f64 > 0.25 * expected,
        "{whole} whole stacks in the work of the program, {expected} expected\n{}",
        all.dump()
    );
    // Of what was sampled in the program's own code, nothing is cut or nameless.
    let own = all.count(|stack| stack.user().next().is_some_and(|frame| frame.mapping.ends_with("/brief")));
    let lost =
        all.count(|stack| stack.frames.is_empty() || stack.user().any(|frame| frame.mapping.is_empty()));
    assert!(whole as f64 >= 0.99 * (own + lost) as f64, "{whole} of {own}, {lost} lost\n{}", all.dump());
}

fn profile_of_brief(profile: &Profile) -> i64 {
    profile.count(|stack| stack.has_run(&["brief_leaf", "brief_inner", "brief_outer", "main"]))
}

fn a_fork_without_an_exec(system: &System) {
    let mut running = Running::start(&program(Program::Forks).unwrap(), &[""; 0]);
    running.wait_ready();
    let parent = system.collect_settled("forks", 150);
    assert_only(&parent, &["spend_as_parent", "parent_work", "main"], &["spend_as_child"]);
    let child = system.collect_settled("forks-child", 150);
    assert_only(&child, &["spend_as_child", "child_work", "main"], &["spend_as_parent"]);
}

fn vfork_in_a_loop(system: &System) {
    let mut running = Running::start(&program(Program::Vforks).unwrap(), &[""; 0]);
    running.wait_ready();
    let profile = system.collect_settled("vforks", 200);
    let work = profile.count(|stack| stack.has_run(&["spend_between", "main"]));
    assert!(work > 20, "{}", profile.dump());
    // The C library's wrapper keeps its return address in a register, since the child has the same stack.
    let forking = |stack: &Stack| stack.frames.iter().any(|frame| frame.name == "vfork");
    let in_vfork = profile.count(forking);
    assert!(in_vfork > 5, "{}", profile.dump());
    let whole = profile.count(|stack| {
        let callers = ["vfork_first", "vfork_second", "vfork_third"];
        forking(stack) && callers.iter().any(|caller| stack.has_run(&["vfork", caller, "main"]))
    });
    assert!(whole as f64 >= 0.95 * in_vfork as f64, "{whole} of {in_vfork}:\n{}", profile.dump());
}

fn an_exec_makes_another_program(system: &System) {
    let (first, second) = (stage("exec-one", "one", true).unwrap(), stage("exec-two", "two", true).unwrap());
    let mut running = Running::start(&first, &["8".as_ref(), second.as_os_str()]);
    let pid = running.wait_ready();
    let before = system.collect("{comm=\"exec-one\"}", 100, 60);
    assert_only(&before, &["work_of_stage_one", "main"], &["work_of_stage_two"]);
    // Both have their functions at the same addresses: old mappings would give old names.
    let after = system.collect("{comm=\"exec-two\"}", 100, 60);
    assert_only(&after, &["work_of_stage_two", "main"], &["work_of_stage_one"]);
    assert_eq!(running.pid(), pid);
    assert!(after.mappings.iter().all(|(file, _)| !file.contains("exec-one")), "{:?}", after.mappings);
}

fn an_exec_from_a_shell_takes_the_new_name(system: &System) {
    let path = stage("from-shell", "shell", false).unwrap();
    // The shell works a little before it execs, so that it is sampled too.
    let mut running =
        Running::shell("i=0; while [ $i -lt 400000 ]; do i=$((i + 1)); done; exec \"$1\"", &[&path]);
    running.wait_ready();
    let profile = system.collect_settled("from-shell", 100);
    assert_only(&profile, &["work_of_stage_shell", "main"], &[]);
    assert!(profile.mappings.iter().all(|(file, _)| !file.ends_with("/dash")), "{:?}", profile.mappings);
}

fn libraries_come_and_go(system: &System) {
    let libraries = ["one", "two"].map(|version| plugin(&format!("plugin-{version}.so"), version).unwrap());
    let mut running = Running::start(&program(Program::Plugins).unwrap(), &libraries);
    running.wait_ready();
    let profile = system.collect_settled("plugins", 300);
    let mut right = 0;
    for (version, path) in ["one", "two"].iter().zip(&libraries) {
        let work = format!("plugin_work_{version}");
        let run = [work.as_str(), "plugin_entry", "use_plugin", "main"];
        let count = profile.count(|stack| {
            stack.has_run(&run)
                && stack.user().next().is_some_and(|frame| {
                    frame.mapping.ends_with(&*path.file_name().unwrap().to_string_lossy())
                })
        });
        assert!(count > 50, "version {version} in {count} of {}", profile.dump());
        right += count;
    }
    assert!(right as f64 > 0.95 * profile.total() as f64, "{right} of {}", profile.dump());
}

fn a_process_whose_first_thread_ended(system: &System) {
    let mut running = Running::start(&program(Program::Leaderless).unwrap(), &[""; 0]);
    let pid = running.wait_ready();
    assert!(fs::read(format!("/proc/{pid}/maps")).unwrap().is_empty(), "the first thread is gone");
    let profile = system.collect_settled("leaderless", 150);
    assert_only(&profile, &["worker_leaf", "worker_outer", "worker"], &[]);
}

fn a_reused_pid_is_another_process(system: &System) {
    let (old, new) = (stage("reuse-old", "old", true).unwrap(), stage("reuse-new", "new", true).unwrap());
    for _ in 0..50 {
        let mut first = Running::start(&old, &[""; 0]);
        let pid = first.wait_ready();
        // So many that one may be of the program's start.
        let before = system.collect("{comm=\"reuse-old\"}", 40, 60);
        assert_only(&before, &["work_of_stage_old", "main"], &[]);
        first.kill();
        fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).unwrap();
        let mut second = Running::start(&new, &[""; 0]);
        // Somebody else on this machine may have been faster.
        if second.wait_ready() != pid {
            continue;
        }
        let after = system.collect("{comm=\"reuse-new\"}", 100, 60);
        assert_only(&after, &["work_of_stage_new", "main"], &["work_of_stage_old"]);
        return;
    }
    panic!("the pid could not be had again in 50 tries");
}

fn odd_names_are_text(system: &System) {
    const PARTS: [&str; 4] = ["bytes", "a b;c \"d\"", "<b>x</b>", r"\x1b[31mred\x1b"];
    let mut running = Running::start(&program(Program::Names).unwrap(), &[""; 0]);
    running.wait_ready();
    let mut profile = system.collect("{comm=~\"names.*\"}", 200, 60);
    let has_all = |profile: &Profile| {
        let has = |stack: &Stack, part: &str| {
            stack.labels.get("thread_name").is_some_and(|name| name.contains(part))
        };
        PARTS.iter().all(|part| profile.stacks.iter().any(|stack| has(stack, part)))
    };
    // Who shares a CPU with others may have no turn in one window, or keep out of step with the samples.
    for _ in 0..10 {
        if has_all(&profile) {
            break;
        }
        profile.append(system.collect("{comm=~\"names.*\"}", 1, 60));
    }
    assert!(profile.count(|stack| stack.has_run(&["named_leaf", "worker"])) > 0, "{}", profile.dump());
    let threads: Vec<_> = profile.stacks.iter().filter_map(|stack| stack.labels.get("thread_name")).collect();
    for part in PARTS {
        assert!(threads.iter().any(|name| name.contains(part)), "{part} in {threads:?}");
    }
    assert!(!threads.iter().any(|name| name.contains(char::is_control)), "{threads:?}");
    // As JSON and as a page: bytes that are no text are replaced, markup is not markup.
    let targets: serde_json::Value = serde_json::from_slice(&system.get("/api/targets").body).unwrap();
    // Under the name that it had before as well, if it was sampled then.
    let names: Vec<_> =
        targets.as_array().unwrap().iter().filter_map(|t| t["labels"]["comm"].as_str()).collect();
    assert!(names.iter().any(|name| name.contains("<i>") && !name.contains('\n')), "{names:?}");
    let page = system.get("/").text();
    assert!(page.contains("&lt;i&gt;") && !page.contains("<i>"), "a command name is markup on the page");
}

fn container(system: &System, hierarchy_name: &str, comm: &str, digit: char) {
    let root = hierarchy(hierarchy_name)
        .unwrap_or_else(|| panic!("this machine has no hierarchy {hierarchy_name} for cgroups mounted"));
    let id: String = std::iter::repeat_n(digit, 64).collect();
    let cgroup = Cgroup::create(&root, &format!("docker-test/{id}"));
    let tree = CallTree::standard(comm, Start::Bare);
    let running = Running::shell(
        "echo $$ > \"$1\" && exec \"$2\"",
        &[Path::new(&cgroup.procs()), &tree.build().unwrap()],
    );
    let profile = system.collect(&format!("{{containerid=\"{id}\",comm=\"{comm}\"}}"), 100, 60);
    assert!(
        profile.count(|stack| stack.has_run(&["decode", "parse_header", "parse"])) > 0,
        "{}",
        profile.dump()
    );
    // Nothing else is in that container, and the program is in no other target.
    let targets: serde_json::Value = serde_json::from_slice(&system.get("/api/targets").body).unwrap();
    for target in targets.as_array().unwrap() {
        let labels = &target["labels"];
        if labels["comm"] == comm {
            assert_eq!(labels["containerid"], id.as_str(), "{target}");
        }
    }
    drop(running);
}

fn a_unit_s_cgroup(system: &System) {
    let root = hierarchy("cgroup2").expect("cgroup v2 is mounted");
    let unit = r"a@b\x2dc.service";
    let cgroup = Cgroup::create(&root, &format!("bulkhead-test.slice/{unit}"));
    let tree = CallTree::standard("in-unit", Start::Bare);
    let _running = Running::shell(
        "echo $$ > \"$1\" && exec \"$2\"",
        &[Path::new(&cgroup.procs()), &tree.build().unwrap()],
    );
    let profile = system.collect(r#"{systemd_unit="a@b\\x2dc.service"}"#, 50, 60);
    assert!(profile.count(|stack| stack.has_run(&["main", "_start"])) > 0, "{}", profile.dump());
}

fn a_process_in_a_pid_namespace(system: &System) {
    let path = stage("in-pidns", "namespace", false).unwrap();
    let running =
        Running::unshared_shell(&["-m", "-p", "-f", "--mount-proc", "--kill-child"], "exec \"$1\"", &[&path]);
    let profile = system.collect("{comm=\"in-pidns\"}", 100, 60);
    assert_only(&profile, &["work_of_stage_namespace", "main"], &[]);
    running.signal(Signal::TERM);
}
