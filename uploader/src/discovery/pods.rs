//! The index: pods by their uid, containers by their id.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::relabel::LabelMap;

/// Most pods that are known. Kubernetes itself is made for 110 on a node; some have five times as many.
const MAX_PODS: usize = 2048;
/// Most containers that are known, those of pods' earlier lives with them.
const MAX_CONTAINERS: usize = 16_384;
/// How long what is gone is kept: samples of it may be on their way, and a window may be long.
const KEEP_GONE: Duration = Duration::from_mins(10);
/// How long one that is gone is still selected: it may also have lost the labels by which it was.
const SELECTED_GONE: Duration = Duration::from_secs(20);
/// Most containers that are remembered to have no name.
const MAX_GIVEN_UP: usize = 4096;

/// A pod. A container that is in none (Docker's, say) is the only one of a pod that has its id and neither namespace nor name.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Pod {
    /// Its uid, by which it is known to the API server.
    pub uid: String,
    /// The uid that its cgroup has, if that is another: so it is for static pods, which the node knew first.
    pub cgroup_uid: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Whether all of it has ended, though it is still told of.
    pub has_ended: bool,
    /// Labels for rules.
    pub meta: LabelMap,
    /// Its containers that have an id, those that have ended with them.
    pub containers: Vec<Container>,
}

/// A container of a pod.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Container {
    /// Its id, as its cgroup has it.
    pub id: String,
    /// Its name in the pod.
    pub name: String,
    /// Labels for rules.
    pub meta: LabelMap,
}

/// What is known of something in a pod's cgroup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Named {
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container, if that is known.
    pub container: Option<Arc<Container>>,
}

impl Named {
    /// The labels that its targets have.
    pub fn labels(&self) -> impl Iterator<Item = (String, String)> {
        let container = self.container.iter().map(|container| ("container", &container.name));
        [("namespace", &self.pod.namespace), ("pod", &self.pod.name)]
            .into_iter()
            .chain(container)
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value.clone()))
    }

    /// Labels for the rules.
    pub fn meta(&self) -> impl Iterator<Item = (String, String)> {
        let container = self.container.iter().flat_map(|container| container.meta.clone());
        self.pod.meta.clone().into_iter().chain(container)
    }
}

/// How much is known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Pods that are here now.
    pub(super) here: usize,
    /// Pods, with those that are gone.
    pub(super) pods: usize,
    /// Containers, the same.
    pub(super) containers: usize,
    /// What there was no room for.
    pub(super) refused: u64,
}

#[derive(Debug)]
struct KnownPod {
    pod: Arc<Pod>,
    gone: Option<Instant>,
    /// It was told of in this list.
    list: u64,
}

#[derive(Debug)]
struct KnownContainer {
    pod: String,
    container: Arc<Container>,
    gone: Option<Instant>,
}

/// The index.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_uid: HashMap<String, KnownPod>,
    containers: HashMap<String, KnownContainer>,
    /// From the uid of a cgroup to the pod's, where they differ.
    uids: HashMap<String, String>,
    given_up: HashSet<String>,
    keep: Duration,
    list: u64,
    refused: u64,
}

impl Pods {
    pub(super) fn keep_for_at_least(&mut self, keep: Duration) {
        self.keep = keep;
    }

    /// Whether what is in the cgroup of this container or pod is of a pod that is here, or has been gone for so short that samples of it may be on
    /// their way.
    pub(super) fn is_here(&self, container: Option<&str>, pod: Option<&str>, now: Instant) -> bool {
        let gone = self
            .find(container, pod)
            .and_then(|named| self.by_uid.get(&named.pod.uid))
            .map(|known| known.gone);
        gone.is_some_and(|gone| {
            gone.is_none_or(|gone| now.saturating_duration_since(gone) < SELECTED_GONE.max(self.keep))
        })
    }

    /// What is known of a container with this id, in the cgroup of a pod with this uid.
    pub(super) fn find(&self, container: Option<&str>, pod: Option<&str>) -> Option<Named> {
        if let Some(known) = container.and_then(|id| self.containers.get(id)) {
            let found = Arc::clone(&self.by_uid.get(&known.pod)?.pod);
            // Whoever can make a cgroup can give it any container's id. Where the pod is said too, it must be the container's.
            if pod.is_none_or(|uid| uid == found.uid || Some(uid) == found.cgroup_uid.as_deref()) {
                return Some(Named { pod: found, container: Some(Arc::clone(&known.container)) });
            }
        }
        let uid = pod?;
        let known = self.by_uid.get(uid).or_else(|| self.by_uid.get(self.uids.get(uid)?))?;
        Some(Named { pod: Arc::clone(&known.pod), container: None })
    }

