//! What containers are, told by those who run them, and what systemd says of its units. Each who is asked fills an index of its own ([`Source`],
//! [`Systemd`]); they are asked when a window ends: by then what has begun in it is known, also if it has ended since.

pub mod kubernetes;
mod pods;
pub mod runtimes;
mod source;
pub mod systemd;

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::timeout};

pub use pods::{Container, Named, Pod};
use source::Kind;
pub use source::{Outcome, Source};
pub use systemd::Systemd;

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

/// What is known of this machine's containers. Empty, and without a cost, where nobody is asked.
#[derive(Debug, Default)]
pub struct Discovery {
    kubernetes: Option<Arc<Source>>,
    runtimes: Vec<Arc<Source>>,
    systemd: Option<Arc<Systemd>>,
    /// Rules look at how units are described.
    describes_units: AtomicBool,
    changed: Arc<Notify>,
    window: Duration,
    /// The program ends: nothing is waited for any more.
    is_ending: AtomicBool,
}

impl Discovery {
    /// For windows of this length. Nobody is asked yet.
    pub fn new(window: Duration) -> Self {
        Discovery { window, ..Discovery::default() }
    }

    fn source(&self, kind: Kind, address: String) -> Arc<Source> {
        Arc::new(Source::new(kind, address, self.window * 2, Arc::clone(&self.changed)))
    }

    /// The API server at this address is asked. Whoever asks it tells the source.
    pub fn add_kubernetes(&mut self, address: String) -> Arc<Source> {
        let source = self.source(Kind::Kubernetes, address);
        self.kubernetes = Some(Arc::clone(&source));
        source
    }

    /// The container runtime at this socket is asked. Whoever asks it tells the source.
    pub fn add_runtime(&mut self, socket: &Path) -> Arc<Source> {
        let source = self.source(Kind::Runtime, printable(socket.as_os_str().as_encoded_bytes()));
        self.runtimes.push(Arc::clone(&source));
        source
    }

    /// systemd is asked for the units that these names stand for, and for what rules want to know. Whoever asks it tells the one that is returned.
    pub fn add_systemd(&mut self, names: Vec<String>) -> Arc<Systemd> {
        let systemd = Arc::new(Systemd::new(names, Arc::clone(&self.changed)));
        self.systemd = Some(Arc::clone(&systemd));
        systemd
    }

    /// Whether systemd is asked how units are described.
    pub fn describe_units(&self, is_wanted: bool) {
        self.describes_units.store(is_wanted, Ordering::Relaxed);
    }

    /// systemd, if it is asked.
    pub fn systemd(&self) -> Option<&Systemd> {
        self.systemd.as_deref()
    }

    /// How a unit is described, if that is wanted and known.
    pub fn description(&self, unit: &str) -> Option<String> {
        self.describer()?.description(unit)
    }

    fn describer(&self) -> Option<&Systemd> {
        self.systemd().filter(|_| self.describes_units.load(Ordering::Relaxed))
    }

    /// The API server, if one is asked.
    pub fn kubernetes(&self) -> Option<&Source> {
        self.kubernetes.as_deref()
    }

    /// The container runtimes that have answered, or should have.
    pub fn runtimes(&self) -> impl Iterator<Item = &Source> {
        let sources = self.runtimes.iter().map(Arc::as_ref);
        sources.filter(|source| matches!(source.outcome(), Outcome::Following | Outcome::Failing(..)))
    }

    fn sources(&self) -> impl Iterator<Item = &Source> {
        self.kubernetes.iter().chain(&self.runtimes).map(Arc::as_ref)
    }

    /// Whether somebody who was asked has not said anything yet.
    pub fn is_waiting(&self) -> bool {
        self.sources().any(|source| matches!(source.outcome(), Outcome::Waiting))
    }

    /// How long a window may wait for names ([`Discovery::settle`]).
    pub fn longest_settle(&self) -> Duration {
        let is_on =
            self.kubernetes.is_some() || self.runtimes().next().is_some() || self.describer().is_some();
        if is_on { SETTLE.min(self.window / 2) } else { Duration::ZERO }
    }

    /// What is known of what is in these cgroups: by Kubernetes, and by a runtime what that does not know.
    pub fn find(&self, cgroup: &CgroupFacts) -> Option<Named> {
        let mut pod_alone = None;
        for source in self.sources() {
            match source.find(cgroup) {
                Some(named) if named.container.is_some() => return Some(named),
                found => pod_alone = pod_alone.or(found),
            }
        }
        pod_alone
    }

