//! The numbers of a profile must come out of the columns as they went in.

use proto::pprof::{Function, Line, Location, Mapping, Profile, Sample, ValueType};
use serde_json::Value;

use super::*;

/// A profile of stacks (outermost first; `a+b` is b inlined into a) and their values.
fn profile(stacks: &[(&[&str], i64)]) -> Profile {
    let mut profile = Profile {
        string_table: ["", "samples", "count", "cpu", "nanoseconds", "/bin/p", "p.c", "all of it"]
            .map(String::from)
            .to_vec(),
        sample_type: vec![ValueType { r#type: 1, unit: 2 }],
        period_type: Some(ValueType { r#type: 3, unit: 4 }),
        period: 10_000_000,
        time_nanos: 1_764_045_310_000_000_000,
        duration_nanos: 10_000_000_000,
        comment: vec![7],
        mapping: vec![Mapping { id: 1, filename: 5, ..Mapping::default() }],
        ..Profile::default()
    };
    let mut locations = std::collections::HashMap::new();
    let mut functions = std::collections::HashMap::new();
    for (stack, value) in stacks {
        let mut sample = Sample { value: vec![*value], ..Sample::default() };
        for frame in stack.iter().rev() {
            let next = locations.len() as u64 + 1;
            let id = *locations.entry(*frame).or_insert_with(|| {
                let mut location =
                    Location { id: next, mapping_id: 1, address: 0x1000 + next, ..Location::default() };
                for name in frame.rsplit('+') {
                    let (name, line) = name.split_once(':').unwrap_or((name, "7"));
                    let next = functions.len() as u64 + 1;
                    let function_id = *functions.entry(name.to_owned()).or_insert_with(|| {
                        profile.string_table.push(name.into());
                        let name = i64::try_from(profile.string_table.len()).unwrap() - 1;
                        profile.function.push(Function {
                            id: next,
                            name,
                            filename: 6,
                            ..Function::default()
                        });
                        next
                    });
                    location.line.push(Line { function_id, line: line.parse().unwrap(), column: 0 });
                }
                profile.location.push(location);
                next
            });
            sample.location_id.push(id);
        }
        profile.sample.push(sample);
    }
    profile
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn parse(json: &[u8]) -> Value {
    serde_json::from_slice(json).unwrap()
}

/// The tree as lines: a blank for each step down, the name, what it took itself.
fn draw(json: &Value) -> Vec<String> {
    let nodes = &json["nodes"];
    let depth = nodes["depth"].as_array().unwrap();
    (0..depth.len())
        .map(|node| {
            let name = &json["functions"]["name"][number(&nodes["function"][node])];
            let name = json["strings"][number(name)].as_str().unwrap();
            let indent = " ".repeat(number(&depth[node]));
            format!("{indent}{name} {}", nodes["self"][node])
        })
        .collect()
}

/// Flat and cum of a function.
fn top(json: &Value, name: &str) -> (u64, u64) {
    let strings = json["strings"].as_array().unwrap();
    let names = json["functions"]["name"].as_array().unwrap();
    let index = names
        .iter()
        .position(|index| strings[number(index)] == name)
        .unwrap_or_else(|| panic!("no function {name}"));
    let value = |column: &str| json["functions"][column][index].as_u64().unwrap();
    (value("flat"), value("cum"))
}

#[test]
fn stacks_become_a_tree_with_siblings_by_name() {
    let json = parse(&flamegraph_json(&profile(&[
        (&["main", "z"], 3),
        (&["main", "a", "b"], 2),
        (&["main"], 1),
        (&["main", "a"], 4),
        (&["other"], 5),
    ])));
    assert_eq!(draw(&json), ["all 0", " main 1", "  a 4", "   b 2", "  z 3", " other 5"]);
    assert_eq!(json["total"], 15);
    assert_eq!(json["smallest"], 1);
    assert_eq!(json["period_nanos"], 10_000_000);
    assert_eq!(json["time_ms"], 1_764_045_310_000_i64);
    assert_eq!(json["duration_ms"], 10_000);
    assert_eq!(json["notes"][0], "all of it");
    assert_eq!(top(&json, "main"), (1, 10));
    assert_eq!(top(&json, "a"), (4, 6));
}

#[test]
fn inlined_frames_are_in_order_and_recursion_counts_once() {
    let json = parse(&flamegraph_json(&profile(&[(&["main", "f+inlined+leaf"], 2), (&["r", "r", "r"], 3)])));
    assert_eq!(
        draw(&json),
        ["all 0", " main 0", "  f 0", "   inlined 0", "    leaf 2", " r 0", "  r 0", "   r 3"]
    );
    assert_eq!(top(&json, "r"), (3, 3));
    assert_eq!(top(&json, "f"), (0, 2));
}

#[test]
fn a_node_tells_its_line_if_there_is_one() {
    let json = parse(&flamegraph_json(&profile(&[
        (&["main:3", "f"], 1),
        (&["main:4", "f"], 1),
        (&["main:4", "g:9"], 1),
    ])));
    assert_eq!(draw(&json), ["all 0", " main 0", "  f 2", "  g 1"]);
    assert_eq!(json["nodes"]["line"], serde_json::json!([0, -1, 7, 9]));
}

#[test]
fn what_is_too_small_is_folded_and_totals_stay() {
    let mut stacks: Vec<(Vec<String>, i64)> =
        (0..1000).map(|i| (vec!["main".into(), format!("f{i:04}"), format!("g{i:04}")], 1)).collect();
    stacks.push((vec!["main".into(), "big".into()], 100));
    let borrowed: Vec<(Vec<&str>, i64)> =
        stacks.iter().map(|(stack, value)| (stack.iter().map(String::as_str).collect(), *value)).collect();
    let slices: Vec<(&[&str], i64)> =
        borrowed.iter().map(|(stack, value)| (stack.as_slice(), *value)).collect();
    let profile = profile(&slices);

    let whole = parse(&flamegraph_json(&profile));
    assert_eq!(draw(&whole).len(), 2003);
    let cut = parse(&json(&profile, 100, MAX_FUNCTIONS));
    assert_eq!(
        draw(&cut),
        ["all 0", " main 0", "  big 100", "  (frames too small or too deep to be drawn) 1000"]
    );
    assert_eq!(cut["smallest"], 2);
    assert_eq!(cut["total"], 1100);
    // The table has everything.
    assert_eq!(top(&cut, "g0999"), (1, 1));

    let few = parse(&json(&profile, MAX_NODES, 5));
    assert_eq!(few["functions"]["name"].as_array().unwrap().len(), 5);
    assert_eq!(few["total"], 1100);
    assert_eq!(top(&few, "main"), (0, 1100));
    assert_eq!(top(&few, "big"), (100, 100));
    assert_eq!(top(&few, "(frames too small or too deep to be drawn)").0, 999);
    let own: u64 = few["nodes"]["self"].as_array().unwrap().iter().map(|own| own.as_u64().unwrap()).sum();
    assert_eq!(own, 1100);
}

#[test]
fn deep_stacks_end_in_one_frame() {
    let deep: Vec<&str> = std::iter::repeat_n("r", 3 * MAX_DEPTH).collect();
    let json = parse(&flamegraph_json(&profile(&[(&deep, 1)])));
    let lines = draw(&json);
    assert_eq!(lines.len(), MAX_DEPTH + 1);
    assert!(lines[MAX_DEPTH].ends_with("(frames too small or too deep to be drawn) 1"));
}

#[test]
fn hostile_names_are_bounded_text() {
    let script = "</script><script>alert('x;y')</script>\n\u{1b}[31m\u{202e}";
    let long = "n".repeat(10_000);
    let json = parse(&flamegraph_json(&profile(&[(&[script, &long], 1)])));
    let lines = draw(&json);
    assert_eq!(lines[1], " </script><script>alert('x;y')</script>\\u{a}\\u{1b}[31m\\u{202e} 0");
    assert!(lines[2].len() < MAX_NAME + 20 && lines[2].contains("n…"));
}

#[test]
fn kinds_follow_the_mapping() {
    let mut profile = profile(&[(&["main"], 1)]);
    let kind = |profile: &Profile| {
        let json = parse(&flamegraph_json(profile));
        let function = number(&json["nodes"]["function"][1]);
        json["functions"]["kind"][function].as_u64().unwrap()
    };
    for (file, expected) in [
        ("/bin/p", Kind::User),
        ("[kernel.kallsyms]", Kind::Kernel),
        ("[anonymous]", Kind::Jit),
        ("[vdso]", Kind::User),
        ("/tmp/[kernel.kallsyms]", Kind::User),
    ] {
        profile.string_table[5] = file.into();
        assert_eq!(kind(&profile), expected as u64, "{file}");
    }
    profile.location[0].line.clear();
    assert_eq!(kind(&profile), Kind::Unknown as u64);
    let json = parse(&flamegraph_json(&profile));
    assert_eq!(draw(&json)[1], " [kernel.kallsyms] 0x1001 1");
}

#[test]
fn a_broken_profile_is_drawn_as_far_as_it_goes() {
    let mut broken = profile(&[(&["main", "f"], 2), (&["main"], -5)]);
    broken.sample[0].location_id.insert(0, 999);
    broken.sample.push(Sample { location_id: vec![0, u64::MAX], value: vec![i64::MAX], label: Vec::new() });
    broken.sample.push(Sample { location_id: vec![2], value: Vec::new(), label: Vec::new() });
    broken.function[0].name = 12_345;
    broken.location[1].mapping_id = 77;
    broken.comment.push(-1);
    broken.period_type = None;
    let json = parse(&flamegraph_json(&broken));
    assert_eq!(json["period_nanos"], 0);
    assert_eq!(json["total"].as_u64().unwrap(), i64::MAX as u64 + 2);
    let empty = parse(&flamegraph_json(&Profile::default()));
    assert_eq!(draw(&empty), ["all 0"]);
}
