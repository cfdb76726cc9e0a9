//! Sizes that a table's index types can hold, and the error for content that does not fit.
//!
//! Owner: the control thread. Invariant: whoever builds a table asks here first, so that no index ever wraps; an
//! over-full table is an error of the whole generation, and the last good one stands.

/// Most ways out: [`crate::HopId`] is 16 bits wide.
pub const MAX_HOPS: usize = 65_535;
/// Most ports of one node, uplink and host included; a flow's zone is 16 bits wide.
pub const MAX_PORTS: usize = 65_535;
/// Most backends of one set: every backend must own at least one slot of the largest Maglev table.
pub const MAX_BACKENDS: usize = crate::maglev::LARGEST_TABLE;

/// Why a table could not be built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// More entries than the table's index type can number.
    #[error("{got} {what}, the limit is {limit}")]
    TooMany {
        /// What there is too much of, in the plural.
        what: &'static str,
        /// The most that fits.
        limit: usize,
        /// How many there are.
        got: usize,
    },
}

/// `Ok` if `got` things fit into `limit`.
pub fn at_most(what: &'static str, limit: usize, got: usize) -> Result<(), TableError> {
    if got <= limit { Ok(()) } else { Err(TableError::TooMany { what, limit, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_itself_fits_and_one_more_says_what_is_too_much() {
        assert_eq!(at_most("hops", 3, 3), Ok(()));
        let error = at_most("hops", 3, 4).unwrap_err();
        assert_eq!(error.to_string(), "4 hops, the limit is 3");
    }
}
