//! A profile as the JSON that the page draws: one table of strings, and columns of numbers instead of nested objects,
//! so that a profile of 50,000 distinct stacks is read in one go.
//!
//! ```text
//! { "sample_type": "samples", "unit": "count", "period_nanos": 10000000,   // 0 if the period is no time
//!   "time_ms": 1764045310000, "duration_ms": 10000,                        // Unix time at the start; 0 if unknown
//!   "total": 1234,              // sum of the first value of all samples
//!   "smallest": 1,              // frames with less than this are folded together
//!   "notes": ["..."],           // the profile's comments
//!   "strings": ["", "main"],
//!   "functions": {              // 0 is the root, 1 stands for what was folded; sorted by name
//!     "name": [], "file": [], "binary": [],      // index into strings
//!     "line": [],                                // first line of the function, 0 if unknown
//!     "kind": [],                                // see Kind
//!     "flat": [], "cum": [] },                   // as `go tool pprof -top` counts them: recursion counts once
//!   "nodes": {                  // the tree in preorder, siblings by name
//!     "depth": [],                               // 0 for the root
//!     "function": [],
//!     "line": [],                                // 0 unknown, -1 not the same in all samples
//!     "self": [] } }                             // a node's total: its own and that of the nodes below it
//! ```
//!
//! Bounds: [`MAX_NODES`], [`MAX_DEPTH`], [`MAX_FUNCTIONS`], [`MAX_NAME`] and [`MAX_STRINGS`] each have a rule for what
//! is beyond; in no case does the total of a frame that is kept change.

mod functions;
mod tree;

use proto::pprof::Profile;
use serde::Serialize;

use functions::Functions;
use tree::Tree;

use super::pages::visible;

/// Most nodes in the tree. If there are more, frames with fewer than 2 samples (then 4, 8, ...) are folded into one
/// node below their caller.
pub const MAX_NODES: usize = 1_000_000;
/// Deepest stack, in frames from the root; the frames beyond are folded into one node.
pub const MAX_DEPTH: usize = 2048;
/// Most functions. If there are more, the ones with the smallest totals become one.
pub const MAX_FUNCTIONS: usize = 250_000;
/// Longest name in bytes; longer ones are cut and marked, but stay functions of their own.
pub const MAX_NAME: usize = 1024;
/// All names together in bytes. If there are more, [`MAX_NAME`] shrinks to what is left for each.
pub const MAX_STRINGS: usize = 16 << 20;
const MAX_NOTES: usize = 16;

/// What a frame is, for its colour.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
enum Kind {
    /// Code of a file, with a name.
    User = 0,
    /// The kernel or one of its modules.
    Kernel = 1,
    /// Code made at run time.
    Jit = 2,
    /// Code without a name.
    Unknown = 3,
    /// The root, or frames that were folded together.
    Folded = 4,
}

#[derive(Serialize)]
struct Json<'a> {
    sample_type: &'a str,
    unit: &'a str,
    period_nanos: i64,
    time_ms: i64,
    duration_ms: i64,
    total: u64,
    smallest: u64,
    notes: Vec<String>,
    strings: Vec<String>,
    functions: FunctionColumns<'a>,
    nodes: NodeColumns<'a>,
}

#[derive(Serialize)]
struct FunctionColumns<'a> {
    name: Vec<usize>,
    file: Vec<usize>,
    binary: Vec<usize>,
    line: Vec<i64>,
    kind: Vec<u8>,
    flat: &'a [u64],
    cum: &'a [u64],
}

#[derive(Serialize)]
struct NodeColumns<'a> {
    depth: &'a [u16],
    function: &'a [u32],
    line: &'a [i32],
    #[serde(rename = "self")]
    own: &'a [u64],
}

/// The profile as JSON. Never fails: what is out of range in the profile is left unnamed.
pub fn flamegraph_json(profile: &Profile) -> Vec<u8> {
    json(profile, MAX_NODES, MAX_FUNCTIONS)
}

fn json(profile: &Profile, max_nodes: usize, max_functions: usize) -> Vec<u8> {
    let functions = Functions::of(profile, max_functions);
    let tree = Tree::of(profile, &functions, max_nodes);

    let mut strings = Strings::default();
    let columns = FunctionColumns {
        name: functions.list.iter().map(|function| strings.index(&function.name)).collect(),
        file: functions.list.iter().map(|function| strings.index(function.file)).collect(),
        binary: functions.list.iter().map(|function| strings.index(function.binary)).collect(),
        line: functions.list.iter().map(|function| function.line).collect(),
        kind: functions.list.iter().map(|function| function.kind as u8).collect(),
        flat: &functions.flat,
        cum: &functions.cum,
    };
    let sample_type = profile.sample_type.first();
    let period_is_time = profile
        .period_type
        .as_ref()
        .is_some_and(|period| string(profile, period.unit) == "nanoseconds" && profile.period > 0);
    let json = Json {
        sample_type: sample_type.map_or("", |kind| string(profile, kind.r#type)),
        unit: sample_type.map_or("", |kind| string(profile, kind.unit)),
        period_nanos: if period_is_time { profile.period } else { 0 },
        time_ms: profile.time_nanos / 1_000_000,
        duration_ms: profile.duration_nanos / 1_000_000,
        total: functions.total,
        smallest: tree.smallest,
        notes: profile
            .comment
            .iter()
            .take(MAX_NOTES)
            .map(|comment| shorten(string(profile, *comment), MAX_NAME))
            .collect(),
        strings: strings.finish(),
        functions: columns,
        nodes: NodeColumns { depth: &tree.depth, function: &tree.function, line: &tree.line, own: &tree.own },
    };
    // Numbers and text alone: there is nothing that JSON cannot hold.
    serde_json::to_vec(&json).unwrap_or_default()
}

/// A string of the profile's table; empty if the index is out of range.
fn string(profile: &Profile, index: i64) -> &str {
    usize::try_from(index).ok().and_then(|index| profile.string_table.get(index)).map_or("", String::as_str)
}

/// The first value of a sample. Only positive ones count.
fn value(sample: &proto::pprof::Sample) -> u64 {
    sample.value.first().and_then(|value| u64::try_from(*value).ok()).unwrap_or(0)
}

/// The text without hidden characters, cut to so many bytes.
fn shorten(text: &str, limit: usize) -> String {
    // Cut before the hidden characters are written out, too: they grow by the factor of eight at most.
    let shown = visible(&text[..text.floor_char_boundary(limit)]);
    if shown.len() > limit || text.len() > limit {
        format!("{}…", &shown[..shown.floor_char_boundary(limit)])
    } else {
        shown.into_owned()
    }
}

/// The string table of the JSON.
#[derive(Default)]
struct Strings<'a> {
    known: std::collections::HashMap<&'a str, usize>,
    list: Vec<&'a str>,
}

impl<'a> Strings<'a> {
    fn index(&mut self, text: &'a str) -> usize {
        *self.known.entry(text).or_insert_with(|| {
            self.list.push(text);
            self.list.len() - 1
        })
    }

    fn finish(self) -> Vec<String> {
        let size: usize = self.list.iter().map(|text| text.len().min(MAX_NAME)).sum();
        let limit =
            if size > MAX_STRINGS { MAX_STRINGS / self.list.len() } else { MAX_NAME }.clamp(16, MAX_NAME);
        self.list.into_iter().map(|text| shorten(text, limit)).collect()
    }
}

#[cfg(test)]
mod tests;
