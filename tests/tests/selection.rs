//! What is profiled, and under which labels: flags that name units, cgroups and a part of the targets, and rules in a file that changes.

#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

use std::{collections::BTreeMap, path::Path};

use rustix::process::Signal;
use tests::{
    cgroup::{Cgroup, hierarchy},
    process::Running,
    statistics::compare,
    system::{CAPABILITIES, Options, System, UPLOADER_USER, alone, as_collector, as_user, publish},
    wait::wait_for,
};
use workloads::{CallTree, Start};

/// Starts a busy program of this name in a cgroup.
fn busy_in(cgroup: &Cgroup, comm: &str) -> Running {
    let program = CallTree::standard(comm, Start::Bare).build().unwrap();
    Running::shell("echo $$ > \"$1\" && exec \"$2\"", &[Path::new(&cgroup.procs()), &program])
}

fn system(flags: &[&str]) -> System {
    let uploader_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    System::start(Options { window: "1s", uploader_flags, ..Options::default() })
}

/// The labels of all targets that were seen, by command name.
fn targets(system: &System) -> BTreeMap<String, BTreeMap<String, String>> {
    let targets: Vec<serde_json::Value> = serde_json::from_slice(&system.get("/api/targets").body).unwrap();
    let labels = targets
        .into_iter()
        .map(|target| serde_json::from_value::<BTreeMap<String, String>>(target["labels"].clone()).unwrap());
    labels.map(|labels| (labels.get("comm").cloned().unwrap_or_default(), labels)).collect()
}

/// Waits until so many samples were left out, wherever.
fn wait_not_selected(system: &System, samples: f64) {
    wait_for("others are left out", 60, || {
        let by_the_uploader = system.metric("bulkhead_samples_not_selected_total");
        (by_the_uploader + system.metric("bulkhead_collector_skipped_total") >= samples).then_some(())
    });
}

/// Samples that the kernel dropped, that the collector dropped, and that the uploader did.
fn left_out(system: &System) -> [f64; 3] {
    let metrics = system.metrics();
    [
        "bulkhead_collector_skipped_total{by=\"kernel\"}",
        "bulkhead_collector_skipped_total{by=\"collector\"}",
        "bulkhead_samples_not_selected_total",
    ]
    .map(|name| *metrics.get(name).unwrap_or_else(|| panic!("no {name} in {metrics:?}")))
}

#[test]
fn only_what_is_named() {
    let _alone = alone();
    let root = hierarchy("cgroup2").expect("cgroup v2 is mounted");
    let cgroup = |path: &str| Cgroup::create(&root, &format!("bulkhead-test.slice/{path}"));
    let (one, two, other, work) = (
        cgroup("chosen@1.service"),
        cgroup("chosen@2.service"),
        cgroup("left.service"),
        cgroup("batch/work"),
    );
    let _running = [(&one, "sel-one"), (&two, "sel-two"), (&other, "sel-left"), (&work, "sel-work")]
        .map(|(cgroup, comm)| busy_in(cgroup, comm));
    {
        let system = system(&["--systemd-units=chosen@*,missing", "--cgroups=batch"]);
        for comm in ["sel-one", "sel-two", "sel-work"] {
            system.collect(&format!("{{comm=\"{comm}\"}}"), 30, 60);
        }
        wait_not_selected(&system, 50.0);
        let targets = targets(&system);
        // A shell is in the cgroup for a moment, before it is the program.
        let strangers =
            targets.keys().filter(|comm| !["sel-one", "sel-two", "sel-work", "sh"].contains(&comm.as_str()));
        assert_eq!(strangers.collect::<Vec<_>>(), Vec::<&String>::new(), "{targets:?}");
        assert_eq!(targets["sel-one"]["systemd_unit"], "chosen@1.service");
    }
    // Below another cgroup there is none of them but that which is there.
    let inner = cgroup("inner.slice/chosen@3.service");
    let _inner = busy_in(&inner, "sel-inner");
    let system =
        system(&["--systemd-units=chosen@*", "--cgroup-path=/sys/fs/cgroup/bulkhead-test.slice/inner.slice"]);
    system.collect("{comm=\"sel-inner\"}", 20, 60);
    wait_not_selected(&system, 100.0);
    let targets = targets(&system);
    assert!(targets.keys().all(|comm| ["sel-inner", "sh"].contains(&comm.as_str())), "{targets:?}");
}

