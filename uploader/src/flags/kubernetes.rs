//! The flags that say who is asked for the names of containers.

use std::path::PathBuf;

use clap::{ArgAction, Args};

/// Who knows containers.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Names of containers")]
pub struct KubernetesFlags {
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
}

impl KubernetesFlags {
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

    /// Whether it is an error when nobody can be asked.
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
}
