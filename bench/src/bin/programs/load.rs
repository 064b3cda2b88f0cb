//! A running load: a script in a cgroup of its own, so that all its processes are one unit, and in a pid namespace of its
//! own, so that all of them end with it.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tests::{
    cgroup::{Cgroup, hierarchy},
    process::Running,
    system::free_port,
};

use crate::programs::{PREAMBLE, Program, files};

/// How long a program may take to get ready.
const PATIENCE: Duration = Duration::from_secs(90);

/// A program under load. Ended when dropped.
pub(crate) struct Load {
    // Dropped in this order: a cgroup is removed when nobody is in it.
    running: Running,
    _cgroup: Cgroup,
    _folder: TempDir,
    /// The label `systemd_unit` of its targets.
    pub(crate) unit: String,
}

impl Load {
    /// Starts it and waits until it is ready, else says what it printed.
    pub(crate) fn start(program: &Program) -> Result<Self, String> {
        let folder =
            tempfile::Builder::new().prefix("bulkhead-load.").tempdir().map_err(|error| error.to_string())?;
        // Servers run as nobody.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777))
            .map_err(|error| error.to_string())?;
        for (name, text) in files() {
            fs::write(folder.path().join(name), text).map_err(|error| error.to_string())?;
        }
        let root = hierarchy("name=systemd").or_else(|| hierarchy("cgroup2")).ok_or("no cgroups")?;
        let unit = format!("bulkhead-bench-{}.service", program.name);
        let cgroup = Cgroup::create(&root, &unit);
        let arguments = [folder.path().display().to_string(), free_port().to_string(), cgroup.procs()];
        let script = format!("{PREAMBLE}{}", program.script);
        let flags = ["--pid", "--fork", "--kill-child", "--mount-proc"];
        let running = Running::unshared_shell(&flags, &script, &arguments);
        let mut load = Load { running, _cgroup: cgroup, _folder: folder, unit };
        let begun = Instant::now();
        while !load.output().lines().any(|line| line == "ready") {
            if load.running.status().is_some() || begun.elapsed() > PATIENCE {
                return Err(format!("it did not get ready: {}", load.output()));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(load)
    }

    /// What it printed, in one line.
    pub(crate) fn output(&self) -> String {
        self.running.output()
    }
}

/// Whether a command is on the path.
pub(crate) fn is_there(command: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    // An absolute path stays as it is.
    env::split_paths(&path).any(|folder| folder.join(Path::new(command)).is_file())
}
