//! Where members lie in the running kernel's structures, from its BTF (Documentation/bpf/btf.rst). The kernel writes
//! this file, nobody else can.

use std::{fs, io};

use thiserror::Error;

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";
const BTF_MAGIC: u16 = 0xeb9f;
/// Kinds of types (include/uapi/linux/btf.h).
const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;
const KIND_ENUM: u32 = 6;
/// Nameless parts within nameless parts of a structure that are looked into.
const MAX_NESTING: u32 = 3;

#[derive(Debug, Error)]
pub(crate) enum LayoutError {
    #[error(
        "cannot read {BTF_PATH}: {0}; Bulkhead needs a kernel with BTF (5.10 or later, CONFIG_DEBUG_INFO_BTF=y), which Debian, Ubuntu, Fedora, RHEL 8.2 and later have"
    )]
    Read(#[source] io::Error),
    #[error("{BTF_PATH} is no BTF that this release understands")]
    Malformed,
    #[error("this kernel has no {0}: it is older than 5.10 or of another kind than Bulkhead knows")]
    Missing(&'static str),
}

/// The kernel's types.
pub(crate) struct Btf {
    bytes: Vec<u8>,
    types: std::ops::Range<usize>,
    strings: usize,
}

impl Btf {
    /// Reads the running kernel's.
    pub(crate) fn of_kernel() -> Result<Self, LayoutError> {
        Self::parse(fs::read(BTF_PATH).map_err(LayoutError::Read)?).ok_or(LayoutError::Malformed)
    }

    fn parse(bytes: Vec<u8>) -> Option<Self> {
        // struct btf_header: magic u16, version u8, flags u8, hdr_len, type_off, type_len, str_off, str_len.
        if u16::from_le_bytes(bytes.get(..2)?.try_into().ok()?) != BTF_MAGIC {
            return None;
        }
        let word = |at| word(&bytes, at).map(|value| value as usize);
        let header = word(4)?;
        let types = header.checked_add(word(8)?)?;
        let types = types..types.checked_add(word(12)?)?;
        let strings = header.checked_add(word(16)?)?;
        (types.end <= bytes.len() && strings <= bytes.len()).then_some(Btf { bytes, types, strings })
    }

    /// Every type: its kind, the offset of its name, number of elements, whether members say bit fields, and where
    /// its elements begin.
    fn types(&self) -> impl Iterator<Item = Type> {
        let mut at = self.types.start;
        std::iter::from_fn(move || {
            if at + 12 > self.types.end {
                return None;
            }
            // struct btf_type: name_off, info (vlen: bits 0-15, kind: 24-28, kind_flag: 31), size or type.
            let info = word(&self.bytes, at + 4)?;
            let (kind, count) = (info >> 24 & 31, info & 0xffff);
            let found = Type {
                kind,
                name: word(&self.bytes, at)?,
                count,
                bit_fields: info >> 31 == 1,
                elements: at + 12,
            };
            let size_of_elements = match kind {
                1 | 14 | 17 => 4,                                 // INT, VAR, DECL_TAG
                3 => 12,                                          // ARRAY
                KIND_STRUCT | KIND_UNION | 15 | 19 => count * 12, // and DATASEC, ENUM64
                KIND_ENUM | 13 => count * 8,                      // and FUNC_PROTO
                _ => 0,
            };
            at += 12 + size_of_elements as usize;
            Some(found)
        })
    }

    fn name_is(&self, offset: u32, name: &str) -> bool {
        let start = self.strings + offset as usize;
        let end = start + name.len();
        self.bytes.get(start..end) == Some(name.as_bytes()) && self.bytes.get(end) == Some(&0)
    }

    /// Offset in bytes of a member of a structure, which may lie in a nameless part of it.
    pub(crate) fn member(&self, structure: &str, member: &str) -> Option<u32> {
        let found = self.types().find(|t| t.kind == KIND_STRUCT && self.name_is(t.name, structure))?;
        self.member_of(&found, member, MAX_NESTING)
    }

    fn member_of(&self, structure: &Type, member: &str, nesting: u32) -> Option<u32> {
        for i in 0..structure.count as usize {
            // struct btf_member: name_off, type, offset in bits (of which the upper 8 are a bit field's size).
            let at = structure.elements + i * 12;
            let (name, kind, bits) =
                (word(&self.bytes, at)?, word(&self.bytes, at + 4)?, word(&self.bytes, at + 8)?);
            let offset = if structure.bit_fields { bits & 0x00ff_ffff } else { bits } / 8;
            if self.name_is(name, member) {
                return Some(offset);
            }
            if name == 0 && nesting > 0 {
                // Types are counted from 1; 0 is void.
                let part = self.types().nth((kind as usize).checked_sub(1)?)?;
                if matches!(part.kind, KIND_STRUCT | KIND_UNION)
                    && let Some(within) = self.member_of(&part, member, nesting - 1)
                {
                    return offset.checked_add(within);
                }
            }
        }
        None
    }

    /// The number of an enumerator.
    pub(crate) fn enumerator(&self, enumeration: &str, enumerator: &str) -> Option<u32> {
        let found = self.types().find(|t| t.kind == KIND_ENUM && self.name_is(t.name, enumeration))?;
        for i in 0..found.count as usize {
            let at = found.elements + i * 8;
            if self.name_is(word(&self.bytes, at)?, enumerator) {
                return word(&self.bytes, at + 4);
            }
        }
        None
    }
}

struct Type {
    kind: u32,
    name: u32,
    count: u32,
    bit_fields: bool,
    elements: usize,
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The offsets that the BPF program needs, by the name of the global that takes them.
pub(crate) fn offsets(btf: &Btf) -> Result<Vec<(&'static str, u32)>, LayoutError> {
    let mut offsets = Vec::new();
    let required = [
        ("TASK_STACK", "task_struct", "stack", "task_struct.stack"),
        ("TASK_FLAGS", "task_struct", "flags", "task_struct.flags"),
        ("TASK_MM", "task_struct", "mm", "task_struct.mm"),
        ("TASK_GROUP_LEADER", "task_struct", "group_leader", "task_struct.group_leader"),
        ("TASK_START_BOOTTIME", "task_struct", "start_boottime", "task_struct.start_boottime"),
        ("TASK_THREAD_PID", "task_struct", "thread_pid", "task_struct.thread_pid"),
        ("MM_START_CODE", "mm_struct", "start_code", "mm_struct.start_code"),
        ("PID_LEVEL", "pid", "level", "pid.level"),
        ("PID_NUMBERS", "pid", "numbers", "pid.numbers"),
    ];
    for (global, structure, member, label) in required {
        offsets.push((global, btf.member(structure, member).ok_or(LayoutError::Missing(label))?));
    }
    let namespace = btf.member("pid_namespace", "ns").ok_or(LayoutError::Missing("pid_namespace.ns"))?;
    let inum = btf.member("ns_common", "inum").ok_or(LayoutError::Missing("ns_common.inum"))?;
    offsets.push(("PID_NAMESPACE_INUM", namespace + inum));

    let dentry = btf.member("file", "f_path").zip(btf.member("path", "dentry"));
    offsets.extend(dentry.map(|(path, dentry)| ("FILE_DENTRY", path + dentry)));
    let optional = [
        // For the fence, which refuses what it cannot read.
        ("FILE_INODE", "file", "f_inode"),
        ("DENTRY_NAME", "dentry", "d_name"),
        ("INODE_MODE", "inode", "i_mode"),
        ("INODE_SB", "inode", "i_sb"),
        ("INODE_MAPPING", "inode", "i_mapping"),
        ("SB_MAGIC", "super_block", "s_magic"),
        ("SB_TYPE", "super_block", "s_type"),
        ("TYPE_NAME", "file_system_type", "name"),
        ("SPACE_MAPPED", "address_space", "i_mmap"),
        // Only needed where cgroup v1 is mounted, and absent where cgroups are not configured.
        ("TASK_CGROUPS", "task_struct", "cgroups"),
        ("CSS_CGROUP", "cgroup_subsys_state", "cgroup"),
        ("CGROUP_KN", "cgroup", "kn"),
        ("KERNFS_NODE_ID", "kernfs_node", "id"),
    ];
    for (global, structure, member) in optional {
        offsets.extend(btf.member(structure, member).map(|offset| (global, offset)));
    }
    if let Some(states) = btf.member("css_set", "subsys") {
        let controllers = [
            ("CSS_SET_MEMORY", "memory_cgrp_id"),
            ("CSS_SET_CPU", "cpu_cgrp_id"),
            ("CSS_SET_PIDS", "pids_cgrp_id"),
        ];
        for (global, controller) in controllers {
            // An array of pointers, one for each controller.
            let index = btf.enumerator("cgroup_subsys_id", controller);
            offsets.extend(index.map(|index| (global, states + index * 8)));
        }
    }
    Ok(offsets)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF of two structures `s { a: at 0; b: at 8 }` and `{ nameless, at 4, of the first's kind }`, and one enumeration
    /// `e { X = 7 }`.
    fn example() -> Vec<u8> {
        let strings = b"\0s\0a\0b\0e\0X\0t\0";
        let structures =
            [&[1, 4 << 24 | 2, 16][..], &[3, 0, 0], &[5, 0, 64], &[11, 4 << 24 | 1, 20], &[0, 1, 32]];
        let types: Vec<u32> = [&structures.concat()[..], &[7, 6 << 24 | 1, 4], &[9, 7]].concat();
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let types: Vec<u8> = types.iter().flat_map(|word| word.to_le_bytes()).collect();
        for word in [24, 0, types.len(), types.len(), strings.len()] {
            bytes.extend(u32::try_from(word).unwrap().to_le_bytes());
        }
        bytes.extend(types);
        bytes.extend(strings);
        bytes
    }

    #[test]
    fn members_and_enumerators_are_found() {
        let btf = Btf::parse(example()).unwrap();
        assert_eq!(btf.member("s", "a"), Some(0));
        assert_eq!(btf.member("s", "b"), Some(8));
        assert_eq!(btf.member("s", "c"), None);
        assert_eq!(btf.member("t", "b"), Some(12));
        assert_eq!(btf.enumerator("e", "X"), Some(7));
        assert_eq!(btf.enumerator("s", "X"), None);
    }

    #[test]
    fn what_is_cut_is_an_error_or_has_less() {
        let whole = example();
        for length in 0..whole.len() {
            if let Some(btf) = Btf::parse(whole[..length].to_vec()) {
                assert_eq!(btf.enumerator("no", "no"), None);
            }
        }
    }

    #[test]
    fn this_kernel_has_all_that_is_required() {
        if let Ok(btf) = Btf::of_kernel() {
            let offsets = offsets(&btf).unwrap();
            assert!(offsets.iter().all(|(_, offset)| *offset < 1 << 16), "{offsets:?}");
        }
    }
}
