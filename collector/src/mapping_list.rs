//! The lists of mappings of all processes, and how long they are together.

use std::{cell::Cell, ops::Deref};

use crate::address_space::CodeMapping;

/// Most mappings in all lists: 16 MiB. A process has some dozens, and shares its list with those that it forks.
pub(crate) const MAX_IN_ALL: usize = 512 * 1024;
/// Beyond that, a list has no more than so many.
pub(crate) const MAX_IN_EACH: usize = 128;

thread_local! {
    /// How long all lists of this thread are, the one that works in the collector.
    static IN_ALL: Cell<usize> = const { Cell::new(0) };
}

/// A list of mappings, counted among all.
#[derive(Default)]
pub(crate) struct MappingList(Vec<CodeMapping>);

impl MappingList {
    /// Whether all lists have room for one that becomes so long, and adds so many to them.
    pub(crate) fn has_room(length: usize, added: usize) -> bool {
        length <= MAX_IN_EACH || IN_ALL.get() + added <= MAX_IN_ALL
    }

    /// Changes it.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut Vec<CodeMapping>)) {
        let before = self.0.len();
        change(&mut self.0);
        IN_ALL.set(IN_ALL.get() + self.0.len() - before);
    }
}

impl Deref for MappingList {
    type Target = [CodeMapping];

    fn deref(&self) -> &[CodeMapping] {
        &self.0
    }
}

impl Clone for MappingList {
    fn clone(&self) -> Self {
        IN_ALL.set(IN_ALL.get() + self.0.len());
        MappingList(self.0.clone())
    }
}

impl Drop for MappingList {
    fn drop(&mut self) {
        // At the end of its thread the count may be gone before the lists.
        let _ = IN_ALL.try_with(|all| all.set(all.get() - self.0.len()));
    }
}
