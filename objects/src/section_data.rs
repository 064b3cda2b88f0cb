//! Content of sections, compressed or not.
//!
//! Layout: System V ABI, chapter 4, "Section compression" (`Elf64_Chdr`); the older `.zdebug_*` form is `ZLIB` and the
//! size in 8 bytes, big endian.

use std::io::{self, Read};

use flate2::read::ZlibDecoder;
use ruzstd::decoding::StreamingDecoder;

use crate::{
    ObjectError, ReadAt,
    elf::{Elf, SHF_COMPRESSED, Section},
    read_at::{read_exact, read_range},
};

const ELFCOMPRESS_ZLIB: u32 = 1;
const ELFCOMPRESS_ZSTD: u32 = 2;
/// Deflate cannot do better than 1:1032 (<https://zlib.net/zlib_tech.html>): a header that says so is forged.
const MAX_DEFLATE_RATIO: u64 = 1040;
/// What a zstd stream may want to look back on, in bytes. Linkers use 8 MiB at their highest level.
const MAX_ZSTD_WINDOW: u64 = 16 << 20;

/// How a section is stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Form {
    Plain,
    Zlib,
    Zstd,
}

/// A section that can be loaded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    form: Form,
    /// Where the (compressed) bytes are.
    offset: u64,
    file_size: u64,
    /// Size in memory, as far as the file can be believed.
    pub(crate) size: u64,
}

impl Stored {
    /// Reads the header of a compressed section.
    pub(crate) fn of(elf: &Elf<'_>, section: &Section, what: &'static str) -> Result<Self, ObjectError> {
        let Section { offset, size, .. } = *section;
        let header_size = if section.flags & SHF_COMPRESSED != 0 {
            elf.encoding.size(12, 24)
        } else if elf.name(section).starts_with(b".zdebug_") {
            12
        } else {
            return Ok(Stored { form: Form::Plain, offset, file_size: size, size });
        };
        let mut header = [0; 24];
        let header = &mut header[..header_size];
        read_exact(elf.file, what, offset, header)?;
        let malformed = |problem: &str| ObjectError::Malformed { what, problem: problem.to_owned() };
        let (form, uncompressed) = if section.flags & SHF_COMPRESSED != 0 {
            let form = match elf.encoding.u32(header, 0) {
                ELFCOMPRESS_ZLIB => Form::Zlib,
                ELFCOMPRESS_ZSTD => Form::Zstd,
                _ => return Err(ObjectError::Unsupported("this compression of a section")),
            };
            (form, elf.encoding.word(header, 4, 8))
        } else {
            let size = header.strip_prefix(b"ZLIB").and_then(|size| size.first_chunk());
            (Form::Zlib, u64::from_be_bytes(*size.ok_or_else(|| malformed("no ZLIB header"))?))
        };
        let file_size = size
            .checked_sub(header_size as u64)
            .ok_or_else(|| malformed("compressed, and smaller than the header of compressed sections"))?;
        if form == Form::Zlib && uncompressed / MAX_DEFLATE_RATIO > file_size {
            return Err(malformed("a size that so few compressed bytes cannot have"));
        }
        let offset = offset.saturating_add(header_size as u64);
        Ok(Stored { form, offset, file_size, size: uncompressed })
    }

    /// Loads it, if it has at most `limit` bytes in memory.
    pub(crate) fn load(
        &self,
        file: &dyn ReadAt,
        what: &'static str,
        limit: u64,
    ) -> Result<Vec<u8>, ObjectError> {
        let Stored { form, offset, file_size, size } = *self;
        if size > limit {
            return Err(ObjectError::TooLarge { what, size, limit });
        }
        if form == Form::Plain {
            return read_range(file, what, offset, size, limit);
        }
        if offset.checked_add(file_size).is_none_or(|end| end > file.size()) {
            return Err(ObjectError::Truncated { what, offset, wanted: file_size });
        }
        let size = usize::try_from(size).map_err(|_| ObjectError::TooLarge { what, size, limit })?;
        let mut bytes = vec![0; size];
        let source = io::BufReader::with_capacity(64 * 1024, Window { file, offset, left: file_size });
        let result = match form {
            Form::Zlib => ZlibDecoder::new(source).read_exact(&mut bytes),
            Form::Zstd | Form::Plain => read_zstd(source, &mut bytes),
        };
        match result {
            Ok(()) => Ok(bytes),
            Err(error) => {
                Err(ObjectError::Malformed { what, problem: format!("cannot uncompress it: {error}") })
            }
        }
    }
}

/// Fills `bytes` from as many frames as it takes: lld compresses in pieces.
fn read_zstd(mut source: impl Read, bytes: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let mut decoder = StreamingDecoder::new_with_max_window_size(&mut source, MAX_ZSTD_WINDOW)
            .map_err(io::Error::other)?;
        let before = done;
        while done < bytes.len() {
            match decoder.read(&mut bytes[done..])? {
                0 => break,
                length => done += length,
            }
        }
        if done == before {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// A part of a file as a stream.
struct Window<'a> {
    file: &'a dyn ReadAt,
    offset: u64,
    left: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.file.read_at(&mut buffer[..length], self.offset)?.min(length);
        self.offset += read as u64;
        self.left -= read as u64;
        Ok(read)
    }
}
