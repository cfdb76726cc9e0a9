//! Notices when packets are steered to a port's sockets but do not come out of them.
//!
//! Runs on the control thread, at the pace of metrics. The program counts what it redirects ([`Verdicts`]), the queues
//! count what they receive and lose; if the first moves and the second stands still, a ring is stuck. Remedies, in
//! order: [`XskQueue::wake`](crate::XskQueue::wake), then closing and opening the queue again.
//!
//! [`Verdicts`]: crate::Verdicts

use sluice_port::PortStats;

/// Packets redirected without any being seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stall {
    /// How many since the last one that was seen.
    pub packets: u64,
    /// For how many observations in a row.
    pub observations: u32,
}

/// Compares two observations of one port.
#[derive(Clone, Copy, Debug, Default)]
pub struct Watchdog {
    redirected: u64,
    seen: u64,
    stuck: u32,
}

impl Watchdog {
    /// Observations without progress before it is a stall: one may fall between redirect and receive.
    const PATIENCE: u32 = 2;

    /// Takes note of the program's redirected packets and of the port's counters, summed over its queues. A stall is
    /// reported from the second observation on and until packets are seen again.
    pub fn observe(&mut self, redirected: u64, stats: &PortStats) -> Option<Stall> {
        let seen = stats.rx_packets + stats.rx_missed;
        if seen != self.seen || redirected == self.redirected {
            *self = Watchdog { redirected, seen, stuck: 0 };
            return None;
        }
        self.stuck += 1;
        (self.stuck >= Self::PATIENCE)
            .then(|| Stall { packets: redirected.saturating_sub(self.redirected), observations: self.stuck })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rx_packets: u64, rx_missed: u64) -> PortStats {
        PortStats { rx_packets, rx_missed, ..PortStats::default() }
    }

    #[test]
    fn packets_that_are_redirected_but_never_seen_are_a_stall() {
        let mut dog = Watchdog::default();
        assert_eq!(dog.observe(10, &seen(10, 0)), None);
        assert_eq!(dog.observe(12, &seen(10, 0)), None, "once may be chance");
        assert_eq!(dog.observe(15, &seen(10, 0)), Some(Stall { packets: 5, observations: 2 }));
        assert_eq!(dog.observe(15, &seen(15, 0)), None, "and it ends when they are seen");
    }

    #[test]
    fn an_idle_port_and_a_losing_port_are_no_stall() {
        let mut dog = Watchdog::default();
        for _ in 0..5 {
            assert_eq!(dog.observe(10, &seen(10, 0)), None);
        }
        for lost in 1..5 {
            assert_eq!(dog.observe(10 + lost, &seen(10, lost)), None);
        }
    }

    #[test]
    fn two_packets_that_stay_stuck_are_a_stall_though_no_more_come() {
        let mut dog = Watchdog::default();
        dog.observe(10, &seen(10, 0));
        dog.observe(12, &seen(10, 0));
        assert!(dog.observe(12, &seen(10, 0)).is_some());
    }
}
