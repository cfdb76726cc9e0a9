//! A namespaced network policy: which pods it isolates, and what it allows them.
//!
//! Owner: the control thread. Source: networking.k8s.io/v1 `NetworkPolicy`. Policies only add up: what none of those
//! that select a pod allows is denied. A policy that could not be understood is one that allows nothing.

use ipnet::IpNet;

use super::{FailClosed, NamespacedName, PortMatch, Selector};

/// A network with holes in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IpBlock {
    /// `ipBlock.cidr`, host bits cleared.
    pub cidr: IpNet,
    /// `ipBlock.except`: networks inside, that this block does not match.
    pub except: Vec<IpNet>,
}

/// The namespaces in which a peer's pod selector selects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum NamespaceScope {
    /// The policy's own namespace: no `namespaceSelector` was given.
    Own,
    /// Namespaces by their labels.
    Selected(Selector),
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Peer {
    /// Pods by namespace and by label; both must match.
    Pods {
        /// Where to look.
        namespaces: NamespaceScope,
        /// Which pods there.
        pods: Selector,
    },
    /// Addresses, compared after Service translation.
    Block(IpBlock),
}

/// One entry of `ingress` or `egress`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicyRule {
    /// None matches every peer (the list was missing or empty).
    pub peers: Option<Vec<Peer>>,
    /// None matches every protocol and port (the list was missing or empty).
    pub ports: Option<Vec<PortMatch>>,
}

/// The annotation that, with the value `audit`, makes a policy record what it would deny instead of denying it.
pub const ENFORCEMENT_ANNOTATION: &str = "sluicegate.dev/enforcement";

/// A network policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NetworkPolicy {
    /// Namespace and name.
    pub name: NamespacedName,
    /// The pods of the policy's namespace it applies to.
    pub pods: Selector,
    /// None: the policy does not speak of ingress. Some isolates, and an empty list allows nothing.
    pub ingress: Option<Vec<PolicyRule>>,
    /// None: the policy does not speak of egress. Some isolates, and an empty list allows nothing.
    pub egress: Option<Vec<PolicyRule>>,
    /// Directions that were not understood; their rule lists are empty already.
    pub fail_closed: FailClosed,
    /// [`ENFORCEMENT_ANNOTATION`] says `audit`: what this policy alone denies passes and is recorded.
    pub audit: bool,
}
