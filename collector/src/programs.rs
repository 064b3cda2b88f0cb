//! Loading the BPF programs and attaching them to the clock of every online CPU. Needs `CAP_BPF` and `CAP_PERFMON`;
//! what is left afterwards ([`Programs`]) needs no capability.

use std::{fs, io, os::fd::AsFd, path::Path};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapData, MapError, ProgramArray, RingBuf},
    programs::{
        PerfEvent, ProgramError,
        perf_event::{PerfEventConfig, PerfEventScope, SamplePolicy, SoftwareEvent},
    },
};
use records::{MAX_RULES, SKIP_BITS, SLOT_BITS};
use thiserror::Error;

use crate::{
    counters::KernelCounters,
    fence::{self, FenceError},
    layout::{self, Btf, LayoutError},
    shared_array::{Plain, SharedArray},
    spaces::{self, SpaceArrays},
    unwind_tables::{self, TableArrays},
};

/// The committed object (see `script/build-ebpf`), aligned as an ELF file must be to be read in place.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../collector-ebpf/collector.bpf.o");

/// Ring for each CPU, in bytes: a second of the deepest stacks at 100 Hz is 430 KiB, and the ring is drained four
/// times a second.
const RING_PER_CPU: usize = 256 * 1024;
const MAX_RING: usize = 32 * 1024 * 1024;
const NANOSECONDS: u64 = 1_000_000_000;

