//! Cgroups like those that container engines make.

use std::{
    fs,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

/// A cgroup in one hierarchy. When dropped, its processes are killed and it is removed.
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

    /// Makes a cgroup at the top that holds so many processes at most.
    pub fn with_processes(name: &str, most: u32) -> Self {
        let root = hierarchy("pids").or_else(|| {
            let root = hierarchy("cgroup2")?;
            // Where version 2 has the controller, it may not be given to cgroups yet.
            fs::write(root.join("cgroup.subtree_control"), "+pids").ok().map(|()| root)
        });
        let root = root.expect("a hierarchy of cgroups counts processes");
        let cgroup = Cgroup::create(&root, name);
        fs::write(cgroup.folder.join("pids.max"), most.to_string()).expect("the cgroup takes a limit");
        cgroup
    }

    /// The file that takes the pid of who enters.
    pub fn procs(&self) -> String {
        self.folder.join("cgroup.procs").display().to_string()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.made.last() != Some(&self.folder) {
            return;
        }
        // More may be made meanwhile, and what was just killed may be there for a moment more.
        for _ in 0..400 {
            let pids = fs::read_to_string(self.procs()).unwrap_or_default();
            for pid in pids.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
                // It may have ended.
                let _ = kill_process(pid, Signal::KILL);
            }
            if pids.is_empty() && fs::remove_dir(&self.folder).is_ok() {
                break;
            }
            sleep(Duration::from_millis(50));
        }
        for folder in self.made.iter().rev().skip(1) {
            // Another test may use it.
            let _ = fs::remove_dir(folder);
        }
    }
}
