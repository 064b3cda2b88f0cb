//! Each action, as Prometheus describes it, and what a file may not say.

use super::*;

fn labels(pairs: &[(&str, &str)]) -> LabelMap {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn rules(yaml: &str) -> Result<Rules, String> {
    crate::config::parse(yaml).map(|config| config.rules).map_err(|error| error.to_string())
}

/// What becomes of the labels `a=foo, b=bar, c=baz`, after rules in YAML.
fn of(yaml: &str) -> Option<LabelMap> {
    let rules = rules(&format!("relabel_configs:\n{yaml}")).unwrap_or_else(|error| panic!("{yaml}: {error}"));
    rules.apply(labels(&[("a", "foo"), ("b", "bar"), ("c", "baz")]), |_, _| {}).ok()
}

/// Those labels, with these changed; without those that are empty here.
fn with(pairs: &[(&str, &str)]) -> LabelMap {
    let mut all = labels(&[("a", "foo"), ("b", "bar"), ("c", "baz")]);
    all.extend(labels(pairs));
    all.retain(|_, value| !value.is_empty());
    all
}

#[test]
fn each_action_does_what_prometheus_does() {
    for (yaml, expected) in [
        (
            "- {source_labels: [a], regex: f(.*), target_label: d, replacement: 'ch${1}-ch$1'}",
            Some(with(&[("d", "choo-choo")])),
        ),
        (
            "- {source_labels: [a, b], regex: f(.*);(.*)r, target_label: a, replacement: 'b${1}${2}m'}",
            Some(with(&[("a", "boobam")])),
        ),
        (
            "- {source_labels: [a, b], separator: '', regex: foobar, target_label: d, replacement: x}",
            Some(with(&[("d", "x")])),
        ),
        // No match, no change; and the whole text must match.
        ("- {source_labels: [a], regex: oo, target_label: a, replacement: x}", Some(with(&[]))),
        // Nothing is put in the place of a label: it is gone.
        ("- {source_labels: [a], regex: foo, target_label: a, replacement: ''}", Some(with(&[("a", "")]))),
        ("- {source_labels: [a], target_label: '${1}_x', replacement: y}", Some(with(&[("foo_x", "y")]))),
        // Names that are none are passed over.
        ("- {source_labels: [a], regex: (f)oo, target_label: '0$1', replacement: y}", Some(with(&[]))),
        ("- {target_label: d, replacement: fixed}", Some(with(&[("d", "fixed")]))),
        ("- {source_labels: [a], regex: foo, action: keep}", Some(with(&[]))),
        ("- {source_labels: [a], regex: bar, action: keep}", None),
        ("- {source_labels: [none], regex: '', action: keep}", Some(with(&[]))),
        ("- {source_labels: [a], regex: .*o.*, action: drop}", None),
        ("- {source_labels: [a], regex: f, action: drop}", Some(with(&[]))),
        ("- {source_labels: [a], target_label: b, action: keepequal}", None),
        ("- {source_labels: [a], target_label: a, action: keepequal}", Some(with(&[]))),
        ("- {source_labels: [a], target_label: a, action: dropequal}", None),
        ("- {source_labels: [a], target_label: b, action: dropequal}", Some(with(&[]))),
        (
            "- {regex: '(b|c)', replacement: 'bar_$1', action: labelmap}",
            Some(with(&[("bar_b", "bar"), ("bar_c", "baz")])),
        ),
        ("- {regex: '(b|c)', action: labeldrop}", Some(with(&[("b", ""), ("c", "")]))),
        ("- {regex: '(b|c)', action: labelkeep}", Some(with(&[("a", "")]))),
        ("- {source_labels: [a, b], target_label: a, action: uppercase}", Some(with(&[("a", "FOO;BAR")]))),
        ("- {source_labels: [a], target_label: a, action: Lowercase}", Some(with(&[]))),
        // Nothing is left of it.
        ("- {regex: none, action: labelkeep}", None),
        // Labels for rules alone go in the end.
        (
            "- {target_label: __tmp, replacement: x}\n- {source_labels: [__tmp], target_label: d}",
            Some(with(&[("d", "x")])),
        ),
        ("", Some(with(&[]))),
    ] {
        assert_eq!(of(yaml), expected, "{yaml}");
    }
}

/// The numbers are those of `md5sum`: the last eight bytes of the sum of `foo;bar;baz` modulo 1000.
#[test]
fn shares_are_those_of_prometheus() {
    let output =
        std::process::Command::new("sh").args(["-c", "printf 'foo;bar;baz' | md5sum"]).output().unwrap();
    let sum = String::from_utf8(output.stdout).unwrap();
    let last = u64::from_str_radix(&sum[16..32], 16).unwrap() % 1000;
    let yaml = "- {source_labels: [a, b, c], target_label: d, action: hashmod, modulus: 1000}";
    assert_eq!(of(yaml), Some(with(&[("d", &last.to_string())])));
}

#[test]
fn what_is_wrong_is_said() {
    for (yaml, words) in [
        ("- {action: explode}", "no action `explode`"),
        ("- {source_labels: [a], regex: '(', target_label: d}", "no regular expression"),
        ("- {source_labels: ['0a'], target_label: d}", "`0a` is no name"),
        ("- {source_labels: [a], target_label: 'a-b'}", "`a-b` is no name"),
        ("- {source_labels: [a]}", "replace needs target_label"),
        ("- {source_labels: [a], target_label: d, action: hashmod}", "hashmod needs modulus"),
        ("- {source_labels: [a], action: labeldrop}", "labeldrop has no use for source_labels"),
        (
            "- {source_labels: [a], target_label: b, regex: x, action: keepequal}",
            "keepequal has no use for regex",
        ),
        ("- {source_label: [a]}", "source_label"),
    ] {
        let error = rules(&format!("relabel_configs:\n{yaml}")).unwrap_err();
        assert!(error.contains(words), "{yaml}: {error}");
    }
    let error = rules("relabel_configs:\n- {target_label: a, replacement: x}\n- {action: x}").unwrap_err();
    assert!(error.contains("rule 2"), "{error}");
}

#[test]
fn labels_cannot_grow_without_end() {
    let doubling = "- {source_labels: [a, a], separator: '', target_label: a}\n".repeat(100);
    let a = of(&doubling).unwrap().remove("a").unwrap();
    assert_eq!(a.len(), MAX_VALUE);
    let doubling = "- {regex: '(.*)', replacement: '${1}_', action: labelmap}\n".repeat(100);
    assert!(of(&doubling).unwrap().len() <= MAX_LABELS);
}
