//! What it costs to know containers by their names: memory and CPU of the uploader on a node with 1,000 pods and 5,000 processes, with and
//! without asking an API server, and while pods change. By `script/bench-discovery`. Prints a table in Markdown.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use bench::usage::{Usage, usage};
use serde_json::{Value, json};
use tests::{
    cgroup::{Cgroup, hierarchy},
    cluster::Cluster,
    process::Running,
    system::{Options, System},
    wait::wait_for,
};
use workloads::crowd;

/// The node whose pods they are. No kubelet calls itself so.
const NODE: &str = "node-of-many";
const PODS: usize = 1000;
const CONTAINERS: usize = 3;
/// Processes in units, beside one in each container.
const OTHERS: usize = 2000;
/// How long each state is measured.
const SECONDS: u64 = 60;
/// Pods that change in a second, in one state: far more than a node's pods do.
const CHANGING: usize = 20;

fn id(pod: usize, container: usize) -> String {
    format!("{:064x}", pod * CONTAINERS + container + 1)
}

/// Makes the pods, with containers whose cgroups are [`cgroups`]; their uids.
fn make_pods(cluster: &Cluster) -> Vec<String> {
    let pods: Vec<Value> = (0..PODS)
        .map(|pod| {
            let containers: Vec<Value> = (0..CONTAINERS)
                .map(|container| json!({"name": format!("part-{container}"), "image": "example.com/shop/part:1"}))
                .collect();
            json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {
                    "name": format!("shop-{pod}"), "namespace": "default",
                    "labels": {"app.kubernetes.io/name": format!("shop-{}", pod % 50), "pod-template-hash": format!("{pod:x}")},
                    "annotations": {"example.com/config": "x".repeat(500)},
                },
                "spec": {"nodeName": NODE, "automountServiceAccountToken": false, "containers": containers},
            })
        })
        .collect();
    eprintln!("making {PODS} pods");
    let list = json!({"apiVersion": "v1", "kind": "List", "items": pods});
    cluster.kubectl(&["create", "--validate=false", "-f", "-"], &list.to_string());
    let made = cluster
        .kubectl(&["get", "pods", &format!("--field-selector=spec.nodeName={NODE}"), "-o", "json"], "");
    let mut made: Value = serde_json::from_str(&made).expect("a list");
    let mut uids = vec![String::new(); PODS];
    for item in made["items"].as_array_mut().expect("pods") {
        let name = item["metadata"]["name"].as_str().expect("a name");
        let pod: usize = name.trim_start_matches("shop-").parse().expect("a number");
        item["metadata"]["uid"].as_str().expect("a uid").clone_into(&mut uids[pod]);
        let statuses: Vec<Value> = (0..CONTAINERS)
            .map(|container| {
                json!({
                    "name": format!("part-{container}"), "image": "example.com/shop/part:1", "imageID": "", "ready": true,
                    "restartCount": 0, "containerID": format!("containerd://{}", id(pod, container)),
                })
            })
            .collect();
        item["status"] = json!({"phase": "Running", "containerStatuses": statuses});
    }
    eprintln!("saying what runs in them");
    cluster.kubectl(&["replace", "--subresource=status", "-f", "-"], &made.to_string());
    uids
}

/// A cgroup for each container and for each of the others, and the file that names them.
fn cgroups(folder: &Path, uids: &[String]) -> (Vec<Cgroup>, String) {
    let root = hierarchy("cgroup2").expect("cgroup v2 is mounted");
    let containers = (0..PODS * CONTAINERS)
        .map(|number| (number / CONTAINERS, number % CONTAINERS))
        .map(|(pod, container)| format!("kubepods/pod{}/{}", uids[pod], id(pod, container)));
    let units = (0..OTHERS).map(|number| format!("system.slice/unit-{number}.service"));
    let made: Vec<_> = containers
        .chain(units)
        .map(|path| Cgroup::create(&root, &format!("bulkhead-bench/{path}")))
        .collect();
    let list = folder.join("cgroups");
    let mut file = BufWriter::new(File::create(&list).expect("a file"));
    for cgroup in &made {
        writeln!(file, "{}", cgroup.procs()).expect("a file");
    }
    file.flush().expect("a file");
    (made, list.display().to_string())
}

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    NotAsked,
    Quiet,
    /// So many of the pods change each second.
    Changing(usize),
}

