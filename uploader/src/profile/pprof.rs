//! A window's samples of one target as a pprof profile.
//!
//! - An executable is one mapping for each of its segments that was sampled, at the file's own ELF addresses, as if it
//!   were loaded with bias 0; so equal stacks of many processes are one, and `go tool pprof` finds names by itself.
//! - Kernel code lies in the mapping `[kernel.kallsyms]`, at its offset from the kernel's text base; a module's at
//!   its own offset, `2^32` further for each module. Readers take it as it is: its functions have names.
//! - An address is the one that was looked up: of a return address, the byte before (see
//!   [`Frame`](super::Frame)).

use std::{collections::HashMap, io::Write, sync::Arc};

use flate2::{Compression, write::GzEncoder};
use objects::{ElfFacts, Segment};
use prost::Message;
use proto::pprof::{Function, Label, Line, Location, Mapping, Profile, Sample, ValueType};

use super::window::{Ends, Frame, TargetSamples, Window};
use crate::{
    executables::ExecutableKey,
    symbols::{self, Lines},
    targets::Labels,
};

const PAGE: u64 = 4096;
/// Distance of kernel modules in the mapping of the kernel.
const MODULE_STRIDE: u64 = 1 << 32;

/// What a profile says of an executable.
#[derive(Clone, Debug)]
pub struct ExecutableInfo {
    /// Its path.
    pub path: Arc<str>,
    /// Its facts, if they are known.
    pub facts: Option<Arc<ElfFacts>>,
    /// Why it has no names, if so.
    pub problem: Option<Arc<str>>,
}

/// The names for a window's frames.
#[derive(Debug, Default)]
pub struct Names {
    /// Every executable that a frame names.
    pub executables: HashMap<ExecutableKey, ExecutableInfo>,
    /// Functions and lines; frames without are unnamed.
    pub lines: HashMap<Frame, Lines>,
    /// What cannot be had from the files because of the whole machine, such as hidden kernel addresses.
    pub remarks: Vec<String>,
}

/// Builds the profile of a target.
pub fn build(window: &Window, labels: &Labels, samples: &TargetSamples, names: &Names) -> Profile {
    let mut builder = Builder::new(names);
    builder.order_mappings(window, labels, samples);
    let (key_id, key_name) = (builder.strings.index("thread_id"), builder.strings.index("thread_name"));
    let mut rows: Vec<_> = samples.counts.iter().collect();
    // An order that depends on what was sampled alone.
    rows.sort_unstable();
    for ((stack, thread), count) in rows {
        let frames = window.stacks.get(stack.0 as usize).map_or(&[][..], |frames| frames);
        let location_id = frames.iter().map(|frame| builder.location(*frame)).collect();
        let mut label = Vec::new();
        if let Some(thread) = thread {
            let id = builder.strings.index(&thread.id.to_string());
            let name = builder.strings.index(&thread.name);
            label = vec![
                Label { key: key_id, str: id, ..Label::default() },
                Label { key: key_name, str: name, ..Label::default() },
            ];
        }
        let value = vec![i64::try_from(*count).unwrap_or(i64::MAX)];
        builder.profile.sample.push(Sample { location_id, value, label });
    }
    let mut strings = std::mem::take(&mut builder.strings);
    let mut value_type = |kind, unit| ValueType { r#type: strings.index(kind), unit: strings.index(unit) };
    let mut profile = builder.finish();
    profile.sample_type = vec![value_type("samples", "count")];
    profile.period_type = Some(value_type("cpu", "nanoseconds"));
    profile.period = 1_000_000_000 / i64::from(window.frequency.max(1));
    profile.time_nanos = window.time_nanos;
    profile.duration_nanos = i64::try_from(window.duration.as_nanos()).unwrap_or(i64::MAX);
    let comments = std::iter::once(completeness(&samples.ends)).chain(names.remarks.iter().cloned());
    profile.comment = comments.map(|comment| strings.index(&comment)).collect();
    profile.string_table = strings.table;
    profile
}

/// As bytes in the form that readers expect: gzip.
pub fn to_gzip(profile: &Profile) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    // Writing to memory cannot fail.
    let _ = encoder.write_all(&profile.encode_to_vec());
    encoder.finish().unwrap_or_default()
}

/// How complete the stacks are, as a sentence.
fn completeness(ends: &Ends) -> String {
    let (total, complete) = ends.complete();
    let mut text = format!("{complete} of {total} user stacks are complete to their root");
    let mut others: Vec<_> = ends.iter().filter(|(end, _)| !end.is_complete()).collect();
    others.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    for (end, count) in others {
        text += &format!("; {count}: {}", end.sentence());
    }
    if ends.unknown > 0 {
        text += &format!("; {}: for a reason that this release does not know", ends.unknown);
    }
    text
}

