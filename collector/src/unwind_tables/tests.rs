//! The store of unwind rows, and what a hostile uploader may send to it.

use ipc::PageRows;
use records::{Cfa, SavedFp};

use super::*;

const SECOND: u64 = 1_000_000_000;

fn store(pairs: u32, pages: u32) -> UnwindTables {
    UnwindTables::new(TableArrays {
        rows: SharedArray::unshared(pairs),
        pages: SharedArray::unshared(pages),
        rules: SharedArray::unshared(8),
        entries: SharedArray::unshared(16),
    })
}

fn rule(cfa_offset: i32) -> Rule {
    Rule { cfa: Cfa::Sp as u8, cfa_offset, ..Rule::default() }
}

fn send(
    store: &mut UnwindTables,
    id: u32,
    rules: &[Rule],
    pages: &[(u32, u32)],
    rows: &[Row],
    now: u64,
) -> Result<(), TableError> {
    let executable = ExecutableId(id);
    let counts = (u32::try_from(pages.len()).unwrap(), u32::try_from(rows.len()).unwrap());
    store.begin(TableBegin { executable, first_page: 3, pages: counts.0, rows: counts.1 }, now)?;
    store.add_rules(rules)?;
    for (first, count) in pages {
        store.add_pages(&[PageRows { first: *first, count: *count }])?;
    }
    for row in rows {
        store.add_rows(&[row.0])?;
    }
    store.end(now)
}

fn rows(count: u16, rule: u16) -> Vec<Row> {
    (0..count).map(|i| Row::new(i * 4, rule)).collect()
}

#[test]
fn a_table_of_what_is_forgotten_while_it_is_sent_takes_no_room() {
    let mut store = store(100, 10);
    store.number(ExecutableId(7)).unwrap();
    store.begin(TableBegin { executable: ExecutableId(7), first_page: 3, pages: 0, rows: 0 }, 0).unwrap();
    store.retain(|_| false, 0);
    assert_eq!(store.end(0), Err(TableError::NotBegun));
    assert!(!store.has(ExecutableId(7)));
}

#[test]
fn a_table_is_shown_when_it_is_whole() {
    let mut store = store(100, 10);
    let number = store.number(ExecutableId(7)).unwrap();
    assert!(store.used(ExecutableId(7), 1, 0), "asked for at the first sample");
    assert!(!store.used(ExecutableId(7), 1, 1), "and not again at once");
    let begin = TableBegin { executable: ExecutableId(7), first_page: 3, pages: 1, rows: 3 };
    store.begin(begin, 0).unwrap();
    store.add_rules(&[rule(8), rule(16)]).unwrap();
    store.add_pages(&[PageRows { first: 0, count: 3 }]).unwrap();
    store.add_rows(&[Row::new(0, 1).0, Row::new(8, 0).0, Row::new(9, 1).0]).unwrap();
    assert_eq!(store.table(number).unwrap().page_count, 0);
    store.end(5).unwrap();
    let entry = store.table(number).unwrap();
    assert_eq!((entry.first_page, entry.page_count), (3, 1));
    let page = store.page(entry.pages).unwrap();
    let found: Vec<(u16, i32)> = (0..page.count)
        .map(|i| store.row(page.first + i).unwrap())
        .map(|row| (row.offset(), store.rule(row.rule().into()).unwrap().cfa_offset))
        .collect();
    assert_eq!(found, [(0, 16), (8, 8), (9, 16)]);
    assert!(store.has(ExecutableId(7)) && !store.used(ExecutableId(7), 1, 6));
    assert_eq!(store.counters().tables, 1);
}

/// Rules, pages and rows.
type Case<'a> = (&'a [Rule], &'a [(u32, u32)], Vec<Row>);

