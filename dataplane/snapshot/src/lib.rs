//! Hands one immutable value from the control thread to every worker, generation by generation.
//!
//! ```text
//! control                          worker
//! publish(v2): next = v2 ────────▶ refresh(): offered moved? try_lock, take next, leave v1 in `retired`
//!              retired ◀────────── (v1 is freed by control at the next publish or collect)
//!              applied ◀────────── generation now in use
//! ```
//! A worker pays one plain load a turn while nothing changes, never blocks (a contended mailbox is looked at again next
//! turn), and never frees an old value. Owner of [`Writer`]: the control thread; of each [`Reader`]: one worker.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

struct Mail<T> {
    next: Option<(u64, Arc<T>)>,
    retired: Option<Arc<T>>,
}

struct Slot<T> {
    /// Generation of the newest value in the mailbox.
    offered: AtomicU64,
    /// Generation the worker runs on.
    applied: AtomicU64,
    mail: Mutex<Mail<T>>,
}

/// The publishing end.
pub struct Writer<T> {
    slots: Vec<Arc<Slot<T>>>,
    current: Arc<T>,
    generation: u64,
}

/// One worker's end.
pub struct Reader<T> {
    slot: Arc<Slot<T>>,
    current: Arc<T>,
    generation: u64,
}

impl<T> Writer<T> {
    /// Starts with generation 1.
    pub fn new(first: Arc<T>) -> Self {
        Writer { slots: Vec::new(), current: first, generation: 1 }
    }

    /// A reader that starts on the current value.
    pub fn reader(&mut self) -> Reader<T> {
        let slot = Arc::new(Slot {
            offered: AtomicU64::new(self.generation),
            applied: AtomicU64::new(self.generation),
            mail: Mutex::new(Mail { next: None, retired: None }),
        });
        self.slots.push(Arc::clone(&slot));
        Reader { slot, current: Arc::clone(&self.current), generation: self.generation }
    }

    /// Offers a new value to every worker and returns its generation. A value that a worker has not taken yet is
    /// replaced; values that workers have left are freed here.
    pub fn publish(&mut self, value: Arc<T>) -> u64 {
        self.generation += 1;
        for slot in &self.slots {
            let mut mail = slot.mail.lock().unwrap_or_else(PoisonError::into_inner);
            mail.next = Some((self.generation, Arc::clone(&value)));
            let old = mail.retired.take();
            slot.offered.store(self.generation, Ordering::Release);
            drop(mail);
            drop(old);
        }
        self.current = value;
        self.generation
    }

    /// Frees what workers have left behind; returns how many values were freed.
    pub fn collect(&mut self) -> usize {
        let retired = |slot: &Arc<Slot<T>>| slot.mail.lock().unwrap_or_else(PoisonError::into_inner).retired.take();
        self.slots.iter().filter_map(retired).count()
    }

    /// The newest value.
    pub fn current(&self) -> &Arc<T> {
        &self.current
    }

    /// Its generation.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The oldest generation a worker still runs on: everything up to it is applied everywhere.
    pub fn applied(&self) -> u64 {
        self.slots.iter().map(|s| s.applied.load(Ordering::Acquire)).min().unwrap_or(self.generation)
    }
}

impl<T> Reader<T> {
    /// Takes a newer value if one waits. `true` if the value changed.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        if self.slot.offered.load(Ordering::Acquire) == self.generation { false } else { self.take() }
    }

    #[cold]
    fn take(&mut self) -> bool {
        let Ok(mut mail) = self.slot.mail.try_lock() else { return false };
        // A value still in `retired` has not been collected: leave the new one for later rather than free it here.
        if mail.retired.is_some() {
            return false;
        }
        let Some((generation, value)) = mail.next.take() else { return false };
        mail.retired = Some(std::mem::replace(&mut self.current, value));
        self.generation = generation;
        self.slot.applied.store(generation, Ordering::Release);
        true
    }

    /// The value in use.
    #[inline]
    pub fn get(&self) -> &Arc<T> {
        &self.current
    }

    /// Its generation.
    #[inline]
    pub fn generation(&self) -> u64 {
        self.generation
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn applied_is_the_slowest_workers_generation() {
        let mut writer = Writer::new(Arc::new(0));
        let (mut a, mut b) = (writer.reader(), writer.reader());
        let generation = writer.publish(Arc::new(1));
        assert_eq!(writer.applied(), 1);
        assert!(a.refresh());
        assert_eq!(writer.applied(), 1);
        assert!(b.refresh());
        assert_eq!(writer.applied(), generation);
        assert!(!a.refresh());
        assert_eq!(**a.get(), 1);
    }

    #[test]
    fn an_untaken_value_is_replaced_by_the_newest() {
        let mut writer = Writer::new(Arc::new(0));
        let mut reader = writer.reader();
        writer.publish(Arc::new(1));
        writer.publish(Arc::new(2));
        assert!(reader.refresh());
        assert_eq!((**reader.get(), reader.generation()), (2, 3));
    }

    #[test]
    fn old_values_are_freed_by_the_writer_only() {
        struct Watched(Arc<Mutex<Vec<std::thread::ThreadId>>>);
        impl Drop for Watched {
            fn drop(&mut self) {
                self.0.lock().unwrap().push(std::thread::current().id());
            }
        }
        let freed = Arc::new(Mutex::new(Vec::new()));
        let mut writer = Writer::new(Arc::new(Watched(Arc::clone(&freed))));
        let mut reader = writer.reader();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let worker = std::thread::spawn(move || {
            while !stopping.load(Ordering::Relaxed) {
                reader.refresh();
                std::hint::spin_loop();
            }
            reader
        });
        for _ in 0..2000 {
            writer.publish(Arc::new(Watched(Arc::clone(&freed))));
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        let reader = worker.join().unwrap();
        let own = std::thread::current().id();
        assert!(freed.lock().unwrap().iter().all(|thread| *thread == own));
        drop(reader);
    }
}
