//! Rows in the order of file offsets, sorted into pages as they come.

use std::collections::{BTreeMap, HashMap};

use records::{Cfa, MAX_ROWS_PER_PAGE, PAGE_BITS, Page, Row, Rule};

use super::UnwindRows;
use crate::ObjectError;

/// Most pages of text: 4 GiB.
const MAX_PAGES: u64 = 1 << 16;
/// Most distinct rules of one executable; the largest that was seen has 729.
const MAX_RULES: usize = u16::MAX as usize;
/// The first two rules of each table.
const UNKNOWN: u16 = 0;
const UNSUPPORTED: u16 = 1;

/// Takes rows and makes pages of them.
pub(super) struct Sink {
    max_rows: usize,
    first_page: u32,
    pages: Vec<Page>,
    rows: Vec<Row>,
    rules: Vec<Rule>,
    numbers: HashMap<Rule, u16>,
    /// The last row: not written yet, since nothing lies between it and one at the same place.
    pending: Option<(u64, Rule)>,
    /// The rule that was written last. Before the first row nothing is known.
    last: u16,
    misfits: BTreeMap<&'static str, u64>,
}

impl Sink {
    pub(super) fn new(max_rows: usize) -> Self {
        let mut sink = Sink {
            max_rows,
            first_page: 0,
            pages: Vec::new(),
            rows: Vec::new(),
            rules: Vec::new(),
            numbers: HashMap::new(),
            pending: None,
            last: UNKNOWN,
            misfits: BTreeMap::new(),
        };
        sink.number(Rule::of(Cfa::Unknown));
        sink.number(Rule::of(Cfa::Unsupported));
        sink
    }

    /// Counts what no row can say.
    pub(super) fn misfits(&mut self, kind: &'static str, count: u64) {
        if count > 0 {
            *self.misfits.entry(kind).or_default() += count;
        }
    }

    /// From `offset` in the file on this rule is in force. An offset below an earlier one is not taken. After an error
    /// nothing more may come; the place where it happened is then the end of what is known.
    pub(super) fn push(&mut self, offset: u64, rule: Rule) -> Result<(), ObjectError> {
        match self.pending {
            Some((at, _)) if at > offset => self.misfits("code that lies twice in the file", 1),
            Some((at, _)) if at == offset => self.pending = Some((at, rule)),
            Some((_, before)) if before == rule => {}
            _ => {
                self.flush()?;
                self.pending = Some((offset, rule));
            }
        }
        Ok(())
    }

    /// Writes the pending row.
    fn flush(&mut self) -> Result<(), ObjectError> {
        let Some((offset, rule)) = self.pending.take() else { return Ok(()) };
        let number = self.number(rule);
        if number == self.last {
            return Ok(());
        }
        // With it, the end behind which nothing is known, and of the first one the start of its page.
        let needed = if self.rows.is_empty() { 3 } else { 2 };
        if self.rows.len() + needed > self.max_rows {
            if !self.rows.is_empty() {
                self.append(offset, UNKNOWN)?;
            }
            let (size, limit) = (self.rows.len() as u64 + 1, self.max_rows as u64);
            return Err(ObjectError::TooLarge { what: "list of unwind rows", size, limit });
        }
        self.append(offset, number)
    }

    fn append(&mut self, offset: u64, number: u16) -> Result<(), ObjectError> {
        let page = offset >> PAGE_BITS;
        if self.pages.is_empty() {
            let limit = u64::from(u32::MAX);
            self.first_page = u32::try_from(page).map_err(|_| ObjectError::TooLarge {
                what: "place of the code in the file",
                size: page,
                limit,
            })?;
            self.pages.push(Page { first: 0, count: 0 });
            if low(offset) != 0 {
                self.add(Row::new(0, UNKNOWN));
            }
        }
        let wanted = page - u64::from(self.first_page) + 1;
        if wanted > MAX_PAGES {
            return Err(ObjectError::TooLarge { what: "span of the code", size: wanted, limit: MAX_PAGES });
        }
        while (self.pages.len() as u64) < wanted {
            let is_last = self.pages.len() as u64 + 1 == wanted;
            let rows = u32::try_from(self.rows.len()).unwrap_or(u32::MAX);
            // Until its first own row, what is in force at a page's end is in force in the next one.
            let inherited = u32::from(!(is_last && low(offset) == 0));
            self.pages.push(Page { first: rows - inherited, count: inherited });
        }
        self.add(Row::new(low(offset), number));
        self.last = number;
        Ok(())
    }

    fn add(&mut self, row: Row) {
        self.rows.push(row);
        if let Some(page) = self.pages.last_mut() {
            page.count += 1;
        }
    }

    fn number(&mut self, rule: Rule) -> u16 {
        if let Some(number) = self.numbers.get(&rule) {
            return *number;
        }
        match u16::try_from(self.rules.len()) {
            Ok(number) if self.rules.len() < MAX_RULES => {
                self.rules.push(rule);
                self.numbers.insert(rule, number);
                number
            }
            _ => {
                self.misfits("more rules than fit", 1);
                UNSUPPORTED
            }
        }
    }

