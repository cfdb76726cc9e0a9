//! A keyed hash whose outputs tell nothing of further ones: which port a flow gets must not be guessed from outside.
//!
//! Owner: any thread. Source: SipHash-2-4 (Aumasson, Bernstein 2012); RFC 6056 §3.3.3 (hash-based port selection). The key is
//! one per process, or fixed in a replay. Cost: about 20 ns, on a flow's first packet alone.

/// The key.
#[derive(Clone, Copy, Debug, Default)]
pub struct Secret {
    k0: u64,
    k1: u64,
}

impl Secret {
    /// From a seed; the second half of the key follows from it.
    pub fn new(seed: u64) -> Self {
        // SplitMix64's step: a seed of few bits set must not give a key of few bits set.
        let step = |x: u64| {
            let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            x ^ (x >> 31)
        };
        Secret {
            k0: step(seed.wrapping_add(0x9e37_79b9_7f4a_7c15)),
            k1: step(seed.wrapping_add(0x3c6e_f372_fe94_f82a)),
        }
    }

    /// The hash of some words, each as its eight little-endian bytes.
    pub fn hash(&self, words: &[u64]) -> u64 {
        let mut sip = Sip::new(self);
        words.iter().for_each(|word| sip.absorb(*word));
        sip.finish((words.len() as u64 * 8) << 56)
    }
}

struct Sip([u64; 4]);

impl Sip {
    fn new(key: &Secret) -> Self {
        Sip([
            key.k0 ^ 0x736f_6d65_7073_6575,
            key.k1 ^ 0x646f_7261_6e64_6f6d,
            key.k0 ^ 0x6c79_6765_6e65_7261,
            key.k1 ^ 0x7465_6462_7974_6573,
        ])
    }

    fn round(&mut self) {
        let [a, b, c, d] = &mut self.0;
        *a = a.wrapping_add(*b);
        *b = b.rotate_left(13) ^ *a;
        *a = a.rotate_left(32);
        *c = c.wrapping_add(*d);
        *d = d.rotate_left(16) ^ *c;
        *a = a.wrapping_add(*d);
        *d = d.rotate_left(21) ^ *a;
        *c = c.wrapping_add(*b);
        *b = b.rotate_left(17) ^ *c;
        *c = c.rotate_left(32);
    }

    fn absorb(&mut self, word: u64) {
        self.0[3] ^= word;
        self.round();
        self.round();
        self.0[0] ^= word;
    }

    /// `last`: the length in the top byte, and the bytes that fill no whole word.
    fn finish(mut self, last: u64) -> u64 {
        self.absorb(last);
        self.0[2] ^= 0xff;
        (0..4).for_each(|_| self.round());
        self.0.iter().fold(0, |all, word| all ^ word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_of_the_paper() {
        // Appendix A: key 00…0f, input 00…0e.
        let key = Secret { k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908 };
        let mut sip = Sip::new(&key);
        sip.absorb(0x0706_0504_0302_0100);
        assert_eq!(sip.finish(0x0f0e_0d0c_0b0a_0908), 0xa129_ca61_49be_45e5);
    }

    #[test]
    fn another_seed_gives_another_order() {
        let picks = |seed| (0..64).map(|n| Secret::new(seed).hash(&[n]) % 64).collect::<Vec<_>>();
        assert_ne!(picks(1), picks(2));
        assert_eq!(picks(1), picks(1));
    }
}
