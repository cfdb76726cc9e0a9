//! Neighbours the packet path has no MAC for: workers note the address, control resolves it and publishes new tables.

use crossbeam::queue::ArrayQueue;
use sluice_tables::Address;

/// A bounded list of addresses; what does not fit is asked again by the next packet.
#[derive(Debug)]
pub struct Wanted {
    queue: ArrayQueue<Address>,
}

impl Default for Wanted {
    fn default() -> Self {
        Wanted { queue: ArrayQueue::new(256) }
    }
}

impl Wanted {
    /// Notes an address.
    pub fn ask(&self, address: Address) {
        let _ = self.queue.push(address);
    }

    /// Takes what was noted; for control.
    pub fn drain(&self) -> Vec<Address> {
        let mut all: Vec<Address> = std::iter::from_fn(|| self.queue.pop()).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}
