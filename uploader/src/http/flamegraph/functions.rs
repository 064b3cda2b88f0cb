//! The functions of a profile, each once, with what it took; and for each location its functions, outermost first.

use std::borrow::Cow;
use std::collections::HashMap;

use proto::pprof::{Function as PprofFunction, Location, Mapping, Profile, Sample};

use super::{Kind, string, value};

/// The function that stands for the root of the tree.
pub(super) const ROOT: u32 = 0;
/// The function that stands for what was folded together.
pub(super) const FOLDED: u32 = 1;
const RESERVED: usize = 2;

/// A function as people tell functions apart: two of the same name in different files are two.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Function<'a> {
    pub(super) name: Cow<'a, str>,
    pub(super) binary: &'a str,
    pub(super) file: &'a str,
    pub(super) line: i64,
    pub(super) kind: Kind,
}

/// A frame of a location: its function, and the line it is at (0 if unknown).
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) function: u32,
    pub(super) line: i32,
}

/// The functions, sorted by name behind the two reserved ones, and where locations lie in them.
pub(super) struct Functions<'a> {
    pub(super) list: Vec<Function<'a>>,
    /// What each function took itself, and with all that it called.
    pub(super) flat: Vec<u64>,
    pub(super) cum: Vec<u64>,
    /// What all samples took.
    pub(super) total: u64,
    frames: Vec<Frame>,
    /// The frames of location `i` begin at `starts[i]` and end at `starts[i + 1]`.
    starts: Vec<usize>,
    /// Where the location with this id is, unless it is at `id - 1`, as is usual.
    positions: HashMap<u64, usize>,
}

impl<'a> Functions<'a> {
    pub(super) fn of(profile: &'a Profile, limit: usize) -> Self {
        let mappings: HashMap<u64, &Mapping> = profile.mapping.iter().map(|item| (item.id, item)).collect();
        let sources: HashMap<u64, &PprofFunction> =
            profile.function.iter().map(|item| (item.id, item)).collect();

        let mut list: Vec<Function> =
            vec![folded("all"), folded("(frames too small or too deep to be drawn)")];
        let mut known: HashMap<Function, u32> = HashMap::new();
        let mut frames = Vec::new();
        let mut starts = Vec::with_capacity(profile.location.len() + 1);
        let mut positions = HashMap::new();
        for (position, location) in profile.location.iter().enumerate() {
            if location.id != position as u64 + 1 {
                positions.insert(location.id, position);
            }
            starts.push(frames.len());
            let mapping = mappings.get(&location.mapping_id).copied();
            // The last line is the function that was called, those before it were inlined into it.
            for (function, line) in functions_of(profile, &sources, location, mapping) {
                let id = *known.entry(function).or_insert_with_key(|function| {
                    list.push(function.clone());
                    u32::try_from(list.len() - 1).unwrap_or(FOLDED)
                });
                frames.push(Frame { function: id, line: i32::try_from(line).unwrap_or(0).max(0) });
            }
        }
        starts.push(frames.len());
        drop(known);

        let mut functions =
            Functions { flat: Vec::new(), cum: Vec::new(), total: 0, list, frames, starts, positions };
        functions.count(profile);
        functions.keep_largest(limit);
        functions.sort();
        functions
    }

    /// The frames of a sample, outermost first.
    pub(super) fn stack<'s>(&'s self, sample: &'s Sample) -> impl Iterator<Item = Frame> + 's {
        sample.location_id.iter().rev().flat_map(|id| self.location(*id).iter().copied())
    }

    fn location(&self, id: u64) -> &[Frame] {
        let position = match self.positions.get(&id) {
            Some(position) => *position,
            None => match usize::try_from(id).ok().and_then(|id| id.checked_sub(1)) {
                // A location that is not there has no frames.
                Some(position) if position + 1 < self.starts.len() => position,
                _ => return &[],
            },
        };
        &self.frames[self.starts[position]..self.starts[position + 1]]
    }

    fn count(&mut self, profile: &Profile) {
        let mut flat = vec![0_u64; self.list.len()];
        let mut cum = vec![0_u64; self.list.len()];
        let mut total = 0_u64;
        // The last sample that counted for the function, so that recursion counts once.
        let mut counted = vec![usize::MAX; self.list.len()];
        for (number, sample) in profile.sample.iter().enumerate() {
            let value = value(sample);
            total = total.saturating_add(value);
            let mut leaf = ROOT;
            for frame in self.stack(sample) {
                leaf = frame.function;
                let function = leaf as usize;
                if counted[function] != number {
                    counted[function] = number;
                    cum[function] = cum[function].saturating_add(value);
                }
            }
            flat[leaf as usize] = flat[leaf as usize].saturating_add(value);
        }
        cum[ROOT as usize] = total;
        (self.flat, self.cum, self.total) = (flat, cum, total);
    }

