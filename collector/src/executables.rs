//! Executables: which file a mapping shows, and the ids that the uploader knows them by. A file is what `fstat` says
//! of the opened mapping. No file is kept open, and none is read.

use std::{
    collections::{HashMap, HashSet},
    os::fd::OwnedFd,
};

use ipc::{Executable, ExecutableId, ExecutableKind, Identity};
use records::Loss;
use rustix::fs::{fstat, major, minor};

use crate::{
    counters::Losses,
    found::NotOpened,
    kernel_events::{FileNumbers, Mapped},
    procfs,
};

/// Executables that are known at a time, of which some may no longer be mapped.
pub(crate) const MAX_EXECUTABLES: usize = 64 * 1024;
/// Executables that are known at a time if fewer than half as many are mapped: those that ran a moment ago come again, with
/// rows that need not be computed again, but a machine that runs a new one each moment needs no memory of them all.
pub(crate) const KEPT_EXECUTABLES: usize = 2048;
/// How long the numbers of a mapping record are taken for the same file without a look, in nanoseconds. A file that is
/// written anew in place keeps its numbers; only its ctime tells.
const LOOK_AGAIN_AFTER: u64 = 1_000_000_000;
/// How long after a look that came too late the next one is, in nanoseconds: in a storm of processes that live less
/// than a millisecond every look comes too late.
const TRY_AGAIN_AFTER: u64 = 50_000_000;
/// The vdso, which is the same in all processes.
pub(crate) const VDSO: ExecutableId = ExecutableId(1);

/// What is known of executables.
pub(crate) struct Executables {
    known: HashMap<ExecutableId, Known>,
    by_identity: HashMap<Identity, ExecutableId>,
    by_numbers: HashMap<FileNumbers, Found>,
    /// Devices of which the record and `fstat` give different numbers (btrfs): there, equal numbers may be different
    /// files, so that each mapping is looked at.
    ambiguous: HashSet<(u32, u32)>,
    last: u32,
}

struct Known {
    kind: ExecutableKind,
    path: Vec<u8>,
    /// The session that was told of it.
    told: u32,
}

struct Found {
    id: ExecutableId,
    /// When to look at it again, in nanoseconds.
    look_again: u64,
}

/// An open file and what it is.
pub(crate) struct Opened {
    pub(crate) file: OwnedFd,
    pub(crate) identity: Identity,
}

/// Opens what a process has mapped there. It fails when the process or the mapping is gone, or when it may not be opened.
///
/// A process whose first thread has ended shows no mappings, though its other threads run on; then its executable is
/// tried, the very file too, and taken if `is_right` says so.
pub(crate) fn open(
    pid: u32,
    start: u64,
    end: u64,
    is_right: impl Fn(&Identity) -> bool,
) -> Result<Opened, NotOpened> {
    let mapped = procfs::open_mapped(pid, start, end).or_else(|error| match error {
        NotOpened::Failed(error) => {
            let (start, end) = procfs::bounds_of_mapping(pid, start).ok_or(error)?;
            procfs::open_mapped(pid, start, end)
        }
        other => Err(other),
    });
    match mapped {
        Ok(file) => identify(file),
        Err(NotOpened::Failed(error)) => {
            let executable = procfs::open_executable(pid).and_then(|file| identify(file).ok());
            executable.filter(|opened| is_right(&opened.identity)).ok_or(NotOpened::Failed(error))
        }
        Err(other) => Err(other),
    }
}

fn identify(file: OwnedFd) -> Result<Opened, NotOpened> {
    let attributes = fstat(&file)?;
    let identity = Identity {
        device: attributes.st_dev,
        inode: attributes.st_ino,
        ctime: attributes.st_ctime,
        ctime_nanos: u32::try_from(attributes.st_ctime_nsec).unwrap_or(0),
        size: u64::try_from(attributes.st_size).unwrap_or(0),
    };
    Ok(Opened { file, identity })
}

impl Executables {
    pub(crate) fn new() -> Self {
        let vdso = Known { kind: ExecutableKind::Vdso, path: b"[vdso]".to_vec(), told: 0 };
        Executables {
            known: HashMap::from([(VDSO, vdso)]),
            by_identity: HashMap::new(),
            by_numbers: HashMap::new(),
            ambiguous: HashSet::new(),
            last: VDSO.0,
        }
    }

