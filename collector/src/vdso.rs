//! The vdso: code that the kernel maps into every process. It has no file, so a copy of this process's own is passed.

use std::{
    fs::File,
    io,
    os::{fd::OwnedFd, unix::fs::FileExt},
};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::{address_space::MAX_MAPPINGS, procfs};

/// Larger than any kernel's vdso.
const MAX_SIZE: u64 = 1 << 20;

/// This process's vdso as a sealed file. Called before the process becomes undumpable, which closes its own memory.
pub(crate) fn copy() -> io::Result<OwnedFd> {
    let mappings = procfs::executable_mappings(std::process::id(), MAX_MAPPINGS)?;
    let vdso = mappings.iter().find(|mapping| mapping.path == b"[vdso]");
    let vdso = vdso.ok_or_else(|| io::Error::other("this process has no vdso"))?;
    let size = usize::try_from((vdso.end - vdso.start).min(MAX_SIZE)).map_err(io::Error::other)?;
    let mut bytes = vec![0; size];
    File::open("/proc/self/mem")?.read_exact_at(&mut bytes, vdso.start)?;
    let file = File::from(memfd_create("bulkhead-vdso", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?);
    file.write_all_at(&bytes, 0)?;
    let file = OwnedFd::from(file);
    fcntl_add_seals(&file, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_an_elf_file() {
        let mut magic = [0; 4];
        File::from(copy().unwrap()).read_exact_at(&mut magic, 0).unwrap();
        assert_eq!(&magic, b"\x7fELF");
    }
}
