//! What was resolved before: names by address and symbol tables by executable, each bounded in bytes, the one unused
//! for longest going first.

use std::{collections::HashSet, mem::size_of, sync::Arc};

use lru::LruCache;
use objects::SymbolTable;

use super::{Function, Line, Lines};
use crate::executables::ExecutableKey;

/// Bytes that an entry costs beside its lines: key, pointers of the list, and its share of the table.
const ENTRY_COST: usize = 112;

/// Names by executable and file offset.
#[derive(Debug)]
pub struct NameCache {
    entries: LruCache<(ExecutableKey, u64), Lines>,
    functions: HashSet<Arc<Function>>,
    bytes: usize,
    limit: usize,
}

impl NameCache {
    /// A cache of at most about `limit` bytes.
    pub fn new(limit: usize) -> Self {
        NameCache { entries: LruCache::unbounded(), functions: HashSet::new(), bytes: 0, limit }
    }

    /// What is known of an address.
    pub fn get(&mut self, key: ExecutableKey, offset: u64) -> Option<Lines> {
        self.entries.get(&(key, offset)).cloned()
    }

    /// Whether something (if only that it has no name) is known of an address.
    pub fn contains(&self, key: ExecutableKey, offset: u64) -> bool {
        self.entries.contains(&(key, offset))
    }

    /// The same lines with functions that are shared with all others in the cache.
    pub fn share(&mut self, lines: Vec<(Function, u32)>) -> Lines {
        let share = |(function, line): (Function, u32)| {
            let function = if let Some(function) = self.functions.get(&function) {
                Arc::clone(function)
            } else {
                let function = Arc::new(function);
                self.bytes += function_cost(&function);
                self.functions.insert(Arc::clone(&function));
                function
            };
            Line { function, line }
        };
        lines.into_iter().map(share).collect()
    }

    /// Remembers what is at an address.
    pub fn insert(&mut self, key: ExecutableKey, offset: u64, lines: Lines) {
        self.bytes += entry_cost(&lines);
        if let Some(old) = self.entries.put((key, offset), lines) {
            self.bytes = self.bytes.saturating_sub(entry_cost(&old));
        }
    }

    /// Forgets what there is no room for. To be called when a batch is done, and not for each address, because it
    /// looks at all functions.
    pub fn shrink(&mut self) {
        if self.bytes <= self.limit {
            return;
        }
        // A good deal at once, so that it is not done for each batch.
        let mut excess = self.bytes - self.limit / 4 * 3;
        while let Some((_, lines)) = (excess > 0).then(|| self.entries.pop_lru()).flatten() {
            let mut freed = entry_cost(&lines);
            for line in lines.iter() {
                // Held by this line, perhaps another, and the set: about to go.
                if Arc::strong_count(&line.function) <= 2 {
                    freed += function_cost(&line.function);
                }
            }
            self.bytes = self.bytes.saturating_sub(entry_cost(&lines));
            excess = excess.saturating_sub(freed);
        }
        let mut freed = 0;
        self.functions.retain(|function| {
            let used = Arc::strong_count(function) > 1;
            if !used {
                freed += function_cost(function);
            }
            used
        });
        self.bytes = self.bytes.saturating_sub(freed);
    }

    /// Addresses of which something is known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory it holds, about.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

fn entry_cost(lines: &Lines) -> usize {
    ENTRY_COST + lines.len() * size_of::<Line>()
}

fn function_cost(function: &Function) -> usize {
    // Two reference counts, a place in the set.
    size_of::<Function>() + 32 + function.name.len() + function.system_name.len() + function.file.len()
}

/// Symbol tables by executable.
#[derive(Debug)]
pub struct TableCache {
    tables: LruCache<ExecutableKey, Arc<SymbolTable>>,
    bytes: usize,
    limit: usize,
}

impl TableCache {
    /// A cache of at most `limit` bytes. A table that is larger than a quarter of it is not kept at all, so that one
    /// large file does not make all others be read again.
    pub fn new(limit: usize) -> Self {
        TableCache { tables: LruCache::unbounded(), bytes: 0, limit }
    }

    /// The table of an executable.
    pub fn get(&mut self, key: ExecutableKey) -> Option<Arc<SymbolTable>> {
        self.tables.get(&key).cloned()
    }

    /// Whether the table of an executable is there.
    pub fn contains(&self, key: ExecutableKey) -> bool {
        self.tables.contains(&key)
    }

    /// Remembers a table.
    pub fn insert(&mut self, key: ExecutableKey, table: Arc<SymbolTable>) {
        if table.memory_size() > self.limit / 4 {
            return;
        }
        self.bytes += table.memory_size();
        if let Some(old) = self.tables.put(key, table) {
            self.bytes -= old.memory_size();
        }
        while self.bytes > self.limit {
            let Some((_, table)) = self.tables.pop_lru() else { break };
            self.bytes -= table.memory_size();
        }
    }

    /// Bytes of memory it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(name: &str) -> Function {
        Function { name: name.into(), system_name: name.into(), file: String::new() }
    }

    #[test]
    fn names_are_found_again_and_functions_are_shared() {
        let mut cache = NameCache::new(1 << 20);
        let key = ExecutableKey(1);
        let first = cache.share(vec![(function("inlined"), 1), (function("f"), 2)]);
        let second = cache.share(vec![(function("f"), 3)]);
        assert!(Arc::ptr_eq(&first[1].function, &second[0].function));
        cache.insert(key, 10, first);
        cache.insert(key, 11, second);
        cache.insert(key, 12, cache.entries.peek(&(key, 11)).cloned().unwrap());
        assert_eq!(cache.get(key, 10).unwrap()[1].line, 2);
        assert!(cache.contains(key, 11) && !cache.contains(ExecutableKey(2), 11));
        assert_eq!(cache.len(), 3);
    }

    #[test]
    fn bytes_are_bounded_and_return_to_nothing() {
        let mut cache = NameCache::new(100_000);
        for round in 0..20u64 {
            for offset in 0..1000 {
                let lines = cache.share(vec![(function(&format!("function {round} {offset}")), 0)]);
                cache.insert(ExecutableKey(1), round * 1000 + offset, lines);
            }
            cache.shrink();
            assert!(cache.bytes() <= 100_000, "{}", cache.bytes());
            assert!(!cache.is_empty());
            assert_eq!(cache.functions.len(), cache.len());
        }
        cache.limit = 0;
        cache.shrink();
        assert_eq!((cache.bytes(), cache.len(), cache.functions.len()), (0, 0, 0));
    }

    #[test]
    fn an_address_that_is_resolved_again_costs_once() {
        let mut cache = NameCache::new(1 << 20);
        for _ in 0..100 {
            let lines = cache.share(vec![(function("f"), 0)]);
            cache.insert(ExecutableKey(1), 1, lines);
        }
        assert_eq!(cache.len(), 1);
        assert!(cache.bytes() < 1000, "{}", cache.bytes());
    }

    #[test]
    fn tables_are_bounded() {
        let mut tables = TableCache::new(1 << 20);
        for key in 0..10 {
            tables.insert(ExecutableKey(key), Arc::new(SymbolTable::default()));
            assert!(tables.contains(ExecutableKey(key)));
        }
        assert!(tables.bytes() <= 1 << 20);
        assert!(tables.get(ExecutableKey(11)).is_none());
    }
}
