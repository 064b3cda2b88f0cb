//! Finding things in the tables: binary searches with a fixed number of halvings, which the kernel's verifier can
//! follow.
#![expect(
    clippy::cast_possible_truncation,
    reason = "two numbers are packed in a word, and are taken out so"
)]

use records::{
    Cfa, End, MAPPING_STEPS, PAGE_BITS, ROW_STEPS, Rule, SLOT_PROBES, SpaceMapping, SpaceSlot, TableEntry,
    slot_of,
};

use crate::Machine;

/// The mapping that holds `address`, among `count` sorted ones from number `first` on.
#[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
#[inline(always)]
pub fn find_mapping<'a>(
    first: u32,
    count: u32,
    address: u64,
    mut mapping: impl FnMut(u32) -> Option<&'a SpaceMapping>,
) -> Option<&'a SpaceMapping> {
    let (mut base, mut length) = (first, count);
    if length == 0 {
        return None;
    }
    for _ in 0..MAPPING_STEPS {
        if length <= 1 {
            break;
        }
        let half = length >> 1;
        if mapping(base.wrapping_add(half))?.start <= address {
            base = base.wrapping_add(half);
        }
        length -= half;
    }
    mapping(base).filter(|found| found.start <= address && address < found.end)
}

/// The place of a process in the open-addressed table.
#[expect(clippy::inline_always, reason = "runs in the kernel, once a sample")]
#[inline(always)]
pub fn find_space(pid: u32, mut slot: impl FnMut(u32) -> Option<SpaceSlot>) -> Option<SpaceSlot> {
    for probe in 0..SLOT_PROBES {
        let found = slot(slot_of(pid, probe))?;
        if found.owner as u32 == pid {
            return Some(found);
        }
        if found.owner == 0 {
            return None;
        }
    }
    None
}

/// The rule for a place in an executable; `None` if no row covers it. Not to be confused with rows that are not there yet: without
/// them nothing is known of the place, and to follow its frame pointer would invent frames.
#[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
#[inline(always)]
pub(crate) fn find_rule(machine: &mut impl Machine, table: u32, offset: u64) -> Result<Option<Rule>, End> {
    let Some(table) = machine.table(table) else { return Ok(None) };
    match table.state {
        TableEntry::AWAITED => Err(End::NotPlaced),
        TableEntry::ABSENT => Err(End::RowsMissing),
        _ => Ok(find_row(machine, table, offset)),
    }
}

#[expect(clippy::inline_always, reason = "runs in the kernel, once a frame")]
#[inline(always)]
fn find_row(machine: &mut impl Machine, table: TableEntry, offset: u64) -> Option<Rule> {
    let number = ((offset >> PAGE_BITS) as u32).wrapping_sub(table.first_page);
    if number >= table.page_count {
        return None;
    }
    let page = machine.page(table.pages.wrapping_add(number))?;
    if page.count == 0 {
        return None;
    }
    let within = offset as u16;
    let (mut base, mut length) = (page.first, page.count);
    for _ in 0..ROW_STEPS {
        if length <= 1 {
            break;
        }
        let half = length >> 1;
        if machine.row(base.wrapping_add(half))?.offset() <= within {
            base = base.wrapping_add(half);
        }
        length -= half;
    }
    let row = machine.row(base)?;
    let rule = machine.rule(u32::from(row.rule()))?;
    if rule.cfa == Cfa::Unknown as u8 { None } else { Some(rule) }
}
