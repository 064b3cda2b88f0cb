//! What the measurements share.

pub mod usage;