/// The collector of a container is in a cgroup namespace: whatever is not below its own cgroup has a path that leads out of it (report R63).
#[test]
fn seen_from_within_a_cgroup_namespace() {
    let _alone = alone();
    let root = hierarchy("cgroup2").expect("cgroup v2 is mounted");
    let cgroup = |path: &str| Cgroup::create(&root, path);
    let id = "5e".repeat(32);
    let (unit, container) = (cgroup("bulkhead-test.slice/apart.service"), cgroup(&format!("docker/{id}")));
    let own = cgroup("kubepods/besteffort/bulkhead-test-pod/own");
    let _running = [busy_in(&unit, "ns-unit"), busy_in(&container, "ns-container")];
    let system = system(&["--systemd-units=apart", &format!("--cgroups={id}")]);
    assert!(system.stop_collector(Signal::TERM).success());
    let collector = [
        system.place().path("bin/bulkhead-collector").display().to_string(),
        format!("--socket={}", system.place().socket()),
        format!("--uploader-user={UPLOADER_USER}"),
    ];
    let line: Vec<String> =
        [own.procs()].into_iter().chain(as_collector(&CAPABILITIES)).chain(collector).collect();
    let script = "echo $$ >\"$1\"; shift; exec unshare --cgroup setpriv \"$@\"";
    let within = Running::shell(script, &line);
    for comm in ["ns-unit", "ns-container"] {
        system.collect(&format!("{{comm=\"{comm}\"}}"), 30, 60);
    }
    let seen = std::fs::read_to_string(format!("/proc/{}/cgroup", within.pid())).unwrap();
    assert!(seen.contains("bulkhead-test-pod/own"), "it is where it was put: {seen}");
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/cgroup")).unwrap();
    assert_ne!(namespace(&within.pid().to_string()), namespace("self"));
    wait_not_selected(&system, 20.0);
    let targets = targets(&system);
    assert_eq!(targets["ns-unit"]["systemd_unit"], "apart.service");
    assert_eq!(targets["ns-container"]["containerid"], id);
    let strangers = targets.keys().filter(|comm| !["ns-unit", "ns-container", "sh"].contains(&comm.as_str()));
    assert_eq!(strangers.collect::<Vec<_>>(), Vec::<&String>::new(), "{targets:?}");
}

#[test]
fn what_is_not_named_is_dropped_in_the_kernel() {
    let _alone = alone();
    let root = hierarchy("cgroup2").expect("cgroup v2 is mounted");
    let cgroup = |path: &str| Cgroup::create(&root, &format!("bulkhead-test.slice/{path}"));
    let (kept, left) = (cgroup("kept.service"), cgroup("left.service"));
    let _kept = busy_in(&kept, "skip-kept");
    let busy = busy_in(&left, "skip-left");
    let system = system(&["--systemd-units=kept"]);
    let profile = system.collect("{comm=\"skip-kept\"}", 600, 90);
    let [in_kernel, in_collector, by_uploader] = wait_for("the kernel drops samples", 60, || {
        Some(left_out(&system)).filter(|[in_kernel, ..]| *in_kernel >= 1500.0)
    });
    println!("{in_kernel} in the kernel, {in_collector} in the collector, {by_uploader} in the uploader");
    // What comes through is what was sampled before the uploader had said so, and whatever waits in the ring when it is looked
    // at again whose samples they are.
    assert!(in_collector < in_kernel / 10.0, "{in_kernel} in the kernel, {in_collector} behind it");
    assert!(by_uploader < in_kernel / 10.0, "{in_kernel} in the kernel, {by_uploader} in the uploader");
    // What is selected is as it was.
    let expected = CallTree::standard("skip-kept", Start::Bare).expected();
    let names = |stack: &tests::pprof::Stack| -> Vec<String> {
        stack.user().map(|frame| frame.name.clone()).collect()
    };
    let counts: Vec<i64> =
        expected.iter().map(|(leaf, _)| profile.count(|stack| names(stack).starts_with(leaf))).collect();
    let shares: Vec<f64> = expected.iter().map(|(_, share)| *share).collect();
    assert!(compare(&counts, &shares).agrees(), "{counts:?}\n{}", profile.dump());
    let others = profile.total() - counts.iter().sum::<i64>();
    assert!(others <= profile.total() / 100, "{others} samples elsewhere:\n{}", profile.dump());
    // A process that is moved is another's from that moment on.
    std::fs::write(kept.procs(), busy.pid().to_string()).unwrap();
    system.collect("{comm=\"skip-left\"}", 50, 60);
    std::fs::write(left.procs().as_str(), busy.pid().to_string()).unwrap();

    // Whoever comes next has said nothing yet: all is seen again.
    system.stop_uploader(Signal::TERM);
    let flags = [format!("--http-address={}", system.address()), "--profiling-duration=1s".to_owned()];
    let _next = system.place().uploader_with(&flags);
    wait_for("the next uploader is there", 60, || {
        tests::http::get(system.address(), "/readyz", &[]).ok().filter(|response| response.status == 200)
    });
    // The same collector, which tells of all that it has counted.
    let before = wait_for("the collector tells what it has left out", 20, || {
        Some(left_out(&system)).filter(|before| before[0] >= in_kernel)
    });
    for comm in ["skip-kept", "skip-left"] {
        system.collect(&format!("{{comm=\"{comm}\"}}"), 100, 60);
    }
    let after = left_out(&system);
    let rise = before.iter().zip(after).map(|(before, after)| after - before).sum::<f64>();
    assert!(rise < 1.0, "{before:?}, then {after:?}");
}

