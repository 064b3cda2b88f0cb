//! Files that no parser should trust.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::FileExt as _,
    path::Path,
};

/// What is wrong with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Broken {
    /// Nothing in it.
    Empty,
    /// The start of an ELF file, then nothing.
    HeaderOnly,
    /// An ELF header whose tables lie outside the file, have absurd sizes, or overlap; machine code one page in.
    Forged,
    /// Random bytes.
    Noise,
    /// An ELF header, and then a hole of 1 GiB; the section table is said to be at its end.
    Sparse,
}

impl Broken {
    /// All of them.
    pub const ALL: [Broken; 5] =
        [Broken::Empty, Broken::HeaderOnly, Broken::Forged, Broken::Noise, Broken::Sparse];
}

/// Size of the sparse file.
const SPARSE_SIZE: u64 = 1 << 30;
/// push rbp; mov rbp, rsp; 1: dec rdi; jnz 1b; pop rbp; ret
const LOOP: [u8; 11] = [0x55, 0x48, 0x89, 0xe5, 0x48, 0xff, 0xcf, 0x75, 0xfb, 0x5d, 0xc3];

/// Writes such a file.
pub fn write_broken(broken: Broken, path: &Path) -> io::Result<()> {
    match broken {
        Broken::Empty => fs::write(path, []),
        Broken::HeaderOnly => fs::write(path, &header(64, 0, 0x40, 1)[..40]),
        Broken::Noise => {
            let mut random = 88_172_645_463_325_252_u64;
            let noise: Vec<u8> = (0..100_000)
                .map(|_| {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    random.to_le_bytes()[3]
                })
                .collect();
            fs::write(path, noise)
        }
        Broken::Forged => {
            let mut file = vec![0u8; 3 * 4096];
            file[..64].copy_from_slice(&header(64, u64::MAX - 8, 0xffff, 0xffff));
            // Program headers of every kind that lie about offset and size: load, dynamic, interpreter, note, eh_frame.
            for (index, kind) in [1u32, 2, 3, 4, 0x6474_e550].into_iter().enumerate() {
                let at = 64 + index * 56;
                file[at..at + 4].copy_from_slice(&kind.to_le_bytes());
                file[at + 4..at + 8].copy_from_slice(&5u32.to_le_bytes());
                file[at + 8..at + 16].copy_from_slice(&(u64::MAX - 0xfff).to_le_bytes());
                file[at + 16..at + 24].copy_from_slice(&0x1000u64.to_le_bytes());
                file[at + 32..at + 40].copy_from_slice(&u64::MAX.to_le_bytes());
                file[at + 40..at + 48].copy_from_slice(&u64::MAX.to_le_bytes());
            }
            file[4096..4096 + LOOP.len()].copy_from_slice(&LOOP);
            fs::write(path, file)
        }
        Broken::Sparse => {
            let mut file = File::create(path)?;
            file.set_len(SPARSE_SIZE)?;
            file.write_all(&header(64, SPARSE_SIZE - 64 * 1000, 0, 1000))?;
            file.write_all_at(&LOOP, 4096)
        }
    }
}

/// An ELF header of x86-64 (System V ABI, chapter 4) with the tables where it is told.
fn header(program_headers: u64, sections: u64, segments: u16, section_count: u16) -> [u8; 64] {
    let mut header = [0u8; 64];
    header[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    header[16..18].copy_from_slice(&3u16.to_le_bytes()); // ET_DYN
    header[18..20].copy_from_slice(&62u16.to_le_bytes()); // EM_X86_64
    header[20..24].copy_from_slice(&1u32.to_le_bytes());
    header[32..40].copy_from_slice(&program_headers.to_le_bytes());
    header[40..48].copy_from_slice(&sections.to_le_bytes());
    header[52..54].copy_from_slice(&64u16.to_le_bytes());
    header[54..56].copy_from_slice(&56u16.to_le_bytes());
    header[56..58].copy_from_slice(&segments.to_le_bytes());
    header[58..60].copy_from_slice(&64u16.to_le_bytes());
    header[60..62].copy_from_slice(&section_count.to_le_bytes());
    header[62..64].copy_from_slice(&section_count.wrapping_sub(1).to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_can_be_written() {
        let folder = tempfile::tempdir().unwrap();
        for broken in Broken::ALL {
            let path = folder.path().join(format!("{broken:?}"));
            write_broken(broken, &path).unwrap();
            let size = fs::metadata(&path).unwrap().len();
            match broken {
                Broken::Empty => assert_eq!(size, 0),
                Broken::Sparse => assert_eq!(size, SPARSE_SIZE),
                _ => assert!(size > 0 && size < 200_000),
            }
        }
    }
}
