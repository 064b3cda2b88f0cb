//! The flags that say what is profiled. Nothing named: the whole machine.

use std::{ffi::OsString, path::Path, str::FromStr};

use clap::Args;

use super::values::ValueError;
use crate::targets::{Pattern, Selection, whole_unit_name};

/// Names with commas between them, as the seed took them.
#[derive(Clone, Default, Debug)]
pub struct Names(Vec<String>);

impl FromStr for Names {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let names: Vec<String> =
            text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
        for name in &names {
            if name.contains('/') {
                return Err(ValueError::new("write names; --cgroup-path says below which path"));
            }
            Pattern::new(name).map_err(|problem| ValueError::new(&problem))?;
        }
        Ok(Names(names))
    }
}

/// Names of units. A template runs nothing: systemd has units of it for instances alone, and refuses the question for its name.
fn unit_names(text: &str) -> Result<Names, ValueError> {
    let names: Names = text.parse()?;
    match names
        .0
        .iter()
        .find_map(|name| whole_unit_name(name).split_once("@.").map(|parts| parts.0.to_owned()))
    {
        Some(template) => {
            Err(ValueError::new(&format!("{template}@ is a template: write {template}@* for its instances")))
        }
        None => Ok(names),
    }
}

/// `--sampling-ratio`: from 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Ratio(pub f64);

impl FromStr for Ratio {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        ratio.map(Ratio).ok_or_else(|| ValueError::new("write a number from 0 to 1, such as 0.1"))
    }
}

/// `--cgroup-path`: where the cgroups lie that are named.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct CgroupPath(Vec<String>);

/// Folders of `/sys/fs/cgroup` that are mounts of hierarchies of their own: systemd's, that of version 2 beside those of version 1, and those of
/// controllers, of which several may be together (`cpu,cpuacct`; cgroups(7)).
const HIERARCHIES: [&str; 16] = [
    "systemd",
    "unified",
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

impl FromStr for CgroupPath {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text.is_empty() {
            return Ok(CgroupPath::default());
        }
        // `/proc/PID/cgroup` has paths below the mount of a hierarchy; those of version 1 and of a hybrid have folders of their own.
        let rest =
            text.strip_prefix("/sys/fs/cgroup").filter(|rest| rest.is_empty() || rest.starts_with('/'));
        let rest = rest.ok_or_else(|| ValueError::new("write a path such as /sys/fs/cgroup/system.slice"))?;
        let mut parts: Vec<String> =
            rest.split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if parts.first().is_some_and(|first| first.split(',').all(|name| HIERARCHIES.contains(&name))) {
            // That would be everything under version 1, and one group under version 2.
            if parts.len() == 1 && !["systemd", "unified"].contains(&parts[0].as_str()) {
                return Err(ValueError::new(
                    "names a controller's folder, which holds all cgroups: write a path below it, or leave the flag out",
                ));
            }
            parts.remove(0);
        }
        Ok(CgroupPath(parts))
    }
}

/// What is profiled.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "What is profiled")]
pub struct SelectionFlags {
    /// Profile these systemd units, with commas between them; * and ? stand for what may differ
    #[arg(long, value_name = "UNIT,...", value_parser = unit_names)]
    pub systemd_units: Vec<Names>,

    /// Profile these cgroups by their names, with what is in them; commas, * and ? as for units
    #[arg(long, value_name = "NAME,...")]
    pub cgroups: Vec<Names>,

    /// Take units and cgroups below this one alone
    #[arg(
        long,
        value_name = "PATH",
        default_value = "",
        hide_default_value = true,
        alias = "systemd-cgroup-path"
    )]
    pub cgroup_path: CgroupPath,

    /// Profile this part of the targets, from 0 to 1: always the same ones
    #[arg(long, value_name = "PART", default_value = "1")]
    pub sampling_ratio: Ratio,

    /// File (YAML) with rules by which labels are changed
    #[arg(
        long,
        value_name = "FILE",
        default_value = "",
        hide_default_value = true,
        help = "File (YAML) with relabel_configs, the rules by which labels are changed; read again when it changes, and at SIGHUP"
    )]
    pub config_path: OsString,
}

impl SelectionFlags {
    /// What they say together.
    pub fn selection(&self) -> Selection {
        let units = self.systemd_units.iter().flat_map(|list| &list.0).map(|name| Pattern::of_unit(name));
        let cgroups = self.cgroups.iter().flat_map(|list| &list.0).map(|name| Pattern::new(name));
        Selection {
            // Checked when the flags were read.
            names: units.chain(cgroups).filter_map(Result::ok).collect(),
            below: self.cgroup_path.0.clone(),
            ratio: self.sampling_ratio.0,
            ..Selection::default()
        }
    }

    /// Whole names of units, which systemd may know by others.
    pub fn unit_names(&self) -> Vec<String> {
        let names = self.systemd_units.iter().flat_map(|list| &list.0);
        names.filter(|name| !name.contains(['*', '?'])).map(|name| whole_unit_name(name)).collect()
    }

    /// The file that is named, if one is.
    pub fn config_path(&self) -> Option<&Path> {
        Some(Path::new(&self.config_path)).filter(|path| !path.as_os_str().is_empty())
    }
}

#[cfg(test)]
mod tests {
    use crate::flags::Flags;

    #[test]
    fn as_the_seed_wrote_them() {
        let line = [
            "bulkhead-uploader",
            "--systemd-units=a.service,b@*.service",
            "--cgroups=work, batch",
            "--systemd-cgroup-path=/sys/fs/cgroup/systemd/system.slice",
            "--sampling-ratio=0.5",
            "--config-path=",
        ];
        let flags = Flags::parse_line(line).unwrap().selection;
        let selection = flags.selection();
        assert_eq!((selection.names.len(), selection.ratio), (4, 0.5));
        assert_eq!(selection.below, ["system.slice"]);
        for path in ["memory/batch", "cpu,cpuacct/batch", "perf_event/batch", "batch"] {
            let line = ["bulkhead-uploader".into(), format!("--cgroup-path=/sys/fs/cgroup/{path}")];
            let selection = Flags::parse_line(line).unwrap().selection.selection();
            assert_eq!(selection.below, ["batch"], "{path}");
        }
        assert_eq!(flags.config_path(), None);
        assert_eq!(flags.unit_names(), ["a.service"]);
        for nothing in
            ["--systemd-units=", "--cgroups=", "--cgroup-path=", "--cgroup-path=/sys/fs/cgroup/unified"]
        {
            let selection = Flags::parse_line(["bulkhead-uploader", nothing]).unwrap().selection.selection();
            assert!(selection.names.is_empty() && selection.below.is_empty());
        }
        for wrong in [
            "--sampling-ratio=2",
            "--sampling-ratio=-1",
            "--sampling-ratio=x",
            "--sampling-ratio=NaN",
            "--cgroup-path=/tmp",
            "--cgroup-path=/sys/fs/cgroup/memory",
            "--cgroup-path=/sys/fs/cgroup/cpu,cpuacct/",
            "--cgroups=a/b",
            "--systemd-units=a.service,b@.service",
            "--systemd-units=b@",
        ] {
            assert_eq!(
                Flags::parse_line(["bulkhead-uploader", wrong]).unwrap_err().exit_code(),
                2,
                "{wrong}"
            );
        }
    }
}
