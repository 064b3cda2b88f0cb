//! Tests of the index, and of how discovery is told.

use std::time::Instant;

use super::{pods::Pods, *};
use crate::targets::TargetMaker;

fn pod(uid: &str, containers: &[(&str, &str)]) -> Pod {
    let container = |(id, name): &(&str, &str)| Container {
        id: (*id).into(),
        name: (*name).into(),
        meta: LabelMap::new(),
    };
    Pod {
        uid: uid.into(),
        namespace: "ns".into(),
        name: format!("pod-{uid}"),
        containers: containers.iter().map(container).collect(),
        ..Pod::default()
    }
}

fn text(named: Option<Named>) -> Option<String> {
    let named = named?;
    let labels = named.labels().map(|(name, value)| format!("{name}={value}"));
    Some(labels.collect::<Vec<_>>().join(" "))
}

#[test]
fn containers_are_found_by_id_and_else_by_their_pod() {
    let (mut pods, now) = (Pods::default(), Instant::now());
    pods.apply(pod("u1", &[("c1", "web")]), now);
    assert_eq!(text(pods.find(Some("c1"), Some("u1"))).unwrap(), "namespace=ns pod=pod-u1 container=web");
    assert_eq!(text(pods.find(Some("c1"), None)).unwrap(), "namespace=ns pod=pod-u1 container=web");
    assert_eq!(text(pods.find(Some("c2"), Some("u1"))).unwrap(), "namespace=ns pod=pod-u1");
    assert_eq!(text(pods.find(None, Some("u1"))).unwrap(), "namespace=ns pod=pod-u1");
    assert_eq!(text(pods.find(Some("c2"), Some("u2"))), None);
    // Somebody's cgroup with the id of a container of another pod; and a pod that claims the uid of another.
    assert_eq!(text(pods.find(Some("c1"), Some("u2"))), None);
    pods.apply(Pod { cgroup_uid: Some("u1".into()), ..pod("u4", &[]) }, now);
    assert_eq!(text(pods.find(None, Some("u1"))).unwrap(), "namespace=ns pod=pod-u1");
    // A static pod's cgroup has another uid.
    pods.apply(Pod { cgroup_uid: Some("hash".into()), ..pod("u3", &[]) }, now);
    assert_eq!(text(pods.find(Some("c9"), Some("hash"))).unwrap(), "namespace=ns pod=pod-u3");
}

#[test]
fn what_is_gone_is_kept_for_a_while() {
    let (mut pods, now) = (Pods::default(), Instant::now());
    pods.apply(pod("u1", &[("c1", "web")]), now);
    // The container was started again.
    pods.apply(pod("u1", &[("c2", "web")]), now);
    pods.remove("u1", now);
    pods.forget_gone(now + KEEP / 2);
    assert!(pods.find(Some("c1"), None).is_some() && pods.find(Some("c2"), None).is_some());
    pods.forget_gone(now + KEEP);
    assert_eq!((pods.find(Some("c1"), None), pods.find(Some("c2"), Some("u1"))), (None, None));
    assert_eq!(pods.sizes().containers, 0);

    // One that has ended, and is still told of again and again, makes room too.
    pods.apply(Pod { has_ended: true, ..pod("u9", &[]) }, now);
    pods.apply(Pod { has_ended: true, ..pod("u9", &[]) }, now + KEEP / 2);
    assert!(pods.find(None, Some("u9")).is_some());
    pods.forget_gone(now + KEEP);
    assert!(pods.find(None, Some("u9")).is_none());

    // Windows may be longer than that; a pod that has lost its labels is not selected for as long as it is known.
    let mut patient = Pods::default();
    patient.keep_for_at_least(KEEP * 2);
    patient.apply(pod("u1", &[("c1", "web")]), now);
    patient.remove("u1", now);
    patient.forget_gone(now + KEEP);
    assert!(patient.find(Some("c1"), None).is_some() && patient.is_here(Some("c1"), None, now + KEEP));
    pods.apply(pod("u1", &[("c1", "web")]), now);
    assert!(pods.is_here(Some("c1"), Some("u1"), now + KEEP) && !pods.is_here(Some("c2"), None, now));
    pods.remove("u1", now);
    assert!(
        pods.is_here(None, Some("u1"), now + KEEP / 60) && !pods.is_here(Some("c1"), None, now + KEEP / 10)
    );
    pods.forget_gone(now + KEEP);

    // A list without a pod says that it is gone; one with it, that it is here.
    pods.begin_list();
    pods.apply(pod("u2", &[]), now);
    pods.apply(pod("u3", &[]), now);
    pods.end_list(now);
    pods.begin_list();
    pods.apply(pod("u3", &[]), now);
    pods.end_list(now);
    assert_eq!(pods.sizes().here, 1);
    pods.forget_gone(now + KEEP);
    assert_eq!((pods.find(None, Some("u2")), pods.find(None, Some("u3")).is_some()), (None, true));
}

