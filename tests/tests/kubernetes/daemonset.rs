//! What `deploy/kubernetes` ships: accepted by an API server, and run by a kubelet.

use std::fs;

use serde_json::{Value, json};
use tests::{
    cluster::{Cluster, NODE, Pod},
    http,
    system::{alone, free_port, status_fields},
    wait::wait_for,
};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes");

/// The pod that the `DaemonSet` has on each node.
fn template(cluster: &Cluster) -> Value {
    let base = cluster.kubectl(&["kustomize", &format!("{DEPLOY}/base")], "");
    let parts: Vec<Value> = base
        .split("---\n")
        .map(|part| {
            let json = cluster
                .kubectl(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], part);
            serde_json::from_str(&json).unwrap()
        })
        .collect();
    let set = parts.into_iter().find(|part| part["kind"] == "DaemonSet").unwrap();
    set["spec"]["template"].clone()
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn an_api_server_takes_what_is_shipped() {
    let _alone = alone();
    let cluster = Cluster::find();
    for name in [".", "base", "overlays/parca-store", "overlays/localhost-seccomp"] {
        let folder = format!("{DEPLOY}/{name}");
        let said = cluster.kubectl(&["apply", "--dry-run=server", "-k", &folder], "");
        assert!(said.contains("daemonset.apps/bulkhead created (server dry run)"), "{said}");
    }
    // Pod Security: the uploader's container by itself meets the strictest standard, the collector's does not.
    let strict = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: strict\n  labels: {pod-security.kubernetes.io/enforce: restricted}\n";
    cluster.kubectl(&["apply", "-f", "-"], strict);
    let template = template(&cluster);
    let only = |index: usize| {
        let mut spec = template["spec"].clone();
        spec["containers"] = json!([template["spec"]["containers"][index]]);
        spec["hostPID"] = false.into();
        spec["serviceAccountName"] = Value::Null;
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "part", "namespace": "strict"}, "spec": spec})
    };
    cluster.kubectl(&["create", "serviceaccount", "default", "--namespace=strict"], "");
    let apply =
        |pod: &Value| cluster.try_kubectl(&["apply", "--dry-run=server", "-f", "-"], &pod.to_string());
    let said = apply(&only(1)).unwrap();
    assert!(said.contains("pod/part created"), "{said}");
    let refused = apply(&only(0)).unwrap_err();
    assert!(refused.contains("violates PodSecurity \"restricted"), "{refused}");
    cluster.kubectl(&["delete", "namespace", "strict", "--wait=false"], "");
}

/// The template as a pod of this node. What a cluster has and this node lacks is put in its place: a network of its own and the service
/// that leads to the API server.
fn pod(cluster: &Cluster, page: u16, status: u16) -> Value {
    let mut template = template(cluster);
    let spec = &mut template["spec"];
    spec["hostNetwork"] = true.into();
    spec["nodeName"] = NODE.into();
    let uploader = &mut spec["containers"][1];
    let arguments = uploader["args"].as_array_mut().unwrap();
    for argument in arguments.iter_mut() {
        let text = argument.as_str().unwrap();
        *argument = text.replace(":7071", &format!(":{page}")).replace(":7072", &format!(":{status}")).into();
    }
    arguments.push("--profiling-duration=2s".into());
    uploader["ports"][0]["containerPort"] = status.into();
    let server = fs::read_to_string(cluster.path("admin")).unwrap();
    let port = server.split("https://127.0.0.1:").nth(1).unwrap();
    let port: String = port.chars().take_while(char::is_ascii_digit).collect();
    let environment = uploader["env"].as_array_mut().unwrap();
    environment.push(json!({"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"}));
    environment.push(json!({"name": "KUBERNETES_SERVICE_PORT", "value": port}));
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": "bulkhead-1", "namespace": "bulkhead", "labels": template["metadata"]["labels"]},
    })
}

