//! Names for addresses. Addresses are resolved a batch at a time, at the end of a window: what was resolved before comes
//! from a cache, the rest from the files, an executable at a time, on threads of their own.

mod cache;
mod executable;
mod jit;
mod kernel;

use std::sync::Arc;

pub use cache::{NameCache, TableCache};
pub use executable::{Answer, Question, read_facts};
pub use jit::{JitProcesses, JitQuestion, MAX_JIT_PROCESSES};
pub use kernel::{KernelNames, Modules, read_kernel_symbols};

/// A function, with its names made text already.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Function {
    /// As its programmer wrote it.
    pub name: String,
    /// As the symbol table spells it.
    pub system_name: String,
    /// Its source file; empty if it is not known.
    pub file: String,
}

/// A place in a function.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Line {
    /// The function.
    pub function: Arc<Function>,
    /// The line; 0 if it is not known.
    pub line: u32,
}

/// What is at an address: the innermost inlined function first. Empty when nothing is known about it.
pub type Lines = Arc<[Line]>;
