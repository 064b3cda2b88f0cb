//! The socket: who may connect, and who may not.

use std::{io, path::Path};

use ipc::{Channel, CollectorEnd};
use log::Level;
use security::{SocketError, listen_privately};
use tokio_seqpacket::UnixSeqpacketListener;

use crate::logger;

/// Listens. Of those who may connect only the uploader's user is served.
pub(crate) fn listen(path: &Path) -> Result<UnixSeqpacketListener, SocketError> {
    listen_privately(path, |path| UnixSeqpacketListener::bind(path))
}

/// Waits for a connection of the uploader's user. Others are turned away before a byte of theirs is read.
pub(crate) async fn accept(listener: &mut UnixSeqpacketListener, uploader: u32) -> io::Result<CollectorEnd> {
    loop {
        let channel: CollectorEnd = Channel::new(listener.accept().await?);
        match channel.peer_uid() {
            Ok(uid) if uid == uploader || cfg!(feature = "no-peer-check") => return Ok(channel),
            Ok(uid) => logger::sparingly(
                Level::Warn,
                format_args!("user {uid} connected and was turned away: only user {uploader} may"),
            ),
            Err(error) => logger::sparingly(
                Level::Warn,
                format_args!("a connection was turned away: its user cannot be told: {error}"),
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
