//! Address to numeric identity: pods and nodes exactly, everything else by longest prefix of the policies' CIDRs.

use crate::address::Address;
use crate::lpm::Lpm;
use hashbrown::HashMap;
use std::sync::Arc;

/// A class of addresses that every rule treats alike, numbered by its content. 0 is "no rule knows it".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct IdentityId(pub u32);

/// The two lookups.
#[derive(Clone, Debug, Default)]
pub struct Identities {
    /// Pods of the whole cluster (and other single addresses with labels).
    pub exact: Arc<HashMap<Address, IdentityId>>,
    /// CIDRs of all rules, each prefix with the identity of addresses whose most specific prefix it is.
    pub prefixes: Arc<Lpm<IdentityId>>,
}

impl Identities {
    /// The identity of an address.
    #[inline]
    pub fn of(&self, address: Address) -> IdentityId {
        match self.exact.get(&address) {
            Some(id) => *id,
            None => self.prefixes.lookup(address).copied().unwrap_or_default(),
        }
    }

    /// How many identities there are, that of unknown addresses included.
    pub fn count(&self) -> usize {
        let prefixes = self.prefixes.entries().into_iter().map(|(_, id)| *id);
        let all: hashbrown::HashSet<IdentityId> = self.exact.values().copied().chain(prefixes).collect();
        all.len() + usize::from(!all.contains(&IdentityId(0)))
    }

    /// Memory of both lookups, in bytes.
    pub fn bytes(&self) -> usize {
        self.exact.allocation_size() + self.prefixes.bytes()
    }
}