#[test]
fn what_is_wrong_is_refused_and_takes_no_room() {
    let mut store = store(100, 10);
    let number = store.number(ExecutableId(1)).unwrap();
    let unsound = [Rule { cfa: 99, ..Rule::default() }, Rule { fp: SavedFp::COUNT, ..Rule::default() }];
    let one = [rule(8)];
    let cases: Vec<Case> = vec![
        (&unsound[..1], &[(0, 1)], rows(1, 0)),
        (&unsound[1..], &[(0, 1)], rows(1, 0)),
        (&one, &[(0, 1)], rows(1, 1)),
        (&one, &[(0, 3)], rows(2, 0)),
        (&one, &[(u32::MAX, 2)], rows(2, 0)),
        (&one, &[(0, 2), (0, 2), (0, 2), (0, 2)], rows(2, 0)),
        (&one, &[(0, 3)], vec![Row::new(0, 0), Row::new(8, 0), Row::new(4, 0)]),
    ];
    for (rules, pages, rows) in cases {
        assert!(send(&mut store, 1, rules, pages, &rows, 0).is_err(), "{rules:?} {pages:?} {rows:?}");
        assert_eq!(store.counters().row_bytes, 0);
        assert_eq!(store.table(number).unwrap().page_count, 0);
    }
    assert_eq!(store.end(0), Err(TableError::NotBegun));
    assert_eq!(store.add_rows(&[0]), Err(TableError::NotBegun));
    assert_eq!(send(&mut store, 9, &one, &[], &[], 0), Err(TableError::NotMapped));
    assert_eq!(send(&mut store, 1, &one, &[], &rows(201, 0), 0), Err(TableError::TooLarge));
    // Fewer or more than announced.
    let begin = TableBegin { executable: ExecutableId(1), first_page: 0, pages: 1, rows: 1 };
    store.begin(begin, 0).unwrap();
    assert_eq!(store.end(0), Err(TableError::Count("rows and pages")));
    store.begin(begin, 0).unwrap();
    store.add_rules(&one).unwrap();
    assert_eq!(store.add_rows(&[0, 1]), Err(TableError::Count("rows")));
    // And after all that a right one.
    send(&mut store, 1, &one, &[(0, 2)], &rows(2, 0), 0).unwrap();
    assert!(store.has(ExecutableId(1)));
}

#[test]
fn the_least_recently_used_makes_room_and_comes_back() {
    let mut store = store(100, 100);
    for id in 1..=4 {
        store.number(ExecutableId(id)).unwrap();
    }
    for id in 1..=3 {
        send(&mut store, id, &[rule(8)], &[(0, 60)], &rows(60, 0), u64::from(id)).unwrap();
    }
    store.used(ExecutableId(1), 1, 10);
    // Room comes only when nobody can be reading the old rows any more.
    assert!(store.used(ExecutableId(4), 1, SECOND));
    assert_eq!(send(&mut store, 4, &[rule(8)], &[(0, 60)], &rows(60, 0), SECOND), Err(TableError::NoRoom));
    assert!(!store.used(ExecutableId(4), 1, SECOND + 1) && store.used(ExecutableId(4), 1, 3 * SECOND));
    send(&mut store, 4, &[rule(8)], &[(0, 60)], &rows(60, 0), 3 * SECOND).unwrap();
    assert!(store.has(ExecutableId(4)));
    assert_eq!(store.counters().evicted, 1);
    assert!(!store.has(ExecutableId(2)));
    assert!(store.used(ExecutableId(2), 1, 4 * SECOND), "asked for when it is sampled again");
    assert!(store.counters().row_bytes <= 800);
}

