//! What the files of `/proc` say (`proc(5)`). The kernel writes them; names and paths in them are others' choice, and may hold anything.

use std::str::from_utf8;

/// What `/proc/PID/stat` says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    pub(crate) comm: Vec<u8>,
    pub(crate) threads: u32,
    /// In clock ticks since boot.
    pub(crate) start_time: u64,
}

impl Stat {
    /// `proc_pid_stat(5)`: `pid (comm) state ppid ...`; the name may hold anything, parentheses too, so it ends with the
    /// last one. Field 20 is the number of threads, 22 the start time.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let open = text.iter().position(|byte| *byte == b'(')?;
        let close = text.iter().rposition(|byte| *byte == b')')?;
        let comm = text.get(open + 1..close)?.to_vec();
        let mut fields = from_utf8(text.get(close + 1..)?).ok()?.split_ascii_whitespace();
        let threads = fields.nth(20 - 3)?.parse().ok()?;
        let start_time = fields.nth(22 - 20 - 1)?.parse().ok()?;
        Some(Stat { comm, threads, start_time })
    }
}

/// What `/proc/PID/status` says (`proc_pid_status(5)`).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Status {
    /// The last number of `NSpid`, which kernels with PID namespaces write.
    pub(crate) innermost_pid: Option<u32>,
    /// The second number of `Uid`.
    pub(crate) effective_uid: u32,
}

impl Status {
    /// The name, which is the first line, has line breaks and backslashes escaped by the kernel.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        let numbers = |name: &[u8]| {
            let line = text.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
            from_utf8(line).ok()?.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
        };
        let pids: Option<Vec<u32>> = numbers(b"NSpid:");
        let uids: Vec<u32> = numbers(b"Uid:")?;
        Some(Status {
            innermost_pid: pids.and_then(|pids| pids.last().copied()),
            effective_uid: *uids.get(1)?,
        })
    }
}

/// A line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MapsLine {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) is_executable: bool,
    /// In bytes, into the file.
    pub(crate) offset: u64,
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) inode: u64,
    pub(crate) path: Vec<u8>,
}

impl MapsLine {
    /// `proc_pid_maps(5)`: `START-END PERMISSIONS OFFSET MAJOR:MINOR INODE PATH`.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let mut rest = line.strip_suffix(b"\n").unwrap_or(line);
        let mut field = || {
            let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
            let (field, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            from_utf8(field).ok()
        };
        let (start, end) = field()?.split_once('-')?;
        let is_executable = field()?.as_bytes().get(2) == Some(&b'x');
        let offset = field()?;
        let (major, minor) = field()?.split_once(':')?;
        let inode = field()?.parse().ok()?;
        Some(MapsLine {
            start: u64::from_str_radix(start, 16).ok()?,
            end: u64::from_str_radix(end, 16).ok()?,
            is_executable,
            offset: u64::from_str_radix(offset, 16).ok()?,
            major: u32::from_str_radix(major, 16).ok()?,
            minor: u32::from_str_radix(minor, 16).ok()?,
            inode,
            path: unescape(rest.trim_ascii_start()),
        })
    }
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

/// The type of the file system, if a line of `/proc/PID/mountinfo` is of this device (`proc_pid_mountinfo(5)`): `ID PARENT MAJOR:MINOR ROOT
/// POINT OPTIONS TAGS... - TYPE SOURCE ...`. A device is of one type, however often it is mounted.
pub(crate) fn type_of_mount<'a>(line: &'a [u8], device: &[u8]) -> Option<&'a [u8]> {
    let mut fields = line.split(|byte| *byte == b' ');
    let is_it = fields.nth(2) == Some(device);
    is_it.then(|| fields.skip_while(|field| *field != b"-").nth(1).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = b"7 (a) b (c)) R 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 3 0 12345 1 1\n";
        let stat = Stat::parse(text).unwrap();
        assert_eq!(stat, Stat { comm: b"a) b (c)".to_vec(), threads: 3, start_time: 12345 });
        for length in 0..text.len() {
            let _ = Stat::parse(&text[..length]);
        }
        assert!(Stat::parse(b")(").is_none());
    }

    #[test]
    fn who_a_process_is() {
        let parse = |text: &str| Status::parse(text.as_bytes());
        let name = "Name:\tUid:\\nUid: 7\nUmask:\t0022\n";
        let users = "Uid:\t1000\t1001\t1002\t1003\n";
        let status = parse(&format!("{name}{users}NSpid:\t12\t3\n")).unwrap();
        assert_eq!(status, Status { innermost_pid: Some(3), effective_uid: 1001 });
        assert_eq!(parse(&format!("{name}{users}")).unwrap().innermost_pid, None);
        for broken in ["", name, "Uid:\t1000\n", "Uid:\t1\tx\n"] {
            assert_eq!(parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn a_path_is_kept_byte_for_byte() {
        let parse = |text: &[u8]| MapsLine::parse(text).map(|line| line.path);
        let line = |path: &[u8]| [&b"00400000-00401000 r-xp 00001000 08:01 12   "[..], path, b"\n"].concat();
        assert_eq!(parse(&line(b"/a b")).unwrap(), b"/a b");
        assert_eq!(parse(&line(b"/a\\012b")).unwrap(), b"/a\nb");
        assert_eq!(parse(&line(b"/a\tb  ")).unwrap(), b"/a\tb  ");
        assert_eq!(parse(&line(b"/\xff")).unwrap(), b"/\xff");
        assert_eq!(parse(b"00400000-00401000 r-xp 00000000 00:00 0 \n").unwrap(), b"");
        let is_executable = |text: &[u8]| MapsLine::parse(text).unwrap().is_executable;
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
        let line = MapsLine::parse(b"7f00-7fff r-xp 00001000 103:1f 12 /x").unwrap();
        assert_eq!((line.start, line.end, line.offset), (0x7f00, 0x7fff, 0x1000));
        assert_eq!((line.major, line.minor, line.inode), (0x103, 0x1f, 12));
    }

    #[test]
    fn a_mount_has_a_type() {
        let of = |line: &str| type_of_mount(line.as_bytes(), b"0:35").map(<[u8]>::to_vec);
        let line = "40 22 0:35 / /mnt/a\\040- rw,nosuid shared:2 master:3 - fuse.sshfs a:b rw,user_id=0";
        assert_eq!(of(line).unwrap(), b"fuse.sshfs");
        assert_eq!(of("40 22 0:35 / /mnt rw -").unwrap(), b"");
        for other in ["", "broken", "40 0:35", "40 22 0:3 / /mnt rw - 0:35 x rw"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
