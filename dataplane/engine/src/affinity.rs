//! Which backend a client was given, for Services that keep their clients (`sessionAffinity: ClientIP`).
//!
//! Owner: shared by all workers, so that a client outside keeps its backend whichever worker the NIC gives its next
//! connection to, and the outcome does not depend on the number of workers; asked on the first packet of a flow only.
//! Source: core/v1 `Service.spec.sessionAffinity`. One entry stands for a client and a Service, all its ports: a client
//! that reaches one port of a pod reaches the others of the same pod.
//!
//! ```text
//! bucket, 64 bytes:  4 × { client and Service, hashed: 64 bits │ tag of the backend's address: 32 │ last asked, seconds: 32 }
//! ```
//! Invariants: fixed size; each word is one atomic, nobody waits. Two workers that write one place at once leave a client
//! to the choice by hash once, which is where it began. A full pair of buckets gives up the client that was silent
//! longest. Time-outs are the asker's, so a Service may change its own at any time. The buckets may lie in a file behind a
//! [`ClientsHeader`] (`docs/adr/0023`), where the next process finds its clients. Cost: two cache lines.

use crate::flow::Tuple;
use crate::nodes::plan::flow_hash;
use sluice_port::Mapped;
use sluice_tables::Address;
use sluice_tables::services::tag_of;
use sluice_tables::stable_hash::{mix, stable_hash};
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Places in a bucket: one cache line.
const WAYS: usize = 4;
/// Clients remembered unless told otherwise: 2 MB.
pub const CLIENTS: usize = 131_072;

#[derive(Debug, Default, FromBytes, IntoBytes)]
#[repr(C)]
struct Place {
    /// 0: free.
    client: AtomicU64,
    /// Tag and time; 0: being written.
    choice: AtomicU64,
}

/// Places side by side: one cache line.
#[derive(Debug, Default, FromBytes, IntoBytes)]
#[repr(C, align(64))]
pub struct Bucket([Place; WAYS]);

/// Where the buckets are.
enum Buckets {
    Plain(Box<[Bucket]>),
    InFile(Mapped<Bucket>),
}

impl std::fmt::Debug for Buckets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (place, buckets) = match self {
            Buckets::Plain(buckets) => ("Plain", buckets.len()),
            Buckets::InFile(buckets) => ("InFile", buckets.len()),
        };
        write!(f, "{place}({buckets})")
    }
}

/// The clients of a node's Services.
#[derive(Debug)]
pub struct Affinity {
    buckets: Buckets,
}

/// The first bytes of a file that clients lie in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ClientsHeader {
    magic: [u8; 8],
    /// Fingerprint of what a place's numbers mean.
    layout: u64,
    /// The kernel's run: seconds are counted from its start.
    boot: [u8; 16],
}

impl ClientsHeader {
    /// Where buckets begin: on a page boundary of any size that a file system has here.
    pub const BUCKETS_AT: u64 = 2 << 20;

    /// The header of this program's clients.
    pub fn new(boot: [u8; 16]) -> ClientsHeader {
        let tuple = Tuple {
            source: Address::v4([1, 2, 3, 4]),
            destination: Address::v6([7; 16]),
            source_port: 0x1122,
            destination_port: 0x3344,
            protocol: 17,
        };
        // Made by the code that makes real ones: another hash or another place for a field is another layout.
        let (client, tag) = (Client::new(flow_hash(&tuple), 0x5152_5354), tag_of(tuple.destination));
        let mut sample = Place { client: client.0.into(), choice: Affinity::choice(tag, 0x6162_6364).into() };
        ClientsHeader { magic: *b"SLUICECL", layout: stable_hash(&(&*sample.as_mut_bytes(), WAYS as u64)), boot }
    }
}

impl Default for Affinity {
    fn default() -> Self {
        Affinity::new(CLIENTS)
    }
}

/// A client of a Service, as the table knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Client(u64);

impl Client {
    /// From a hash of the client's address and the Service's own hash.
    pub fn new(client: u64, service: u64) -> Client {
        Client(mix(client ^ service.rotate_left(32)).max(1))
    }
}

impl Affinity {
    /// Room for about so many clients, rounded up to a power of two.
    pub fn new(clients: usize) -> Affinity {
        Affinity { buckets: Buckets::Plain((0..Self::buckets_for(clients)).map(|_| Bucket::default()).collect()) }
    }

    /// Buckets for so many clients: a power of two.
    pub fn buckets_for(clients: usize) -> usize {
        clients.div_ceil(WAYS).next_power_of_two()
    }

    /// Over the buckets of a file, with the clients that are in it; none where they are no power of two.
    pub fn over(buckets: Mapped<Bucket>) -> Option<Affinity> {
        buckets.len().is_power_of_two().then_some(Affinity { buckets: Buckets::InFile(buckets) })
    }

    fn buckets(&self) -> &[Bucket] {
        match &self.buckets {
            Buckets::Plain(buckets) => buckets,
            Buckets::InFile(buckets) => buckets,
        }
    }

    fn choice(tag: u32, now: u32) -> u64 {
        u64::from(tag) << 32 | u64::from(now.max(1))
    }

    fn places(&self, client: Client) -> impl Iterator<Item = &Place> {
        let buckets = self.buckets();
        let mask = buckets.len() as u64 - 1;
        let (first, second) = (client.0 & mask, (client.0 >> 32) & mask);
        let of = |at: u64| buckets.get(at as usize).map_or(&[][..], |b| &b.0[..]);
        of(first).iter().chain(of(second).iter().filter(move |_| first != second))
    }

