//! Parsers of ELF, DWARF and perf maps over a read-at trait, without I/O of their own.
//!
//! Every byte that is read here may have been written by an enemy: the file of any process, cut short, sparse, forged,
//! changed while it is read. So each entry point is bounded in bytes, counts and work, answers with a typed error, and a
//! bad record costs only that record.
#![forbid(unsafe_code)]

mod debug_copy;
mod demangle;
mod dwarf;
mod dwarf_reader;
mod elf;
mod error;
mod facts;
mod gopclntab;
mod kernel_symbols;
mod lines;
mod notes;
mod perf_map;
mod plt;
mod read_at;
mod section_data;
mod symbol_names;
mod symbols;
mod symtab;
mod unwind_rows;

pub use debug_copy::write_debug_copy;
pub use demangle::demangle;
pub use dwarf::{Dwarf, Frame};
pub use error::ObjectError;
pub use facts::{Class, Contents, ElfFacts, ElfType, FileId, IdKind, Segment};
pub use kernel_symbols::KernelSymbols;
pub use perf_map::PerfMap;
pub use read_at::ReadAt;
pub use symbols::SymbolTable;
pub use unwind_rows::UnwindRows;
