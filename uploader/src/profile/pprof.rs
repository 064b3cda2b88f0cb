//! A window's samples of one target as a pprof profile.
//!
//! - An executable is one mapping for each of its segments that was sampled, at the file's own ELF addresses, as if it
//!   were loaded with bias 0; so equal stacks of many processes are one, and `go tool pprof` finds names by itself.
//! - Kernel code lies in the mapping `[kernel.kallsyms]`, at its offset from the kernel's text base; a module's at
//!   its own offset, `2^32` further for each module. Readers take it as it is: its functions have names.
//! - An address is the one that was looked up: of a return address, the byte before (see
//!   [`Frame`](super::Frame)).

use std::{collections::HashMap, fmt::Write, io::Write as _, sync::Arc};

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
    let about_stacks = std::iter::once(completeness(&samples.ends)).chain(guesses(&samples.ends));
    let comments = about_stacks.chain(names.remarks.iter().cloned());
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
        // Writing to a string cannot fail.
        let _ = write!(text, "; {count}: {}", end.sentence());
    }
    if ends.unknown > 0 {
        let _ = write!(text, "; {}: for a reason that this release does not know", ends.unknown);
    }
    text
}

/// How many of the stacks were in part followed by frame pointers, as a sentence.
fn guesses(ends: &Ends) -> Option<String> {
    let (total, guessed) = (ends.complete().0, ends.guessed);
    (guessed > 0).then(|| {
        format!(
            "frames of {guessed} of {total} user stacks were left by frame pointers, for want of unwind information: a caller \
             may be missing there"
        )
    })
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
                        (
                            Place::File(key, Some(index)),
                            segment.address.0.saturating_add(delta).min(u64::MAX - PAGE),
                        )
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
                Place::Kernel => {
                    Mapping { filename: strings.index("[kernel.kallsyms]"), ..Mapping::default() }
                }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use objects::{Class, Contents, ElfType, FileId, IdKind};
    use records::{ElfAddress, End, FileOffset};

    use super::*;
    use crate::{
        processes::JitKey,
        profile::{Thread, check::check, decode},
        targets::{Origin, Target, TargetMaker},
    };

    fn facts(segments: &[(u64, u64, u64, bool)]) -> Arc<ElfFacts> {
        let segment = |&(address, offset, size, executable)| Segment {
            address: ElfAddress(address),
            memory_size: size,
            offset: FileOffset(offset),
            file_size: size,
            executable,
        };
        Arc::new(ElfFacts {
            class: Class::Elf64,
            little_endian: true,
            machine: 62,
            elf_type: ElfType::Dynamic,
            id: FileId { kind: IdKind::Gnu, bytes: vec![0xab, 0xcd] },
            segments: segments.iter().map(segment).collect(),
            contents: Contents::default(),
        })
    }

    fn lines(list: &[(&str, u32)]) -> Lines {
        let line = |&(name, line): &(&str, u32)| {
            let file = if line == 0 { String::new() } else { format!("{name}.c") };
            let function = symbols::Function { name: name.into(), system_name: format!("_{name}"), file };
            symbols::Line { function: Arc::new(function), line }
        };
        list.iter().map(line).collect()
    }

    const MAIN: ExecutableKey = ExecutableKey(1);
    const LIBRARY: ExecutableKey = ExecutableKey(2);
    const BROKEN: ExecutableKey = ExecutableKey(3);

    fn names() -> Names {
        let mut names = Names::default();
        let mut executable = |key, path: &str, facts| {
            names.executables.insert(key, ExecutableInfo { path: path.into(), facts, problem: None });
        };
        // As lld lays it out: address and offset differ, and a data segment comes first (report R55).
        let main = facts(&[
            (0, 0, 0x600, false),
            (0x20_1680, 0x680, 0x2000, true),
            (0x40_0000, 0x2680, 0x100, false),
        ]);
        executable(MAIN, "/opt/bin/program", Some(main));
        executable(LIBRARY, "/lib/libc.so.6", Some(facts(&[(0x2_6000, 0x2_6000, 0x10_0000, true)])));
        executable(BROKEN, "/tmp/broken", None);
        names.lines.insert(Frame::File(MAIN, 0x700), lines(&[("inlined", 3), ("leaf", 7)]));
        names.lines.insert(Frame::File(LIBRARY, 0x2_6010), lines(&[("start", 0)]));
        names.lines.insert(Frame::Kernel(0, 0x1234), lines(&[("syscall", 0)]));
        names.lines.insert(Frame::Kernel(3, 0x1234), lines(&[("module", 0)]));
        names.lines.insert(Frame::Anonymous(JitKey(1), 0x7f00_0000_1000), lines(&[("jit", 0)]));
        names.remarks.push("a remark".into());
        names
    }

    fn window(stacks: &[(&[Frame], u64)]) -> (Window, Arc<Labels>) {
        let mut window = Window::begin(1, 100);
        let labels = TargetMaker::new("n", []).labels("program", None);
        let origin = Arc::new(Origin { comm: "program".into(), ..Origin::default() });
        for (stack, count) in stacks {
            for _ in 0..*count {
                window.add(&origin, stack, Some(Thread { id: 5, name: "t".into() }), End::Root as u8, false);
            }
        }
        window.close();
        window.find_targets(|_| Target::Of(Arc::clone(&labels)));
        window.duration = window.duration.max(Duration::from_nanos(1));
        (window, labels)
    }

    fn built(stacks: &[(&[Frame], u64)]) -> Profile {
        let (window, labels) = window(stacks);
        let profile = build(&window, &labels, &window.targets[&labels], &names());
        check(&profile).unwrap();
        profile
    }

    fn string(profile: &Profile, index: i64) -> &str {
        &profile.string_table[usize::try_from(index).unwrap()]
    }

    fn mapping<'p>(profile: &'p Profile, name: &str) -> &'p Mapping {
        profile.mapping.iter().find(|mapping| string(profile, mapping.filename) == name).unwrap()
    }

    #[test]
    fn addresses_are_those_of_the_file() {
        let profile = built(&[(&[Frame::File(MAIN, 0x700), Frame::File(LIBRARY, 0x2_6010)], 2)]);
        let main = mapping(&profile, "/opt/bin/program");
        assert_eq!(
            (main.id, main.memory_start, main.memory_limit, main.file_offset),
            (1, 0x20_1000, 0x20_4000, 0)
        );
        assert_eq!(string(&profile, main.build_id), "abcd");
        assert!(main.has_functions && main.has_filenames && main.has_line_numbers && main.has_inline_frames);
        let location = &profile.location[0];
        assert_eq!((location.mapping_id, location.address), (1, 0x20_1700));
        let names: Vec<_> = location
            .line
            .iter()
            .map(|line| {
                let function = &profile.function[usize::try_from(line.function_id).unwrap() - 1];
                (string(&profile, function.name), string(&profile, function.system_name), line.line)
            })
            .collect();
        assert_eq!(names, [("inlined", "_inlined", 3), ("leaf", "_leaf", 7)]);
        assert_eq!(profile.sample[0].value, [2]);
        let label = |index: usize| {
            let label = &profile.sample[0].label[index];
            (string(&profile, label.key), string(&profile, label.str))
        };
        assert_eq!((label(0), label(1)), (("thread_id", "5"), ("thread_name", "t")));
        let library = mapping(&profile, "/lib/libc.so.6");
        assert!(library.has_functions && !library.has_filenames && !library.has_line_numbers);
    }

    #[test]
    fn the_program_comes_first_whatever_is_sampled_first() {
        let stack = [Frame::Kernel(0, 0x1234), Frame::File(LIBRARY, 0x2_6010), Frame::File(MAIN, 0x700)];
        let profile = built(&[(&stack, 1), (&[Frame::File(LIBRARY, 0x2_6010)], 5)]);
        assert_eq!(string(&profile, profile.mapping[0].filename), "/opt/bin/program");
    }

    #[test]
    fn frames_without_names_are_kept() {
        let stack = [
            Frame::File(MAIN, 0x1000),
            Frame::File(MAIN, 0x100),
            Frame::File(BROKEN, 0x5000),
            Frame::File(ExecutableKey::UNKNOWN, u64::MAX),
            Frame::Anonymous(JitKey(1), 0x7f00_0000_1000),
            Frame::Anonymous(JitKey(1), u64::MAX),
            Frame::UnknownKernel,
            Frame::TooManyStacks,
        ];
        let profile = built(&[(&stack, 1)]);
        assert_eq!(profile.sample[0].location_id.len(), stack.len());
        let at = |index: usize| {
            let location = &profile.location[index];
            let mapping = &profile.mapping[usize::try_from(location.mapping_id).unwrap() - 1];
            (string(&profile, mapping.filename), location.line.len(), location.address)
        };
        assert_eq!(at(0), ("/opt/bin/program", 0, 0x20_2000));
        assert_eq!(at(1), ("/opt/bin/program", 0, 0x100), "in another segment, which is another mapping");
        assert_eq!(at(2), ("/tmp/broken", 0, 0x5000));
        assert_eq!(at(3).0, "[unknown]");
        assert_eq!(at(4), ("[anonymous]", 1, 0x7f00_0000_1000));
        assert_eq!(at(5).0, "[anonymous]");
        assert_eq!(at(6), ("[kernel.kallsyms]", 1, 0));
        assert_eq!(at(7), ("[bulkhead]", 1, 0));
    }

    #[test]
    fn modules_do_not_fall_on_each_other() {
        let profile =
            built(&[(&[Frame::Kernel(0, 0x1234), Frame::Kernel(3, 0x1234), Frame::Kernel(9, u64::MAX)], 1)]);
        let addresses: Vec<_> = profile.location.iter().map(|location| location.address).collect();
        assert_eq!(addresses, [0x1234, 0x3_0000_1234, 0x9_ffff_ffff]);
        assert_eq!(profile.mapping.len(), 1);
        assert_eq!(string(&profile, profile.mapping[0].filename), "[kernel.kallsyms]");
    }

    #[test]
    fn equal_samples_are_one_and_time_is_there() {
        let profile = built(&[(&[Frame::File(MAIN, 0x700)], 3), (&[Frame::File(MAIN, 0x700)], 4), (&[], 1)]);
        let mut values: Vec<_> = profile.sample.iter().map(|sample| sample.value[0]).collect();
        values.sort_unstable();
        assert_eq!(values, [1, 7]);
        assert_eq!(profile.period, 10_000_000);
        let comments: Vec<_> = profile.comment.iter().map(|comment| string(&profile, *comment)).collect();
        assert_eq!(comments, ["8 of 8 user stacks are complete to their root", "a remark"]);
    }

    #[test]
    fn incomplete_stacks_are_explained() {
        let mut ends = Ends::default();
        for number in [1, 1, 1, 4, 4, 5, 99] {
            ends.count(number, number == 4);
        }
        assert_eq!(guesses(&Ends::default()), None);
        assert!(
            guesses(&ends).unwrap().starts_with("frames of 2 of 6 user stacks were left by frame pointers")
        );
        assert_eq!(
            completeness(&ends),
            format!(
                "3 of 6 user stacks are complete to their root; 2: {}; 1: for a reason that this release does not know",
                End::NotClimbing.sentence()
            )
        );
    }

    #[test]
    fn hostile_segments_stay_within_bounds() {
        for segments in [
            [(u64::MAX - 10, 0, u64::MAX, true)],
            [(0, 0, u64::MAX, true)],
            [(0xfff, 0, 10, true)],
            [(5, 0x1000, 0, true)],
        ] {
            let mut names = names();
            let hostile = ExecutableInfo { path: "/x".into(), facts: Some(facts(&segments)), problem: None };
            names.executables.insert(MAIN, hostile);
            let offsets = [0, 1, 0xfff, 0x1000, 1 << 40, u64::MAX - 1, u64::MAX];
            let stack: Vec<_> = offsets.iter().map(|offset| Frame::File(MAIN, *offset)).collect();
            let (window, labels) = window(&[(&stack, 1)]);
            let profile = build(&window, &labels, &window.targets[&labels], &names);
            check(&profile).unwrap();
            assert_eq!(profile.sample[0].location_id.len(), offsets.len());
        }
    }

    #[test]
    fn the_gzipped_form_is_the_same_profile() {
        let profile = built(&[(&[Frame::File(MAIN, 0x700)], 3)]);
        assert_eq!(decode(&to_gzip(&profile)).unwrap(), profile);
    }
}
