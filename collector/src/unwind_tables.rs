//! Unwind rows in the memory that the BPF programs read: one fixed store, made before the privilege is given up, shared
//! by all processes. The uploader computes the rows and is not trusted: every number is checked before it is shown, and
//! what is not whole is never shown.

use std::collections::HashMap;

use ipc::{ExecutableId, TableBegin, TableCounters};
use records::{MAX_ROWS_PER_PAGE, Page, Row, Rule, TableEntry};
use thiserror::Error;

use crate::{
    ranges::{Range, Ranges},
    rule_store::RuleStore,
    shared_array::SharedArray,
};

/// Executables that can have a number, and so rows, at a time.
pub(crate) const MAX_TABLES: u32 = 64 * 1024;
/// One page entry for so many pairs of rows: text has 50 to 150 pairs for each 4 KiB, thus 800 and more a page.
const PAIRS_PER_PAGE: u32 = 64;
/// This part of the store is kept free for tables that come.
const KEPT_FREE: u32 = 8;
/// How often a table that did not come is asked for again, in nanoseconds.
const ASK_AGAIN_AFTER: u64 = 30_000_000_000;
/// The same for one that found no room.
const ROOM_AFTER: u64 = 1_000_000_000;

/// Why rows were not taken. The uploader that sends such is at fault; nothing of it is shown.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum TableError {
    #[error("rows for an executable that nobody has mapped")]
    NotMapped,
    #[error("a part of a table that was not begun")]
    NotBegun,
    #[error("more {0} than were announced, or fewer")]
    Count(&'static str),
    #[error("a rule that is none")]
    Rule,
    #[error("a page whose rows are not sorted, or not those of its table")]
    Page,
    #[error("more rows than the whole store has room for")]
    TooLarge,
    #[error("no room yet: others had to make room for it")]
    NoRoom,
}

/// The arrays that the BPF programs read.
pub(crate) struct TableArrays {
    /// Two rows each.
    pub(crate) rows: SharedArray<u64>,
    pub(crate) pages: SharedArray<Page>,
    pub(crate) rules: SharedArray<Rule>,
    /// Two words for each [`TableEntry`].
    pub(crate) entries: SharedArray<u64>,
}

/// How many values the arrays have when the rows and pages take so many bytes together: pairs of rows, pages.
pub(crate) fn sizes(bytes: u64) -> (u32, u32) {
    let unit = u64::from(PAIRS_PER_PAGE) * 8 + 8;
    let pages = u32::try_from(bytes / unit).unwrap_or(u32::MAX / PAIRS_PER_PAGE).max(1);
    (pages.saturating_mul(PAIRS_PER_PAGE), pages)
}

/// What is in the store.
pub(crate) struct UnwindTables {
    rows: SharedArray<u64>,
    page_rows: SharedArray<Page>,
    entries: SharedArray<u64>,
    rules: RuleStore,
    pairs: Ranges,
    pages: Ranges,
    numbers: HashMap<ExecutableId, u32>,
    free_numbers: Vec<u32>,
    tables: HashMap<ExecutableId, Table>,
    building: Option<Building>,
    asked: HashMap<ExecutableId, Asked>,
    counters: TableCounters,
}

/// A table that is shown.
struct Table {
    pairs: Range,
    pages: Range,
    used: u64,
}

/// Rows that the uploader was asked for.
struct Asked {
    session: u32,
    /// When to ask again, in nanoseconds.
    again: u64,
}

/// A table that is being sent.
struct Building {
    begin: TableBegin,
    pairs: Range,
    pages: Range,
    /// The machine's numbers of the table's own rules.
    rules: Vec<u16>,
    pages_written: u32,
    /// Rows of all pages together: each row belongs to one page, and a page may have one more, that is in force at its start.
    rows_of_pages: u64,
    rows_written: u32,
    /// The first row of a pair whose second is still to come.
    half: u64,
}

impl UnwindTables {
    pub(crate) fn new(arrays: TableArrays) -> Self {
        UnwindTables {
            pairs: Ranges::new(arrays.rows.len()),
            pages: Ranges::new(arrays.pages.len()),
            rows: arrays.rows,
            page_rows: arrays.pages,
            entries: arrays.entries,
            rules: RuleStore::new(arrays.rules),
            numbers: HashMap::new(),
            free_numbers: Vec::new(),
            tables: HashMap::new(),
            building: None,
            asked: HashMap::new(),
            counters: TableCounters::default(),
        }
    }