    /// The executable that a mapping shows, and its file if it had to be opened to know. `now` in nanoseconds.
    pub(crate) fn of(
        &mut self,
        mapped: &Mapped,
        now: u64,
        losses: &mut Losses,
    ) -> (ExecutableId, Option<OwnedFd>) {
        let numbers = mapped.file;
        let device = (numbers.major, numbers.minor);
        let found = self.by_numbers.get(&numbers).map(|found| (found.id, found.look_again));
        if let Some((id, look_again)) = found
            && now < look_again
            && !self.ambiguous.contains(&device)
            && self.is_open(id)
        {
            return (id, None);
        }
        let has_numbers = |identity: &Identity| {
            identity.inode == numbers.inode && device == (major(identity.device), minor(identity.device))
        };
        let (start, end) = mapped.opened_at;
        let opened = open(mapped.pid, start, end, has_numbers);
        if let Err(error) = &opened {
            // Its name is of somebody else's choice.
            let path = mapped.path.escape_ascii();
            log::debug!("process {} has {path} mapped, which cannot be opened: {error}", mapped.pid);
        }
        let loss = if matches!(opened, Err(NotOpened::OnFuse)) { Loss::OnFuse } else { Loss::NotOpened };
        if let Ok(opened) = opened {
            if device != (major(opened.identity.device), minor(opened.identity.device)) {
                self.ambiguous.insert(device);
            }
            let id = match self.by_identity.get(&opened.identity) {
                Some(id) => *id,
                // The first look at a file that could not be opened before: it keeps the id that it was told under.
                None => match found.filter(|(id, _)| !self.is_open(*id)) {
                    Some((id, _)) => self.identify(id, opened.identity, &mapped.path),
                    None => self.add(ExecutableKind::File(opened.identity), &mapped.path, Some(&opened.file)),
                },
            };
            self.by_numbers.insert(numbers, Found { id, look_again: now.saturating_add(LOOK_AGAIN_AFTER) });
            return (id, Some(opened.file));
        }
        // Gone already. A file of those numbers that was seen before is most likely the same.
        if let Some((id, _)) = found.filter(|_| !self.ambiguous.contains(&device)) {
            self.by_numbers.insert(numbers, Found { id, look_again: now.saturating_add(TRY_AGAIN_AFTER) });
            return (id, None);
        }
        losses.add(loss, 1);
        let id = self.add(ExecutableKind::Unopened, &mapped.path, None);
        self.by_numbers.insert(numbers, Found { id, look_again: 0 });
        (id, None)
    }

    fn is_open(&self, id: ExecutableId) -> bool {
        self.known.get(&id).is_some_and(|known| known.kind != ExecutableKind::Unopened)
    }

    fn identify(&mut self, id: ExecutableId, identity: Identity, path: &[u8]) -> ExecutableId {
        let known = Known { kind: ExecutableKind::File(identity), path: path.to_vec(), told: 0 };
        self.known.insert(id, known);
        self.by_identity.insert(identity, id);
        id
    }

    fn add(&mut self, kind: ExecutableKind, path: &[u8], file: Option<&OwnedFd>) -> ExecutableId {
        self.last = self.last.wrapping_add(1).max(VDSO.0 + 1);
        let id = ExecutableId(self.last);
        let is_unlinked = file.and_then(|file| fstat(file).ok()).is_some_and(|stat| stat.st_nlink == 0);
        let path = if is_unlinked { without_deleted(path) } else { path };
        if let ExecutableKind::File(identity) = kind {
            self.by_identity.insert(identity, id);
        }
        self.known.insert(id, Known { kind, path: path.to_vec(), told: 0 });
        id
    }

    /// What `session` must be told of this executable, if it was not yet.
    pub(crate) fn tell(&mut self, id: ExecutableId, session: u32) -> Option<Executable> {
        let known = self.known.get_mut(&id).filter(|known| known.told != session)?;
        known.told = session;
        Some(Executable { id, kind: known.kind, path: known.path.clone() })
    }