    /// Makes one of the functions with the smallest totals, if there are more than `limit`.
    fn keep_largest(&mut self, limit: usize) {
        if self.list.len() <= limit.max(RESERVED) {
            return;
        }
        let mut order: Vec<usize> = (RESERVED..self.list.len()).collect();
        order.sort_by_key(|function| std::cmp::Reverse(self.cum[*function]));
        let mut target: Vec<u32> = vec![FOLDED; self.list.len()];
        target[ROOT as usize] = ROOT;
        order.truncate(limit.saturating_sub(RESERVED));
        order.sort_unstable();
        for (position, function) in order.iter().enumerate() {
            target[*function] = u32::try_from(position + RESERVED).unwrap_or(FOLDED);
        }
        let dropped: u64 = (RESERVED..self.list.len())
            .filter(|function| target[*function] == FOLDED)
            .fold(0, |sum, function| sum.saturating_add(self.flat[function]));
        let keep: Vec<usize> = (0..RESERVED).chain(order).collect();
        self.reorder(&keep, &target);
        self.flat[FOLDED as usize] = dropped;
    }

    /// Sorts by name, so that siblings in the tree are sorted, too.
    fn sort(&mut self) {
        let mut order: Vec<usize> = (0..self.list.len()).collect();
        order[RESERVED..].sort_by(|a, b| self.list[*a].cmp(&self.list[*b]));
        let mut target = vec![FOLDED; self.list.len()];
        for (new, old) in order.iter().enumerate() {
            target[*old] = u32::try_from(new).unwrap_or(FOLDED);
        }
        self.reorder(&order, &target);
    }

    /// Keeps the functions `order`, in that order; frames follow `target`.
    fn reorder(&mut self, order: &[usize], target: &[u32]) {
        self.list = order.iter().map(|old| self.list[*old].clone()).collect();
        self.flat = order.iter().map(|old| self.flat[*old]).collect();
        self.cum = order.iter().map(|old| self.cum[*old]).collect();
        for frame in &mut self.frames {
            frame.function = target[frame.function as usize];
        }
    }
}

fn folded(name: &str) -> Function<'_> {
    Function { name: Cow::Borrowed(name), binary: "", file: "", line: 0, kind: Kind::Folded }
}

/// The functions at a location with their lines, outermost first.
fn functions_of<'a>(
    profile: &'a Profile,
    sources: &HashMap<u64, &'a PprofFunction>,
    location: &'a Location,
    mapping: Option<&'a Mapping>,
) -> Vec<(Function<'a>, i64)> {
    let binary = mapping.map_or("", |mapping| string(profile, mapping.filename));
    let named: Vec<_> = location
        .line
        .iter()
        .rev()
        .filter_map(|line| {
            let source = sources.get(&line.function_id)?;
            let name = match string(profile, source.name) {
                "" => string(profile, source.system_name),
                name => name,
            };
            (!name.is_empty()).then(|| {
                let function = Function {
                    name: Cow::Borrowed(name),
                    binary,
                    file: string(profile, source.filename),
                    line: source.start_line.max(0),
                    kind: kind(binary, Some(name)),
                };
                (function, line.line)
            })
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    // Its place in the file is what is left to tell it by.
    let file = binary.rsplit('/').next().unwrap_or(binary);
    let name = match file {
        "" => format!("[unknown] 0x{:x}", location.address),
        file => format!("{file} 0x{:x}", location.address),
    };
    let function = Function { name: Cow::Owned(name), binary, file: "", line: 0, kind: kind(binary, None) };
    vec![(function, 0)]
}

/// What code this is, by the names that `profile::pprof` gives to what is no file. A file's name begins with a slash,
/// so a process cannot pass its own for the kernel.
fn kind(binary: &str, name: Option<&str>) -> Kind {
    match (binary, name) {
        ("[kernel.kallsyms]", _) | ("[bulkhead]", Some("[kernel]")) => Kind::Kernel,
        ("[anonymous]", _) => Kind::Jit,
        (_, Some("[unknown]") | None) => Kind::Unknown,
        ("[bulkhead]", _) => Kind::Folded,
        _ => Kind::User,
    }
}
