//! One rule: what its text may say, and what is made of it.

use regex::Regex;
use serde::Deserialize;
use thiserror::Error;

use crate::expression::whole;

/// A rule, as it is written. Its fields and their defaults are Prometheus's.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleText {
    #[serde(default)]
    source_labels: Vec<String>,
    #[serde(default = "semicolon")]
    separator: String,
    #[serde(default = "everything")]
    regex: String,
    #[serde(default)]
    modulus: u64,
    #[serde(default)]
    target_label: String,
    #[serde(default = "first_group")]
    replacement: String,
    #[serde(default = "replace")]
    action: String,
}

fn semicolon() -> String {
    ";".into()
}

fn everything() -> String {
    "(.*)".into()
}

fn first_group() -> String {
    "$1".into()
}

fn replace() -> String {
    "replace".into()
}

/// What is wrong about a rule.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum RuleError {
    /// No such action.
    #[error(
        "there is no action `{0}`; there are replace, keep, drop, keepequal, dropequal, hashmod, labelmap, labeldrop, labelkeep, lowercase, uppercase"
    )]
    Action(String),
    /// The expression.
    #[error("{0}")]
    Regex(String),
    /// A name that labels cannot have.
    #[error(
        "{field}: `{name}` is no name of a label: letters, digits and _, no digit first, and at most {MAX_LABEL_NAME} of them"
    )]
    Name {
        /// Which field.
        field: &'static str,
        /// What it says.
        name: String,
    },
    /// A field that the action needs.
    #[error("the action {action} needs {field}")]
    Needs {
        /// The action.
        action: &'static str,
        /// What is not there.
        field: &'static str,
    },
    /// A field that the action has no use for.
    #[error("the action {action} has no use for {field}")]
    Useless {
        /// The action.
        action: &'static str,
        /// What is there.
        field: &'static str,
    },
}

/// What a rule does, with what only this needs.
#[derive(Clone, Debug)]
pub(super) enum Action {
    Replace { target: String, replacement: String },
    Keep,
    Drop,
    KeepEqual(String),
    DropEqual(String),
    HashMod { target: String, modulus: u64 },
    LabelMap { replacement: String },
    LabelDrop,
    LabelKeep,
    Lowercase(String),
    Uppercase(String),
}

impl Action {
    /// As a rule's text names it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Action::Replace { .. } => "replace",
            Action::Keep => "keep",
            Action::Drop => "drop",
            Action::KeepEqual(_) => "keepequal",
            Action::DropEqual(_) => "dropequal",
            Action::HashMod { .. } => "hashmod",
            Action::LabelMap { .. } => "labelmap",
            Action::LabelDrop => "labeldrop",
            Action::LabelKeep => "labelkeep",
            Action::Lowercase(_) => "lowercase",
            Action::Uppercase(_) => "uppercase",
        }
    }
}

/// A rule.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    pub(super) source_labels: Vec<String>,
    pub(super) separator: String,
    pub(super) regex: Regex,
    pub(super) action: Action,
}

impl Rule {
    pub(super) fn compile(text: RuleText) -> Result<Self, RuleError> {
        let action = text.action()?;
        for name in &text.source_labels {
            check_name("source_labels", name)?;
        }
        let regex = whole(&text.regex).map_err(RuleError::Regex)?;
        Ok(Rule { source_labels: text.source_labels, separator: text.separator, regex, action })
    }
}

impl RuleText {
    fn action(&self) -> Result<Action, RuleError> {
        let is_default = self.regex == everything();
        Ok(match self.action.to_ascii_lowercase().as_str() {
            "replace" => {
                let target = self.target_label.clone();
                if self.target_label.is_empty() {
                    return Err(RuleError::Needs { action: "replace", field: "target_label" });
                }
                // With groups in it, it is looked at when these are known.
                if !target.contains('$') {
                    check_name("target_label", &target)?;
                }
                Action::Replace { target, replacement: self.replacement.clone() }
            }
            "keep" => Action::Keep,
            "drop" => Action::Drop,
            "keepequal" => {
                Self::no_regex("keepequal", is_default)?;
                Action::KeepEqual(self.target("keepequal")?)
            }
            "dropequal" => {
                Self::no_regex("dropequal", is_default)?;
                Action::DropEqual(self.target("dropequal")?)
            }
            "hashmod" => {
                if self.modulus == 0 {
                    return Err(RuleError::Needs { action: "hashmod", field: "modulus" });
                }
                Action::HashMod { target: self.target("hashmod")?, modulus: self.modulus }
            }
            "labelmap" => {
                let replacement = self.replacement.clone();
                if !replacement.contains('$') {
                    check_name("replacement", &replacement)?;
                }
                Action::LabelMap { replacement }
            }
            "labeldrop" => {
                self.labels_alone("labeldrop")?;
                Action::LabelDrop
            }
            "labelkeep" => {
                self.labels_alone("labelkeep")?;
                Action::LabelKeep
            }
            "lowercase" => Action::Lowercase(self.target("lowercase")?),
            "uppercase" => Action::Uppercase(self.target("uppercase")?),
            _ => return Err(RuleError::Action(crate::printable::printable(self.action.as_bytes()))),
        })
    }

    fn target(&self, action: &'static str) -> Result<String, RuleError> {
        if self.target_label.is_empty() {
            return Err(RuleError::Needs { action, field: "target_label" });
        }
        check_name("target_label", &self.target_label)?;
        Ok(self.target_label.clone())
    }

    fn no_regex(action: &'static str, is_default: bool) -> Result<(), RuleError> {
        if is_default { Ok(()) } else { Err(RuleError::Useless { action, field: "regex" }) }
    }

    /// These look at names, and at nothing else.
    fn labels_alone(&self, action: &'static str) -> Result<(), RuleError> {
        let fields = [
            ("source_labels", !self.source_labels.is_empty()),
            ("target_label", !self.target_label.is_empty()),
            ("modulus", self.modulus != 0),
            ("separator", self.separator != semicolon()),
            ("replacement", self.replacement != first_group()),
        ];
        match fields.into_iter().find(|(_, is_there)| *is_there) {
            Some((field, _)) => Err(RuleError::Useless { action, field }),
            None => Ok(()),
        }
    }
}

fn check_name(field: &'static str, name: &str) -> Result<(), RuleError> {
    if is_label_name(name) {
        return Ok(());
    }
    Err(RuleError::Name { field, name: crate::printable::printable(name.as_bytes()) })
}

/// Longest name of a label, in bytes: what is offered of Kubernetes is `__meta_kubernetes_pod_annotationpresent_` at most, and a key of 253
/// characters, a slash and 63.
const MAX_LABEL_NAME: usize = 512;

/// Whether labels can have this name (Prometheus's documentation, "Data model").
pub(super) fn is_label_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.len() <= MAX_LABEL_NAME
}
