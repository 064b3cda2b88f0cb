//! Which files the uploader may open, and which ports it may use, whatever it is told by a file that it parses or by a peer
//! (landlock(7)). What an older kernel cannot enforce is known, logged and in `/metrics`.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Formatter},
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, NetPort, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};
use thiserror::Error;
use tracing::{debug, warn};

use crate::printable::printable;

/// What looking up names reads (resolver(5); for the page's own address nsswitch.conf(5) and gai.conf(5)); those that are not there are left
/// out.
const NAMES: [&str; 5] =
    ["/etc/hosts", "/etc/host.conf", "/etc/resolv.conf", "/etc/nsswitch.conf", "/etc/gai.conf"];
/// Where those keep `resolv.conf` who write it anew when the network changes.
const RESOLVERS: [&str; 3] = ["/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf"];
/// What it says of itself in `/metrics`.
const ITSELF: &str = "/proc/self";
/// Separate debug files of the machine's packages.
const DEBUG_FILES: &str = "/usr/lib/debug";

/// The newest of landlock's versions that this policy uses everything of.
const NEWEST: ABI = ABI::V6;
/// Which version (`landlock_create_ruleset(2)`) brought what.
const PARTS: [(ABI, &str); 5] = [
    (ABI::V1, "files"),
    (ABI::V3, "truncation"),
    (ABI::V4, "tcp_ports"),
    (ABI::V5, "device_control"),
    (ABI::V6, "signals_and_abstract_sockets"),
];

/// Landlock is there, but does not do what it was told.
#[derive(Debug, Error)]
#[error("cannot restrict which files and ports this process may use (landlock): {0}")]
pub struct ConfineError(#[from] RulesetError);

/// What is enforced.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// The version of landlock that is in force; 0: none.
    version: i32,
    /// For people: which files and ports may still be used; empty if there is no landlock.
    pub left: String,
}

impl Confinement {
    /// Each part, by the name that it has in `/metrics`, and whether it is enforced.
    pub fn parts(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let version = self.version;
        PARTS.iter().map(move |(since, part)| (*part, version >= *since as i32))
    }
}

/// What the command line has it use.
#[derive(Clone, Default, Debug)]
pub struct Needs {
    /// Folders that it writes to.
    pub folders: Vec<PathBuf>,
    /// Files that it reads again and again. Another file may take the place of each, so all of its folder may be read.
    pub files: Vec<PathBuf>,
    /// The ports that it listens on; 0: any that the kernel chooses.
    pub listens_on: Vec<u16>,
    /// Ports that it connects to.
    pub connects_to: Vec<u16>,
}

/// Leaves this process what it needs, and what looking up names takes. For the calling thread and those that it will start, and for
/// good.
pub fn confine(needs: &Needs) -> Result<Confinement, ConfineError> {
    let readable = readable(needs);
    let confinement = match restrict(needs, &readable)? {
        LandlockStatus::Available { effective_abi, .. } => Confinement {
            version: effective_abi as i32,
            left: Left { needs, readable: &readable }.to_string(),
        },
        LandlockStatus::NotEnabled | LandlockStatus::NotImplemented => Confinement::default(),
    };
    let version = confinement.version;
    let missing: Vec<&str> =
        confinement.parts().filter(|(_, enforced)| !enforced).map(|(part, _)| part).collect();
    if missing.is_empty() {
        debug!("landlock restricts files, ports and signals");
    } else {
        warn!("landlock of this kernel (version {version}) does not restrict: {}", missing.join(", "));
    }
    Ok(confinement)
}

/// What may be read, of that which is there.
fn readable(needs: &Needs) -> BTreeSet<PathBuf> {
    let own = NAMES.iter().chain([&ITSELF, &DEBUG_FILES]).chain(&RESOLVERS).map(PathBuf::from);
    // Also where links lead to, as they do now.
    let real: Vec<PathBuf> = needs.files.iter().filter_map(|file| file.canonicalize().ok()).collect();
    let files = needs.files.iter().chain(&real).map(|file| folder_of(file).to_owned());
    own.chain(files).filter(|path| path.exists()).collect()
}

/// For people: what may be used still.
struct Left<'a> {
    needs: &'a Needs,
    readable: &'a BTreeSet<PathBuf>,
}

impl Display for Left<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let listed = |words: Vec<String>| if words.is_empty() { "none".to_owned() } else { words.join(", ") };
        let paths = |paths: &mut dyn Iterator<Item = &PathBuf>| {
            listed(paths.map(|path| printable(path.as_os_str().as_bytes())).collect())
        };
        let ports = |ports: &[u16]| listed(ports.iter().map(u16::to_string).collect());
        let Needs { folders, listens_on, connects_to, .. } = self.needs;
        write!(
            f,
            "reading {}; writing below {}; listening on TCP port {}; connecting to TCP port {}",
            paths(&mut self.readable.iter()),
            paths(&mut folders.iter()),
            ports(listens_on),
            ports(connects_to)
        )
    }
}

