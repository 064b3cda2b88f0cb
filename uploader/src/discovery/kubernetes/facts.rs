//! From Kubernetes' objects to what is kept of them.

use k8s_openapi::{
    api::core::v1::{ContainerStatus, Pod as KubernetesPod, PodSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

use crate::{
    discovery::{Container, Pod, offered},
    printable::printable,
    relabel::LabelMap,
};

/// The uid that a static pod has in the node's cgroups. (`ConfigHashAnnotationKey` in the kubelet's `pkg/kubelet/types/pod_update.go`.)
const CONFIG_HASH: &str = "kubernetes.io/config.hash";

/// Longest name of anything (a DNS subdomain name, as the API has it), in bytes.
const MAX_NAME: usize = 253;
/// Longest name of an image that is kept, in characters.
const MAX_IMAGE: usize = 1024;
/// Most containers of one pod that are known.
const MAX_CONTAINERS: usize = 256;

/// What is kept of a pod. Labels for rules have the names that Prometheus gives them. `None`: it has no uid or no name, which is against
/// the API.
pub(super) fn pod(pod: &KubernetesPod) -> Option<Pod> {
    let metadata = &pod.metadata;
    let name_of = |text: &Option<String>| {
        let text = text.as_deref().filter(|text| text.len() <= MAX_NAME)?;
        Some(printable(text.as_bytes()))
    };
    let (uid, name) = (name_of(&metadata.uid)?, name_of(&metadata.name)?);
    let namespace = name_of(&metadata.namespace).unwrap_or_default();
    let annotations = metadata.annotations.as_ref();
    // Anybody may give a pod this annotation: one that has the form of other pods' uids is none of a static pod's.
    let is_hash = |hash: &&String| hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    let cgroup_uid = annotations.and_then(|all| all.get(CONFIG_HASH)).filter(is_hash).cloned();
    let (spec, status) = (pod.spec.as_ref(), pod.status.as_ref());

    let mut meta = offered("__meta_kubernetes_pod", "label", metadata.labels.as_ref());
    meta.extend(offered("__meta_kubernetes_pod", "annotation", annotations));
    let mut put = |name: &str, value: Option<&str>| {
        meta.extend(value.map(|value| (format!("__meta_kubernetes_{name}"), printable(value.as_bytes()))));
    };
    put("namespace", Some(&namespace));
    put("pod_name", Some(&name));
    put("pod_uid", Some(&uid));
    put("pod_node_name", spec.and_then(|spec| spec.node_name.as_deref()));
    put("pod_ip", status.and_then(|status| status.pod_ip.as_deref()));
    put("pod_host_ip", status.and_then(|status| status.host_ip.as_deref()));
    put("pod_phase", status.and_then(|status| status.phase.as_deref()));
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready = conditions.filter(|condition| condition.type_ == "Ready").map(|condition| &condition.status);
    put("pod_ready", Some(&ready.map(|status| status.to_lowercase()).next().unwrap_or("unknown".into())));
    let owners = metadata.owner_references.iter().flatten();
    if let Some(owner) = owners.into_iter().find(|owner| owner.controller == Some(true)) {
        put("pod_controller_kind", Some(&owner.kind));
        put("pod_controller_name", Some(&owner.name));
    }

    let lists = status.map(|status| {
        [
            (&status.container_statuses, false),
            (&status.init_container_statuses, true),
            (&status.ephemeral_container_statuses, false),
        ]
    });
    let statuses = lists
        .into_iter()
        .flatten()
        .flat_map(|(list, is_init)| list.iter().flatten().map(move |status| (status, is_init)));
    let containers =
        statuses.flat_map(|(status, is_init)| containers(status, image_of(spec, status), is_init));
    let containers = containers.take(MAX_CONTAINERS).collect();
    let phase = status.and_then(|status| status.phase.as_deref());
    let has_ended = matches!(phase, Some("Succeeded" | "Failed"));
    Some(Pod { uid, cgroup_uid, namespace, name, has_ended, meta, containers })
}

/// The image that was asked for, as Prometheus has it: the status names whichever of the image's names the runtime found.
fn image_of<'a>(spec: Option<&'a PodSpec>, status: &'a ContainerStatus) -> &'a str {
    let asked_for = spec.and_then(|spec| {
        let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
        let named = containers.map(|container| (&container.name, &container.image));
        let ephemeral = spec.ephemeral_containers.iter().flatten();
        let mut all = named.chain(ephemeral.map(|container| (&container.name, &container.image)));
        all.find(|(name, _)| **name == status.name)?.1.as_deref()
    });
    asked_for.unwrap_or(&status.image)
}

/// The container of a status, and the one before it, which may have ended before anybody was told that it ran.
fn containers(status: &ContainerStatus, image: &str, is_init: bool) -> Vec<Container> {
    let last = status.last_state.as_ref().and_then(|state| state.terminated.as_ref());
    let last = last.and_then(|state| state.container_id.as_deref());
    let mut ids: Vec<&str> = [status.container_id.as_deref(), last].into_iter().flatten().collect();
    ids.retain(|id| !bare(id).is_empty() && id.len() <= MAX_NAME);
    ids.dedup();
    let name = printable(status.name.chars().take(MAX_NAME).collect::<String>().as_bytes());
    let image = printable(image.chars().take(MAX_IMAGE).collect::<String>().as_bytes());
    ids.into_iter()
        .map(|id| Container {
            id: bare(id).to_owned(),
            name: name.clone(),
            meta: [
                ("id", printable(id.as_bytes())),
                ("name", name.clone()),
                ("image", image.clone()),
                ("init", is_init.to_string()),
            ]
            .map(|(name, value)| (format!("__meta_kubernetes_pod_container_{name}"), value))
            .into(),
        })
        .collect()
}

/// The id without the runtime's name: `containerd://ID`.
fn bare(id: &str) -> &str {
    id.split_once("://").map_or(id, |(_, id)| id)
}

/// What rules may know of the node.
pub(super) fn node(metadata: &ObjectMeta) -> LabelMap {
    let mut labels = offered("__meta_kubernetes_node", "label", metadata.labels.as_ref());
    labels.extend(offered("__meta_kubernetes_node", "annotation", metadata.annotations.as_ref()));
    labels.extend(metadata.name.clone().map(|name| ("__meta_kubernetes_node_name".to_owned(), name)));
    labels
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Option<Pod> {
        pod(&serde_json::from_str(text).unwrap())
    }

    #[test]
    fn all_kinds_of_containers_and_of_their_lives() {
        let found = parse(
            r#"{"metadata": {"name": "web-1", "namespace": "shop", "uid": "u", "labels": {"app": "web"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "r", "controller": true}]},
                "spec": {"containers": [{"name": "web", "image": "web:1"}], "initContainers": [{"name": "init", "image": "init:1"}], "nodeName": "n1"},
                "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}],
                "containerStatuses": [
                    {"name": "web", "image": "i:1", "imageID": "", "ready": true, "restartCount": 1, "containerID": "containerd://aa",
                     "lastState": {"terminated": {"exitCode": 1, "containerID": "containerd://bb"}}},
                    {"name": "starting", "image": "i:2", "imageID": "", "ready": false, "restartCount": 0}],
                "initContainerStatuses": [{"name": "init", "image": "i:3", "imageID": "", "ready": true, "restartCount": 0, "containerID": "cri-o://cc",
                     "state": {"terminated": {"exitCode": 0, "containerID": "cri-o://cc"}}}],
                "ephemeralContainerStatuses": [{"name": "debug", "image": "i:4", "imageID": "", "ready": false, "restartCount": 0, "containerID": "docker://dd"}]}}"#,
        )
        .unwrap();
        let ids: Vec<_> = found.containers.iter().map(|it| (it.id.as_str(), it.name.as_str())).collect();
        assert_eq!(ids, [("aa", "web"), ("bb", "web"), ("cc", "init"), ("dd", "debug")]);
        let meta = |name: &str| found.meta[&format!("__meta_kubernetes_{name}")].as_str();
        assert_eq!((meta("namespace"), meta("pod_name"), meta("pod_label_app")), ("shop", "web-1", "web"));
        assert_eq!((meta("pod_controller_kind"), meta("pod_controller_name")), ("ReplicaSet", "web"));
        assert_eq!((meta("pod_phase"), meta("pod_ready"), meta("pod_ip")), ("Running", "true", "10.0.0.1"));
        let init = &found.containers[2].meta;
        assert_eq!(init["__meta_kubernetes_pod_container_init"], "true");
        assert_eq!(init["__meta_kubernetes_pod_container_id"], "cri-o://cc");
        // What was asked for, and where that is not known, what the runtime says.
        let image = |index: usize| &found.containers[index].meta["__meta_kubernetes_pod_container_image"];
        assert_eq!([image(0), image(1), image(2), image(3)], ["web:1", "web:1", "init:1", "i:4"]);
        assert_eq!(found.cgroup_uid, None);
    }

    #[test]
    fn a_static_pod_and_one_without_anything() {
        let found = parse(
            r#"{"metadata": {"name": "etcd-n1", "namespace": "kube-system", "uid": "u",
                "annotations": {"kubernetes.io/config.hash": "0123456789abcdef0123456789abcdef", "kubernetes.io/config.mirror": "0123456789abcdef0123456789abcdef"}}}"#,
        )
        .unwrap();
        assert_eq!(found.cgroup_uid.as_deref(), Some("0123456789abcdef0123456789abcdef"));
        // Somebody who would like to be another pod.
        let found = parse(
            r#"{"metadata": {"name": "x", "uid": "u", "annotations": {"kubernetes.io/config.hash": "12345678-9abc-def0-1234-56789abcdef0"}}}"#,
        )
        .unwrap();
        assert_eq!(found.cgroup_uid, None);
        assert!(parse(r#"{"metadata": {"name": "x"}}"#).is_none());
    }

    #[test]
    fn of_the_node() {
        let metadata = ObjectMeta {
            name: Some("n1".into()),
            labels: Some([("topology.kubernetes.io/zone".to_owned(), "a".to_owned())].into()),
            ..ObjectMeta::default()
        };
        let labels = node(&metadata);
        assert_eq!(labels["__meta_kubernetes_node_label_topology_kubernetes_io_zone"], "a");
        assert_eq!(labels["__meta_kubernetes_node_name"], "n1");
    }
}
