//! The fence around this process's own reading: a program of the BPF LSM that lets it open a few files of procfs, and what some
//! process has mapped, and nothing else. It cannot be taken down from within: its link is a descriptor that no system call may
//! close, and what it compares with was set before it was loaded.
#![expect(unsafe_code, reason = "bpf(2), to attach a program where the link's descriptor must be known")]

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, IntoRawFd, OwnedFd},
};

use aya::{
    Btf, BtfError, Ebpf,
    programs::{Lsm, ProgramError},
};
use rustix::io::fcntl_dupfd_cloexec;
use thiserror::Error;

use crate::policy::FENCE_LINK;

/// The program's name in the BPF object, and the hook that it is attached to (`include/linux/lsm_hook_defs.h`).
const PROGRAM: &str = "file_open";
/// Command of bpf(2) (`enum bpf_cmd` in `include/uapi/linux/bpf.h`).
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
/// What no part of the collector reads, and everybody may read of himself.
const FORBIDDEN: &str = "/proc/self/environ";

/// Why there is no fence.
#[derive(Debug, Error)]
pub(crate) enum FenceError {
    #[error("the kernel's own types cannot be read: {0}")]
    Types(#[from] BtfError),
    #[error("the kernel refused the program: {}", cause(.0))]
    Program(#[from] ProgramError),
    #[error("the kernel refused to attach the program: {0}")]
    Attach(#[source] io::Error),
    #[error("the BPF object has no such program")]
    Lacks,
    #[error("its descriptor cannot be kept: {0}")]
    Descriptor(#[source] io::Error),
    #[error(
        "the kernel does not ask it: \"bpf\" is not among its active security modules (lsm= on its command line)"
    )]
    NotAsked,
}

/// What the kernel said, without the verifier's log, which has many lines.
fn cause(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError { io_error, .. } => io_error.to_string(),
        other => other.to_string(),
    }
}

/// Puts up the fence, until this process ends.
pub(crate) fn put_up(object: &mut Ebpf) -> Result<(), FenceError> {
    if cfg!(feature = "no-fence") {
        return Ok(());
    }
    let program = object.program_mut(PROGRAM).ok_or(FenceError::Lacks)?;
    let program: &mut Lsm = program.try_into()?;
    program.load(PROGRAM, &Btf::from_sys_fs()?)?;
    let link = attach(program.fd()?.as_fd().as_raw_fd()).map_err(FenceError::Attach)?;
    let kept =
        fcntl_dupfd_cloexec(&link, FENCE_LINK).map_err(|error| FenceError::Descriptor(error.into()))?;
    if kept.as_raw_fd() != FENCE_LINK {
        return Err(FenceError::Descriptor(io::Error::other(format!("number {FENCE_LINK} is taken"))));
    }
    match fs::read(FORBIDDEN) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // The end of this process closes it, and nothing else.
            let _ = kept.into_raw_fd();
            Ok(())
        }
        _ => Err(FenceError::NotAsked),
    }
}

