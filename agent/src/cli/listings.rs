//! `sluice services`, `sluice pods`, `sluice policies`: what is programmed on this node.

use super::agent::Agent;
use super::failure::Done;
use super::output::{Output, table, yes};
use crate::api::report::{BackendReport, PodReport, PolicyReport, ServiceReport, VfReport};
use clap::Args;

/// The Services as programmed on this node.
#[derive(Args)]
#[command(after_help = "Examples:\n  sluice services\n  sluice services shop/web -o json")]
pub struct ServicesArgs {
    /// Only this Service.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = super::pod_name)]
    name: Option<String>,
}

/// Prints Services, a line for each frontend.
pub fn services(agent: &Agent, args: &ServicesArgs, output: &Output) -> Done {
    let mut services: Vec<ServiceReport> = agent.get("/v1/services")?;
    if let Some(name) = &args.name {
        services.retain(|service| service.name == *name);
        if services.is_empty() {
            let message = format!("Service {name} is not programmed on this node");
            return Err(super::failure::Failure::untrue(message));
        }
    }
    output.print(&services, || {
        let rows = services.iter().flat_map(|service| {
            service.frontends.iter().map(|frontend| {
                let ready = frontend.backends.iter().filter(|backend| backend.ready).count();
                let local = frontend.backends.iter().filter(|backend| backend.ready && backend.local).count();
                let backends: Vec<String> = frontend.backends.iter().map(backend).collect();
                let counts = format!("{ready} ({local} here)");
                let texts = [&service.name, &frontend.kind, &frontend.address, &frontend.protocol].map(Clone::clone);
                texts.into_iter().chain([counts, frontend.topology.clone(), backends.join(" ")])
            })
        });
        table(&["SERVICE", "KIND", "ADDRESS", "PROTOCOL", "READY", "TOPOLOGY", "BACKENDS"], rows)
    })
}

/// An address; `*` marks those on this node, brackets those that get no new connections.
fn backend(backend: &BackendReport) -> String {
    let star = if backend.local { "*" } else { "" };
    if backend.ready { format!("{}{star}", backend.address) } else { format!("({}{star})", backend.address) }
}

/// Prints the pods of this node.
pub fn pods(agent: &Agent, output: &Output) -> Done {
    let pods: Vec<PodReport> = agent.get("/v1/pods")?;
    output.print(&pods, || {
        let rows = pods.iter().map(|pod| {
            let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
            [
                pod.name.clone(),
                addresses.join(","),
                pod.port.to_string(),
                pod.worker.to_string(),
                pod.mac.clone(),
                yes(pod.ingress_isolated),
                yes(pod.egress_isolated),
                pod.unenforced.clone().unwrap_or_default(),
                pod.netns.clone(),
            ]
        });
        let head =
            ["POD", "ADDRESSES", "PORT", "WORKER", "MAC", "INGRESS ISOLATED", "EGRESS ISOLATED", "UNENFORCED", "NETNS"];
        table(&head, rows)
    })
}

/// Prints the virtual functions of this node.
pub fn vfs(agent: &Agent, output: &Output) -> Done {
    let vfs: Vec<VfReport> = agent.get("/v1/vfs")?;
    output.print(&vfs, || {
        let number = |n: Option<u32>| n.map_or("-".to_owned(), |n| n.to_string());
        let rows = vfs.iter().map(|vf| {
            let owner = if vf.enforced { vf.owner.clone() } else { format!("{} (unenforced)", vf.owner) };
            [
                vf.address.clone(),
                vf.pf.as_ref().map_or("-".to_owned(), |pf| format!("{pf} vf {}", number(vf.index))),
                vf.id.clone(),
                number(vf.numa_node),
                vf.driver.clone(),
                vf.method.clone(),
                vf.interface.clone(),
                vf.state.clone(),
                owner,
                vf.reason.clone(),
            ]
        });
        let head = ["DEVICE", "PF", "ID", "NODE", "DRIVER", "FOR USERSPACE", "INTERFACE", "STATE", "OWNER", "REASON"];
        table(&head, rows)
    })
}

/// Prints the policies of the cluster.
pub fn policies(agent: &Agent, output: &Output) -> Done {
    let policies: Vec<PolicyReport> = agent.get("/v1/policies")?;
    output.print(&policies, || {
        let rows = policies.iter().map(|policy| {
            let problems: Vec<String> = policy.problems.iter().map(ToString::to_string).collect();
            let name = format!("{}/{}", policy.kind, policy.name);
            let directions = policy.directions.join(",");
            let count = |verdict: &str| policy.verdicts.get(verdict).copied().unwrap_or_default().to_string();
            [
                name,
                yes(policy.accepted),
                directions,
                policy.selected_pods.join(","),
                count("allow"),
                count("deny"),
                count("audit-deny"),
                problems.join("; "),
            ]
        });
        let head = ["POLICY", "ACCEPTED", "DIRECTIONS", "PODS HERE", "ALLOWED", "DENIED", "AUDITED", "PROBLEMS"];
        table(&head, rows)
    })
}
