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
        if let Some(line) = location.line.iter().find(|line| element(&profile.function, line.function_id).is_none()) {
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
