//! Which Services a new cluster makes different, told from the last one without looking into what stayed the same.
//!
//! Owner: the control thread. Invariant: objects are kept in the order of their names, as the cluster has them. Cost: one
//! comparison of pointers for each object, a look inside only where the pointer differs.

use std::sync::Arc;

use hashbrown::HashSet;

use crate::model::{Cluster, EndpointSlice, NamespacedName, Service};

/// An object that has a name.
pub(crate) trait Named {
    fn name(&self) -> &NamespacedName;
}

impl Named for Service {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

impl Named for EndpointSlice {
    fn name(&self) -> &NamespacedName {
        &self.name
    }
}

/// Services and slices of a cluster, as one compilation saw them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    services: Vec<Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Seen {
    pub fn of(cluster: &Cluster) -> Seen {
        Seen {
            services: cluster.services.values().cloned().collect(),
            slices: cluster.endpoint_slices.values().cloned().collect(),
        }
    }

    /// Names of the Services that are new, gone or different, or one of whose slices is.
    pub fn changed(&self, now: &Seen) -> HashSet<NamespacedName> {
        let mut names = HashSet::new();
        differences(&self.services, &now.services, |service| {
            names.insert(service.name.clone());
        });
        differences(&self.slices, &now.slices, |slice| {
            if let Some(service) = &slice.service {
                names.insert(NamespacedName::new(slice.name.namespace.clone(), service.clone()));
            }
        });
        names
    }
}

/// Calls `tell` with both forms of every object that differs.
fn differences<T: Named + Eq>(before: &[Arc<T>], now: &[Arc<T>], mut tell: impl FnMut(&T)) {
    let (mut old, mut new) = (before.iter().peekable(), now.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(a), Some(b)) if Arc::ptr_eq(a, b) => {
                old.next();
                new.next();
                continue;
            }
            (Some(a), Some(b)) => a.name().cmp(b.name()),
        };
        let gone = if order.is_le() { old.next() } else { None };
        let came = if order.is_ge() { new.next() } else { None };
        if gone != came {
            gone.into_iter().chain(came).for_each(|object| tell(object));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::cluster;
    use std::collections::BTreeSet;

    fn slice(name: &str, service: &str, address: &str) -> String {
        format!(
            "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: {service}}}}}, \
             addressType: IPv4, endpoints: [{{addresses: [{address}]}}]}}"
        )
    }

    fn service(name: &str, port: u16) -> String {
        format!("{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{ports: [{{port: {port}}}]}}}}")
    }

    fn changed(before: &[String], now: &[String]) -> BTreeSet<String> {
        let seen = |texts: &[String]| Seen::of(&cluster(&texts.join("\n---\n")));
        seen(before).changed(&seen(now)).into_iter().map(|name| name.name).collect()
    }

    #[test]
    fn equal_clusters_have_no_changes_though_every_object_was_made_anew() {
        let world = [service("a", 1), service("b", 2), slice("s", "a", "10.0.0.1")];
        assert_eq!(changed(&world, &world), BTreeSet::new());
    }

    #[test]
    fn what_came_went_or_differs_is_named_and_slices_name_both_their_services() {
        let names = |list: &[&str]| list.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        let before = [service("a", 1), service("c", 1), service("d", 1), slice("s", "a", "10.0.0.1")];
        let now = [service("b", 1), service("c", 2), service("d", 1), slice("s", "e", "10.0.0.1")];
        assert_eq!(changed(&before, &now), names(&["a", "b", "c", "e"]));
        let moved = [service("a", 1), service("c", 1), service("d", 1), slice("s", "a", "10.0.0.2")];
        assert_eq!(changed(&before, &moved), names(&["a"]));
        assert_eq!(changed(&before, &before[..3]), names(&["a"]));
        assert_eq!(changed(&[], &before), names(&["a", "c", "d"]));
    }
}
