//! From what runtimes list to what is kept of it.

use std::collections::{BTreeMap, HashMap};

use ::runtimes::{Container as Listed, DockerContainer, Event, PodSandbox};
use proto::cri::{ContainerState, PodSandboxState};

use crate::{
    discovery::{Container, Pod, offered},
    printable::printable,
    relabel::LabelMap,
};

/// Longest name of anything, in characters.
const MAX_NAME: usize = 253;
/// Longest name of an image that is kept, in characters.
const MAX_IMAGE: usize = 1024;
/// Labels that the kubelet puts beside those of a pod, or in place of them. (`pkg/kubelet/types/labels.go` in Kubernetes.)
const KUBELET: &str = "io.kubernetes.";

fn short(text: &str, limit: usize) -> String {
    printable(text.chars().take(limit).collect::<String>().as_bytes())
}

/// Labels for the rules, each under its name behind a prefix.
fn named<const N: usize>(prefix: &str, labels: [(&str, &str); N]) -> LabelMap {
    labels.map(|(name, value)| (format!("{prefix}_{name}"), value.to_owned())).into()
}

/// A pod of the kubelet's, which has no containers yet.
fn pod(uid: &str, namespace: &str, name: &str) -> Pod {
    let [uid, namespace, name] = [uid, namespace, name].map(|text| short(text, MAX_NAME));
    let labels = [("namespace", &*namespace), ("pod_name", &*name), ("pod_uid", &*uid)];
    Pod { meta: named("__meta_kubernetes", labels), uid, namespace, name, ..Pod::default() }
}

/// A container of such a pod.
fn container(id: &str, name: &str, image: &str) -> Container {
    let (id, name, image) = (short(id, MAX_NAME), short(name, MAX_NAME), short(image, MAX_IMAGE));
    let labels = [("id", &*id), ("name", &*name), ("image", &*image)];
    Container { meta: named("__meta_kubernetes_pod_container", labels), id, name }
}

/// The pods of the Container Runtime Interface. One whose sandbox was made again has several.
pub(super) fn pods(sandboxes: Vec<PodSandbox>, containers: Vec<Listed>) -> Vec<Pod> {
    let mut by_uid: BTreeMap<String, Pod> = BTreeMap::new();
    let mut uids = HashMap::new();
    for sandbox in sandboxes {
        let is_here = sandbox.state() == PodSandboxState::SandboxReady;
        let metadata = sandbox.metadata.unwrap_or_default();
        if metadata.uid.is_empty() {
            continue;
        }
        let mut found = pod(&metadata.uid, &metadata.namespace, &metadata.name);
        let mut labels: BTreeMap<_, _> = sandbox.labels.into_iter().collect();
        labels.retain(|name, _| !name.starts_with(KUBELET));
        found.meta.extend(offered("__meta_kubernetes_pod", "label", Some(&labels)));
        found.has_ended = !is_here;
        uids.insert(sandbox.id, found.uid.clone());
        let known = by_uid.entry(found.uid.clone()).or_insert_with(|| found.clone());
        if is_here && known.has_ended {
            *known = found;
        }
    }
    for listed in containers {
        let is_running = listed.state() == ContainerState::ContainerRunning;
        let Some(pod) = uids.get(&listed.pod_sandbox_id).and_then(|uid| by_uid.get_mut(uid)) else {
            continue;
        };
        let image = listed.image.unwrap_or_default();
        let image =
            if image.user_specified_image.is_empty() { image.image } else { image.user_specified_image };
        let name = listed.metadata.unwrap_or_default().name;
        pod.containers.push(container(&listed.id, &name, &image));
        pod.has_ended &= !is_running;
    }
    by_uid.into_values().collect()
}

/// A container of Docker's: by itself, or one that a kubelet runs by Docker.
pub(super) fn docker(listed: DockerContainer) -> Pod {
    let labels = listed.labels.unwrap_or_default();
    let label = |name: &str| {
        labels.get(&format!("{KUBELET}{name}")).map(String::as_str).filter(|text| !text.is_empty())
    };
    if let (Some(uid), Some(namespace), Some(name)) =
        (label("pod.uid"), label("pod.namespace"), label("pod.name"))
        && let Some(container_name) = label("container.name")
    {
        // Each container of a pod is told of by itself, so none may be that pod: it would take the place of the others.
        let own = Pod { uid: short(&listed.id, MAX_NAME), ..pod(uid, namespace, name) };
        let found = container(&listed.id, container_name, &listed.image);
        return Pod { cgroup_uid: Some(uid.to_owned()), containers: vec![found], ..own };
    }
    // Its own name has one slash; the others are what other containers call it (`--link`), in the order of the alphabet.
    let names = || listed.names.iter().map(|name| name.trim_start_matches('/'));
    let name = names().find(|name| !name.contains('/')).or(names().next()).unwrap_or_default();
    let (id, name) = (short(&listed.id, MAX_NAME), short(name, MAX_NAME));
    let image = short(&listed.image, MAX_IMAGE);
    let mut meta = named("__meta_docker_container", [("id", &*id), ("name", &*name), ("image", &*image)]);
    meta.extend(offered("__meta_docker_container", "label", Some(&labels)));
    let uid = id.clone();
    Pod { uid, containers: vec![Container { id, name, meta }], ..Pod::default() }
}

