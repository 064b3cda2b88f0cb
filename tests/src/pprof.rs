//! Profiles as tests ask about them: stacks of names, and a strict check of the format.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io::Read as _,
};

use flate2::read::GzDecoder;
use prost::Message as _;
use proto::pprof;

/// A frame.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Frame {
    /// The function's name; empty if it has none.
    pub name: String,
    /// Source file of the function.
    pub file: String,
    /// Line in it; 0 if unknown.
    pub line: i64,
    /// File name of the mapping.
    pub mapping: String,
    /// Its build id.
    pub build_id: String,
    /// Address in the mapping.
    pub address: u64,
}

/// A stack with its count.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stack {
    /// How many samples.
    pub count: i64,
    /// Innermost first; inlined functions are frames of their own.
    pub frames: Vec<Frame>,
    /// Its labels, numbers written out.
    pub labels: BTreeMap<String, String>,
}

/// A profile.
#[derive(Clone, Debug, Default)]
pub struct Profile {
    /// Its stacks.
    pub stacks: Vec<Stack>,
    /// When it began: nanoseconds since 1970.
    pub time_nanos: i64,
    /// How long it lasted.
    pub duration_nanos: i64,
    /// `type/unit` of each value.
    pub sample_types: Vec<String>,
    /// `type/unit` of the period.
    pub period_type: String,
    /// Nanoseconds from one sample to the next.
    pub period: i64,
    /// File name and build id of each mapping.
    pub mappings: Vec<(String, String)>,
    /// Its remarks, such as how complete its stacks are.
    pub comments: Vec<String>,
    /// The file it was read from.
    pub raw: Vec<u8>,
}

impl Stack {
    /// The names, innermost first.
    pub fn names(&self) -> Vec<&str> {
        self.frames.iter().map(|frame| frame.name.as_str()).collect()
    }

    /// Whether the names of `part` stand one after another somewhere in the stack.
    pub fn has_run(&self, part: &[&str]) -> bool {
        self.names().windows(part.len()).any(|names| names == part)
    }

    /// The frames in user space.
    pub fn user(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter().filter(|frame| !frame.is_kernel())
    }

    /// The stack as a line for people, outermost first.
    pub fn line(&self) -> String {
        let names: Vec<_> = self.frames.iter().rev().map(Frame::to_string).collect();
        format!("{:6} {}", self.count, names.join(";"))
    }
}

impl Frame {
    /// Whether it lies in the kernel.
    pub fn is_kernel(&self) -> bool {
        self.mapping.starts_with("[kernel")
    }
}

impl std::fmt::Display for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.is_empty() {
            write!(f, "{}+{:#x}", self.mapping, self.address)
        } else {
            f.write_str(&self.name)
        }
    }
}

impl Profile {
    /// Reads a `profile.pb.gz`. What the format does not allow is an error.
    pub fn read(raw: &[u8]) -> Result<Self, String> {
        let mut bytes = Vec::new();
        GzDecoder::new(raw).read_to_end(&mut bytes).map_err(|error| format!("not gzip: {error}"))?;
        let profile = pprof::Profile::decode(&*bytes).map_err(|error| format!("not a profile: {error}"))?;
        Self::from_message(&profile, raw)
    }

