//! The other end of the collector's socket, in the hands of a test: an uploader that does as it likes.

use std::{
    io::IoSlice,
    mem::MaybeUninit,
    os::fd::{BorrowedFd, OwnedFd},
    time::Duration,
};

use ipc::{ExecutableId, FromCollector, FromUploader};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, send, sendmsg, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

/// Room for the control message of so many files as [`Peer::send_with_files`] may send: the most that the kernel takes
/// (`SCM_MAX_FD`, `include/net/scm.h`).
const MOST_FILES: usize = 253;

/// A connection to the collector.
#[derive(Debug)]
pub struct Peer(pub OwnedFd);

impl Peer {
    /// Connects, and says nothing yet. Each packet is waited for so long.
    pub fn connect(path: &str, patience: Duration) -> Option<Self> {
        // Not for children that the test starts: the connection ends with the test's own end of it.
        let file =
            socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).ok()?;
        connect(&file, &SocketAddrUnix::new(path).ok()?).ok()?;
        set_socket_timeout(&file, Timeout::Recv, Some(patience)).ok()?;
        Some(Peer(file))
    }

    /// Connects, and has exchanged greetings.
    pub fn greeted(path: &str, patience: Duration) -> Option<Self> {
        let peer = Peer::connect(path, patience)?;
        let role = ipc::Role::Uploader;
        let hello = ipc::Hello { protocol: ipc::PROTOCOL_VERSION, role, release: "bulkhead 0.0".into() };
        peer.send(&hello.to_bytes())?;
        ipc::Hello::from_bytes(&peer.packet()?)?;
        Some(peer)
    }

    /// `None`: the other side has closed.
    pub fn send(&self, bytes: &[u8]) -> Option<()> {
        send(&self.0, bytes, SendFlags::NOSIGNAL).ok().map(drop)
    }

    /// Sends bytes and files with them.
    ///
    /// # Panics
    ///
    /// If there are more files than the kernel takes.
    pub fn send_with_files(&self, bytes: &[u8], files: &[BorrowedFd]) -> Option<()> {
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_FILES))];
        let mut control = SendAncillaryBuffer::new(&mut room);
        assert!(control.push(SendAncillaryMessage::ScmRights(files)), "{} files are too many", files.len());
        sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL).ok().map(drop)
    }

    /// Whether the session goes on: there is an answer to a request.
    ///
    /// # Panics
    ///
    /// If the request is longer than a packet, which it is not.
    pub fn has_an_answer(&self) -> bool {
        let request = ipc::encode(&FromUploader::Reopen(ExecutableId(u32::MAX))).expect("a short message");
        let is_answer = |packet: Vec<u8>| matches!(ipc::decode(&packet), Ok(FromCollector::NotReopened(_)));
        self.send(&request).is_some() && std::iter::from_fn(|| self.packet()).any(is_answer)
    }

    /// The next packet; `None`: none came in time, or the other side has closed.
    pub fn packet(&self) -> Option<Vec<u8>> {
        let mut buffer = vec![0; ipc::MAX_MESSAGE_SIZE + 1];
        let (length, _) = recv(&self.0, buffer.as_mut_slice(), RecvFlags::empty()).ok()?;
        buffer.truncate(length);
        (length > 0).then_some(buffer)
    }
}
