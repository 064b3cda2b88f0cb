//! Unwind rows and the tables that hold them: what the uploader computes, the collector checks and stores, and the
//! unwinder executes. Everything is keyed by file offset, so that no knowledge of ELF is needed to find it.
//!
//! A row says which rule is in force from its place on. The distinct rules of a whole machine are few thousand, so a row
//! is 16 bits of file offset within its page of text and 16 bits of rule.

/// Bits of a file offset within a page of text: 64 KiB.
pub const PAGE_BITS: u32 = 16;
/// Most rows in a page: what [`ROW_STEPS`] halvings search through. 8,367 is the most that was seen.
pub const MAX_ROWS_PER_PAGE: u32 = 1 << ROW_STEPS;
/// Halvings of a page's rows until one is left.
pub const ROW_STEPS: u32 = 14;
/// Most executable mappings of an address space that the unwinder finds its way in.
pub const MAX_SPACE_MAPPINGS: u32 = 1 << MAPPING_STEPS;
/// Halvings of an address space's mappings until one is left.
pub const MAPPING_STEPS: u32 = 13;
/// Most rules that are kept for the whole machine; what is beyond is [`Cfa::Unsupported`].
pub const MAX_RULES: u32 = 1 << 16;

/// A row: file offset within the page of text (low 16 bits), and number of the rule (high 16 bits).
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Row(pub u32);

impl Row {
    /// The row at `offset` within its page.
    #[must_use]
    pub const fn new(offset: u16, rule: u16) -> Self {
        Row(offset as u32 | (rule as u32) << 16)
    }

    /// File offset within the page.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
    pub const fn offset(self) -> u16 {
        self.0 as u16
    }

    /// Number of the rule: in a list of the executable's own while in transit, in that of the machine when stored.
    #[must_use]
    pub const fn rule(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// How to find the canonical frame address (CFA): the stack pointer before the call, one word above the return
/// address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Cfa {
    /// Nothing is known here: go on by frame pointers.
    Unknown = 0,
    /// Stack pointer and offset.
    Sp = 1,
    /// Frame pointer and offset.
    Fp = 2,
    /// The word at frame pointer and offset (functions that realign their stack).
    AtFp = 3,
    /// The word at stack pointer and offset.
    AtSp = 4,
    /// The word at stack pointer and offset, and 8.
    AtSpPlus8 = 5,
    /// In a stub of a procedure linkage table: stack pointer and 8, and 8 more from the instruction on whose address
    /// has low bits (of 16) not below the offset (binutils' expression for `.plt`).
    Plt = 6,
    /// In the return from a signal handler: the interrupted registers lie in a `ucontext` at the stack pointer.
    Signal = 7,
    /// There is no caller: the return address is undefined (DWARF 5, section 6.4.4).
    Root = 8,
    /// There is a rule, and it is none that can be said here.
    Unsupported = 9,
    /// Stack pointer and offset, as [`Cfa::Sp`], but the return address is in rdi: vfork, whose child must not find it on
    /// the stack that it shares (glibc's `sysdeps/unix/sysv/linux/x86_64/vfork.S`). Known of an interrupted frame only.
    SpReturnInDi = 10,
    /// Stack pointer and offset, as [`Cfa::Sp`], but the caller did not call: it was interrupted at what lies in the place
    /// of the return address. So Go's runtime preempts a goroutine and makes a panic of a fault.
    SpInterrupted = 11,
}

impl Cfa {
    /// From here on, one for each general register in DWARF's order ([`REGISTERS`]): that register and offset. Hand-written
    /// assembly keeps the old stack pointer in whatever is free.
    pub const FROM_REGISTERS: u8 = 12;
    /// One more than the highest number.
    pub const COUNT: u8 = Cfa::FROM_REGISTERS + REGISTERS;
}

/// General registers in DWARF's order (System V psABI for x86-64, figure 3.36): rax, rdx, rcx, rbx, rsi, rdi, rbp, rsp, r8 to r15.
pub const REGISTERS: u8 = 16;
/// Number of rdi among the [`REGISTERS`].
pub const RDI: u8 = 5;

/// How to find the caller's frame pointer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum SavedFp {
    /// It is still in its register.
    Same = 0,
    /// At the CFA and offset.
    AtCfa = 1,
    /// At the frame pointer and offset.
    AtFp = 2,
}

