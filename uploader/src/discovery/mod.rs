//! What containers are, told by those who run them. Whoever is asked fills one index ([`Pods`]), which is asked when a window ends: by
//! then what has begun in it is known, also if it has ended since.

pub mod kubernetes;
mod pods;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::timeout};

pub use pods::{Container, Named, Pod};
use pods::{Pods, Sizes};

use crate::{
    printable::printable,
    relabel::LabelMap,
    targets::{CgroupFacts, Origin},
};

/// Most labels and annotations of one object that are offered to rules, each.
const MAX_META: usize = 128;
/// Longest value that is offered to rules, in bytes: annotations may have whole files in them.
const MAX_VALUE: usize = 1024;
/// Most bytes of all of them together.
const MAX_META_BYTES: usize = 8 << 10;

/// How long a finished window waits for the names of its containers: a kubelet tells of a container within two seconds or so.
const SETTLE: Duration = Duration::from_secs(5);
/// Whoever has waited for less has not waited.
const LEAST_SETTLE: Duration = Duration::from_secs(1);
/// Longest text of a failure, in characters: a proxy may answer with a page.
const MAX_REASON: usize = 300;
/// A failure with another text than the last is news this long after the last that was.
const NEWS_EVERY: Duration = Duration::from_mins(1);

/// How discovery goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The pods were not told yet.
    Waiting,
    /// All pods are known, as they are now.
    Following,
    /// It fails since so long.
    Failing(Duration, String),
}

/// For `/metrics`.
#[derive(Clone, Copy, Default, Debug)]
pub struct DiscoveryCounts {
    /// Changes of pods that were told.
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

#[derive(Debug, Default)]
struct Inner {
    pods: Pods,
    node: LabelMap,
    is_listed: bool,
    failing: Option<Failing>,
    /// The program ends: nothing is waited for any more.
    is_ending: bool,
    events: u64,
    errors: u64,
}

#[derive(Debug)]
struct Failing {
    since: Instant,
    said: Instant,
    reason: String,
}

/// What is known of this machine's containers. Empty, and without a cost, where nobody is asked.
#[derive(Debug, Default)]
pub struct Discovery {
    inner: Mutex<Inner>,
    changed: Notify,
    /// Who is asked, for people; `None`: nobody.
    server: Option<String>,
    window: Duration,
}

impl Discovery {
    /// Of what the API server at this address tells, for windows of this length.
    pub fn of(server: String, window: Duration) -> Self {
        let discovery = Discovery { server: Some(server), window, ..Discovery::default() };
        discovery.lock().pods.keep_for_at_least(window * 2);
        discovery
    }

    /// How long a window may wait for names ([`Discovery::settle`]).
    pub fn longest_settle(&self) -> Duration {
        if self.is_on() { SETTLE.min(self.window / 2) } else { Duration::ZERO }
    }

    /// Whether anybody is asked.
    pub fn is_on(&self) -> bool {
        self.server.is_some()
    }

    /// What is known of what is in these cgroups.
    pub fn find(&self, cgroup: &CgroupFacts) -> Option<Named> {
        if !self.is_on() {
            return None;
        }
        self.lock().pods.find(cgroup.container(), cgroup.pod())
    }

    /// Labels for the rules alone that are those of the whole machine.
    pub fn node(&self) -> LabelMap {
        self.lock().node.clone()
    }

    /// Waits until the containers that these samples are of have names, for so long at most: who runs containers tells of them a little
    /// after they begin. What stays without a name is not waited for again.
    pub async fn settle(&self, origins: impl Iterator<Item = &Origin>, limit: Duration) {
        if !self.is_on() || !matches!(self.outcome(), Outcome::Following) {
            return;
        }
        let cgroups: Vec<_> = origins.filter_map(|origin| origin.cgroup.as_ref()).map(Arc::clone).collect();
        let all_named = async {
            loop {
                let changed = self.changed.notified();
                {
                    let inner = self.lock();
                    if inner.is_ending
                        || cgroups
                            .iter()
                            .all(|cgroup| !inner.pods.is_awaited(cgroup.container(), cgroup.pod()))
                    {
                        return;
                    }
                }
                changed.await;
            }
        };
        if timeout(limit, all_named).await.is_err() && limit >= LEAST_SETTLE {
            let mut inner = self.lock();
            for cgroup in cgroups {
                inner.pods.give_up(cgroup.container(), cgroup.pod());
            }
        }
    }