#[derive(Debug, Error)]
pub(crate) enum ProgramsError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error("the kernel refused Bulkhead's BPF maps: {}{}", chain(.0), lockdown())]
    Object(#[from] Box<EbpfError>),
    #[error("the kernel refused the BPF program {0:?}: {cause}{lockdown}", cause = chain(.1), lockdown = lockdown())]
    Load(&'static str, #[source] Box<ProgramError>),
    #[error("cannot sample CPU {cpu}: {}", chain(.source))]
    Attach { cpu: u32, source: Box<ProgramError> },
    #[error("the BPF object has no {0}: it is not of this release")]
    Lacks(&'static str),
    #[error("cannot map the memory of a BPF map: {0}")]
    Memory(#[from] io::Error),
    #[error("cannot use a BPF map: {0}")]
    Map(#[from] MapError),
    #[error("cannot tell which CPUs are online: {0}")]
    OnlineCpus(#[source] io::Error),
}

/// What the programs read of what this process knows.
pub(crate) struct Shared {
    pub(crate) tables: TableArrays,
    pub(crate) spaces: SpaceArrays,
    /// Keys of cgroups that are skipped.
    pub(crate) skipped: SharedArray<u64>,
    /// One word: the programs make no record as long as it is 0.
    pub(crate) started: SharedArray<u64>,
}

/// The loaded programs and what they tell this process. Dropping it ends the sampling.
pub(crate) struct Programs {
    pub(crate) ring: RingBuf<MapData>,
    pub(crate) counters: KernelCounters,
    /// CPUs that are being sampled.
    pub(crate) cpus: Vec<u32>,
    loaded: Ebpf,
    _tail_calls: ProgramArray<MapData>,
}

/// What the machine is like, as far as the programs must know.
pub(crate) struct Machine {
    /// `uname -r`.
    pub(crate) release: String,
    /// Inode of this process's pid namespace, if that is not the host's.
    pub(crate) pid_namespace: Option<u32>,
    /// Whether cgroup v1 hierarchies are mounted.
    pub(crate) cgroup_v1: bool,
}

/// Inode of the initial pid namespace (`PROC_PID_INIT_INO` in the kernel's `include/linux/proc_ns.h`).
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

impl Machine {
    /// Looks around.
    pub(crate) fn look() -> io::Result<Self> {
        let release = rustix::system::uname().release().to_string_lossy().into_owned();
        let namespace = rustix::fs::stat("/proc/self/ns/pid")?.st_ino;
        let cgroups = fs::read("/proc/self/cgroup")?;
        Ok(Machine {
            release,
            pid_namespace: if namespace == INITIAL_PID_NAMESPACE {
                None
            } else {
                u32::try_from(namespace).ok()
            },
            cgroup_v1: cgroups
                .split(|byte| *byte == b'\n')
                .any(|line| !line.is_empty() && !line.starts_with(b"0:")),
        })
    }

    /// Whether the kernel is this version or later.
    fn is_at_least(&self, major: u32, minor: u32) -> bool {
        let mut numbers =
            self.release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
    }
}

/// Loads the programs and attaches them to every online CPU. `frequency` in Hz, `table_memory` in bytes.
pub(crate) fn start(
    machine: &Machine,
    frequency: u32,
    table_memory: u64,
) -> Result<(Programs, Shared), ProgramsError> {
    let offsets = layout::offsets(&Btf::of_kernel()?)?;
    let cpus = aya::util::online_cpus().map_err(|(_, source)| ProgramsError::OnlineCpus(source))?;
    let ring_size = ring_size(cpus.len());
    let wake_at = u64::from(ring_size) / 4;
    let pid_namespace = machine.pid_namespace.unwrap_or(0);
    let cgroup_v1 = u32::from(machine.cgroup_v1);
    // bpf_task_pt_regs came with 5.15.
    let have_task_pt_regs = u32::from(machine.is_at_least(5, 15));

    let mut loader = EbpfLoader::new();
    // Nothing in the object is relocated against the kernel's types, so aya need not parse them.
    loader.btf(None).map_max_entries("SAMPLES", ring_size);
    let (pairs, pages) = unwind_tables::sizes(table_memory);
    loader
        .map_max_entries("ROWS", pairs)
        .map_max_entries("PAGES", pages)
        .map_max_entries("TABLES", unwind_tables::MAX_TABLES)
        .map_max_entries("MAPPINGS", spaces::MAX_MAPPINGS);
    loader.override_global("WAKE_AT", &wake_at, true);
    loader.override_global("PID_NAMESPACE", &pid_namespace, true);
    loader.override_global("CGROUP_V1", &cgroup_v1, true);
    loader.override_global("HAVE_TASK_PT_REGS", &have_task_pt_regs, true);
    let own_pid = std::process::id();
    loader.override_global("FENCED_PID", &own_pid, true);
    for (global, offset) in &offsets {
        loader.override_global(global, offset, true);
    }
    let mut object = loader.load(OBJECT).map_err(Box::new)?;

    let mut tail_calls: ProgramArray<MapData> = take(&mut object, "UNWIND_MORE")?.try_into()?;
    let unwind_more = load(&mut object, "unwind_more")?;
    let fd = unwind_more.fd().map_err(|source| ProgramsError::Load("unwind_more", Box::new(source)))?;
    tail_calls.set(0, fd, 0)?;

    let sample = load(&mut object, "sample")?;
    let mut sampled = Vec::new();
    for cpu in cpus {
        // A period of CPU time, not a frequency: the kernel would spend the first seconds approaching a frequency.
        let attached = sample.attach(
            PerfEventConfig::Software(SoftwareEvent::CpuClock),
            PerfEventScope::AllProcessesOneCpu { cpu },
            SamplePolicy::Period(NANOSECONDS / u64::from(frequency)),
            false,
        );
        match attached {
            Ok(_) => sampled.push(cpu),
            // It went offline between the look and the attempt.
            Err(ProgramError::SyscallError(error)) if error.io_error.raw_os_error() == Some(ENODEV) => {
                log::warn!("CPU {cpu} is not sampled: it went offline");
            }
            Err(source) => return Err(ProgramsError::Attach { cpu, source: Box::new(source) }),
        }
    }

    let Map::Array(counters) = take(&mut object, "COUNTERS")? else {
        return Err(ProgramsError::Lacks("COUNTERS"));
    };
    let highest = sampled.iter().max().map_or(0, |cpu| *cpu as usize);
    let shared = Shared {
        tables: TableArrays {
            rows: shared_array(&mut object, "ROWS", pairs)?,
            pages: shared_array(&mut object, "PAGES", pages)?,
            rules: shared_array(&mut object, "RULES", MAX_RULES)?,
            entries: shared_array(&mut object, "TABLES", unwind_tables::MAX_TABLES * 2)?,
        },
        spaces: SpaceArrays {
            mappings: shared_array(&mut object, "MAPPINGS", spaces::MAX_MAPPINGS)?,
            slots: shared_array(&mut object, "SPACES", 2 << SLOT_BITS)?,
        },
        skipped: shared_array(&mut object, "SKIPPED", 1 << SKIP_BITS)?,
        started: shared_array(&mut object, "STARTED", 1)?,
    };
    let programs = Programs {
        ring: take(&mut object, "SAMPLES")?.try_into()?,
        counters: KernelCounters::new(counters.fd().as_fd(), highest + 1)?,
        cpus: sampled,
        loaded: object,
        _tail_calls: tail_calls,
    };
    Ok((programs, shared))
}

impl Programs {
    /// Keeps this process from opening what it has no need to open, where the kernel can; says why it cannot.
    pub(crate) fn put_up_fence(&mut self) -> Result<(), FenceError> {
        fence::put_up(&mut self.loaded)
    }
}

/// The object for the fence alone, for a test.
#[cfg(test)]
pub(crate) fn for_fence(offsets: &[(&'static str, u32)]) -> Ebpf {
    let own_pid = std::process::id();
    let mut loader = EbpfLoader::new();
    loader.btf(None).override_global("FENCED_PID", &own_pid, true);
    for (global, offset) in offsets {
        loader.override_global(global, offset, true);
    }
    loader.load(OBJECT).expect("the object of this release")
}

/// A map as memory: from here on it is written without bpf(2).
fn shared_array<T: Plain>(
    loaded: &mut Ebpf,
    name: &'static str,
    length: u32,
) -> Result<SharedArray<T>, ProgramsError> {
    let Map::Array(map) = take(loaded, name)? else { return Err(ProgramsError::Lacks(name)) };
    Ok(SharedArray::new(map.fd().as_fd(), length)?)
}

/// No such device: what `perf_event_open` says of a CPU that is offline.
const ENODEV: i32 = 19;

fn take(loaded: &mut Ebpf, name: &'static str) -> Result<Map, ProgramsError> {
    loaded.take_map(name).ok_or(ProgramsError::Lacks(name))
}

fn load<'a>(loaded: &'a mut Ebpf, name: &'static str) -> Result<&'a mut PerfEvent, ProgramsError> {
    let program = loaded.program_mut(name).ok_or(ProgramsError::Lacks(name))?;
    let error = |source| ProgramsError::Load(name, Box::new(source));
    let program: &mut PerfEvent = program.try_into().map_err(error)?;
    program.load().map_err(error)?;
    Ok(program)
}

/// A ring's size is a power of two and a multiple of the page size.
fn ring_size(cpus: usize) -> u32 {
    let size = (cpus * RING_PER_CPU).next_power_of_two().clamp(RING_PER_CPU, MAX_RING);
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// An error and what caused it, on one line; of a verifier's log only the end, where the reason is.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match text.char_indices().rev().nth(600) {
        Some((at, _)) => format!("...{}", &text[at..]),
        None => text,
    }
}

/// What kernel lockdown has to do with it: in that mode the kernel refuses with an error that names nothing.
fn lockdown() -> &'static str {
    let state = fs::read_to_string(Path::new("/sys/kernel/security/lockdown")).unwrap_or_default();
    if state.contains("[confidentiality]") {
        "; the kernel is in lockdown mode \"confidentiality\", in which BPF programs may not read memory: boot with lockdown=integrity or none"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(release: &str) -> Machine {
        Machine { release: release.into(), pid_namespace: None, cgroup_v1: false }
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(machine("6.18.44-fc").is_at_least(5, 15));
        assert!(machine("5.15.0-91-generic").is_at_least(5, 15));
        assert!(!machine("5.10.0-30-amd64").is_at_least(5, 15));
        assert!(!machine("").is_at_least(5, 15));
    }

    #[test]
    fn a_ring_fits_the_machine() {
        for cpus in [0, 1, 2, 3, 64, 1024] {
            let size = ring_size(cpus);
            assert!(size.is_power_of_two() && size as usize >= RING_PER_CPU && size as usize <= MAX_RING);
        }
    }
}
