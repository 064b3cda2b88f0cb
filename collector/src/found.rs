//! Opening a file that others have chosen: what a process has mapped, or what lies at a path that it controls. Such a file is first
//! found without being opened, since opening is not harmless: it does something to a device, and on a file system whose answers
//! another process gives (FUSE), it waits for as long as that process likes, and so does closing it.

use std::{
    io::{self, BufRead},
    os::fd::{AsRawFd, OwnedFd},
};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, StatxFlags, open, openat, statx};
use thiserror::Error;

use crate::procfs;

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
    /// It is not there, or may not be opened.
    #[error(transparent)]
    Failed(#[from] io::Error),
}

impl From<rustix::io::Errno> for NotOpened {
    fn from(error: rustix::io::Errno) -> Self {
        NotOpened::Failed(error.into())
    }
}

/// Opens the file that a path leads to, if it is a regular one that opens at once. `pid`: a process that has it mapped.
pub(crate) fn open_path(path: &str, pid: u32) -> Result<OwnedFd, NotOpened> {
    open_found(&open(path, FIND, Mode::empty())?, pid)
}

/// Opens a file of a folder, no link. `pid`: the process whose folder it is.
pub(crate) fn open_in(folder: &OwnedFd, name: &str, pid: u32) -> Result<OwnedFd, NotOpened> {
    open_found(&find_in(folder, name, OFlags::empty(), pid)?, pid)
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
    if is_on_fuse(folder, pid)?.1 {
        return Err(NotOpened::OnFuse);
    }
    Ok(openat(folder, name, FIND | OFlags::NOFOLLOW | flags, Mode::empty())?)
}

fn open_found(found: &OwnedFd, pid: u32) -> Result<OwnedFd, NotOpened> {
    let (kind, is_on_fuse) = is_on_fuse(found, pid)?;
    if kind != FileType::RegularFile {
        return Err(NotOpened::NotRegular);
    }
    if is_on_fuse {
        return Err(NotOpened::OnFuse);
    }
    // The file itself, whatever its name leads to by now. Never waits for a lease that another process holds.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    Ok(openat(CWD, path, flags, Mode::empty())?)
}

/// What kind of file it is, and whether a process answers for its file system. A file system that the process has taken out of its
/// mounts is not found there, and passes for one of the kernel's: where the fence is up, it knows better.
fn is_on_fuse(found: &OwnedFd, pid: u32) -> Result<(FileType, bool), NotOpened> {
    // What the kernel knows by itself: no question to the file system.
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let status = statx(found, "", flags, StatxFlags::TYPE)?;
    let kind = FileType::from_raw_mode(status.stx_mode.into());
    // FUSE has no device of its own, as other file systems without one.
    let is_on_fuse = status.stx_dev_major == 0
        && procfs::mountinfo(pid).is_ok_and(|mounts| is_fuse(mounts, 0, status.stx_dev_minor));
    Ok((kind, is_on_fuse))
}

/// Whether a device is one of FUSE's, by `proc_pid_mountinfo(5)`: `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS TAGS... - TYPE SOURCE ...`.
/// (virtiofs is not: there, the host of a virtual machine answers.)
fn is_fuse(mounts: impl BufRead, major: u32, minor: u32) -> bool {
    let device = format!("{major}:{minor}");
    for line in mounts.split(b'\n').map_while(Result::ok) {
        let mut fields = line.split(|byte| *byte == b' ');
        if fields.nth(2) != Some(device.as_bytes()) {
            continue;
        }
        let kind = fields.skip_while(|field| *field != b"-").nth(1).unwrap_or_default();
        // One device is of one type, however often it is mounted.
        return kind == b"fuse" || kind.starts_with(b"fuse.");
    }
    false
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
        for (minor, expected) in [(35, true), (36, false), (37, true), (38, false), (39, false), (3, false)] {
            assert_eq!(is_fuse(&mounts[..], 0, minor), expected, "{minor}");
        }
    }

    #[test]
    fn a_regular_file_opens_and_nothing_else() {
        let pid = std::process::id();
        assert!(open_path("/proc/self/exe", pid).is_ok());
        for path in ["/dev/zero", "/proc/self", "/proc/self/fd/0"] {
            assert!(matches!(open_path(path, pid), Err(NotOpened::NotRegular)), "{path}");
        }
        assert!(matches!(open_path("/nowhere", pid), Err(NotOpened::Failed(_))));
    }
}
