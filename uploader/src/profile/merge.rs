//! Several profiles as one: what `/query` answers when several targets match.

use std::{collections::HashMap, io::Read};

use flate2::read::GzDecoder;
use prost::Message;
use proto::pprof::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};
use thiserror::Error;

use super::pprof::Strings;

/// Largest profile that is decoded, in bytes, unpacked. Ours are bounded by what a window holds.
const MAX_PROFILE: u64 = 256 << 20;

/// Why profiles could not be merged.
#[derive(Debug, Error)]
pub enum MergeError {
    /// The bytes are no gzip, or too many.
    #[error("cannot unpack a profile: {0}")]
    Unpack(#[from] std::io::Error),
    /// The bytes are no profile.
    #[error("cannot decode a profile: {0}")]
    Decode(#[from] prost::DecodeError),
    /// Ids or string indices that lead nowhere.
    #[error("a profile names a {0} that it does not have")]
    Dangling(&'static str),
}

/// A profile from its gzipped bytes.
pub fn decode(bytes: &[u8]) -> Result<Profile, MergeError> {
    let mut plain = Vec::new();
    GzDecoder::new(bytes).take(MAX_PROFILE).read_to_end(&mut plain)?;
    Ok(Profile::decode(plain.as_slice())?)
}

/// One profile of all samples. Equal mappings, functions, locations and samples become one. It begins with the
/// earliest and lasts as long as the longest: the profiles are of the same span of time. Their types must be the same,
/// which ours are.
pub fn merge(profiles: &[Profile]) -> Result<Profile, MergeError> {
    let mut merger = Merger::default();
    for profile in profiles {
        merger.add(profile)?;
    }
    let mut whole = merger.merged;
    let mut samples: Vec<_> = merger
        .samples
        .into_iter()
        .map(|((location_id, labels), value)| Sample {
            location_id,
            value,
            label: labels
                .into_iter()
                .map(|(key, str, num, num_unit)| Label { key, str, num, num_unit })
                .collect(),
        })
        .collect();
    // An order that depends on the profiles alone.
    samples.sort_by_cached_key(|sample| {
        let labels = sample.label.iter().map(|label| (label.key, label.str, label.num)).collect::<Vec<_>>();
        (sample.location_id.clone(), labels)
    });
    whole.sample = samples;
    whole.string_table = merger.strings.table;
    Ok(whole)
}

/// A label: key, string, number, unit.
type LabelKey = (i64, i64, i64, i64);
/// A mapping without its id, as numbers: bounds, offset, name, build id.
type MappingKey = (u64, u64, u64, i64, i64);

/// A location without its id: mapping, address, and its lines (function, line, column).
type LocationKey = (u64, u64, Vec<(u64, i64, i64)>);

#[derive(Default)]
struct Merger {
    merged: Profile,
    strings: Strings,
    mappings: HashMap<MappingKey, u64>,
    functions: HashMap<(i64, i64, i64, i64), u64>,
    locations: HashMap<LocationKey, u64>,
    samples: HashMap<(Vec<u64>, Vec<LabelKey>), Vec<i64>>,
}

impl Merger {
    fn add(&mut self, profile: &Profile) -> Result<(), MergeError> {
        if self.merged.sample_type.is_empty() {
            for kind in &profile.sample_type {
                let kind = self.value_type(profile, kind)?;
                self.merged.sample_type.push(kind);
            }
            if let Some(kind) = &profile.period_type {
                self.merged.period_type = Some(self.value_type(profile, kind)?);
            }
            self.merged.period = profile.period;
            self.merged.time_nanos = profile.time_nanos;
        }
        self.merged.time_nanos = self.merged.time_nanos.min(profile.time_nanos);
        self.merged.duration_nanos = self.merged.duration_nanos.max(profile.duration_nanos);
        for comment in &profile.comment {
            let comment = self.string(profile, *comment)?;
            if !self.merged.comment.contains(&comment) {
                self.merged.comment.push(comment);
            }
        }

        // From the profile's ids to those of the merged one. Parca's order (1, 2, 3, ...) is not taken for granted.
        let mut mappings = HashMap::from([(0, 0)]);
        for mapping in &profile.mapping {
            let filename = self.string(profile, mapping.filename)?;
            let build_id = self.string(profile, mapping.build_id)?;
            mappings.insert(mapping.id, self.mapping(mapping, filename, build_id));
        }
        let mut functions = HashMap::new();
        for function in &profile.function {
            functions.insert(function.id, self.function(profile, function)?);
        }
        let mut locations = HashMap::new();
        for location in &profile.location {
            locations.insert(location.id, self.location(location, &mappings, &functions)?);
        }
        for sample in &profile.sample {
            self.sample(profile, sample, &locations)?;
        }
        Ok(())
    }

    fn string(&mut self, profile: &Profile, index: i64) -> Result<i64, MergeError> {
        let text = usize::try_from(index).ok().and_then(|index| profile.string_table.get(index));
        text.map(|text| self.strings.index(text)).ok_or(MergeError::Dangling("string"))
    }

    fn value_type(&mut self, profile: &Profile, kind: &ValueType) -> Result<ValueType, MergeError> {
        Ok(ValueType { r#type: self.string(profile, kind.r#type)?, unit: self.string(profile, kind.unit)? })
    }

    fn mapping(&mut self, mapping: &Mapping, filename: i64, build_id: i64) -> u64 {
        // The bounds of the kernel and of anonymous code are those of the addresses that were seen: they are widened.
        let widens = build_id == 0;
        let bounds = if widens {
            (0, 0, 0)
        } else {
            (mapping.memory_start, mapping.memory_limit, mapping.file_offset)
        };
        let merged = &mut self.merged.mapping;
        let id =
            *self.mappings.entry((bounds.0, bounds.1, bounds.2, filename, build_id)).or_insert_with(|| {
                let id = merged.len() as u64 + 1;
                merged.push(Mapping { id, filename, build_id, ..*mapping });
                id
            });
        let merged = &mut merged[usize::try_from(id - 1).unwrap_or_default()];
        if widens {
            merged.memory_start = merged.memory_start.min(mapping.memory_start);
            merged.memory_limit = merged.memory_limit.max(mapping.memory_limit);
        }
        merged.has_functions |= mapping.has_functions;
        merged.has_filenames |= mapping.has_filenames;
        merged.has_line_numbers |= mapping.has_line_numbers;
        merged.has_inline_frames |= mapping.has_inline_frames;
        id
    }

    fn function(&mut self, profile: &Profile, function: &Function) -> Result<u64, MergeError> {
        let name = self.string(profile, function.name)?;
        let system_name = self.string(profile, function.system_name)?;
        let filename = self.string(profile, function.filename)?;
        let merged = &mut self.merged.function;
        Ok(*self.functions.entry((name, system_name, filename, function.start_line)).or_insert_with(|| {
            let id = merged.len() as u64 + 1;
            merged.push(Function { id, name, system_name, filename, start_line: function.start_line });
            id
        }))
    }

    fn location(
        &mut self,
        location: &Location,
        mappings: &HashMap<u64, u64>,
        functions: &HashMap<u64, u64>,
    ) -> Result<u64, MergeError> {
        let mapping_id = *mappings.get(&location.mapping_id).ok_or(MergeError::Dangling("mapping"))?;
        let lines = location.line.iter().map(|line| {
            let function = functions.get(&line.function_id).ok_or(MergeError::Dangling("function"))?;
            Ok((*function, line.line, line.column))
        });
        let lines: Vec<_> = lines.collect::<Result<_, MergeError>>()?;
        let merged = &mut self.merged.location;
        Ok(*self.locations.entry((mapping_id, location.address, lines.clone())).or_insert_with(|| {
            let id = merged.len() as u64 + 1;
            let line =
                lines.into_iter().map(|(function_id, line, column)| Line { function_id, line, column });
            let line = line.collect();
            merged.push(Location { id, mapping_id, line, ..*location });
            id
        }))
    }

    fn sample(
        &mut self,
        profile: &Profile,
        sample: &Sample,
        locations: &HashMap<u64, u64>,
    ) -> Result<(), MergeError> {
        let stack = sample.location_id.iter().map(|id| locations.get(id).copied());
        let stack = stack.collect::<Option<Vec<_>>>().ok_or(MergeError::Dangling("location"))?;
        let mut labels = Vec::new();
        for label in &sample.label {
            let (key, text) = (self.string(profile, label.key)?, self.string(profile, label.str)?);
            labels.push((key, text, label.num, self.string(profile, label.num_unit)?));
        }
        let values = self.samples.entry((stack, labels)).or_insert_with(|| vec![0; sample.value.len()]);
        for (sum, value) in values.iter_mut().zip(&sample.value) {
            *sum = sum.saturating_add(*value);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::check::check;

    /// A profile of stacks of functions in `/bin/NAME` with two labels.
    fn profile(binary: &str, stacks: &[(&[&str], i64)]) -> Profile {
        let mut strings = Strings::default();
        let mut profile = Profile {
            sample_type: vec![ValueType { r#type: strings.index("samples"), unit: strings.index("count") }],
            period_type: Some(ValueType { r#type: strings.index("cpu"), unit: strings.index("nanoseconds") }),
            period: 5,
            time_nanos: 100,
            duration_nanos: 10,
            ..Profile::default()
        };
        let filename = strings.index(binary);
        let build_id = strings.index(&format!("id of {binary}"));
        profile.mapping.push(Mapping { id: 1, memory_limit: 1000, filename, build_id, ..Mapping::default() });
        for (names, count) in stacks {
            let mut location_id = Vec::new();
            for name in *names {
                let name = strings.index(name);
                let known = profile.function.iter().find(|function| function.name == name);
                let id = known.map_or(profile.function.len() as u64 + 1, |function| function.id);
                if known.is_none() {
                    profile.function.push(Function { id, name, system_name: name, ..Function::default() });
                    let line = vec![Line { function_id: id, ..Line::default() }];
                    let address = u64::try_from(name).unwrap();
                    profile.location.push(Location { id, mapping_id: 1, address, line, is_folded: false });
                }
                location_id.push(id);
            }
            let (key, str) = (strings.index("thread_name"), strings.index("t"));
            let label = vec![Label { key, str, ..Label::default() }];
            profile.sample.push(Sample { location_id, value: vec![*count], label });
        }
        profile.string_table = strings.table;
        check(&profile).unwrap();
        profile
    }

    fn total(profile: &Profile) -> i64 {
        profile.sample.iter().map(|sample| sample.value[0]).sum()
    }

    #[test]
    fn a_profile_merged_with_itself_counts_twice_and_is_no_larger() {
        let one = profile("/bin/a", &[(&["f", "main"], 3), (&["g", "main"], 4)]);
        let merged = merge(&[one.clone(), one.clone()]).unwrap();
        check(&merged).unwrap();
        assert_eq!(merged.sample.len(), 2);
        assert_eq!(total(&merged), 14);
        assert_eq!((merged.location.len(), merged.function.len(), merged.mapping.len()), (3, 3, 1));
        assert_eq!((merged.time_nanos, merged.duration_nanos, merged.period), (100, 10, 5));
        assert_eq!(total(&merge(&[one]).unwrap()), 7);
    }

    #[test]
    fn different_binaries_stay_different() {
        let (a, b) = (profile("/bin/a", &[(&["f", "main"], 3)]), profile("/bin/b", &[(&["f", "main"], 4)]));
        let merged = merge(&[a, b]).unwrap();
        check(&merged).unwrap();
        assert_eq!((merged.mapping.len(), merged.location.len(), merged.sample.len()), (2, 4, 2));
        assert_eq!(merged.function.len(), 2, "a function is a name and a file");
    }

    #[test]
    fn the_order_of_profiles_does_not_matter_for_the_totals() {
        let (mut a, b) =
            (profile("/bin/a", &[(&["x", "f"], 1)]), profile("/bin/a", &[(&["g", "y", "f"], 2)]));
        a.time_nanos = 50;
        a.duration_nanos = 60;
        let (ab, ba) = (merge(&[a.clone(), b.clone()]).unwrap(), merge(&[b, a]).unwrap());
        check(&ab).unwrap();
        check(&ba).unwrap();
        assert_eq!((total(&ab), ab.time_nanos, ab.duration_nanos), (3, 50, 60));
        assert_eq!((total(&ba), ba.time_nanos, ba.duration_nanos), (3, 50, 60));
    }

    #[test]
    fn mappings_without_bounds_of_their_own_are_widened() {
        let with = |start, limit| {
            let mut profile = profile("[anonymous]", &[(&["f"], 1)]);
            profile.mapping[0].build_id = 0;
            profile.mapping[0].memory_start = start;
            profile.mapping[0].memory_limit = limit;
            profile.location[0].address = start;
            profile
        };
        let merged = merge(&[with(1000, 2000), with(5000, 6000)]).unwrap();
        check(&merged).unwrap();
        assert_eq!(merged.mapping.len(), 1);
        assert_eq!((merged.mapping[0].memory_start, merged.mapping[0].memory_limit), (1000, 6000));
        assert_eq!(merged.location.len(), 2);
    }

    #[test]
    fn broken_profiles_are_refused() {
        let good = profile("/bin/a", &[(&["f"], 1)]);
        let broken = |change: fn(&mut Profile)| {
            let mut profile = good.clone();
            change(&mut profile);
            merge(&[profile])
        };
        assert!(matches!(broken(|p| p.sample[0].location_id[0] = 9), Err(MergeError::Dangling("location"))));
        assert!(matches!(broken(|p| p.location[0].mapping_id = 9), Err(MergeError::Dangling("mapping"))));
        assert!(matches!(
            broken(|p| p.location[0].line[0].function_id = 9),
            Err(MergeError::Dangling("function"))
        ));
        assert!(matches!(broken(|p| p.function[0].name = -1), Err(MergeError::Dangling("string"))));
        assert!(matches!(decode(b"no gzip"), Err(MergeError::Unpack(_))));
    }
}
