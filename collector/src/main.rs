//! The privileged half: samples every CPU with BPF and passes samples on.
fn main() {}
