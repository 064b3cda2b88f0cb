//! Finding the perf map of a process: the file in which a run-time compiler says where it put its code. It is the one
//! file that is known by its name only, and the name leads through directories that the process controls (W2).

use std::{
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path},
};

use rustix::fs::{Mode, OFlags, fstat, open, readlinkat};

use crate::found::{FIND, NotOpened, folder_in, open_in};

/// Opens `/tmp/perf-PID.map` as the process itself would: under its own root, with the pid that it has in its own pid
/// namespace. Only a regular file that belongs to the process's own user or to root.
pub(crate) fn open_of(pid: u32) -> Result<OwnedFd, NotOpened> {
    // The one link that is followed: the kernel's own.
    let root = open(format!("/proc/{pid}/root"), FIND | OFlags::DIRECTORY, Mode::empty())?;
    let process = Status::of(pid)?;
    let folder = folder_of(&root, pid)?;
    let file = open_in(&folder, &format!("perf-{}.map", process.innermost_pid), pid)?;
    let owner = fstat(&file)?.st_uid;
    if owner != process.effective_uid && owner != 0 {
        return Err(io::Error::other("it belongs to another user").into());
    }
    Ok(file)
}

/// The folder of perf maps under a process's root. Where `/tmp` is a link, as on some hosts, the folders that it names are looked
/// for under the same root, none of them a link again. (openat2(2) would resolve links itself, but its flags lie where no filter
/// of system calls can see whether it opens for writing.)
fn folder_of(root: &OwnedFd, pid: u32) -> Result<OwnedFd, NotOpened> {
    let folder = folder_in(root, "tmp".as_ref(), pid);
    if !matches!(folder, Err(NotOpened::Failed(_))) {
        return folder;
    }
    let link = readlinkat(root, "tmp", Vec::new())?;
    let mut folder = None;
    for component in Path::new(std::ffi::OsStr::from_bytes(link.as_bytes())).components() {
        match component {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => {
                folder = Some(folder_in(folder.as_ref().unwrap_or(root), name, pid)?);
            }
            _ => return Err(io::Error::other("/tmp is a link to a place that is not followed").into()),
        }
    }
    folder.ok_or_else(|| io::Error::other("/tmp is a link to the root").into())
}

/// What `/proc/PID/status` says (`proc_pid_status(5)`).
struct Status {
    /// The last number of `NSpid`.
    innermost_pid: u32,
    /// The second number of `Uid`.
    effective_uid: u32,
}

impl Status {
    fn of(pid: u32) -> io::Result<Self> {
        let text = std::fs::read(format!("/proc/{pid}/status"))?;
        let text = String::from_utf8_lossy(&text);
        let numbers = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect::<Vec<u32>>())
        };
        let innermost_pid = numbers("NSpid:").and_then(|pids| pids.last().copied()).unwrap_or(pid);
        let effective_uid = numbers("Uid:").and_then(|uids| uids.get(1).copied());
        effective_uid
            .map(|effective_uid| Status { innermost_pid, effective_uid })
            .ok_or_else(|| io::Error::other("its status names no user"))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use rustix::fs::{CWD, FileType};

    use super::*;

    #[test]
    fn a_folder_that_is_a_link_is_found_under_the_same_root() {
        let folder = tempfile::tempdir().unwrap();
        let root = open(folder.path(), FIND | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let inode = |file: &OwnedFd| fstat(file).unwrap().st_ino;
        assert!(folder_of(&root, std::process::id()).is_err());
        fs::create_dir_all(folder.path().join("var/real")).unwrap();
        let real = open(folder.path().join("var/real"), FIND | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for (target, is_found) in [
            ("var/real", true),
            ("/var/./real", true),
            ("../var/real", false),
            ("/", false),
            ("var/link", false),
        ] {
            symlink(target, folder.path().join("tmp")).unwrap();
            assert_eq!(
                folder_of(&root, std::process::id()).is_ok_and(|found| inode(&found) == inode(&real)),
                is_found,
                "{target}"
            );
            fs::remove_file(folder.path().join("tmp")).unwrap();
            let _ = symlink("/var/real", folder.path().join("var/link"));
        }
        fs::create_dir(folder.path().join("tmp")).unwrap();
        assert!(folder_of(&root, std::process::id()).is_ok());
    }

    #[test]
    fn only_a_plain_file_of_the_process_is_opened() {
        let pid = std::process::id();
        let path = format!("/tmp/perf-{pid}.map");
        let _ = fs::remove_file(&path);
        assert!(open_of(pid).is_err());
        fs::write(&path, "1000 10 f\n").unwrap();
        assert_eq!(fstat(open_of(pid).unwrap()).unwrap().st_size, 10);
        fs::remove_file(&path).unwrap();
        symlink("/etc/shadow", &path).unwrap();
        assert!(open_of(pid).is_err());
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(open_of(pid).is_err());
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(open_of(pid).is_err());
        fs::remove_dir(&path).unwrap();
        assert!(open_of(u32::MAX).is_err());
    }
}
