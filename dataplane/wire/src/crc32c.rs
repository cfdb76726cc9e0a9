//! CRC32c, in one piece, in pieces, and by difference.
//!
//! Source: RFC 9260 appendix A (Castagnoli polynomial 0x1edc6f41, reflected). Owner thread: any. Cost: eight table
//! lookups per eight bytes (8 KiB of tables); [`change`] at most 16 multiplications of polynomials.
//!
//! A CRC is linear: `crc(a ^ b) = crc(a) ^ crc(b) ^ crc(0)` for equal lengths. So bytes that change by an exclusive-or
//! change the CRC by the remainder of that difference, shifted by the bytes behind it, whatever those are.

/// The polynomial, least significant bit first.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// `TABLES[k][b]`: what byte `b` contributes with `k` bytes behind it.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut tables = [[0u32; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut byte = 0;
        while byte < 256 {
            let previous = tables[k - 1][byte];
            tables[k][byte] = previous >> 8 ^ tables[0][(previous & 0xff) as usize];
            byte += 1;
        }
        k += 1;
    }
    tables
}

/// `SHIFTS[k]`: x^(8 · 2^k) modulo the polynomial, the factor that 2^k bytes behind a difference are.
static SHIFTS: [u32; 32] = shifts();

const fn shifts() -> [u32; 32] {
    let mut shifts = [0u32; 32];
    // Reflected, x^n for n < 32 is bit 31 - n: this is x^8.
    shifts[0] = 1 << (31 - 8);
    let mut k = 1;
    while k < 32 {
        shifts[k] = multiply(shifts[k - 1], shifts[k - 1]);
        k += 1;
    }
    shifts
}

/// The product of two reflected polynomials modulo the polynomial.
const fn multiply(a: u32, mut b: u32) -> u32 {
    let mut product = 0;
    let mut bit = 1u32 << 31;
    while bit != 0 {
        if a & bit != 0 {
            product ^= b;
        }
        b = if b & 1 == 1 { b >> 1 ^ POLYNOMIAL } else { b >> 1 };
        bit >>= 1;
    }
    product
}

/// A CRC over bytes that come in pieces.
#[derive(Clone, Copy, Debug)]
pub struct Crc32c(u32);

impl Crc32c {
    /// Nothing read yet.
    pub const NEW: Self = Self(!0);

    /// Reads the next piece.
    #[inline]
    pub fn push(&mut self, piece: &[u8]) {
        let (words, tail) = piece.as_chunks::<8>();
        let mut crc = self.0;
        for word in words {
            let [a, b, c, d] = (crc ^ u32::from_le_bytes([word[0], word[1], word[2], word[3]])).to_le_bytes();
            crc = TABLES[7][usize::from(a)]
                ^ TABLES[6][usize::from(b)]
                ^ TABLES[5][usize::from(c)]
                ^ TABLES[4][usize::from(d)]
                ^ TABLES[3][usize::from(word[4])]
                ^ TABLES[2][usize::from(word[5])]
                ^ TABLES[1][usize::from(word[6])]
                ^ TABLES[0][usize::from(word[7])];
        }
        for byte in tail {
            crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8 ^ byte)];
        }
        self.0 = crc;
    }

    /// The CRC of all pieces.
    #[inline]
    pub const fn value(self) -> u32 {
        !self.0
    }
}

/// What to exclusive-or into a CRC when four bytes change by `difference` (old ^ new) and `behind` bytes follow them.
#[inline]
pub fn change(difference: [u8; 4], behind: usize) -> u32 {
    let mut crc = u32::from_le_bytes(difference);
    for _ in 0..4 {
        crc = crc >> 8 ^ TABLES[0][usize::from(crc as u8)];
    }
    let mut left = behind as u32;
    while left != 0 && crc != 0 {
        crc = multiply(SHIFTS[left.trailing_zeros() as usize], crc);
        left &= left - 1;
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn crc(bytes: &[u8]) -> u32 {
        let mut crc = Crc32c::NEW;
        crc.push(bytes);
        crc.value()
    }

    #[test]
    fn the_check_values_of_rfc_3720_come_out() {
        assert_eq!(crc(b"123456789"), 0xe306_9283);
        assert_eq!(crc(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc(&[0xff; 32]), 0x62a8_ab43);
        let ascending: Vec<u8> = (0..32).collect();
        assert_eq!(crc(&ascending), 0x46dd_794e);
    }

    proptest! {
        #[test]
        fn pieces_give_the_crc_of_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..100), cut in 0usize..100) {
            let (a, b) = bytes.split_at(cut.min(bytes.len()));
            let mut pieces = Crc32c::NEW;
            pieces.push(a);
            pieces.push(b);
            prop_assert_eq!(pieces.value(), crc(&bytes));
        }

        #[test]
        fn a_difference_moves_the_crc_as_reading_again_does(
            mut bytes in prop::collection::vec(any::<u8>(), 4..3000), at in any::<prop::sample::Index>(), xor in any::<[u8; 4]>(),
        ) {
            let at = at.index(bytes.len() - 3);
            let before = crc(&bytes);
            for (byte, flip) in bytes[at..].iter_mut().zip(xor) {
                *byte ^= flip;
            }
            prop_assert_eq!(before ^ change(xor, bytes.len() - at - 4), crc(&bytes));
        }
    }
}
