//! Targets: what a profile is of. A target is a set of labels; processes with the same labels are one target.

mod cgroup;

use std::{collections::BTreeMap, fmt, sync::Arc};

pub use cgroup::{Owner, owner};

/// The labels of a target, in the order of their names.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize)]
pub struct Labels(pub BTreeMap<String, String>);

impl Labels {
    /// The value of a label; empty if there is none, as in Prometheus.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }
}

impl fmt::Display for Labels {
    /// As a selector that finds exactly what has these labels: `{comm="x", node="y"}`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("{")?;
        for (index, (name, value)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            write!(f, "{comma}{name}=\"{value}\"")?;
        }
        f.write_str("}")
    }
}

/// Makes targets from what is known of a process.
#[derive(Clone, Debug)]
pub struct TargetMaker {
    /// The labels of every target: `node` and the external ones.
    common: BTreeMap<String, String>,
}

impl TargetMaker {
    /// A maker of targets on the machine `node`.
    pub fn new(node: &str, external: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut common: BTreeMap<_, _> = external.into_iter().collect();
        common.insert("node".into(), node.into());
        TargetMaker { common }
    }

    /// The labels of a process with this command name (already text) in this cgroup.
    pub fn labels(&self, comm: &str, owner: Option<&Owner>) -> Arc<Labels> {
        let mut labels = self.common.clone();
        labels.insert("comm".into(), comm.into());
        match owner {
            Some(Owner::Container(id)) => labels.insert("containerid".into(), id.clone()),
            Some(Owner::Unit(name)) => labels.insert("systemd_unit".into(), name.clone()),
            None => None,
        };
        Arc::new(Labels(labels))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_say_what_is_known() {
        let maker = TargetMaker::new("n", [("zone".to_owned(), "z".to_owned())]);
        let text = |owner: Option<Owner>| maker.labels("x", owner.as_ref()).to_string();
        assert_eq!(text(None), r#"{comm="x", node="n", zone="z"}"#);
        let container = Some(Owner::Container("abc".into()));
        assert_eq!(text(container), r#"{comm="x", containerid="abc", node="n", zone="z"}"#);
        let unit = Some(Owner::Unit("a@b\\x2dc.service".into()));
        assert_eq!(text(unit), r#"{comm="x", node="n", systemd_unit="a@b\\x2dc.service", zone="z"}"#);
    }

    #[test]
    fn a_missing_label_is_empty() {
        assert_eq!(Labels::default().get("comm"), "");
    }
}
