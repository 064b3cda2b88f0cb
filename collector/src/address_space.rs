//! What executable code lies where in a process: its history is applied in the order of time, so that a sample finds
//! the mappings of its own moment.

use std::{
    cell::RefCell,
    rc::{Rc, Weak},
};

use ipc::ExecutableId;

use crate::{
    mapping_list::{MAX_IN_EACH, MappingList},
    ranges::Range,
    reused::Reused,
};

/// Most mappings kept for a process: 30 bytes each, and nobody's program has more code mapped than this. (A process
/// that makes thousands of small regions one after the other has them merged.)
pub(crate) const MAX_MAPPINGS: usize = 16 * 1024;

/// What an executable mapping shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Code {
    /// A file.
    File(ExecutableId),
    /// Memory without a file: code made at run time.
    Anonymous,
}

/// An executable mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CodeMapping {
    /// First address.
    pub(crate) start: u64,
    /// First address after it.
    pub(crate) end: u64,
    /// Where in the file it begins.
    pub(crate) offset: u64,
    pub(crate) code: Code,
}

impl CodeMapping {
    /// The part from `start` to `end`, which lies within.
    fn part(self, start: u64, end: u64) -> Self {
        CodeMapping { start, end, offset: self.offset.wrapping_add(start - self.start), ..self }
    }

    /// The file, if it shows one.
    pub(crate) fn file(&self) -> Option<ExecutableId> {
        match self.code {
            Code::File(id) => Some(id),
            Code::Anonymous => None,
        }
    }

    /// Whether an address in both is of the same place in the same file.
    fn shows_the_same(&self, other: &CodeMapping) -> bool {
        let place = |mapping: &CodeMapping| mapping.offset.wrapping_sub(mapping.start);
        self.code == other.code && (self.code == Code::Anonymous || place(self) == place(other))
    }

    /// Whether `next` goes on where this ends, in memory and in the file.
    fn goes_on_in(&self, next: &CodeMapping) -> bool {
        self.end == next.start
            && self.code == next.code
            && (self.code == Code::Anonymous
                || self.offset.wrapping_add(self.end - self.start) == next.offset)
    }
}

/// The executable mappings of one address space, sorted, without overlaps. A fork shares them with its parent until
/// one of the two maps something.
#[derive(Clone, Default)]
pub(crate) struct AddressSpace {
    mappings: Rc<MappingList>,
    /// Where just these mappings are shown to the BPF programs.
    shown: Rc<RefCell<Weak<Range>>>,
    reused: Reused,
}

