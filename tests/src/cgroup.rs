//! Cgroups like those that container engines make.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

/// A cgroup in one hierarchy. Removed when dropped; its processes must have ended.
#[derive(Debug)]
pub struct Cgroup {
    folder: PathBuf,
    /// The folders made on the way to it, outermost first.
    made: Vec<PathBuf>,
}

/// Where a hierarchy is mounted: `cgroup2` for v2, else the name of a v1 controller. `None` if it is not.
pub fn hierarchy(name: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<_> = line.split(' ').collect();
        let is_it = match name {
            "cgroup2" => fields.get(2) == Some(&"cgroup2"),
            _ => fields.get(2) == Some(&"cgroup") && fields.get(3)?.split(',').any(|option| option == name),
        };
        is_it.then(|| PathBuf::from(fields[1]))
    })
}

impl Cgroup {
    /// Makes the cgroup `path` in a hierarchy.
    pub fn create(root: &Path, path: &str) -> Self {
        let mut folder = root.to_owned();
        let mut made = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            folder.push(part);
            if !folder.exists() {
                fs::create_dir(&folder)
                    .unwrap_or_else(|error| panic!("cannot make {}: {error}", folder.display()));
                made.push(folder.clone());
            }
        }
        Cgroup { folder, made }
    }

    /// The file that takes the pid of who enters.
    pub fn procs(&self) -> String {
        self.folder.join("cgroup.procs").display().to_string()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in self.made.iter().rev() {
            // A process that was just killed may be there for a moment more.
            for _ in 0..40 {
                if fs::remove_dir(folder).is_ok() {
                    break;
                }
                sleep(Duration::from_millis(50));
            }
        }
    }
}
