//! Verdicts by rule: how often each rule has allowed, denied, or would have denied the first packet of a flow.
//!
//! Owner: one worker; control asks it for a copy. Room is reserved at start; rules beyond it are counted together.

use hashbrown::HashMap;
use sluice_tables::RuleId;

/// Rules told apart.
const ROOM: usize = 16_384;

/// Counts by rule: allowed, denied, audited.
#[derive(Debug)]
pub struct Tally {
    counts: HashMap<RuleId, [u64; 3]>,
    others: [u64; 3],
}

impl Default for Tally {
    fn default() -> Self {
        Tally { counts: HashMap::with_capacity(ROOM), others: [0; 3] }
    }
}

impl Tally {
    /// Counts a verdict: 0 allowed, 1 denied, 2 audited. What no rule has decided is not counted here.
    pub(crate) fn add(&mut self, rule: RuleId, verdict: usize) {
        if rule == RuleId::NONE {
            return;
        }
        if self.counts.len() >= ROOM && !self.counts.contains_key(&rule) {
            self.others[verdict] += 1;
        } else {
            self.counts.entry(rule).or_default()[verdict] += 1;
        }
    }

    /// Counts of the rules told apart.
    pub fn counts(&self) -> impl Iterator<Item = (RuleId, [u64; 3])> + '_ {
        self.counts.iter().map(|(rule, counts)| (*rule, *counts))
    }

    /// Counts of all others.
    pub fn others(&self) -> [u64; 3] {
        self.others
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_beyond_the_room_are_counted_together() {
        let mut tally = Tally::default();
        for n in 0..=ROOM as u32 {
            tally.add(RuleId(RuleId::FIRST.0 + n), 1);
        }
        tally.add(RuleId::NONE, 0);
        tally.add(RuleId::FIRST, 0);
        assert_eq!((tally.counts().count(), tally.others()), (ROOM, [0, 1, 0]));
        assert!(tally.counts().any(|(rule, counts)| rule == RuleId::FIRST && counts == [1, 1, 0]));
    }
}
