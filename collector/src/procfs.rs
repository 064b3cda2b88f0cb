//! `/proc`, read once at the start for what already runs, and again only for what an event did not tell. The kernel
//! writes these files; what others can choose in them is names.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read},
    os::fd::OwnedFd,
};

use crate::{
    found::{self, NotOpened},
    kernel_events::{FileNumbers, Mapped},
    mapped_code::MappedCode,
};

/// `/proc/PID/maps` does not give an inode's generation; this stands for it.
const UNKNOWN_GENERATION: u64 = u64::MAX;
/// Longest line of `/proc/PID/maps` that is looked at: a path has at most 4,096 bytes, a line break in it takes four.
const MAX_LINE: u64 = 20_000;
/// Threads that are tried when the first one has ended.
const MAX_THREADS_TRIED: usize = 16;
/// Most of `/proc/PID/cgroup` that is read: a dozen hierarchies with long paths fit.
const MAX_CGROUP_TEXT: u64 = 8 * 1024;

/// Most of `/proc/PID/mountinfo` that is read: ten thousand mounts.
const MAX_MOUNTINFO: u64 = 2 << 20;

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) comm: Vec<u8>,
    pub(crate) threads: u32,
    /// In clock ticks since boot.
    pub(crate) start_time: u64,
}

/// Process ids that are there now.
pub(crate) fn pids() -> io::Result<Vec<u32>> {
    Ok(fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// Whether the process is there.
pub(crate) fn exists(pid: u32) -> bool {
    rustix::fs::stat(format!("/proc/{pid}")).is_ok()
}

pub(crate) fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// `proc_pid_stat(5)`: `pid (comm) state ppid ...`; the name may hold anything, parentheses too, so it ends with the
/// last one. Field 20 is the number of threads, 22 the start time.
fn parse_stat(text: &[u8]) -> Option<Stat> {
    let open = text.iter().position(|byte| *byte == b'(')?;
    let close = text.iter().rposition(|byte| *byte == b')')?;
    let comm = text.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(text.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let threads = fields.nth(20 - 3)?.parse().ok()?;
    let start_time = fields.nth(22 - 20 - 1)?.parse().ok()?;
    Some(Stat { comm, threads, start_time })
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
}

fn read_maps(path: &str, pid: u32, limit: usize) -> io::Result<Vec<Mapped>> {
    let mut reader = BufReader::new(File::open(path)?);
    let mut mappings = MappedCode::default();
    let mut line = Vec::new();
    while mappings.len() < limit {
        line.clear();
        if reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if let Some((mapped, is_executable)) = parse_mapping(&line, pid) {
            mappings.add(mapped, is_executable);
        }
    }
    Ok(mappings.into_executable())
}

/// `proc_pid_maps(5)`: `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE PATH`. With whether it is executable.
fn parse_mapping(line: &[u8], pid: u32) -> Option<(Mapped, bool)> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut rest = line;
    let mut field = || {
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        let (field, after) = rest.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        std::str::from_utf8(field).ok()
    };
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let (start, end) = (hexadecimal(start)?, hexadecimal(end)?);
    let is_executable = field()?.as_bytes().get(2) == Some(&b'x');
    let offset = hexadecimal(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let path = rest.trim_ascii_start();
    let mapped = Mapped {
        pid,
        start,
        end,
        opened_at: (start, end),
        offset,
        file: FileNumbers {
            major: u32::from_str_radix(major, 16).ok()?,
            minor: u32::from_str_radix(minor, 16).ok()?,
            inode,
            generation: UNKNOWN_GENERATION,
        },
        path: unescape(path),
    };
    Some((mapped, is_executable))
}

/// The kernel writes a line break in a path as `\012`, and nothing else in another way than it is.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some(byte) = rest.first() {
        if let Some(after) = rest.strip_prefix(br"\012") {
            plain.push(b'\n');
            rest = after;
        } else {
            plain.push(*byte);
            rest = &rest[1..];
        }
    }
    plain
}

/// Opens the very file that is mapped there, whatever its name leads to now.
pub(crate) fn open_mapped(pid: u32, start: u64, end: u64) -> Result<OwnedFd, NotOpened> {
    found::open_path(&format!("/proc/{pid}/map_files/{start:x}-{end:x}"), pid)
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
    fn a_name_may_hold_anything() {
        let text = b"7 (a) b (c)) R 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 3 0 12345 1 1\n";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat, Stat { comm: b"a) b (c)".to_vec(), threads: 3, start_time: 12345 });
        for length in 0..text.len() {
            let _ = parse_stat(&text[..length]);
        }
        assert!(parse_stat(b")(").is_none());
    }

    #[test]
    fn this_process_is_there() {
        let pid = std::process::id();
        assert!(pids().unwrap().contains(&pid) && exists(pid));
        assert!(stat(pid).unwrap().threads >= 1);
        assert!(executable_mappings(pid, 1000).unwrap().iter().any(|m| m.path == b"[vdso]"));
        assert!(!exists(u32::MAX));
        assert!(stat(u32::MAX).is_none());
    }

    #[test]
    fn a_path_is_kept_byte_for_byte() {
        let parse = |text: &[u8]| parse_mapping(text, 1).map(|(m, _)| m.path);
        let line = |path: &[u8]| [&b"00400000-00401000 r-xp 00001000 08:01 12   "[..], path, b"\n"].concat();
        assert_eq!(parse(&line(b"/a b")).unwrap(), b"/a b");
        assert_eq!(parse(&line(b"/a\\012b")).unwrap(), b"/a\nb");
        assert_eq!(parse(&line(b"/a\tb  ")).unwrap(), b"/a\tb  ");
        assert_eq!(parse(&line(b"/\xff")).unwrap(), b"/\xff");
        assert_eq!(parse(b"00400000-00401000 r-xp 00000000 00:00 0 \n").unwrap(), b"");
        let is_executable = |text: &[u8]| parse_mapping(text, 1).unwrap().1;
        assert!(is_executable(b"00400000-00401000 r-xp 00000000 00:00 0 \n"));
        assert!(!is_executable(b"00400000-00401000 rw-p 00000000 00:00 0 \n"));
        for broken in [
            &b""[..],
            b"\n",
            b"x",
            b"1-2 r-xp",
            b"1-2 r-xp 0 0:0 x /",
            b"g-2 r-xp 0 0:0 0 /",
            b"1-2 r-xp 0 00 0 /",
        ] {
            assert_eq!(parse(broken), None);
        }
        let (mapped, _) = parse_mapping(b"7f00-7fff r-xp 00001000 103:1f 12 /x", 9).unwrap();
        assert_eq!((mapped.pid, mapped.start, mapped.end, mapped.offset), (9, 0x7f00, 0x7fff, 0x1000));
        assert_eq!((mapped.file.major, mapped.file.minor, mapped.file.inode), (0x103, 0x1f, 12));
    }
}
