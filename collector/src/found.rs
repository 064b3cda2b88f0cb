//! Opening a file that others have chosen: what a process has mapped, or what lies at a path that it controls. Such a file is first
//! found without being opened, since opening is not harmless: it does something to a device, and on a file system whose answers
//! another process gives (FUSE), it waits for as long as that process likes, and so does closing it.

use std::{
    io::{self, BufRead},
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags, open, openat, readlinkat, statx};
use thiserror::Error;

use crate::{patience, proc_text::type_of_mount, procfs};

/// Flags that find a file, and do nothing else with it.
pub(crate) const FIND: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Why a file is not open.
#[derive(Debug, Error)]
pub(crate) enum NotOpened {
    /// Another process answers for its file system.
    #[error("it lies on FUSE, where opening may take for ever")]
    OnFuse,
    /// A device, a pipe, a folder.
    #[error("not a regular file")]
    NotRegular,
    /// What the kernel says of processes, their memory among it: never a file that somebody has made.
    #[error("it lies on procfs")]
    OnProcfs,
    /// Its process has more mounts than are looked through, so that it cannot be told.
    #[error("its process has too many mounts to find its file system among them")]
    TooManyMounts,
    /// It is not the folder's own file.
    #[error("something is mounted in its place")]
    Mounted,
    /// A mapping shows another file by now than the kernel told of.
    #[error("another file has been mapped in its place")]
    Replaced,
    /// It is not there, or may not be opened.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl From<rustix::io::Errno> for NotOpened {
    fn from(error: rustix::io::Errno) -> Self {
        NotOpened::Failed(error.into())
    }
}

/// Finds what a path leads to.
pub(crate) fn find(path: &str) -> io::Result<OwnedFd> {
    Ok(open(path, FIND, Mode::empty())?)
}

/// Opens the file that a path leads to, if it is a regular one that opens at once. `pid`: a process that has it mapped.
pub(crate) fn open_path(path: &str, pid: u32) -> Result<OwnedFd, NotOpened> {
    open_found(&find(path)?, pid)
}

/// Opens a file of a folder, no link, and nothing that is mounted there: who has a mount namespace of their own (any user who may make
/// a user namespace) can mount files in it that they could not open. `pid`: the process whose folder it is.
pub(crate) fn open_in(folder: &OwnedFd, name: &str, pid: u32) -> Result<OwnedFd, NotOpened> {
    let found = find_in(folder, name, OFlags::empty(), pid)?;
    // Both are held, so neither number can be of another mount by now. Linux says it since 5.8; who does not say it is not believed.
    let mounts = (mount_of(folder)?, mount_of(&found)?);
    if mounts.0.is_none() || mounts.0 != mounts.1 {
        return Err(NotOpened::Mounted);
    }
    open_found(&found, pid)
}

/// Finds a folder of a folder, no link.
pub(crate) fn folder_in(folder: &OwnedFd, name: &std::ffi::OsStr, pid: u32) -> Result<OwnedFd, NotOpened> {
    find_in(folder, name, OFlags::DIRECTORY, pid)
}

fn find_in(
    folder: &OwnedFd,
    name: impl rustix::path::Arg,
    flags: OFlags,
    pid: u32,
) -> Result<OwnedFd, NotOpened> {
    // Looking into it is a question to the file system already.
    look_at(folder, pid)?;
    Ok(openat(folder, name, FIND | OFlags::NOFOLLOW | flags, Mode::empty())?)
}

/// Opens what was found, if it is a regular file that opens at once. `pid`: a process that has it mapped.
pub(crate) fn open_found(found: &OwnedFd, pid: u32) -> Result<OwnedFd, NotOpened> {
    if look_at(found, pid)? != FileType::RegularFile {
        return Err(NotOpened::NotRegular);
    }
    // The file itself, whatever its name leads to by now. Never waits for a lease that another process holds.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(openat(CWD, link_to(found), flags, Mode::empty())?)
}

/// The path of a file that was found or opened, as this process sees it.
pub(crate) fn path_of(file: &OwnedFd) -> Option<Vec<u8>> {
    Some(readlinkat(CWD, link_to(file), Vec::new()).ok()?.into_bytes())
}