#[test]
fn a_part_of_the_targets_is_the_same_after_a_restart() {
    let _alone = alone();
    let _running: Vec<_> = (0..8)
        .map(|number| {
            Running::start(
                &CallTree::standard(&format!("part-of-{number}"), Start::Bare).build().unwrap(),
                &[""; 0],
            )
        })
        .collect();
    let chosen = |flag: &str| {
        let system = system(&["--node=selection", flag]);
        // Windows end without samples too, while a busy machine has not come to them.
        let count = |metric: &str, least: f64| {
            wait_for(metric, 120, || (system.metric(metric) >= least).then_some(()));
        };
        count("bulkhead_samples_total", 800.0);
        count("bulkhead_windows_total", system.metric("bulkhead_windows_total") + 3.0);
        targets(&system).into_keys().filter(|comm| comm.starts_with("part-of-")).collect::<Vec<_>>()
    };
    assert_eq!(chosen("--sampling-ratio=1").len(), 8);
    let half = chosen("--sampling-ratio=0.5");
    assert!(!half.is_empty() && half.len() < 8, "{half:?}");
    assert_eq!(chosen("--sampling-ratio=0.5"), half);
    assert!(chosen("--sampling-ratio=0").is_empty());
}

#[test]
fn rules_of_a_file_that_changes() {
    const DROP: &str = "- {source_labels: [comm], regex: rule-left, action: drop}\n";
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let _running = ["rule-kept", "rule-left"]
        .map(|comm| Running::start(&CallTree::standard(comm, Start::Bare).build().unwrap(), &[""; 0]));
    let first = format!(
        "relabel_configs:\n{DROP}- {{source_labels: [__meta_process_cgroup, __meta_system_kernel_machine], regex: '/.*;(.*)', target_label: arch}}\n"
    );
    let path = publish(folder.path(), "bulkhead.yaml", &first);
    let system = system(&[&format!("--config-path={path}"), "--external-label=zone=z"]);
    let profile = system.collect("{comm=\"rule-kept\",arch=\"x86_64\",zone=\"z\"}", 50, 60);
    assert!(profile.total() >= 50);
    wait_not_selected(&system, 50.0);
    assert!(!targets(&system).contains_key("rule-left"));

    // What changes holds for programs that run already.
    publish(
        folder.path(),
        "bulkhead.yaml",
        "relabel_configs:\n- {target_label: team, replacement: blue}\n- {regex: zone, action: labeldrop}\n",
    );
    system.collect("{comm=\"rule-left\",team=\"blue\",zone=\"\"}", 20, 60);
    let configurations =
        |outcome: &str| system.metric(&format!("bulkhead_configurations_total{{outcome=\"{outcome}\"}}"));
    assert_eq!((configurations("read"), configurations("refused")), (1.0, 0.0));

    // What is wrong changes nothing, and is said once.
    publish(folder.path(), "bulkhead.yaml", "relabel_configs:\n- {action: explode}\n");
    wait_for("it is refused", 30, || (configurations("refused") >= 1.0).then_some(()));
    system.collect("{comm=\"rule-left\",team=\"blue\"}", 20, 60);
    let log = system.place().log("uploader");
    assert!(
        log.contains("rule 1: there is no action `explode`") && log.contains("what it said before stays"),
        "{log}"
    );
    // It may be told to look, too.
    system.signal_uploader(Signal::HUP);
    wait_for("it looks again", 30, || (configurations("refused") >= 2.0).then_some(()));
    publish(folder.path(), "bulkhead.yaml", "");
    system.collect("{comm=\"rule-left\",team=\"\",zone=\"z\"}", 20, 60);
    assert_eq!(system.uploader_status(), None);
}

