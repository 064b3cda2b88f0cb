//! Names of the kernel and its modules, as the collector passes them on.

use std::{collections::HashMap, fs::File, sync::Arc};

use ipc::ModuleId;
use objects::{KernelSymbols, ObjectError};

use crate::printable::printable;

/// Most bytes of the text of kernel symbols that are read. A distribution's kernel with all its modules loaded has
/// about 20 MiB.
const MAX_TEXT: usize = 64 << 20;
/// Most names of modules that are kept, over all sessions.
const MAX_MODULES: usize = 4096;

/// Names of modules by numbers of the uploader's own, which stay the same when a collector comes that counts
/// otherwise. 0 is the kernel itself.
#[derive(Debug)]
pub struct Modules {
    names: Vec<Arc<str>>,
    /// By the collector's number in this session.
    session: Vec<Option<u16>>,
}

impl Default for Modules {
    fn default() -> Self {
        Modules { names: vec!["".into()], session: vec![Some(0)] }
    }
}

impl Modules {
    /// Forgets the collector's numbers.
    pub fn end_session(&mut self) {
        self.session = vec![Some(0)];
    }

    /// Takes the collector's list.
    pub fn set(&mut self, names: &[String]) {
        let number = |(index, name): (usize, &String)| {
            if index == 0 {
                return Some(0);
            }
            let name = printable(name.as_bytes());
            let known = self.names.iter().position(|known| **known == *name);
            let position = known.or_else(|| {
                (self.names.len() < MAX_MODULES).then(|| {
                    self.names.push(name.into());
                    self.names.len() - 1
                })
            });
            position.and_then(|position| u16::try_from(position).ok())
        };
        self.session = names.iter().take(MAX_MODULES).enumerate().map(number).collect();
    }

    /// The uploader's number of a module of the collector's.
    pub fn number(&self, module: ModuleId) -> Option<u16> {
        self.session.get(usize::from(module.0)).copied().flatten()
    }

    /// The name of a module; empty for the kernel itself.
    pub fn name(&self, number: u16) -> Arc<str> {
        self.names.get(usize::from(number)).cloned().unwrap_or_else(|| "[unknown module]".into())
    }
}

/// The symbols, together with the numbers by which they are found.
#[derive(Debug, Default)]
pub struct KernelNames {
    symbols: KernelSymbols,
    /// From the uploader's numbers to those of the symbols.
    numbers: HashMap<u16, u16>,
}

impl KernelNames {
    /// The symbols as `modules` numbers them now.
    pub fn new(symbols: KernelSymbols, modules: &Modules) -> Self {
        let numbers = modules.session.iter().enumerate();
        let numbers = numbers.filter_map(|(theirs, ours)| Some(((*ours)?, u16::try_from(theirs).ok()?)));
        KernelNames { symbols, numbers: numbers.collect() }
    }

    /// The name at an offset of a module.
    pub fn lookup(&self, module: u16, offset: u64) -> Option<&str> {
        self.symbols.lookup(*self.numbers.get(&module)?, offset)
    }

    /// Number of symbols.
    pub fn len(&self) -> usize {
        self.symbols.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.symbols.is_empty()
    }
}

/// Reads the collector's file. Blocks.
pub fn read_kernel_symbols(file: &File) -> Result<KernelSymbols, ObjectError> {
    if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
        return Err(ObjectError::Unsupported("what is no regular file"));
    }
    KernelSymbols::read(file, MAX_TEXT)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn numbers_outlive_a_session() {
        let mut modules = Modules::default();
        modules.set(&names(&["", "ext4", "btrfs"]));
        assert_eq!(modules.number(ModuleId(2)), Some(2));
        modules.end_session();
        assert_eq!(modules.number(ModuleId(2)), None);
        assert_eq!(modules.number(ModuleId::KERNEL), Some(0));
        modules.set(&names(&["", "btrfs", "xfs"]));
        assert_eq!(modules.number(ModuleId(1)), Some(2));
        assert_eq!(modules.number(ModuleId(2)), Some(3));
        assert_eq!(&*modules.name(2), "btrfs");
        assert_eq!(&*modules.name(0), "");
        assert_eq!(&*modules.name(77), "[unknown module]");
    }

    #[test]
    fn modules_are_bounded() {
        let mut modules = Modules::default();
        let list: Vec<_> = (0..60_000).map(|index| format!("m{index}")).collect();
        modules.set(&list);
        assert_eq!(modules.names.len(), MAX_MODULES);
    }

    #[test]
    fn symbols_are_found_by_our_numbers() {
        let mut file = tempfile::tempfile().unwrap();
        write!(file, "0 10 _stext\n0 20 do_syscall_64\n1 0 btrfs_init\n").unwrap();
        let mut modules = Modules::default();
        modules.set(&names(&["", "ext4"]));
        modules.set(&names(&["", "btrfs"]));
        let symbols = KernelNames::new(read_kernel_symbols(&file).unwrap(), &modules);
        assert_eq!(symbols.lookup(0, 0x25), Some("do_syscall_64"));
        assert_eq!(symbols.lookup(2, 5), Some("btrfs_init"));
        assert_eq!(symbols.lookup(1, 5), None, "ext4 is not among them");
    }
}
