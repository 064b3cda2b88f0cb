//! What is profiled: the whole machine, or the systemd units and cgroups that flags name; of these, a part.

use std::collections::BTreeSet;

use regex::Regex;

use super::{
    Labels,
    cgroup::{components, unescaped},
};
use crate::expression::whole;

/// A name with `*` (any text) and `?` (any character) in it.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles one.
    pub fn new(text: &str) -> Result<Self, String> {
        whole(&regex::escape(text).replace(r"\*", ".*").replace(r"\?", ".")).map(Pattern)
    }

    /// The name of a unit.
    pub fn of_unit(text: &str) -> Result<Self, String> {
        Self::new(&whole_unit_name(text))
    }

    fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// The whole name of a unit: without a suffix it is a service's, as for systemctl.
pub fn whole_unit_name(text: &str) -> String {
    const KINDS: [&str; 7] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap", "*"];
    let has_kind = KINDS.iter().any(|kind| text.ends_with(kind));
    if has_kind { text.to_owned() } else { format!("{text}.service") }
}

/// What is profiled.
#[derive(Clone, Debug)]
pub struct Selection {
    /// Cgroups by their names, at any depth below [`Selection::below`], with all that is in them. A unit is a cgroup of its name.
    pub names: Vec<Pattern>,
    /// Units that some of these names stand for, by systemd's own names of them.
    pub ids: BTreeSet<String>,
    /// Components of the cgroup that all of these are in.
    pub below: Vec<String>,
    /// Pods of which discovery knows, beside these.
    pub pods: bool,
    /// The part of targets that is profiled, from 0 to 1.
    pub ratio: f64,
}

impl Default for Selection {
    fn default() -> Self {
        Selection { names: Vec::new(), ids: BTreeSet::new(), below: Vec::new(), pods: false, ratio: 1.0 }
    }
}

impl Selection {
    /// Whether a process is profiled that is in these cgroups (paths of `/proc/PID/cgroup`).
    pub fn selects(&self, paths: &[&str]) -> bool {
        if self.names.is_empty() && self.below.is_empty() {
            return !self.pods;
        }
        paths.iter().any(|path| {
            let mut components = components(path).into_iter();
            self.below.iter().all(|below| components.next() == Some(below))
                && (self.names.is_empty() || components.any(|component| self.has(component)))
        })
    }

    fn has(&self, component: &str) -> bool {
        let name = unescaped(component);
        let is_named = self.names.iter().any(|pattern| pattern.matches(component) || pattern.matches(name));
        is_named || self.ids.contains(name)
    }

    /// Whether a target is in the part that is profiled: always the same ones, by a hash of their labels (FNV-1a of 32 bits over names and
    /// values in the order of the names), as the early agent chose them.
    pub fn samples(&self, labels: &Labels) -> bool {
        if self.ratio >= 1.0 {
            return true;
        }
        let bytes = labels.0.iter().flat_map(|(name, value)| name.bytes().chain(value.bytes()));
        let hash =
            bytes.fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        f64::from(hash) <= f64::from(u32::MAX) * self.ratio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_and_cgroups_by_name() {
        let user = "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service";
        for (units, cgroups, below, path, is_selected) in [
            (&[][..], &[][..], &[][..], "/", true),
            (&["a.service"], &[], &[], "/system.slice/a.service", true),
            (&["a"], &[], &[], "/system.slice/a.service", true),
            (&["a.service"], &[], &[], "/system.slice/aa.service", false),
            (&["a.service"], &[], &[], "/", false),
            (&["b@*.service"], &[], &[], "/system.slice/b@1.service", true),
            (&["b@*"], &[], &[], "/system.slice/b@1.service", true),
            (&["b@?"], &[], &[], "/system.slice/b@12.service", false),
            (&["a.b"], &[], &[], "/system.slice/axb.service", false),
            (&["cpu"], &[], &[], "/system.slice/_cpu.service", true),
            // A container of a unit, a unit of a user's, and all of a user's or a slice's.
            (&["docker"], &[], &[], "/system.slice/docker.service/docker/0123", true),
            (&["docker-*"], &[], &[], "/system.slice/docker-0123.scope", true),
            (&["a"], &[], &[], user, true),
            (&["user@1000"], &[], &[], user, true),
            (&["user-1000.slice"], &[], &[], user, true),
            (&["user-1001.slice"], &[], &[], user, false),
            (&["a"], &[], &["system.slice"], "/system.slice/a.service", true),
            (&["a"], &[], &["user.slice"], "/system.slice/a.service", false),
            (&["a"], &[], &["system.slice"], "/../../system.slice/a.service", true),
            (&[], &[], &["system.slice"], "/../system.slice/a.service", true),
            (&[], &[], &["user.slice"], user, true),
            (&[], &[], &["user.slice"], "/system.slice/a.service", false),
            (&[], &["work"], &[], "/batch/work/inner", true),
            (&[], &["work"], &["batch"], "/batch/work", true),
            (&[], &["batch"], &["batch"], "/batch/work", false),
            (&[], &["work"], &["batch"], "/other/work", false),
            (&["a"], &["work"], &[], "/work", true),
        ] {
            let units = units.iter().map(|text| Pattern::of_unit(text).unwrap());
            let cgroups = cgroups.iter().map(|text| Pattern::new(text).unwrap());
            let names = units.chain(cgroups).collect();
            let below = below.iter().map(|text| (*text).to_owned()).collect();
            let selection = Selection { names, below, ..Selection::default() };
            assert_eq!(selection.selects(&["/other", path]), is_selected, "{selection:?} {path}");
        }
        assert!(Selection::default().selects(&[]));
    }

    #[test]
    fn a_part_is_always_the_same_and_as_large_as_asked_for() {
        let labels = |number: usize| Labels([("comm".to_owned(), format!("program-{number}"))].into());
        let chosen = |ratio| {
            let selection = Selection { ratio, ..Selection::default() };
            (0..10_000).filter(|number| selection.samples(&labels(*number))).collect::<Vec<_>>()
        };
        let (some, more) = (chosen(0.1), chosen(0.5));
        assert!(
            (900..1100).contains(&some.len()) && (4800..5200).contains(&more.len()),
            "{} {}",
            some.len(),
            more.len()
        );
        assert!(some.iter().all(|number| more.contains(number)), "a larger part has the smaller one in it");
        assert_eq!((chosen(0.1), chosen(0.0).len(), chosen(1.0).len()), (some, 0, 10_000));
        // The hash of "foobar" in the authors' own table of FNV-1a: 0xbf9cf968.
        let foobar = Labels([("foo".to_owned(), "bar".to_owned())].into());
        let part = f64::from(0xbf9c_f968_u32) / f64::from(u32::MAX);
        assert!(Selection { ratio: part + 1e-9, ..Selection::default() }.samples(&foobar));
        assert!(!Selection { ratio: part - 1e-9, ..Selection::default() }.samples(&foobar));
    }
}
