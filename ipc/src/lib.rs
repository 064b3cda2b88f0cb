//! What the two halves say to each other, and how: a closed message type for each direction, a codec with limits, a
//! handshake, and a channel of sequenced packets that can carry one file descriptor with a message.
//!
//! Nothing here opens a file.

mod channel;
mod codec;
mod handshake;
mod messages;

pub use channel::{
    Channel, ChannelError, CollectorEnd, MAX_MESSAGE_SIZE, Message, Receiver, Sender, UploaderEnd,
};
pub use codec::{CodecError, decode, encode};
pub use handshake::{
    HANDSHAKE_TIMEOUT, HandshakeError, Hello, PROTOCOL_VERSION, Role, greet_collector, greet_uploader,
};
pub use messages::{
    Anonymous, Cgroup, CgroupId, Comm, Counters, Executable, ExecutableId, ExecutableKind, FromCollector,
    FromUploader, Identity, KernelFrame, KernelSymbols, Limitation, ModuleId, NotReopened, PageRows, Process,
    ProcessId, Sample, SkipCounters, TableBegin, TableCounters, UserFrame, Welcome,
};
