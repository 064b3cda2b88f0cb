//! One who tells of containers: what it has told, and how asking it goes.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::pods::{Named, Pod, Pods, Sizes};
use crate::{relabel::LabelMap, targets::CgroupFacts};

/// Longest text of a failure, in characters: a proxy may answer with a page.
const MAX_REASON: usize = 300;
/// A failure with another text than the last is news this long after the last that was.
const NEWS_EVERY: Duration = Duration::from_mins(1);

/// How asking goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Nothing was told yet.
    Waiting,
    /// Whoever was looked for is not there, and need not be.
    Absent,
    /// All is known, as it is now.
    Following,
    /// It fails since so long.
    Failing(Duration, String),
}

/// For `/metrics`.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counts {
    /// Changes that were told.
    pub events: u64,
    /// What went wrong.
    pub errors: u64,
    /// Pods and containers for which there was no room.
    pub refused: u64,
    /// Pods that are known, with those that are gone and kept for a while.
    pub pods: usize,
    /// Containers, the same.
    pub containers: usize,
}

/// Whose containers it tells of, and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// Those of pods, by itself, some time after they began.
    Kubernetes,
    /// Any, when it is asked, and then all of them.
    Runtime,
}

#[derive(Debug, Default)]
struct Inner {
    /// Its name and version; `None` until it has answered.
    name: Option<String>,
    pods: Pods,
    /// Labels for the rules alone that are those of the whole machine.
    machine: LabelMap,
    is_listed: bool,
    is_absent: bool,
    failing: Option<Failing>,
    events: u64,
    errors: u64,
    /// How often it was asked for all it knows, and up to which of these it has answered.
    asked: u64,
    answered: u64,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    said: Instant,
    reason: String,
}

/// One who tells.
#[derive(Debug)]
pub struct Source {
    kind: Kind,
    /// Where it is.
    address: String,
    inner: Mutex<Inner>,
    /// Rung when it has told something.
    changed: Arc<Notify>,
    /// Rung when it is asked.
    wanted: Notify,
}

