//! Functions, inlined functions and lines from DWARF.

use records::ElfAddress;

use crate::{ObjectError, ReadAt};

/// One of the functions at an address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// Its linkage name if there is one (mangled), else its plain name.
    pub function: Option<String>,
    /// The source file, with its folder as the compiler saw it.
    pub file: Option<String>,
    /// The line in it; for a function that others are inlined in, the line of the call.
    pub line: Option<u32>,
}

/// DWARF of one file. `Send`, not `Sync`.
#[derive(Debug)]
pub struct Dwarf {
    size: usize,
}

impl Dwarf {
    /// Reads the sections into memory, uncompressed at most `max_bytes` of them.
    pub fn read(file: &dyn ReadAt, max_bytes: usize) -> Result<Self, ObjectError> {
        let _ = (file, max_bytes);
        Err(ObjectError::Missing("DWARF"))
    }

    /// The functions at an address, the innermost inlined one first. Empty if the DWARF does not know the address.
    /// After an error, ask the symbol table.
    pub fn frames(&mut self, address: ElfAddress) -> Result<Vec<Frame>, ObjectError> {
        let _ = address;
        Ok(Vec::new())
    }

    /// Bytes of memory it holds, about. Grows as addresses are looked up, because units are parsed when needed.
    pub fn memory_size(&self) -> usize {
        self.size
    }
}
