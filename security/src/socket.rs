//! A Unix socket to listen on that few may connect to.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
};

use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    process::umask,
};
use thiserror::Error;

/// Why a socket cannot be listened on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("another process listens on {0}: stop it, or give another --socket")]
    Taken(PathBuf),
    /// There is something else.
    #[error("{0} exists and is no socket: remove it, or give another --socket")]
    NoSocket(PathBuf),
    /// The kernel refused.
    #[error("cannot listen on {path}: {source}; does its folder exist, and may this user write to it?")]
    Listen {
        /// Where.
        path: PathBuf,
        /// What it says.
        source: io::Error,
    },
}

/// Has `bind` listen, in the place of a socket that somebody has left behind. The socket's mode is 0660: its group (that of the folder, where
/// that has the setgid bit) may connect. To be called before there is another thread: the umask is the whole process's.
pub fn listen_privately<T>(path: &Path, bind: impl FnOnce(&Path) -> io::Result<T>) -> Result<T, SocketError> {
    let error = |source| SocketError::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket(path.to_owned())),
        Ok(_) if is_served(path) => return Err(SocketError::Taken(path.to_owned())),
        // Left behind by a process that was killed.
        Ok(_) => fs::remove_file(path).map_err(error)?,
        Err(_) => {}
    }
    let before = umask(Mode::from_raw_mode(0o117));
    let listener = bind(path);
    umask(before);
    listener.map_err(error)
}

/// Whether somebody listens on the socket.
fn is_served(path: &Path) -> bool {
    let attempt = || {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
    };
    match attempt() {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => true,
        // Of another type, perhaps.
        Err(rustix::io::Errno::PROTOTYPE) => UnixStream::connect(path).is_ok(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixListener},
    };

    use super::*;

    fn packets(path: &Path) -> io::Result<OwnedFd> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::net::listen(&socket, 1)?;
        Ok(socket)
    }

    fn stream(path: &Path) -> io::Result<OwnedFd> {
        UnixListener::bind(path).map(Into::into)
    }

    #[test]
    fn a_socket_in_use_is_not_taken_and_one_left_behind_is_replaced() {
        for listen in [packets, stream] {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("s");
            let first = listen_privately(&path, listen).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
            assert!(matches!(listen_privately(&path, listen), Err(SocketError::Taken(_))));
            drop(first);
            drop(listen_privately(&path, listen).unwrap());
            fs::remove_file(&path).unwrap();
            fs::write(&path, "").unwrap();
            assert!(matches!(listen_privately(&path, listen), Err(SocketError::NoSocket(_))));
            let nowhere = folder.path().join("no/s");
            assert!(matches!(listen_privately(&nowhere, listen), Err(SocketError::Listen { .. })));
        }
    }
}
