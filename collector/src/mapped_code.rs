//! Which executable mappings a process has, and which file each shows, from all of its mappings in their order.
//!
//! Some programs replace the inner part of their own text by anonymous memory with the same content, to have it in huge
//! pages (Node with `--use-largepages`, HHVM, Chromium). That memory is taken for the file's text where it cannot
//! well be anything else: it lies directly between two mappings of one file, and is as large as what of the file is
//! missing between them. Code made at run time where a library has been unmapped has no such neighbours.

use crate::kernel_events::Mapped;

/// The executable mappings, put together from one mapping after another.
#[derive(Default)]
pub(crate) struct MappedCode {
    executable: Vec<Mapped>,
    /// The last mapping of a file, if there is nothing but memory behind it so far, and no gap.
    before: Option<Mapped>,
    /// Where that memory begins in `executable`.
    first: usize,
    /// Where the last mapping ended.
    end: u64,
}

impl MappedCode {
    /// Adds the next mapping of the process, whatever it may be.
    pub(crate) fn add(&mut self, mapped: Mapped, is_executable: bool) {
        if mapped.start != self.end {
            self.before = None;
        }
        self.end = mapped.end;
        if !mapped.is_file() {
            self.executable.extend(is_executable.then_some(mapped));
            return;
        }
        if let Some(before) = self.before.take_if(|before| before.is_one_with(&mapped)) {
            for piece in self.executable.iter_mut().skip(self.first) {
                piece.offset = before.offset.wrapping_add(piece.start - before.start);
                piece.file = before.file;
                piece.path.clone_from(&before.path);
                piece.opened_at = before.opened_at;
            }
        }
        self.before = Some(mapped.clone());
        self.executable.extend(is_executable.then_some(mapped));
        self.first = self.executable.len();
    }

    /// How many there are so far.
    pub(crate) fn len(&self) -> usize {
        self.executable.len()
    }

    /// All that were added.
    pub(crate) fn into_executable(self) -> Vec<Mapped> {
        self.executable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_events::FileNumbers;

    /// Start, end, offset, inode (0: memory), permissions.
    type Line = (u64, u64, u64, u64, &'static str);

    /// The offsets and inodes of what is executable.
    fn executable(lines: &[Line]) -> Vec<(u64, u64)> {
        let mut code = MappedCode::default();
        for (start, end, offset, inode, permissions) in lines {
            let mapped = Mapped {
                pid: 1,
                start: *start,
                end: *end,
                opened_at: (*start, *end),
                offset: *offset,
                file: FileNumbers { major: 8, minor: 1, inode: *inode, generation: 0 },
                path: if *inode == 0 { Vec::new() } else { b"/a".to_vec() },
            };
            code.add(mapped, permissions.contains('x'));
        }
        code.into_executable().iter().map(|mapped| (mapped.offset, mapped.file.inode)).collect()
    }

    #[test]
    fn memory_between_two_mappings_of_a_file_is_its_text_only_if_it_fits() {
        const BEFORE: Line = (0x1000, 0x3000, 0x1000, 7, "r-x");
        const MEMORY: Line = (0x3000, 0x5000, 0, 0, "rwx");
        const BEHIND: Line = (0x5000, 0x6000, 0x5000, 7, "r-x");
        assert_eq!(executable(&[BEFORE, MEMORY, BEHIND]), [(0x1000, 7), (0x3000, 7), (0x5000, 7)]);
        // All of what is executable: the neighbours are not.
        let (before, behind) = ((0x1000, 0x3000, 0x1000, 7, "r--"), (0x5000, 0x6000, 0x5000, 7, "rw-"));
        assert_eq!(executable(&[before, MEMORY, behind]), [(0x3000, 7)]);
        // In pieces, one of which is just being written.
        let pieces =
            [(0x3000, 0x3800, 0, 0, "r-x"), (0x3800, 0x4000, 0, 0, "rw-"), (0x4000, 0x5000, 0, 0, "rwx")];
        let all = [&[BEFORE][..], &pieces, &[BEHIND]].concat();
        assert_eq!(executable(&all), [(0x1000, 7), (0x3000, 7), (0x4000, 7), (0x5000, 7)]);
        // Twice in one file.
        let more =
            [BEFORE, MEMORY, BEHIND, (0x6000, 0x7000, 0, 0, "r-x"), (0x7000, 0x8000, 0x7000, 7, "r--")];
        assert_eq!(executable(&more)[3], (0x6000, 7));

        let memory = (0, 0);
        let is_no_text = |lines: [Line; 3]| assert_eq!(executable(&lines)[1], memory, "{lines:x?}");
        // Another file, another delta, a gap before or behind, a mapping of the same file that lies anywhere.
        is_no_text([BEFORE, MEMORY, (0x5000, 0x6000, 0x5000, 8, "r-x")]);
        is_no_text([BEFORE, MEMORY, (0x5000, 0x6000, 0x4000, 7, "r-x")]);
        is_no_text([BEFORE, (0x4000, 0x5000, 0, 0, "rwx"), BEHIND]);
        is_no_text([BEFORE, (0x3000, 0x4000, 0, 0, "rwx"), BEHIND]);
        is_no_text([BEFORE, MEMORY, (0x5000, 0x6000, 0, 7, "r-x")]);
        // Between a file and memory, at the end, and at the beginning.
        is_no_text([BEFORE, MEMORY, (0x5000, 0x6000, 0, 0, "r-x")]);
        assert_eq!(executable(&[BEFORE, MEMORY])[1], memory);
        assert_eq!(executable(&[MEMORY, BEHIND])[0], memory);
        // Where a whole library was, between two others.
        let (low, high) = ((0x1000, 0x3000, 0, 8, "r-x"), (0x5000, 0x6000, 0x4000, 9, "r-x"));
        is_no_text([low, MEMORY, high]);
    }
}
