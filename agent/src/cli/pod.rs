//! `sluice pod add` and `sluice pod del`: what kubelet's runtime asks through the CNI plugin, by hand.

use super::agent::Agent;
use super::failure::{Done, Failure};
use super::output::{Output, table};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use sluice_cni::protocol::{AddResult, CniRequest, Verb};
use sluice_cni::version::CniVersion;
use std::path::{Path, PathBuf};

/// What to do with a pod's port.
#[derive(Subcommand)]
pub enum PodCommand {
    /// Gives a network namespace the interface and addresses of a pod.
    #[command(after_help = "Example:\n  ip netns add web\n  sluice pod add --netns /var/run/netns/web shop/web-0")]
    Add(AddArgs),
    /// Takes the interface away again; succeeds where there is none.
    #[command(after_help = "Example:\n  sluice pod del shop/web-0")]
    Del(DelArgs),
}

/// Gives a network namespace the interface and addresses of a pod.
#[derive(Args)]
pub struct AddArgs {
    /// The pod.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = super::pod_name)]
    pod: String,
    /// Path of the network namespace, such as /var/run/netns/NAME or /proc/PID/ns/net.
    #[arg(long, value_name = "PATH")]
    netns: PathBuf,
    #[command(flatten)]
    attachment: AttachmentArgs,
}

/// Takes a pod's interface away.
#[derive(Args)]
pub struct DelArgs {
    /// The pod.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = super::pod_name)]
    pod: String,
    /// Path of the network namespace; not needed where the agent remembers it.
    #[arg(long, value_name = "PATH")]
    netns: Option<PathBuf>,
    #[command(flatten)]
    attachment: AttachmentArgs,
}

/// Which of a pod's interfaces.
#[derive(Args)]
struct AttachmentArgs {
    /// Name of the interface inside the namespace.
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    ifname: String,
    /// Container id; needed only for a pod that a container runtime has added.
    #[arg(long, value_name = "ID")]
    container_id: Option<String>,
}

/// Asks the agent for the pod's port, or to take it away.
pub fn run(agent: &Agent, command: PodCommand, output: &Output) -> Done {
    match command {
        PodCommand::Add(args) => {
            if !args.netns.exists() {
                return Err(Failure::usage(format_args!("--netns {}: there is no such file", args.netns.display())));
            }
            let request = request(&args.pod, &args.attachment, Some(&args.netns));
            let result: AddResult = agent.post(Verb::Add.path(), &request)?;
            output.print(&result, || {
                let addresses: Vec<String> = result.ips.iter().map(|ip| ip.address.to_string()).collect();
                let inside = result.interfaces.iter().find(|interface| interface.sandbox.is_some());
                let mac = inside.and_then(|interface| interface.mac.clone()).unwrap_or_default();
                let row = [args.pod.clone(), args.attachment.ifname.clone(), addresses.join(","), mac];
                table(&["POD", "INTERFACE", "ADDRESSES", "MAC"], [row])
            })
        }
        PodCommand::Del(args) => {
            let request = request(&args.pod, &args.attachment, args.netns.as_deref());
            let _: Value = agent.post(Verb::Del.path(), &request)?;
            output.print(&json!({ "deleted": args.pod }), || format!("{} has no port any more\n", args.pod))
        }
    }
}

fn request(pod: &str, attachment: &AttachmentArgs, netns: Option<&Path>) -> CniRequest {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let args = [("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name)];
    CniRequest {
        cni_version: CniVersion::V1_1_0,
        container_id: attachment.container_id.clone().unwrap_or_else(|| format!("sluice-{namespace}-{name}")),
        netns: netns.map(|path| path.display().to_string()).unwrap_or_default(),
        ifname: attachment.ifname.clone(),
        args: args.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        config: json!({ "cniVersion": "1.1.0", "name": "sluicegate", "type": "sluice-cni" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn add_and_del_of_a_pod_speak_of_one_attachment() {
        let attachment = AttachmentArgs { ifname: "eth0".into(), container_id: None };
        let add = request("shop/web-0", &attachment, Some(Path::new("/proc/1/ns/net")));
        let del = request("shop/web-0", &attachment, None);
        assert_eq!(add.attachment(), del.attachment());
        assert_eq!(add.container_id, "sluice-shop-web-0");
        assert_eq!(add.pod().map(|pod| (pod.namespace, pod.name)), Some(("shop", "web-0")));
    }
}
