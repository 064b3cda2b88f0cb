//! Which executables debug information is to be sent of: each that was in a profile, once, unless a rule says no or the server has it.
//! Who looks up names offers the files that it has open; nobody waits for anything here.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fs::File,
    os::unix::fs::MetadataExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use objects::{ElfFacts, FileId};
use regex::Regex;
use tokio::sync::Notify;

use super::known::{Known, Quality};

/// Executables that may wait, with their files open. More are offered again when they are seen again.
const MAX_WAITING: usize = 16;
/// Builds of which is remembered that nothing is to be sent now.
const MAX_DECIDED: usize = 16_384;

/// Of which executables debug information may be sent, by their paths.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Those that match one of these; all, if there is none.
    pub allow: Vec<Regex>,
    /// But not those that match one of these.
    pub deny: Vec<Regex>,
}

impl Rules {
    fn allows(&self, path: &str) -> bool {
        let matches = |rules: &[Regex]| rules.iter().any(|rule| rule.is_match(path));
        (self.allow.is_empty() || matches(&self.allow)) && !matches(&self.deny)
    }
}

/// An executable of which debug information is to be sent.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// For people, and for where a separate debug file lies.
    pub path: Arc<str>,
    /// What its headers said.
    pub facts: Arc<ElfFacts>,
    /// The file.
    pub file: Arc<File>,
}

/// What is to be done about an executable after it was tried.
#[derive(Clone, Copy, Debug)]
pub(super) enum Then {
    /// The server has it: nothing, for as long as that is remembered.
    Known {
        /// Whether it has it from here.
        is_ours: bool,
    },
    /// To try it again, so much later.
    Again(Duration),
    /// Nothing, in this life.
    Never,
}

impl Candidate {
    /// Its build.
    pub(super) fn id(&self) -> &FileId {
        &self.facts.id
    }

    fn quality(&self) -> Quality {
        quality(&self.facts)
    }
}

/// A separate debug file may have more than the executable says.
fn quality(facts: &ElfFacts) -> Quality {
    if facts.contents.dwarf { Quality::Dwarf } else { Quality::Symbols }
}

/// What has become of executables.
#[derive(Clone, Default, Debug)]
pub struct DebugInfoCounts {
    /// By outcome.
    pub outcomes: BTreeMap<&'static str, u64>,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Executables that wait.
    pub waiting: usize,
    /// Builds of which the server has something.
    pub known: usize,
}

#[derive(Debug)]
struct Inner {
    known: Known,
    waiting: VecDeque<Candidate>,
    /// Being worked on, or not to be asked for before then; `None`: not in this life.
    decided: HashMap<FileId, (Quality, Option<Instant>)>,
    counts: DebugInfoCounts,
    /// The store is away: no file is wanted, or held open, before then.
    paused_until: Option<Instant>,
}

/// The executables.
#[derive(Debug)]
pub struct Offers {
    rules: Rules,
    inner: Mutex<Inner>,
    arrived: Notify,
}

impl Offers {
    /// None yet.
    pub fn new(rules: Rules, known: Known) -> Self {
        let counts = DebugInfoCounts::default();
        let (waiting, decided) = (VecDeque::new(), HashMap::new());
        let inner = Inner { known, waiting, decided, counts, paused_until: None };
        Offers { rules, inner: Mutex::new(inner), arrived: Notify::new() }
    }

    /// Whether the file of this executable is wanted.
    pub fn wants(&self, facts: &ElfFacts, path: &str) -> bool {
        let contents = &facts.contents;
        let has_names = contents.dwarf
            || contents.symbol_table
            || contents.go_functions
            || contents.dynamic_symbols
            || contents.debug_data;
        if !has_names || !self.rules.allows(path) {
            return false;
        }
        let inner = self.lock();
        if inner.is_paused() || inner.waiting.len() >= MAX_WAITING {
            return false;
        }
        let is_decided = inner.decided.get(&facts.id).is_some_and(|(had, until)| {
            *had >= quality(facts) && until.is_none_or(|until| Instant::now() < until)
        });
        !is_decided
            && inner.known.get(&facts.id.to_string()).is_none_or(|known| known.quality < quality(facts))
    }

    /// Takes an executable that is wanted.
    pub fn offer(&self, candidate: Candidate) {
        let mut inner = self.lock();
        if inner.is_paused()
            || inner.waiting.len() >= MAX_WAITING
            || inner.waiting.iter().any(|one| one.id() == candidate.id())
        {
            return;
        }
        // Nobody else offers it while it is worked on.
        let quality = candidate.quality();
        inner.decide(candidate.id().clone(), quality, None);
        inner.waiting.push_back(candidate);
        drop(inner);
        self.arrived.notify_one();
    }

    /// The next one; waits for it.
    pub(super) async fn next(&self) -> Candidate {
        loop {
            let arrived = self.arrived.notified();
            if let Some(candidate) = self.lock().waiting.pop_front() {
                return candidate;
            }
            arrived.await;
        }
    }

    /// Whether this is to take the place of what the server has: of less, from here. A build id is what a file says of itself; by one
    /// that any user could have made nothing is replaced.
    pub(super) fn force(&self, candidate: &Candidate) -> bool {
        let known = self.lock().known.get(&candidate.id().to_string());
        known.is_some_and(|known| known.is_ours && known.quality < candidate.quality())
            && is_roots_own(&candidate.file)
    }

    /// Wants nothing for a while, and lets go of what waits: it is offered again when it is seen again.
    pub(super) fn pause(&self, pause: Duration) {
        let mut inner = self.lock();
        inner.paused_until = Some(Instant::now() + pause);
        for candidate in std::mem::take(&mut inner.waiting) {
            inner.decided.remove(candidate.id());
        }
    }