    /// The number that mappings of this executable have in the tables, whether it has rows or not; `None` if there are
    /// too many.
    pub(crate) fn number(&mut self, executable: ExecutableId) -> Option<u32> {
        if let Some(number) = self.numbers.get(&executable) {
            return Some(*number);
        }
        let next = u32::try_from(self.numbers.len() + self.free_numbers.len()).unwrap_or(u32::MAX);
        let most = self.entries.len() / 2;
        let number = self.free_numbers.pop().or_else(|| (next < most).then_some(next))?;
        self.numbers.insert(executable, number);
        Some(number)
    }

    #[cfg(test)]
    fn has(&self, executable: ExecutableId) -> bool {
        self.tables.contains_key(&executable)
    }

    /// A sample has a frame in this executable. Returns whether the uploader is to be asked for its rows now; `now` in
    /// nanoseconds.
    pub(crate) fn used(&mut self, executable: ExecutableId, session: u32, now: u64) -> bool {
        if let Some(table) = self.tables.get_mut(&executable) {
            table.used = now;
            return false;
        }
        if self.number(executable).is_none() {
            return false;
        }
        let asked = self.asked.entry(executable).or_insert(Asked { session: 0, again: 0 });
        let ask = asked.session != session || now >= asked.again;
        if ask {
            *asked = Asked { session, again: now.saturating_add(ASK_AGAIN_AFTER) };
        }
        ask
    }

    /// Whether the rows of this executable may come any moment.
    pub(crate) fn awaits(&self, executable: ExecutableId) -> bool {
        let entry = self.numbers.get(&executable).and_then(|number| self.table(*number));
        entry.is_some_and(|entry| entry.state == TableEntry::AWAITED)
    }

    /// The rows of this executable are not there and no longer waited for; they are shown whenever they come.
    pub(crate) fn give_up(&self, executable: ExecutableId) {
        if !self.tables.contains_key(&executable)
            && let Some(number) = self.numbers.get(&executable)
        {
            self.entries.publish(number * 2 + 1, u64::from(TableEntry::ABSENT) << 32);
        }
    }

    /// Whether there is room for rows of what is mapped and not sampled yet.
    pub(crate) fn has_room_to_spare(&self) -> bool {
        self.pairs.in_reach() >= self.pairs.len() / 2 && self.pages.in_reach() >= self.pages.len() / 2
    }

    /// Begins a table; one that was begun before is dropped.
    pub(crate) fn begin(&mut self, begin: TableBegin, now: u64) -> Result<(), TableError> {
        self.drop_building();
        if !self.numbers.contains_key(&begin.executable) {
            return Err(TableError::NotMapped);
        }
        let pairs = begin.rows.div_ceil(2);
        if pairs > self.rows.len() || begin.pages > self.page_rows.len() {
            self.counters.too_large += 1;
            self.give_up(begin.executable);
            return Err(TableError::TooLarge);
        }
        self.settle(now);
        let taken = self.pairs.take(pairs);
        match (taken, self.pages.take(begin.pages)) {
            (Some(pairs), Some(pages)) => {
                self.building = Some(Building {
                    begin,
                    pairs,
                    pages,
                    rules: Vec::new(),
                    pages_written: 0,
                    rows_of_pages: 0,
                    rows_written: 0,
                    half: 0,
                });
                Ok(())
            }
            (pairs_taken, pages_taken) => {
                if let Some(range) = pairs_taken {
                    self.pairs.give_back(range);
                }
                if let Some(range) = pages_taken {
                    self.pages.give_back(range);
                }
                self.make_room(pairs, begin.pages, now);
                self.counters.no_room += 1;
                self.give_up(begin.executable);
                // Asked for again when what was evicted can no longer be read by anybody.
                if let Some(asked) = self.asked.get_mut(&begin.executable) {
                    asked.again = now.saturating_add(ROOM_AFTER);
                }
                Err(TableError::NoRoom)
            }
        }
    }