    /// Tag of the backend the client was given, if it asked within the last `timeout` seconds.
    pub fn recall(&self, client: Client, now: u32, timeout: u32) -> Option<u32> {
        let place = self.places(client).find(|p| p.client.load(Ordering::Acquire) == client.0)?;
        let choice = place.choice.load(Ordering::Acquire);
        let (tag, asked) = ((choice >> 32) as u32, choice as u32);
        (choice != 0 && now.saturating_sub(asked) <= timeout).then_some(tag)
    }

    /// The client has this backend now, and has just asked.
    pub fn remember(&self, client: Client, tag: u32, now: u32) {
        let choice = Self::choice(tag, now);
        if let Some(place) = self.places(client).find(|p| p.client.load(Ordering::Acquire) == client.0) {
            place.choice.store(choice, Ordering::Release);
            return;
        }
        let free = self.places(client).find(|p| {
            p.client.load(Ordering::Relaxed) == 0
                && p.client.compare_exchange(0, client.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        });
        if let Some(place) = free {
            place.choice.store(choice, Ordering::Release);
            return;
        }
        let silent = self.places(client).min_by_key(|p| p.choice.load(Ordering::Relaxed) as u32);
        if let Some(place) = silent {
            // In this order, whoever finds the new client never finds the old one's choice.
            place.choice.store(0, Ordering::Release);
            place.client.store(client.0, Ordering::Release);
            place.choice.store(choice, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn client(n: u64) -> Client {
        Client::new(mix(n), 1)
    }

    #[test]
    fn a_client_is_known_for_as_long_as_it_keeps_asking_and_no_longer() {
        let table = Affinity::new(64);
        table.remember(client(1), 7, 100);
        assert_eq!(table.recall(client(1), 160, 60), Some(7), "to the last second");
        assert_eq!(table.recall(client(1), 161, 60), None);
        table.remember(client(1), 7, 160);
        assert_eq!(table.recall(client(1), 161, 60), Some(7), "asking refreshes");
        assert_eq!(table.recall(client(2), 100, 60), None);
        assert_eq!(table.recall(client(1), 86_560, 86_400), Some(7), "a day");
    }

    #[test]
    fn clients_in_a_file_are_found_by_the_next_process() {
        let folder = tempfile::tempdir().unwrap();
        let open = || {
            let path = folder.path().join("clients");
            let file =
                std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap();
            let mut buckets = Mapped::<Bucket>::in_file(file.into(), 4096, Affinity::buckets_for(64)).unwrap();
            assert!(buckets.reserve(Affinity::buckets_for(64)));
            Affinity::over(buckets).unwrap()
        };
        let table = open();
        (0..40).for_each(|n| table.remember(client(n), n as u32, 100));
        let before: Vec<_> = (0..40).map(|n| table.recall(client(n), 160, 60)).collect();
        drop(table);
        let again = open();
        assert_eq!((0..40).map(|n| again.recall(client(n), 160, 60)).collect::<Vec<_>>(), before);
        assert!(before.iter().flatten().count() > 20);
        assert_ne!(ClientsHeader::new([1; 16]), ClientsHeader::new([2; 16]), "another boot's seconds mean nothing");
    }

    #[test]
    fn two_services_do_not_share_a_client() {
        let table = Affinity::new(64);
        table.remember(Client::new(9, 1), 7, 1);
        assert_eq!(table.recall(Client::new(9, 2), 1, 60), None);
    }

    #[test]
    fn a_full_table_gives_up_the_client_that_was_silent_longest() {
        let table = Affinity::new(4);
        for n in 0..4 {
            table.remember(client(n), n as u32, 10 + n as u32);
        }
        table.remember(client(0), 0, 20);
        table.remember(client(9), 9, 21);
        let known: Vec<_> = (0..4).map(|n| table.recall(client(n), 21, 60)).collect();
        assert_eq!(known, [Some(0), None, Some(2), Some(3)]);
        assert_eq!(table.recall(client(9), 21, 60), Some(9));
    }

    #[test]
    fn half_full_it_forgets_next_to_nobody() {
        let table = Affinity::new(8192);
        (0..4096).for_each(|n| table.remember(client(n), n as u32, 5));
        let known = (0..4096).filter(|n| table.recall(client(*n), 5, 60) == Some(*n as u32)).count();
        assert!(known > 4050, "{known} of 4096");
    }

    proptest! {
        #[test]
        fn it_never_tells_a_client_anothers_backend(asked in prop::collection::vec((0u64..40, any::<u32>()), 1..200)) {
            let (table, mut oracle) = (Affinity::new(16), HashMap::new());
            for (n, tag) in asked {
                table.remember(client(n), tag, 5);
                oracle.insert(n, tag);
                for (n, tag) in &oracle {
                    let told = table.recall(client(*n), 5, 60);
                    prop_assert!(told.is_none_or(|t| t == *tag));
                }
                prop_assert_eq!(table.recall(client(n), 5, 60), Some(tag));
            }
        }
    }

    #[test]
    fn workers_that_write_at_once_leave_nothing_but_what_one_of_them_wrote() {
        let table = Affinity::new(8);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for round in 0..20_000u32 {
                        let n = u64::from(round % 24);
                        table.remember(client(n), n as u32, round);
                        // Another worker may be writing the place, so anything of a client of this place may be seen.
                        let told = table.recall(client(n), round, 60);
                        assert!(told.is_none_or(|t| t < 24));
                    }
                });
            }
        });
        for n in 0..24 {
            assert!(table.recall(client(n), 20_000, 86_400).is_none_or(|t| t < 24));
        }
    }
}
