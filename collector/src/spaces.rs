//! Where code lies in each process, in the memory that the BPF programs read. A copy of what `registry` knows, brought up
//! to date after each round; a fork shares its parent's part until one of the two maps something.

use std::{collections::HashMap, rc::Rc};

use records::{FREE_SLOT, MAX_SPACE_MAPPINGS, NO_TABLE, SLOT_PROBES, SpaceMapping, slot_of};

use crate::{
    address_space::{AddressSpace, Code},
    ranges::{Range, Ranges},
    shared_array::SharedArray,
    unwind_tables::UnwindTables,
};

/// Mappings of all address spaces together: 8 MiB.
pub(crate) const MAX_MAPPINGS: u32 = 256 * 1024;

/// The arrays that the BPF programs read.
pub(crate) struct SpaceArrays {
    pub(crate) mappings: SharedArray<SpaceMapping>,
    /// Two words for each [`records::SpaceSlot`].
    pub(crate) slots: SharedArray<u64>,
}

/// What is shown of each process.
pub(crate) struct Spaces {
    arrays: SpaceArrays,
    ranges: Ranges,
    shown: HashMap<u32, Shown>,
    /// Processes that found no room.
    pub(crate) without_room: u64,
}

struct Shown {
    slot: u32,
    part: Rc<Range>,
}

impl Spaces {
    pub(crate) fn new(arrays: SpaceArrays) -> Self {
        let ranges = Ranges::new(arrays.mappings.len());
        Spaces { arrays, ranges, shown: HashMap::new(), without_room: 0 }
    }

    /// Shows where the code of a process lies. `generation` tells it from others that had this pid.
    pub(crate) fn show(
        &mut self,
        pid: u32,
        generation: u32,
        space: &AddressSpace,
        tables: &mut UnwindTables,
        now: u64,
    ) {
        let Some(part) = self.part(space, tables) else {
            self.without_room += 1;
            self.hide(pid, now);
            return;
        };
        let Some(slot) = self.shown.get(&pid).map(|shown| shown.slot).or_else(|| self.free_slot(pid)) else {
            self.without_room += 1;
            self.release(part, now);
            return;
        };
        let mappings = u64::from(part.first) | u64::from(part.count) << 32;
        // The programs read the owner before and after the mappings, and so do not take one's mappings for another's.
        self.arrays.slots.publish(slot * 2, FREE_SLOT);
        self.arrays.slots.publish(slot * 2 + 1, mappings);
        self.arrays.slots.publish(slot * 2, u64::from(pid) | u64::from(generation) << 32);
        if let Some(old) = self.shown.insert(pid, Shown { slot, part }) {
            self.release(old.part, now);
        }
    }

    /// The process is gone.
    pub(crate) fn hide(&mut self, pid: u32, now: u64) {
        if let Some(Shown { slot, part }) = self.shown.remove(&pid) {
            self.arrays.slots.publish(slot * 2, FREE_SLOT);
            self.release(part, now);
        }
    }

    /// Frees what nobody can be reading any more.
    pub(crate) fn settle(&mut self, now: u64) {
        self.ranges.settle(now);
    }

    fn release(&mut self, part: Rc<Range>, now: u64) {
        if let Ok(range) = Rc::try_unwrap(part) {
            self.ranges.release(range, now);
        }
    }

    /// The part of the array that holds these mappings; written, unless another process has the very same.
    fn part(&mut self, space: &AddressSpace, tables: &mut UnwindTables) -> Option<Rc<Range>> {
        if let Some(part) = space.shown() {
            return Some(part);
        }
        let mappings: Vec<_> = space.settled_mappings().take(MAX_SPACE_MAPPINGS as usize).collect();
        let range = self.ranges.take(u32::try_from(mappings.len()).ok()?)?;
        for (at, mapping) in (range.first..).zip(mappings) {
            let table = match mapping.code {
                Code::File(id) => tables.number(id).unwrap_or(NO_TABLE),
                Code::Anonymous => NO_TABLE,
            };
            self.arrays.mappings.set(
                at,
                SpaceMapping {
                    start: mapping.start,
                    end: mapping.end,
                    offset: mapping.offset,
                    table,
                    reserved: 0,
                },
            );
        }
        let part = Rc::new(range);
        space.set_shown(&part);
        Some(part)
    }

    fn free_slot(&self, pid: u32) -> Option<u32> {
        let free = |slot: &u32| matches!(self.arrays.slots.get(*slot * 2), Some(0 | FREE_SLOT));
        (0..SLOT_PROBES).map(|probe| slot_of(pid, probe)).find(free)
    }
}

#[cfg(test)]
mod tests {
    use ipc::ExecutableId;
    use records::{SLOT_BITS, SpaceSlot};

    use super::*;
    use crate::{address_space::CodeMapping, unwind_tables::TableArrays};

