//! ELF files made by hand, with whatever `.eh_frame` a test wants.

/// Where the code lies: address and file offset differ, so that nobody mistakes one for the other.
pub(super) const CODE: u64 = 0x40_0000;
/// File offset of the code, at 8 bytes before the end of a page of text.
pub(super) const CODE_OFFSET: u64 = 0xfff8;
/// Address of the frame section.
pub(super) const FRAMES: u64 = 0x80_0000;
/// Its file offset.
const FRAMES_OFFSET: u64 = 0x1000;

/// CFA instructions of DWARF (section 6.4.2).
pub(super) fn advance(delta: u8) -> [u8; 2] {
    [0x02, delta]
}

/// `DW_CFA_def_cfa_offset`.
pub(super) fn offset(offset: u8) -> [u8; 2] {
    assert!(offset < 0x80);
    [0x0e, offset]
}

/// `DW_CFA_def_cfa` rsp 8, and the return address at the CFA less 8.
pub(super) const HEAD: [u8; 5] = [0x0c, 7, 8, 0x90, 1];

/// The entries of a frame section.
#[derive(Clone, Default)]
pub(super) struct Entries {
    pub(super) bytes: Vec<u8>,
    /// Where the CIE begins that the next FDE is to have.
    pub(super) last_head: usize,
}

impl Entries {
    fn entry(&mut self, content: &[u8]) {
        self.bytes.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
        self.bytes.extend(content);
    }

    /// A CIE; `augmentation` with its NUL, `data` what goes with it.
    pub(super) fn head(mut self, augmentation: &[u8], data: &[u8], instructions: &[u8]) -> Self {
        self.last_head = self.bytes.len();
        let factors_and_column = [1, 0x78, 16];
        let content = [&[0, 0, 0, 0, 1], augmentation, &factors_and_column, data, instructions].concat();
        self.entry(&content);
        self
    }

    /// A CIE without augmentation: the addresses of its functions are absolute.
    pub(super) fn plain_head(self) -> Self {
        self.head(b"\0", &[], &HEAD)
    }

    /// An FDE with this content after the pointer to its CIE.
    pub(super) fn raw_function(mut self, content: &[u8]) -> Self {
        let back = u32::try_from(self.bytes.len() + 4 - self.last_head).unwrap();
        let content = [&back.to_le_bytes(), content].concat();
        self.entry(&content);
        self
    }

    /// An FDE with absolute addresses, of code from `begin` on.
    pub(super) fn function(self, begin: u64, length: u64, instructions: &[u8]) -> Self {
        let begin = CODE.wrapping_add(begin);
        self.raw_function(&[&begin.to_le_bytes(), length.to_le_bytes().as_slice(), instructions].concat())
    }

    pub(super) fn terminator(mut self) -> Self {
        self.bytes.extend([0; 4]);
        self
    }
}

/// A file with these frames, and `code` bytes of code (which are not there: nobody reads them).
pub(super) struct File {
    pub(super) frames: Vec<u8>,
    pub(super) name: &'static str,
    /// Type of the frame section.
    pub(super) kind: u32,
    pub(super) code: u64,
    /// Address of the code.
    pub(super) address: u64,
    /// Whether there are section headers; without them, a header of the frames as the given bytes.
    pub(super) header: Option<Vec<u8>>,
    /// Other sections, by name and address, of one byte each.
    pub(super) others: Vec<(&'static str, u64)>,
}

impl File {
    pub(super) fn of(entries: Entries) -> Self {
        File {
            frames: entries.bytes,
            name: ".eh_frame",
            kind: 1,
            code: 0x10_0000,
            address: CODE,
            header: None,
            others: Vec::new(),
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let header_offset = FRAMES_OFFSET - 0x100;
        let frames = self.frames.len() as u64;
        let mut segments = vec![
            segment(1, 5, CODE_OFFSET, self.address, self.code),
            segment(1, 4, FRAMES_OFFSET, FRAMES, frames),
        ];
        if let Some(header) = &self.header {
            let size = header.len() as u64;
            segments.push(segment(0x6474_e550, 4, header_offset, FRAMES - 0x100, size));
        }
        let mut names = [b"\0", self.name.as_bytes(), b"\0"].concat();
        let names_offset = FRAMES_OFFSET + frames;
        let mut sections =
            [section(0, 0, 0, 0, 0), section(1, self.kind, FRAMES, FRAMES_OFFSET, frames)].concat();
        for (name, address) in &self.others {
            sections.extend(section(u32::try_from(names.len()).unwrap(), 1, *address, FRAMES_OFFSET, 1));
            names.extend([name.as_bytes(), b"\0"].concat());
        }
        sections.extend(section(0, 3, 0, names_offset, names.len() as u64));
        let sections_offset = names_offset + names.len() as u64;
        if self.header.is_some() {
            sections.clear();
        }
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(16, 0);
        for half in [3u16, 62, 1, 0] {
            file.extend(half.to_le_bytes());
        }
        let sections_at = if sections.is_empty() { 0 } else { sections_offset };
        for word in [CODE, 64, sections_at] {
            file.extend(word.to_le_bytes());
        }
        let counts = (u16::try_from(segments.len()).unwrap(), u16::try_from(sections.len() / 64).unwrap());
        for half in [0u16, 0, 64, 56, counts.0, 64, counts.1, counts.1.saturating_sub(1)] {
            file.extend(half.to_le_bytes());
        }
        file.extend(segments.concat());
        if let Some(header) = &self.header {
            file.resize(usize::try_from(header_offset).unwrap(), 0);
            file.extend(header);
        }
        file.resize(usize::try_from(FRAMES_OFFSET).unwrap(), 0);
        file.extend(&self.frames);
        file.extend(names);
        file.extend(sections);
        file
    }
}

fn segment(kind: u32, flags: u32, offset: u64, address: u64, size: u64) -> Vec<u8> {
    let mut bytes = [kind.to_le_bytes(), flags.to_le_bytes()].concat();
    for word in [offset, address, address, size, size, 0x1000] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

fn section(name: u32, kind: u32, address: u64, offset: u64, size: u64) -> Vec<u8> {
    let mut bytes = [name.to_le_bytes(), kind.to_le_bytes()].concat();
    for word in [0, address, offset, size, 0, 8, 0] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}
