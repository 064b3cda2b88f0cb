//! A window: the samples of one span of time, by target and stack, equal stacks merged.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use records::End;

use crate::{
    executables::ExecutableKey,
    processes::JitKey,
    targets::{Labels, Origin, Target},
};

/// Most origins in a window while it is open; the samples of more go to one marked origin.
const MAX_ORIGINS: usize = 16_384;
/// Most targets in a window; the samples of more go to one marked target.
pub const MAX_TARGETS: usize = 4096;
/// The command name that stands in place of those for which there was no room; longer than any of a process (`TASK_COMM_LEN` in the
/// kernel's `include/linux/sched.h`).
const TOO_MANY: &str = "[too many targets]";
/// Most different stacks in a window; the samples of more go to one marked stack.
pub const MAX_STACKS: usize = 65_536;
/// Most frames in all stacks of a window together (32 MiB).
pub const MAX_FRAMES: usize = 2 << 20;
/// Most different (target, stack, thread) in a window; the samples of more lose their thread.
pub const MAX_ENTRIES: usize = 262_144;

/// A frame as it is looked up and as it stands in the profile: of a return address, the byte before it, which lies in
/// the call. So it is in all of pprof (`Location.address` in its `profile.proto`), and so a call that ends its
/// function is not taken for the next function's.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Frame {
    /// In the kernel: module (see [`crate::symbols::Modules`]) and offset from its base.
    Kernel(u16, u64),
    /// In the kernel, nobody knows where.
    UnknownKernel,
    /// An offset in a file.
    File(ExecutableKey, u64),
    /// Code without a file, at an address of a process.
    Anonymous(JitKey, u64),
    /// In place of stacks for which there was no room.
    TooManyStacks,
}

/// A stack of a window, by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct StackKey(pub u32);

/// A thread as samples are told apart by.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Thread {
    /// Thread id in the collector's pid namespace.
    pub id: u32,
    /// Command name of the thread.
    pub name: Arc<str>,
}

/// How the unwinds of user stacks ended, by [`End`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ends {
    counts: [u64; END_SLOTS],
    /// Ends with a number that this release does not know.
    pub unknown: u64,
    /// Stacks with frames in files that no unwind row covers: those were left by frame pointers, however the stack ended.
    pub guessed: u64,
}

const END_SLOTS: usize = 32;
const _: () = {
    let mut index = 0;
    while index < End::ALL.len() {
        assert!((End::ALL[index] as usize) < END_SLOTS);
        index += 1;
    }
};

impl Ends {
    /// Counts an end by its number, and whether frames before it were left by frame pointers.
    pub fn count(&mut self, number: u8, guessed: bool) {
        self.guessed += u64::from(guessed);
        match End::from_id(number) {
            Some(end) => self.counts[end as usize] += 1,
            None => self.unknown += 1,
        }
    }

    fn add(&mut self, other: &Ends) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.unknown += other.unknown;
        self.guessed += other.guessed;
    }

    /// Each end that was seen, and how often.
    pub fn iter(&self) -> impl Iterator<Item = (End, u64)> {
        End::ALL.iter().map(|end| (*end, self.counts[*end as usize])).filter(|(_, count)| *count > 0)
    }

    /// Samples that had a user stack, and how many of those stacks are complete.
    pub fn complete(&self) -> (u64, u64) {
        let user = |(end, _): &(End, u64)| *end != End::NoUserSpace;
        let total: u64 = self.iter().filter(user).map(|(_, count)| count).sum();
        let complete =
            self.iter().filter(user).filter(|(end, _)| end.is_complete()).map(|(_, count)| count).sum();
        (total + self.unknown, complete)
    }
}

/// The samples of one target.
#[derive(Debug, Default)]
pub struct TargetSamples {
    /// How often each stack was seen on each thread.
    pub counts: HashMap<(StackKey, Option<Thread>), u64>,
    /// How their unwinds ended.
    pub ends: Ends,
}

