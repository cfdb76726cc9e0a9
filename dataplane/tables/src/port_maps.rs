//! The port maps of one rule set, laid out in one piece: a look-up reads a row and the few intervals it names.
//!
//! Owner: built by the control thread, read by workers. Why: sets and their maps are many and each is asked seldom, so that a
//! look-up waits for memory with every pointer that it follows. Invariant: the intervals of a row and protocol begin at port 0
//! and are sorted. Memory: 24 bytes a map, 8 an interval.

use crate::policy::{Decision, PortIntervals, PortMap, RuleId};

/// From its port up to the next interval's, this is decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Interval {
    rule: RuleId,
    from: u16,
    allow: bool,
    audit: bool,
}

impl Interval {
    fn decision(self) -> Decision {
        Decision { allow: self.allow, audit: self.audit, rule: self.rule }
    }
}

/// Where the intervals of one map begin: TCP, UDP, SCTP, and where the last end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Row {
    starts: [u32; 4],
    other: Decision,
}

/// All maps of a set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortMaps {
    rows: Box<[Row]>,
    intervals: Box<[Interval]>,
}

impl PortMaps {
    /// What a map decides for a protocol and a destination port; denied where there is no such map.
    #[inline]
    pub fn decide(&self, map: u32, protocol: u8, port: u16) -> Decision {
        let Some(row) = self.rows.get(map as usize) else { return Decision::ISOLATED };
        let (from, to) = match protocol {
            6 => (row.starts[0], row.starts[1]),
            17 => (row.starts[1], row.starts[2]),
            132 => (row.starts[2], row.starts[3]),
            _ => return row.other,
        };
        let intervals = self.intervals.get(from as usize..to as usize).unwrap_or_default();
        let at = intervals.partition_point(|interval| interval.from <= port);
        intervals.get(at.wrapping_sub(1)).map_or(Decision::ISOLATED, |interval| interval.decision())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Every map, in order.
    pub fn iter(&self) -> impl Iterator<Item = PortMap> + '_ {
        let list = |from: u32, to: u32| -> PortIntervals {
            let intervals = self.intervals.get(from as usize..to as usize).unwrap_or_default();
            intervals.iter().map(|interval| (interval.from, interval.decision())).collect()
        };
        self.rows.iter().map(move |row| {
            let [tcp, udp, sctp, end] = row.starts;
            PortMap { tcp: list(tcp, udp), udp: list(udp, sctp), sctp: list(sctp, end), other: row.other }
        })
    }

    /// Memory, in bytes.
    pub fn bytes(&self) -> usize {
        size_of_val(&*self.rows) + size_of_val(&*self.intervals)
    }
}

impl<'a> FromIterator<&'a PortMap> for PortMaps {
    fn from_iter<T: IntoIterator<Item = &'a PortMap>>(maps: T) -> Self {
        let (mut rows, mut intervals) = (Vec::new(), Vec::new());
        for map in maps {
            let mut starts = [0; 4];
            for (start, list) in starts.iter_mut().zip([&map.tcp, &map.udp, &map.sctp]) {
                *start = intervals.len() as u32;
                intervals.extend(list.iter().map(|(from, decision)| Interval {
                    rule: decision.rule,
                    from: *from,
                    allow: decision.allow,
                    audit: decision.audit,
                }));
            }
            starts[3] = intervals.len() as u32;
            rows.push(Row { starts, other: map.other });
        }
        PortMaps { rows: rows.into(), intervals: intervals.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decision() -> impl Strategy<Value = Decision> {
        (any::<bool>(), any::<bool>(), 1..9u32).prop_map(|(allow, audit, rule)| Decision {
            allow,
            audit,
            rule: RuleId(rule),
        })
    }

    fn intervals() -> impl Strategy<Value = PortIntervals> {
        let rest = prop::collection::btree_map(1..40u16, decision(), 0..5);
        (decision(), rest).prop_map(|(first, rest)| [(0, first)].into_iter().chain(rest).collect())
    }

    fn map() -> impl Strategy<Value = PortMap> {
        (intervals(), intervals(), intervals(), decision()).prop_map(|(tcp, udp, sctp, other)| PortMap {
            tcp,
            udp,
            sctp,
            other,
        })
    }

    #[test]
    fn a_map_that_is_not_there_denies() {
        assert_eq!(PortMaps::default().decide(0, 6, 80), Decision::ISOLATED);
        assert!(PortMaps::default().is_empty());
    }

    proptest! {
        #[test]
        fn maps_in_one_piece_decide_as_each_by_itself(maps in prop::collection::vec(map(), 0..6)) {
            let together: PortMaps = maps.iter().collect();
            prop_assert_eq!(together.iter().collect::<Vec<_>>(), maps.clone());
            for (at, map) in (0..).zip(&maps) {
                for protocol in [6, 17, 132, 1, 58, 47] {
                    for port in (0..42).chain([65_535]) {
                        prop_assert_eq!(together.decide(at, protocol, port), map.decide(protocol, port));
                    }
                }
            }
            prop_assert_eq!(together.decide(maps.len() as u32, 6, 1), Decision::ISOLATED);
        }
    }
}