    /// The program ends: windows wait for names no longer.
    pub fn end(&self) {
        self.lock().is_ending = true;
        self.changed.notify_waiters();
    }

    /// How it goes.
    pub fn outcome(&self) -> Outcome {
        let inner = self.lock();
        match (&inner.failing, inner.is_listed) {
            (Some(failing), _) => Outcome::Failing(failing.since.elapsed(), failing.reason.clone()),
            (None, true) => Outcome::Following,
            (None, false) => Outcome::Waiting,
        }
    }

    /// How it goes, in words; `None` where nobody is asked.
    pub fn sentence(&self) -> Option<String> {
        let server = self.server.as_ref()?;
        let Sizes { here, .. } = self.lock().pods.sizes();
        Some(match self.outcome() {
            Outcome::Waiting => {
                format!("The Kubernetes API server {server} has not told of this node's pods yet.")
            }
            Outcome::Following => format!("The Kubernetes API server {server} tells of {here} pods here."),
            Outcome::Failing(since, reason) => format!(
                "The Kubernetes API server {server} has told of no pods for {}: {reason}. What it told of {here} pods before is still used.",
                crate::time::words(since)
            ),
        })
    }

    /// For `/metrics`.
    pub fn counts(&self) -> DiscoveryCounts {
        let inner = self.lock();
        let Sizes { pods, containers, refused, .. } = inner.pods.sizes();
        DiscoveryCounts { events: inner.events, errors: inner.errors, refused, pods, containers }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Inner)) {
        let mut inner = self.lock();
        change(&mut inner);
        inner.pods.forget_gone(Instant::now());
        drop(inner);
        self.changed.notify_waiters();
    }

    /// A pod is here, or has changed.
    fn apply(&self, pod: Pod) {
        self.change(|inner| {
            inner.events += 1;
            inner.pods.apply(pod, Instant::now());
        });
    }

    /// A pod is gone.
    fn remove(&self, uid: &str) {
        self.change(|inner| {
            inner.events += 1;
            inner.pods.remove(uid, Instant::now());
        });
    }

    /// All pods are told anew.
    fn begin_list(&self) {
        self.lock().pods.begin_list();
    }

    /// That is all of them.
    fn end_list(&self) {
        self.change(|inner| {
            inner.pods.end_list(Instant::now());
            inner.is_listed = true;
        });
    }

    fn set_node(&self, node: LabelMap) {
        self.lock().node = node;
    }

    /// Pods are told of. How long none were before, if so.
    fn answered(&self) -> Option<Duration> {
        self.lock().failing.take().map(|failing| failing.since.elapsed())
    }

    /// Something went wrong. `true` if that is news.
    fn failed(&self, reason: &str) -> bool {
        let reason: String = reason.chars().take(MAX_REASON).collect();
        let (mut inner, now) = (self.lock(), Instant::now());
        inner.errors += 1;
        let Some(failing) = &mut inner.failing else {
            inner.failing = Some(Failing { since: now, said: now, reason });
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

/// Labels or annotations as rules see them, as Prometheus offers them (`kubernetes_sd_config` in its documentation): a label with the value,
/// and one that says it is there.
fn offered(prefix: &str, kind: &str, texts: Option<&BTreeMap<String, String>>) -> LabelMap {
    let mut labels = LabelMap::new();
    let mut room = MAX_META_BYTES;
    for (name, value) in texts.into_iter().flatten().take(MAX_META) {
        let size = name.len() + value.len();
        if value.len() > MAX_VALUE || size > room {
            continue;
        }
        room -= size;
        let name: String =
            name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
        labels.insert(format!("{prefix}_{kind}present_{name}"), "true".into());
        labels.insert(format!("{prefix}_{kind}_{name}"), printable(value.as_bytes()));
    }
    labels
}

#[cfg(test)]
mod tests;