/// What a state has cost.
struct Cost {
    uploader: Usage,
    collector: Usage,
    /// Most memory that the uploader had meanwhile, in KiB.
    most: u64,
    /// Pods that changed meanwhile.
    changed: usize,
    /// How long it took until all were known.
    known: Duration,
}

/// Both halves for a while.
fn measure(flags: Vec<String>, state: State, cluster: &Cluster) -> Cost {
    let system = System::start(Options { window: "10s", uploader_flags: flags, ..Options::default() });
    let begun = Instant::now();
    if state != State::NotAsked {
        wait_for("all pods are known", 120, || {
            (system.metric("bulkhead_kubernetes_pods") >= PODS as f64).then_some(())
        });
    }
    let known = begun.elapsed();
    // The first windows read what runs.
    thread::sleep(Duration::from_secs(30));
    let halves = [system.uploader_pid(), system.collector_pid()];
    let before = halves.map(usage);
    let (mut most, mut changed) = (before[0].resident, 0);
    let start = Instant::now();
    while let Some(second) = Some(start.elapsed().as_secs()).filter(|second| *second < SECONDS) {
        if let State::Changing(pods) = state {
            let value = format!("example.com/changed={second}");
            let names = (0..pods).map(|number| format!("shop-{}", (changed + number) % PODS));
            let mut line = vec!["annotate".to_owned(), "--overwrite".to_owned(), "pods".to_owned()];
            line.extend(names.chain([value]));
            cluster.kubectl(&line.iter().map(String::as_str).collect::<Vec<_>>(), "");
            changed += pods;
        }
        thread::sleep(Duration::from_secs(second + 1).saturating_sub(start.elapsed()));
        most = most.max(usage(halves[0]).resident);
    }
    let seconds = start.elapsed().as_secs_f64();
    let [uploader, collector] = [0, 1].map(|half| {
        let after = usage(halves[half]);
        // A second's, so that a state that took longer is the same.
        Usage { cpu: (after.cpu - before[half].cpu) / seconds, ..after }
    });
    let targets: Vec<Value> = serde_json::from_slice(&system.get("/api/targets").body).expect("a list");
    let with_pod = targets.iter().filter(|target| target["labels"].get("pod").is_some()).count();
    eprintln!("{} targets, {with_pod} of them with a pod", targets.len());
    assert!((with_pod > PODS) == (state != State::NotAsked), "names are known where they are asked for");
    Cost { uploader, collector, most, changed, known }
}

fn main() {
    let cluster = Cluster::find();
    let uids = make_pods(&cluster);
    let folder = tempfile::tempdir().expect("a folder");
    let (_cgroups, list) = cgroups(folder.path(), &uids);
    let running = Running::start(&crowd().expect("a program"), &[&list]);
    eprintln!("starting {} processes", PODS * CONTAINERS + OTHERS);
    // Each move into a cgroup has the kernel wait for all CPUs.
    wait_for("all processes run", 300, || running.output().contains("ready ").then_some(()));
    let mut with = cluster.flags("bulkhead");
    with.retain(|flag| !flag.starts_with("--node="));
    with.push(format!("--node={NODE}"));
    println!(
        "| pods | CPU of the uploader | its memory | at most | CPU of the collector | its memory | all names known after |"
    );
    println!("|---|---|---|---|---|---|---|");
    for state in [State::NotAsked, State::Quiet, State::Changing(CHANGING)] {
        let flags =
            if state == State::NotAsked { vec!["--kubernetes=false".to_owned()] } else { with.clone() };
        let cost = measure(flags, state, &cluster);
        let share = |usage: Usage| usage.cpu * 100.0;
        let mebibytes = |kibibytes: u64| kibibytes as f64 / 1024.0;
        println!(
            "| {} | {:.2} % | {:.1} MiB | {:.1} MiB | {:.2} % | {:.1} MiB | {} |",
            match state {
                State::NotAsked => "not asked for".into(),
                State::Quiet => PODS.to_string(),
                State::Changing(_) => format!("{PODS}, {} changed in {SECONDS} s", cost.changed),
            },
            share(cost.uploader),
            mebibytes(cost.uploader.resident),
            mebibytes(cost.most),
            share(cost.collector),
            mebibytes(cost.collector.resident),
            if state == State::NotAsked {
                String::new()
            } else {
                format!("{:.1} s", cost.known.as_secs_f64())
            },
        );
    }
    drop(running);
    // No kubelet lets go of these pods: they end with the servers.
    std::mem::forget(cluster);
}