#[test]
fn it_is_known_whether_rows_are_awaited() {
    let mut store = store(100, 10);
    let state = |store: &UnwindTables| store.table(store.numbers[&ExecutableId(1)]).unwrap().state;
    assert!(!store.awaits(ExecutableId(1)), "it is not mapped");
    store.used(ExecutableId(1), 1, 0);
    assert!(store.awaits(ExecutableId(1)));
    store.give_up(ExecutableId(1));
    assert_eq!((store.awaits(ExecutableId(1)), state(&store)), (false, TableEntry::ABSENT));
    // They may come later, and there may be none.
    send(&mut store, 1, &[], &[], &[], 0).unwrap();
    store.give_up(ExecutableId(1));
    assert_eq!(state(&store), TableEntry::KNOWN);
    store.remove(ExecutableId(1), 0);
    assert!(store.awaits(ExecutableId(1)), "evicted, and asked for again");
    // Whoever has its number next is another.
    store.give_up(ExecutableId(1));
    store.remove(ExecutableId(1), 0);
    store.give_up(ExecutableId(1));
    let number = store.numbers[&ExecutableId(1)];
    store.retain(|_| false, 0);
    store.used(ExecutableId(2), 1, 0);
    assert_eq!(store.numbers[&ExecutableId(2)], number);
    assert!(store.awaits(ExecutableId(2)));
    store.retain(|_| false, 0);
    store.used(ExecutableId(1), 1, 0);
    for bad in [rows(201, 0), rows(1, 7)] {
        store.remove(ExecutableId(1), 0);
        assert!(send(&mut store, 1, &[rule(8)], &[(0, 1)], &bad, 0).is_err());
        assert_eq!(state(&store), TableEntry::ABSENT);
    }
}

#[test]
fn a_part_of_the_store_is_kept_free() {
    let mut store = store(800, 800);
    for id in 1..=8 {
        store.number(ExecutableId(id)).unwrap();
    }
    let mut send = |id: u32, now| {
        let sent = send(&mut store, id, &[rule(8)], &[(0, 180)], &rows(180, 0), now);
        store.settle(now);
        (sent, store.has_room_to_spare(), store.counters().evicted)
    };
    for id in 1..=7 {
        assert_eq!(send(id, id.into()), (Ok(()), id <= 4, 0), "{id}");
    }
    assert_eq!(
        send(8, 8),
        (Ok(()), false, 1),
        "the last one had room, and the first one makes room for the next"
    );
    assert_eq!(send(1, SECOND), (Ok(()), false, 2));
}

#[test]
fn rules_are_shared_and_have_a_bound() {
    let mut store = store(100, 10);
    for id in 1..=2 {
        store.number(ExecutableId(id)).unwrap();
        send(&mut store, id, &[rule(8), rule(16)], &[(0, 2)], &rows(2, 1), 0).unwrap();
    }
    assert_eq!(store.counters().rules, 4);
    let many: Vec<Rule> = (1..=20).map(|i| rule(i * 8)).collect();
    send(&mut store, 1, &many, &[(0, 1)], &[Row::new(0, 19)], 0).unwrap();
    assert_eq!(store.counters().rules, 8);
    let entry = store.table(store.numbers[&ExecutableId(1)]).unwrap();
    let row = store.row(store.page(entry.pages).unwrap().first).unwrap();
    assert_eq!(store.rule(row.rule().into()), Some(Rule::of(Cfa::Unsupported)));
}

#[test]
fn executables_that_are_gone_leave_their_numbers() {
    let mut store = store(100, 10);
    let numbers: Vec<_> = (1..=9).map(|id| store.number(ExecutableId(id))).collect();
    assert_eq!(numbers.iter().flatten().count(), 8, "there is a bound");
    send(&mut store, 1, &[rule(8)], &[(0, 2)], &rows(2, 0), 0).unwrap();
    store.retain(|id| id == ExecutableId(2), 0);
    assert!(!store.has(ExecutableId(1)));
    store.settle(10 * SECOND);
    assert_eq!(store.counters().row_bytes, 0);
    assert!(store.number(ExecutableId(20)).is_some());
}

#[test]
fn a_store_fits_its_bytes() {
    for bytes in [0, 1, 1 << 20, 64 << 20, 1 << 40] {
        let (pairs, pages) = sizes(bytes);
        assert!(pages >= 1 && pairs >= PAIRS_PER_PAGE);
        if (1 << 20..1 << 35).contains(&bytes) {
            let used = u64::from(pairs) * 8 + u64::from(pages) * 8;
            assert!(used <= bytes && used > bytes * 9 / 10);
        }
    }
}
