//! How everything in this crate reads: a piece at a time, never through a mapping, because a mapped file that is cut
//! short kills its reader with SIGBUS.

use std::{fs::File, io, os::unix::fs::FileExt};

use crate::ObjectError;

/// Largest single read, in bytes.
const CHUNK: usize = 256 * 1024;

/// Bytes that can be read at any position.
pub trait ReadAt {
    /// Length in bytes, as far as is known now. A promise to nobody: a later read may find less.
    fn size(&self) -> u64;

    /// Reads at most `buffer.len()` bytes from `offset` on and says how many it read; 0 is the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for [u8] {
    fn size(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> u64 {
        self.as_slice().size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_at(buffer, offset)
    }
}

impl<T: ReadAt + ?Sized> ReadAt for &T {
    fn size(&self) -> u64 {
        T::size(self)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        T::read_at(self, buffer, offset)
    }
}

/// `pread` and `fstat` on a file that somebody else opened.
impl ReadAt for File {
    /// 0 when `fstat` fails.
    fn size(&self) -> u64 {
        self.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

/// Fills `buffer` from `offset` on.
pub(crate) fn read_exact(
    file: &dyn ReadAt,
    what: &'static str,
    offset: u64,
    buffer: &mut [u8],
) -> Result<(), ObjectError> {
    let wanted = buffer.len() as u64;
    let mut done = 0;
    while done < buffer.len() {
        let end = buffer.len().min(done + CHUNK);
        let at = offset.checked_add(done as u64).ok_or(ObjectError::Truncated { what, offset, wanted })?;
        match file.read_at(&mut buffer[done..end], at) {
            Ok(0) => return Err(ObjectError::Truncated { what, offset, wanted }),
            Ok(length) => done += length.min(end - done),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(ObjectError::Io { what, offset: at, source }),
        }
    }
    Ok(())
}

/// Reads `size` bytes from `offset` on, if they are at most `limit` and lie within the file.
pub(crate) fn read_range(
    file: &dyn ReadAt,
    what: &'static str,
    offset: u64,
    size: u64,
    limit: u64,
) -> Result<Vec<u8>, ObjectError> {
    if size > limit {
        return Err(ObjectError::TooLarge { what, size, limit });
    }
    // Checked before the allocation, so that a forged size costs nothing.
    if offset.checked_add(size).is_none_or(|end| end > file.size()) {
        return Err(ObjectError::Truncated { what, offset, wanted: size });
    }
    let size = usize::try_from(size).map_err(|_| ObjectError::TooLarge { what, size, limit })?;
    let mut bytes = vec![0; size];
    read_exact(file, what, offset, &mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Says that it is long, and is not: a file that was truncated after `fstat`.
    struct Shrunk(Vec<u8>);

    impl ReadAt for Shrunk {
        fn size(&self) -> u64 {
            1 << 40
        }

        fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
            let length = buffer.len().min(3);
            self.0.read_at(&mut buffer[..length], offset)
        }
    }

    #[test]
    fn short_reads_go_on_until_the_end() {
        let file = Shrunk((0..100).collect());
        assert_eq!(read_range(&file, "x", 10, 50, 50).unwrap(), (10..60).collect::<Vec<u8>>());
        assert!(matches!(read_range(&file, "x", 90, 11, 50), Err(ObjectError::Truncated { .. })));
    }

    #[test]
    fn ranges_beyond_the_limit_or_the_file_are_refused() {
        let file = vec![1; 100];
        assert!(matches!(read_range(&file, "x", 0, 51, 50), Err(ObjectError::TooLarge { .. })));
        assert!(matches!(read_range(&file, "x", 60, 50, 50), Err(ObjectError::Truncated { .. })));
        assert!(matches!(read_range(&file, "x", u64::MAX, 50, 50), Err(ObjectError::Truncated { .. })));
        assert!(read_range(&file, "x", 100, 0, 50).unwrap().is_empty());
    }

    #[test]
    fn files_and_slices_read_alike() {
        let path = std::env::current_exe().unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = File::open(&path).unwrap();
        assert_eq!(ReadAt::size(&file), bytes.size());
        let end = bytes.size() - 5;
        assert_eq!(
            read_range(&file, "x", end - 1000, 1000, 1000).unwrap(),
            read_range(&bytes, "x", end - 1000, 1000, 1000).unwrap()
        );
    }
}
