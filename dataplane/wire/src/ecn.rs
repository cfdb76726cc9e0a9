//! Congestion marks across a tunnel.
//!
//! Source: RFC 6040 §4.1 (normal mode) and §4.2 figure 4; RFC 2983 §4.1 for the DSCP, which is copied outwards and not
//! back (pipe model on the way out of the tunnel). Owner thread: any. Invariant: a mark set on the way is never lost without the
//! packet being lost too. Cost: one table look-up.

/// Not ECN-capable.
pub const NOT_ECT: u8 = 0b00;
/// ECN-capable, codepoint 1.
pub const ECT_1: u8 = 0b01;
/// ECN-capable, codepoint 0.
pub const ECT_0: u8 = 0b10;
/// Congestion experienced.
pub const CE: u8 = 0b11;

/// The tunnel met congestion and the inner packet's sender could not be told but by losing the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EcnDrop;

/// Outer DSCP and ECN of a packet with `inner` DSCP and ECN: both copied.
#[inline]
pub const fn encap(inner: u8) -> u8 {
    inner
}

/// DSCP and ECN that a packet goes on with after a tunnel: its own DSCP, and the stronger mark of both.
#[inline]
pub const fn decap(inner: u8, outer: u8) -> Result<u8, EcnDrop> {
    let ecn = match (inner & 3, outer & 3) {
        (NOT_ECT, CE) => return Err(EcnDrop),
        (NOT_ECT, _) => NOT_ECT,
        (_, CE) => CE,
        // ECT(1) may be a milder mark than CE, so it survives over ECT(0).
        (ECT_0, ECT_1) => ECT_1,
        (own, _) => own,
    };
    Ok(inner & !3 | ecn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cell_of_figure_4_is_as_printed() {
        // Rows: inner. Columns: outer Not-ECT, ECT(0), ECT(1), CE.
        let figure = [
            (NOT_ECT, [Some(NOT_ECT), Some(NOT_ECT), Some(NOT_ECT), None]),
            (ECT_0, [Some(ECT_0), Some(ECT_0), Some(ECT_1), Some(CE)]),
            (ECT_1, [Some(ECT_1), Some(ECT_1), Some(ECT_1), Some(CE)]),
            (CE, [Some(CE), Some(CE), Some(CE), Some(CE)]),
        ];
        for (inner, row) in figure {
            for (outer, expected) in [NOT_ECT, ECT_0, ECT_1, CE].into_iter().zip(row) {
                assert_eq!(decap(inner, outer).ok(), expected, "inner {inner:02b}, outer {outer:02b}");
            }
        }
    }

    #[test]
    fn the_inner_dscp_survives_and_goes_outwards() {
        assert_eq!(decap(0xb8 | ECT_0, 0x20 | CE), Ok(0xb8 | CE));
        assert_eq!(encap(0xb8 | CE), 0xb8 | CE);
    }
}