const KEEP: Duration = Duration::from_mins(10);

#[test]
fn growth_is_bounded_and_what_is_gone_makes_room() {
    let (mut pods, now) = (Pods::default(), Instant::now());
    let many: Vec<(String, String)> = (0..10).map(|index| (format!("c{index}"), "x".to_owned())).collect();
    for number in 0..5000 {
        let ids: Vec<_> = many.iter().map(|(id, name)| (format!("{number}-{id}"), name.as_str())).collect();
        let ids: Vec<_> = ids.iter().map(|(id, name)| (id.as_str(), *name)).collect();
        pods.apply(pod(&number.to_string(), &ids), now);
    }
    let sizes = pods.sizes();
    assert_eq!((sizes.pods, sizes.containers), (2048, 16_384));
    assert_eq!(sizes.refused, 2952 + 2048 * 10 - 16_384);
    pods.remove("7", now);
    pods.apply(pod("new", &[("new", "x")]), now);
    assert!(pods.find(Some("new"), None).is_some() && pods.find(None, Some("7")).is_none());
}

fn with_kubernetes() -> (Arc<Discovery>, Arc<Source>) {
    let mut discovery = Discovery::new(Duration::from_secs(10));
    let source = discovery.add_kubernetes("server".into());
    (Arc::new(discovery), source)
}

/// What is in this cgroup.
fn in_cgroup(path: &str) -> Origin {
    let cgroup = Some(Arc::new(TargetMaker::new("n", []).cgroup(format!("0::{path}").as_bytes())));
    Origin { comm: "x".into(), pid: None, cgroup }
}

/// A container of Docker's.
fn alone(id: &str, name: &str) -> Pod {
    Pod { name: String::new(), namespace: String::new(), ..pod(id, &[(id, name)]) }
}

