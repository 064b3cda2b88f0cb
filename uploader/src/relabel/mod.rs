//! Relabelling as Prometheus has it (`relabel_config` in its documentation, "Configuration"): rules that change the labels of a target one
//! after the other, or say that it is none.

mod rule;

use std::collections::BTreeMap;

use md5::{Digest as _, Md5};

use rule::{Action, Rule};
pub use rule::{RuleError, RuleText};

/// Most labels that a target may come to have.
const MAX_LABELS: usize = 2048;
/// Longest value that a rule may make, in bytes.
const MAX_VALUE: usize = 4096;

/// The labels that rules see and change.
pub type LabelMap = BTreeMap<String, String>;

/// Rules, in their order.
#[derive(Clone, Default, Debug)]
pub struct Rules(Vec<Rule>);

impl Rules {
    /// Compiles the rules of a file. The error says which rule is wrong, from 1.
    pub fn compile(texts: Vec<RuleText>) -> Result<Self, (usize, RuleError)> {
        let rules = texts
            .into_iter()
            .enumerate()
            .map(|(index, text)| Rule::compile(text).map_err(|error| (index + 1, error)));
        rules.collect::<Result<_, _>>().map(Rules)
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a rule looks at the label of this name, so that its value may make a difference.
    pub fn look_at(&self, name: &str) -> bool {
        self.0.iter().any(|rule| {
            let by_name = matches!(rule.action, Action::LabelMap { .. }) && rule.regex.is_match(name);
            by_name || rule.source_labels.iter().any(|label| label == name)
                || matches!(&rule.action, Action::KeepEqual(label) | Action::DropEqual(label) if label == name)
        })
    }

    /// What becomes of labels, or the rule (from 1) by which they are of no target: it says so, or has left none. `seen` is told what each
    /// rule has made of them.
    pub fn apply(
        &self,
        mut labels: LabelMap,
        mut seen: impl FnMut(usize, &LabelMap),
    ) -> Result<LabelMap, usize> {
        for (index, rule) in self.0.iter().enumerate() {
            if !rule.apply(&mut labels) {
                return Err(index + 1);
            }
            // A label without a value is none.
            labels.retain(|_, value| !value.is_empty());
            seen(index + 1, &labels);
        }
        // Those that were there for the rules alone.
        labels.retain(|name, _| !name.starts_with("__"));
        if labels.is_empty() { Err(self.0.len()) } else { Ok(labels) }
    }

    /// The action of a rule (from 1), as its text names it.
    pub fn action(&self, rule: usize) -> &'static str {
        rule.checked_sub(1).and_then(|index| self.0.get(index)).map_or("", |rule| rule.action.name())
    }
}

impl Rule {
    /// Changes labels; `false`: they are of no target.
    fn apply(&self, labels: &mut LabelMap) -> bool {
        let source = || {
            let values = self.source_labels.iter().map(|name| labels.get(name).map_or("", String::as_str));
            values.collect::<Vec<_>>().join(&self.separator)
        };
        match &self.action {
            Action::Keep => return self.regex.is_match(&source()),
            Action::Drop => return !self.regex.is_match(&source()),
            Action::KeepEqual(target) => return labels.get(target).map_or("", String::as_str) == source(),
            Action::DropEqual(target) => return labels.get(target).map_or("", String::as_str) != source(),
            Action::Replace { target, replacement } => {
                let source = source();
                if let Some(groups) = self.regex.captures(&source) {
                    let (mut name, mut value) = (String::new(), String::new());
                    groups.expand(target, &mut name);
                    groups.expand(replacement, &mut value);
                    if rule::is_label_name(&name) {
                        set(labels, name, value);
                    }
                }
            }
            Action::Lowercase(target) => {
                let value = source().to_lowercase();
                set(labels, target.clone(), value);
            }
            Action::Uppercase(target) => {
                let value = source().to_uppercase();
                set(labels, target.clone(), value);
            }
            Action::HashMod { target, modulus } => {
                // As Prometheus hashes: the last eight bytes of the MD5 sum.
                let sum = Md5::digest(source());
                let last = sum[8..].iter().fold(0, |number: u64, byte| number << 8 | u64::from(*byte));
                set(labels, target.clone(), (last % modulus).to_string());
            }
            Action::LabelMap { replacement } => {
                let mut mapped = Vec::new();
                for (name, value) in labels.iter() {
                    if let Some(groups) = self.regex.captures(name) {
                        let mut to = String::new();
                        groups.expand(replacement, &mut to);
                        mapped.push((to, value.clone()));
                    }
                }
                for (name, value) in mapped.into_iter().filter(|(name, _)| rule::is_label_name(name)) {
                    set(labels, name, value);
                }
            }
            Action::LabelDrop => labels.retain(|name, _| !self.regex.is_match(name)),
            Action::LabelKeep => labels.retain(|name, _| self.regex.is_match(name)),
        }
        true
    }
}

fn set(labels: &mut LabelMap, name: String, mut value: String) {
    if labels.len() >= MAX_LABELS && !labels.contains_key(&name) {
        return;
    }
    let end = value.floor_char_boundary(MAX_VALUE);
    value.truncate(end);
    labels.insert(name, value);
}

#[cfg(test)]
mod tests;
