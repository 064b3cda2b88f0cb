//! systemd, asked over its bus for what the paths of cgroups do not say: which unit a name of a flag stands for (a name can be an alias), and how
//! units are described. It is asked only where one of these is wanted, and needs not be there.

mod bus;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tracing::{info, warn};

use self::bus::{Bus, BusError};
use super::{MAX_VALUE, source::Outcome};
use crate::{backoff::Backoff, printable::printable};

/// How often it is asked which units names stand for: a link can come to lead elsewhere.
const NAMES_EVERY: Duration = Duration::from_secs(10);
/// A description that is older is asked for again, when its unit is seen.
const DESCRIPTION_AGE: Duration = Duration::from_mins(1);
/// How long is waited after a failure, at first and at most.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Most units whose descriptions are known. Beyond that the oldest go.
const MAX_UNITS: usize = 4096;
/// Most units that are asked for in one call.
const MAX_ASKED: usize = 256;
/// How long the first answer is waited for, at the start.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// What systemd has told.
#[derive(Debug)]
pub struct Systemd {
    /// Whole names of units that flags have.
    names: Vec<String>,
    /// The units that these stand for; `None` until that is known, or nobody is there to say it.
    ids: watch::Sender<Option<BTreeSet<String>>>,
    inner: Mutex<Inner>,
    /// Rung when it has told something.
    changed: Arc<Notify>,
    /// Rung when it is asked.
    wanted: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    descriptions: HashMap<String, Description>,
    asked: BTreeSet<String>,
    state: State,
    errors: u64,
}

/// How asking goes.
#[derive(Debug, Default)]
enum State {
    /// Nobody has asked.
    #[default]
    Waiting,
    Absent,
    Answering,
    Failing(Instant, String),
}

#[derive(Debug)]
struct Description {
    /// `None`: systemd has no such unit.
    text: Option<String>,
    since: Instant,
}