    /// Whether these cgroups are in a pod that Kubernetes tells of.
    pub fn is_in_pod(&self, cgroup: &CgroupFacts) -> bool {
        self.kubernetes.as_ref().is_some_and(|source| source.is_here(cgroup))
    }

    /// Labels for the rules alone that are those of the whole machine.
    pub fn node(&self) -> LabelMap {
        self.kubernetes.as_ref().map(|source| source.machine()).unwrap_or_default()
    }

    /// Waits until the containers that these samples are of have names, and the units descriptions that rules look at, for so long at most: who
    /// runs containers tells of them a little after they begin. What stays without a name is not waited for again.
    pub async fn settle(&self, origins: impl Iterator<Item = &Origin>, limit: Duration) {
        let cgroups: HashSet<_> =
            origins.filter_map(|origin| origin.cgroup.as_ref()).map(Arc::clone).collect();
        let describer = self.describer();
        let units: Vec<&str> = if describer.is_some() {
            cgroups.iter().filter_map(|cgroup| cgroup.unit()).collect()
        } else {
            Vec::new()
        };
        if let Some(systemd) = describer {
            systemd.ask(units.iter().copied());
        }
        let is_unknown = |cgroup: &&Arc<CgroupFacts>| self.sources().any(|source| source.could_know(cgroup));
        let containers: Vec<_> = cgroups.iter().filter(is_unknown).map(Arc::clone).collect();
        if containers.is_empty() && units.is_empty() {
            return;
        }
        for runtime in &self.runtimes {
            if containers.iter().any(|cgroup| runtime.could_know(cgroup) && !self.is_named(cgroup)) {
                runtime.ask();
            }
        }
        let all_named = async {
            loop {
                let changed = self.changed.notified();
                let is_ending = self.is_ending.load(Ordering::Relaxed);
                let is_named = !containers.iter().any(|cgroup| self.is_awaited(cgroup));
                let is_described =
                    !units.iter().any(|unit| describer.is_some_and(|systemd| systemd.is_awaited(unit)));
                if is_ending || (is_named && is_described) {
                    return;
                }
                changed.await;
            }
        };
        let is_settled = timeout(limit, all_named).await.is_ok();
        for source in self.sources() {
            // A runtime that has answered has said all it knows.
            let has_had_time = if is_settled { source.has_answered() } else { limit >= LEAST_SETTLE };
            if has_had_time {
                source.give_up(&containers);
            }
        }
    }

    fn is_named(&self, cgroup: &CgroupFacts) -> bool {
        self.find(cgroup).is_some_and(|named| named.container.is_some())
    }

    /// Kubernetes tells more of its containers than the runtime that runs them, so that is waited for in any case.
    fn is_awaited(&self, cgroup: &CgroupFacts) -> bool {
        self.kubernetes.as_ref().is_some_and(|source| source.is_awaited(cgroup))
            || (self.runtimes.iter().any(|source| source.is_awaited(cgroup)) && !self.is_named(cgroup))
    }

    /// The program ends: windows wait for names no longer.
    pub fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
        self.changed.notify_waiters();
    }

    /// How it goes, in words; `None` where nobody is asked.
    pub fn sentence(&self) -> Option<String> {
        let systemd = self.systemd().and_then(Systemd::sentence);
        let sentences: Vec<_> = self.sources().filter_map(Source::sentence).chain(systemd).collect();
        (!sentences.is_empty()).then(|| sentences.join(" "))
    }
}

/// Labels or annotations as rules see them, as Prometheus offers them (`kubernetes_sd_config` in its documentation): a label with the value,
/// and one that says it is there.
fn offered(prefix: &str, kind: &str, texts: Option<&BTreeMap<String, String>>) -> LabelMap {
    let mut room = MAX_META_BYTES;
    let mut fits = |size: usize| {
        let fits = size <= room;
        room -= if fits { size } else { 0 };
        fits
    };
    let plain = |name: &str| -> String {
        name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect()
    };
    // That they are there comes first: a rule may ask for nothing else.
    let there: Vec<_> =
        texts.into_iter().flatten().take(MAX_META).filter(|(name, _)| fits(name.len())).collect();
    let mut labels: LabelMap = there
        .iter()
        .map(|(name, _)| (format!("{prefix}_{kind}present_{}", plain(name)), "true".into()))
        .collect();
    let values = there.into_iter().filter(|(_, value)| value.len() <= MAX_VALUE && fits(value.len()));
    labels.extend(
        values.map(|(name, value)| (format!("{prefix}_{kind}_{}", plain(name)), printable(value.as_bytes()))),
    );
    labels
}

#[cfg(test)]
mod tests;
