//! Containers named by those who run them, containerd and Docker, through the proxy that holds their sockets.

use std::{
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use rustix::process::Signal;
use tests::{
    cluster::{Cluster, Pod},
    process::{Running, run},
    system::{Options, System, UPLOADER_USER, alone, as_user, built, ids, publish},
    wait::wait_for,
};
use workloads::{CallTree, Start};

use crate::containers::{targets, value, wait_for_sentence};

/// A proxy of a runtime's socket, run as a user who is nobody, in the group that may open it.
struct Proxy {
    folder: tempfile::TempDir,
    runtime: PathBuf,
    user: &'static str,
    running: Option<Running>,
}

impl Proxy {
    /// One for connections of this user.
    fn start(runtime: &Path, user: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o777)).unwrap();
        let name = "bulkhead-runtime-proxy";
        fs::copy(built().join(name), folder.path().join(name)).unwrap();
        let mut proxy = Proxy { folder, runtime: runtime.to_owned(), user, running: None };
        proxy.bring_back();
        proxy
    }

    fn bring_back(&mut self) {
        let line = [
            self.folder.path().join("bulkhead-runtime-proxy").display().to_string(),
            format!("--runtime={}", self.runtime.display()),
            format!("--socket={}", self.socket().display()),
            format!("--user={}", self.user),
        ];
        let mut setpriv = as_user("nobody");
        setpriv[1] = format!("--regid={}", fs::metadata(&self.runtime).unwrap().gid());
        let running = Running::start_line("the proxy", &setpriv, &line, &self.folder.path().join("log"));
        wait_for("the proxy listens", 10, || self.socket().exists().then_some(()));
        // In use its folder has the group of the uploader, and the socket so too.
        let (_, group) = ids(UPLOADER_USER);
        chown(self.socket(), None, Some(group)).unwrap();
        self.running = Some(running);
    }

    fn take_away(&mut self) {
        let mut running = self.running.take().unwrap();
        running.signal(Signal::TERM);
        assert!(running.wait_end(10).success(), "{}", running.output());
        let _ = fs::remove_file(self.socket());
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("runtime.sock")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Still there, with nothing wrong in its log.
    fn assert_well(&mut self) {
        let running = self.running.as_mut().unwrap();
        assert_eq!(running.status(), None, "{}", running.output());
        assert!(!running.output().contains("refused, and the process ends"), "{}", running.output());
    }
}

/// With windows that have time to ask a runtime on a machine that is busy.
fn system(flags: &[String]) -> System {
    let mut uploader_flags = vec!["--kubernetes=false".to_owned()];
    uploader_flags.extend(flags.iter().cloned());
    System::start(Options { window: "6s", uploader_flags, store: true, ..Options::default() })
}

fn socket_flag(socket: &Path) -> String {
    format!("--socket-path={}", socket.display())
}

/// Of a profile of `tree-bare`, each leaf has its share.
fn assert_shares(system: &System, selector: &str) {
    let profile = system.collect(selector, 300, 90);
    for (names, share) in CallTree::standard("tree-bare", Start::Bare).expected() {
        let leaf = profile.count(|stack| stack.user().next().is_some_and(|frame| frame.name == names[0]));
        let leaf = leaf as f64 / profile.total() as f64;
        assert!((leaf - share).abs() < 0.12, "{}: {leaf} instead of {share}\n{}", names[0], profile.dump());
    }
}

