//! Kernel addresses, made relative (W8): to the kernel's `_text`, or to the lowest symbol of the module. The uploader
//! gets names and offsets in a sealed memory file, and never an address.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Seek, SeekFrom, Write},
    os::fd::OwnedFd,
};

use ipc::{KernelFrame, KernelSymbols, ModuleId};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

const KALLSYMS: &str = "/proc/kallsyms";
/// How far behind the last symbol of a run its code may reach.
const LONGEST_FUNCTION: u64 = 64 * 1024;
/// Modules that are named; a kernel with all of a distribution's has some 300.
const MAX_MODULES: usize = 1024;

/// Where kernel code lies.
pub(crate) struct KernelText {
    kallsyms: File,
    /// In the order of [`ModuleId`]s, which stay the same when the symbols are read again.
    modules: Vec<Module>,
    ids: HashMap<Vec<u8>, ModuleId>,
    /// Sorted.
    runs: Vec<Run>,
}

struct Module {
    name: String,
    base: u64,
}

/// A stretch of addresses in which all symbols are of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    first: u64,
    last: u64,
    module: ModuleId,
}

struct Symbol<'a> {
    address: u64,
    name: &'a [u8],
    module: &'a [u8],
}

impl KernelText {
    /// Opens the kernel's symbols. Whether their addresses are shown is decided by the capabilities at this moment
    /// (`kallsyms_show_value` in the kernel's kernel/kallsyms.c), so that `CAP_SYSLOG` is not needed later.
    pub(crate) fn open() -> io::Result<Self> {
        let kernel = Module { name: String::new(), base: 0 };
        let kallsyms = File::open(KALLSYMS)?;
        let ids = HashMap::from([(Vec::new(), ModuleId::KERNEL)]);
        Ok(KernelText { kallsyms, modules: vec![kernel], ids, runs: Vec::new() })
    }

    /// Reads the symbols anew and returns them for the uploader; `None` if the kernel hides its addresses.
    pub(crate) fn read(&mut self) -> io::Result<Option<(KernelSymbols, OwnedFd)>> {
        // Two passes, so that no copy of some 100,000 names is held: first where everything lies, then the names.
        let mut addresses = Vec::new();
        let mut text = None;
        self.each_symbol(|this, symbol| {
            if symbol.name == b"_text" || (symbol.name == b"_stext" && text.is_none()) {
                text = Some(symbol.address);
            }
            if symbol.address != 0
                && let Some(module) = this.module_id(symbol.module)
            {
                addresses.push((symbol.address, module));
            }
            Ok(())
        })?;
        let Some(text) = text.filter(|address| *address != 0) else {
            self.runs.clear();
            return Ok(None);
        };
        addresses.sort_unstable();
        for module in &mut self.modules {
            module.base = u64::MAX;
        }
        for (address, id) in &addresses {
            let base = &mut self.modules[usize::from(id.0)].base;
            *base = (*base).min(*address);
        }
        self.modules[0].base = text;
        self.runs =
            runs(addresses.into_iter().filter(|(address, id)| *id != ModuleId::KERNEL || *address >= text));
        let file = self.write_names()?;
        let modules = self.modules.iter().map(|module| module.name.clone()).collect();
        Ok(Some((KernelSymbols { modules }, file)))
    }

    fn write_names(&mut self) -> io::Result<OwnedFd> {
        let file = memfd_create("bulkhead-kernel-symbols", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut writer = BufWriter::new(File::from(file));
        self.each_symbol(|this, symbol| {
            if let Some(id) = this.module_id(symbol.module) {
                let base = this.modules[usize::from(id.0)].base;
                if symbol.address >= base {
                    write!(writer, "{} {:x} ", id.0, symbol.address - base)?;
                    writer.write_all(symbol.name)?;
                    writer.write_all(b"\n")?;
                }
            }
            Ok(())
        })?;
        let file = OwnedFd::from(writer.into_inner().map_err(io::IntoInnerError::into_error)?);
        fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        Ok(file)
    }

    fn each_symbol(&mut self, mut each: impl FnMut(&mut Self, Symbol) -> io::Result<()>) -> io::Result<()> {
        let mut kallsyms = self.kallsyms.try_clone()?;
        kallsyms.seek(SeekFrom::Start(0))?;
        let mut reader = BufReader::with_capacity(64 * 1024, kallsyms);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            if let Some(symbol) = parse(&line) {
                each(self, symbol)?;
            }
        }
    }

    fn module_id(&mut self, name: &[u8]) -> Option<ModuleId> {
        if let Some(id) = self.ids.get(name) {
            return Some(*id);
        }
        if self.modules.len() >= MAX_MODULES {
            return None;
        }
        let id = ModuleId(u16::try_from(self.modules.len()).ok()?);
        self.ids.insert(name.to_vec(), id);
        self.modules.push(Module { name: String::from_utf8_lossy(name).into_owned(), base: u64::MAX });
        Some(id)
    }

