//! The greeting: a packet of fixed layout, the same in every version, so that two halves of different releases can
//! tell each other so.
//!
//! Layout (64 bytes): `BULKHEAD`, protocol version (u32, little endian), role (u8), 3 zero bytes, release (48 bytes
//! of UTF-8, padded with NUL).

use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

use crate::{ChannelError, CollectorEnd, UploaderEnd};

/// Version of everything in this crate that crosses the socket. Changes with each change of a message.
pub const PROTOCOL_VERSION: u32 = 4;
/// How long the other half may take for its greeting.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const HELLO_SIZE: usize = 64;
const MAGIC: &[u8; 8] = b"BULKHEAD";
const RELEASE: std::ops::Range<usize> = 16..HELLO_SIZE;

/// Which half is speaking.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Role {
    /// The privileged half.
    Collector = 1,
    /// The unprivileged half.
    Uploader = 2,
}

/// A greeting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The speaker's [`PROTOCOL_VERSION`].
    pub protocol: u32,
    /// Which half is speaking.
    pub role: Role,
    /// The speaker's release, for people.
    pub release: String,
}

/// Why the halves cannot talk.
#[derive(Debug, Error)]
pub enum HandshakeError {
    /// The connection failed.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// No greeting came in time.
    #[error("no greeting within {} seconds", HANDSHAKE_TIMEOUT.as_secs())]
    TimedOut,
    /// What came is no greeting.
    #[error("the other side is not a half of Bulkhead: its first packet is no greeting")]
    NotBulkhead,
    /// Two collectors, or two uploaders.
    #[error("the other side is a {0:?} too: is this the right socket?")]
    SameRole(Role),
    /// The halves are of different releases.
    #[error(
        "the other half ({release}) speaks protocol {theirs}, this one {PROTOCOL_VERSION}: install both halves from the same release"
    )]
    Version {
        /// The other half's version.
        theirs: u32,
        /// The other half's release.
        release: String,
    },
}

impl Hello {
    /// The greeting of this build.
    pub fn new(role: Role) -> Self {
        Hello { protocol: PROTOCOL_VERSION, role, release: format!("bulkhead {}", env!("CARGO_PKG_VERSION")) }
    }

    /// As bytes; a release that does not fit is cut, between characters.
    pub fn to_bytes(&self) -> [u8; HELLO_SIZE] {
        let mut bytes = [0; HELLO_SIZE];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&self.protocol.to_le_bytes());
        bytes[12] = self.role as u8;
        let release = &self.release[..self.release.floor_char_boundary(RELEASE.len())];
        bytes[RELEASE][..release.len()].copy_from_slice(release.as_bytes());
        bytes
    }

    /// From bytes, if they are a greeting of any version.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != HELLO_SIZE || !bytes.starts_with(MAGIC) {
            return None;
        }
        let protocol = u32::from_le_bytes(bytes[8..12].try_into().ok()?);
        let role = match bytes[12] {
            1 => Role::Collector,
            2 => Role::Uploader,
            _ => return None,
        };
        let release = bytes[RELEASE].split(|byte| *byte == 0).next().unwrap_or_default();
        let release = String::from_utf8_lossy(release).chars().filter(|c| !c.is_control()).collect();
        Some(Hello { protocol, role, release })
    }

    fn check(bytes: &[u8], expected: Role) -> Result<Self, HandshakeError> {
        let hello = Hello::from_bytes(bytes).ok_or(HandshakeError::NotBulkhead)?;
        if hello.role != expected {
            return Err(HandshakeError::SameRole(hello.role));
        }
        if hello.protocol != PROTOCOL_VERSION {
            return Err(HandshakeError::Version { theirs: hello.protocol, release: hello.release });
        }
        Ok(hello)
    }
}

