//! What whole-system tests need: both halves started as their users, programs that are stopped for certain, profiles
//! read back and compared with the truth. They need root and a kernel that Bulkhead runs on; `script/test` runs them.
#![expect(clippy::missing_panics_doc, reason = "a panic is how a test fails")]

pub mod certificates;
pub mod cgroup;
pub mod cluster;
pub mod entry;
pub mod http;
pub mod peer;
pub mod pprof;
pub mod process;
pub mod statistics;
pub mod store;
pub mod system;
pub mod wait;
