//! Who of the clients is silent, and for how long: when there is no place for a new one, the longest silent one goes.
//!
//! A client is silent from its connection, or its last answer, until a request of its has come whole. Owner: the API thread.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// All silent clients of one address, the longest silent first.
#[derive(Debug, Default)]
pub struct Silent {
    next: AtomicU64,
    waiting: Mutex<BTreeMap<u64, Arc<Notify>>>,
}

impl Silent {
    /// Cuts the one that has been silent longest; nobody, where all are being served.
    pub fn cut_longest(&self) {
        if let Some((_, longest)) = self.list().pop_first() {
            longest.notify_one();
        }
    }

    fn list(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Notify>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's place.
#[derive(Clone, Debug)]
pub struct Seat(Arc<Place>);

#[derive(Debug)]
struct Place {
    silent: Arc<Silent>,
    since: AtomicU64,
    cut: Arc<Notify>,
}

impl Seat {
    /// A client that has just come and said nothing yet.
    pub fn new(silent: Arc<Silent>) -> Seat {
        let seat = Seat(Arc::new(Place { silent, since: AtomicU64::new(0), cut: Arc::default() }));
        seat.falls_silent();
        seat
    }

    /// A request of the client is whole.
    pub fn speaks(&self) {
        self.0.silent.list().remove(&self.0.since.load(Ordering::Relaxed));
    }

    /// The client has its answer.
    pub fn falls_silent(&self) {
        let since = self.0.silent.next.fetch_add(1, Ordering::Relaxed);
        self.0.since.store(since, Ordering::Relaxed);
        self.0.silent.list().insert(since, self.0.cut.clone());
    }

    /// Ends when the client is to be cut.
    pub async fn cut(&self) {
        self.0.cut.notified().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.silent.list().remove(&self.since.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn is_cut(seat: &Seat) -> bool {
        pin!(seat.cut()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_longest_silent_client_goes_and_one_that_is_served_does_not() {
        let silent = Arc::new(Silent::default());
        let seats: Vec<Seat> = (0..4).map(|_| Seat::new(silent.clone())).collect();
        seats[0].speaks();
        seats[1].speaks();
        seats[1].falls_silent();
        silent.cut_longest();
        assert_eq!(seats.iter().map(is_cut).collect::<Vec<_>>(), [false, false, true, false]);
        drop(seats.into_iter().nth(3));
        silent.cut_longest();
        silent.cut_longest();
        assert!(silent.list().is_empty());
    }
}
