//! sluicegate.dev/v1alpha1 `IPPool`: strict; a pool half understood gives addresses to the wrong ones, so it gives none.

use super::{At, Effect, Problem, Report, envelope};
use crate::model::{IpPool, PoolUse};
use crate::source::Kind;

/// Imports a pool; none where it was not understood.
pub(super) fn import(name: String, root: &At<'_>, report: &mut Report) -> Option<IpPool> {
    match read(name, root) {
        Ok(pool) => Some(pool),
        Err(problem) => {
            report.add(Effect::ObjectIgnored, problem);
            None
        }
    }
}

fn read(name: String, root: &At<'_>) -> Result<IpPool, Problem> {
    envelope(root, Kind::IpPool)?;
    let spec = root.get("spec");
    spec.only(&["use", "cidrs", "namespaceSelector"])?;
    let use_field = spec.get("use");
    let usage = match use_field.required_text()? {
        "pods" => PoolUse::Pods,
        "services" => PoolUse::Services,
        "egress" => PoolUse::Egress,
        other => return Err(use_field.problem(format!("expected pods, services or egress, found {other:?}"))),
    };
    let cidrs_field = spec.get("cidrs");
    let mut cidrs = Vec::new();
    for entry in cidrs_field.list()? {
        cidrs.push(entry.network()?);
    }
    if cidrs.is_empty() {
        return Err(cidrs_field.problem("must name at least one network"));
    }
    let namespaces = spec.get("namespaceSelector").selector()?;
    Ok(IpPool { name, usage, cidrs, namespaces })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::import::tests::{cluster, cluster_and_problems};
    use crate::model::Selector;

    const HEAD: &str = "apiVersion: sluicegate.dev/v1alpha1, kind: IPPool, metadata: {name: edge}";

    #[test]
    fn a_pool_is_read_whole() {
        let cluster = cluster(&format!(
            "{{{HEAD}, spec: {{use: pods, cidrs: [10.60.0.1/20, 'fd60::/64'], namespaceSelector: {{}}}}}}"
        ));
        let pool = &cluster.ip_pools["edge"];
        assert_eq!(pool.usage, PoolUse::Pods);
        assert_eq!(pool.cidrs, vec!["10.60.0.0/20".parse().unwrap(), "fd60::/64".parse().unwrap()]);
        assert!(pool.namespaces.as_ref().is_some_and(Selector::is_everything));
    }

    #[test]
    fn a_pool_half_understood_gives_no_address() {
        for spec in
            ["{use: all, cidrs: [10.60.0.0/20]}", "{use: pods}", "{use: pods, cidrs: [10.60.0.0/20], nodes: {}}"]
        {
            let (cluster, problems) = cluster_and_problems(&format!("{{{HEAD}, spec: {spec}}}"));
            assert!(cluster.ip_pools.is_empty(), "{spec}");
            assert!(problems[0].ends_with("(object ignored)"), "{problems:?}");
        }
    }
}
