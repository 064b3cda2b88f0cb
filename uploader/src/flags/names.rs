//! The flags that say who is asked for the names of containers.

use std::path::PathBuf;

use clap::{ArgAction, Args};

use crate::discovery::runtimes::{DEFAULT_SOCKETS, Socket};

/// Who knows containers.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Names of containers")]
pub struct NameFlags {
    /// Whether Kubernetes' API server is asked for this node's pods [default: inside a cluster, or where there is a kubeconfig]
    #[arg(
        long, default_missing_value = "true", num_args = 0..=1, require_equals = true, action = ArgAction::Set,
        value_name = "BOOL"
    )]
    pub kubernetes: Option<bool>,

    /// File that says how the API server is reached from outside its cluster [default: $KUBECONFIG, or ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// Profile containers of pods with these labels, such as app=web,tier!=test
    #[arg(long, value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub pod_label_selector: String,

    /// Socket of a container runtime, or of bulkhead-runtime-proxy, that is asked too; none: of no one [default: those there are]
    #[arg(long, value_name = "PATH")]
    pub socket_path: Vec<String>,
}

impl NameFlags {
    /// What is wrong about them together.
    pub(super) fn problem(&self) -> Option<&'static str> {
        let is_off = self.kubernetes == Some(false);
        if is_off && !self.pod_label_selector.is_empty() {
            return Some("--pod-label-selector needs Kubernetes, and --kubernetes=false turns it off");
        }
        if is_off && self.kubeconfig.is_some() {
            return Some("--kubeconfig needs Kubernetes, and --kubernetes=false turns it off");
        }
        None
    }

    /// The container runtimes that are asked.
    pub fn runtimes(&self) -> Vec<Socket> {
        let socket = |path: &str, is_default| Socket { path: path.into(), is_default };
        let named: Vec<&String> = self.socket_path.iter().filter(|path| !path.is_empty()).collect();
        if named.is_empty() {
            return DEFAULT_SOCKETS.map(|path| socket(path, true)).into();
        }
        named.into_iter().filter(|path| *path != "none").map(|path| socket(path, false)).collect()
    }

    /// Whether it is an error when no API server can be asked.
    pub fn must_work(&self) -> bool {
        self.kubernetes == Some(true) || self.kubeconfig.is_some() || !self.pod_label_selector.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use crate::flags::Flags;

    fn parse(line: &[&str]) -> Result<Flags, clap::Error> {
        Flags::parse_line([&["bulkhead-uploader"], line].concat())
    }

    #[test]
    fn as_the_seed_wrote_them() {
        let flags = |line: &[&str]| parse(line).unwrap().names;
        assert_eq!(flags(&[]).kubernetes, None);
        assert_eq!(flags(&["--kubernetes"]).kubernetes, Some(true));
        assert_eq!(flags(&["--kubernetes=false", "--pod-label-selector="]).kubernetes, Some(false));
        assert!(!flags(&[]).must_work() && flags(&["--kubernetes=true"]).must_work());
        let selected = parse(&["--pod-label-selector=app=web"]).unwrap();
        assert!(selected.names.must_work() && selected.selection().pods);
        assert!(!parse(&[]).unwrap().selection().pods);
        for wrong in [
            &["--kubernetes=maybe"][..],
            &["--kubernetes=false", "--pod-label-selector=a"],
            &["--kubernetes=false", "--kubeconfig=f"],
        ] {
            assert_eq!(parse(wrong).unwrap_err().exit_code(), 2, "{wrong:?}");
        }
    }

    #[test]
    fn runtimes_that_are_named_and_those_that_are_not() {
        let runtimes = |line: &[&str]| parse(line).unwrap().names.runtimes();
        assert!(runtimes(&[]).iter().all(|socket| socket.is_default) && runtimes(&[]).len() > 4);
        assert_eq!(runtimes(&["--socket-path="]), runtimes(&[]));
        assert_eq!(runtimes(&["--socket-path=none"]), []);
        let named = runtimes(&["--socket-path=/a", "--socket-path=/b"]);
        let named: Vec<_> =
            named.iter().map(|socket| (socket.path.to_str().unwrap(), socket.is_default)).collect();
        assert_eq!(named, [("/a", false), ("/b", false)]);
    }
}
