//! In which frames stacks ended: a profile says how many are incomplete, not which, so the outermost frames are shown
//! of those that do not begin where a thread starts.

use std::collections::BTreeMap;

use tests::pprof::{Frame, Profile};

use crate::roots::Roots;

/// How many places are shown, and stacks of each.
const PLACES: usize = 20;
const STACKS: usize = 3;
/// So many frames of a stack are shown, from the outermost on.
const DEEPEST: usize = 12;

/// The stacks of a profile by where they ended.
#[derive(Default)]
pub(crate) struct Ends {
    /// Samples with frames in user space.
    pub(crate) user: i64,
    /// Those of them whose outermost frame is where a thread starts.
    pub(crate) rooted: i64,
    /// The others: by outermost frame, and by stack.
    places: BTreeMap<String, BTreeMap<String, i64>>,
}

impl Ends {
    /// Sorts the stacks. The files that they lie in must still be there.
    pub(crate) fn of(profile: &Profile) -> Self {
        let mut ends = Ends::default();
        let mut roots = Roots::default();
        for stack in &profile.stacks {
            let last = stack.user().last();
            ends.user += last.map_or(0, |_| stack.count);
            if last.is_some_and(|last| roots.holds(last)) {
                ends.rooted += stack.count;
                continue;
            }
            let path: Vec<String> = stack.frames.iter().rev().take(DEEPEST).map(show).collect();
            let place = ends.places.entry(last.map_or("(no user frame)".into(), place)).or_default();
            *place.entry(path.join(" > ")).or_default() += stack.count;
        }
        ends
    }

    /// Prints them, the most frequent first.
    pub(crate) fn print(&self) {
        let mut places: Vec<_> =
            self.places.iter().map(|(place, stacks)| (stacks.values().sum::<i64>(), place, stacks)).collect();
        places.sort_by_key(|(count, ..)| -count);
        for (count, place, stacks) in places.iter().take(PLACES) {
            println!("    {count:6} {place}");
            let mut stacks: Vec<_> = stacks.iter().collect();
            stacks.sort_by_key(|(_, count)| -**count);
            for (path, count) in stacks.iter().take(STACKS) {
                println!("           {count:6} {path}");
            }
        }
    }
}

/// A frame's place: code that was made at run time is one.
fn place(frame: &Frame) -> String {
    if frame.mapping == "[anonymous]" { frame.mapping.clone() } else { show(frame) }
}

fn show(frame: &Frame) -> String {
    let file = frame.mapping.rsplit('/').next().unwrap_or_default();
    format!("{}@{file}+{:#x}", frame.name, frame.address)
}
