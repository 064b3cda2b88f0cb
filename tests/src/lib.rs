//! Whole-system tests on real BPF, processes and servers.