impl TargetSamples {
    /// All samples.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    fn take_over(&mut self, other: TargetSamples) {
        if self.counts.is_empty() {
            *self = other;
            return;
        }
        for (entry, count) in other.counts {
            *self.counts.entry(entry).or_insert(0) += count;
        }
        self.ends.add(&other.ends);
    }
}

/// A window, open or closed.
#[derive(Debug)]
pub struct Window {
    /// Counts up from 1.
    pub number: u64,
    /// When it began, nanoseconds since 1970 on the wall clock.
    pub time_nanos: i64,
    started: Instant,
    /// How long it was; zero until it is closed.
    pub duration: Duration,
    /// Samples a second on each CPU.
    pub frequency: u32,
    /// Stacks, innermost frame first; a [`StackKey`] is an index.
    pub stacks: Vec<Arc<[Frame]>>,
    /// Until its targets are known: by origin.
    pub origins: HashMap<Arc<Origin>, TargetSamples>,
    /// By target.
    pub targets: HashMap<Arc<Labels>, TargetSamples>,
    by_frames: HashMap<Arc<[Frame]>, StackKey>,
    frames: usize,
    entries: usize,
    /// Samples that were merged into one marked stack or target, for want of room.
    pub merged: u64,
}

impl Window {
    /// A window that begins now.
    pub fn begin(number: u64, frequency: u32) -> Self {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Window {
            number,
            time_nanos: i64::try_from(since_1970.as_nanos()).unwrap_or(i64::MAX),
            started: Instant::now(),
            duration: Duration::ZERO,
            frequency,
            stacks: Vec::new(),
            origins: HashMap::new(),
            targets: HashMap::new(),
            by_frames: HashMap::new(),
            frames: 0,
            entries: 0,
            merged: 0,
        }
    }

    /// Ends it now. Its length is that of the monotonic clock, which no clock setting and no sleep of the machine
    /// changes.
    pub fn close(&mut self) {
        self.duration = self.started.elapsed();
        // Only needed to find equal stacks.
        self.by_frames = HashMap::new();
    }

    /// Counts a sample; `end` and `guessed` as for [`Ends::count`]. `true` if its stack is new to this window.
    pub fn add(
        &mut self,
        origin: &Arc<Origin>,
        frames: &[Frame],
        thread: Option<Thread>,
        end: u8,
        guessed: bool,
    ) -> bool {
        let (stack, new) = self.stack(frames);
        let overflowing = !self.origins.contains_key(origin) && self.origins.len() >= MAX_ORIGINS;
        let target = if overflowing {
            self.merged += 1;
            let overflow = Origin { comm: TOO_MANY.into(), pid: None, cgroup: None };
            self.origins.entry(Arc::new(overflow)).or_default()
        } else if let Some(target) = self.origins.get_mut(origin) {
            target
        } else {
            self.origins.entry(Arc::clone(origin)).or_default()
        };
        target.ends.count(end, guessed);
        let mut entry = (stack, thread);
        if self.entries >= MAX_ENTRIES && !target.counts.contains_key(&entry) {
            self.merged += 1;
            entry.1 = None;
        }
        let count = target.counts.entry(entry).or_insert(0);
        if *count == 0 {
            self.entries += 1;
        }
        *count += 1;
        new
    }

    /// Says of what target each origin is; origins of one target become one. The number of samples that are of none.
    pub fn find_targets(&mut self, target: impl Fn(&Origin) -> Target) -> u64 {
        let mut not_selected = 0;
        let mut rest = TargetSamples::default();
        for (origin, samples) in std::mem::take(&mut self.origins) {
            if origin.comm == TOO_MANY {
                rest.take_over(samples);
                continue;
            }
            match target(&origin) {
                Target::NotSelected(_) => not_selected += samples.total(),
                Target::Of(labels)
                    if self.targets.len() >= MAX_TARGETS && !self.targets.contains_key(&labels) =>
                {
                    self.merged += samples.total();
                    rest.take_over(samples);
                }
                Target::Of(labels) => self.targets.entry(labels).or_default().take_over(samples),
            }
        }
        if !rest.counts.is_empty() {
            let labels = too_many_targets(self.targets.keys());
            self.targets.entry(Arc::new(labels)).or_default().take_over(rest);
        }
        not_selected
    }

