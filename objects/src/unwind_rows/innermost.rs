//! Functions that overlap: which of them says how to unwind from a place.
//!
//! The one that begins last before it. That is what the C++ runtime finds through `.eh_frame_hdr`, and what is right for
//! the cases that there are: a leftover entry that spans a whole section, a piece of assembly within a function.

use std::{cmp::Reverse, ops::Range};

/// A function that some section describes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Function {
    /// First ELF address.
    pub(super) begin: u64,
    /// One more than the last ELF address.
    pub(super) end: u64,
    /// Where its entry begins in its section, in bytes.
    pub(super) entry: u32,
    /// Number of its section.
    pub(super) section: u8,
}

/// Sorts by address; of functions in the same place the one that counts comes last.
pub(super) fn sort(functions: &mut [Function]) {
    functions.sort_unstable_by_key(|function| {
        let Function { begin, end, entry, section } = *function;
        (begin, Reverse(section), Reverse(end), Reverse(entry))
    });
}

/// Calls `each` for the pieces of sorted functions that none of the others takes, in the order of addresses. There are
/// at most two for each function.
pub(super) fn pieces<E>(
    functions: &[Function],
    mut each: impl FnMut(Function, Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut open: Vec<Function> = Vec::new();
    let mut at = 0;
    for next in functions.iter().map(Some).chain([None]) {
        let until = next.map_or(u64::MAX, |next| next.begin);
        while let Some(top) = open.last().copied() {
            let end = top.end.min(until);
            if at < end {
                each(top, at..end)?;
                at = end;
            }
            if top.end > until {
                break;
            }
            open.pop();
        }
        if let Some(next) = next {
            at = at.max(next.begin);
            open.push(*next);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(begin: u64, end: u64, entry: u32) -> Function {
        Function { begin, end, entry, section: 0 }
    }

    fn cut(mut functions: Vec<Function>) -> Vec<(u32, Range<u64>)> {
        let mut found = Vec::new();
        sort(&mut functions);
        pieces::<()>(&functions, |function, range| {
            found.push((function.entry, range));
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn an_outer_function_goes_on_after_an_inner_one() {
        let nested =
            vec![function(20, 30, 2), function(0, 100, 1), function(22, 25, 3), function(200, 210, 4)];
        assert_eq!(
            cut(nested),
            [(1, 0..20), (2, 20..22), (3, 22..25), (2, 25..30), (1, 30..100), (4, 200..210),]
        );
        assert_eq!(cut(vec![function(0, 50, 1), function(30, 80, 2)]), [(1, 0..30), (2, 30..80)]);
    }

    #[test]
    fn of_equal_ones_the_first_entry_counts_and_eh_frame_before_debug_frame() {
        assert_eq!(cut(vec![function(0, 10, 7), function(0, 10, 5), function(0, 10, 6)]), [(5, 0..10)]);
        let mut functions = vec![function(0, 10, 7), Function { section: 1, ..function(0, 10, 5) }];
        sort(&mut functions);
        assert_eq!(functions.last().unwrap().section, 0);
    }

    /// Against a search for each place.
    #[test]
    fn every_place_goes_to_the_function_that_begins_last() {
        let mut state = 1u32;
        let mut random = |below: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        };
        for _ in 0..2000 {
            let mut functions: Vec<Function> = (0..random(8))
                .map(|entry| {
                    let begin = u64::from(random(40));
                    function(begin, begin + 1 + u64::from(random(20)), entry)
                })
                .collect();
            let found = cut(functions.clone());
            assert!(found.len() < 2 * functions.len().max(1));
            sort(&mut functions);
            for place in 0..64 {
                let expected =
                    functions.iter().rfind(|function| (function.begin..function.end).contains(&place));
                let mut at_place = found.iter().filter(|(_, range)| range.contains(&place));
                assert_eq!(at_place.next().map(|found| found.0), expected.map(|function| function.entry));
                assert_eq!(at_place.next(), None);
            }
            assert!(found.is_sorted_by(|left, right| left.1.end <= right.1.start));
        }
    }
}