/// Strings by their index; the first is empty.
#[derive(Debug)]
pub(super) struct Strings {
    pub(super) table: Vec<String>,
    indices: HashMap<String, i64>,
}

impl Default for Strings {
    fn default() -> Self {
        Strings { table: vec![String::new()], indices: HashMap::from([(String::new(), 0)]) }
    }
}

impl Strings {
    pub(super) fn index(&mut self, text: &str) -> i64 {
        if let Some(index) = self.indices.get(text) {
            return *index;
        }
        let index = i64::try_from(self.table.len()).unwrap_or(i64::MAX);
        self.table.push(text.to_owned());
        self.indices.insert(text.to_owned(), index);
        index
    }
}

/// What a mapping of the profile is of.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Place {
    Kernel,
    /// A segment of an executable, by its place in the list; `None` when the facts are not known, or the offset is
    /// in no segment.
    File(ExecutableKey, Option<usize>),
    Anonymous,
    /// For frames that stand for others.
    Marker,
}

struct Builder<'a> {
    names: &'a Names,
    profile: Profile,
    strings: Strings,
    mappings: HashMap<Place, usize>,
    locations: HashMap<(Place, u64, usize), u64>,
    functions: HashMap<&'a symbols::Function, u64>,
    markers: HashMap<String, u64>,
}

impl<'a> Builder<'a> {
    fn new(names: &'a Names) -> Self {
        Builder {
            names,
            profile: Profile::default(),
            strings: Strings::default(),
            mappings: HashMap::new(),
            locations: HashMap::new(),
            functions: HashMap::new(),
            markers: HashMap::new(),
        }
    }

    /// The first mapping is the main program: pprof calls the profile by it. It is the file that is called as the
    /// process is (15 bytes of it, which is what the kernel keeps), else the one that most stacks begin in.
    fn order_mappings(&mut self, window: &Window, labels: &Labels, samples: &TargetSamples) {
        let mut roots: HashMap<(ExecutableKey, u64), u64> = HashMap::new();
        let comm = labels.get("comm");
        let mut named = None;
        for ((stack, _), count) in &samples.counts {
            for frame in window.stacks.get(stack.0 as usize).into_iter().flat_map(|frames| frames.iter()) {
                let Frame::File(key, offset) = frame else { continue };
                let path = self.names.executables.get(key).map_or("", |info| &info.path);
                let base = path.rsplit('/').next().unwrap_or_default();
                if !comm.is_empty() && (base == comm || (comm.len() >= 15 && base.starts_with(comm))) {
                    named = named.max(Some((*key, *offset)));
                }
            }
            let root = window.stacks.get(stack.0 as usize).and_then(|frames| frames.last());
            if let Some(Frame::File(key, offset)) = root {
                *roots.entry((*key, *offset)).or_default() += count;
            }
        }
        let commonest = roots.into_iter().max_by_key(|(root, count)| (*count, *root)).map(|(root, _)| root);
        if let Some((key, offset)) = named.or(commonest) {
            let (place, address) = self.place(Frame::File(key, offset));
            self.mapping(place, address);
        }
    }

    /// Where a frame lies, and its address there.
    fn place(&self, frame: Frame) -> (Place, u64) {
        match frame {
            Frame::Kernel(module, offset) => {
                (Place::Kernel, u64::from(module) * MODULE_STRIDE + offset.min(MODULE_STRIDE - 1))
            }
            Frame::Anonymous(_, address) => (Place::Anonymous, address.min(u64::MAX - PAGE)),
            Frame::UnknownKernel => (Place::Kernel, 0),
            Frame::TooManyStacks => (Place::Marker, 0),
            Frame::File(key, offset) => {
                let facts = self.names.executables.get(&key).and_then(|info| info.facts.as_deref());
                match facts.and_then(|facts| segment_of(facts, offset)) {
                    Some((index, segment)) => {
                        let delta = offset - segment.offset.0;
                        (Place::File(key, Some(index)), segment.address.0.saturating_add(delta).min(u64::MAX - PAGE))
                    }
                    None => (Place::File(key, None), offset.min(u64::MAX - PAGE)),
                }
            }
        }
    }

    /// The mapping's index in the profile.
    fn mapping(&mut self, place: Place, address: u64) -> usize {
        let index = *self.mappings.entry(place).or_insert_with(|| {
            let strings = &mut self.strings;
            let mut mapping = match place {
                Place::Kernel => Mapping { filename: strings.index("[kernel.kallsyms]"), ..Mapping::default() },
                Place::Anonymous => Mapping {
                    filename: strings.index("[anonymous]"),
                    memory_start: address / PAGE * PAGE,
                    ..Mapping::default()
                },
                Place::Marker => Mapping { filename: strings.index("[bulkhead]"), ..Mapping::default() },
                Place::File(key, segment) => file_mapping(self.names, key, segment, strings),
            };
            mapping.id = self.profile.mapping.len() as u64 + 1;
            self.profile.mapping.push(mapping);
            self.profile.mapping.len() - 1
        });
        // The bounds of what has none of its own.
        let mapping = &mut self.profile.mapping[index];
        mapping.memory_start = mapping.memory_start.min(address / PAGE * PAGE);
        mapping.memory_limit = mapping.memory_limit.max((address / PAGE + 1) * PAGE);
        index
    }

