//! The unwinder: run in the kernel by collector-ebpf, and in tests over recorded stacks.
#![no_std]