    fn from_message(profile: &pprof::Profile, raw: &[u8]) -> Result<Self, String> {
        let string = |index: i64| {
            usize::try_from(index)
                .ok()
                .and_then(|index| profile.string_table.get(index))
                .cloned()
                .ok_or_else(|| format!("string {index} is not in the table"))
        };
        if profile.string_table.first().is_none_or(|first| !first.is_empty()) {
            return Err("the first string is not empty".into());
        }
        let kind = |value: &pprof::ValueType| {
            Ok::<_, String>(format!("{}/{}", string(value.r#type)?, string(value.unit)?))
        };
        let functions = by_id("function", profile.function.iter().map(|function| (function.id, function)))?;
        let mappings = by_id("mapping", profile.mapping.iter().map(|mapping| (mapping.id, mapping)))?;
        let locations = by_id("location", profile.location.iter().map(|location| (location.id, location)))?;

        let mut frames: HashMap<u64, Vec<Frame>> = HashMap::new();
        for (id, location) in &locations {
            let (mapping, build_id) = match mappings.get(&location.mapping_id) {
                Some(mapping) => {
                    let range = mapping.memory_start..mapping.memory_limit;
                    if !range.is_empty() && !range.contains(&location.address) {
                        return Err(format!("{:#x} is outside its mapping {range:x?}", location.address));
                    }
                    (string(mapping.filename)?, string(mapping.build_id)?)
                }
                None if location.mapping_id == 0 => Default::default(),
                None => return Err(format!("location {id} names mapping {}", location.mapping_id)),
            };
            let frame = |name, file, line| Frame {
                name,
                file,
                line,
                mapping: mapping.clone(),
                build_id: build_id.clone(),
                address: location.address,
            };
            let mut lines = Vec::new();
            for line in &location.line {
                let function = functions
                    .get(&line.function_id)
                    .ok_or_else(|| format!("location {id} names function {}", line.function_id))?;
                lines.push(frame(string(function.name)?, string(function.filename)?, line.line));
            }
            if lines.is_empty() {
                lines.push(frame(String::new(), String::new(), 0));
            }
            frames.insert(*id, lines);
        }

        let mut seen = HashSet::new();
        let mut stacks = Vec::new();
        for sample in &profile.sample {
            if sample.value.len() != profile.sample_type.len() {
                return Err("a sample has another number of values than there are types".into());
            }
            let mut labels = BTreeMap::new();
            for label in &sample.label {
                let value = if label.str == 0 { label.num.to_string() } else { string(label.str)? };
                labels.insert(string(label.key)?, value);
            }
            if !seen.insert((sample.location_id.clone(), labels.clone())) {
                return Err(format!("equal stacks are not merged: {:?}", sample.location_id));
            }
            let mut stack = Vec::new();
            for id in &sample.location_id {
                stack.extend(
                    frames.get(id).ok_or_else(|| format!("a sample names location {id}"))?.iter().cloned(),
                );
            }
            stacks.push(Stack { count: sample.value[0], frames: stack, labels });
        }
        Ok(Profile {
            stacks,
            time_nanos: profile.time_nanos,
            duration_nanos: profile.duration_nanos,
            sample_types: profile.sample_type.iter().map(kind).collect::<Result<_, _>>()?,
            period_type: profile.period_type.as_ref().map(kind).transpose()?.unwrap_or_default(),
            period: profile.period,
            mappings: profile
                .mapping
                .iter()
                .map(|mapping| Ok((string(mapping.filename)?, string(mapping.build_id)?)))
                .collect::<Result<_, String>>()?,
            comments: profile.comment.iter().map(|comment| string(*comment)).collect::<Result<_, _>>()?,
            raw: raw.to_vec(),
        })
    }

    /// All samples.
    pub fn total(&self) -> i64 {
        self.stacks.iter().map(|stack| stack.count).sum()
    }

    /// Samples of stacks for which `holds`.
    pub fn count(&self, holds: impl Fn(&Stack) -> bool) -> i64 {
        self.stacks.iter().filter(|stack| holds(stack)).map(|stack| stack.count).sum()
    }

    /// Of how many user stacks it says that they are complete, and of how many in all: its comments are those of every window
    /// and target that it was gathered from.
    pub fn said_complete(&self) -> (i64, i64) {
        let said = self.comments.iter().filter_map(|comment| {
            let (complete, rest) = comment.split_once(" of ")?;
            let (all, _) = rest.split_once(" user stacks are complete")?;
            Some((complete.parse::<i64>().ok()?, all.parse::<i64>().ok()?))
        });
        said.fold((0, 0), |sum, said| (sum.0 + said.0, sum.1 + said.1))
    }

    /// Adds the stacks of a later profile.
    pub fn append(&mut self, later: Profile) {
        self.stacks.extend(later.stacks);
        self.comments.extend(later.comments);
        self.mappings.extend(later.mappings);
        self.duration_nanos += later.duration_nanos;
    }

    /// The stacks as text, the most frequent first: what a failed test shows.
    pub fn dump(&self) -> String {
        let mut stacks: Vec<_> = self.stacks.iter().collect();
        stacks.sort_by_key(|stack| -stack.count);
        let lines: Vec<_> = stacks.iter().take(40).map(|stack| stack.line()).collect();
        format!("{} samples in {} stacks:\n{}", self.total(), self.stacks.len(), lines.join("\n"))
    }
}

fn by_id<'a, T>(
    what: &str,
    items: impl Iterator<Item = (u64, &'a T)>,
) -> Result<HashMap<u64, &'a T>, String> {
    let mut map = HashMap::new();
    for (id, item) in items {
        if id == 0 || map.insert(id, item).is_some() {
            return Err(format!("{what} {id}: ids are not zero and not twice"));
        }
    }
    Ok(map)
}
