//! A connection between the halves: sequenced packets (`SOCK_SEQPACKET`), one message each, at most one file
//! descriptor with it.

use std::{
    io::{self, IoSlice, IoSliceMut},
    marker::PhantomData,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use serde::{Serialize, de::DeserializeOwned};
use thiserror::Error;
use tokio_seqpacket::{
    UnixSeqpacket,
    ancillary::{AncillaryMessageWriter, OwnedAncillaryMessage},
};

use crate::{CodecError, FromCollector, FromUploader, codec, handshake::HELLO_SIZE};

/// Largest packet, in bytes.
pub const MAX_MESSAGE_SIZE: usize = 64 * 1024;
/// Room for the control message of one file descriptor, and for one too many, so that a second one is seen.
const CONTROL_SIZE: usize = 64;

/// What a message type is to the channel.
pub trait Message: Serialize + DeserializeOwned {
    /// Largest packet of this direction, in bytes: nobody reads more.
    const MAX_SIZE: usize;

    /// Whether a file descriptor may come with this message.
    fn may_carry_file(&self) -> bool;
}

impl Message for FromCollector {
    const MAX_SIZE: usize = MAX_MESSAGE_SIZE;

    fn may_carry_file(&self) -> bool {
        matches!(
            self,
            FromCollector::KernelSymbols(_) | FromCollector::Executable(_) | FromCollector::Anonymous(_)
        )
    }
}

impl Message for FromUploader {
    const MAX_SIZE: usize = MAX_MESSAGE_SIZE;

    fn may_carry_file(&self) -> bool {
        false
    }
}

/// Why a message could not be sent or received.
#[derive(Debug, Error)]
pub enum ChannelError {
    /// The other half closed the connection or died.
    #[error("the other half closed the connection")]
    Closed,
    /// The socket failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
    /// The peer sent bytes that are no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The peer sent more than a message of its direction can be.
    #[error("a packet of more than {0} bytes")]
    TooLarge(usize),
    /// The peer sent files where none belong, or more than one.
    #[error("a packet with {0}")]
    Files(&'static str),
}

/// One end of a connection, on which `S` is sent and `R` is received.
#[derive(Debug)]
pub struct Channel<S, R> {
    sender: Sender<S>,
    receiver: Receiver<R>,
}

/// The sending part of a [`Channel`].
#[derive(Debug)]
pub struct Sender<S> {
    socket: Arc<UnixSeqpacket>,
    direction: PhantomData<fn(S)>,
}

/// The receiving part of a [`Channel`].
#[derive(Debug)]
pub struct Receiver<R> {
    socket: Arc<UnixSeqpacket>,
    buffer: Vec<u8>,
    direction: PhantomData<fn() -> R>,
}

/// The collector's end.
pub type CollectorEnd = Channel<FromCollector, FromUploader>;
/// The uploader's end.
pub type UploaderEnd = Channel<FromUploader, FromCollector>;

impl UploaderEnd {
    /// Connects to the collector's socket.
    pub async fn connect(path: &Path) -> Result<Self, ChannelError> {
        Ok(Self::new(UnixSeqpacket::connect(path).await?))
    }
}

impl<S: Message, R: Message> Channel<S, R> {
    /// The channel over a connected socket.
    pub fn new(socket: UnixSeqpacket) -> Self {
        let socket = Arc::new(socket);
        // One byte more than fits, so that a packet that is too large is seen to be.
        let buffer = vec![0; R::MAX_SIZE.max(HELLO_SIZE) + 1];
        Channel {
            sender: Sender { socket: Arc::clone(&socket), direction: PhantomData },
            receiver: Receiver { socket, buffer, direction: PhantomData },
        }
    }

    /// The user id of the process that connected (`SO_PEERCRED`), known before the first byte.
    pub fn peer_uid(&self) -> io::Result<u32> {
        Ok(self.sender.socket.peer_cred()?.uid())
    }

    /// The two directions, to be used at the same time.
    pub fn split(self) -> (Sender<S>, Receiver<R>) {
        (self.sender, self.receiver)
    }

    /// Sends the greeting.
    pub(crate) async fn send_hello(&self, hello: &[u8]) -> Result<(), ChannelError> {
        self.sender.send_packet(hello, None).await
    }

    /// Receives the greeting.
    pub(crate) async fn receive_hello(&mut self) -> Result<&[u8], ChannelError> {
        let (length, file) = self.receiver.receive_packet(HELLO_SIZE).await?;
        if file.is_some() {
            return Err(ChannelError::Files("a file where none belongs"));
        }
        Ok(&self.receiver.buffer[..length])
    }
}

impl<S: Message> Sender<S> {
    /// Sends a message, waiting until there is room for it. Cancel-safe.
    pub async fn send(&self, message: &S, file: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        self.send_packet(&codec::encode(message)?, file).await
    }

    /// Sends bytes that are already encoded, waiting until there is room for them. Cancel-safe: a packet goes whole
    /// or not at all.
    pub async fn send_packet(&self, bytes: &[u8], file: Option<BorrowedFd<'_>>) -> Result<(), ChannelError> {
        let mut control = [0; CONTROL_SIZE];
        let mut ancillary = AncillaryMessageWriter::new(&mut control);
        if let Some(file) = file
            && ancillary.add_fds([file]).is_err()
        {
            return Err(ChannelError::Files("no room for a file"));
        }
        let packet = [IoSlice::new(bytes)];
        match self.socket.send_vectored_with_ancillary(&packet, &mut ancillary).await {
            Ok(_) => Ok(()),
            Err(error) if is_closed(&error) => Err(ChannelError::Closed),
            Err(error) => Err(error.into()),
        }
    }
}

impl<R: Message> Receiver<R> {
    /// Receives the next message, and the file that came with it. Cancel-safe: a packet is taken whole or not at
    /// all.
    pub async fn receive(&mut self) -> Result<(R, Option<OwnedFd>), ChannelError> {
        let (length, file) = self.receive_packet(R::MAX_SIZE).await?;
        let message: R = codec::decode(&self.buffer[..length])?;
        if file.is_some() && !message.may_carry_file() {
            return Err(ChannelError::Files("a file where none belongs"));
        }
        Ok((message, file))
    }

    /// Receives a packet into `self.buffer`.
    async fn receive_packet(&mut self, max_size: usize) -> Result<(usize, Option<OwnedFd>), ChannelError> {
        let mut control = [0; CONTROL_SIZE];
        let mut slices = [IoSliceMut::new(&mut self.buffer)];
        let received = self.socket.recv_vectored_with_ancillary(&mut slices, &mut control).await;
        let (info, ancillary) = match received {
            Ok(received) => received,
            Err(error) if is_closed(&error) => return Err(ChannelError::Closed),
            Err(error) => return Err(error.into()),
        };
        // Ownership of every file first: whatever is wrong with the packet, none of them stays open.
        let truncated = ancillary.is_truncated();
        let mut files = Vec::new();
        for message in ancillary.into_messages() {
            if let OwnedAncillaryMessage::FileDescriptors(descriptors) = message {
                files.extend(descriptors);
            }
        }
        if truncated || files.len() > 1 {
            return Err(ChannelError::Files("more than one file"));
        }
        match info.bytes_read() {
            0 => Err(ChannelError::Closed),
            length if length > max_size => Err(ChannelError::TooLarge(max_size)),
            length => Ok((length, files.pop())),
        }
    }
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::NotConnected
    )
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, pipe},
        os::fd::AsFd,
    };

    use super::*;
    use crate::{Anonymous, Comm, ExecutableId, ProcessId};

    fn pair() -> (CollectorEnd, UploaderEnd) {
        let (a, b) = UnixSeqpacket::pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[tokio::test]
    async fn a_message_arrives_with_its_file() {
        let (collector, mut uploader) = pair();
        let file = tempfile::tempfile().unwrap();
        rustix::fs::ftruncate(&file, 1234).unwrap();
        let message = FromCollector::Anonymous(Anonymous { process: ProcessId(7) });
        collector.sender.send(&message, Some(file.as_fd())).await.unwrap();
        let (received, file) = uploader.receiver.receive().await.unwrap();
        assert_eq!(received, message);
        assert_eq!(rustix::fs::fstat(file.unwrap()).unwrap().st_size, 1234);
    }

    #[tokio::test]
    async fn a_file_where_none_belongs_is_refused_and_closed() {
        let (mut collector, mut uploader) = pair();
        // The reading end of a pipe sees its end once the writing end, passed along, is closed everywhere.
        let (mut reader, writer) = pipe().unwrap();
        let message = FromCollector::Comm(Comm { process: ProcessId(7), comm: b"x".to_vec() });
        collector.sender.send(&message, Some(writer.as_fd())).await.unwrap();
        assert!(matches!(uploader.receiver.receive().await, Err(ChannelError::Files(_))));
        let request = codec::encode(&FromUploader::Reopen(ExecutableId(1))).unwrap();
        uploader.sender.send_packet(&request, Some(writer.as_fd())).await.unwrap();
        assert!(matches!(collector.receiver.receive().await, Err(ChannelError::Files(_))));
        drop(writer);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_packet_beyond_the_limit_of_its_direction_is_refused() {
        let (mut collector, uploader) = pair();
        let packet = vec![0; MAX_MESSAGE_SIZE + 1];
        uploader.sender.send_packet(&packet, None).await.unwrap();
        let received = collector.receiver.receive().await;
        assert!(matches!(received, Err(ChannelError::TooLarge(MAX_MESSAGE_SIZE))));
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_waited_for_and_one_that_goes_is_an_end() {
        let (collector, uploader) = pair();
        let packet = vec![0; MAX_MESSAGE_SIZE];
        let waiting = async {
            loop {
                collector.sender.send_packet(&packet, None).await?;
            }
        };
        let going = async {
            tokio::task::yield_now().await;
            drop(uploader);
        };
        let (result, ()): (Result<(), ChannelError>, ()) = tokio::join!(waiting, going);
        assert!(matches!(result, Err(ChannelError::Closed)), "{result:?}");
    }
}
