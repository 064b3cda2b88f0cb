//! What can go wrong with a file that anybody may have written.

use std::io;

use thiserror::Error;

/// Why a file, or a part of it, could not be used. Nothing here is worth a retry except [`ObjectError::Io`]; whoever
/// asked goes on with less: the symbol table in place of DWARF, an unnamed frame in place of a symbol.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// The read itself failed.
    #[error("cannot read the {what} at file offset {offset:#x}: {source}")]
    Io {
        /// Which part of the file.
        what: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The file ends before what it announces, or was cut short while it was being read.
    #[error("the {what} at file offset {offset:#x} ({wanted} bytes) reaches beyond the end of the file")]
    Truncated {
        /// Which part of the file.
        what: &'static str,
        /// Where in the file, in bytes.
        offset: u64,
        /// How many bytes were to be read there.
        wanted: u64,
    },
    /// No ELF file (a JIT dump, a font, an empty file).
    #[error("not an ELF file")]
    NotElf,
    /// A form that this crate does not read.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// More than the limit that was given for it; nothing was read.
    #[error("the {what} of {size} bytes is larger than the limit of {limit}")]
    TooLarge {
        /// Which part of the file.
        what: &'static str,
        /// Its size, in bytes.
        size: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The file contradicts itself.
    #[error("malformed {what}: {problem}")]
    Malformed {
        /// Which part of the file.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The part is not there, which is no fault of the file.
    #[error("the file has no {0}")]
    Missing(&'static str),
    /// A look-up needed more work than any honest file does.
    #[error("reading the {0} takes more work than its size can explain")]
    TooMuchWork(&'static str),
}