/// The address space has [`MAX_MAPPINGS`] already. Or all together have too many: then this mapping is not known, and of a list that was shared
/// [`MAX_IN_EACH`] others stay at most.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl AddressSpace {
    /// The mapping that holds this address.
    pub(crate) fn find(&self, address: u64) -> Option<&CodeMapping> {
        let after = self.mappings.partition_point(|mapping| mapping.start <= address);
        self.mappings[..after].last().filter(|mapping| address < mapping.end)
    }

    /// Whether a file is shown anywhere between these addresses.
    pub(crate) fn shows_file(&self, start: u64, end: u64) -> bool {
        let first = self.mappings.partition_point(|mapping| mapping.end <= start);
        let mut within = self.mappings[first..].iter().take_while(|mapping| mapping.start < end);
        within.any(|mapping| mapping.code != Code::Anonymous)
    }

    /// Every mapping.
    pub(crate) fn mappings(&self) -> &[CodeMapping] {
        &self.mappings
    }

    /// Where these mappings are shown, if they are.
    pub(crate) fn shown(&self) -> Option<Rc<Range>> {
        self.shown.borrow().upgrade()
    }

    /// Remembers where they are shown, for all that share them.
    pub(crate) fn set_shown(&self, part: &Rc<Range>) {
        *self.shown.borrow_mut() = Rc::downgrade(part);
    }

    /// What the BPF programs are to know of: every mapping but those at addresses that change.
    pub(crate) fn settled_mappings(&self) -> impl Iterator<Item = &CodeMapping> {
        self.mappings.iter().filter(|mapping| !self.reused.hides(mapping.start, mapping.end))
    }

    /// The BPF programs have been shown it, at this time (nanoseconds).
    pub(crate) fn shown_at(&mut self, now: u64) {
        self.reused.shown(now);
    }

    /// See [`Reused::settle`].
    pub(crate) fn settle(&mut self, now: u64) -> bool {
        let has_settled = self.reused.settle(now);
        if has_settled {
            self.shown = Rc::default();
        }
        has_settled
    }

    /// See [`Reused::was_mistaken`].
    pub(crate) fn was_mistaken(&self, address: u64, at: u64) -> bool {
        self.reused.was_mistaken(address, at)
    }

    /// Adds a mapping, which takes the place of what it overlaps.
    pub(crate) fn map(&mut self, new: CodeMapping) -> Result<(), Full> {
        if new.start >= new.end {
            return Ok(());
        }
        self.shown = Rc::default();
        let mappings = &*self.mappings;
        let first = mappings.partition_point(|mapping| mapping.end <= new.start);
        let after = mappings.partition_point(|mapping| mapping.start < new.end);
        let mut replacement: [Option<CodeMapping>; 3] = [None, Some(new), None];
        if let Some(overlapped) = mappings.get(first..after).filter(|overlapped| !overlapped.is_empty()) {
            if !overlapped.iter().all(|old| old.shows_the_same(&new)) {
                self.reused.add(new.start, new.end);
            }
            let (before, behind) = (overlapped[0], overlapped[overlapped.len() - 1]);
            if before.start < new.start {
                replacement[0] = Some(before.part(before.start, new.start));
            }
            if behind.end > new.end {
                replacement[2] = Some(behind.part(new.end, behind.end));
            }
        }
        // `first` can lie behind `after` only if nothing overlaps; then both name the place to insert.
        let range = first..after.max(first);
        let length = mappings.len() - range.len() + replacement.iter().flatten().count();
        if length > MAX_MAPPINGS {
            return Err(Full);
        }
        // What is shared is copied.
        let is_shared = Rc::strong_count(&self.mappings) > 1;
        let added = if is_shared { length } else { length.saturating_sub(mappings.len()) };
        if !MappingList::has_room(length, added) {
            // Of what was there as much stays as a list may have in any case: all of it, if the list is here already.
            let kept = if is_shared { MAX_IN_EACH } else { mappings.len() };
            let rest: Vec<_> =
                mappings[..range.start].iter().chain(&mappings[range.end..]).take(kept).copied().collect();
            self.mappings = Rc::default();
            Rc::make_mut(&mut self.mappings).change(|mappings| *mappings = rest);
            return Err(Full);
        }
        Rc::make_mut(&mut self.mappings).change(|mappings| {
            mappings.splice(range, replacement.into_iter().flatten());
            let at = mappings.partition_point(|mapping| mapping.start < new.start);
            merge(mappings, at);
            if at > 0 {
                merge(mappings, at - 1);
            }
        });
        Ok(())
    }
}

