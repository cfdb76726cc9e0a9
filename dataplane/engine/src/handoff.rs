//! Rings between workers: one single-producer ring for each ordered pair, carrying packets with what is known of them.
//!
//! All ports share one frame pool, so a packet moves as a descriptor; nothing is copied.

use crate::item::Item;
use rtrb::{Consumer, Producer, RingBuffer};

/// Items a ring holds.
const DEPTH: usize = 1024;

/// One worker's ends of the rings.
#[derive(Default)]
pub struct Handoff {
    to: Vec<Option<Producer<Item>>>,
    from: Vec<Consumer<Item>>,
    /// Workers that were given something since the last look, one bit each.
    touched: u64,
}

impl Handoff {
    /// The rings of `workers` workers, one element for each.
    pub fn mesh(workers: usize) -> Vec<Handoff> {
        let mut all: Vec<Handoff> = (0..workers)
            .map(|_| Handoff { to: (0..workers).map(|_| None).collect(), from: Vec::new(), touched: 0 })
            .collect();
        for source in 0..workers {
            for target in 0..workers {
                if source != target {
                    let (producer, consumer) = RingBuffer::new(DEPTH);
                    all[source].to[target] = Some(producer);
                    all[target].from.push(consumer);
                }
            }
        }
        all
    }

    /// Puts a packet into another worker's ring; gives it back if the ring is full.
    #[inline]
    pub fn push(&mut self, worker: u16, item: Item) -> Result<(), Item> {
        match self.to.get_mut(usize::from(worker)) {
            Some(Some(ring)) => {
                self.touched |= 1 << (worker & 63);
                ring.push(item).map_err(|rtrb::PushError::Full(item)| item)
            }
            _ => Err(item),
        }
    }

    /// Workers that were given something since the last call, one bit each (number modulo 64).
    #[inline]
    pub fn take_touched(&mut self) -> u64 {
        std::mem::take(&mut self.touched)
    }

    /// Takes at most `max` packets from the other workers.
    #[inline]
    pub fn pop(&mut self, max: usize, out: &mut Vec<Item>) -> usize {
        let before = out.len();
        for ring in &mut self.from {
            while out.len() - before < max {
                match ring.pop() {
                    Ok(item) => out.push(item),
                    Err(rtrb::PopError::Empty) => break,
                }
            }
        }
        out.len() - before
    }
}
