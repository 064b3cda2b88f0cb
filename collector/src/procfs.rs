//! `/proc`, read once at the start for what already runs, and again only for what an event did not tell.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use crate::{
    found::{self, NotOpened},
    kernel_events::{FileNumbers, Mapped},
    mapped_code::MappedCode,
    patience,
    proc_text::{MapsLine, Stat, Status},
};

/// `/proc/PID/maps` does not give an inode's generation; this stands for it.
const UNKNOWN_GENERATION: u64 = u64::MAX;
/// Longest line of `/proc/PID/maps` that is looked at: a path has at most 4,096 bytes, a line break in it takes four.
const MAX_LINE: u64 = 20_000;
/// How long the mappings of a process are read at most. What was not read by then is not known: tens of thousands are read in half of it.
const LONGEST_READING: Duration = Duration::from_millis(200);
/// Threads that are tried when the first one has ended.
const MAX_THREADS_TRIED: usize = 16;
/// Most of `/proc/PID/cgroup` that is read: a dozen hierarchies with long paths fit.
const MAX_CGROUP_TEXT: u64 = 8 * 1024;

/// Most of `/proc/PID/mountinfo` that is read: ten thousand mounts.
pub(crate) const MAX_MOUNTINFO: u64 = 2 << 20;

/// Process ids that are there now.
pub(crate) fn pids() -> io::Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Whether the process is there.
pub(crate) fn exists(pid: u32) -> bool {
    rustix::fs::stat(format!("/proc/{pid}")).is_ok()
}

/// What `/proc/PID/stat` says.
pub(crate) fn stat(pid: u32) -> Option<Stat> {
    Stat::parse(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// What `/proc/PID/status` says.
pub(crate) fn status(pid: u32) -> io::Result<Status> {
    let text = fs::read(format!("/proc/{pid}/status"))?;
    Status::parse(&text).ok_or_else(|| io::Error::other("its status names no user"))
}

/// The text of `/proc/PID/cgroup`.
pub(crate) fn cgroup_text(pid: u32) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    File::open(format!("/proc/{pid}/cgroup")).ok()?.take(MAX_CGROUP_TEXT).read_to_end(&mut text).ok()?;
    (!text.is_empty()).then_some(text)
}

/// The executable mappings of a process, at most `limit`. A main thread that has ended leaves an empty list, though
/// others run on: theirs is read then.
pub(crate) fn executable_mappings(pid: u32, limit: usize) -> io::Result<Vec<Mapped>> {
    patience::look(pid, || {
        let mappings = read_maps(&format!("/proc/{pid}/maps"), pid, limit)?;
        if !mappings.is_empty() {
            return Ok(mappings);
        }
        for thread in threads(pid)? {
            match read_maps(&format!("{thread}/maps"), pid, limit) {
                Ok(mappings) if !mappings.is_empty() => return Ok(mappings),
                _ => {}
            }
        }
        Ok(mappings)
    })
}

fn read_maps(path: &str, pid: u32, limit: usize) -> io::Result<Vec<Mapped>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut mappings = MappedCode::default();
    let mut line = Vec::new();
    // Each page of it takes the process's lock once more.
    let begun = Instant::now();
    while mappings.len() < limit && begun.elapsed() < LONGEST_READING {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if let Some(line) = MapsLine::parse(&line) {
            let is_executable = line.is_executable;
            mappings.add(mapped(line, pid), is_executable);
        }
    }
    Ok(mappings.into_executable())
}

fn mapped(line: MapsLine, pid: u32) -> Mapped {
    let MapsLine { start, end, offset, major, minor, inode, path, .. } = line;
    let file = FileNumbers { major, minor, inode, generation: UNKNOWN_GENERATION };
    Mapped { pid, start, end, opened_at: (start, end), offset, file, path }
}

/// Opens the very file that is mapped there, whatever its name leads to now.
pub(crate) fn open_mapped(pid: u32, start: u64, end: u64) -> Result<OwnedFd, NotOpened> {
    // Only the way to the file takes the process's lock.
    let found = patience::look(pid, || found::find(&format!("/proc/{pid}/map_files/{start:x}-{end:x}")))?;
    found::open_found(&found, pid)
}

/// Opens the executable of a process, the very file, through whichever of its threads still has one.
pub(crate) fn open_executable(pid: u32) -> Option<OwnedFd> {
    threads(pid).ok()?.find_map(|thread| found::open_path(&format!("{thread}/exe"), pid).ok())
}

/// What a process has mounted. A main thread that has ended has none, though others run on: theirs is read then.
pub(crate) fn mountinfo(pid: u32) -> io::Result<impl BufRead> {
    let file = File::open(format!("/proc/{pid}/mountinfo"));
    let file = file.or_else(|error| {
        let opened = |thread| File::open(format!("{thread}/mountinfo")).ok();
        threads(pid)?.find_map(opened).ok_or(error)
    });
    Ok(BufReader::new(file?.take(MAX_MOUNTINFO)))
}

/// The folders of a process's threads: some of them, if it has many.
fn threads(pid: u32) -> io::Result<impl Iterator<Item = String>> {
    let folder = fs::read_dir(format!("/proc/{pid}/task"))?;
    let path = move |name: &std::ffi::OsStr| format!("/proc/{pid}/task/{}", name.to_string_lossy());
    Ok(folder.take(MAX_THREADS_TRIED).flatten().map(move |thread| path(&thread.file_name())))
}

/// The bounds of the kernel's mapping by which the file at an address can be opened now: it may have split or merged what
/// it told of.
pub(crate) fn bounds_of_mapping(pid: u32, address: u64) -> Option<(u64, u64)> {
    executable_mappings(pid, crate::address_space::MAX_MAPPINGS)
        .ok()?
        .into_iter()
        .find(|mapping| (mapping.start..mapping.end).contains(&address))
        .map(|mapping| mapping.opened_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_there() {
        let pid = std::process::id();
        assert!(pids().unwrap().contains(&pid) && exists(pid));
        assert!(stat(pid).unwrap().threads >= 1);
        assert!(executable_mappings(pid, 1000).unwrap().iter().any(|m| m.path == b"[vdso]"));
        assert!(!exists(u32::MAX));
        assert!(stat(u32::MAX).is_none());
        assert!(status(pid).unwrap().innermost_pid.is_some() && status(u32::MAX).is_err());
    }
}
