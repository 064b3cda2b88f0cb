//! Rows against what others make of the same bytes, of real files and of forged ones.

mod built;
mod forge;
mod forged;
mod go;
mod pointers;
mod truth;

use records::{Cfa, PAGE_BITS, Rule, SavedFp};

use super::UnwindRows;

/// Room for all rows of what tests read.
const ROOM: usize = 1 << 22;

/// What the table says of a place in the file.
pub(super) fn look(table: &UnwindRows, offset: u64) -> Option<Rule> {
    let page = u32::try_from(offset >> PAGE_BITS).ok()?.checked_sub(table.first_page)?;
    let page = table.pages.get(page as usize)?;
    let rows = &table.rows[page.first as usize..(page.first + page.count) as usize];
    // The first is in force from the start, wherever it stands.
    let later = rows.get(1..)?.partition_point(|row| u64::from(row.offset()) <= offset % (1 << PAGE_BITS));
    Some(table.rules[usize::from(rows[later].rule())])
}

/// Nothing is said of the place.
fn is_unknown(rule: Option<Rule>) -> bool {
    rule.is_none_or(|rule| rule == Rule::of(Cfa::Unknown))
}

fn plain(cfa: Cfa, cfa_offset: i32) -> Rule {
    Rule { cfa_offset, ..Rule::of(cfa) }
}

fn with_fp(cfa: Cfa, cfa_offset: i32, fp: SavedFp, fp_offset: i16) -> Rule {
    Rule { cfa: cfa as u8, fp: fp as u8, fp_offset, cfa_offset }
}

/// What holds for every table, whatever it was made from.
fn check_form(table: &UnwindRows, max_rows: usize) {
    assert!(table.rows.len() <= max_rows);
    assert!(table.pages.len() <= 1 << 16);
    assert!(table.rules.iter().all(Rule::is_sound));
    assert!(table.rows.iter().all(|row| usize::from(row.rule()) < table.rules.len()));
    for page in &table.pages {
        assert!(page.count <= records::MAX_ROWS_PER_PAGE);
        let rows = &table.rows[page.first as usize..(page.first + page.count) as usize];
        assert!(rows.get(1..).unwrap_or_default().is_sorted_by_key(|row| row.offset()));
    }
}
