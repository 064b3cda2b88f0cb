//! How sending goes: for the page, for `/metrics`, and for one log line at each change.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{spool::Spool, time::words};

/// What has happened since the start.
#[derive(Clone, Default, Debug)]
pub struct DeliveryCounts {
    /// Profiles that the store has.
    pub sent: u64,
    /// Bytes of these, before the transport's own.
    pub sent_bytes: u64,
    /// Profiles that it refused for good.
    pub refused: u64,
    /// Bytes of these.
    pub refused_bytes: u64,
    /// Calls, by how they ended: `ok`, `refused`, or gRPC's code; `none` without an answer.
    pub calls: BTreeMap<&'static str, u64>,
}

/// How the last call ended.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Outcome {
    /// There was none yet.
    #[default]
    None,
    /// The store took what was sent, so long ago.
    Sent(Duration),
    /// It fails since so long.
    Failing {
        /// Since the first failure.
        since: Duration,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Debug, Default)]
struct Inner {
    counts: DeliveryCounts,
    last_sent: Option<Instant>,
    failing: Option<(Instant, &'static str, String)>,
}

/// The state of sending.
#[derive(Debug)]
pub struct Delivery {
    /// The store's address, for people.
    pub store: String,
    /// What waits.
    pub spool: Arc<Spool>,
    inner: Mutex<Inner>,
}

impl Delivery {
    /// Nothing was sent yet.
    pub fn new(store: String, spool: Arc<Spool>) -> Self {
        Delivery { store, spool, inner: Mutex::default() }
    }

    /// How it goes, in words.
    pub fn sentence(&self) -> String {
        let store = &self.store;
        let mut text = match self.outcome() {
            Outcome::None => format!("Profiles go to the store {store}; none was sent yet."),
            Outcome::Sent(ago) => {
                format!("Profiles go to the store {store}; the last arrived {} ago.", words(ago))
            }
            Outcome::Failing { since, reason } => {
                format!("The store {store} has not taken profiles for {}: {reason}.", words(since))
            }
        };
        let (content, spooled) = (self.spool.content(), self.spool.counts());
        if let Some(oldest) = content.oldest {
            let mebibytes = content.bytes as f64 / f64::from(1 << 20);
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                " {} profiles ({mebibytes:.1} MiB) wait in the spool, the oldest for {}.",
                content.profiles,
                words(oldest)
            );
        }
        let refused = self.counts().refused;
        if refused > 0 {
            let _ = write!(text, " It has refused {refused} for good; the log says why.");
        }
        let lost = spooled.dropped + spooled.damaged;
        if lost > 0 {
            let _ = write!(text, " {lost} were lost for want of room, or damaged.");
        }
        text
    }

    /// What has happened.
    pub fn counts(&self) -> DeliveryCounts {
        self.lock().counts.clone()
    }

    /// How the last call ended.
    pub fn outcome(&self) -> Outcome {
        let inner = self.lock();
        match (&inner.failing, inner.last_sent) {
            (Some((since, code, reason)), _) => {
                Outcome::Failing { since: since.elapsed(), reason: format!("{reason} ({code})") }
            }
            (None, Some(sent)) => Outcome::Sent(sent.elapsed()),
            (None, None) => Outcome::None,
        }
    }

    /// Profiles have arrived. How long it had not worked before, if so.
    pub(super) fn sent(&self, profiles: u64, bytes: u64) -> Option<Duration> {
        let mut inner = self.lock();
        inner.counts.sent += profiles;
        inner.counts.sent_bytes += bytes;
        *inner.counts.calls.entry("ok").or_default() += 1;
        inner.last_sent = Some(Instant::now());
        inner.failing.take().map(|(since, ..)| since.elapsed())
    }

    /// Profiles were refused for good: the store is there, and says so.
    pub(super) fn refused(&self, profiles: u64, bytes: u64) {
        let mut inner = self.lock();
        inner.counts.refused += profiles;
        inner.counts.refused_bytes += bytes;
        inner.failing = None;
    }

    /// A call failed. `true` if that is news: it worked before, or failed otherwise.
    pub(super) fn failed(&self, code: &'static str, reason: &str) -> bool {
        self.count_call(code);
        let mut inner = self.lock();
        let before = inner.failing.take();
        let is_news = before.as_ref().is_none_or(|(_, before, _)| *before != code);
        let since = before.map_or_else(Instant::now, |(since, ..)| since);
        inner.failing = Some((since, code, reason.to_owned()));
        is_news
    }

    pub(super) fn count_call(&self, how: &'static str) {
        *self.lock().counts.calls.entry(how).or_default() += 1;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_news_and_more_of_the_same_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Arc::new(Spool::open(folder.path(), 1 << 20).unwrap());
        let delivery = Delivery::new("a:1".into(), Arc::clone(&spool));
        assert!(delivery.sentence().contains("none was sent yet"));
        assert_eq!(delivery.outcome(), Outcome::None);
        assert!(delivery.failed("UNAVAILABLE", "refused"));
        assert!(!delivery.failed("UNAVAILABLE", "refused"));
        assert!(delivery.failed("UNAUTHENTICATED", "no token"));
        assert!(
            matches!(delivery.outcome(), Outcome::Failing { reason, .. } if reason == "no token (UNAUTHENTICATED)")
        );
        spool.put(b"x", 7).unwrap();
        let sentence = delivery.sentence();
        assert!(
            sentence.contains("has not taken profiles for ")
                && sentence.contains(" s: no token (UNAUTHENTICATED)")
                && sentence.contains(" 7 profiles"),
            "{sentence}"
        );
        assert!(delivery.sent(3, 100).is_some());
        assert!(delivery.sent(1, 10).is_none());
        assert!(matches!(delivery.outcome(), Outcome::Sent(_)));
        delivery.refused(1, 5);
        assert!(delivery.sentence().contains("refused 1 for good"));
        let counts = delivery.counts();
        assert_eq!((counts.sent, counts.sent_bytes, counts.refused), (4, 110, 1));
        assert_eq!(counts.calls, [("UNAUTHENTICATED", 1), ("UNAVAILABLE", 2), ("ok", 2)].into());
    }
}
