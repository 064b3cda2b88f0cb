//! Containers and the names that Kubernetes gives them.

use std::{collections::BTreeMap, fs};

use rustix::process::Signal;
use tests::{
    cluster::{Cluster, NODE, Pod},
    process::run,
    system::{Options, System, alone, publish},
    wait::wait_for,
};
use workloads::{CallTree, Start};

pub(crate) type Labels = BTreeMap<String, String>;

fn system(cluster: &Cluster, kubeconfig: &str, flags: &[&str]) -> System {
    system_with_windows("2s", cluster, kubeconfig, flags)
}

fn system_with_windows(window: &'static str, cluster: &Cluster, kubeconfig: &str, flags: &[&str]) -> System {
    let mut uploader_flags = cluster.flags(kubeconfig);
    uploader_flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
    System::start(Options { window, uploader_flags, store: true, ..Options::default() })
}

/// The labels of all targets of a command name that were seen.
pub(crate) fn targets(system: &System, comm: &str) -> Vec<Labels> {
    let targets: Vec<serde_json::Value> = serde_json::from_slice(&system.get("/api/targets").body).unwrap();
    let labels = targets.into_iter().map(|target| serde_json::from_value(target["labels"].clone()).unwrap());
    labels.filter(|labels: &Labels| labels.get("comm").is_some_and(|name| name == comm)).collect()
}

/// The value of a label, empty if there is none.
pub(crate) fn value<'a>(labels: &'a Labels, name: &str) -> &'a str {
    labels.get(name).map_or("", String::as_str)
}

pub(crate) fn wait_for_sentence(system: &System, words: &str) {
    wait_for(&format!("the page says: {words}"), 90, || system.get("/").text().contains(words).then_some(()));
}

