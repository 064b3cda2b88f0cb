//! What the collector reads of `/proc`, in which names and paths are the profiled programs' choice: whatever they are, what the kernel
//! wrote around them is read as it is, and nothing else is taken for it.
#![no_main]

#[path = "../../collector/src/proc_text.rs"]
mod proc_text;

use libfuzzer_sys::fuzz_target;
use proc_text::{MapsLine, Stat, Status, type_of_mount};

const STAT: &str = "R 1 7 7 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 3 0 12345 1 1\n";
const USERS: &str = "Umask:\t0022\nUid:\t1000\t1001\t1002\t1003\nNSpid:\t12\t3\n";
const MOUNT: &str = "40 22 0:35 / ";

fuzz_target!(|data: &[u8]| {
    let _ = Stat::parse(data);
    let _ = Status::parse(data);
    let _ = type_of_mount(data, b"0:35");
    for line in data.split(|byte| *byte == b'\n') {
        let _ = MapsLine::parse(line);
    }

    // A thread's name has no zero byte, and no more than 15 others.
    let name: Vec<u8> = data.iter().copied().filter(|byte| *byte != 0).take(15).collect();
    let stat = Stat::parse(&[b"7 (", name.as_slice(), b") ", STAT.as_bytes()].concat());
    assert_eq!(stat, Some(Stat { comm: name.clone(), threads: 3, start_time: 12345 }));

    // As the kernel escapes it: `proc_task_name`, fs/proc/array.c.
    let escaped = escape(&name, b"\n\\", |byte| if byte == b'\n' { b"\\n".to_vec() } else { b"\\\\".to_vec() });
    let status = Status::parse(&[b"Name:\t", escaped.as_slice(), b"\n", USERS.as_bytes()].concat());
    assert_eq!(status, Some(Status { innermost_pid: Some(3), effective_uid: 1001 }));

    // A path begins with a slash and has no zero byte. `show_map_vma`, fs/proc/task_mmu.c; `show_mountinfo`, fs/proc_namespace.c.
    let path: Vec<u8> = b"/".iter().chain(data).copied().filter(|byte| *byte != 0).collect();
    let octal = |byte| format!("\\{byte:03o}").into_bytes();
    let line = [b"7f00-7fff r-xp 00001000 103:1f 12   ", escape(&path, b"\n", octal).as_slice(), b"\n"].concat();
    let line = MapsLine::parse(&line).expect("a line as the kernel writes it");
    assert_eq!((line.start, line.end, line.offset), (0x7f00, 0x7fff, 0x1000));
    assert_eq!((line.major, line.minor, line.inode, line.is_executable), (0x103, 0x1f, 12, true));
    // Where a path has these four characters, the kernel writes what it writes for a line break.
    if !path.windows(4).any(|part| part == br"\012") {
        assert_eq!(line.path, path);
    }
    let path = escape(&path, b" \t\n\\#", octal);
    let mount = [MOUNT.as_bytes(), &path, b" rw shared:2 - fuse.x ", &path, b" rw"].concat();
    assert_eq!(type_of_mount(&mount, b"0:35"), Some(&b"fuse.x"[..]));
    assert_eq!(type_of_mount(&mount, b"0:36"), None);
});

fn escape(text: &[u8], what: &[u8], how: impl Fn(u8) -> Vec<u8>) -> Vec<u8> {
    let escaped = |byte: &u8| if what.contains(byte) { how(*byte) } else { vec![*byte] };
    text.iter().flat_map(escaped).collect()
}
