//! One executable: its facts, and the names of a batch of its addresses. Everything here blocks and is run by a
//! [`Worker`](crate::worker::Worker). Files are read with `pread` and never mapped (promise W9): one that is cut short
//! while we read is an error, not a SIGBUS.

use std::{
    collections::HashMap,
    fs::File,
    sync::Arc,
    time::{Duration, Instant},
};

use objects::{Dwarf, ElfFacts, Frame, ObjectError, SymbolTable, demangle};
use records::{ElfAddress, FileOffset};

use super::Function;
use crate::printable::printable;

/// Most memory for one symbol table, in bytes. Large programs have 20 to 60 MiB of names.
const MAX_TABLE: usize = 96 << 20;
/// Most memory for one file's DWARF, in bytes; a file with more is named by its symbol table.
const MAX_DWARF: usize = 96 << 20;

/// Addresses of one executable that have no name yet.
#[derive(Debug)]
pub struct Question {
    /// Its open file, if it is to be had.
    pub file: Option<Arc<File>>,
    /// Its facts.
    pub facts: Arc<ElfFacts>,
    /// Its symbol table, if that was kept.
    pub table: Option<Arc<SymbolTable>>,
    /// Whether its DWARF may be read now.
    pub dwarf: bool,
    /// File offsets, as they are to be looked up.
    pub offsets: Vec<u64>,
}

/// What was found out.
#[derive(Debug, Default)]
pub struct Answer {
    /// By file offset: functions and lines, the innermost inlined one first; none when nothing is known.
    pub lines: HashMap<u64, Vec<(Function, u32)>>,
    /// Whether a better answer could be had later, because DWARF was not to be read this time.
    pub provisional: bool,
    /// The symbol table, to be kept.
    pub table: Option<Arc<SymbolTable>>,
    /// What reading the DWARF cost.
    pub dwarf_cost: Duration,
    /// What was wrong with the file, for one warning.
    pub problem: Option<String>,
}

/// The facts of an executable. Only a regular file is read: nothing else is ever mapped, and a pipe would block.
pub fn read_facts(file: &File) -> Result<ElfFacts, ObjectError> {
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(ObjectError::Unsupported("what is no regular file"));
    }
    ElfFacts::read(file)
}

impl Question {
    /// Answers it, as well as can be done.
    pub fn answer(self) -> Answer {
        let mut answer = Answer::default();
        let table = self.table.clone().or_else(|| self.read_table(&mut answer));
        let mut dwarf = self.read_dwarf(&mut answer);
        for offset in &self.offsets {
            let Some(address) = self.facts.elf_address(FileOffset(*offset)) else {
                answer.lines.insert(*offset, Vec::new());
                continue;
            };
            let frames = dwarf.as_mut().map_or(Ok(Vec::new()), |(dwarf, _)| dwarf.frames(address));
            let frames = frames.unwrap_or_else(|error| {
                answer.problem.get_or_insert_with(|| error.to_string());
                Vec::new()
            });
            answer.lines.insert(*offset, lines(&frames, table.as_deref(), address));
        }
        if let Some((_, begun)) = dwarf {
            answer.dwarf_cost = begun.elapsed();
        }
        answer.table = table;
        answer
    }

    fn read_table(&self, answer: &mut Answer) -> Option<Arc<SymbolTable>> {
        let file = self.file.as_ref()?;
        match SymbolTable::read(file.as_ref(), MAX_TABLE) {
            Ok(table) => {
                answer.problem = table.problem().map(ToString::to_string);
                Some(Arc::new(table))
            }
            Err(ObjectError::Missing(_)) => Some(Arc::default()),
            Err(error) => {
                answer.problem = Some(error.to_string());
                None
            }
        }
    }

    fn read_dwarf(&self, answer: &mut Answer) -> Option<(Dwarf, Instant)> {
        if !self.facts.contents.dwarf {
            return None;
        }
        let (Some(file), true) = (&self.file, self.dwarf) else {
            answer.provisional = true;
            return None;
        };
        let begun = Instant::now();
        match Dwarf::read(file.as_ref(), MAX_DWARF) {
            Ok(dwarf) => Some((dwarf, begun)),
            Err(ObjectError::Missing(_)) => None,
            Err(error) => {
                answer.problem.get_or_insert_with(|| error.to_string());
                None
            }
        }
    }
}

/// The functions at an address, from DWARF and, where that is silent, from the symbol table.
fn lines(frames: &[Frame], table: Option<&SymbolTable>, address: ElfAddress) -> Vec<(Function, u32)> {
    let symbol = || table.and_then(|table| table.lookup(address)).map(|(name, _)| name);
    if frames.is_empty() {
        return symbol().map(|name| (function(name, ""), 0)).into_iter().collect();
    }
    let last = frames.len() - 1;
    frames
        .iter()
        .enumerate()
        .map(|(index, frame)| {
            // The symbol table only knows the function that holds all others. Where both know it, the linkage name
            // of DWARF is the same one.
            let name = frame.function.as_deref().or_else(|| if index == last { symbol() } else { None });
            let file = frame.file.as_deref().unwrap_or_default();
            (function(name.unwrap_or("[unknown]"), file), frame.line.unwrap_or(0))
        })
        .collect()
}

fn function(system_name: &str, file: &str) -> Function {
    Function {
        name: printable(demangle(system_name).as_bytes()),
        system_name: printable(system_name.as_bytes()),
        file: printable(file.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Arc<File> {
        Arc::new(File::open(std::env::current_exe().unwrap()).unwrap())
    }

    #[test]
    fn only_regular_files_are_read() {
        for path in ["/dev/null", "/"] {
            let error = read_facts(&File::open(path).unwrap()).unwrap_err();
            assert!(matches!(error, ObjectError::Unsupported(_)), "{path}: {error}");
        }
        assert!(matches!(read_facts(&tempfile::tempfile().unwrap()), Err(ObjectError::NotElf)));
    }

    #[test]
    fn a_function_of_this_program_is_found() {
        let file = own();
        let facts = Arc::new(read_facts(&file).unwrap());
        // Where this test's own code lies in its file, by the system's list of mappings.
        let address = read_facts as fn(&File) -> _ as usize as u64;
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let offset = maps.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let (start, end) = words.next()?.split_once('-')?;
            let [start, end, offset] =
                [start, end, words.nth(1)?].map(|word| u64::from_str_radix(word, 16).unwrap_or(0));
            (start <= address && address < end).then(|| address - start + offset)
        });
        let offset = offset.unwrap();
        let question = |dwarf, file: Option<Arc<File>>| Question {
            file,
            facts: Arc::clone(&facts),
            table: None,
            dwarf,
            offsets: vec![offset, u64::MAX],
        };
        let answer = question(true, Some(file)).answer();
        let (function, line) = answer.lines[&offset].last().unwrap();
        assert_eq!(function.name.split("::h").next(), Some("uploader::symbols::executable::read_facts"));
        assert!(function.file.ends_with("symbols/executable.rs"), "{function:?}");
        assert!(*line > 0);
        assert!(!answer.provisional);
        assert!(answer.lines[&u64::MAX].is_empty());

        let again = Question { table: answer.table, ..question(false, None) }.answer();
        let (function, line) = again.lines[&offset].last().unwrap();
        assert!(function.name.contains("read_facts"));
        assert_eq!((function.file.as_str(), *line), ("", 0));
        assert!(again.provisional, "DWARF could say more");

        let nothing = question(true, None).answer();
        assert!(nothing.lines[&offset].is_empty());
    }
}
