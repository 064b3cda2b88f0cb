//! Mechanism of the wall, for both halves: capabilities, system calls, process attributes, users, sockets, the supervisor, and how much of
//! the time and of the log others may cause. Which half may keep what is said by the half itself, in its `policy` module.

#[cfg(all(any(feature = "no-seccomp", feature = "no-drop", feature = "no-harden"), not(debug_assertions)))]
compile_error!(
    "no-seccomp, no-drop and no-harden are for script/test-layers: what is built for use has the whole wall"
);

mod capabilities;
mod memory;
mod process;
mod seccomp;
mod socket;
mod sparing;
mod supervisor;
mod system_calls;
mod time_share;
mod users;

pub use capabilities::{CapabilityError, effective, keep_exactly, missing};
pub use caps::{Capability, CapsHashSet};
pub use memory::{give_back_memory, share_one_heap};
pub use process::{ProcessError, harden};
pub use seccomp::{Call, Only, REFUSED, SeccompError, allow_only};
pub use socket::{SocketError, listen_privately};
pub use sparing::Sparing;
pub use supervisor::Supervisor;
pub use system_calls::number as system_call_number;
pub use time_share::TimeShare;
pub use users::{UserError, uid_of};
