//! An address is one of three things, and mixing them up passes tests on simple binaries, where all three coincide.
//! So each has a type of its own.

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        pub struct $name(pub u64);
    };
}

address! {
    /// An address in the address space of a running process.
    ProcessAddress
}
address! {
    /// An address as the ELF file itself counts them (`p_vaddr`, `st_value`), before any load bias.
    ElfAddress
}
address! {
    /// A position in a file, in bytes: what the kernel's mapping records speak of (`pgoff`).
    FileOffset
}

impl ProcessAddress {
    /// The file offset of this address in a mapping that starts at `start` and shows the file from `offset` on.
    /// The caller has checked that the address lies in the mapping.
    #[must_use]
    pub const fn file_offset(self, start: ProcessAddress, offset: FileOffset) -> FileOffset {
        FileOffset(self.0.wrapping_sub(start.0).wrapping_add(offset.0))
    }
}