fn restrict(needs: &Needs, readable: &BTreeSet<PathBuf>) -> Result<LandlockStatus, ConfineError> {
    let all = AccessFs::from_all(NEWEST);
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rules(path_beneath_rules(readable, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(path_beneath_rules(&needs.folders, store_access()))?
        .add_rules(ports(&needs.listens_on, AccessNet::BindTcp))?
        .add_rules(ports(&needs.connects_to, AccessNet::ConnectTcp))?
        .set_compatibility(CompatLevel::BestEffort);
    if cfg!(feature = "no-landlock") {
        return Ok(LandlockStatus::NotEnabled);
    }
    Ok(status.restrict_self()?.landlock)
}

fn ports(ports: &[u16], access: AccessNet) -> impl Iterator<Item = Result<NetPort, RulesetError>> {
    ports.iter().map(move |port| Ok(NetPort::new(*port, access)))
}

fn folder_of(file: &Path) -> &Path {
    match file.parent() {
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
        None => file,
    }
}

/// Files and folders, no devices, links, sockets or pipes.
fn store_access() -> landlock::BitFlags<AccessFs> {
    AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File, OpenOptions},
        io,
        net::{TcpListener, TcpStream},
        os::unix::{
            fs::symlink,
            net::{UnixListener, UnixStream},
        },
    };

    use super::*;

    /// What is tried without and within, and whether it is allowed within.
    fn attempts(
        folder: &Path,
        free: u16,
        other: u16,
        open: u16,
        second: u16,
    ) -> Vec<(&'static str, bool, io::Result<()>)> {
        let store = folder.join("store");
        let write = |path: &Path| OpenOptions::new().create(true).append(true).open(path).map(drop);
        let read = |path: &Path| File::open(path).map(drop);
        let listen = |port| TcpListener::bind(("127.0.0.1", port)).map(drop);
        vec![
            ("write in the store", true, write(&store.join("file"))),
            ("make a folder in the store", true, fs::create_dir_all(store.join("sub"))),
            ("rename in the store", true, fs::rename(store.join("file"), store.join("file2"))),
            ("remove from the store", true, fs::remove_file(store.join("file2"))),
            ("list the store", true, fs::read_dir(&store).map(drop)),
            ("read its own statistics", true, read(Path::new("/proc/self/stat"))),
            ("look up names", true, read(Path::new("/etc/hosts"))),
            ("listen on its port", true, listen(free)),
            ("connect to a named socket", true, UnixStream::connect(folder.join("socket")).map(drop)),
            ("read a token", true, read(&folder.join("tokens/token"))),
            ("write a token", false, write(&folder.join("elsewhere/token"))),
            ("write outside", false, write(&folder.join("outside"))),
            ("read outside", false, read(&folder.join("secret"))),
            ("read outside by a link in the store", false, read(&store.join("link"))),
            ("read outside by dots", false, read(&store.join("../secret"))),
            ("list outside", false, fs::read_dir(folder).map(drop)),
            ("read the users", false, read(Path::new("/etc/passwd"))),
            ("read of another process", false, read(Path::new("/proc/1/status"))),
            (
                "make a link",
                false,
                symlink("x", store.join("new-link")).and_then(|()| fs::remove_file(store.join("new-link"))),
            ),
            (
                "move out of the store",
                false,
                write(&store.join("moved"))
                    .and_then(|()| fs::rename(store.join("moved"), folder.join("moved"))),
            ),
            ("listen on another port", false, listen(other)),
            ("connect to its store", true, TcpStream::connect(("127.0.0.1", second)).map(drop)),
            ("connect elsewhere", false, TcpStream::connect(("127.0.0.1", open)).map(drop)),
        ]
    }

    #[test]
    fn only_its_own_files_and_its_port() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("store")).unwrap();
        for name in ["tokens", "elsewhere"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("elsewhere/token"), "text").unwrap();
        symlink(at("elsewhere/token"), at("tokens/token")).unwrap();
        fs::write(at("secret"), "text").unwrap();
        symlink(at("secret"), at("store/link")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let open = server.local_addr().unwrap().port();
        let store = TcpListener::bind("127.0.0.1:0").unwrap();
        let second = store.local_addr().unwrap().port();
        // Two that are free, as far as anybody can know.
        let [free, other] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [free, other] = [free, other].map(|listener| listener.local_addr().unwrap().port());

        for (what, _, result) in attempts(folder.path(), free, other, open, second) {
            assert!(result.is_ok(), "without: {what}: {result:?}");
        }
        // Landlock is a thread's.
        let (confinement, within) = std::thread::scope(|scope| {
            let folder = folder.path();
            let thread = scope.spawn(move || {
                let (folders, files) = (vec![folder.join("store")], vec![folder.join("tokens/token")]);
                let confinement =
                    confine(&Needs { folders, files, listens_on: vec![free], connects_to: vec![second] })
                        .unwrap();
                (confinement, attempts(folder, free, other, open, second))
            });
            thread.join().unwrap()
        });
        for (what, allowed, result) in within {
            let denied = result.as_ref().is_err_and(|error| {
                matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::CrossesDevices)
            });
            assert_eq!((result.is_ok(), denied), (allowed, !allowed), "within: {what}: {result:?}");
        }
        assert!(confinement.parts().all(|(_, enforced)| enforced), "{confinement:?}");
    }

    #[test]
    fn an_older_kernel_enforces_less() {
        let missing = |version| {
            let confinement = Confinement { version, left: String::new() };
            let parts = confinement.parts();
            parts.filter(|(_, enforced)| !enforced).map(|(part, _)| part).collect::<Vec<_>>()
        };
        assert_eq!(missing(0).len(), PARTS.len());
        assert_eq!(missing(3), ["tcp_ports", "device_control", "signals_and_abstract_sockets"]);
        assert!(missing(7).is_empty());
    }
}
