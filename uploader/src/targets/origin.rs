//! Where samples come from, as far as the collector tells. Of what target they are is said when their window ends.

use std::sync::Arc;

use super::{cgroup::Owner, unit};
use crate::relabel::LabelMap;

/// What is known of a set of cgroups.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CgroupFacts {
    pub(super) owner: Option<Owner>,
    pub(super) pod: Option<String>,
    /// The path in the hierarchy that has an owner, or in the first.
    pub(super) path: String,
    /// It is named by flags, or nothing is.
    pub(super) is_selected: bool,
    /// It is selected if it turns out to be a pod's that is followed.
    pub(super) may_be_selected: bool,
}

impl CgroupFacts {
    /// Whether something in it is profiled, or may come to be: a rule may still leave it out.
    pub fn is_kept(&self) -> bool {
        self.is_selected || self.may_be_selected
    }

    /// The id of the container that this is.
    pub fn container(&self) -> Option<&str> {
        match &self.owner {
            Some(Owner::Container(id)) => Some(id),
            Some(Owner::Unit(_)) | None => None,
        }
    }

    /// The name of the system's unit that this is, as systemd knows it. What a user's manager runs is not among them.
    pub fn unit(&self) -> Option<&str> {
        match &self.owner {
            Some(Owner::Unit(name)) => Some(name.as_str()).filter(|name| !name.contains('/')),
            Some(Owner::Container(_)) | None => None,
        }
    }

    /// Labels for the rules alone: what the name and the place of a unit say.
    pub(super) fn unit_meta(&self) -> LabelMap {
        match &self.owner {
            Some(Owner::Unit(name)) => unit::meta(name, &self.path),
            Some(Owner::Container(_)) | None => LabelMap::new(),
        }
    }

    /// The uid of the pod that this is in, as its cgroup has it.
    pub fn pod(&self) -> Option<&str> {
        self.pod.as_deref()
    }
}

/// Where samples come from.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub struct Origin {
    /// The command name (already text).
    pub comm: String,
    /// The process, where rules want to know it.
    pub pid: Option<u32>,
    /// Its cgroups, if they are known.
    pub cgroup: Option<Arc<CgroupFacts>>,
}
