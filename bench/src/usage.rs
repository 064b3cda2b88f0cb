//! What a half uses and holds.

use std::{fs, path::Path};

use tests::process::cpu_seconds;

/// What one half has used and holds.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// CPU since its start, in seconds.
    pub cpu: f64,
    /// Resident memory, in KiB.
    pub resident: u64,
}

/// Usage of a half up to now.
pub fn usage(pid: u32) -> Usage {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: u64 = resident.and_then(|text| text.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    // The kernel's own memory, which is counted apart.
    let resident = resident.saturating_sub(mapped_maps(pid));
    Usage { cpu: cpu_seconds(pid), resident }
}

/// Memory of BPF maps that a process has mapped, in KiB (`proc_pid_smaps(5)`).
fn mapped_maps(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut is_map, mut sum) = (false, 0);
    for line in text.lines() {
        if let Some(size) = line.strip_prefix("Rss:") {
            let size = size.split_whitespace().next().and_then(|size| size.parse::<u64>().ok());
            sum += size.filter(|_| is_map).unwrap_or(0);
        } else if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
            is_map = line.contains("bpf-map");
        }
    }
    sum
}

/// Memory of the BPF maps of a process, in KiB: those that it has mapped, and those whose files it holds, as the kernel
/// counts them (`memlock` in fdinfo).
pub fn kernel_memory(pid: u32) -> u64 {
    let folder = format!("/proc/{pid}/fdinfo");
    let infos = fs::read_dir(Path::new(&folder)).into_iter().flatten().flatten();
    let texts = infos
        .filter_map(|info| fs::read_to_string(info.path()).ok())
        .filter(|text| text.contains("map_type:"));
    texts
        .filter_map(|text| {
            text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok())
        })
        .sum::<u64>()
        / 1024
        + mapped_maps(pid)
}