#[test]
fn a_file_that_is_wrong_at_the_start_is_an_error_of_one_line() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let path = publish(folder.path(), "bulkhead.yaml", "relabel_config: []\n");
    let place = tests::system::Place::new();
    let mut running = place.uploader_with(&[format!("--config-path={path}")]);
    let status = running.wait_end(30);
    assert!(!status.success());
    let log = place.log("uploader");
    assert!(log.contains("bulkhead.yaml (--config-path)") && log.contains("relabel_config"), "{log}");
    assert_eq!(log.trim_end().lines().count(), 1, "{log}");
}

#[test]
fn what_check_shows_is_what_profiles_have() {
    let _alone = alone();
    let root = hierarchy("cgroup2").expect("cgroup v2 is mounted");
    let cgroup = |path: &str| Cgroup::create(&root, &format!("bulkhead-test.slice/{path}"));
    let (shown, dropped, other) =
        (cgroup("shown@1.service"), cgroup("shown@2.service"), cgroup("other.service"));
    let running = [(&shown, "chk-shown"), (&dropped, "chk-drop"), (&other, "chk-other")]
        .map(|(cgroup, comm)| (comm, busy_in(cgroup, comm)));
    let folder = tempfile::tempdir().unwrap();
    let rules = "relabel_configs:\n\
        - {source_labels: [systemd_unit], regex: 'shown@(.*)\\.service', target_label: instance, replacement: '$1'}\n\
        - {source_labels: [comm], regex: 'chk-drop', action: drop}\n\
        - {regex: systemd_unit, action: labeldrop}\n";
    let rules = publish(folder.path(), "rules.yaml", rules);
    let flags =
        ["--node=n", "--systemd-units=shown@*", "--external-label=zone=z", &format!("--config-path={rules}")];
    let system = system(&flags);
    system.collect("{comm=\"chk-shown\"}", 20, 60);

    // As a user who may do nothing.
    let mut check = std::process::Command::new("setpriv");
    check
        .args(as_user(UPLOADER_USER))
        .arg(system.place().path("bin/bulkhead-uploader"))
        .arg("check")
        .args(flags);
    let output = check.args(["--kubernetes=false", "--socket-path=none"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{text}\n{:?}", output.stderr);
    // The lines below the one that begins with its pid.
    let said = |comm: &str| {
        let (_, running) = running.iter().find(|(name, _)| *name == comm).unwrap();
        let mut lines = text.lines().skip_while(|line| *line != format!("{} {comm}", running.pid()));
        assert!(lines.next().is_some(), "{comm} is not in {text}");
        lines.take_while(|line| line.starts_with("    ")).map(str::trim).collect::<Vec<_>>()
    };
    let labels = &targets(&system)["chk-shown"];
    let selector: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    let selector = format!("{{{}}}", selector.join(", "));
    assert_eq!(
        said("chk-shown"),
        ["rule 1 (replace): instance=\"1\"", "rule 3 (labeldrop): no systemd_unit", &selector]
    );
    assert_eq!(said("chk-drop"), ["rule 1 (replace): instance=\"2\"", "not profiled: rule 2 (drop)"]);
    assert_eq!(said("chk-other"), ["not profiled: flags name others"]);
    assert!(!targets(&system).contains_key("chk-drop") && !targets(&system).contains_key("chk-other"));
    let processes = text.lines().last().unwrap().strip_suffix(" processes").unwrap();
    assert!(processes.parse::<usize>().unwrap() > running.len(), "{processes}");

    // A file that is wrong is said in a line, and nothing is shown.
    let wrong = publish(folder.path(), "wrong.yaml", "relabel_configs: [{action: fly}]\n");
    let mut check = std::process::Command::new(system.place().path("bin/bulkhead-uploader"));
    let output = check.args(["check", &format!("--config-path={wrong}")]).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{error}");
    assert!(error.contains("wrong.yaml") && error.lines().count() == 1, "{error}");
}