/// What a request to a socket is answered: what curl prints for this format.
fn curl(socket: &Path, arguments: &[&str], format: &str) -> String {
    let mut command = Command::new("curl");
    command.args(["--silent", "--max-time", "20", "--output", "/dev/null", "--write-out", format]);
    let output = command.arg("--unix-socket").arg(socket).args(arguments).output().unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// How often a call is made that is not answered.
const ATTEMPTS: usize = 10;

/// The status (of gRPC) that a call with an empty message ends with.
fn call(socket: &Path, method: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    // A message that is not compressed, of no bytes.
    let message = folder.path().join("message");
    fs::write(&message, [0; 5]).unwrap();
    let data = format!("@{}", message.display());
    let url = format!("http://runtime.invalid/runtime.v1.RuntimeService/{method}");
    let headers = folder.path().join("headers");
    let headers_flag = headers.display().to_string();
    let arguments = [
        "--http2-prior-knowledge",
        "--header",
        "content-type: application/grpc",
        "--header",
        "te: trailers",
        "--dump-header",
        &headers_flag,
        "--data-binary",
        &data,
        &url,
    ];
    // Now and then curl shows no answer at all, which says nothing of the call.
    let answered = (0..ATTEMPTS).find_map(|_| {
        curl(socket, &arguments, "");
        let headers = fs::read_to_string(&headers).unwrap_or_default();
        headers.lines().find_map(|line| Some(line.strip_prefix("grpc-status: ")?.trim().to_owned()))
    });
    answered.unwrap_or_else(|| "none".into())
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn containerd_names_the_containers_of_pods() {
    let _alone = alone();
    let cluster = Cluster::find();
    let mut proxy = Proxy::start(&cluster.path("containerd.sock"), UPLOADER_USER);
    let folder = tempfile::tempdir().unwrap();
    let rules = "relabel_configs:\n\
        - {source_labels: [__meta_kubernetes_pod_label_app], target_label: app}\n\
        - {source_labels: [__meta_kubernetes_pod_container_name], target_label: container_name}\n";
    let rules = publish(folder.path(), "bulkhead.yaml", rules);
    let system = system(&[socket_flag(&proxy.socket()), format!("--config-path={rules}")]);
    wait_for_sentence(&system, "containerd (bulkhead-runtime-proxy)");
    let pod = Pod { labels: vec![("app", "shop")], ..Pod::of("by-cri", "exec /tree-bare") };
    cluster.run(&pod, "Running");
    let id = cluster.container_id("by-cri", "main").unwrap();
    let selector = format!(
        "{{comm=\"tree-bare\",namespace=\"default\",pod=\"by-cri\",container=\"main\",containerid=\"{id}\",app=\"shop\",container_name=\"main\"}}"
    );
    assert_shares(&system, &selector);
    // Whole containers that live for 20 ms, or a little more.
    for number in 0..5 {
        cluster.run(&Pod::of(&format!("moment-{number}"), "exec /brief"), "Succeeded");
    }
    let moments = |named: bool| {
        let brief = targets(&system, "brief").into_iter();
        brief.filter(|labels| (value(labels, "container") == "main") == named).count()
    };
    wait_for("most have been sampled", 60, || (moments(true) >= 3).then_some(()));
    assert_eq!(moments(false), 0, "{:?}", targets(&system, "brief"));
    // No warning: what this socket can do is harmless.
    assert!(!system.place().log("uploader").contains("as good as root"));
    proxy.assert_well();
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn docker_names_its_containers_as_they_come_and_go() {
    let _alone = alone();
    let cluster = Cluster::find();
    let mut proxy = Proxy::start(&cluster.path("docker.sock"), UPLOADER_USER);
    let folder = tempfile::tempdir().unwrap();
    let rules = "relabel_configs:\n\
        - {source_labels: [__meta_docker_container_label_com_docker_compose_service], target_label: service}\n\
        - {source_labels: [__meta_docker_container_image], target_label: container_image}\n";
    let rules = publish(folder.path(), "bulkhead.yaml", rules);
    let image = "bulkhead.test/workload:1";
    let run = |name: &str, more: &[&str]| {
        let line = [&["run", "--detach", "--network=none", "--rm", "--name", name][..], more].concat();
        cluster.docker(&line)
    };
    let early = run("early", &[image, "/tree-bare"]);
    let system = system(&[socket_flag(&proxy.socket()), format!("--config-path={rules}")]);
    let id = run("web", &["--label=com.docker.compose.service=shop", image, "/tree-bare"]);
    assert_shares(
        &system,
        &format!(
            "{{comm=\"tree-bare\",container=\"web\",containerid=\"{id}\",service=\"shop\",container_image=\"{image}\"}}"
        ),
    );
    system.collect(&format!("{{comm=\"tree-bare\",container=\"early\",containerid=\"{early}\"}}"), 20, 60);
    // Docker forgets these at once: that they begin is told as it happens. Of each there are two samples or so.
    for number in 0..6 {
        run(&format!("moment-{number}"), &[image, "/brief"]);
    }
    let moments = |prefix: &str| {
        let brief = targets(&system, "brief").into_iter();
        brief.filter(|labels| value(labels, "container").starts_with(prefix)).count()
    };
    wait_for("most have been sampled", 60, || (moments("moment-") >= 3).then_some(()));
    assert_eq!(moments(""), moments("moment-"), "{:?}", targets(&system, "brief"));

    // The proxy goes away, and comes back: names stay, and new ones come again.
    proxy.take_away();
    wait_for_sentence(&system, "has told of no containers for");
    system.collect("{comm=\"tree-bare\",container=\"web\"}", 20, 60);
    proxy.bring_back();
    wait_for_sentence(&system, "tells of");
    // Docker itself goes, and is started again.
    let process = fs::read_to_string(cluster.path("docker.pid")).unwrap();
    let process = rustix::process::Pid::from_raw(docker_pid(process.trim())).unwrap();
    rustix::process::kill_process(process, Signal::KILL).unwrap();
    wait_for_sentence(&system, "has told of no containers for");
    wait_for_sentence(&system, "tells of");
    run("late", &[image, "/tree-bare"]);
    system.collect("{comm=\"tree-bare\",container=\"late\"}", 20, 60);
    proxy.assert_well();
}

/// The pid here of Docker's, which has written down the one that it has in its own namespace.
fn docker_pid(own: &str) -> i32 {
    let status = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("status")).ok()?;
        let is_docker = text.lines().any(|line| line == "Name:\tdockerd");
        let has_pid = text
            .lines()
            .any(|line| line.starts_with("NSpid:") && line.split_whitespace().last() == Some(own));
        if is_docker && has_pid { entry.file_name().to_str()?.parse().ok() } else { None }
    };
    fs::read_dir("/proc").unwrap().flatten().find_map(status).expect("dockerd")
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn nothing_but_lists_comes_through_the_proxy() {
    let _alone = alone();
    let cluster = Cluster::find();
    let cri = cluster.path("containerd.sock");
    let docker = cluster.path("docker.sock");
    let (mut cri_proxy, mut docker_proxy) = (Proxy::start(&cri, "root"), Proxy::start(&docker, "root"));
    let (of_cri, of_docker) = (cri_proxy.socket(), docker_proxy.socket());

    for method in ["Version", "ListContainers", "ListPodSandbox"] {
        assert_eq!((call(&cri, method), call(&of_cri, method)), ("0".into(), "0".into()), "{method}");
    }
    // All others there are, in the interface of this version of Kubernetes. The runtime knows most of them; 12: there is no such call.
    for method in [
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
        "PodSandboxStatus",
        "CreateContainer",
        "StartContainer",
        "StopContainer",
        "RemoveContainer",
        "ContainerStatus",
        "UpdateContainerResources",
        "ReopenContainerLog",
        "ExecSync",
        "Exec",
        "Attach",
        "PortForward",
        "ContainerStats",
        "ListContainerStats",
        "PodSandboxStats",
        "ListPodSandboxStats",
        "UpdateRuntimeConfig",
        "Status",
        "CheckpointContainer",
        "GetContainerEvents",
        "ListMetricDescriptors",
        "ListPodSandboxMetrics",
        "RuntimeConfig",
    ] {
        assert_eq!(call(&of_cri, method), "12", "{method}");
    }
    assert_ne!(call(&cri, "Status"), "12", "the runtime itself has it");

    let status = |socket: &Path, arguments: &[&str]| curl(socket, arguments, "%{http_code}");
    for path in ["/version", "/containers/json"] {
        assert_eq!(status(&of_docker, &[&format!("http://d{path}")]), "200", "{path}");
    }
    let id = cluster.docker(&[
        "create",
        "--env=TOKEN=word",
        "--network=none",
        "bulkhead.test/workload:1",
        "/busybox",
        "sleep",
        "600",
    ]);
    let inspect = format!("/containers/{id}/json");
    for (path, is_there) in [
        ("/info", true),
        ("/images/json", true),
        (inspect.as_str(), true),
        ("/v1.41/containers/json", true),
        ("/containers/json/", false),
        ("/containers/../info", true),
        ("//info", false),
        ("/%69nfo", true),
    ] {
        let url = format!("http://d{path}");
        let arguments = ["--path-as-is", url.as_str()];
        assert_eq!(status(&of_docker, &arguments), "404", "{path}");
        if is_there {
            assert_ne!(status(&docker, &arguments), "404", "{path}");
        }
    }
    // What it lists of it: no command, and nothing of its environment.
    cluster.docker(&["start", &id]);
    let socket = of_docker.display().to_string();
    let (_, listed) =
        run(&["curl", "--silent", "--max-time", "20", "--unix-socket", &socket, "http://d/containers/json"]);
    assert!(listed.contains(&id), "{listed}");
    for secret in ["word", "TOKEN", "Command", "busybox", "Mounts"] {
        assert!(!listed.contains(secret), "{secret}: {listed}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in
            ["/containers/json", "/version", "/events", "/containers/create", &format!("/containers/{id}")]
        {
            let status = status(&of_docker, &["--request", method, &format!("http://d{path}")]);
            assert!(["404", "405"].contains(&status.as_str()), "{method} {path}: {status}");
        }
    }
    assert!(cluster.docker(&["ps", "--all", "--no-trunc"]).contains(&id), "it is still there");
    cluster.docker(&["rm", "--force", &id]);

    // Others than the user who may are turned away before a byte of theirs is read.
    fs::set_permissions(&of_docker, Permissions::from_mode(0o777)).unwrap();
    let mut stranger = Command::new("setpriv");
    stranger.args(as_user(UPLOADER_USER)).args(["curl", "--silent", "--unix-socket"]);
    let output = stranger.arg(&of_docker).arg("http://d/version").output().unwrap();
    assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
    wait_for("it says so", 10, || docker_proxy.log().contains("was turned away").then_some(()));
    cri_proxy.assert_well();
    docker_proxy.assert_well();
}

#[test]
#[ignore = "needs a Kubernetes node: script/test-servers runs it on one"]
fn a_socket_itself_is_used_with_a_warning() {
    let _alone = alone();
    let cluster = Cluster::find();
    let docker = cluster.path("docker.sock");
    let system = system(&[socket_flag(&docker)]);
    // The uploader's user may not open it.
    wait_for_sentence(&system, "Permission denied");
    let (_, group) = ids(UPLOADER_USER);
    let before = fs::metadata(&docker).unwrap().gid();
    chown(&docker, None, Some(group)).unwrap();
    wait_for_sentence(&system, "tells of");
    chown(&docker, None, Some(before)).unwrap();
    let log = system.place().log("uploader");
    assert!(log.contains("whoever may open this socket is as good as root"), "{log}");
    assert!(system.metric("bulkhead_runtime_following") >= 1.0);
}
