//! Names of the kernel and its modules, as the collector passes them on.
//!
//! Lines `MODULE OFFSET NAME`: `MODULE` decimal (0 is the kernel), `OFFSET` hexadecimal from the module's base. Not
//! sorted.

use crate::{
    ObjectError, ReadAt,
    lines::{Lines, hexadecimal},
};

/// Symbols that are kept: a distribution's kernel with all its modules has 200,000.
const MAX_SYMBOLS: usize = 2_000_000;
/// Longest name (`KSYM_NAME_LEN` in the kernel's include/linux/kallsyms.h), in bytes.
const MAX_NAME: usize = 512;

/// Kernel symbols by module and offset.
#[derive(Debug, Default)]
pub struct KernelSymbols {
    /// Sorted by module and offset.
    symbols: Vec<Symbol>,
    names: String,
    broken_lines: u64,
}

#[derive(Clone, Copy, Debug)]
struct Symbol {
    offset: u64,
    name: u32,
    length: u16,
    module: u16,
}

impl KernelSymbols {
    /// Reads the whole file, at most `max_bytes` of it. Broken lines are skipped and counted.
    pub fn read(file: &dyn ReadAt, max_bytes: usize) -> Result<Self, ObjectError> {
        let mut read = KernelSymbols::default();
        let mut lines = Lines::new(file, "kernel symbols", 0, (max_bytes as u64).min(file.size()));
        while let Some(line) = lines.next_line()? {
            if read.symbols.len() >= MAX_SYMBOLS || read.add(line.bytes).is_none() {
                read.broken_lines += 1;
            }
        }
        // Stable: of several names for one place the first stays, which is the kernel's own order.
        read.symbols.sort_by_key(|symbol| (symbol.module, symbol.offset));
        read.symbols.dedup_by_key(|symbol| (symbol.module, symbol.offset));
        read.symbols.shrink_to_fit();
        read.names.shrink_to_fit();
        Ok(read)
    }

    fn add(&mut self, line: &[u8]) -> Option<()> {
        let mut fields = line.splitn(3, |byte| *byte == b' ');
        let module = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
        let offset = hexadecimal(fields.next()?)?;
        let name = std::str::from_utf8(fields.next()?).ok()?;
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            return None;
        }
        let start = u32::try_from(self.names.len()).ok()?;
        let length = u16::try_from(name.len()).ok()?;
        self.names.push_str(name);
        self.symbols.push(Symbol { offset, name: start, length, module });
        Some(())
    }

    /// The symbol at or below an offset of a module.
    pub fn lookup(&self, module: u16, offset: u64) -> Option<&str> {
        let after = self.symbols.partition_point(|symbol| (symbol.module, symbol.offset) <= (module, offset));
        let symbol = self.symbols[..after].last().filter(|symbol| symbol.module == module)?;
        self.names.get(symbol.name as usize..symbol.name as usize + usize::from(symbol.length))
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }

    /// Lines that are no symbol, or for which there was no room.
    pub fn broken_lines(&self) -> u64 {
        self.broken_lines
    }

    /// Bytes of memory it holds.
    pub fn memory_size(&self) -> usize {
        self.symbols.capacity() * size_of::<Symbol>() + self.names.capacity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_symbol_at_or_below_is_found_in_its_module_only() {
        let text = b"0 1000 second\n1 10 m_first\n0 0 _text\n0 1000 alias\n1 20 m_last\n".to_vec();
        let symbols = KernelSymbols::read(&text, 1 << 20).unwrap();
        assert_eq!((symbols.len(), symbols.broken_lines()), (4, 0));
        assert_eq!(symbols.lookup(0, 0), Some("_text"));
        assert_eq!(symbols.lookup(0, 0xfff), Some("_text"));
        assert_eq!(symbols.lookup(0, 0x1000), Some("second"));
        assert_eq!(symbols.lookup(0, u64::MAX), Some("second"));
        assert_eq!(symbols.lookup(1, 0xf), None);
        assert_eq!(symbols.lookup(1, 0x1f), Some("m_first"));
        assert_eq!(symbols.lookup(2, 0), None);
    }

    #[test]
    fn a_broken_line_costs_only_itself() {
        let text =
            b"\n0\n0 \n0 zz a\nx 0 a\n99999 0 a\n0 0 \n0 1 \xff\n0 2 a\x01b\n0 3 good\n0 4 no end".to_vec();
        let symbols = KernelSymbols::read(&text, 1 << 20).unwrap();
        assert_eq!(symbols.lookup(0, 3), Some("good"));
        assert_eq!(symbols.lookup(0, 4), Some("no end"));
        assert_eq!((symbols.len(), symbols.broken_lines()), (2, 9));
    }

    #[test]
    fn no_more_is_read_than_allowed() {
        let text = b"0 0 a\n0 10 b\n".to_vec();
        let symbols = KernelSymbols::read(&text, 6).unwrap();
        assert_eq!(symbols.lookup(0, 0x10), Some("a"));
        assert!(KernelSymbols::read(&vec![b'x'; 1 << 20], 1 << 20).unwrap().is_empty());
    }
}