    /// Evicts until there will be room.
    fn make_room(&mut self, pairs: u32, pages: u32, now: u64) {
        if self.pairs.leaving() == 0 && self.pages.leaving() == 0 {
            // Also when there is enough in all, but not in one piece.
            self.evict_least_recently_used(now);
        }
        while (self.pairs.in_reach() < pairs || self.pages.in_reach() < pages)
            && self.evict_least_recently_used(now)
        {}
    }

    /// Forgets the table that was used longest ago. It comes back when it is sampled again.
    fn evict_least_recently_used(&mut self, now: u64) -> bool {
        let oldest = self.tables.iter().filter(|(_, table)| table.pairs.count > 0);
        let Some(id) = oldest.min_by_key(|(_, table)| table.used).map(|(id, _)| *id) else { return false };
        self.counters.evicted += 1;
        self.remove(id, now);
        true
    }

    fn remove(&mut self, executable: ExecutableId, now: u64) {
        self.asked.remove(&executable);
        let Some(table) = self.tables.remove(&executable) else { return };
        if let Some(number) = self.numbers.get(&executable) {
            self.entries.publish(number * 2 + 1, 0);
        }
        self.pairs.release(table.pairs, now);
        self.pages.release(table.pages, now);
    }

    fn drop_building(&mut self) {
        if let Some(building) = self.building.take() {
            self.pairs.give_back(building.pairs);
            self.pages.give_back(building.pages);
        }
    }

    /// The rules of the table that was begun, in the order of its own numbers.
    pub(crate) fn add_rules(&mut self, rules: &[Rule]) -> Result<(), TableError> {
        let Some(mut building) = self.building.take() else { return Err(TableError::NotBegun) };
        for rule in rules {
            if !rule.is_sound() {
                self.building = Some(building);
                return self.refuse(TableError::Rule);
            }
            let number = self.rules.number(*rule);
            building.rules.push(number);
        }
        let fits = u16::try_from(building.rules.len()).is_ok();
        self.building = Some(building);
        if fits { Ok(()) } else { self.refuse(TableError::Count("rules")) }
    }

    /// Pages, in order; `first` counts the table's own rows.
    pub(crate) fn add_pages(&mut self, pages: &[ipc::PageRows]) -> Result<(), TableError> {
        let Some(building) = &mut self.building else { return Err(TableError::NotBegun) };
        for page in pages {
            let TableBegin { rows, pages, .. } = building.begin;
            let ends = page.first.checked_add(page.count);
            building.rows_of_pages += u64::from(page.count);
            // Also a bound on the work of checking them.
            let too_many = building.rows_of_pages > u64::from(rows) + u64::from(pages);
            let error = if building.pages_written >= building.begin.pages {
                Some(TableError::Count("pages"))
            } else if too_many || page.count > MAX_ROWS_PER_PAGE || ends.is_none_or(|end| end > rows) {
                Some(TableError::Page)
            } else {
                None
            };
            if let Some(error) = error {
                return self.refuse(error);
            }
            let first = building.pairs.first * 2 + page.first;
            self.page_rows
                .set(building.pages.first + building.pages_written, Page { first, count: page.count });
            building.pages_written += 1;
        }
        Ok(())
    }

    /// Rows, in order.
    pub(crate) fn add_rows(&mut self, rows: &[u32]) -> Result<(), TableError> {
        let Some(building) = &mut self.building else { return Err(TableError::NotBegun) };
        for row in rows {
            let row = Row(*row);
            let Some(rule) = building.rules.get(usize::from(row.rule())) else {
                return self.refuse(TableError::Rule);
            };
            if building.rows_written >= building.begin.rows {
                return self.refuse(TableError::Count("rows"));
            }
            let row = u64::from(Row::new(row.offset(), *rule).0);
            let pair = building.pairs.first + building.rows_written / 2;
            if building.rows_written.is_multiple_of(2) {
                building.half = row;
                self.rows.set(pair, row);
            } else {
                self.rows.set(pair, building.half | row << 32);
            }
            building.rows_written += 1;
        }
        Ok(())
    }

