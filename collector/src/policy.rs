//! What the collector may do, as data, a reason for each line.

use security::Capability;

/// What must be there at the start, and what for.
pub(crate) const NEEDED_AT_START: [(Capability, &str); 2] = [
    (Capability::CAP_BPF, "load the BPF programs and make their maps"),
    (Capability::CAP_PERFMON, "sample every CPU and hear of every mapping and process"),
];

/// What is kept after the start. Opening `/proc/PID/map_files/START-END` takes all three
/// (`proc_map_files_get_link` and `proc_map_files_lookup` in the kernel's `fs/proc/base.c`).
pub(crate) const KEPT: [(Capability, &str); 3] = [
    (Capability::CAP_SYS_PTRACE, "look into other users' /proc/PID"),
    (Capability::CAP_DAC_READ_SEARCH, "open files that only their owner may read"),
    (Capability::CAP_CHECKPOINT_RESTORE, "follow the links in /proc/PID/map_files"),
];

/// Used at the start where it is there; without it, kernel frames have no names.
pub(crate) const READS_KERNEL_ADDRESSES: Capability = Capability::CAP_SYSLOG;
