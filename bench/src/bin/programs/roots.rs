//! Whether the outermost frame of a stack is where a thread starts, found out apart from the unwinder: by the file's
//! entry and by the instructions there. An unwind that took a wrong way may also say that it reached the root.

use std::{collections::HashMap, fs::File, os::unix::fs::FileExt as _};

use objects::ElfFacts;
use records::ElfAddress;
use tests::pprof::Frame;

/// Instructions after a file's entry that belong to its start: the call of main, or of the linked program.
const START: u64 = 96;
/// What stands behind the call in `clone` and `clone3`: the exit of the thread with the function's result
/// (`mov %eax, %edi; mov $SYS_exit, %eax; syscall`; in `clone` with a REX prefix before it).
const THREAD_END: [u8; 9] = [0x89, 0xc7, 0xb8, 0x3c, 0, 0, 0, 0x0f, 0x05];
/// Where Go's stacks begin. `mcall` and `morestack` switch to another stack and end the chain of frame pointers on purpose.
const GO: &[&str] = &["goexit", "mstart", "rt0_go", "mcall", "morestack"];

/// What is known of the files.
#[derive(Default)]
pub(crate) struct Roots(HashMap<String, Option<Starts>>);

struct Starts {
    entry: u64,
    file: File,
    facts: ElfFacts,
}

impl Roots {
    /// Whether a thread starts there. Files must still be there.
    pub(crate) fn holds(&mut self, frame: &Frame) -> bool {
        if let Some(name) = frame.name.strip_prefix("runtime.") {
            return GO.contains(&name.trim_end_matches(".abi0"));
        }
        let starts = self.0.entry(frame.mapping.clone()).or_insert_with(|| read(&frame.mapping));
        let Some(Starts { entry, file, facts }) = starts else { return false };
        if (*entry..*entry + START).contains(&frame.address) {
            return true;
        }
        // The frame's address is the byte before the one that is returned to.
        let Some(offset) = facts.file_offset(ElfAddress(frame.address + 1)) else { return false };
        let mut code = [0; 10];
        file.read_exact_at(&mut code, offset.0).is_ok()
            && (code.starts_with(&THREAD_END) || code[1..] == THREAD_END)
    }

    /// Whether an address in memory may be at a file's entry: where it was loaded is not known, but within its page
    /// everything stays where it is in the file.
    pub(crate) fn may_begin_at(&mut self, path: &str, address: u64) -> bool {
        let starts = self.0.entry(path.to_owned()).or_insert_with(|| read(path));
        starts.as_ref().is_some_and(|starts| (address.wrapping_sub(starts.entry) & 0xfff) < START)
    }
}

fn read(path: &str) -> Option<Starts> {
    let file = File::open(path).ok()?;
    // e_entry, in the header of a 64-bit file.
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 24).ok()?;
    let facts = ElfFacts::read(&file).ok()?;
    Some(Starts { entry: u64::from_le_bytes(bytes), file, facts })
}