    /// Whether a container has no name yet, and may come to have one.
    pub(super) fn is_unknown(&self, container: &str) -> bool {
        !self.containers.contains_key(container) && !self.given_up.contains(container)
    }

    /// A container is not waited for again.
    pub(super) fn give_up(&mut self, container: &str) {
        if !self.is_unknown(container) {
            return;
        }
        if self.given_up.len() >= MAX_GIVEN_UP {
            self.given_up.clear();
        }
        self.given_up.insert(container.to_owned());
    }

    pub(super) fn apply(&mut self, pod: Pod, now: Instant) {
        if self.by_uid.len() >= MAX_PODS && !self.by_uid.contains_key(&pod.uid) {
            self.make_room();
            if self.by_uid.len() >= MAX_PODS {
                self.refused += 1;
                return;
            }
        }
        let uid = pod.uid.clone();
        if let Some(before) = self.by_uid.get(&uid) {
            // Containers of an earlier life of the pod, which it tells of no more.
            for old in &before.pod.containers {
                if !pod.containers.iter().any(|container| container.id == old.id)
                    && let Some(known) = self.containers.get_mut(&old.id)
                {
                    known.gone.get_or_insert(now);
                }
            }
        }
        for container in &pod.containers {
            if self.containers.len() >= MAX_CONTAINERS && !self.containers.contains_key(&container.id) {
                self.containers.retain(|_, known| known.gone.is_none());
                if self.containers.len() >= MAX_CONTAINERS {
                    self.refused += 1;
                    continue;
                }
            }
            let known =
                KnownContainer { pod: uid.clone(), container: Arc::new(container.clone()), gone: None };
            self.containers.insert(container.id.clone(), known);
        }
        if let Some(cgroup) = &pod.cgroup_uid {
            self.uids.insert(cgroup.clone(), uid.clone());
        }
        let ended = self.by_uid.get(&uid).and_then(|before| before.gone).unwrap_or(now);
        let gone = pod.has_ended.then_some(ended);
        self.by_uid.insert(uid, KnownPod { pod: Arc::new(pod), gone, list: self.list });
    }

    pub(super) fn remove(&mut self, uid: &str, now: Instant) {
        if let Some(known) = self.by_uid.get_mut(uid) {
            known.gone.get_or_insert(now);
        }
    }

    pub(super) fn begin_list(&mut self) {
        self.list += 1;
    }

    /// Whatever was not in the list is gone.
    pub(super) fn end_list(&mut self, now: Instant) {
        for known in self.by_uid.values_mut().filter(|known| known.list != self.list) {
            known.gone.get_or_insert(now);
        }
    }

    /// Forgets what has been gone for long.
    pub(super) fn forget_gone(&mut self, now: Instant) {
        let keep = KEEP_GONE.max(self.keep);
        let is_kept =
            |gone: Option<Instant>| gone.is_none_or(|gone| now.saturating_duration_since(gone) < keep);
        self.containers.retain(|_, known| is_kept(known.gone));
        let before = self.by_uid.len();
        self.by_uid.retain(|_, known| is_kept(known.gone));
        if self.by_uid.len() < before {
            self.forget_orphans();
        }
    }

    /// Forgets the pod that has been gone for longest, if one is gone.
    fn make_room(&mut self) {
        let gone = self.by_uid.iter().filter_map(|(uid, known)| Some((known.gone?, uid.clone())));
        if let Some((_, uid)) = gone.min() {
            self.by_uid.remove(&uid);
            self.forget_orphans();
        }
    }

    fn forget_orphans(&mut self) {
        let pods = &self.by_uid;
        self.containers.retain(|_, known| pods.contains_key(&known.pod));
        self.uids.retain(|_, uid| pods.contains_key(uid));
    }

    pub(super) fn sizes(&self) -> Sizes {
        Sizes {
            here: self.by_uid.values().filter(|known| known.gone.is_none()).count(),
            pods: self.by_uid.len(),
            containers: self.containers.len(),
            refused: self.refused,
        }
    }
}
