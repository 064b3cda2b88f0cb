//! The socket: who may connect, and who may not.

use std::{
    fs, io,
    os::unix::{fs::FileTypeExt, net::UnixStream},
    path::{Path, PathBuf},
};

use ipc::{Channel, CollectorEnd};
use rustix::{
    fs::Mode,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with},
    process::umask,
};
use thiserror::Error;
use tokio_seqpacket::UnixSeqpacketListener;

#[derive(Debug, Error)]
pub(crate) enum SocketError {
    #[error("another collector listens on {0}: stop it, or give another --socket")]
    Taken(PathBuf),
    #[error("{0} exists and is no socket: remove it, or give another --socket")]
    NoSocket(PathBuf),
    #[error("cannot listen on {path}: {source}; does its folder exist, and may this user write to it?")]
    Listen { path: PathBuf, source: io::Error },
}

/// Listens. The socket's mode is 0660: its group (that of the folder, where that has the setgid bit) may connect, and
/// of those only the uploader's user is served.
pub(crate) fn listen(path: &Path) -> Result<UnixSeqpacketListener, SocketError> {
    let error = |source| SocketError::Listen { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => return Err(SocketError::NoSocket(path.to_owned())),
        Ok(_) if is_served(path) => return Err(SocketError::Taken(path.to_owned())),
        // Left behind by a collector that was killed.
        Ok(_) => fs::remove_file(path).map_err(error)?,
        Err(_) => {}
    }
    let before = umask(Mode::from_raw_mode(0o117));
    let listener = UnixSeqpacketListener::bind(path);
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
        // Of another type than ours, perhaps.
        Err(rustix::io::Errno::PROTOTYPE) => UnixStream::connect(path).is_ok(),
        Err(_) => false,
    }
}

/// Waits for a connection of the uploader's user. Others are turned away before a byte of theirs is read.
pub(crate) async fn accept(listener: &mut UnixSeqpacketListener, uploader: u32) -> io::Result<CollectorEnd> {
    loop {
        let channel: CollectorEnd = Channel::new(listener.accept().await?);
        match channel.peer_uid() {
            Ok(uid) if uid == uploader || cfg!(feature = "no-peer-check") => return Ok(channel),
            Ok(uid) => log::warn!("user {uid} connected and was turned away: only user {uploader} may"),
            Err(error) => log::warn!("a connection was turned away: its user cannot be told: {error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[tokio::test]
    async fn a_socket_in_use_is_not_taken_and_one_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(listen(&path), Err(SocketError::Taken(_))));
        drop(first);
        let again = listen(&path).unwrap();
        drop(again);
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(matches!(listen(&path), Err(SocketError::NoSocket(_))));
        assert!(matches!(listen(&folder.path().join("no/s")), Err(SocketError::Listen { .. })));
    }

    #[tokio::test]
    async fn only_the_uploaders_user_is_served() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let mut listener = listen(&path).unwrap();
        let own = rustix::process::getuid().as_raw();
        let _peer = ipc::UploaderEnd::connect(&path).await.unwrap();
        assert!(accept(&mut listener, own).await.is_ok());
        let stranger = ipc::UploaderEnd::connect(&path).await.unwrap();
        let waiting = accept(&mut listener, own + 1);
        let waited = tokio::time::timeout(std::time::Duration::from_millis(200), waiting).await;
        assert!(waited.is_err(), "a stranger was let in");
        let (_, mut receiver) = stranger.split();
        assert!(matches!(receiver.receive().await, Err(ipc::ChannelError::Closed)));
    }
}
