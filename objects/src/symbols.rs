//! The function symbols of a file, compact and sorted.

use records::ElfAddress;

use crate::{ObjectError, ReadAt};

/// Function names by address.
#[derive(Debug, Default)]
pub struct SymbolTable {
    names: String,
}

impl SymbolTable {
    /// Reads `.symtab` and `.dynsym`, names PLT stubs, and falls back to Go's function table. Neither while it reads
    /// nor later does it hold more than about `max_bytes`; a table that would is left out ([`SymbolTable::problem`]).
    ///
    /// An error only if the file has no function names that can be read at all.
    pub fn read(file: &dyn ReadAt, max_bytes: usize) -> Result<Self, ObjectError> {
        let _ = (file, max_bytes);
        Err(ObjectError::Missing("symbols"))
    }

    /// The function that holds the address: its name as the file spells it (mangled; a PLT stub's is `NAME@plt`),
    /// and where it starts.
    pub fn lookup(&self, address: ElfAddress) -> Option<(&str, ElfAddress)> {
        let _ = address;
        None
    }

    /// Number of functions.
    pub fn len(&self) -> usize {
        0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        true
    }

    /// The first thing that was wrong with the tables, when names are missing for it.
    pub fn problem(&self) -> Option<&ObjectError> {
        None
    }

    /// Bytes of memory it holds.
    pub fn memory_size(&self) -> usize {
        self.names.capacity()
    }
}
