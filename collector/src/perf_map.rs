//! Finding the perf map of a process: the file in which a run-time compiler says where it put its code. It is the one
//! file that is known by its name only, and the name leads through directories that the process controls (W2).

use std::{
    io,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Component, Path},
};

use rustix::fs::{Mode, OFlags, fstat, open, readlinkat};

use crate::{
    found::{FIND, NotOpened, folder_in, open_in},
    procfs,
};

/// Opens `/tmp/perf-PID.map` as the process itself would: under its own root, with the pid that it has in its own pid
/// namespace. Only a regular file of its folder that belongs to the user whose rights the process has: what the process could not read
/// itself is not to be had through its perf map.
pub(crate) fn open_of(pid: u32) -> Result<OwnedFd, NotOpened> {
    // The one link that is followed: the kernel's own.
    let root = open(format!("/proc/{pid}/root"), FIND | OFlags::DIRECTORY, Mode::empty())?;
    let process = procfs::status(pid)?;
    let folder = folder_of(&root, pid)?;
    let innermost_pid = process.innermost_pid.unwrap_or(pid);
    let file = open_in(&folder, &format!("perf-{innermost_pid}.map"), pid)?;
    let owner = fstat(&file)?.st_uid;
    if owner != process.effective_uid {
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::Read as _,
        os::unix::fs::{chown, symlink},
        process::{Child, Command, Stdio},
    };

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

    /// A process that is there until it is waited for: a shell, behind these words, that has run a script.
    fn started(before: &[&str], script: &str) -> Child {
        let mut child = Command::new(before[0])
            .args(&before[1..])
            .args(["sh", "-c", &format!("{script} && echo && read -r end")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        child
    }

    /// As root: nobody else may give files away.
    #[test]
    fn a_file_of_another_user_is_not_opened() {
        for (user, other) in [(0, 65_534), (65_534, 0), (65_534, 65_533)] {
            let user_flag = format!("--reuid={user}");
            let mut process = started(&["setpriv", &user_flag, "--clear-groups"], "true");
            let path = format!("/tmp/perf-{}.map", process.id());
            fs::write(&path, "1000 10 f\n").unwrap();
            chown(&path, Some(user), None).unwrap();
            let own = open_of(process.id());
            chown(&path, Some(other), None).unwrap();
            let foreign = open_of(process.id());
            fs::remove_file(&path).unwrap();
            process.wait().unwrap();
            assert!(own.is_ok(), "{user}: {own:?}");
            assert!(foreign.is_err(), "a file of {other} for a process of {user}");
        }
    }

    /// As root. Who has a mount namespace may put any file in a perf map's place, of whichever owner and file system.
    #[test]
    fn what_is_mounted_in_its_place_is_not_opened() {
        let cases = [
            (": >/tmp/perf-$$.map", true),
            (": >/tmp/perf-$$.map; mount --bind /etc/shadow /tmp/perf-$$.map", false),
            (": >/tmp/perf-$$.map; mount --bind /proc/1/environ /tmp/perf-$$.map", false),
            (": >/tmp/perf-$$.map; mount --bind /proc/$$/mem /tmp/perf-$$.map", false),
            (": >/tmp/other; : >/tmp/perf-$$.map; mount --bind /tmp/other /tmp/perf-$$.map", false),
            // The same file once more is still a mount.
            (": >/tmp/perf-$$.map; mount --bind /tmp/perf-$$.map /tmp/perf-$$.map", false),
        ];
        for (script, is_opened) in cases {
            // A temporary folder that is a mount of its own, as on many hosts.
            let script = format!("mount -t tmpfs tmpfs /tmp && {{ {script}; }}");
            let mut process = started(&["unshare", "--mount"], &script);
            let opened = open_of(process.id());
            process.wait().unwrap();
            assert_eq!(opened.is_ok(), is_opened, "{script}: {opened:?}");
        }
    }
}
