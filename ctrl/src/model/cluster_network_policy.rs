//! A cluster-wide network policy: ordered rules above (Admin) or below (Baseline) the namespaced policies.
//!
//! Owner: the control thread. Source: policy.networking.k8s.io/v1alpha2 `ClusterNetworkPolicy`. Order of evaluation:
//! tier, priority (lower first), name, position of the rule. A direction that could not be understood is one rule that
//! denies everything.

use ipnet::IpNet;

use super::{FailClosed, PortMatch, Selector};

/// `spec.tier`, in the order of evaluation; namespaced policies stand between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Before namespaced policies.
    Admin,
    /// After them, for pods they do not select.
    Baseline,
}

/// `spec.subject`: the pods a policy applies to; pods on the host's network are never among them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// Namespaces by their labels.
    pub namespaces: Selector,
    /// Pods there; everything where the subject names namespaces only.
    pub pods: Selector,
}

/// What a matching rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleAction {
    /// Allowed, nothing else is asked.
    Accept,
    /// Denied, nothing else is asked.
    Deny,
    /// The rest of this tier is skipped.
    Pass,
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ClusterPeer {
    /// Pods (not on the host's network) by namespace and label; everything as pod selector for a `namespaces` peer.
    Pods {
        /// Where to look.
        namespaces: Selector,
        /// Which pods there.
        pods: Selector,
    },
    /// The addresses of nodes, by the nodes' labels; egress only.
    Nodes(Selector),
    /// Addresses, inside the cluster as well as outside; egress only.
    Networks(Vec<IpNet>),
    /// Addresses that the pod was told in DNS answers about these names (lower case, no dot at the end; `*.` in front
    /// stands for one label or more); egress Accept rules only.
    Domains(Vec<String>),
}

/// One entry of `ingress` or `egress`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterRule {
    /// `name`, where given; else a verdict names the rule by its position.
    pub name: Option<String>,
    /// What happens to what matches.
    pub action: RuleAction,
    /// None matches everything, an empty list nothing; only rules that stand for something not understood have these.
    pub peers: Option<Vec<ClusterPeer>>,
    /// None matches every protocol and port.
    pub ports: Option<Vec<PortMatch>>,
}

impl ClusterRule {
    /// The rule that stands in for a direction that was not understood; verdicts name it `fail-closed`.
    pub fn deny_everything() -> ClusterRule {
        ClusterRule { name: Some("fail-closed".to_owned()), action: RuleAction::Deny, peers: None, ports: None }
    }

    /// What a rule becomes whose peers or protocols were not understood: an Accept matches nothing, a Deny or Pass
    /// denies everything, as the API asks of implementations that meet a newer API.
    pub fn closed(name: Option<String>, action: RuleAction) -> ClusterRule {
        match action {
            RuleAction::Accept => ClusterRule { name, action, peers: Some(Vec::new()), ports: None },
            RuleAction::Deny | RuleAction::Pass => {
                ClusterRule { name, action: RuleAction::Deny, peers: None, ports: None }
            }
        }
    }
}

/// A cluster-wide network policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ClusterNetworkPolicy {
    /// `metadata.name`.
    pub name: String,
    /// `spec.tier`.
    pub tier: Tier,
    /// `spec.priority`, 0 to 1000; lower goes first.
    pub priority: u16,
    /// `spec.subject`.
    pub subject: Subject,
    /// `spec.ingress`; empty leaves ingress alone.
    pub ingress: Vec<ClusterRule>,
    /// `spec.egress`; empty leaves egress alone.
    pub egress: Vec<ClusterRule>,
    /// Directions that were not understood; their rules are replaced already.
    pub fail_closed: FailClosed,
    /// [`super::network_policy::ENFORCEMENT_ANNOTATION`] says `audit`: what its rules deny passes and is recorded.
    pub audit: bool,
}