fn pid_of(program: &str, word: &str) -> u32 {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let pid = processes.filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).into_owned();
        let is_it = line.split('\0').next() == Some(program) && line.contains(word);
        if is_it { entry.file_name().to_str()?.parse().ok() } else { None }
    });
    pid.last().unwrap_or_else(|| panic!("{program} runs"))
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn a_kubelet_runs_the_daemonset() {
    let _alone = alone();
    let cluster = Cluster::find();
    // A cluster's controllers would do this.
    let ca = cluster.path("public/apiserver.crt");
    let ca = format!("--from-file=ca.crt={}", ca.display());
    let config = cluster.kubectl(
        &[
            "create",
            "configmap",
            "kube-root-ca.crt",
            "--namespace=bulkhead",
            &ca,
            "--dry-run=client",
            "-o",
            "yaml",
        ],
        "",
    );
    cluster.kubectl(&["apply", "-f", "-"], &config);
    cluster.run(&Pod::of("busy", "exec /tree-bare"), "Running");
    let (page, status) = (free_port(), free_port());
    cluster.kubectl(&["apply", "-f", "-"], &pod(&cluster, page, status).to_string());
    let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}";
    let show = || {
        let log = |half: &str| {
            cluster
                .try_kubectl(
                    &[
                        "logs",
                        "bulkhead-1",
                        "--namespace=bulkhead",
                        "--insecure-skip-tls-verify-backend",
                        "-c",
                        half,
                    ],
                    "",
                )
                .unwrap_or_else(|error| error)
        };
        let events = cluster
            .kubectl(&["get", "pod", "bulkhead-1", "--namespace=bulkhead", "-o", "jsonpath={.status}"], "");
        format!("{events}\n{}\n{}", log("collector"), log("uploader"))
    };
    let is_ready = std::panic::catch_unwind(|| {
        wait_for("the pod is ready", 90, || {
            let said =
                cluster.kubectl(&["get", "pod", "bulkhead-1", "--namespace=bulkhead", "-o", ready], "");
            (said == "True").then_some(())
        });
    });
    assert!(is_ready.is_ok(), "{}", show());

    let address = format!("127.0.0.1:{page}");
    wait_for("a profile of the other pod", 60, || {
        let targets = http::get(&address, "/api/targets", &[]).ok()?;
        let targets: Vec<Value> = serde_json::from_slice(&targets.body).ok()?;
        targets.into_iter().find(|target| {
            let labels = &target["labels"];
            labels["comm"] == "tree-bare"
                && labels["pod"] == "busy"
                && labels["container"] == "main"
                && labels["node"] == NODE
        })
    });
    // Who may only see how it goes sees no profile.
    let status_address = format!("127.0.0.1:{status}");
    let ask = |path: &str| http::get(&status_address, path, &[]).unwrap();
    assert_eq!((ask("/healthz").status, ask("/readyz").status), (200, 200));
    assert!(ask("/metrics").text().contains("bulkhead_kubernetes_following 1"));
    for path in ["/", "/query", "/api/targets"] {
        assert_eq!(ask(path).status, 404, "{path}");
    }

    // What each half has, as the kernel says.
    let fields = ["Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Groups"];
    let collector = status_fields(pid_of("/bulkhead-collector", "--uploader-user=10072"), &fields);
    let uploader = status_fields(pid_of("/bulkhead-uploader", &format!(":{page}")), &fields);
    // SYS_PTRACE, DAC_READ_SEARCH and CHECKPOINT_RESTORE (include/uapi/linux/capability.h).
    let kept = format!("{:016x}", 1_u64 << 19 | 1 << 2 | 1 << 40);
    assert_eq!((collector["CapEff"].as_str(), collector["NoNewPrivs"].as_str()), (kept.as_str(), "1"));
    assert_eq!(
        (uploader["CapEff"].as_str(), uploader["CapBnd"].as_str()),
        ("0000000000000000", "0000000000000000")
    );
    assert!(uploader["Uid"].starts_with("10072\t") && uploader["NoNewPrivs"] == "1", "{uploader:?}");
    assert!(collector["Uid"].starts_with("10071\t"), "{collector:?}");
    assert_eq!((collector["Seccomp"].as_str(), uploader["Seccomp"].as_str()), ("2", "2"));

    // The collector ends, and is started again beside the uploader.
    let before = pid_of("/bulkhead-collector", "--uploader-user=10072");
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(before.cast_signed()).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    wait_for("another collector is connected", 90, || {
        let metrics = ask("/metrics").text();
        metrics.contains("bulkhead_collector_restarts_total 1").then_some(())
    });
    cluster.kubectl(&["delete", "pod", "bulkhead-1", "--namespace=bulkhead", "--now", "--wait"], "");
}