impl SavedFp {
    /// One more than the highest number.
    pub const COUNT: u8 = 3;
}

/// A rule: how to get from a frame to its caller's. The return address lies at the CFA less 8.
///
/// Plain numbers, since it lies in memory that is shared with the kernel; [`Rule::is_sound`] is the check.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Rule {
    /// A [`Cfa`].
    pub cfa: u8,
    /// A [`SavedFp`].
    pub fp: u8,
    /// Offset for `fp`, in bytes.
    pub fp_offset: i16,
    /// Offset for `cfa`, in bytes.
    pub cfa_offset: i32,
}

impl Rule {
    /// A rule without offsets.
    #[must_use]
    pub const fn of(cfa: Cfa) -> Self {
        Rule { cfa: cfa as u8, fp: SavedFp::Same as u8, fp_offset: 0, cfa_offset: 0 }
    }

    /// The rule whose CFA is a register, by its number among the [`REGISTERS`], and offset.
    #[must_use]
    pub const fn from_register(register: u8, cfa_offset: i32) -> Self {
        Rule { cfa: Cfa::FROM_REGISTERS + register, cfa_offset, ..Rule::of(Cfa::Unknown) }
    }

    /// Whether it is one of the rules above. Any offset is sound: whatever a rule leads to is read as the process's own
    /// memory, and leaves the collector only if it lies in executable memory.
    #[must_use]
    pub const fn is_sound(&self) -> bool {
        self.cfa < Cfa::COUNT && self.fp < SavedFp::COUNT
    }
}

/// The rows of a page of text: `count` rows from `first` on, sorted. The first is in force from the page's start.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// Number of the first row in the store of rows.
    pub first: u32,
    /// Number of rows; 0: nothing is known of this page.
    pub count: u32,
}

/// An executable's place in the store of pages.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TableEntry {
    /// Number of its first page in the store of pages.
    pub pages: u32,
    /// Number of pages of text (`file offset >> PAGE_BITS`) of which the first is that one.
    pub first_page: u32,
    /// Number of pages; 0: this executable has no rows, or not yet.
    pub page_count: u32,
    /// What is known of its rows: [`TableEntry::AWAITED`], [`TableEntry::KNOWN`] or [`TableEntry::ABSENT`].
    pub state: u32,
}

impl TableEntry {
    /// The rows may come any moment.
    pub const AWAITED: u32 = 0;
    /// These are all its rows: what they do not cover has none.
    pub const KNOWN: u32 = 1;
    /// The rows did not come in time, or there was no room for them.
    pub const ABSENT: u32 = 2;
}

/// An executable mapping of an address space; those of one are sorted by `start` and do not overlap.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceMapping {
    /// First address.
    pub start: u64,
    /// One more than the last address.
    pub end: u64,
    /// File offset of the first byte.
    pub offset: u64,
    /// Place of its [`TableEntry`]; [`NO_TABLE`] for code without a file.
    pub table: u32,
    /// Always zero.
    pub reserved: u32,
}

/// No executable's table.
pub const NO_TABLE: u32 = u32::MAX;

/// A place of the open-addressed table of processes. Both words are written and read whole.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SpaceSlot {
    /// 0: never used; [`FREE_SLOT`]: no longer used; else the pid, and above it the generation of what it is about.
    pub owner: u64,
    /// Number of the first of its mappings, and above it their count.
    pub mappings: u64,
}

/// [`SpaceSlot::owner`] of a place that was used and is free again.
pub const FREE_SLOT: u64 = u64::MAX;
/// Bits of a place's number in the table of processes.
pub const SLOT_BITS: u32 = 17;
/// Places that a process may lie in.
pub const SLOT_PROBES: u32 = 16;

/// The `probe`-th place in which to look for a process (the multiplier is 2^32 divided by the golden ratio).
#[must_use]
pub const fn slot_of(pid: u32, probe: u32) -> u32 {
    ((pid.wrapping_mul(0x9E37_79B1) >> (32 - SLOT_BITS)) + probe) & ((1 << SLOT_BITS) - 1)
}

const _: () = {
    assert!(size_of::<Row>() == 4);
    assert!(size_of::<Rule>() == 8);
    assert!(size_of::<Page>() == 8);
    assert!(size_of::<TableEntry>() == 16);
    assert!(size_of::<SpaceMapping>() == 32);
    assert!(size_of::<SpaceSlot>() == 16);
};
