//! The Kubernetes node that `script/test-servers` runs: a real API server, controllers, a scheduler, a kubelet and containerd.

use std::{
    env,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{system::publish, wait::wait_for};

/// The node's name.
pub const NODE: &str = "node-1";

/// The servers. Pods and containers that a test has made are deleted when it is dropped.
#[derive(Debug)]
pub struct Cluster {
    folder: PathBuf,
}

impl Cluster {
    /// That which `script/test-servers` has started. Makes the account of `deploy/kubernetes`, and a token for it.
    pub fn find() -> Self {
        let folder = env::var_os("BULKHEAD_CLUSTER").expect("script/test-servers runs these tests");
        let cluster = Cluster { folder: folder.into() };
        let rendered = cluster
            .kubectl(&["kustomize", concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/base")], "");
        let is_account = |part: &&str| {
            ["kind: Namespace", "kind: ServiceAccount", "kind: ClusterRole", "kind: ClusterRoleBinding"]
                .iter()
                .any(|kind| part.lines().any(|line| line == *kind))
        };
        let parts: Vec<_> = rendered.split("---\n").filter(is_account).collect();
        cluster.kubectl(&["apply", "-f", "-"], &parts.join("---\n"));
        let token = cluster.kubectl(&["create", "token", "bulkhead-uploader", "--namespace=bulkhead"], "");
        publish(&cluster.folder.join("public"), "token", &token);
        cluster
    }

    /// A file of `script/test-servers`.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The uploader's flags for one of the kubeconfigs that its user may read.
    pub fn flags(&self, kubeconfig: &str) -> Vec<String> {
        let path = self.path("public").join(kubeconfig);
        vec![format!("--kubeconfig={}", path.display()), format!("--node={NODE}")]
    }

    /// Runs kubectl with this on its standard input, and gives what it prints. Panics where it fails, but for a while not where the API server
    /// is slow.
    pub fn kubectl(&self, arguments: &[&str], input: &str) -> String {
        const SLOW: [&str; 4] = ["etcdserver:", "timed out", "timeout", "connection refused"];
        wait_for(&format!("kubectl {arguments:?}"), 60, || match self.try_kubectl(arguments, input) {
            Err(error) if SLOW.iter().any(|slow| error.contains(slow)) => {
                eprintln!("kubectl {arguments:?}: {error}");
                None
            }
            result => Some(result.unwrap_or_else(|error| panic!("kubectl {arguments:?}: {error}"))),
        })
    }

    /// The same; where it fails, the error is what kubectl says.
    pub fn try_kubectl(&self, arguments: &[&str], input: &str) -> Result<String, String> {
        let mut child = Command::new("kubectl")
            .args(arguments)
            .env("KUBECONFIG", self.path("admin"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|error| error.to_string())?;
        // It may end without reading it.
        let _ = child.stdin.take().expect("a pipe").write_all(input.as_bytes());
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Makes a pod and waits until the kubelet says that it has come so far (`Running`, `Succeeded`).
    pub fn run(&self, pod: &Pod, phase: &str) {
        self.kubectl(&["apply", "-f", "-"], &pod.manifest());
        wait_for(&format!("the pod {} is {phase}", pod.name), 180, || {
            let got = self.try_kubectl(&["get", "pod", &pod.name, "-o", "jsonpath={.status.phase}"], "");
            got.is_ok_and(|got| got == phase).then_some(())
        });
    }

    /// Deletes a pod at once.
    pub fn delete(&self, pod: &str) {
        self.kubectl(&["delete", "pod", pod, "--now", "--wait", "--ignore-not-found"], "");
    }

    /// The ids of a pod's containers, by name, as the API server tells them now.
    pub fn container_id(&self, pod: &str, container: &str) -> Option<String> {
        let path = format!("jsonpath={{.status.containerStatuses[?(@.name=='{container}')].containerID}}");
        let id = self.kubectl(&["get", "pod", pod, "-o", &path], "");
        id.strip_prefix("containerd://").map(str::to_owned)
    }

    /// Runs docker with these arguments, and gives what it prints. Panics where it fails.
    pub fn docker(&self, arguments: &[&str]) -> String {
        self.try_docker(arguments).unwrap_or_else(|error| panic!("docker {arguments:?}: {error}"))
    }

    fn try_docker(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = format!("unix://{}", self.path("docker.sock").display());
        let output = Command::new("docker").args(["-H", &socket]).args(arguments).output();
        let output = output.map_err(|error| error.to_string())?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Ends the API server, and keeps it away until [`Cluster::bring_back`].
    pub fn take_away(&self) {
        fs::write(self.path("away"), "").expect("a file");
        let server = self.path("accounts.key").display().to_string();
        for entry in fs::read_dir("/proc").expect("/proc").flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line);
            let pid = entry.file_name().to_str().and_then(|name| Pid::from_raw(name.parse().ok()?));
            if line.split('\0').next().is_some_and(|program| program.ends_with("/kube-apiserver"))
                && line.contains(&server)
                && let Some(pid) = pid
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }

    /// Lets the API server be started again, and waits until it is ready.
    pub fn bring_back(&self) {
        // It may be there already.
        let _ = fs::remove_file(self.path("away"));
        wait_for("the API server is ready again", 180, || {
            self.try_kubectl(&["get", "--raw=/readyz", "--request-timeout=2s"], "").ok()
        });
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.bring_back();
        let left = self.try_docker(&["ps", "--all", "--quiet"]).unwrap_or_default();
        let left: Vec<_> = left.split_whitespace().collect();
        if !left.is_empty() {
            let _ = self.try_docker(&[&["rm", "--force"][..], &left].concat());
        }
        let _ = self.try_kubectl(&["delete", "pods", "--all", "--now", "--wait", "--timeout=60s"], "");
    }
}

/// A pod to be made. Its containers are of the image that `script/test-servers` makes: a shell (`/busybox`), `/tree-bare` and `/brief`.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Vec<(&'static str, &'static str)>,
    /// Name and command of each container.
    pub containers: Vec<(&'static str, &'static str)>,
    /// The same of containers that run before those.
    pub init_containers: Vec<(&'static str, &'static str)>,
    /// Whether what has ended is started again (`Always`, `Never`).
    pub restart: &'static str,
}

impl Pod {
    /// One with a container `main` that runs this in a shell.
    pub fn of(name: &str, command: &'static str) -> Self {
        Pod { name: name.into(), containers: vec![("main", command)], restart: "Never", ..Pod::default() }
    }

    /// Its manifest. Without a network plugin it has the host's network. It says itself where it runs, as that of a static pod does.
    pub fn manifest(&self) -> String {
        let mut text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  labels:\n    test: yes-it-is\n",
            self.name
        );
        for (name, value) in &self.labels {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "    {name}: {value}");
        }
        let _ = write!(
            text,
            "spec:\n  hostNetwork: true\n  nodeName: {NODE}\n  automountServiceAccountToken: false\n  restartPolicy: {}\n  terminationGracePeriodSeconds: 1\n",
            self.restart
        );
        for (kind, containers) in
            [("initContainers", &self.init_containers), ("containers", &self.containers)]
        {
            let _ = writeln!(text, "  {kind}:");
            for (name, command) in containers {
                let _ = write!(
                    text,
                    "  - name: {name}\n    image: bulkhead.test/workload:1\n    imagePullPolicy: Never\n    env: [{{name: SECRET, value: secret-word}}]\n    command: [/busybox, sh, -c, {}]\n",
                    serde_json::Value::from(*command)
                );
            }
            if containers.is_empty() {
                text.truncate(text.trim_end().len());
                text.push_str(" []\n");
            }
        }
        text
    }
}