    /// What has become of one. What is to be written to the file of what is known, if that has changed.
    pub(super) fn decided(
        &self,
        candidate: &Candidate,
        outcome: &'static str,
        then: Then,
    ) -> Option<(PathBuf, String)> {
        let mut inner = self.lock();
        *inner.counts.outcomes.entry(outcome).or_default() += 1;
        let quality = candidate.quality();
        let until = match then {
            Then::Known { is_ours } if inner.known.add(&candidate.id().to_string(), quality, is_ours) => {
                inner.decided.remove(candidate.id());
                return Some(inner.known.file());
            }
            Then::Again(pause) => Some(Instant::now() + pause),
            Then::Known { .. } | Then::Never => None,
        };
        inner.decide(candidate.id().clone(), quality, until);
        None
    }

    pub(super) fn count_bytes(&self, bytes: u64) {
        self.lock().counts.bytes += bytes;
    }

    /// What has become of them.
    pub fn counts(&self) -> DebugInfoCounts {
        let inner = self.lock();
        DebugInfoCounts { waiting: inner.waiting.len(), known: inner.known.len(), ..inner.counts.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nobody but root can have written a file.
fn is_roots_own(file: &File) -> bool {
    const OTHERS_WRITE: u32 = 0o022;
    file.metadata().is_ok_and(|metadata| metadata.uid() == 0 && metadata.mode() & OTHERS_WRITE == 0)
}

impl Inner {
    fn is_paused(&self) -> bool {
        self.paused_until.is_some_and(|until| Instant::now() < until)
    }

    fn decide(&mut self, id: FileId, quality: Quality, until: Option<Instant>) {
        if self.decided.len() >= MAX_DECIDED {
            let now = Instant::now();
            self.decided.retain(|_, (_, until)| until.is_some_and(|until| now < until));
            if self.decided.len() >= MAX_DECIDED {
                // The server is asked again.
                self.decided.clear();
            }
        }
        self.decided.insert(id, (quality, until));
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::Permissions, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn facts() -> ElfFacts {
        ElfFacts::read(&File::open(std::env::current_exe().unwrap()).unwrap()).unwrap()
    }

    fn candidate(facts: &ElfFacts) -> Candidate {
        Candidate {
            path: "/bin/x".into(),
            facts: Arc::new(facts.clone()),
            file: Arc::new(File::open("/bin/true").unwrap()),
        }
    }

    fn offers(folder: &std::path::Path, rules: Rules) -> Offers {
        Offers::new(rules, Known::open(folder, "a:1"))
    }

    #[test]
    fn each_build_once_and_again_when_it_is_time_or_better() {
        let folder = tempfile::tempdir().unwrap();
        let offers = offers(folder.path(), Rules::default());
        let mut stripped = facts();
        stripped.contents.dwarf = false;
        assert!(offers.wants(&stripped, "/bin/x"));
        offers.offer(candidate(&stripped));
        assert!(!offers.wants(&stripped, "/bin/x"));
        assert_eq!(offers.counts().waiting, 1);
        let one = offers.lock().waiting.pop_front().unwrap();
        offers.decided(&one, "failed", Then::Again(Duration::ZERO));
        assert!(offers.wants(&stripped, "/bin/x"));
        offers.decided(&one, "not_wanted", Then::Known { is_ours: false });
        assert!(!offers.force(&candidate(&facts())), "what others have sent stays");
        offers.decided(&one, "uploaded", Then::Known { is_ours: true });
        assert!(!offers.wants(&stripped, "/bin/x"));
        // The same build with DWARF is better.
        let whole = facts();
        assert!(offers.wants(&whole, "/bin/x") && offers.force(&candidate(&whole)));
        let anybodys = Candidate { file: Arc::new(tempfile::tempfile().unwrap()), ..candidate(&whole) };
        anybodys.file.set_permissions(Permissions::from_mode(0o666)).unwrap();
        assert!(!offers.force(&anybodys));
        let (path, text) =
            offers.decided(&candidate(&whole), "uploaded", Then::Known { is_ours: true }).unwrap();
        super::super::known::write(&path, &text);
        assert!(!offers.wants(&whole, "/bin/x"));
        drop(offers);
        // After a restart.
        let next = Offers::new(Rules::default(), Known::open(folder.path(), "a:1"));
        assert!(!next.wants(&whole, "/bin/x") && !next.wants(&stripped, "/bin/x"));
    }

    #[test]
    fn rules_say_no_and_few_wait() {
        let folder = tempfile::tempdir().unwrap();
        let rule = |text: &str| vec![Regex::new(&format!("^(?:{text})$")).unwrap()];
        let offers = offers(folder.path(), Rules { allow: rule("/usr/.*|/opt/x"), deny: rule(".*/secret") });
        let mut facts = facts();
        for (path, wanted) in
            [("/usr/bin/a", true), ("/opt/x", true), ("/opt/xy", false), ("/usr/secret", false)]
        {
            assert_eq!(offers.wants(&facts, path), wanted, "{path}");
        }
        for number in 0..=u8::try_from(MAX_WAITING).unwrap() {
            facts.id.bytes = vec![number];
            offers.offer(candidate(&facts));
        }
        assert_eq!(offers.counts().waiting, MAX_WAITING);
        facts.id.bytes = vec![200];
        assert!(!offers.wants(&facts, "/usr/bin/a"));
        // When the store is away nothing is held, and all of it is wanted again after.
        offers.pause(Duration::from_hours(1));
        assert_eq!(offers.counts().waiting, 0);
        facts.id.bytes = vec![0];
        assert!(!offers.wants(&facts, "/usr/bin/a"));
        offers.pause(Duration::ZERO);
        assert!(offers.wants(&facts, "/usr/bin/a"));
    }
}