    /// The table, and the problem that ended it.
    pub(super) fn finish(mut self, problem: Option<ObjectError>) -> UnwindRows {
        let end = self.flush();
        for page in &mut self.pages {
            if page.count > MAX_ROWS_PER_PAGE {
                page.count = 0;
                *self.misfits.entry("a page with too many rows").or_default() += 1;
            }
        }
        self.rows.shrink_to_fit();
        UnwindRows {
            first_page: self.first_page,
            pages: self.pages,
            rows: self.rows,
            rules: self.rules,
            misfits: self.misfits,
            problem: problem.or(end.err()),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low bits are what is asked for")]
fn low(offset: u64) -> u16 {
    offset as u16
}

#[cfg(test)]
mod tests {
    use super::{super::tests::look, *};

    fn rule(cfa_offset: i32) -> Rule {
        Rule { cfa: Cfa::Sp as u8, cfa_offset, ..Rule::default() }
    }

    #[test]
    fn every_place_has_the_rule_of_the_last_row_before_it() {
        let pushed = [
            (0x1_0010, 1),
            (0x1_0020, 2),
            (0x1_0020, 3),
            (0x1_fffe, 4),
            (0x2_0000, 5),
            (0x4_8000, 6),
            (0x5_0001, 7),
            (0x5_0001, 8),
        ];
        let mut sink = Sink::new(1000);
        for (offset, n) in pushed {
            sink.push(offset, rule(n)).unwrap();
        }
        let table = sink.finish(None);
        assert_eq!((table.first_page, table.pages.len()), (1, 5));
        for offset in (0x1_0000..0x6_0000).step_by(1) {
            let expected = pushed.iter().rev().find(|(at, _)| *at <= offset).map(|(_, n)| rule(*n));
            assert_eq!(look(&table, offset), Some(expected.unwrap_or(Rule::of(Cfa::Unknown))), "{offset:#x}");
        }
        assert_eq!(look(&table, 0xffff), None);
    }

    #[test]
    fn equal_neighbours_are_one_and_what_goes_back_is_not_taken() {
        let mut sink = Sink::new(1000);
        for (offset, n) in [(0x10, 1), (0x20, 1), (0x30, 2), (0x8, 3)] {
            sink.push(offset, rule(n)).unwrap();
        }
        let table = sink.finish(None);
        assert_eq!(table.rows.len(), 3, "with the one for the page's start");
        assert_eq!(table.misfits.values().sum::<u64>(), 1);
        // Also where what lay between them was of no length.
        let mut sink = Sink::new(1000);
        for (offset, n) in [(0x10, 1), (0x20, 2), (0x20, 1), (0x30, 3)] {
            sink.push(offset, rule(n)).unwrap();
        }
        assert_eq!(sink.finish(None).rows.len(), 3);
    }

    #[test]
    fn a_bound_ends_it_and_what_is_behind_is_unknown() {
        for max_rows in 0..20 {
            let mut sink = Sink::new(max_rows);
            let error =
                (0..100).find_map(|i| sink.push(i * 0x1000 + 8, rule(i32::try_from(i).unwrap())).err());
            let table = sink.finish(error);
            assert!(matches!(table.problem, Some(ObjectError::TooLarge { .. })));
            assert!(table.rows.len() <= max_rows);
            let known = (0..100).take_while(|i| {
                let expected = Some(rule(i32::try_from(*i).unwrap()));
                look(&table, i * 0x1000 + 8) == expected && look(&table, i * 0x1000 + 0x1007) == expected
            });
            let known = known.count() as u64;
            assert_eq!(known, if max_rows < 3 { 0 } else { max_rows as u64 - 2 });
            for i in known..100 {
                let behind = look(&table, i * 0x1000 + 8);
                assert!(
                    matches!(behind, None | Some(Rule { cfa: 0, .. })),
                    "{behind:?} at {i} of {max_rows}"
                );
            }
        }
    }

    #[test]
    fn text_that_spans_too_much_ends_it() {
        let mut sink = Sink::new(10);
        sink.push(0, rule(1)).unwrap();
        sink.push(1 << 40, rule(2)).unwrap();
        assert!(matches!(sink.push(1 << 41, rule(3)), Err(ObjectError::TooLarge { .. })));
        let mut sink = Sink::new(10);
        sink.push(1 << 60, rule(1)).unwrap();
        let table = sink.finish(None);
        assert!(matches!(table.problem, Some(ObjectError::TooLarge { .. })));
        assert!(table.pages.is_empty() && table.rows.is_empty());
        // The last page that fits, and the first that does not.
        for (page, fits) in [(0xffff, true), (0x1_0000, false)] {
            let mut sink = Sink::new(10);
            sink.push(0, rule(1)).unwrap();
            sink.push(page << PAGE_BITS, rule(2)).unwrap();
            assert_eq!(sink.finish(None).problem.is_none(), fits);
        }
    }

    #[test]
    fn pages_and_rules_have_a_bound() {
        let mut sink = Sink::new(1 << 20);
        for i in 0..0x1_0000 {
            sink.push(i, rule(i32::try_from(i % 2).unwrap())).unwrap();
        }
        let table = sink.finish(None);
        assert_eq!(table.pages[0].count, 0, "more rows than a search finds");
        let mut sink = Sink::new(1 << 20);
        for i in 0..70_000u32 {
            sink.push(u64::from(i) * 16, rule(i32::try_from(i).unwrap())).unwrap();
        }
        sink.push(70_000 * 16, Rule::of(Cfa::Unknown)).unwrap();
        let table = sink.finish(None);
        assert_eq!(table.rules.len(), MAX_RULES);
        assert_eq!(look(&table, 69_999 * 16), Some(Rule::of(Cfa::Unsupported)));
    }
}
