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
    found::{self, NotOpened},
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
/// Beyond so many, only the end of a path is kept: paths have up to 4,096 bytes.
const WITH_WHOLE_PATHS: usize = 4096;
/// How much of it, in bytes.
const END_OF_PATH: usize = 128;
/// The vdso, which is the same in all processes.
pub(crate) const VDSO: ExecutableId = ExecutableId(1);
/// All those for which there was no room.
const BEYOND: ExecutableId = ExecutableId(2);

/// What is known of executables.
pub(crate) struct Executables {
    known: HashMap<ExecutableId, Known>,
    by_identity: HashMap<Identity, ExecutableId>,
    /// Files by the numbers of mapping records: those that could not be opened yet, and those that `fstat` gives the same numbers of. Where
    /// it does not (btrfs), equal numbers may be different files, and each mapping is looked at.
    by_numbers: HashMap<FileNumbers, Found>,
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

impl Opened {
    /// Whether another file has been mapped in the place of the one that a record tells of. `is_known`: a file with the record's numbers has
    /// been seen.
    fn is_another(&self, mapped: &Mapped, is_known: bool) -> bool {
        // Inode numbers are the same also where devices are not; overlayfs may say more in their upper half.
        let has_inode = (self.identity.inode ^ mapped.file.inode) << 32 == 0;
        let has_name =
            || found::path_of(&self.file).is_none_or(|path| name_in(&path) == name_in(&mapped.path));
        // overlayfs shows what it has copied by the number of before.
        !has_inode && (is_known || !has_name())
    }
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
            last: BEYOND.0,
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
        let found = self.by_numbers.get(&numbers).map(|found| (found.id, found.look_again));
        if let Some((id, look_again)) = found
            && now < look_again
            && self.is_open(id)
        {
            return (id, None);
        }
        let device = (numbers.major, numbers.minor);
        let has_numbers = |identity: &Identity| {
            identity.inode == numbers.inode && device == (major(identity.device), minor(identity.device))
        };
        let (start, end) = mapped.opened_at;
        let is_known = found.is_some_and(|(id, _)| self.is_open(id));
        let opened = open(mapped.pid, start, end, has_numbers).and_then(|opened| {
            if opened.is_another(mapped, is_known) { Err(NotOpened::Replaced) } else { Ok(opened) }
        });
        if let Err(error) = &opened {
            // Its name is of somebody else's choice.
            let path = mapped.path.escape_ascii();
            log::debug!("process {} has {path} mapped, which cannot be opened: {error}", mapped.pid);
        }
        let loss = if matches!(opened, Err(NotOpened::OnFuse)) { Loss::OnFuse } else { Loss::NotOpened };
        if let Ok(opened) = opened {
            // Where it has not these numbers it may be another file all the same. That is this process's affair: for others nothing
            // follows from it.
            let is_it = has_numbers(&opened.identity);
            let id = match self.by_identity.get(&opened.identity) {
                Some(id) => *id,
                // The first look at a file that could not be opened before: it keeps the id that it was told under.
                None => match found.filter(|(id, _)| is_it && !self.is_open(*id)) {
                    Some((id, _)) => {
                        self.keep(
                            id,
                            ExecutableKind::File(opened.identity),
                            &mapped.path,
                            Some(&opened.file),
                        );
                        id
                    }
                    None if self.is_full() => return (self.beyond(losses), None),
                    None => self.add(ExecutableKind::File(opened.identity), &mapped.path, Some(&opened.file)),
                },
            };
            if is_it {
                let look_again = now.saturating_add(LOOK_AGAIN_AFTER);
                self.by_numbers.insert(numbers, Found { id, look_again });
            }
            return (id, Some(opened.file));
        }
        // Gone already. A file of those numbers that was seen before is most likely the same.
        if let Some((id, _)) = found {
            self.by_numbers.insert(numbers, Found { id, look_again: now.saturating_add(TRY_AGAIN_AFTER) });
            return (id, None);
        }
        if self.is_full() {
            return (self.beyond(losses), None);
        }
        losses.add(loss, 1);
        let id = self.add(ExecutableKind::Unopened, &mapped.path, None);
        self.by_numbers.insert(numbers, Found { id, look_again: 0 });
        (id, None)
    }

    fn is_full(&self) -> bool {
        self.known.len() >= MAX_EXECUTABLES
    }

    /// One id for all that there is no room for.
    fn beyond(&mut self, losses: &mut Losses) -> ExecutableId {
        losses.add(Loss::NotOpened, 1);
        let beyond = || Known { kind: ExecutableKind::Unopened, path: b"[too many files]".to_vec(), told: 0 };
        self.known.entry(BEYOND).or_insert_with(beyond);
        BEYOND
    }

    fn is_open(&self, id: ExecutableId) -> bool {
        self.known.get(&id).is_some_and(|known| known.kind != ExecutableKind::Unopened)
    }

    fn add(&mut self, kind: ExecutableKind, path: &[u8], file: Option<&OwnedFd>) -> ExecutableId {
        self.last = self.last.wrapping_add(1).max(BEYOND.0 + 1);
        let id = ExecutableId(self.last);
        self.keep(id, kind, path, file);
        id
    }