    fn world(mappings: u32) -> (Spaces, UnwindTables) {
        let spaces = Spaces::new(SpaceArrays {
            mappings: SharedArray::unshared(mappings),
            slots: SharedArray::unshared(2 << SLOT_BITS),
        });
        let tables = UnwindTables::new(TableArrays {
            rows: SharedArray::unshared(8),
            pages: SharedArray::unshared(8),
            rules: SharedArray::unshared(8),
            entries: SharedArray::unshared(8),
        });
        (spaces, tables)
    }

    fn space(start: u64) -> AddressSpace {
        let mut space = AddressSpace::default();
        let code = Code::File(ExecutableId(7));
        space.map(CodeMapping { start, end: start + 0x1000, offset: 0x2000, code }).unwrap();
        space.map(CodeMapping { start: 0x10, end: 0x20, offset: 0, code: Code::Anonymous }).unwrap();
        space
    }

    /// As the BPF program would find it.
    fn find(spaces: &Spaces, pid: u32, address: u64) -> Option<(u32, SpaceMapping)> {
        let slots = &spaces.arrays.slots;
        let slot = unwinder::find_space(pid, |slot| {
            Some(SpaceSlot { owner: slots.get(slot * 2)?, mappings: slots.get(slot * 2 + 1)? })
        })?;
        let all: Vec<SpaceMapping> =
            (0..spaces.arrays.mappings.len()).filter_map(|i| spaces.arrays.mappings.get(i)).collect();
        let (first, count) = (slot.mappings & 0xffff_ffff, slot.mappings >> 32);
        let found = unwinder::find_mapping(
            u32::try_from(first).unwrap(),
            u32::try_from(count).unwrap(),
            address,
            |i| all.get(i as usize),
        );
        Some((u32::try_from(slot.owner >> 32).unwrap(), *found?))
    }

    #[test]
    fn a_process_is_found_by_the_programs_and_gone_when_it_is() {
        let (mut spaces, mut tables) = world(100);
        assert_eq!(find(&spaces, 5, 0x1010), None);
        spaces.show(5, 3, &space(0x1000), &mut tables, 0);
        let (generation, found) = find(&spaces, 5, 0x1010).unwrap();
        assert_eq!((generation, found.start, found.offset, found.table), (3, 0x1000, 0x2000, 0));
        assert_eq!(find(&spaces, 5, 0x10).unwrap().1.table, NO_TABLE);
        assert_eq!(find(&spaces, 5, 0x30), None);
        spaces.show(5, 4, &space(0x9000), &mut tables, 1);
        assert_eq!(find(&spaces, 5, 0x1010), None);
        assert_eq!(find(&spaces, 5, 0x9010).unwrap().0, 4);
        spaces.hide(5, 2);
        assert_eq!(find(&spaces, 5, 0x9010), None);
        spaces.settle(u64::MAX);
        assert_eq!(spaces.ranges.taken(), 0);
    }

    #[test]
    fn a_fork_shares_until_it_maps() {
        let (mut spaces, mut tables) = world(100);
        let parent = space(0x1000);
        spaces.show(5, 1, &parent, &mut tables, 0);
        let mut child = parent.clone();
        spaces.show(6, 2, &child, &mut tables, 0);
        assert_eq!(spaces.ranges.taken(), 2);
        child.map(CodeMapping { start: 0x5000, end: 0x6000, offset: 0, code: Code::Anonymous }).unwrap();
        spaces.show(6, 2, &child, &mut tables, 0);
        assert_eq!(spaces.ranges.taken(), 5);
        assert!(find(&spaces, 6, 0x5000).is_some() && find(&spaces, 5, 0x5000).is_none());
        spaces.hide(5, 0);
        spaces.settle(u64::MAX);
        assert_eq!(spaces.ranges.taken(), 3);
        assert!(find(&spaces, 6, 0x1010).is_some());
    }

    #[test]
    fn who_finds_no_room_is_not_shown_and_is_counted() {
        let (mut spaces, mut tables) = world(3);
        spaces.show(5, 1, &space(0x1000), &mut tables, 0);
        spaces.show(6, 2, &space(0x1000), &mut tables, 0);
        assert!(find(&spaces, 5, 0x1010).is_some() && find(&spaces, 6, 0x1010).is_none());
        assert_eq!(spaces.without_room, 1);
        // Pids that fall on the same places.
        let (mut spaces, mut tables) = world(1000);
        let same: Vec<u32> = (1u32..).filter(|pid| slot_of(*pid, 0) == slot_of(1, 0)).take(20).collect();
        for pid in &same {
            spaces.show(*pid, *pid, &space(0x1000), &mut tables, 0);
        }
        assert_eq!(same.iter().filter(|pid| find(&spaces, **pid, 0x1010).is_some()).count(), 16);
        assert_eq!(spaces.without_room, 4);
    }
}
