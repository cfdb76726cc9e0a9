//! Selectors found by the labels of what they select, so that nobody asks every selector.
//!
//! Owner: the control thread. A selector that asks for one of some values of a key stands under each of these values; the
//! others are asked always. Cost: one look-up per label, and a match per selector found.

use std::collections::HashMap;

use crate::model::{Labels, Requirement, Selector};

/// Things by selector.
#[derive(Debug)]
pub(crate) struct LabelIndex<T> {
    by_label: HashMap<String, HashMap<String, Vec<(Selector, T)>>>,
    rest: Vec<(Selector, T)>,
}

impl<T> Default for LabelIndex<T> {
    fn default() -> Self {
        LabelIndex { by_label: HashMap::new(), rest: Vec::new() }
    }
}

impl<T: Copy> LabelIndex<T> {
    pub fn insert(&mut self, selector: &Selector, item: T) {
        let listed = selector.requirements().find_map(|r| match r {
            Requirement::In(key, values) => Some((key, values)),
            _ => None,
        });
        match listed {
            Some((key, values)) => {
                let by_value = self.by_label.entry(key.clone()).or_default();
                for value in values {
                    by_value.entry(value.clone()).or_default().push((selector.clone(), item));
                }
            }
            None => self.rest.push((selector.clone(), item)),
        }
    }

    /// Calls `each` with everything whose selector matches.
    pub fn matching(&self, labels: &Labels, mut each: impl FnMut(T)) {
        let listed = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value)).flatten();
        for (selector, item) in listed.chain(&self.rest) {
            if selector.matches(labels) {
                each(*item);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn requirement() -> impl Strategy<Value = Requirement> {
        let key = "[abc]";
        let values = prop::collection::btree_set("[xy]", 0..3);
        prop_oneof![
            (key, values.clone()).prop_map(|(k, v)| Requirement::In(k, v)),
            (key, values).prop_map(|(k, v)| Requirement::NotIn(k, v)),
            key.prop_map(Requirement::Exists),
            key.prop_map(Requirement::DoesNotExist),
        ]
    }

    proptest! {
        #[test]
        fn it_finds_what_asking_every_selector_finds_and_each_once(
            selectors in prop::collection::vec(prop::collection::vec(requirement(), 0..4), 0..12),
            labels in prop::collection::btree_map("[abc]", "[xy]", 0..4),
        ) {
            let selectors: Vec<Selector> = selectors.into_iter().map(Selector::new).collect();
            let mut index = LabelIndex::default();
            selectors.iter().enumerate().for_each(|(at, s)| index.insert(s, at));
            let mut found = Vec::new();
            index.matching(&labels, |at| found.push(at));
            found.sort_unstable();
            let expected: Vec<usize> = (0..selectors.len()).filter(|at| selectors[*at].matches(&labels)).collect();
            prop_assert_eq!(found.iter().copied().collect::<BTreeSet<_>>().len(), found.len());
            prop_assert_eq!(found, expected);
        }
    }
}