    /// Shows the table, if it is whole and right.
    pub(crate) fn end(&mut self, now: u64) -> Result<(), TableError> {
        let Some(building) = &self.building else { return Err(TableError::NotBegun) };
        let TableBegin { executable, first_page, pages, rows } = building.begin;
        if building.pages_written != pages || building.rows_written != rows {
            return self.refuse(TableError::Count("rows and pages"));
        }
        let range = building.pages;
        if !(0..pages).all(|page| self.is_sorted(range.first + page)) {
            return self.refuse(TableError::Page);
        }
        let Some(building) = self.building.take() else { return Err(TableError::NotBegun) };
        self.remove(executable, now);
        if let Some(number) = self.numbers.get(&executable) {
            let place = u64::from(building.pages.first) | u64::from(first_page) << 32;
            self.entries.publish(number * 2, place);
            self.entries.publish(number * 2 + 1, u64::from(pages) | u64::from(TableEntry::KNOWN) << 32);
        }
        self.tables.insert(executable, Table { pairs: building.pairs, pages: building.pages, used: now });
        self.counters.shown += 1;
        Ok(())
    }

    /// Whether the rows of a page are in order. Where the first one stands does not matter: it is in force from the page's
    /// start.
    fn is_sorted(&self, page: u32) -> bool {
        let Some(page) = self.page_rows.get(page) else { return false };
        let offset = |row| self.row(row).map(Row::offset);
        (1..page.count).all(|i| i == 1 || offset(page.first + i - 1) < offset(page.first + i))
    }

    fn refuse(&mut self, error: TableError) -> Result<(), TableError> {
        self.counters.refused += 1;
        if let Some(building) = &self.building {
            self.give_up(building.begin.executable);
        }
        self.drop_building();
        Err(error)
    }

    /// Forgets the tables of all executables but these.
    pub(crate) fn retain(&mut self, keep: impl Fn(ExecutableId) -> bool, now: u64) {
        let gone: Vec<ExecutableId> = self.numbers.keys().copied().filter(|id| !keep(*id)).collect();
        for id in gone {
            self.remove(id, now);
            if let Some(number) = self.numbers.remove(&id) {
                // That it has no rows is not said of the next one with this number.
                self.entries.publish(number * 2 + 1, 0);
                self.free_numbers.push(number);
            }
        }
        self.asked.retain(|id, _| keep(*id));
        // Shown without a number, it would not be found here again.
        if self.building.as_ref().is_some_and(|building| !keep(building.begin.executable)) {
            self.drop_building();
        }
    }

    /// Frees what nobody can be reading any more, and evicts ahead of need: what is evicted now is free only a while later.
    pub(crate) fn settle(&mut self, now: u64) {
        self.pairs.settle(now);
        self.pages.settle(now);
        let is_scarce = |ranges: &Ranges| ranges.in_reach() < ranges.len() / KEPT_FREE;
        while (is_scarce(&self.pairs) || is_scarce(&self.pages)) && self.evict_least_recently_used(now) {}
    }

    /// The uploader is gone, and what it was sending with it.
    pub(crate) fn end_session(&mut self) {
        self.drop_building();
    }

    pub(crate) fn counters(&self) -> TableCounters {
        TableCounters {
            tables: self.tables.len() as u64,
            row_bytes: u64::from(self.pairs.taken()) * 8,
            row_bytes_most: u64::from(self.rows.len()) * 8,
            rules: self.rules.len() as u64,
            rules_full: self.rules.refused,
            ..self.counters
        }
    }

    // What the unwinder asks for, when it runs in this process.

    pub(crate) fn table(&self, number: u32) -> Option<TableEntry> {
        let where_ = self.entries.get(number.checked_mul(2)?)?;
        let page_count = self.entries.get(number * 2 + 1)?;
        Some(TableEntry {
            pages: low(where_),
            first_page: low(where_ >> 32),
            page_count: low(page_count),
            state: low(page_count >> 32),
        })
    }

    pub(crate) fn page(&self, number: u32) -> Option<Page> {
        self.page_rows.get(number)
    }

    pub(crate) fn row(&self, number: u32) -> Option<Row> {
        let pair = self.rows.get(number / 2)?;
        Some(Row(low(pair >> (number % 2 * 32))))
    }

    pub(crate) fn rule(&self, number: u32) -> Option<Rule> {
        self.rules.get(number)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what is asked for")]
fn low(word: u64) -> u32 {
    word as u32
}

#[cfg(test)]
mod tests;