    /// An address, relative to where it belongs.
    pub(crate) fn frame(&self, address: u64) -> KernelFrame {
        let after = self.runs.partition_point(|run| run.first <= address);
        match self.runs[..after].last() {
            Some(run) if address < run.last.saturating_add(LONGEST_FUNCTION) => {
                let base = self.modules[usize::from(run.module.0)].base;
                KernelFrame::Known(run.module, address - base)
            }
            _ => KernelFrame::Unknown,
        }
    }

    /// Whether the kernel shows its addresses.
    pub(crate) fn is_known(&self) -> bool {
        !self.runs.is_empty()
    }
}

/// A line of `/proc/kallsyms`: `ADDRESS TYPE NAME`, and after a tab `[MODULE]`. `None` if it is not code (the types
/// of nm(1): t is text, w weak).
fn parse(line: &[u8]) -> Option<Symbol<'_>> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let (symbol, module) = match line.iter().position(|byte| *byte == b'\t') {
        Some(tab) => (&line[..tab], line[tab + 1..].strip_prefix(b"[")?.strip_suffix(b"]")?),
        None => (line, &b""[..]),
    };
    let mut fields = symbol.splitn(3, |byte| *byte == b' ');
    let address = u64::from_str_radix(std::str::from_utf8(fields.next()?).ok()?, 16).ok()?;
    if !matches!(fields.next()?, b"t" | b"T" | b"w" | b"W") {
        return None;
    }
    Some(Symbol { address, name: fields.next().filter(|name| !name.is_empty())?, module })
}

/// Sorted symbols as stretches of one module each.
fn runs(addresses: impl Iterator<Item = (u64, ModuleId)>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (address, module) in addresses {
        match runs.last_mut() {
            Some(run) if run.module == module && address - run.last < LONGEST_FUNCTION * 16 => {
                run.last = address;
            }
            _ => runs.push(Run { first: address, last: address, module }),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(runs: Vec<Run>, bases: &[u64]) -> KernelText {
        KernelText {
            kallsyms: File::open("/dev/null").unwrap(),
            modules: bases.iter().map(|base| Module { name: String::new(), base: *base }).collect(),
            ids: HashMap::new(),
            runs,
        }
    }

    #[test]
    fn code_is_told_from_data_and_modules_from_the_kernel() {
        let symbol = parse(b"ffffffff81000000 T _text\n").unwrap();
        assert_eq!(
            (symbol.address, symbol.name, symbol.module),
            (0xffff_ffff_8100_0000, &b"_text"[..], &b""[..])
        );
        let symbol = parse(b"ffffffffc0000000 t f\t[ext4]\n").unwrap();
        assert_eq!((symbol.name, symbol.module), (&b"f"[..], &b"ext4"[..]));
        for line in [&b"ffffffff81000000 D data"[..], b"", b"x t f", b"1 t", b"1 t ", b"1 t f\text4", b"\n"] {
            assert!(parse(line).is_none());
        }
    }

    #[test]
    fn an_address_becomes_relative_to_its_module() {
        let (kernel, module) = (ModuleId::KERNEL, ModuleId(1));
        let found =
            runs([(0x1000, kernel), (0x2000, kernel), (0x90_0000, module), (0x90_0100, module)].into_iter());
        let text = text(found, &[0x1000, 0x90_0000]);
        assert_eq!(text.frame(0xfff), KernelFrame::Unknown);
        assert_eq!(text.frame(0x2010), KernelFrame::Known(kernel, 0x1010));
        assert_eq!(text.frame(0x50_0000), KernelFrame::Unknown);
        assert_eq!(text.frame(0x90_0101), KernelFrame::Known(module, 0x101));
        assert_eq!(text.frame(u64::MAX), KernelFrame::Unknown);
    }

    #[test]
    fn modules_that_lie_among_each_other_are_told_apart() {
        let (a, b) = (ModuleId(1), ModuleId(2));
        let text = text(runs([(0x1000, a), (0x2000, b), (0x3000, a)].into_iter()), &[0, 0x1000, 0x2000]);
        assert_eq!(text.frame(0x1001), KernelFrame::Known(a, 1));
        assert_eq!(text.frame(0x2001), KernelFrame::Known(b, 1));
        assert_eq!(text.frame(0x3001), KernelFrame::Known(a, 0x2001));
    }

    #[test]
    fn this_kernels_symbols_hold_no_address() {
        let mut text = KernelText::open().unwrap();
        if let Some((symbols, file)) = text.read().unwrap() {
            assert_eq!(symbols.modules[0], "");
            let mut file = File::from(file);
            file.seek(SeekFrom::Start(0)).unwrap();
            let mut lines = 0;
            for line in BufReader::new(&file).lines() {
                let line = line.unwrap();
                let mut fields = line.splitn(3, ' ');
                let module: usize = fields.next().unwrap().parse().unwrap();
                let offset = u64::from_str_radix(fields.next().unwrap(), 16).unwrap();
                assert!(module < symbols.modules.len() && offset < 1 << 40, "{line}");
                lines += 1;
            }
            assert!(lines > 1000);
            // Sealed: nobody can change it.
            assert!(file.set_len(0).is_err() && file.write_all(b"x").is_err());
        } else {
            assert_eq!(text.frame(0xffff_ffff_8100_0000), KernelFrame::Unknown);
        }
    }
}
