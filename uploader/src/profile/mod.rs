//! Profiles: windows of samples, and what becomes of them.

pub mod check;
mod finished;
mod merge;
mod pprof;
mod window;

pub use finished::{Finished, Profiles};
pub use merge::{MergeError, decode, merge};
pub use pprof::{ExecutableInfo, Names, build, to_gzip};
pub use window::{
    Ends, Frame, MAX_ENTRIES, MAX_FRAMES, MAX_STACKS, MAX_TARGETS, StackKey, TargetSamples, Thread, Window,
};