/// The link of a program that has been loaded. The same command attaches programs to tracepoints and to LSM hooks
/// (`bpf_raw_tracepoint_open` in the kernel's `kernel/bpf/syscall.c`).
fn attach(program: libc::c_int) -> io::Result<OwnedFd> {
    /// The part of `union bpf_attr` that this command reads; name and cookie stay 0.
    #[repr(C)]
    struct Attributes {
        name: u64,
        program: u32,
        padding: u32,
        cookie: u64,
    }
    let attributes = Attributes { name: 0, program: program.cast_unsigned(), padding: 0, cookie: 0 };
    // SAFETY: the kernel reads as many bytes as the structure has, and writes none; a result that is not negative is a descriptor
    // that nobody else owns.
    unsafe {
        let link = libc::syscall(
            libc::SYS_bpf,
            BPF_RAW_TRACEPOINT_OPEN,
            &raw const attributes,
            // Kernels that do not know the cookie want the rest to be zero, which it is.
            size_of::<Attributes>(),
        );
        match i32::try_from(link) {
            Ok(link) if link >= 0 => Ok(OwnedFd::from_raw_fd(link)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        env,
        fs::File,
        io::{Read, Write},
        os::unix::fs::symlink,
        path::Path,
        process::{Child, Command, Stdio},
    };

    use super::*;
    use crate::{layout, programs};

    /// Says to a copy of this test what it is: one that waits for the end of its input, or where the files are and which process
    /// waits, for the one that goes behind the fence.
    const ROLE: &str = "BULKHEAD_TEST_FENCE";
    const WAITS: &str = "waits";
    const TEST: &str = "fence::tests::only_procfs_and_what_is_mapped_can_be_opened";

    /// A mapping of its own program by a process: its path under `map_files`.
    fn map_file(pid: u32, path: &str) -> String {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let line =
            maps.lines().find(|line| line.ends_with(path)).unwrap_or_else(|| panic!("no {path}: {maps}"));
        format!("/proc/{pid}/map_files/{}", line.split(' ').next().unwrap())
    }

    /// What is tried without and within: the path, and whether the fence lets it be opened.
    fn attempts(folder: &str, other: u32) -> Vec<(String, bool)> {
        let at = |name: &str| format!("{folder}/{name}");
        let of = |name: &str| format!("/proc/{other}/{name}");
        vec![
            (of("stat"), true),
            (of("maps"), true),
            (of("cgroup"), true),
            (of("status"), true),
            (of("mountinfo"), true),
            (of("task"), true),
            (of(&format!("task/{other}/maps")), true),
            ("/proc/sys/kernel/kptr_restrict".into(), true),
            ("/sys/devices/system/cpu/online".into(), true),
            (map_file(other, &at("overlay/mapped")), true),
            (of("exe"), true),
            (at("perf-1.map"), true),
            (of("environ"), false),
            (of("cmdline"), false),
            (of("mem"), false),
            (of("auxv"), false),
            (of("syscall"), false),
            ("/proc/self/environ".into(), false),
            ("/proc/kallsyms".into(), false),
            ("/etc/passwd".into(), false),
            (of("root/etc/passwd"), false),
            ("/".into(), false),
            ("/dev/null".into(), false),
            ("/sys/kernel/btf/vmlinux".into(), false),
            (at("secret"), false),
            (at("perf-1.mapx"), false),
            (at("xperf-1.map"), false),
            (at("perf-of-a-long-name-1.map"), false),
            (at("link-to-secret"), false),
            (at("overlay/secret"), false),
            (at(""), false),
        ]
    }

    fn go_behind_the_fence(folder: &str, other: u32) {
        let attempts = attempts(folder, other);
        for (path, _) in &attempts {
            File::open(path).unwrap_or_else(|error| panic!("without the fence: {path}: {error}"));
        }
        let secret = format!("{folder}/secret");
        let mut opened_before = File::open(&secret).unwrap();
        let offsets = layout::offsets(&layout::Btf::of_kernel().unwrap()).unwrap();
        let mut object = programs::for_fence(&offsets);
        put_up(&mut object).unwrap();
        for (path, may) in attempts {
            let opened = File::open(&path);
            let refused = opened.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied);
            assert_eq!((opened.is_ok(), refused), (may, !may), "{path}: {opened:?}");
        }
        // Nobody answers for that file system: without the fence this would take for ever.
        let unanswered = File::open(format!("{folder}/fuse"));
        assert!(unanswered.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied));
        // What was open stays so; and no thread is outside.
        assert!(opened_before.read(&mut [0]).is_ok());
        assert!(std::thread::spawn(move || File::open(secret).is_err()).join().unwrap());
    }

    /// A copy of this test in another role, in a mount namespace of its own.
    fn copy_of_this(program: &Path, role: &str, folder: &Path) -> Child {
        // The root of a FUSE file system may be a regular file.
        let script = "mount -t overlay -o lowerdir=$1/lower:$1/other none $1/overlay && \
                      exec 9<>/dev/fuse && mount -t fuse -o fd=9,rootmode=100644,user_id=0,group_id=0 none $1/fuse && \
                      exec \"$2\" --exact --ignored --nocapture \"$3\"";
        Command::new("unshare")
            .args(["-m", "sh", "-c", script, "sh"])
            .args([folder, program, Path::new(TEST)])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    }

    #[test]
    #[ignore = "needs a kernel with an active BPF LSM: script/test-kernels runs it in some"]
    fn only_procfs_and_what_is_mapped_can_be_opened() {
        match env::var(ROLE) {
            Ok(role) if role == WAITS => {
                println!("waiting");
                io::stdin().read_to_end(&mut Vec::new()).unwrap();
                return;
            }
            Ok(role) => {
                let (folder, other) = role.split_once(':').unwrap();
                return go_behind_the_fence(folder, other.parse().unwrap());
            }
            Err(_) => {}
        }
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["lower", "other", "overlay"] {
            fs::create_dir(at(name)).unwrap();
        }
        for name in [
            "secret",
            "perf-1.map",
            "perf-1.mapx",
            "xperf-1.map",
            "perf-of-a-long-name-1.map",
            "fuse",
            "lower/secret",
        ] {
            fs::write(at(name), "text").unwrap();
        }
        symlink(at("secret"), at("link-to-secret")).unwrap();
        fs::copy(env::current_exe().unwrap(), at("lower/mapped")).unwrap();

        let mut waiting = copy_of_this(&at("overlay/mapped"), WAITS, folder.path());
        let mut said = Vec::new();
        let output = waiting.stdout.as_mut().unwrap();
        while !String::from_utf8_lossy(&said).contains("waiting") {
            let mut byte = [0];
            assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&said));
            said.extend(byte);
        }
        // The shell and unshare have become the program: the process is the same.
        let role = format!("{}:{}", folder.path().display(), waiting.id());
        let inside = copy_of_this(&env::current_exe().unwrap(), &role, folder.path());
        let output = inside.wait_with_output().unwrap();
        io::stdout().write_all(&output.stdout).unwrap();
        drop(waiting.stdin.take());
        assert!(waiting.wait().unwrap().success());
        assert!(output.status.success(), "{}", output.status);
        assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "nothing was tried");
    }
}
