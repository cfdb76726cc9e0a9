//! Whether the cluster's Leases let this node answer for an address.
//!
//! Where there is an API server, each address that moves has a Lease that names the node which may answer for it, and each
//! such node a session, a Lease that it renews (`docs/adr/0022`). What is known of them comes in as a value: by whom an address
//! is held, until when our session lasts, when the API server was last heard. Rules, by how we stand among the nodes:
//!
//! | | may take | may keep |
//! |---|---|---|
//! | in a majority | with its Lease; without, where the API server is silent for a while or the address is urgent | unless another holds its Lease |
//! | alone, others unheard (one of two) | with its Lease | with its Lease |
//! | cut off from most | no | no |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use super::Instant;
use super::liveness::Standing;

/// The API server has not been heard for so long: it is silent.
pub const SILENCE: Duration = Duration::from_secs(1);
/// What is known of the Leases now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// They are in use; without, everything hangs on the majority.
    pub used: bool,
    /// Our session lasts until then, by our own clock, counted from before its last renewal was sent.
    pub until: Option<Instant>,
    /// Addresses whose Leases name us, written during this session.
    pub ours: BTreeSet<IpAddr>,
    /// Addresses whose Leases name a node whose session lives, and since when we know.
    pub others: BTreeMap<IpAddr, Instant>,
    /// For so long an address is kept by majority beside a Lease that names another: time for that one to let go, or for its
    /// session to run out.
    pub patience: Duration,
    /// When the API server last answered, or since when it has been asked in vain; none: it was not asked yet.
    pub heard: Option<Instant>,
}

impl Fence {
    /// Whether an address is ours by its Lease.
    pub fn holds(&self, address: IpAddr, now: Instant) -> bool {
        self.until.is_some_and(|until| now < until) && self.ours.contains(&address)
    }

    /// Whether the API server has been asked in vain for a while.
    pub fn is_silent(&self, now: Instant) -> bool {
        self.heard.is_some_and(|heard| now.saturating_sub(heard) >= SILENCE)
    }

    /// Whether we may begin to answer for an address; `together`: since when we are in touch with most. Whoever has only just
    /// met the others again does not know yet what they carry, nor whether the API server is there again. An `urgent` address
    /// is taken on the word of the majority: a node that is cut off from it lets go by itself.
    pub fn may_take(
        &self,
        address: IpAddr,
        standing: Standing,
        together: Option<Instant>,
        urgent: bool,
        now: Instant,
    ) -> bool {
        let known = together.is_some_and(|since| now.saturating_sub(since) >= SILENCE);
        match standing {
            Standing::CutOff => false,
            _ if !self.used => true,
            Standing::Majority => self.holds(address, now) || known && (urgent || self.is_silent(now)),
            Standing::Alone => self.holds(address, now),
        }
    }

    /// Whether we may go on answering for an address.
    pub fn may_keep(&self, address: IpAddr, standing: Standing, now: Instant) -> bool {
        let lost = || self.others.get(&address).is_some_and(|since| now.saturating_sub(*since) >= self.patience);
        match standing {
            Standing::CutOff => false,
            _ if !self.used => true,
            Standing::Majority => self.holds(address, now) || !lost(),
            Standing::Alone => self.holds(address, now),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;

    fn vip() -> IpAddr {
        IpAddr::from([192, 0, 2, 50])
    }

    fn held(until: u64) -> Fence {
        Fence {
            used: true,
            until: Some(S(until)),
            ours: [vip()].into(),
            heard: Some(S(until)),
            patience: S(1),
            ..Fence::default()
        }
    }

    #[test]
    fn without_leases_only_a_node_that_is_cut_off_lets_go() {
        let fence = Fence::default();
        for standing in [Standing::Majority, Standing::Alone] {
            assert!(fence.may_take(vip(), standing, Some(S(0)), false, S(9)) && fence.may_keep(vip(), standing, S(9)));
        }
        assert!(
            !fence.may_take(vip(), Standing::CutOff, Some(S(0)), false, S(9))
                && !fence.may_keep(vip(), Standing::CutOff, S(9))
        );
    }

    #[test]
    fn a_session_that_has_run_out_ends_the_hold_of_a_node_that_is_alone() {
        let fence = held(10);
        assert!(
            fence.may_keep(vip(), Standing::Alone, S(9))
                && fence.may_take(vip(), Standing::Alone, Some(S(0)), false, S(9))
        );
        assert!(
            !fence.may_keep(vip(), Standing::Alone, S(10))
                && !fence.may_take(vip(), Standing::Alone, Some(S(0)), false, S(10))
        );
        assert!(
            !fence.may_keep(IpAddr::from([192, 0, 2, 51]), Standing::Alone, S(9)),
            "of other addresses it says nothing"
        );
    }

    #[test]
    fn a_majority_outlives_a_silent_api_server_and_takes_without_it() {
        let fence = held(10);
        assert!(fence.may_keep(vip(), Standing::Majority, S(100)));
        assert!(
            !fence.may_take(vip(), Standing::Majority, Some(S(0)), false, S(10)),
            "it was heard just now: it will answer"
        );
        assert!(fence.may_take(vip(), Standing::Majority, Some(S(0)), false, S(11)));
        assert!(
            !fence.may_take(vip(), Standing::Majority, Some(S(11)), false, S(11)),
            "it has only just met the others again"
        );
        assert!(
            !Fence { used: true, ..Fence::default() }.may_take(vip(), Standing::Majority, Some(S(0)), false, S(9)),
            "it was not asked yet"
        );
    }

    #[test]
    fn a_lease_that_names_another_ends_what_a_majority_keeps() {
        let fence = Fence { others: [(vip(), S(20))].into(), heard: Some(S(20)), ..held(10) };
        assert!(!fence.may_take(vip(), Standing::Majority, Some(S(0)), false, S(10)));
        assert!(fence.may_take(vip(), Standing::Majority, Some(S(0)), true, S(10)), "an urgent address does not wait");
        assert!(fence.may_keep(vip(), Standing::Majority, S(20)), "the other may be about to let go");
        assert!(!fence.may_keep(vip(), Standing::Majority, S(21)));
    }
}