    fn location(&mut self, frame: Frame) -> u64 {
        let marker = match frame {
            Frame::UnknownKernel => Some("[kernel]"),
            Frame::TooManyStacks => Some("[too many different stacks]"),
            Frame::Anonymous(..) | Frame::File(..) | Frame::Kernel(..) => None,
        };
        let names = self.names;
        let lines: &'a [symbols::Line] = names.lines.get(&frame).map_or(&[], |lines| lines);
        let (place, address) = self.place(frame);
        let identity = lines.as_ptr() as usize * usize::from(!lines.is_empty());
        if marker.is_none()
            && let Some(id) = self.locations.get(&(place, address, identity))
        {
            return *id;
        }
        if let Some(id) = marker.and_then(|marker| self.markers.get(marker)) {
            return *id;
        }
        let mapping = self.mapping(place, address);
        let mut line: Vec<_> = lines.iter().map(|line| self.line(line)).collect();
        if let Some(marker) = marker {
            line = vec![Line { function_id: self.marker_function(marker), ..Line::default() }];
        }
        let mapping = &mut self.profile.mapping[mapping];
        mapping.has_functions |= !line.is_empty();
        mapping.has_filenames |= lines.iter().any(|line| !line.function.file.is_empty());
        mapping.has_line_numbers |= lines.iter().any(|line| line.line > 0);
        mapping.has_inline_frames |= lines.len() > 1;
        let id = self.profile.location.len() as u64 + 1;
        let location = Location { id, mapping_id: mapping.id, address, line, is_folded: false };
        self.profile.location.push(location);
        match marker {
            Some(marker) => self.markers.insert(marker.to_owned(), id),
            None => self.locations.insert((place, address, identity), id),
        };
        id
    }

    fn line(&mut self, line: &'a symbols::Line) -> Line {
        let function_id = *self.functions.entry(line.function.as_ref()).or_insert_with(|| {
            let id = self.profile.function.len() as u64 + 1;
            self.profile.function.push(Function {
                id,
                name: self.strings.index(&line.function.name),
                system_name: self.strings.index(&line.function.system_name),
                filename: self.strings.index(&line.function.file),
                start_line: 0,
            });
            id
        });
        Line { function_id, line: i64::from(line.line), column: 0 }
    }

    fn marker_function(&mut self, name: &str) -> u64 {
        let id = self.profile.function.len() as u64 + 1;
        let name = self.strings.index(name);
        self.profile.function.push(Function { id, name, system_name: name, ..Function::default() });
        id
    }

    fn finish(self) -> Profile {
        self.profile
    }
}

/// The segment that holds a byte of the file; one that is executable wins.
fn segment_of(facts: &ElfFacts, offset: u64) -> Option<(usize, &Segment)> {
    let holds = |segment: &Segment| {
        offset.checked_sub(segment.offset.0).is_some_and(|delta| delta < segment.file_size)
    };
    let segments = || facts.segments.iter().enumerate().filter(|(_, segment)| holds(segment));
    segments().find(|(_, segment)| segment.executable).or_else(|| segments().next())
}

fn file_mapping(names: &Names, key: ExecutableKey, segment: Option<usize>, strings: &mut Strings) -> Mapping {
    let Some(info) = names.executables.get(&key) else {
        return Mapping { filename: strings.index("[unknown]"), ..Mapping::default() };
    };
    let mut mapping = Mapping { filename: strings.index(&info.path), ..Mapping::default() };
    if let Some(facts) = &info.facts {
        mapping.build_id = strings.index(&facts.id.to_string());
        if let Some(segment) = segment.and_then(|segment| facts.segments.get(segment)) {
            // As the kernel maps it: from the start of its first page to the end of its last.
            let lead = segment.address.0 % PAGE;
            let end = segment.address.0.saturating_add(segment.memory_size).min(u64::MAX - PAGE);
            mapping.memory_start = segment.address.0 - lead;
            mapping.memory_limit = end.div_ceil(PAGE) * PAGE;
            mapping.file_offset = segment.offset.0.saturating_sub(lead);
        }
    } else {
        // Widened by the addresses that are seen.
        mapping.memory_start = 0;
    }
    mapping
}
