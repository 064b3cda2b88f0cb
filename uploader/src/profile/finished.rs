//! The last finished profile of each target: what the page shows and `/query` answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::window::Ends;
use crate::targets::Labels;

/// Most targets that are remembered; those unseen for longest go first.
const MAX_TARGETS: usize = 4096;
/// Most bytes of profiles that are kept; the oldest go first, and say so.
const MAX_BYTES: usize = 12 << 20;
/// A target is remembered for this long after its last window, or for ten windows if that is longer.
const KEEP: Duration = Duration::from_mins(10);

/// A finished profile.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Number of its window.
    pub window: u64,
    /// Of what it is.
    pub labels: Arc<Labels>,
    /// When its window ended, nanoseconds since 1970.
    pub ended_nanos: i64,
    /// Its samples.
    pub samples: u64,
    /// How the unwinds of its user stacks ended.
    pub ends: Ends,
    /// What is wrong with it, for people.
    pub problem: Option<Arc<str>>,
    /// The gzipped pprof; `None` when there was no room to keep it.
    pub pprof: Option<Arc<[u8]>>,
}

#[derive(Debug, Default)]
struct Inner {
    targets: HashMap<Arc<Labels>, (Finished, Instant)>,
    bytes: usize,
}

/// The last finished profiles.
#[derive(Debug)]
pub struct Profiles {
    inner: Mutex<Inner>,
    keep: Duration,
    window: watch::Sender<u64>,
}

impl Profiles {
    /// None yet; windows will be of this length.
    pub fn new(window: Duration) -> Self {
        Profiles { inner: Mutex::default(), keep: KEEP.max(window * 10), window: watch::channel(0).0 }
    }

    /// Takes the profiles of a window, and wakes who waits for them.
    pub fn publish(&self, window: u64, finished: Vec<Finished>) {
        let now = Instant::now();
        let mut inner = self.lock();
        for profile in finished {
            inner.bytes += profile.pprof.as_ref().map_or(0, |pprof| pprof.len());
            if let Some((old, _)) = inner.targets.insert(Arc::clone(&profile.labels), (profile, now)) {
                inner.bytes -= old.pprof.as_ref().map_or(0, |pprof| pprof.len());
            }
        }
        inner.shrink(now, self.keep);
        drop(inner);
        self.window.send_replace(window);
    }

    /// Number of the last finished window, to be waited for; 0 before the first.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.window.subscribe()
    }

    /// Every target's last profile, in the order of the labels.
    pub fn all(&self) -> Vec<Finished> {
        let mut all: Vec<_> = self.lock().targets.values().map(|(finished, _)| finished.clone()).collect();
        all.sort_by(|a, b| a.labels.cmp(&b.labels));
        all
    }

    /// Targets that are remembered, and bytes of profiles.
    pub fn sizes(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.targets.len(), inner.bytes)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn shrink(&mut self, now: Instant, keep: Duration) {
        let bytes = &mut self.bytes;
        self.targets.retain(|_, (finished, seen)| {
            let kept = now.saturating_duration_since(*seen) < keep;
            if !kept {
                *bytes -= finished.pprof.as_ref().map_or(0, |pprof| pprof.len());
            }
            kept
        });
        if self.targets.len() <= MAX_TARGETS && self.bytes <= MAX_BYTES {
            return;
        }
        let mut by_age: Vec<_> = self
            .targets
            .iter()
            .map(|(labels, (finished, _))| (finished.window, Arc::clone(labels)))
            .collect();
        by_age.sort();
        for (_, labels) in by_age {
            if self.targets.len() > MAX_TARGETS {
                let removed = self.targets.remove(&labels);
                self.bytes -= removed.and_then(|(finished, _)| finished.pprof).map_or(0, |pprof| pprof.len());
            } else if self.bytes > MAX_BYTES {
                if let Some((finished, _)) = self.targets.get_mut(&labels)
                    && let Some(pprof) = finished.pprof.take()
                {
                    self.bytes -= pprof.len();
                    finished.problem =
                        Some("no room to keep this profile: it was too long ago or too large".into());
                }
            } else {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::TargetMaker;

    fn finished(window: u64, comm: &str, size: usize) -> Finished {
        Finished {
            window,
            labels: TargetMaker::new("n", []).labels(comm, None),
            ended_nanos: 0,
            samples: 1,
            ends: Ends::default(),
            problem: None,
            pprof: Some(vec![0; size].into()),
        }
    }

    #[test]
    fn the_last_profile_of_each_target_is_there() {
        let profiles = Profiles::new(Duration::from_secs(10));
        let watch = profiles.watch();
        profiles.publish(1, vec![finished(1, "b", 10), finished(1, "a", 10)]);
        profiles.publish(2, vec![finished(2, "b", 30)]);
        let all = profiles.all();
        let seen: Vec<_> = all.iter().map(|profile| (profile.labels.get("comm"), profile.window)).collect();
        assert_eq!(seen, [("a", 1), ("b", 2)]);
        assert_eq!(profiles.sizes(), (2, 40));
        assert_eq!(*watch.borrow(), 2);
    }

    #[test]
    fn bytes_and_targets_are_bounded_the_oldest_go() {
        let profiles = Profiles::new(Duration::from_secs(10));
        let half = MAX_BYTES / 2 + 1;
        profiles.publish(1, vec![finished(1, "a", half)]);
        profiles.publish(2, vec![finished(2, "b", half)]);
        let all = profiles.all();
        assert!(all[0].pprof.is_none() && all[0].problem.is_some());
        assert!(all[1].pprof.is_some());
        assert_eq!(profiles.sizes(), (2, half));

        let many = (0..MAX_TARGETS).map(|index| finished(3, &format!("t{index}"), 1)).collect();
        profiles.publish(3, many);
        assert_eq!(profiles.sizes(), (MAX_TARGETS, MAX_TARGETS));
        assert!(profiles.all().iter().all(|profile| profile.window == 3));
    }

    #[test]
    fn targets_that_are_gone_are_forgotten() {
        let mut profiles = Profiles::new(Duration::from_secs(10));
        profiles.keep = Duration::ZERO;
        profiles.publish(1, vec![finished(1, "a", 10)]);
        assert_eq!(profiles.sizes(), (0, 0));
    }
}