/// One that has begun.
pub(super) fn begun(event: Event) -> Pod {
    docker(event.into())
}

#[cfg(test)]
mod tests {
    use proto::cri::{ContainerMetadata, ImageSpec, PodSandboxMetadata};

    use super::*;

    fn sandbox(id: &str, uid: &str, state: PodSandboxState) -> PodSandbox {
        PodSandbox {
            id: id.into(),
            metadata: Some(PodSandboxMetadata {
                name: "web-1".into(),
                uid: uid.into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            state: state.into(),
            labels: [("app", "web"), ("io.kubernetes.pod.uid", uid)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            ..PodSandbox::default()
        }
    }

    fn listed(id: &str, sandbox: &str, state: ContainerState) -> Listed {
        Listed {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            metadata: Some(ContainerMetadata { name: "main".into(), attempt: 0 }),
            image: Some(ImageSpec { image: "sha256:1".into(), user_specified_image: "i:1".into() }),
            state: state.into(),
            ..Listed::default()
        }
    }

    #[test]
    fn a_pod_has_the_containers_of_all_its_sandboxes() {
        let sandboxes = vec![
            sandbox("s1", "u1", PodSandboxState::SandboxNotready),
            sandbox("s2", "u1", PodSandboxState::SandboxReady),
            sandbox("s3", "u2", PodSandboxState::SandboxNotready),
            sandbox("s4", "", PodSandboxState::SandboxReady),
        ];
        let containers = vec![
            listed("a", "s1", ContainerState::ContainerExited),
            listed("b", "s2", ContainerState::ContainerRunning),
            listed("c", "s3", ContainerState::ContainerExited),
            listed("d", "elsewhere", ContainerState::ContainerRunning),
        ];
        let found = pods(sandboxes, containers);
        let ids = |pod: &Pod| pod.containers.iter().map(|it| it.id.clone()).collect::<Vec<_>>();
        assert_eq!(found.len(), 2);
        assert_eq!((ids(&found[0]), found[0].has_ended), (vec!["a".to_owned(), "b".to_owned()], false));
        assert_eq!((ids(&found[1]), found[1].has_ended), (vec!["c".to_owned()], true));
        let meta = &found[0].meta;
        assert_eq!(meta["__meta_kubernetes_pod_label_app"], "web");
        assert!(!meta.keys().any(|name| name.contains("io_kubernetes")), "{meta:?}");
        assert_eq!(found[0].containers[1].meta["__meta_kubernetes_pod_container_image"], "i:1");
    }

    #[test]
    fn containers_of_docker_with_and_without_a_kubelet() {
        let own = DockerContainer {
            id: "ab".into(),
            names: vec!["/app/link".into(), "/web".into()],
            image: "i:1".into(),
            labels: Some([("com.docker.compose.service".to_owned(), "web".to_owned())].into()),
        };
        let found = docker(own.clone());
        assert_eq!((found.uid.as_str(), found.name.as_str(), found.namespace.as_str()), ("ab", "", ""));
        let container = &found.containers[0];
        assert_eq!(container.name, "web");
        assert_eq!(container.meta["__meta_docker_container_label_com_docker_compose_service"], "web");
        let labels =
            [("pod.uid", "u"), ("pod.namespace", "shop"), ("pod.name", "web-1"), ("container.name", "main")];
        let labels = labels.map(|(name, value)| (format!("{KUBELET}{name}"), value.to_owned()));
        let found = docker(DockerContainer { labels: Some(labels.into()), ..own });
        assert_eq!((found.namespace.as_str(), found.name.as_str()), ("shop", "web-1"));
        assert_eq!((found.containers[0].name.as_str(), found.cgroup_uid.as_deref()), ("main", Some("u")));
    }
}