    fn keep(&mut self, id: ExecutableId, kind: ExecutableKind, path: &[u8], file: Option<&OwnedFd>) {
        let is_unlinked = file.and_then(|file| fstat(file).ok()).is_some_and(|stat| stat.st_nlink == 0);
        let path = if is_unlinked { without_deleted(path) } else { path };
        let is_whole = self.known.len() < WITH_WHOLE_PATHS;
        let path = if is_whole { path } else { &path[path.len().saturating_sub(END_OF_PATH)..] };
        if let ExecutableKind::File(identity) = kind {
            self.by_identity.insert(identity, id);
        }
        self.known.insert(id, Known { kind, path: path.to_vec(), told: 0 });
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

/// A path's last part, which is the same in every mount namespace.
fn name_in(path: &[u8]) -> &[u8] {
    without_deleted(path).rsplit(|byte| *byte == b'/').next().unwrap_or(path)
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

    /// A process that maps a library and at once something else in its place: that is not what others have mapped.
    #[test]
    fn what_lies_there_by_now_is_not_taken_for_what_was_mapped() {
        let mut executables = Executables::new();
        let mut losses = Losses::new();
        if !may_open() {
            return;
        }
        let (own_id, _) = executables.of(&own(), 0, &mut losses);
        // Its numbers are of a file that was not seen yet, of one that could not be opened, and of one that was.
        let other = FileNumbers { inode: own().file.inode + 1, ..own().file };
        let gone = Mapped { pid: u32::MAX, file: other, path: b"/lib".to_vec(), ..own() };
        let swapped = Mapped { file: other, ..own() };
        assert!(matches!(executables.of(&swapped, 1, &mut losses), (id, Some(_)) if id == own_id));
        let (other_id, _) = executables.of(&gone, 2, &mut losses);
        assert_ne!(other_id, own_id);
        executables.of(&swapped, 3, &mut losses);
        assert_eq!(executables.of(&gone, 4, &mut losses).0, other_id);
        assert_eq!(executables.tell(other_id, 1).unwrap().kind, ExecutableKind::Unopened);
        let elsewhere = FileNumbers { minor: own().file.minor + 1, ..own().file };
        executables.of(&Mapped { file: elsewhere, ..own() }, 5, &mut losses);
        // The device is not given up for that.
        assert!(matches!(executables.of(&own(), 6, &mut losses), (id, None) if id == own_id));
        // Nor is it taken for what this process had there: where that was seen before, or has another name.
        let late = Mapped { path: b"/lib/other.so".to_vec(), ..swapped };
        let (late_id, file) = executables.of(&late, 7, &mut losses);
        assert!(late_id == other_id && file.is_none());
        let identity = Identity { device: 1, inode: 1, ctime: 0, ctime_nanos: 0, size: 0 };
        executables.keep(other_id, ExecutableKind::File(identity), b"/lib", None);
        let swapped = Mapped { path: own().path, ..late };
        assert!(matches!(executables.of(&swapped, u64::MAX / 2, &mut losses), (id, None) if id == other_id));
        // overlayfs has devices of its own, and may have more in a number.
        let numbers = FileNumbers { minor: 77, inode: own().file.inode | 1 << 60, ..own().file };
        let shown = Mapped { path: b"/lower".to_vec(), file: numbers, ..own() };
        assert!(matches!(executables.of(&shown, 8, &mut losses), (id, Some(_)) if id == own_id));
    }

    #[test]
    fn there_is_a_bound() {
        let mut executables = Executables::new();
        let mut losses = Losses::new();
        let path = vec![b'a'; 4000];
        while executables.len() < MAX_EXECUTABLES {
            executables.add(ExecutableKind::Unopened, &path, None);
        }
        let bytes: usize = executables.known.values().map(|known| known.path.len()).sum();
        assert!(bytes < 25 << 20, "{bytes}");
        let gone = |inode| Mapped {
            pid: u32::MAX,
            file: FileNumbers { major: 1, minor: 1, inode, generation: 0 },
            ..own()
        };
        let ids = [1, 2].map(|inode| executables.of(&gone(inode), 0, &mut losses).0);
        assert_eq!(ids, [BEYOND; 2]);
        // Nor is a path longer for being told of twice.
        let unopened = ExecutableId(executables.last);
        let identity = Identity { device: 1, inode: 1, ctime: 0, ctime_nanos: 0, size: 0 };
        executables.keep(unopened, ExecutableKind::File(identity), &path, None);
        assert_eq!(executables.known[&unopened].path.len(), END_OF_PATH);
        // A file in the place of one that is known already is no way round it.
        let other = FileNumbers { minor: own().file.minor + 2, ..own().file };
        executables.by_numbers.insert(other, Found { id: VDSO, look_again: 0 });
        if may_open() {
            assert_eq!(executables.of(&Mapped { file: other, ..own() }, 1, &mut losses).0, BEYOND);
            // What is known stays known, also where `fstat` gives other numbers (btrfs).
            let known = open(std::process::id(), own().start, own().end, |_| true).unwrap();
            executables.by_identity.insert(known.identity, unopened);
            assert_eq!(executables.of(&Mapped { file: other, ..own() }, 2, &mut losses).0, unopened);
            let elsewhere = FileNumbers { minor: own().file.minor + 1, ..own().file };
            assert_eq!(executables.of(&Mapped { file: elsewhere, ..own() }, 3, &mut losses).0, unopened);
        }
        assert!(executables.tell(BEYOND, 1).is_some() && executables.len() == MAX_EXECUTABLES + 1);
        executables.retain(&HashSet::new());
        assert_ne!(executables.of(&gone(1), 0, &mut losses).0, BEYOND);
    }

    #[test]
    fn only_the_kernels_own_suffix_goes() {
        assert_eq!(without_deleted(b"/a (deleted)"), b"/a");
        assert_eq!(without_deleted(b"/a (deleted) (deleted)"), b"/a (deleted)");
        assert_eq!(without_deleted(b"/a"), b"/a");
    }
}