/// Makes one mapping of `at` and the next where they are one.
fn merge(mappings: &mut Vec<CodeMapping>, at: usize) {
    if let (Some(here), Some(next)) = (mappings.get(at).copied(), mappings.get(at + 1).copied())
        && here.goes_on_in(&next)
    {
        mappings[at].end = next.end;
        mappings.remove(at + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_the_place_of_something_else_is_hidden() {
        let mut space = AddressSpace::default();
        space.map(file(0x1000, 0x3000, 0, 1)).unwrap();
        // The same once more, something where nothing was, and code made where code was made before.
        space.map(file(0x2000, 0x3000, 0x1000, 1)).unwrap();
        space.map(file(0x5000, 0x6000, 0, 2)).unwrap();
        for offset in [0x7000, 0] {
            space.map(CodeMapping { offset, code: Code::Anonymous, ..file(0x7000, 0x8000, 0, 0) }).unwrap();
        }
        assert_eq!(space.settled_mappings().count(), space.mappings().len());
        space.map(file(0x2000, 0x3000, 0, 2)).unwrap();
        assert!(space.was_mistaken(0x2fff, 5) && !space.was_mistaken(0x1fff, 5));
        assert_eq!(space.settled_mappings().count(), space.mappings().len() - 1);
        space.shown_at(10);
        assert!(space.settle(u64::MAX) && !space.settle(u64::MAX));
        assert_eq!(space.settled_mappings().count(), space.mappings().len());
    }

    fn file(start: u64, end: u64, offset: u64, id: u32) -> CodeMapping {
        CodeMapping { start, end, offset, code: Code::File(ExecutableId(id)) }
    }

    fn anonymous(start: u64, end: u64) -> CodeMapping {
        CodeMapping { start, end, offset: 0, code: Code::Anonymous }
    }

    fn space(mappings: &[CodeMapping]) -> AddressSpace {
        let mut space = AddressSpace::default();
        for mapping in mappings {
            space.map(*mapping).unwrap();
        }
        space
    }

    #[test]
    fn an_address_is_found_in_its_mapping_only() {
        let space = space(&[file(0x5000, 0x6000, 0, 2), file(0x1000, 0x3000, 0x4000, 1)]);
        assert_eq!(space.find(0xfff), None);
        assert_eq!(space.find(0x1000).unwrap().offset, 0x4000);
        assert_eq!(space.find(0x2fff).unwrap().code, Code::File(ExecutableId(1)));
        assert_eq!(space.find(0x3000), None);
        assert_eq!(space.find(0x5fff).unwrap().code, Code::File(ExecutableId(2)));
        assert_eq!(space.find(u64::MAX), None);
    }

    #[test]
    fn a_file_is_shown_where_one_is() {
        let space =
            space(&[file(0x1000, 0x3000, 0, 1), anonymous(0x3000, 0x5000), file(0x8000, 0x9000, 0, 2)]);
        for (start, end, shown) in [
            (0, 0x1000, false),
            (0, 0x1001, true),
            (0x2fff, 0x3000, true),
            (0x3000, 0x8000, false),
            (0x4000, 0x8001, true),
            (0x9000, 0xa000, false),
        ] {
            assert_eq!(space.shows_file(start, end), shown, "{start:x} to {end:x}");
        }
    }

    #[test]
    fn what_is_new_takes_the_place_of_what_it_overlaps() {
        // In the middle of an older one: its ends stay, with their own offsets.
        let middle = space(&[file(0x1000, 0x9000, 0, 1), file(0x3000, 0x4000, 0, 2)]);
        assert_eq!(
            middle.mappings(),
            [file(0x1000, 0x3000, 0, 1), file(0x3000, 0x4000, 0, 2), file(0x4000, 0x9000, 0x3000, 1)]
        );
        // Over several.
        let over =
            space(&[file(0x1000, 0x2000, 0, 1), file(0x3000, 0x4000, 0, 2), file(0x1800, 0x3800, 0, 3)]);
        assert_eq!(
            over.mappings(),
            [file(0x1000, 0x1800, 0, 1), file(0x1800, 0x3800, 0, 3), file(0x3800, 0x4000, 0x800, 2)]
        );
        // Exactly the same place.
        assert_eq!(space(&[file(0x1000, 0x2000, 0, 1), file(0x1000, 0x2000, 0, 2)]).mappings().len(), 1);
    }

    #[test]
    fn neighbours_that_go_on_are_one() {
        assert_eq!(
            space(&[anonymous(0, 8), anonymous(16, 24), anonymous(8, 16)]).mappings(),
            [anonymous(0, 24)]
        );
        assert_eq!(space(&[file(0, 8, 0, 1), file(8, 16, 8, 1)]).mappings(), [file(0, 16, 0, 1)]);
        assert_eq!(space(&[file(0, 8, 0, 1), file(8, 16, 0, 1)]).mappings().len(), 2);
    }

    #[test]
    fn a_fork_keeps_what_it_had() {
        let parent = space(&[file(0x1000, 0x2000, 0, 1)]);
        let mut child = parent.clone();
        child.map(file(0x1000, 0x2000, 0, 2)).unwrap();
        assert_eq!(parent.find(0x1000).unwrap().code, Code::File(ExecutableId(1)));
        assert_eq!(child.find(0x1000).unwrap().code, Code::File(ExecutableId(2)));
    }

    #[test]
    fn there_is_a_bound() {
        let mut space = AddressSpace::default();
        for i in 0..MAX_MAPPINGS as u64 {
            space.map(file(i * 0x2000, i * 0x2000 + 0x1000, 0, 1)).unwrap();
        }
        assert_eq!(space.map(file(u64::MAX - 0x1000, u64::MAX, 0, 1)), Err(Full));
        // What replaces does not grow.
        assert_eq!(space.map(file(0, 0x1000, 0, 2)), Ok(()));
        assert_eq!(space.find(0).unwrap().code, Code::File(ExecutableId(2)));
    }

    #[test]
    fn all_together_have_a_bound() {
        use crate::mapping_list::MAX_IN_ALL;
        let mut large = AddressSpace::default();
        for i in 0..10_000 {
            large.map(anonymous(i * 0x2000, i * 0x2000 + 0x1000)).unwrap();
        }
        let one_more = |space: &mut AddressSpace, i: u64| {
            space.map(anonymous(0x10_0000_0000 + i * 0x2000, 0x10_0000_0000 + i * 0x2000 + 0x1000))
        };
        // Who forks has the same list, until something is mapped.
        let mut children: Vec<AddressSpace> = (0..100).map(|_| large.clone()).collect();
        let copied = children.iter_mut().filter_map(|child| one_more(child, 0).ok()).count();
        assert_eq!(copied, MAX_IN_ALL / 10_001 - 1);
        let lengths = children.iter().map(|child| child.mappings().len());
        assert_eq!(lengths.sum::<usize>(), copied * 10_001 + (100 - copied) * MAX_IN_EACH);
        // The others keep as many as a list has in any case, of which what is replaced is one.
        let small = &mut children[99];
        assert_eq!(small.mappings().len(), MAX_IN_EACH);
        assert_eq!(one_more(small, 0), Err(Full));
        small.map(file(0, 0x1000, 0, 1)).unwrap();
        assert_eq!(small.find(0).unwrap().code, Code::File(ExecutableId(1)));
        // One that is long already does not grow, and what lies elsewhere by now is not taken for what was there.
        assert_eq!(children[0].map(file(0x2400, 0x2800, 0, 1)), Err(Full));
        assert!(children[0].find(0x2000).is_none() && children[0].find(0x4000).is_some());
        // When there is room again, for more.
        children.truncate(10);
        let mut child = large.clone();
        assert_eq!(one_more(&mut child, 0), Ok(()));
        assert_eq!(child.mappings().len(), 10_001);
    }

    #[test]
    fn random_mappings_match_a_byte_by_byte_model() {
        let mut state = 88_172_645_463_325_252_u64;
        let mut random = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        for _ in 0..300 {
            let mut space = AddressSpace::default();
            let mut model = vec![None; 64];
            for _ in 0..20 {
                let start = random(64);
                let end = (start + 1 + random(16)).min(64);
                let new = file(start, end, random(4), u32::try_from(random(3)).unwrap());
                space.map(new).unwrap();
                for (address, byte) in
                    (0..).zip(&mut model).filter(|(address, _)| (start..end).contains(address))
                {
                    *byte = Some((new.code, new.offset + address - start));
                }
            }
            for (address, expected) in (0..).zip(&model) {
                let found = space.find(address).map(|m| (m.code, m.offset + address - m.start));
                assert_eq!(found, *expected);
            }
            assert!(space.mappings().windows(2).all(|pair| pair[0].end <= pair[1].start));
        }
    }
}