#[tokio::test(start_paused = true)]
async fn a_runtime_is_asked_when_somebody_wants_to_know() {
    let mut discovery = Discovery::new(Duration::from_secs(10));
    let source = discovery.add_runtime(Path::new("/run/docker.sock"));
    let discovery = Arc::new(discovery);
    assert!(discovery.is_waiting() && discovery.longest_settle().is_zero());
    source.set_absent();
    assert_eq!((discovery.is_waiting(), discovery.sentence()), (false, None));
    let ids = ["1", "2", "3"].map(|digit| digit.repeat(64));
    let [known, begins, unknown] = &ids;
    let origins = [known, begins, unknown].map(|id| in_cgroup(&format!("/docker/{id}")));
    let limit = Duration::from_secs(5);
    let took = async |which: &[Origin]| {
        let begun = tokio::time::Instant::now();
        discovery.settle(which.iter(), limit).await;
        begun.elapsed()
    };
    assert_eq!(took(&origins).await, Duration::ZERO, "it was never there");
    source.set_name("Docker 1".into());
    source.replace(vec![alone(known, "web")], source.asked());
    assert!(discovery.sentence().unwrap().contains("Docker 1 /run/docker.sock tells of 1 containers"));
    let named = |origin: &Origin| text(discovery.find(origin.cgroup.as_deref().unwrap()));
    assert_eq!(named(&origins[0]).unwrap(), "container=web");

    // It answers after a second, and what it does not know then is not asked for again.
    let teller = {
        let (source, pods) = (Arc::clone(&source), vec![alone(known, "web"), alone(begins, "brief")]);
        tokio::spawn(async move {
            source.wanted().await;
            let asked = source.asked();
            tokio::time::sleep(Duration::from_secs(1)).await;
            source.replace(pods, asked);
        })
    };
    assert_eq!(took(&origins[..1]).await, Duration::ZERO, "all is known");
    assert_eq!(took(&origins).await, Duration::from_secs(1));
    teller.await.unwrap();
    assert_eq!((named(&origins[1]).unwrap(), named(&origins[2])), ("container=brief".into(), None));
    assert_eq!(took(&origins).await, Duration::ZERO);
    // One that hangs is waited for so long and no longer, one that is gone not at all; what it told of stays.
    let other = in_cgroup(&format!("/docker/{}", "4".repeat(64)));
    assert_eq!(took(std::slice::from_ref(&other)).await, limit);
    source.failed("gone");
    let third = in_cgroup(&format!("/docker/{}", "5".repeat(64)));
    assert_eq!(took(&[third]).await, Duration::ZERO);
    assert_eq!(named(&origins[0]).unwrap(), "container=web");
    assert!(discovery.sentence().unwrap().contains("told of no containers for"));
}

#[test]
fn kubernetes_comes_first_and_selects() {
    let mut discovery = Discovery::new(Duration::from_secs(10));
    let (kubernetes, runtime) =
        (discovery.add_kubernetes("server".into()), discovery.add_runtime(Path::new("/run/containerd.sock")));
    let (uid, id) = ("12345678-9abc-def0-1234-56789abcdef0", "1".repeat(64));
    let origin = in_cgroup(&format!("/kubepods/pod{uid}/{id}"));
    let cgroup = origin.cgroup.as_deref().unwrap();
    let by_runtime = Pod { namespace: "by-runtime".into(), ..pod(uid, &[(&id, "web")]) };
    runtime.replace(vec![by_runtime], 0);
    // Whether a pod is selected is for Kubernetes to say.
    assert!(!discovery.is_in_pod(cgroup));
    assert_eq!(discovery.find(cgroup).unwrap().pod.namespace, "by-runtime");
    // A pod whose containers it has not told of yet.
    kubernetes.apply(pod(uid, &[]));
    assert!(discovery.is_in_pod(cgroup));
    assert_eq!(discovery.find(cgroup).unwrap().pod.namespace, "by-runtime");
    kubernetes.apply(pod(uid, &[(&id, "web")]));
    assert_eq!(discovery.find(cgroup).unwrap().pod.namespace, "ns");
}

#[tokio::test(start_paused = true)]
async fn a_window_waits_for_names_once() {
    let (discovery, source) = with_kubernetes();
    let id = "0".repeat(64);
    let cgroup = |uid: &str| {
        let text = format!("0::/kubepods/besteffort/pod{uid}/{id}");
        Arc::new(TargetMaker::new("n", []).cgroup(text.as_bytes()))
    };
    let uid = "12345678-9abc-def0-1234-56789abcdef0";
    let origin = Origin { comm: "x".into(), pid: None, cgroup: Some(cgroup(uid)) };
    let limit = Duration::from_secs(5);
    let took = async || {
        let begun = tokio::time::Instant::now();
        discovery.settle([&origin].into_iter(), limit).await;
        begun.elapsed()
    };
    assert_eq!(took().await, Duration::ZERO, "nobody tells of pods yet");
    source.begin_list();
    source.end_list();
    let teller = {
        let (source, id) = (Arc::clone(&source), id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            source.apply(pod(uid, &[(&id, "web")]));
        })
    };
    assert_eq!(took().await, Duration::from_secs(2));
    teller.await.unwrap();
    assert_eq!(took().await, Duration::ZERO);
    // One that nobody ever tells of, such as the container that holds a pod's namespaces.
    let unknown = |digit: &str| {
        let text = format!("0::/kubepods/besteffort/pod{uid}/{}", digit.repeat(64));
        Origin { cgroup: Some(Arc::new(TargetMaker::new("n", []).cgroup(text.as_bytes()))), ..origin.clone() }
    };
    let (other, third) = (unknown("1"), unknown("2"));
    let begun = tokio::time::Instant::now();
    discovery.settle([&other].into_iter(), limit).await;
    discovery.settle([&other].into_iter(), limit).await;
    assert_eq!(begun.elapsed(), limit);
    source.failed("no answer");
    discovery.settle([&third].into_iter(), limit).await;
    assert_eq!(begun.elapsed(), limit);
    // Nor where the program ends.
    source.answered();
    let ending = {
        let discovery = Arc::clone(&discovery);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            discovery.end();
        })
    };
    discovery.settle([&third].into_iter(), limit).await;
    ending.await.unwrap();
    assert_eq!(begun.elapsed(), limit + Duration::from_secs(1));
}