/// Samples that were left out, wherever.
fn left_out(system: &System) -> f64 {
    system.metric("bulkhead_samples_not_selected_total") + system.metric("bulkhead_collector_skipped_total")
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn containers_have_the_names_of_their_pods() {
    let _alone = alone();
    let cluster = Cluster::find();
    let folder = tempfile::tempdir().unwrap();
    let rules = "relabel_configs:\n\
        - {source_labels: [__meta_kubernetes_pod_label_app], target_label: app}\n\
        - {source_labels: [__meta_kubernetes_pod_container_image], target_label: container_image}\n\
        - {source_labels: [__meta_kubernetes_pod_container_init], regex: 'true', target_label: init, replacement: 'yes'}\n\
        - {source_labels: [__meta_kubernetes_node_name], target_label: node_name}\n";
    let rules = publish(folder.path(), "bulkhead.yaml", rules);
    // One that is there before the uploader, and others that come while it runs.
    let before = Pod { labels: vec![("app", "early")], ..Pod::of("before", "exec /tree-bare") };
    cluster.run(&before, "Running");
    let system = system(&cluster, "bulkhead", &[&format!("--config-path={rules}")]);
    let pod = Pod {
        init_containers: vec![("prepare", "/brief 3000000")],
        containers: vec![
            ("known", "exec /tree-bare"),
            ("short", "while :; do /brief; /busybox usleep 1000; done"),
        ],
        labels: vec![("app", "shop")],
        ..Pod::of("several", "")
    };
    cluster.run(&pod, "Running");

    let id = cluster.container_id("several", "known").unwrap();
    let selector = format!(
        "{{comm=\"tree-bare\",namespace=\"default\",pod=\"several\",container=\"known\",containerid=\"{id}\"}}"
    );
    let profile = system.collect(&selector, 300, 90);
    for (names, share) in CallTree::standard("tree-bare", Start::Bare).expected() {
        let leaf = profile.count(|stack| stack.user().next().is_some_and(|frame| frame.name == names[0]));
        let leaf = leaf as f64 / profile.total() as f64;
        assert!((leaf - share).abs() < 0.12, "{}: {leaf} instead of {share}\n{}", names[0], profile.dump());
    }
    for (pod, app) in [("before", "early"), ("several", "shop")] {
        let labels =
            targets(&system, "tree-bare").into_iter().find(|labels| value(labels, "pod") == pod).unwrap();
        assert_eq!(
            (value(&labels, "app"), value(&labels, "node"), value(&labels, "node_name")),
            (app, NODE, NODE)
        );
        assert_eq!(value(&labels, "container_image"), "bulkhead.test/workload:1");
    }
    // Each process of these lives 20 ms.
    system.collect("{comm=\"brief\",pod=\"several\",container=\"short\"}", 200, 60);
    let brief = targets(&system, "brief");
    assert!(brief.iter().all(|labels| value(labels, "pod") == "several"), "{brief:?}");
    let prepare = brief.iter().find(|labels| value(labels, "container") == "prepare").unwrap();
    assert_eq!((value(prepare, "init"), value(prepare, "app")), ("yes", "shop"));

    // A container that comes to a pod that runs already.
    let path = "/api/v1/namespaces/default/pods/several/ephemeralcontainers";
    let pod = cluster.kubectl(&["get", "--raw", path], "");
    let mut pod: serde_json::Value = serde_json::from_str(&pod).unwrap();
    pod["spec"]["ephemeralContainers"] = serde_json::json!([{
        "name": "debug", "image": "bulkhead.test/workload:1", "imagePullPolicy": "Never", "command": ["/tree-bare"],
    }]);
    cluster.kubectl(&["replace", "--raw", path, "-f", "-"], &pod.to_string());
    system.collect("{comm=\"tree-bare\",pod=\"several\",container=\"debug\"}", 20, 60);

    // What `check` shows of it.
    let program = system.place().path("bin/bulkhead-uploader").display().to_string();
    let flags = cluster.flags("bulkhead");
    let mut line = vec![program.as_str(), "check", "--socket-path=none"];
    line.extend(flags.iter().map(String::as_str));
    let (status, shown) = run(&line);
    assert!(status.success(), "{shown}");
    let shown: Vec<_> =
        shown.lines().filter(|line| line.contains(&format!("containerid=\"{id}\""))).collect();
    let is_named = |line: &&str| line.contains("container=\"known\"") && line.contains("pod=\"several\"");
    assert!(!shown.is_empty() && shown.iter().all(is_named), "{shown:?}");
    // What the environment of a container holds is nobody's label.
    let targets = system.get("/api/targets").text();
    assert!(!targets.contains("secret-word"), "{targets}");

    // Its labels change while it runs; then it goes, and its names stay for a while.
    cluster.kubectl(&["label", "pod", "several", "app=other", "--overwrite"], "");
    system.collect("{comm=\"brief\",pod=\"several\",app=\"other\"}", 20, 60);
    cluster.delete("several");
    wait_for_sentence(&system, "tells of 1 pods here");
    assert!(system.metric("bulkhead_kubernetes_pods") >= 2.0);
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn what_lives_for_a_moment_has_names_too() {
    let _alone = alone();
    let cluster = Cluster::find();
    // Names are waited for half a window at most, and a kubelet takes a second or more to tell of what has ended.
    let system = system_with_windows("10s", &cluster, "bulkhead", &[]);
    // Whole containers that live for 20 ms, or a little more: the kubelet tells of them when they have ended.
    for number in 0..5 {
        let name = format!("moment-{number}");
        cluster.run(&Pod::of(&name, "exec /brief"), "Succeeded");
        // Gone before the window ends, with what it was called.
        cluster.delete(&name);
    }
    // A container that ends again and again has a new id each time.
    let again = Pod { restart: "Always", ..Pod::of("again", "/brief 300000; exit 1") };
    cluster.kubectl(&["apply", "-f", "-"], &again.manifest());
    wait_for("it was started three times", 150, || {
        let ids = targets(&system, "brief").into_iter().filter(|labels| value(labels, "pod") == "again");
        (ids.count() >= 3).then_some(())
    });
    let brief = targets(&system, "brief");
    let nameless: Vec<_> = brief.iter().filter(|labels| value(labels, "container") != "main").collect();
    assert!(nameless.is_empty(), "{nameless:?}");
    let moments = brief.iter().filter(|labels| value(labels, "pod").starts_with("moment-")).count();
    // Two samples of each on average.
    assert!(moments >= 3, "{brief:?}");
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn a_static_pod_is_found_by_its_container() {
    let _alone = alone();
    let cluster = Cluster::find();
    let system = system(&cluster, "bulkhead", &[]);
    let file = cluster.path("static").join("fixed.yaml");
    fs::write(&file, Pod { restart: "Always", ..Pod::of("fixed", "exec /tree-bare") }.manifest()).unwrap();
    // The kubelet tells the API server of it under another name.
    system.collect(&format!("{{comm=\"tree-bare\",pod=\"fixed-{NODE}\",container=\"main\"}}"), 50, 90);
    fs::remove_file(&file).unwrap();
    wait_for_sentence(&system, "tells of 0 pods here");
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn an_api_server_that_goes_away_takes_no_names_with_it() {
    let _alone = alone();
    let cluster = Cluster::find();
    cluster.run(&Pod::of("stays", "exec /tree-bare"), "Running");
    let system = system(&cluster, "bulkhead", &[]);
    let selector = "{comm=\"tree-bare\",pod=\"stays\",container=\"main\"}";
    system.collect(selector, 20, 60);
    cluster.take_away();
    wait_for_sentence(&system, "has told of no pods for");
    system.collect(selector, 50, 60);
    assert!(system.metric("bulkhead_kubernetes_errors_total") >= 1.0);
    assert_eq!(system.get("/readyz").status, 200);

    // A restart of the uploader finds nobody to ask; it goes on with what cgroups say, and asks again.
    system.stop_uploader(Signal::TERM);
    system.start_uploader();
    system.wait_ready();
    let bare = system.collect("{comm=\"tree-bare\",containerid=~\"[0-9a-f]{64}\"}", 20, 60);
    assert!(bare.total() >= 20);
    assert!(targets(&system, "tree-bare").iter().all(|labels| !labels.contains_key("pod")));
    cluster.bring_back();
    system.collect(selector, 20, 90);
    cluster.run(&Pod::of("comes", "exec /tree-bare"), "Running");
    system.collect("{comm=\"tree-bare\",pod=\"comes\"}", 20, 60);
    wait_for_sentence(&system, "tells of 2 pods here");
    let log = system.place().log("uploader");
    assert!(log.contains("tells of pods again"), "{log}");

    // What changed while nobody told of it (410 Gone, a list anew).
    cluster.take_away();
    wait_for_sentence(&system, "has told of no pods for");
    cluster.bring_back();
    cluster.delete("comes");
    cluster.run(&Pod::of("later", "exec /tree-bare"), "Running");
    system.collect("{comm=\"tree-bare\",pod=\"later\"}", 20, 90);
    wait_for_sentence(&system, "tells of 2 pods here");
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn who_may_not_ask_profiles_without_names() {
    let _alone = alone();
    let cluster = Cluster::find();
    cluster.run(&Pod::of("hidden", "exec /tree-bare"), "Running");
    let system = system(&cluster, "nobody", &[]);
    system.collect("{comm=\"tree-bare\",containerid=~\"[0-9a-f]{64}\"}", 50, 60);
    wait_for_sentence(&system, "verbs list and watch on pods");
    assert!(targets(&system, "tree-bare").iter().all(|labels| !labels.contains_key("pod")));
    let log = system.place().log("uploader");
    let lines = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    let counts = ["pods is forbidden", "verb get on nodes", "forbidden"].map(lines);
    assert_eq!(counts, [1, 1, 2], "{log}");
    // Profiles of nothing at all, where only pods were asked for.
    drop(system);
    let system = self::system(&cluster, "nobody", &["--pod-label-selector=test"]);
    wait_for("samples are left out", 60, || (left_out(&system) >= 100.0).then_some(()));
    assert_eq!(targets(&system, "tree-bare"), Vec::<Labels>::new());
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn only_pods_with_these_labels() {
    let _alone = alone();
    let cluster = Cluster::find();
    for (name, tier) in [("front", "web"), ("back", "db")] {
        cluster.run(&Pod { labels: vec![("tier", tier)], ..Pod::of(name, "exec /tree-bare") }, "Running");
    }
    let system = system(&cluster, "bulkhead", &["--pod-label-selector=tier in (web)"]);
    system.collect("{comm=\"tree-bare\",pod=\"front\"}", 50, 60);
    wait_for("others are left out", 60, || (left_out(&system) >= 100.0).then_some(()));
    let all: Vec<serde_json::Value> = serde_json::from_slice(&system.get("/api/targets").body).unwrap();
    assert!(all.iter().all(|target| target["labels"]["pod"] == "front"), "{all:?}");
    // A pod that comes to have the label is profiled from then on.
    cluster.kubectl(&["label", "pod", "back", "tier=web", "--overwrite"], "");
    system.collect("{comm=\"tree-bare\",pod=\"back\"}", 20, 60);
    // One that has it no more is not, though its name is known for a while.
    cluster.kubectl(&["label", "pod", "back", "tier=db", "--overwrite"], "");
    wait_for("it is profiled no more", 90, || {
        let windows = system.metric("bulkhead_windows_total");
        wait_for("another window", 20, || {
            (system.metric("bulkhead_windows_total") >= windows + 2.0).then_some(())
        });
        let last: Vec<serde_json::Value> = serde_json::from_slice(&system.get("/api/targets").body).unwrap();
        let newest = last.iter().map(|target| target["last_profile"].as_str().unwrap().to_owned()).max()?;
        let of_back = |target: &&serde_json::Value| {
            target["last_profile"] == newest.as_str() && target["labels"]["pod"] == "back"
        };
        last.iter().find(of_back).is_none().then_some(())
    });
}
