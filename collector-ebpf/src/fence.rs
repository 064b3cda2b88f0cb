//! Which files the collector itself may open, for as long as it runs: a few of procfs, and files that some process has mapped. A
//! program of the BPF LSM (`CONFIG_BPF_LSM`, and `bpf` among the kernel's active modules); it judges no other process.

use aya_ebpf::{helpers::generated::bpf_probe_read_kernel, macros::lsm, programs::LsmContext};
use core::ffi::c_void;

use crate::{
    global,
    task::{ABSENT, Task, globals, read, read_at},
};

globals! {
    /// The collector's process id, in its own pid namespace.
    FENCED_PID: u32 = 0;
    /// Offset of the dentry in `struct file`, and of what says which file that is.
    FILE_DENTRY: u32 = ABSENT;
    FILE_INODE: u32 = ABSENT;
    /// Offset of the name's `struct qstr` in `struct dentry`.
    DENTRY_NAME: u32 = ABSENT;
    /// Offsets in `struct inode` and `struct super_block`.
    INODE_MODE: u32 = ABSENT;
    INODE_SB: u32 = ABSENT;
    INODE_MAPPING: u32 = ABSENT;
    SB_MAGIC: u32 = ABSENT;
    SB_TYPE: u32 = ABSENT;
    /// Offset of the name in `struct file_system_type`.
    TYPE_NAME: u32 = ABSENT;
    /// Offset in `struct address_space` of the tree of its mappings, which begins with its root.
    SPACE_MAPPED: u32 = ABSENT;
}

/// `include/uapi/linux/magic.h`.
const PROC_SUPER_MAGIC: u64 = 0x9fa0;
const SYSFS_MAGIC: u64 = 0x6265_6572;
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794c_7630;
const FUSE_SUPER_MAGIC: u64 = 0x6573_5546;
/// The file system of virtual machines that is FUSE too, but answered by the machine's host.
const VIRTIOFS: u64 = name("virtiofs")[0];
/// Kinds of files (`include/uapi/linux/stat.h`).
const S_IFMT: u16 = 0o170_000;
const S_IFREG: u16 = 0o100_000;
const S_IFDIR: u16 = 0o040_000;
/// `struct qstr`: a hash, the length, the text (include/linux/dcache.h).
const QSTR_LENGTH: u64 = 4;
const QSTR_TEXT: u64 = 8;
const EACCES: i32 = 13;

/// A name of at most 16 bytes, its end filled with zeros.
type Name = [u64; 2];

const fn name(text: &str) -> Name {
    let (text, mut name, mut i) = (text.as_bytes(), [0; 2], 0);
    while i < text.len() {
        name[i / 8] |= (text[i] as u64) << (i % 8 * 8);
        i += 1;
    }
    name
}

/// What is read of a process, and of the kernel. Not its memory, environment or command line.
const OF_PROC: [Name; 6] =
    [name("stat"), name("maps"), name("cgroup"), name("status"), name("mountinfo"), name("kptr_restrict")];
/// Of sysfs: which CPUs are online.
const OF_SYS: Name = name("online");
/// `perf-PID.map`: what a process says of code that it has made.
const PERF_MAP_BEGINS: u64 = name("perf-")[0];
const PERF_MAP_BEGINS_MASK: u64 = (1 << 40) - 1;
const PERF_MAP_ENDS: u32 = name(".map")[0] as u32;
const PERF_MAP_LENGTH: core::ops::RangeInclusive<u64> = 10..=16;

/// Where the text of a file's name lies, and how long it is.
#[inline(always)]
fn name_of(file: u64) -> Option<(u64, u64)> {
    let dentry: u64 = read(file, &FILE_DENTRY)?;
    let name = dentry.wrapping_add(global(&DENTRY_NAME) as u64);
    Some((read_at(name.wrapping_add(QSTR_TEXT))?, read_at::<u32>(name.wrapping_add(QSTR_LENGTH))? as u64))
}

/// A name that is short; of any other, no name.
#[inline(always)]
fn short((text, length): (u64, u64)) -> Option<Name> {
    let mut name: Name = [0; 2];
    if length == 0 || length > 16 {
        return None;
    }
    // SAFETY: no more is written than `name` has room for.
    let failed =
        unsafe { bpf_probe_read_kernel(name.as_mut_ptr().cast(), length as u32, text as *const c_void) };
    (failed == 0).then_some(name)
}

#[inline(always)]
fn is_one_of(name: Name, known: &[Name]) -> bool {
    let mut found = false;
    for one in known {
        found |= (name[0] ^ one[0]) | (name[1] ^ one[1]) == 0;
    }
    found
}

#[inline(always)]
fn is_perf_map(name: (u64, u64)) -> bool {
    let (text, length) = name;
    PERF_MAP_LENGTH.contains(&length)
        && read_at::<u64>(text).is_some_and(|word| word & PERF_MAP_BEGINS_MASK == PERF_MAP_BEGINS)
        && read_at(text.wrapping_add(length - 4)) == Some(PERF_MAP_ENDS)
}

#[inline(always)]
fn is_virtiofs(super_block: u64) -> Option<bool> {
    let name: u64 = read(read(super_block, &SB_TYPE)?, &TYPE_NAME)?;
    Some(read_at::<u64>(name)? == VIRTIOFS)
}

/// Whether the collector may open this file.
#[inline(always)]
fn is_allowed(file: u64) -> Option<bool> {
    let inode: u64 = read(file, &FILE_INODE)?;
    let kind = read::<u16>(inode, &INODE_MODE)? & S_IFMT;
    let super_block: u64 = read(inode, &INODE_SB)?;
    let magic: u64 = read(super_block, &SB_MAGIC)?;
    if kind == S_IFDIR {
        return Some(magic == PROC_SUPER_MAGIC);
    }
    if kind != S_IFREG {
        return Some(false);
    }
    // Of a file on overlayfs, the kernel asks again about the file that it stands for, which is the one that is mapped.
    if magic == OVERLAYFS_SUPER_MAGIC {
        return Some(true);
    }
    // Another process answers there, if it does at all, and this one would wait for it.
    if magic == FUSE_SUPER_MAGIC && !is_virtiofs(super_block)? {
        return Some(false);
    }
    let name = name_of(file)?;
    if magic == PROC_SUPER_MAGIC {
        return Some(is_one_of(short(name)?, &OF_PROC));
    }
    if magic == SYSFS_MAGIC {
        return Some(is_one_of(short(name)?, &[OF_SYS]));
    }
    if is_perf_map(name) {
        return Some(true);
    }
    let space: u64 = read(inode, &INODE_MAPPING)?;
    // Not empty: there is a mapping of it.
    Some(read::<u64>(space, &SPACE_MAPPED)? != 0)
}

/// Asked whenever a file is opened (`security_file_open` in the kernel's security/security.c). 0: as you like.
#[lsm(hook = "file_open")]
pub fn file_open(context: LsmContext) -> i32 {
    let before: i32 = context.arg(1);
    if before != 0 {
        return before;
    }
    if Task::current().ids().is_none_or(|ids| ids.pid != global(&FENCED_PID)) {
        return 0;
    }
    let file: *const c_void = context.arg(0);
    // What cannot be read cannot be told, and is refused.
    if is_allowed(file as u64) == Some(true) { 0 } else { -EACCES }
}
