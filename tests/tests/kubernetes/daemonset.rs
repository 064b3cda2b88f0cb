//! What `deploy/kubernetes` ships: accepted by an API server, and run on a node by the `DaemonSet`'s own controller, a scheduler and a kubelet.

use std::fs;

use serde_json::{Value, json};
use tests::{
    cluster::{Cluster, NODE, Pod},
    http,
    system::{alone, free_port, status_fields},
    wait::wait_for,
};

const DEPLOY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes");

/// All that a folder of `deploy/kubernetes` makes.
fn objects(cluster: &Cluster, folder: &str) -> Vec<Value> {
    let text = cluster.kubectl(&["kustomize", &format!("{DEPLOY}/{folder}")], "");
    let parts = text.split("---\n").map(|part| {
        let json = cluster
            .kubectl(&["create", "--dry-run=client", "--validate=false", "-o", "json", "-f", "-"], part);
        serde_json::from_str(&json).unwrap()
    });
    parts.collect()
}

fn find(objects: &[Value], kind: &str) -> Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap().clone()
}

/// The pod that the `DaemonSet` has on each node.
fn template(cluster: &Cluster, folder: &str) -> Value {
    find(&objects(cluster, folder), "DaemonSet")["spec"]["template"].clone()
}

/// What the pod and its two containers may do, and what of the node they see: no more than this.
fn check_what_is_allowed(objects: &[Value], folder: &str) {
    let spec = find(objects, "DaemonSet")["spec"]["template"]["spec"].clone();
    let flags =
        ["hostPID", "hostNetwork", "hostIPC", "automountServiceAccountToken"].map(|name| spec[name] == true);
    assert_eq!(flags, [true, false, false, false], "{folder}");
    let containers = spec["containers"].as_array().unwrap();
    let names: Vec<_> = containers.iter().map(|container| container["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["collector", "uploader"], "{folder}");
    let six = json!(["BPF", "PERFMON", "SYS_PTRACE", "DAC_READ_SEARCH", "CHECKPOINT_RESTORE", "SYSLOG"]);
    for (container, (user, added)) in containers.iter().zip([(10071, six), (10072, Value::Null)]) {
        let context = &container["securityContext"];
        let may = ["privileged", "allowPrivilegeEscalation"].map(|name| context[name].clone());
        assert_eq!(may, [json!(false), json!(false)], "{folder}");
        assert_eq!(
            (&context["readOnlyRootFilesystem"], &context["runAsNonRoot"]),
            (&json!(true), &json!(true))
        );
        assert_eq!(
            (&context["runAsUser"], &context["capabilities"]["drop"]),
            (&json!(user), &json!(["ALL"]))
        );
        assert_eq!(context["capabilities"]["add"], added, "{folder}");
        assert_ne!(context["seccompProfile"]["type"], "Unconfined", "{folder}");
        for kind in ["requests", "limits"] {
            let resources = &container["resources"][kind];
            assert!(resources["cpu"].is_string() && resources["memory"].is_string(), "{folder} {kind}");
        }
    }
    for probe in ["livenessProbe", "readinessProbe"] {
        assert!(containers[1][probe]["httpGet"]["path"].is_string(), "{folder} {probe}");
    }
    let volumes = spec["volumes"].as_array().unwrap();
    assert!(volumes.iter().all(|volume| volume["hostPath"].is_null()), "{folder}");
    let socket = volumes.iter().find(|volume| volume["name"] == "socket").unwrap();
    assert_eq!(socket["emptyDir"]["medium"], "Memory", "{folder}");
    assert_eq!(
        find(objects, "ClusterRole")["rules"],
        json!([
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]},
            {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]},
        ]),
        "{folder}"
    );
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
        check_what_is_allowed(&objects(&cluster, name), name);
    }
    // Pod Security: the uploader's container by itself meets the strictest standard, the collector's does not.
    let strict = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: strict\n  labels: {pod-security.kubernetes.io/enforce: restricted}\n";
    cluster.kubectl(&["apply", "-f", "-"], strict);
    let template = template(&cluster, "base");
    let only = |index: usize| {
        let mut spec = template["spec"].clone();
        spec["containers"] = json!([template["spec"]["containers"][index]]);
        spec["hostPID"] = false.into();
        spec["serviceAccountName"] = Value::Null;
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "part", "namespace": "strict"}, "spec": spec})
    };
    wait_for("the namespace has its account", 30, || {
        cluster.try_kubectl(&["get", "serviceaccount", "default", "--namespace=strict"], "").ok()
    });
    let apply =
        |pod: &Value| cluster.try_kubectl(&["apply", "--dry-run=server", "-f", "-"], &pod.to_string());
    let said = apply(&only(1)).unwrap();
    assert!(said.contains("pod/part created"), "{said}");
    let refused = apply(&only(0)).unwrap_err();
    assert!(refused.contains("violates PodSecurity \"restricted"), "{refused}");
    cluster.kubectl(&["delete", "namespace", "strict", "--wait=false"], "");
}