fn link_to(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// What the kernel knows by itself: no question to the file system.
fn status(found: &OwnedFd, what: StatxFlags) -> Result<Statx, NotOpened> {
    Ok(statx(found, "", AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC, what)?)
}

/// The number of the mount that a file was found on, if the kernel says it.
fn mount_of(found: &OwnedFd) -> Result<Option<u64>, NotOpened> {
    let status = status(found, StatxFlags::MNT_ID)?;
    Ok((status.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(status.stx_mnt_id))
}

/// What kind of file it is, if it is on no file system whose files are not opened. One that the process has taken out of its
/// mounts is not found there, and passes for one of the others: where the fence is up, it knows better.
fn look_at(found: &OwnedFd, pid: u32) -> Result<FileType, NotOpened> {
    let status = status(found, StatxFlags::TYPE)?;
    let kind = FileType::from_raw_mode(status.stx_mode.into());
    // Neither has a device of its own, as other file systems without one.
    if status.stx_dev_major == 0 {
        // Who has a user namespace can have mounts by the ten thousand.
        patience::look(pid, || match procfs::mountinfo(pid) {
            Ok(mounts) => Ok(refuse(mounts, 0, status.stx_dev_minor)),
            Err(_) => Ok(Ok(())),
        })??;
    }
    Ok(kind)
}

/// Whether a device is one of FUSE's or of procfs. (virtiofs is not: there, the host of a virtual machine answers.)
fn refuse(mounts: impl BufRead, major: u32, minor: u32) -> Result<(), NotOpened> {
    let device = format!("{major}:{minor}");
    let mut length = 0;
    for line in mounts.split(b'\n').map_while(Result::ok) {
        length += line.len() as u64 + 1;
        match type_of_mount(&line, device.as_bytes()) {
            Some(b"proc") => return Err(NotOpened::OnProcfs),
            Some(kind) if kind == b"fuse" || kind.starts_with(b"fuse.") => return Err(NotOpened::OnFuse),
            Some(_) => return Ok(()),
            None => {}
        }
    }
    // What comes behind that was not read.
    if length >= procfs::MAX_MOUNTINFO { Err(NotOpened::TooManyMounts) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_file_systems() {
        let mounts = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
            40 22 0:35 / /mnt/a\\040- rw,nosuid shared:2 master:3 - fuse.sshfs a:b rw,user_id=0\n\
            41 22 0:36 / /mnt/fuse rw - overlay fuse rw\n\
            42 22 0:37 / /mnt/c rw - fuse x rw\n43 22 0:38 / /mnt/d rw - virtiofs x rw\nbroken\n\n44 22 0:39 / / rw -";
        let mounts = [mounts, &b"\n45 22 0:40 / /mnt/proc rw - proc proc rw"[..]].concat();
        for (minor, expected) in
            [(35, "FUSE"), (36, ""), (37, "FUSE"), (38, ""), (39, ""), (3, ""), (40, "procfs")]
        {
            let refused = refuse(&mounts[..], 0, minor).map_err(|error| error.to_string());
            match refused {
                Ok(()) => assert_eq!(expected, "", "{minor}"),
                Err(error) => assert!(!expected.is_empty() && error.contains(expected), "{minor}: {error}"),
            }
        }
    }

    #[test]
    fn a_mount_behind_very_many_is_not_overlooked() {
        let line = b"22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n";
        let many = line.repeat(usize::try_from(procfs::MAX_MOUNTINFO).unwrap() / line.len() + 1);
        let read = io::Read::take(&many[..], procfs::MAX_MOUNTINFO);
        assert!(matches!(refuse(read, 0, 40), Err(NotOpened::TooManyMounts)));
        assert!(refuse(&many[..many.len() / 2], 0, 40).is_ok());
    }

    #[test]
    fn a_regular_file_opens_and_nothing_else() {
        let pid = std::process::id();
        assert!(open_path("/proc/self/exe", pid).is_ok());
        for path in ["/dev/zero", "/tmp", "/proc/self/fd/0"] {
            assert!(matches!(open_path(path, pid), Err(NotOpened::NotRegular)), "{path}");
        }
        assert!(matches!(open_path("/proc/self/environ", pid), Err(NotOpened::OnProcfs)));
        assert!(matches!(open_path("/nowhere", pid), Err(NotOpened::Failed(_))));
    }
}
