//! A small direct-mapped memory of address lookups, so that the packets of many flows between few machines do not pay
//! for a hash table each. Owner: one worker. It forgets everything when new tables are adopted.

use sluice_tables::Address;

/// Places; two addresses that share one only cost each other the table's lookup.
const PLACES: usize = 256;

#[derive(Clone, Copy)]
struct Place<V> {
    address: Address,
    value: V,
    /// Epoch it was learned in; 0: never.
    epoch: u32,
}

/// Values by address, as the current tables have them.
pub(crate) struct Memo<V> {
    places: Box<[Place<V>; PLACES]>,
    epoch: u32,
}

impl<V: Copy + Default> Default for Memo<V> {
    fn default() -> Self {
        let empty = Place { address: Address::default(), value: V::default(), epoch: 0 };
        Memo { places: Box::new([empty; PLACES]), epoch: 1 }
    }
}

#[inline(always)]
fn place_of(address: &Address) -> usize {
    let [.., a, b, c, d] = address.0;
    (u32::from_be_bytes([a, b, c, d]).wrapping_mul(0x9e37_79b1) >> 24) as usize
}

impl<V: Copy + Default> Memo<V> {
    /// The value of an address: remembered, else asked of `find` and remembered; an absence is not remembered.
    #[inline(always)]
    pub(crate) fn get(&mut self, address: Address, find: impl FnOnce() -> Option<V>) -> Option<V> {
        let place = &mut self.places[place_of(&address)];
        if place.address == address && place.epoch == self.epoch {
            return Some(place.value);
        }
        let value = find()?;
        *place = Place { address, value, epoch: self.epoch };
        Some(value)
    }

    /// Forgets everything: the tables have changed.
    pub(crate) fn forget(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            *self = Memo::default();
        }
    }
}

/// Values by IPv4 address, as the current tables have them: address and value in one word, so that a look is one load. A
/// value is never 0, which marks an empty place.
pub(crate) struct Memo4(Box<[u64; PLACES]>);

impl Default for Memo4 {
    fn default() -> Self {
        Memo4(Box::new([0; PLACES]))
    }
}

impl Memo4 {
    /// The value of an address: remembered, else asked of `find` and remembered; an absence is not remembered.
    #[inline(always)]
    pub(crate) fn get(&mut self, address: u32, find: impl FnOnce() -> Option<u32>) -> Option<u32> {
        let place = &mut self.0[(address.wrapping_mul(0x9e37_79b1) >> 24) as usize];
        let value = *place as u32;
        if (*place >> 32) as u32 == address && value != 0 {
            return Some(value);
        }
        let value = find()?;
        *place = u64::from(address) << 32 | u64::from(value);
        Some(value)
    }

    /// Forgets everything: 2 KB are cleared.
    pub(crate) fn forget(&mut self) {
        self.0.fill(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ipv4_memo_asks_once_keeps_addresses_apart_and_forgets() {
        let mut memo = Memo4::default();
        assert_eq!(
            (memo.get(0, || None), memo.get(0, || Some(3)), memo.get(0, || panic!("known"))),
            (None, Some(3), Some(3))
        );
        for _ in 0..2 {
            for n in 1..5_000u32 {
                assert_eq!(memo.get(n, || Some(n + 1)), Some(n + 1));
            }
        }
        memo.forget();
        assert_eq!(memo.get(7, || Some(9)), Some(9));
    }

    #[test]
    fn a_value_is_asked_for_once_until_the_tables_change() {
        let mut memo = Memo::<u16>::default();
        let a = Address::v4([10, 0, 0, 1]);
        assert_eq!(memo.get(a, || None), None);
        assert_eq!(memo.get(a, || Some(7)), Some(7));
        assert_eq!(memo.get(a, || panic!("known")), Some(7));
        memo.forget();
        assert_eq!(memo.get(a, || Some(8)), Some(8));
    }

    #[test]
    fn addresses_that_share_a_place_are_kept_apart() {
        let mut memo = Memo::<u32>::default();
        for _ in 0..2 {
            for n in 0..5_000u32 {
                assert_eq!(memo.get(Address::v4(n.to_be_bytes()), || Some(n)), Some(n));
            }
        }
    }
}