/// The collector's part: hears the uploader's greeting and answers it, also one of another version, so that both
/// sides can say what is wrong.
pub async fn greet_uploader(channel: &mut CollectorEnd) -> Result<Hello, HandshakeError> {
    timeout(HANDSHAKE_TIMEOUT, async {
        let theirs = channel.receive_hello().await?.to_vec();
        if Hello::from_bytes(&theirs).is_some() {
            channel.send_hello(&Hello::new(Role::Collector).to_bytes()).await?;
        }
        Hello::check(&theirs, Role::Uploader)
    })
    .await
    .unwrap_or(Err(HandshakeError::TimedOut))
}

/// The uploader's part: greets, and hears the answer.
pub async fn greet_collector(channel: &mut UploaderEnd) -> Result<Hello, HandshakeError> {
    timeout(HANDSHAKE_TIMEOUT, async {
        channel.send_hello(&Hello::new(Role::Uploader).to_bytes()).await?;
        Hello::check(channel.receive_hello().await?, Role::Collector)
    })
    .await
    .unwrap_or(Err(HandshakeError::TimedOut))
}

#[cfg(test)]
mod tests {
    use tokio_seqpacket::UnixSeqpacket;

    use super::*;
    use crate::Channel;

    fn pair() -> (CollectorEnd, UploaderEnd) {
        let (a, b) = UnixSeqpacket::pair().unwrap();
        (Channel::new(a), Channel::new(b))
    }

    #[tokio::test]
    async fn two_halves_of_one_release_greet_each_other() {
        let (mut collector, mut uploader) = pair();
        let (heard, answered) = tokio::join!(greet_uploader(&mut collector), greet_collector(&mut uploader));
        assert_eq!(heard.unwrap().role, Role::Uploader);
        assert_eq!(answered.unwrap().role, Role::Collector);
    }

    #[tokio::test]
    async fn another_version_is_a_clear_error_on_both_sides() {
        let (mut collector, mut uploader) = pair();
        let other = Hello { protocol: 99, role: Role::Uploader, release: "bulkhead 9.9".into() };
        uploader.send_hello(&other.to_bytes()).await.unwrap();
        let error = greet_uploader(&mut collector).await.unwrap_err();
        assert!(error.to_string().contains("(bulkhead 9.9) speaks protocol 99"), "{error}");
        assert_eq!(
            Hello::from_bytes(uploader.receive_hello().await.unwrap()),
            Some(Hello::new(Role::Collector))
        );

        let (mut collector, mut uploader) = pair();
        let other = Hello { protocol: 98, role: Role::Collector, release: "bulkhead 9.8".into() };
        let answer = async {
            collector.receive_hello().await.unwrap();
            collector.send_hello(&other.to_bytes()).await.unwrap();
        };
        let (error, ()) = tokio::join!(greet_collector(&mut uploader), answer);
        assert!(matches!(error, Err(HandshakeError::Version { theirs: 98, .. })));
    }

    #[tokio::test]
    async fn strangers_and_twins_are_refused() {
        for packet in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0; HELLO_SIZE], &Hello::new(Role::Uploader).to_bytes()[..63]]
        {
            let (mut collector, uploader) = pair();
            uploader.send_hello(packet).await.unwrap();
            assert!(matches!(greet_uploader(&mut collector).await, Err(HandshakeError::NotBulkhead)));
        }
        let (mut collector, uploader) = pair();
        uploader.send_hello(&Hello::new(Role::Collector).to_bytes()).await.unwrap();
        assert!(matches!(
            greet_uploader(&mut collector).await,
            Err(HandshakeError::SameRole(Role::Collector))
        ));
    }

    #[test]
    fn a_release_that_does_not_fit_is_cut_between_characters() {
        for (release, sent) in [
            ("x".repeat(49), "x".repeat(48)),
            ("\u{e4}x".repeat(16) + "\u{e4}", "\u{e4}x".repeat(16)),
            ("x".repeat(47) + "\u{e4}", "x".repeat(47)),
        ] {
            let hello = Hello { protocol: 1, role: Role::Uploader, release };
            assert_eq!(Hello::from_bytes(&hello.to_bytes()).unwrap().release, sent);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_ends_the_handshake() {
        let (mut collector, _uploader) = pair();
        assert!(matches!(greet_uploader(&mut collector).await, Err(HandshakeError::TimedOut)));
    }
}