/// The `DaemonSet` of one of the folders, in the cluster. What others have and this one lacks is put in its place: a network of the pod's
/// own, and the service that leads to the API server.
struct Deployed {
    cluster: Cluster,
    page: u16,
    status: u16,
}

impl Deployed {
    fn new(cluster: Cluster, folder: &str) -> Self {
        let (page, status) = (free_port(), free_port());
        let mut daemon_set = find(&objects(&cluster, folder), "DaemonSet");
        let spec = &mut daemon_set["spec"]["template"]["spec"];
        spec["hostNetwork"] = true.into();
        let uploader = &mut spec["containers"][1];
        let arguments = uploader["args"].as_array_mut().unwrap();
        for argument in arguments.iter_mut() {
            let text = argument.as_str().unwrap();
            *argument =
                text.replace(":7071", &format!(":{page}")).replace(":7072", &format!(":{status}")).into();
        }
        arguments.push("--profiling-duration=2s".into());
        uploader["ports"][0]["containerPort"] = status.into();
        let server = fs::read_to_string(cluster.path("admin")).unwrap();
        let port = server.split("https://127.0.0.1:").nth(1).unwrap();
        let port: String = port.chars().take_while(char::is_ascii_digit).collect();
        let environment = uploader["env"].as_array_mut().unwrap();
        environment.push(json!({"name": "KUBERNETES_SERVICE_HOST", "value": "127.0.0.1"}));
        environment.push(json!({"name": "KUBERNETES_SERVICE_PORT", "value": port}));
        cluster.kubectl(&["apply", "-f", "-"], &daemon_set.to_string());
        Deployed { cluster, page, status }
    }

    fn kubectl(&self, arguments: &[&str]) -> Result<String, String> {
        self.cluster.try_kubectl(&[arguments, &["--namespace=bulkhead"]].concat(), "")
    }

    /// A part of each of its pods, as kubectl's jsonpath has it.
    fn of_pods(&self, path: &str) -> String {
        let output = format!("jsonpath={{range .items[*]}}{path}{{end}}");
        self.kubectl(&["get", "pods", "--selector=app.kubernetes.io/name=bulkhead", "-o", &output]).unwrap()
    }

    /// Waits until the newest of its pods is ready, and the only one.
    fn wait_until_ready(&self) {
        let rolled_out = self.kubectl(&["rollout", "status", "daemonset/bulkhead", "--timeout=120s"]);
        if rolled_out.is_err() {
            let log = |half: &str| {
                self.kubectl(&[
                    "logs",
                    "daemonset/bulkhead",
                    "--insecure-skip-tls-verify-backend",
                    "-c",
                    half,
                ])
                .unwrap_or_else(|error| error)
            };
            let pods = self.of_pods("{.status}");
            panic!("{rolled_out:?}: {pods}\n{}\n{}", log("collector"), log("uploader"));
        }
        let nodes = self.of_pods("{.spec.nodeName} {.metadata.ownerReferences[*].kind};");
        assert_eq!(nodes, format!("{NODE} DaemonSet;"));
    }