    fn stack(&mut self, frames: &[Frame]) -> (StackKey, bool) {
        if let Some(key) = self.by_frames.get(frames) {
            return (*key, false);
        }
        let full = self.stacks.len() >= MAX_STACKS || self.frames + frames.len() > MAX_FRAMES;
        let frames: Arc<[Frame]> = if full {
            self.merged += 1;
            let marked = [Frame::TooManyStacks];
            if let Some(key) = self.by_frames.get(marked.as_slice()) {
                return (*key, false);
            }
            Arc::new(marked)
        } else {
            frames.into()
        };
        // At most MAX_STACKS + 1.
        let key = StackKey(u32::try_from(self.stacks.len()).unwrap_or(u32::MAX));
        self.frames += frames.len();
        self.stacks.push(Arc::clone(&frames));
        self.by_frames.insert(frames, key);
        (key, !full)
    }

    /// Samples of all.
    pub fn total(&self) -> u64 {
        self.origins.values().chain(self.targets.values()).map(TargetSamples::total).sum()
    }
}

/// The target in place of those for which there was no room: it has the labels that are the same for all. (Any other could be new each
/// time, by rules that make labels of pids or names.)
fn too_many_targets<'a>(mut others: impl Iterator<Item = &'a Arc<Labels>>) -> Labels {
    let mut labels = others.next().map_or_else(Labels::default, |first| (**first).clone());
    others.for_each(|other| labels.0.retain(|name, value| other.0.get(name) == Some(value)));
    labels.0.insert("comm".into(), TOO_MANY.into());
    labels
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        discovery::Discovery,
        targets::{TargetMaker, Why},
    };

    fn origin(comm: &str) -> Arc<Origin> {
        Arc::new(Origin { comm: comm.into(), ..Origin::default() })
    }

    fn labels(comm: &str) -> Arc<Labels> {
        TargetMaker::new("n", []).labels(comm, None)
    }

    fn find_targets(window: &mut Window) {
        let maker = TargetMaker::new("n", []);
        assert_eq!(window.find_targets(|origin| maker.target(origin, &Discovery::default())), 0);
    }

    fn frame(offset: u64) -> Frame {
        Frame::File(ExecutableKey(1), offset)
    }

    #[test]
    fn equal_stacks_are_merged_by_target_and_thread() {
        let mut window = Window::begin(1, 100);
        let thread = |id| Some(Thread { id, name: "t".into() });
        let stack = [frame(1), frame(2)];
        assert!(window.add(&origin("a"), &stack, thread(1), End::Root as u8, false));
        assert!(!window.add(&origin("a"), &stack, thread(1), End::Root as u8, true));
        window.add(&origin("a"), &stack, thread(2), End::Memory as u8, true);
        window.add(&origin("b"), &stack, thread(3), End::NoUserSpace as u8, false);
        window.add(&origin("b"), &[], None, 250, false);
        find_targets(&mut window);
        assert_eq!((window.stacks.len(), window.targets.len(), window.total()), (2, 2, 5));
        let a = &window.targets[&labels("a")];
        let mut counts: Vec<_> = a.counts.values().copied().collect();
        counts.sort_unstable();
        assert_eq!(counts, [1, 2]);
        assert_eq!((a.ends.complete(), a.ends.guessed), ((3, 2), 2));
        assert_eq!(a.ends.iter().collect::<Vec<_>>(), [(End::Root, 2), (End::Memory, 1)]);
        assert_eq!(window.targets[&labels("b")].ends.complete(), (1, 0), "a kernel thread has no user stack");
    }

    #[test]
    fn a_window_has_a_length_and_a_time() {
        let mut window = Window::begin(1, 100);
        std::thread::sleep(Duration::from_millis(5));
        window.close();
        assert!(window.duration >= Duration::from_millis(5));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let age = now - u128::try_from(window.time_nanos).unwrap();
        assert!((5_000_000..60_000_000_000).contains(&age), "{age}");
    }

    #[test]
    fn too_many_stacks_become_one() {
        let mut window = Window::begin(1, 100);
        let origin = origin("a");
        let more = 1000;
        for offset in 0..MAX_STACKS + more {
            window.add(&origin, &[frame(offset as u64)], None, 1, false);
        }
        assert_eq!(window.stacks.len(), MAX_STACKS + 1);
        assert_eq!(window.merged, more as u64);
        assert_eq!(window.total(), (MAX_STACKS + more) as u64, "no sample is lost");
        assert_eq!(*window.stacks[MAX_STACKS], [Frame::TooManyStacks]);
    }

    #[test]
    fn long_stacks_are_bounded_together() {
        let mut window = Window::begin(1, 100);
        let origin = origin("a");
        let mut stack = vec![frame(0); 512];
        for offset in 0..5000 {
            stack[0] = frame(offset);
            window.add(&origin, &stack, None, 1, false);
        }
        assert!(window.stacks.iter().map(|stack| stack.len()).sum::<usize>() <= MAX_FRAMES + 1);
        assert_eq!(window.total(), 5000);
    }

    #[test]
    fn too_many_targets_become_one() {
        let mut window = Window::begin(1, 100);
        for comm in 0..MAX_TARGETS + 10 {
            window.add(&origin(&comm.to_string()), &[frame(1)], None, 1, false);
        }
        assert_eq!(window.total(), (MAX_TARGETS + 10) as u64);
        find_targets(&mut window);
        assert_eq!(window.targets.len(), MAX_TARGETS + 1);
        assert_eq!((window.targets[&labels(TOO_MANY)].total(), window.merged), (10, 10));

        let mut window = Window::begin(1, 100);
        for comm in 0..MAX_ORIGINS + 10 {
            window.add(&origin(&comm.to_string()), &[frame(1)], None, 1, false);
        }
        assert_eq!((window.origins.len(), window.merged), (MAX_ORIGINS + 1, 10));
        // Whatever labels rules have made of them.
        window.find_targets(|origin| {
            let mut labels = (*labels("x")).clone();
            labels.0.insert("pid".into(), origin.comm.clone());
            Target::Of(Arc::new(labels))
        });
        assert_eq!(window.targets.len(), MAX_TARGETS + 1);
        assert_eq!(window.targets[&labels(TOO_MANY)].total(), (MAX_ORIGINS + 10 - MAX_TARGETS) as u64);
    }

    #[test]
    fn origins_of_one_target_become_one() {
        let mut window = Window::begin(1, 100);
        let with_pid = |pid| Arc::new(Origin { pid: Some(pid), ..(*origin("a")).clone() });
        for pid in [1, 2] {
            window.add(&with_pid(pid), &[frame(1)], None, End::Root as u8, true);
            window.add(&with_pid(pid), &[frame(pid.into())], None, End::Memory as u8, false);
        }
        window.add(&origin("dropped"), &[frame(1)], None, 1, false);
        let maker = TargetMaker::new("n", []);
        let dropped = window.find_targets(|origin| match origin.comm.as_str() {
            "dropped" => Target::NotSelected(Why::NotNamed),
            _ => maker.target(origin, &Discovery::default()),
        });
        assert_eq!((dropped, window.targets.len()), (1, 1));
        let a = &window.targets[&labels("a")];
        assert_eq!((a.total(), a.counts.len(), a.ends.guessed), (4, 2, 2));
        assert_eq!(a.ends.iter().collect::<Vec<_>>(), [(End::Root, 2), (End::Memory, 2)]);
    }

    #[test]
    fn too_many_threads_lose_their_names() {
        let mut window = Window::begin(1, 100);
        let origin = origin("a");
        let name: Arc<str> = "t".into();
        for id in 0..u32::try_from(MAX_ENTRIES).unwrap() + 10 {
            window.add(&origin, &[frame(1)], Some(Thread { id, name: Arc::clone(&name) }), 1, false);
        }
        let counts = &window.origins[&origin].counts;
        assert_eq!(counts.len(), MAX_ENTRIES + 1);
        assert_eq!(counts[&(StackKey(0), None)], 10);
    }
}
