//! In which frames stacks ended: a profile says how many are incomplete, not which, so their outermost frames are shown,
//! those at a program's entry apart.

use std::{collections::BTreeMap, fs, os::unix::fs::FileExt as _};

use tests::pprof::{Frame, Profile};

/// How many places are shown.
const MOST: usize = 25;

/// Prints the outermost frames of a profile's user stacks, the most frequent first, each with two of the innermost frames
/// below it.
pub(crate) fn print(profile: &Profile) {
    let mut entries = Entries::default();
    let mut places: BTreeMap<String, (i64, BTreeMap<String, i64>)> = BTreeMap::new();
    for stack in &profile.stacks {
        let user: Vec<&Frame> = stack.user().collect();
        let Some(last) = user.last() else {
            places.entry("(no user frame)".into()).or_default().0 += stack.count;
            continue;
        };
        let mark = if entries.holds(last) { "ENTRY " } else { "" };
        let place = places.entry(format!("{mark}{}", show(last))).or_default();
        place.0 += stack.count;
        let path: Vec<String> = user.iter().rev().skip(1).take(3).map(|frame| show(frame)).collect();
        *place.1.entry(path.join(" <- ")).or_default() += stack.count;
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|(_, (count, _))| -count);
    for (place, (count, below)) in places.iter().take(MOST) {
        println!("    {count:6} {place}");
        let mut below: Vec<_> = below.iter().collect();
        below.sort_by_key(|(_, count)| -**count);
        for (path, count) in below.iter().take(2).filter(|_| !place.starts_with("ENTRY")) {
            println!("           {count:6} {path}");
        }
    }
}

fn show(frame: &Frame) -> String {
    let file = frame.mapping.rsplit('/').next().unwrap_or_default();
    format!("{}@{file}+{:#x}", frame.name, frame.address)
}

/// Where programs begin, by path.
#[derive(Default)]
struct Entries(BTreeMap<String, Option<u64>>);

impl Entries {
    /// Whether a frame lies in the first instructions of its file: the call of main is within 64 bytes of the entry.
    fn holds(&mut self, frame: &Frame) -> bool {
        let entry = self.0.entry(frame.mapping.clone()).or_insert_with(|| {
            // e_entry, in the ELF header.
            let mut bytes = [0; 8];
            let file = fs::File::open(&frame.mapping).ok()?;
            file.read_exact_at(&mut bytes, 24).ok().map(|()| u64::from_le_bytes(bytes))
        });
        entry.is_some_and(|entry| (entry..entry + 64).contains(&frame.address))
    }
}
