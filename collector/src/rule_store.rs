//! The distinct unwind rules of all executables: a few thousand on a whole machine, so each is kept once, under a number.

use std::collections::HashMap;

use records::{Cfa, MAX_RULES, Rule};

use crate::shared_array::SharedArray;

/// Numbers of two rules that are always there.
const UNKNOWN: u16 = 0;
const UNSUPPORTED: u16 = 1;

/// Rules in the memory that the BPF programs read. A rule once given a number keeps it.
pub(crate) struct RuleStore {
    shared: SharedArray<Rule>,
    numbers: HashMap<Rule, u16>,
    /// Rules that found no room: their rows end an unwind.
    pub(crate) refused: u64,
}

impl RuleStore {
    pub(crate) fn new(shared: SharedArray<Rule>) -> Self {
        let mut store = RuleStore { shared, numbers: HashMap::new(), refused: 0 };
        store.number(Rule::of(Cfa::Unknown));
        store.number(Rule::of(Cfa::Unsupported));
        store
    }

    /// The number of a rule.
    pub(crate) fn number(&mut self, rule: Rule) -> u16 {
        if rule.cfa == Cfa::Unknown as u8 && !self.numbers.is_empty() {
            return UNKNOWN;
        }
        if let Some(number) = self.numbers.get(&rule) {
            return *number;
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(MAX_RULES);
        match u16::try_from(next) {
            Ok(number) if next < self.shared.len() => {
                self.shared.set(next, rule);
                self.numbers.insert(rule, number);
                number
            }
            _ => {
                self.refused += 1;
                UNSUPPORTED
            }
        }
    }

    /// The rule of a number.
    pub(crate) fn get(&self, number: u32) -> Option<Rule> {
        self.shared.get(number)
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rules_are_one_and_there_is_a_bound() {
        let mut store = RuleStore::new(SharedArray::unshared(4));
        let rule = |cfa_offset| Rule { cfa: Cfa::Sp as u8, cfa_offset, ..Rule::default() };
        let number = store.number(rule(8));
        assert_eq!((store.number(rule(8)), store.get(u32::from(number))), (number, Some(rule(8))));
        assert_ne!(store.number(rule(16)), number);
        assert_eq!(store.number(rule(24)), UNSUPPORTED);
        assert_eq!((store.len(), store.refused), (4, 1));
        // Offsets mean nothing where nothing is known.
        assert_eq!(store.number(Rule { cfa_offset: 9, ..Rule::of(Cfa::Unknown) }), UNKNOWN);
    }
}