impl Systemd {
    /// To be asked what these whole names of units stand for. `changed` is rung when it has told something.
    pub(super) fn new(names: Vec<String>, changed: Arc<Notify>) -> Self {
        Systemd {
            names,
            ids: watch::Sender::new(None),
            inner: Mutex::default(),
            changed,
            wanted: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How asking goes; `None` where nobody has asked yet.
    pub fn outcome(&self) -> Option<Outcome> {
        Some(match &self.lock().state {
            State::Waiting => return None,
            State::Absent => Outcome::Absent,
            State::Answering => Outcome::Following,
            State::Failing(since, reason) => Outcome::Failing(since.elapsed(), reason.clone()),
        })
    }

    /// How often asking has failed.
    pub fn errors(&self) -> u64 {
        self.lock().errors
    }

    /// How it goes, in words; `None` where there is nothing to say.
    pub(super) fn sentence(&self) -> Option<String> {
        let Outcome::Failing(since, reason) = self.outcome()? else { return None };
        let since = crate::time::words(since);
        Some(format!("systemd has not answered for {since}: {reason}. What it said before is still used."))
    }

    /// The units that names of flags stand for, as that becomes known and changes.
    pub fn ids(&self) -> watch::Receiver<Option<BTreeSet<String>>> {
        self.ids.subscribe()
    }

    /// Waits until it is known what names of flags stand for, for a moment at most: that need not come.
    pub async fn first_answer(&self) {
        if !self.names.is_empty() {
            let mut ids = self.ids();
            // What is not known yet is used when it is.
            let _ = timeout(FIRST_ANSWER, ids.wait_for(Option::is_some)).await;
        }
    }

    /// How this unit is described, if that is known.
    pub(super) fn description(&self, unit: &str) -> Option<String> {
        self.lock().descriptions.get(unit)?.text.clone()
    }

    /// Has it asked how these units are described, if that is not known, or was long ago.
    pub(super) fn ask<'a>(&self, units: impl Iterator<Item = &'a str>) {
        let mut inner = self.lock();
        let is_old = |unit: &str| match inner.descriptions.get(unit) {
            Some(known) => known.since.elapsed() >= DESCRIPTION_AGE,
            None => true,
        };
        // A cgroup may have the name of a template, for which systemd would refuse to answer at all.
        let old = units.filter(|unit| is_old(unit) && !unit.contains("@."));
        let old: Vec<_> = old.take(MAX_UNITS).map(str::to_owned).collect();
        let is_asked = !old.is_empty();
        inner.asked.extend(old);
        drop(inner);
        if is_asked {
            self.wanted.notify_one();
        }
    }

    /// Whether an answer may come to how this unit is described, and none is known.
    pub(super) fn is_awaited(&self, unit: &str) -> bool {
        let inner = self.lock();
        let may_answer = matches!(inner.state, State::Waiting | State::Answering);
        may_answer && inner.asked.contains(unit) && !inner.descriptions.contains_key(unit)
    }

    /// Asks for all that is wanted.
    async fn ask_bus(&self, bus: &Bus) -> Result<(), BusError> {
        if !self.names.is_empty() {
            let mut ids = BTreeSet::new();
            for name in &self.names {
                // One at a time: which unit stands for which name is not in the answer. A name that is a unit's own selects it by itself,
                // whether it is there or not.
                let told = bus.units(&[name]).await?.into_iter().map(|unit| unit.id);
                ids.extend(told.filter(|id| id != name));
            }
            self.ids.send_if_modified(|known| {
                let is_new = known.as_ref() != Some(&ids);
                *known = Some(ids);
                is_new
            });
        }
        loop {
            let asked: Vec<String> = self.lock().asked.iter().take(MAX_ASKED).cloned().collect();
            if asked.is_empty() {
                return Ok(());
            }
            let names: Vec<&str> = asked.iter().map(String::as_str).collect();
            let told = bus.units(&names).await?;
            self.learn(&asked, told);
        }
    }

    /// What it has told of the units that it was asked for.
    fn learn(&self, asked: &[String], told: Vec<bus::Unit>) {
        let since = Instant::now();
        let mut inner = self.lock();
        for name in asked {
            inner.asked.remove(name);
            inner.descriptions.insert(name.clone(), Description { text: None, since });
        }
        for unit in told {
            let mut text = printable(unit.description.as_bytes());
            text.truncate(text.floor_char_boundary(MAX_VALUE));
            inner.descriptions.insert(unit.id, Description { text: Some(text), since });
        }
        if inner.descriptions.len() > MAX_UNITS {
            let mut ages: Vec<Instant> = inner.descriptions.values().map(|known| known.since).collect();
            let excess = ages.len() - MAX_UNITS;
            let (_, last, _) = ages.select_nth_unstable(excess - 1);
            let last = *last;
            // What was told at one time goes at one time.
            inner.descriptions.retain(|_, known| known.since > last);
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    fn succeeded(&self) {
        let before = std::mem::replace(&mut self.lock().state, State::Answering);
        if let State::Failing(since, _) = before {
            info!("systemd answers again, after {} s", since.elapsed().as_secs());
        }
    }

    fn failed(&self, error: &BusError) {
        let mut inner = self.lock();
        // They are asked for again when they are seen again.
        inner.asked.clear();
        let reason = printable(error.to_string().as_bytes());
        match &mut inner.state {
            State::Waiting | State::Absent if error.is_absence() => {
                if matches!(inner.state, State::Waiting) {
                    info!(
                        "{reason}; units go by the names that their cgroups have, and have no descriptions"
                    );
                }
                inner.state = State::Absent;
            }
            State::Failing(_, known) => {
                *known = reason;
                inner.errors += 1;
            }
            State::Waiting | State::Absent | State::Answering => {
                warn!("{reason}; what it said before is still used");
                inner.state = State::Failing(Instant::now(), reason);
                inner.errors += 1;
            }
        }
        drop(inner);
        // Nobody waits for what it would have told.
        self.changed.notify_waiters();
        self.ids.send_if_modified(|known| {
            let was_awaited = known.is_none();
            known.get_or_insert_default();
            was_awaited
        });
    }
}

/// Asks for as long as the program runs, where somebody wants to know. Never ends.
pub async fn run(systemd: Arc<Systemd>) {
    let mut bus = None;
    let mut backoff = Backoff::new(PAUSES.0, PAUSES.1);
    if systemd.names.is_empty() {
        systemd.wanted.notified().await;
    }
    loop {
        match ask(&systemd, &mut bus).await {
            Ok(()) => {
                systemd.succeeded();
                backoff.reset();
                // Whoever asks by name wants to know it when a name comes to stand for another unit.
                tokio::select! {
                    () = systemd.wanted.notified() => {}
                    () = sleep(NAMES_EVERY), if !systemd.names.is_empty() => {}
                }
            }
            Err(error) => {
                systemd.failed(&error);
                sleep(backoff.next()).await;
                if systemd.names.is_empty() {
                    systemd.wanted.notified().await;
                }
            }
        }
    }
}

/// Asks over the connection that there is, or a new one: a bus that was started again has closed it.
async fn ask(systemd: &Systemd, bus: &mut Option<Bus>) -> Result<(), BusError> {
    if let Some(open) = bus.take()
        && systemd.ask_bus(&open).await.is_ok()
    {
        *bus = Some(open);
        return Ok(());
    }
    let open = Bus::connect().await?;
    systemd.ask_bus(&open).await?;
    *bus = Some(open);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn systemd(names: &[&str]) -> Systemd {
        Systemd::new(names.iter().map(|name| (*name).to_owned()).collect(), Arc::default())
    }

    fn unit(id: &str, description: &str) -> bus::Unit {
        bus::Unit { id: id.into(), description: description.into() }
    }

    fn asked(systemd: &Systemd) -> Vec<String> {
        systemd.lock().asked.iter().cloned().collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_not_known_is_asked_for_and_again_when_it_is_old() {
        let systemd = systemd(&[]);
        systemd.ask(["a.service", "gone.scope", "template@.service"].into_iter());
        assert_eq!(asked(&systemd), ["a.service", "gone.scope"]);
        assert!(systemd.is_awaited("a.service") && !systemd.is_awaited("b.service"));
        systemd.learn(&asked(&systemd), vec![unit("a.service", "A\nname")]);
        systemd.succeeded();
        assert_eq!(systemd.description("a.service").as_deref(), Some("A\\x0aname"));
        // There is no such unit: it is not waited for again.
        systemd.ask(["a.service", "gone.scope"].into_iter());
        assert_eq!((systemd.description("gone.scope"), asked(&systemd).len()), (None, 0));
        assert!(!systemd.is_awaited("gone.scope"));
        // What was told stays in use while it is asked for once more.
        tokio::time::advance(DESCRIPTION_AGE).await;
        systemd.ask(["a.service"].into_iter());
        assert_eq!(asked(&systemd), ["a.service"]);
        assert!(!systemd.is_awaited("a.service") && systemd.description("a.service").is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_one_who_does_not_answer() {
        let systemd = systemd(&["a.service"]);
        systemd.ask(["a.service"].into_iter());
        systemd.failed(&BusError::Silent);
        assert!(!systemd.is_awaited("a.service") && asked(&systemd).is_empty());
        // Nor for what names stand for, at the start.
        let begun = Instant::now();
        systemd.first_answer().await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(
            systemd.sentence().is_some_and(|text| text.contains("within 5 seconds")) && systemd.errors() == 1
        );
        systemd.succeeded();
        assert_eq!((systemd.sentence(), systemd.outcome()), (None, Some(Outcome::Following)));
    }

    #[test]
    fn a_machine_without_systemd_is_no_failure() {
        let systemd = systemd(&[]);
        let missing = std::io::Error::from(std::io::ErrorKind::NotFound);
        systemd.failed(&BusError::Bus(zbus::Error::InputOutput(missing.into())));
        assert_eq!(
            (systemd.outcome(), systemd.sentence(), systemd.errors()),
            (Some(Outcome::Absent), None, 0)
        );
        let unknown = zbus::fdo::Error::ServiceUnknown(String::new());
        assert!(
            BusError::Bus(zbus::Error::FDO(unknown.into())).is_absence() && !BusError::Silent.is_absence()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_are_kept_the_newest() {
        let systemd = systemd(&[]);
        for round in 0..3 {
            let names: Vec<_> = (0..MAX_UNITS / 2).map(|number| format!("{round}-{number}.scope")).collect();
            systemd.learn(&names, names.iter().map(|name| unit(name, "x")).collect());
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(systemd.lock().descriptions.len() <= MAX_UNITS);
        assert!(systemd.description("0-0.scope").is_none() && systemd.description("1-0.scope").is_some());
        systemd.learn(&[], vec![unit("long.service", &"ä".repeat(MAX_VALUE))]);
        assert_eq!(systemd.description("long.service").map(|text| text.len()), Some(MAX_VALUE));
    }
}
