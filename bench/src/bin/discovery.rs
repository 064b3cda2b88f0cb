//! What it costs to know containers by their names: memory and CPU of the uploader on a node with 1,000 pods and 5,000 processes, with and
//! without asking an API server. By `script/bench-discovery`. Prints a table in Markdown.

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
/// How long each state is measured, in turns.
const SECONDS: u64 = 60;
const TURNS: usize = 1;

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

/// Both halves for a while: what the uploader and the collector have used meanwhile, and how long the names took to be known.
fn measure(flags: Vec<String>, pods: usize) -> ([Usage; 2], Duration) {
    let system = System::start(Options { window: "10s", uploader_flags: flags, ..Options::default() });
    let begun = Instant::now();
    if pods > 0 {
        wait_for("all pods are known", 120, || {
            (system.metric("bulkhead_kubernetes_pods") >= pods as f64).then_some(())
        });
    }
    let known = begun.elapsed();
    // The first windows read what runs.
    thread::sleep(Duration::from_secs(30));
    let halves = [system.uploader_pid(), system.collector_pid()];
    let before = halves.map(usage);
    thread::sleep(Duration::from_secs(SECONDS));
    let mut after = halves.map(usage);
    for (after, before) in after.iter_mut().zip(before) {
        after.cpu -= before.cpu;
    }
    let targets: Vec<Value> = serde_json::from_slice(&system.get("/api/targets").body).expect("a list");
    let with_pod = targets.iter().filter(|target| target["labels"].get("pod").is_some()).count();
    eprintln!("{} targets, {with_pod} of them with a pod", targets.len());
    assert!((with_pod > PODS) == (pods > 0), "names are known where they are asked for");
    (after, known)
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
        "| pods | CPU of the uploader | its memory | CPU of the collector | its memory | all names known after |"
    );
    println!("|---|---|---|---|---|---|");
    for turn in 1..=TURNS {
        eprintln!("turn {turn} of {TURNS}");
        for (flags, pods) in [(vec!["--kubernetes=false".to_owned()], 0), (with.clone(), PODS)] {
            let ([uploader, collector], known) = measure(flags, pods);
            let share = |usage: Usage| usage.cpu / SECONDS as f64 * 100.0;
            let mebibytes = |usage: Usage| usage.resident as f64 / 1024.0;
            let known = if pods > 0 { format!("{:.1} s", known.as_secs_f64()) } else { String::new() };
            println!(
                "| {} | {:.2} % | {:.1} MiB | {:.2} % | {:.1} MiB | {known} |",
                if pods > 0 { pods.to_string() } else { "not asked for".into() },
                share(uploader),
                mebibytes(uploader),
                share(collector),
                mebibytes(collector),
            );
        }
    }
    drop(running);
    // No kubelet lets go of these pods: they end with the servers.
    std::mem::forget(cluster);
}
