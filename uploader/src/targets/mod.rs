//! Targets: what a profile is of. A target is a set of labels; processes with the same labels are one target.

mod cgroup;
mod origin;
mod selection;
mod unit;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

pub use cgroup::{Owner, owner, paths};
pub use origin::{CgroupFacts, Origin};
pub use selection::{Pattern, Selection, whole_unit_name};

use crate::{
    discovery::{Discovery, Named},
    printable::printable,
    relabel::{LabelMap, Rules},
};

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

/// The label that rules see a process's id in.
const PID: &str = "__meta_process_pid";
/// The label that rules see the description of a system's unit in.
const DESCRIPTION: &str = "__meta_systemd_unit_description";

/// Of which target a process is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// Of the one with these labels.
    Of(Arc<Labels>),
    /// Of none: it is not profiled.
    NotSelected(Why),
}

/// Why something is not profiled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// Flags name what is profiled, and this is not among it.
    NotNamed,
    /// A rule (from 1) says so.
    Rule(usize),
    /// It is in the other part (`--sampling-ratio`).
    NotSampled,
}

/// Makes targets from what is known of a process.
#[derive(Clone, Debug)]
pub struct TargetMaker {
    /// The labels of every target: `node` and the external ones.
    common: BTreeMap<String, String>,
    /// Labels for the rules alone that are the same for all.
    common_meta: BTreeMap<String, String>,
    rules: Rules,
    selection: Selection,
}

impl TargetMaker {
    /// A maker of targets on the machine `node`.
    pub fn new(node: &str, external: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut common: BTreeMap<_, _> = external.into_iter().collect();
        common.insert("node".into(), node.into());
        let uname = rustix::system::uname();
        let common_meta = [
            ("__meta_system_kernel_machine", uname.machine()),
            ("__meta_system_kernel_release", uname.release()),
        ];
        let common_meta =
            common_meta.map(|(name, value)| (name.to_owned(), printable(value.to_bytes()))).into();
        TargetMaker { common, common_meta, rules: Rules::default(), selection: Selection::default() }
    }

    /// The same, for what is selected alone.
    #[must_use]
    pub fn with_selection(self, selection: Selection) -> Self {
        TargetMaker { selection, ..self }
    }

    /// Changes the rules for labels.
    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// Units that names of flags stand for, beside those that have these names. Returns whether they are others than before.
    pub fn set_unit_ids(&mut self, ids: BTreeSet<String>) -> bool {
        let is_new = self.selection.ids != ids;
        self.selection.ids = ids;
        is_new
    }

    /// What a text of `/proc/PID/cgroup` says.
    pub fn cgroup(&self, text: &[u8]) -> CgroupFacts {
        let (owner, paths) = (owner(text), paths(text));
        let pod = paths.iter().find_map(|path| cgroup::pod(path));
        // Whether a pod is selected is known when somebody has told of it.
        let may_be_selected =
            self.selection.pods && (pod.is_some() || matches!(owner, Some(Owner::Container(_))));
        let is_selected = self.selection.selects(&paths);
        let named = paths
            .iter()
            .find(|path| owner.is_some() && self::owner(format!("0::{path}").as_bytes()) == owner);
        let path = printable(named.or(paths.first()).unwrap_or(&"").as_bytes());
        CgroupFacts { owner, pod, path, is_selected, may_be_selected }
    }

    /// Whether rules look at pids, so that each process is an origin of its own.
    pub fn wants_pids(&self) -> bool {
        self.rules.look_at(PID)
    }

    /// Whether rules look at how units are described.
    pub fn wants_descriptions(&self) -> bool {
        self.rules.look_at(DESCRIPTION)
    }

    /// Whether samples of this origin are kept until their window ends.
    pub fn keeps(&self, origin: &Origin) -> bool {
        match &origin.cgroup {
            Some(facts) => facts.is_kept(),
            None => self.selection.selects(&[]),
        }
    }

    /// The target of an origin, by what is known of its container.
    pub fn target(&self, origin: &Origin, discovery: &Discovery) -> Target {
        self.explained_target(origin, discovery, |_, _| {})
    }

    /// The same; `seen` is told what there is before the rules (0), and what each of them (from 1) makes of it.
    pub fn explained_target(
        &self,
        origin: &Origin,
        discovery: &Discovery,
        mut seen: impl FnMut(usize, &LabelMap),
    ) -> Target {
        let cgroup = origin.cgroup.as_deref();
        let named = cgroup.and_then(|facts| discovery.find(facts));
        let is_selected = match cgroup {
            Some(facts) => facts.is_selected || (facts.may_be_selected && discovery.is_in_pod(facts)),
            None => self.selection.selects(&[]),
        };
        if !is_selected {
            return Target::NotSelected(Why::NotNamed);
        }
        let owner = cgroup.and_then(|facts| facts.owner.as_ref());
        let mut labels = Arc::unwrap_or_clone(self.labels(&origin.comm, owner)).0;
        labels.extend(named.iter().flat_map(Named::labels));
        if !self.rules.is_empty() {
            labels.extend(self.common_meta.clone());
            labels.extend(discovery.node());
            labels.extend(origin.pid.map(|pid| (PID.to_owned(), pid.to_string())));
            labels.extend(cgroup.map(|facts| ("__meta_process_cgroup".to_owned(), facts.path.clone())));
            labels.extend(cgroup.map(CgroupFacts::unit_meta).unwrap_or_default());
            let description = cgroup.and_then(CgroupFacts::unit).and_then(|unit| discovery.description(unit));
            labels.extend(description.map(|text| (DESCRIPTION.to_owned(), text)));
            labels.extend(named.iter().flat_map(Named::meta));
            seen(0, &labels);
            labels = match self.rules.apply(labels, seen) {
                Ok(changed) => changed,
                Err(rule) => return Target::NotSelected(Why::Rule(rule)),
            };
        }
        let labels = Labels(labels);
        if self.selection.samples(&labels) {
            Target::Of(Arc::new(labels))
        } else {
            Target::NotSelected(Why::NotSampled)
        }
    }

    /// The rules.
    pub fn rules(&self) -> &Rules {
        &self.rules
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
