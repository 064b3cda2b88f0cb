//! The rules for a profile that `go tool pprof` and a Parca server accept, as one strict check. Tests hold every
//! profile to it.

use std::collections::HashSet;

use proto::pprof::Profile;

/// The first rule that a profile breaks.
pub fn check(profile: &Profile) -> Result<(), String> {
    let strings = &profile.string_table;
    if strings.first().is_none_or(|first| !first.is_empty()) {
        return Err("the string table does not begin with the empty string".into());
    }
    if strings.iter().collect::<HashSet<_>>().len() != strings.len() {
        return Err("a string is there twice".into());
    }
    let string = |what: &str, index: i64| {
        let text = usize::try_from(index).ok().and_then(|index| strings.get(index));
        text.map(String::as_str).ok_or_else(|| format!("{what} names string {index}, which is not there"))
    };
    types(profile, &string)?;
    for (index, mapping) in profile.mapping.iter().enumerate() {
        let what = format!("mapping {}", mapping.id);
        in_order(&what, mapping.id, index)?;
        let name = string(&what, mapping.filename)?;
        string(&what, mapping.build_id)?;
        if mapping.memory_start >= mapping.memory_limit {
            return Err(format!("{what} ({name}) is empty"));
        }
    }
    for (index, function) in profile.function.iter().enumerate() {
        let what = format!("function {}", function.id);
        in_order(&what, function.id, index)?;
        for text in [function.name, function.system_name, function.filename] {
            string(&what, text)?;
        }
        if function.name == 0 {
            return Err(format!("{what} has no name"));
        }
    }
    for (index, location) in profile.location.iter().enumerate() {
        let what = format!("location {}", location.id);
        in_order(&what, location.id, index)?;
        let mapping = element(&profile.mapping, location.mapping_id)
            .ok_or_else(|| format!("{what} names mapping {}", location.mapping_id))?;
        if !(mapping.memory_start..mapping.memory_limit).contains(&location.address) {
            return Err(format!("{what}: address {:#x} lies outside its mapping", location.address));
        }
        if let Some(line) =
            location.line.iter().find(|line| element(&profile.function, line.function_id).is_none())
        {
            return Err(format!("{what} names function {}", line.function_id));
        }
    }
    samples(profile, &string)
}

type Strings<'a> = dyn Fn(&str, i64) -> Result<&'a str, String> + 'a;

fn types<'a>(profile: &'a Profile, string: &Strings<'a>) -> Result<(), String> {
    let named = |kind: Option<&proto::pprof::ValueType>| {
        let kind = kind.ok_or("a type is missing")?;
        Ok::<_, String>((string("a type", kind.r#type)?, string("a type", kind.unit)?))
    };
    if profile.sample_type.len() != 1 || named(profile.sample_type.first())? != ("samples", "count") {
        return Err("the sample type is not samples/count".into());
    }
    if named(profile.period_type.as_ref())? != ("cpu", "nanoseconds") || profile.period <= 0 {
        return Err("the period is no cpu time".into());
    }
    if profile.time_nanos <= 0 || profile.duration_nanos <= 0 {
        return Err("the time or the duration is missing".into());
    }
    for comment in &profile.comment {
        string("a comment", *comment)?;
    }
    Ok(())
}

fn samples<'a>(profile: &'a Profile, string: &Strings<'a>) -> Result<(), String> {
    let mut seen = HashSet::new();
    for sample in &profile.sample {
        if sample.value.len() != 1 || sample.value[0] <= 0 {
            return Err(format!("a sample has the values {:?}", sample.value));
        }
        if let Some(id) = sample.location_id.iter().find(|id| element(&profile.location, **id).is_none()) {
            return Err(format!("a sample names location {id}"));
        }
        let mut keys = HashSet::new();
        for label in &sample.label {
            let key = string("a label", label.key)?;
            string("a label", label.str)?;
            string("a label", label.num_unit)?;
            if key.is_empty() || !keys.insert(key) {
                return Err(format!("a sample has a label `{key}` without a name or twice"));
            }
        }
        let labels: Vec<_> = sample.label.iter().map(|label| (label.key, label.str, label.num)).collect();
        if !seen.insert((&sample.location_id, labels)) {
            return Err("two samples are equal: they should be one".into());
        }
    }
    Ok(())
}

fn in_order(what: &str, id: u64, index: usize) -> Result<(), String> {
    if id == index as u64 + 1 { Ok(()) } else { Err(format!("{what} stands at place {}", index + 1)) }
}

fn element<T>(list: &[T], id: u64) -> Option<&T> {
    list.get(usize::try_from(id.checked_sub(1)?).ok()?)
}

#[cfg(test)]
mod tests {
    use proto::pprof::{Function, Label, Line, Location, Mapping, Sample, ValueType};

    use super::*;

    fn good() -> Profile {
        let strings = ["", "samples", "count", "cpu", "nanoseconds", "f", "key", "value"];
        Profile {
            sample_type: vec![ValueType { r#type: 1, unit: 2 }],
            period_type: Some(ValueType { r#type: 3, unit: 4 }),
            period: 1,
            time_nanos: 1,
            duration_nanos: 1,
            string_table: strings.map(str::to_owned).to_vec(),
            mapping: vec![Mapping { id: 1, memory_limit: 10, ..Mapping::default() }],
            function: vec![Function { id: 1, name: 5, ..Function::default() }],
            location: vec![Location {
                id: 1,
                mapping_id: 1,
                address: 9,
                line: vec![Line { function_id: 1, ..Line::default() }],
                is_folded: false,
            }],
            sample: vec![Sample {
                location_id: vec![1],
                value: vec![1],
                label: vec![Label { key: 6, str: 7, ..Label::default() }],
            }],
            ..Profile::default()
        }
    }

    #[test]
    fn each_rule_is_checked() {
        type Breaks = fn(&mut Profile);
        check(&good()).unwrap();
        let rules: &[(&str, Breaks)] = &[
            ("empty string", |p| p.string_table[0] = "x".into()),
            ("twice", |p| p.string_table[7] = "key".into()),
            ("sample type", |p| p.sample_type.clear()),
            ("period", |p| p.period = 0),
            ("time", |p| p.duration_nanos = 0),
            ("mapping 2 stands", |p| p.mapping[0].id = 2),
            ("string 99", |p| p.mapping[0].filename = 99),
            ("is empty", |p| p.mapping[0].memory_limit = 0),
            ("no name", |p| p.function[0].name = 0),
            ("outside its mapping", |p| p.location[0].address = 10),
            ("names mapping 0", |p| p.location[0].mapping_id = 0),
            ("names function 2", |p| p.location[0].line[0].function_id = 2),
            ("names location 0", |p| p.sample[0].location_id[0] = 0),
            ("has the values", |p| p.sample[0].value[0] = 0),
            ("two samples are equal", |p| p.sample.push(p.sample[0].clone())),
            ("label `key`", |p| {
                let label = p.sample[0].label[0];
                p.sample[0].label.push(label);
            }),
        ];
        for (hint, breaks) in rules {
            let mut profile = good();
            breaks(&mut profile);
            let problem = check(&profile).unwrap_err();
            assert!(problem.contains(hint), "{hint}: {problem}");
        }
    }
}