impl Source {
    /// One at this address. What is gone is kept for `keep` at least. `changed` is rung when it has told something.
    pub(super) fn new(kind: Kind, address: String, keep: Duration, changed: Arc<Notify>) -> Self {
        let mut inner = Inner::default();
        inner.pods.keep_for_at_least(keep);
        Source { kind, address, inner: Mutex::new(inner), changed, wanted: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// How it goes.
    pub fn outcome(&self) -> Outcome {
        let inner = self.lock();
        match (&inner.failing, inner.is_listed) {
            (Some(failing), _) => Outcome::Failing(failing.since.elapsed(), failing.reason.clone()),
            (None, true) => Outcome::Following,
            (None, false) if inner.is_absent => Outcome::Absent,
            (None, false) => Outcome::Waiting,
        }
    }

    /// How it goes, in words; `None` where it is not there.
    pub fn sentence(&self) -> Option<String> {
        let outcome = self.outcome();
        let inner = self.lock();
        let sizes = inner.pods.sizes();
        let (who, what, here) = match self.kind {
            Kind::Kubernetes => ("The Kubernetes API server", "pods", sizes.here),
            Kind::Runtime => {
                let name = inner.name.as_deref().unwrap_or("The container runtime at");
                (name, "containers", sizes.containers)
            }
        };
        let address = &self.address;
        Some(match outcome {
            Outcome::Absent => return None,
            Outcome::Waiting => format!("{who} {address} has not told of this node's {what} yet."),
            Outcome::Following => format!("{who} {address} tells of {here} {what} here."),
            Outcome::Failing(since, reason) => format!(
                "{who} {address} has told of no {what} for {}: {reason}. What it told of {here} {what} before is still used.",
                crate::time::words(since)
            ),
        })
    }

    /// For `/metrics`.
    pub fn counts(&self) -> Counts {
        let inner = self.lock();
        let Sizes { pods, containers, refused, .. } = inner.pods.sizes();
        Counts { events: inner.events, errors: inner.errors, refused, pods, containers }
    }

    /// What is known of what is in these cgroups.
    pub(super) fn find(&self, cgroup: &CgroupFacts) -> Option<Named> {
        self.lock().pods.find(cgroup.container(), cgroup.pod())
    }

    /// Whether these cgroups are of a pod that is here, or was until a moment ago.
    pub(super) fn is_here(&self, cgroup: &CgroupFacts) -> bool {
        self.lock().pods.is_here(cgroup.container(), cgroup.pod(), Instant::now())
    }

    /// Labels for the rules alone that are those of the whole machine.
    pub fn machine(&self) -> LabelMap {
        self.lock().machine.clone()
    }

    /// Asks it for all it knows. What it then does not know it never will ([`Source::is_awaited`]).
    pub(super) fn ask(&self) {
        self.lock().asked += 1;
        self.wanted.notify_one();
    }

    /// Whether it may come to know this container.
    pub(super) fn is_awaited(&self, cgroup: &CgroupFacts) -> bool {
        let inner = self.lock();
        let is_its_own = match self.kind {
            // A container that is not a pod's is none of Kubernetes'.
            Kind::Kubernetes => cgroup.pod().is_some(),
            Kind::Runtime => inner.answered < inner.asked,
        };
        is_its_own
            && inner.is_listed
            && inner.failing.is_none()
            && cgroup.container().is_some_and(|id| inner.pods.is_unknown(id))
    }

    /// Whether it has said all it knows, as it does when it is asked.
    pub(super) fn has_answered(&self) -> bool {
        let inner = self.lock();
        self.kind == Kind::Runtime && inner.answered == inner.asked
    }

    /// Whether asking for this container may help: it is not known, and was not asked for in vain.
    pub(super) fn could_know(&self, cgroup: &CgroupFacts) -> bool {
        let inner = self.lock();
        inner.is_listed && cgroup.container().is_some_and(|id| inner.pods.is_unknown(id))
    }

    /// What it does not know of these is not waited for again.
    pub(super) fn give_up(&self, cgroups: &[Arc<CgroupFacts>]) {
        let mut inner = self.lock();
        if inner.is_listed && inner.failing.is_none() {
            for id in cgroups.iter().filter_map(|cgroup| cgroup.container()) {
                inner.pods.give_up(id);
            }
        }
    }

    fn change(&self, change: impl FnOnce(&mut Inner, Instant)) {
        let mut inner = self.lock();
        let now = Instant::now();
        change(&mut inner, now);
        inner.pods.forget_gone(now);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// It was looked for and is not there, and need not be.
    pub(super) fn set_absent(&self) {
        self.lock().is_absent = true;
    }

    /// It has said who it is.
    pub(super) fn set_name(&self, name: String) {
        self.lock().name = Some(name);
    }

    /// A pod is here, or has changed.
    pub(super) fn apply(&self, pod: Pod) {
        self.change(|inner, now| {
            inner.events += 1;
            inner.pods.apply(pod, now);
        });
    }

    /// A pod is gone.
    pub(super) fn remove(&self, uid: &str) {
        self.change(|inner, now| {
            inner.events += 1;
            inner.pods.remove(uid, now);
        });
    }

    /// All pods are told anew.
    pub(super) fn begin_list(&self) {
        self.lock().pods.begin_list();
    }

    /// That is all of them.
    pub(super) fn end_list(&self) {
        self.change(|inner, now| {
            inner.pods.end_list(now);
            inner.is_listed = true;
        });
    }

    /// Waits until it is asked.
    pub(super) async fn wanted(&self) {
        self.wanted.notified().await;
    }

    /// How often it was asked. What it tells from now on is an answer to that.
    pub(super) fn asked(&self) -> u64 {
        self.lock().asked
    }

    /// These are all pods there are, told after it was `asked` so often.
    pub(super) fn replace(&self, pods: Vec<Pod>, asked: u64) {
        self.change(|inner, now| {
            inner.pods.begin_list();
            for pod in pods {
                inner.pods.apply(pod, now);
            }
            inner.pods.end_list(now);
            inner.is_listed = true;
            inner.answered = asked;
        });
    }

    pub(super) fn set_machine(&self, machine: LabelMap) {
        self.lock().machine = machine;
    }

    /// It answers. How long it did not before, if so.
    pub(super) fn answered(&self) -> Option<Duration> {
        self.lock().failing.take().map(|failing| failing.since.elapsed())
    }

    /// Something went wrong. `true` if that is news.
    pub(super) fn failed(&self, reason: &str) -> bool {
        let reason: String = reason.chars().take(MAX_REASON).collect();
        let (mut inner, now) = (self.lock(), Instant::now());
        inner.errors += 1;
        let Some(failing) = &mut inner.failing else {
            inner.failing = Some(Failing { since: now, said: now, reason });
            drop(inner);
            // Nobody waits for what it would have told.
            self.changed.notify_waiters();
            return true;
        };
        // Some have the time or a number in them.
        let is_news = failing.reason != reason && failing.said.elapsed() >= NEWS_EVERY;
        failing.reason = reason;
        if is_news {
            failing.said = now;
        }
        is_news
    }
}