#[test]
fn failures_are_news_once() {
    let (_, discovery) = with_kubernetes();
    assert!(discovery.sentence().unwrap().contains("has not told"));
    discovery.begin_list();
    discovery.apply(pod("u", &[]));
    discovery.end_list();
    assert!(discovery.sentence().unwrap().contains("tells of 1 pods"));
    assert!(discovery.failed("forbidden") && !discovery.failed("forbidden"));
    assert!(discovery.sentence().unwrap().contains("forbidden"));
    // Texts that differ each time are no news each time, and none is long.
    assert!(!discovery.failed(&format!("request 7 {}", "x".repeat(10_000))));
    let sentence = discovery.sentence().unwrap();
    assert!(sentence.contains("request 7") && sentence.len() < 600, "{sentence}");
    assert!(discovery.answered().is_some() && discovery.answered().is_none());
    assert!(discovery.failed("request 8"));
    assert_eq!((discovery.counts().errors, discovery.counts().events), (4, 1));
    assert_eq!(Discovery::default().sentence(), None);
}

#[test]
fn labels_and_annotations_are_offered_as_prometheus_does() {
    let texts: BTreeMap<String, String> = [
        ("app.kubernetes.io/name".to_owned(), "web".to_owned()),
        ("kubectl.kubernetes.io/last-applied-configuration".to_owned(), "x".repeat(2000)),
        ("empty".to_owned(), String::new()),
    ]
    .into();
    let labels = offered("__meta_kubernetes_pod", "label", Some(&texts));
    let expected = [
        ("__meta_kubernetes_pod_label_app_kubernetes_io_name", "web"),
        ("__meta_kubernetes_pod_label_empty", ""),
        ("__meta_kubernetes_pod_labelpresent_app_kubernetes_io_name", "true"),
        ("__meta_kubernetes_pod_labelpresent_empty", "true"),
        ("__meta_kubernetes_pod_labelpresent_kubectl_kubernetes_io_last_applied_configuration", "true"),
    ];
    let expected: LabelMap = expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(labels, expected);
    // Report S41: names that become one; the last by its own name stays, always the same one.
    let texts = ["a.b", "a/b", "a_b"].map(|name| (name.to_owned(), format!("of {name}")));
    let labels = offered("m", "label", Some(&texts.into()));
    assert_eq!((labels["m_label_a_b"].as_str(), labels.len()), ("of a_b", 2));
    // A pod has room for so much, and no more; what it has at all is said first.
    let many = (0..100).map(|number| (format!("{number:03}"), "x".repeat(1000)));
    assert_eq!(offered("m", "label", Some(&many.collect())).len(), 100 + 7);
    // Longer ones, other letters, and what is no text for a line.
    let texts = [("é".to_owned(), "é".repeat(63)), ("line".to_owned(), "a\nb".to_owned())];
    let labels = offered("m", "annotation", Some(&texts.into()));
    assert_eq!(
        (labels["m_annotation__"].as_str(), labels["m_annotation_line"].as_str()),
        (&*"é".repeat(63), "a\\x0ab")
    );
}
