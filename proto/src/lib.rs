//! The protocol buffers that Bulkhead speaks, a module for each upstream format. The code under `generated/` comes
//! from the files under `proto/` by `script/build-proto`, and is committed so that building needs no compiler for
//! protocol buffers; a test compares the two.

/// The profile format of pprof, as of its `profile.proto` of 2024 (with columns and `doc_url`).
#[expect(clippy::struct_excessive_bools, reason = "the flags of the format")]
#[rustfmt::skip]
#[path = "generated/perftools.profiles.rs"]
pub mod pprof;

/// How a Parca server takes profiles: `parca.profilestore.v1alpha1`.
#[expect(clippy::pedantic, unused_qualifications, missing_docs, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/parca.profilestore.v1alpha1.rs"]
pub mod profilestore;

/// How a Parca server takes debug information: `parca.debuginfo.v1alpha1`.
#[expect(clippy::pedantic, unused_qualifications, missing_docs, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/parca.debuginfo.v1alpha1.rs"]
pub mod debuginfo;

/// How a container runtime lists what it runs: the part of `runtime.v1` (the Container Runtime Interface) that does no more.
#[expect(clippy::pedantic, unused_qualifications, missing_docs, reason = "generated")]
#[rustfmt::skip]
#[path = "generated/runtime.v1.rs"]
pub mod cri;
