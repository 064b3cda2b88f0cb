//! What the collector does with unwind tables from an uploader that is not trusted: any messages, in any order. Whatever
//! comes of them, an unwind over them ends and stays within the store.
#![no_main]
#![allow(dead_code, reason = "the collector's own modules, of which only a part is used here")]

#[path = "../../collector/src/ranges.rs"]
mod ranges;
#[path = "../../collector/src/rule_store.rs"]
mod rule_store;
#[path = "../../collector/src/shared_array.rs"]
mod shared_array;
#[path = "../../collector/src/unwind_tables.rs"]
mod unwind_tables;

use ipc::{ExecutableId, FromUploader};
use libfuzzer_sys::fuzz_target;
use records::{Page, Row, Rule, TableEntry};
use shared_array::SharedArray;
use unwind_tables::{TableArrays, UnwindTables};
use unwinder::{Cursor, Machine, Registers};

const PAIRS: u32 = 512;

fuzz_target!(|data: &[u8]| {
    let mut tables = UnwindTables::new(TableArrays {
        rows: SharedArray::unshared(PAIRS),
        pages: SharedArray::unshared(64),
        rules: SharedArray::unshared(64),
        entries: SharedArray::unshared(16),
    });
    for id in 0..4 {
        tables.number(ExecutableId(id));
    }
    let mut now = 0;
    let mut rest = data;
    // Each message: its length, then its bytes.
    while let Some((length, after)) = rest.split_first() {
        let (message, after) = after.split_at(usize::from(*length).min(after.len()));
        rest = after;
        now += u64::from(*length) * 10_000_000;
        let _ = match ipc::decode(message) {
            Ok(FromUploader::TableBegin(begin)) => tables.begin(begin, now),
            Ok(FromUploader::TableRules(rules)) => tables.add_rules(&rules),
            Ok(FromUploader::TablePages(pages)) => tables.add_pages(&pages),
            Ok(FromUploader::TableRows(rows)) => tables.add_rows(&rows),
            Ok(FromUploader::TableEnd) => tables.end(now),
            // Not what these say: they stand for a sample in an executable, whose rows are waited for or not, and for the end of
            // all others.
            Ok(FromUploader::Reopen(id)) => {
                if tables.used(id, 1, now) && tables.has_room_to_spare() {
                    tables.give_up(id);
                    assert!(!tables.awaits(id));
                }
                Ok(())
            }
            Ok(FromUploader::ReopenPerfMap(process)) => {
                tables.retain(|id| id.0 == process.0, now);
                tables.number(ExecutableId(process.0));
                Ok(())
            }
            Err(_) | Ok(FromUploader::Skip(_)) => Ok(()),
        };
        tables.settle(now);
        assert!(tables.counters().row_bytes <= u64::from(PAIRS) * 8);
    }
    for start in 0..64u64 {
        let mut process = Process { tables: &tables, seed: start };
        let mut cursor = Cursor::new(Registers { ip: start << 12, sp: start, fp: start });
        let steps = (0..600).take_while(|_| unwinder::step(&mut process, &mut cursor).is_ok()).count();
        assert!(steps <= 600);
    }
    // No room is lost, whatever happened.
    tables.end_session();
    tables.retain(|_| false, now);
    tables.settle(u64::MAX);
    assert_eq!(tables.counters().row_bytes, 0);
});

/// A process whose memory is noise.
struct Process<'a> {
    tables: &'a UnwindTables,
    seed: u64,
}

impl Machine for Process<'_> {
    fn read_word(&mut self, address: u64) -> Option<u64> {
        let word = (address ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (word & 7 != 0).then_some(word >> 40)
    }

    fn read_pair(&mut self, address: u64) -> Option<[u64; 2]> {
        Some([self.read_word(address)?, self.read_word(address.wrapping_add(8))?])
    }

    fn locate(&mut self, address: u64) -> Option<(u32, u64)> {
        Some((u32::try_from(address % 5).ok()?, address))
    }

    fn register(&mut self, number: u8) -> u64 {
        assert!(number < records::REGISTERS);
        self.seed << number
    }

    fn table(&mut self, number: u32) -> Option<TableEntry> {
        self.tables.table(number)
    }

    fn page(&mut self, number: u32) -> Option<Page> {
        let page = self.tables.page(number)?;
        assert!(page.count <= records::MAX_ROWS_PER_PAGE);
        Some(page)
    }

    fn row(&mut self, number: u32) -> Option<Row> {
        let row = self.tables.row(number);
        assert!(row.is_some(), "a page that points beyond the store");
        row
    }

    fn rule(&mut self, number: u32) -> Option<Rule> {
        let rule = self.tables.rule(number)?;
        assert!(rule.is_sound());
        Some(rule)
    }
}