    /// What the uploader was told of it, once more.
    pub(crate) fn get(&self, id: ExecutableId) -> Option<Executable> {
        self.known.get(&id).map(|known| Executable { id, kind: known.kind, path: known.path.clone() })
    }

    pub(crate) fn len(&self) -> usize {
        self.known.len()
    }

    /// Forgets all that is not in `mapped`.
    pub(crate) fn retain(&mut self, mapped: &HashSet<ExecutableId>) {
        let keep = |id: ExecutableId| id == VDSO || mapped.contains(&id);
        self.known.retain(|id, _| keep(*id));
        self.by_identity.retain(|_, id| keep(*id));
        self.by_numbers.retain(|_, found| keep(found.id));
    }
}

/// The kernel adds ` (deleted)` to the path of a file that has no name any more. A file may really be called so, so
/// this is asked only of one without a link.
fn without_deleted(path: &[u8]) -> &[u8] {
    path.strip_suffix(b" (deleted)").unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mapping of this very process's executable, as the kernel would tell of it.
    fn own() -> Mapped {
        let pid = std::process::id();
        let exe = std::env::current_exe().unwrap();
        let path = exe.as_os_str().as_encoded_bytes();
        procfs::executable_mappings(pid, 1000).unwrap().into_iter().find(|m| m.path == path).unwrap()
    }

    fn may_open() -> bool {
        security::missing(&[security::Capability::CAP_CHECKPOINT_RESTORE]).unwrap().is_empty()
    }

    #[test]
    fn a_file_is_opened_once_and_again_when_it_may_have_changed() {
        let mut executables = Executables::new();
        let mut losses = Losses::new();
        let mapped = own();
        let second = 1_000_000_000;
        let (id, file) = executables.of(&mapped, 10 * second, &mut losses);
        assert_ne!(id, VDSO);
        if !may_open() {
            assert!(file.is_none());
            return;
        }
        assert!(file.is_some());
        assert!(matches!(executables.of(&mapped, 10 * second + 1, &mut losses), (same, None) if same == id));
        assert!(matches!(executables.of(&mapped, 12 * second, &mut losses), (same, Some(_)) if same == id));
        // Too late for a look: not tried again at once.
        let gone = Mapped { pid: u32::MAX, ..own() };
        assert!(matches!(executables.of(&gone, 14 * second, &mut losses), (same, None) if same == id));
        assert!(matches!(executables.of(&mapped, 14 * second + 1, &mut losses), (same, None) if same == id));
        assert!(matches!(executables.of(&mapped, 15 * second, &mut losses), (same, Some(_)) if same == id));
        let told = executables.tell(id, 1).unwrap();
        assert!(matches!(told.kind, ExecutableKind::File(_)));
        assert_eq!(told.path, mapped.path);
        assert!(executables.tell(id, 1).is_none());
        assert!(executables.tell(id, 2).is_some());
        executables.retain(&HashSet::new());
        assert!(executables.get(id).is_none() && executables.get(VDSO).is_some());
    }

    #[test]
    fn what_cannot_be_opened_gets_its_file_when_it_can() {
        let mut executables = Executables::new();
        let mut losses = Losses::new();
        let gone = Mapped { pid: u32::MAX, ..own() };
        let (id, file) = executables.of(&gone, 0, &mut losses);
        assert!(file.is_none());
        assert_eq!(executables.tell(id, 1).unwrap().kind, ExecutableKind::Unopened);
        if may_open() {
            let (same, file) = executables.of(&own(), 1, &mut losses);
            assert_eq!(same, id);
            assert!(file.is_some());
            // It is told again, with what is known now.
            assert!(matches!(executables.tell(id, 1).unwrap().kind, ExecutableKind::File(_)));
        }
    }

    #[test]
    fn only_the_kernels_own_suffix_goes() {
        assert_eq!(without_deleted(b"/a (deleted)"), b"/a");
        assert_eq!(without_deleted(b"/a (deleted) (deleted)"), b"/a (deleted)");
        assert_eq!(without_deleted(b"/a"), b"/a");
    }
}
