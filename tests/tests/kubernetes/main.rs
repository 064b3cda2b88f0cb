//! Both halves on a Kubernetes node that `script/test-servers` runs: a real API server, kubelet and containerd.

#![expect(clippy::unwrap_used, reason = "a test ends where something does not work")]

mod containers;
mod daemonset;
mod runtimes;