    /// A profile of the pod `busy`, by the page.
    fn wait_for_profile_of_busy(&self) {
        let address = format!("127.0.0.1:{}", self.page);
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
    }

    /// Takes it away again, with its pods.
    fn remove(&self) {
        self.kubectl(&["delete", "daemonset", "bulkhead", "--wait", "--cascade=foreground"]).unwrap();
        wait_for("its pods are gone", 60, || self.of_pods("{.metadata.name}").is_empty().then_some(()));
    }
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
fn the_profile_of_system_calls_that_is_shipped_is_enough() {
    let _alone = alone();
    let cluster = Cluster::find();
    cluster.run(&Pod::of("busy", "exec /tree-bare"), "Running");
    // Where a kubelet looks for profiles of its node.
    let profile = cluster.path("kubelet/seccomp/bulkhead-collector.json");
    fs::create_dir_all(profile.parent().unwrap()).unwrap();
    let _ = fs::remove_file(&profile);
    let deployed = Deployed::new(cluster, ".");
    // A node without the file starts no collector, and says why.
    wait_for("the pod says which file is missing", 60, || {
        let said = deployed.of_pods("{.status.containerStatuses[*].state.waiting.message}");
        said.contains("bulkhead-collector.json").then_some(())
    });
    fs::copy(format!("{DEPLOY}/seccomp/bulkhead-collector.json"), &profile).unwrap();
    deployed.wait_until_ready();
    deployed.wait_for_profile_of_busy();
    // The profile's filter, and the collector's own two.
    let collector =
        status_fields(pid_of("/bulkhead-collector", "--uploader-user=10072"), &["Seccomp_filters"]);
    assert_eq!(collector["Seccomp_filters"], "3");
    deployed.remove();
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn a_node_runs_the_daemonset() {
    let _alone = alone();
    let cluster = Cluster::find();
    cluster.run(&Pod::of("busy", "exec /tree-bare"), "Running");
    let deployed = Deployed::new(cluster, "base");
    deployed.wait_until_ready();
    deployed.wait_for_profile_of_busy();
    // Who may only see how it goes sees no profile.
    let status_address = format!("127.0.0.1:{}", deployed.status);
    let ask = |path: &str| http::get(&status_address, path, &[]).unwrap();
    assert_eq!((ask("/healthz").status, ask("/readyz").status), (200, 200));
    assert!(ask("/metrics").text().contains("bulkhead_kubernetes_following 1"));
    for path in ["/", "/query", "/api/targets"] {
        assert_eq!(ask(path).status, 404, "{path}");
    }

    // What each half has, as the kernel says.
    let fields = ["Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Groups"];
    let collector = status_fields(pid_of("/bulkhead-collector", "--uploader-user=10072"), &fields);
    let uploader = status_fields(pid_of("/bulkhead-uploader", &format!(":{}", deployed.page)), &fields);
    // SYS_PTRACE, DAC_READ_SEARCH and CHECKPOINT_RESTORE (include/uapi/linux/capability.h).
    let kept = format!("{:016x}", 1_u64 << 19 | 1 << 2 | 1 << 40);
    assert_eq!((collector["CapEff"].as_str(), collector["NoNewPrivs"].as_str()), (kept.as_str(), "1"));
    // BPF, PERFMON and SYSLOG beside these.
    let given = format!("{:016x}", 1_u64 << 19 | 1 << 2 | 1 << 40 | 1 << 39 | 1 << 38 | 1 << 34);
    assert_eq!(collector["CapBnd"], given);
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

    // Another version takes the place of this one, and profiles what runs.
    let before = deployed.of_pods("{.metadata.uid}");
    deployed.kubectl(&["rollout", "restart", "daemonset/bulkhead"]).unwrap();
    deployed.wait_until_ready();
    assert_ne!(deployed.of_pods("{.metadata.uid}"), before);
    deployed.wait_for_profile_of_busy();
    deployed.remove();
}
