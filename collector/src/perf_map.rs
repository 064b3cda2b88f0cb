//! Finding the perf map of a process: the file in which a run-time compiler says where it put its code. It is the one
//! file that is known by its name only, and the name leads through directories that the process controls (W2).

use std::{io, os::fd::OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};

/// Opens `/tmp/perf-PID.map` as the process itself would: under its own root, with the pid that it has in its own pid
/// namespace. Only a regular file that belongs to the process's own user or to root.
pub(crate) fn open_of(pid: u32) -> io::Result<OwnedFd> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = open(format!("/proc/{pid}/root"), directory, Mode::empty())?;
    let process = Status::of(pid)?;
    let name = format!("tmp/perf-{}.map", process.innermost_pid);
    // Nonblocking, so that a FIFO in its place does not hold this process.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let file = openat2(&root, name, flags, Mode::empty(), resolve)?;
    let stat = fstat(&file)?;
    if !FileType::from_raw_mode(stat.st_mode).is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    if stat.st_uid != process.effective_uid && stat.st_uid != 0 {
        return Err(io::Error::other("it belongs to another user"));
    }
    Ok(file)
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

    use rustix::fs::CWD;

    use super::*;

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
