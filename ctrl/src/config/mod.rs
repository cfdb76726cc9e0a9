//! The configuration of `sluiced`: one YAML file, every field with a default, unknown fields refused.
//!
//! Owner: the control thread, read once at the start. Source: the documented configuration file. Invariant: a [`Config`] that was loaded is consistent (ranges apart, networks apart, names usable).

mod sections;
mod units;

pub use sections::{
    Cidrs, Cni, CniInstall, DenyAction, Flows, Guard, GuardCheck, HostPort, Idle, Liveness, Masquerade, PodDriver,
    PodPorts, PolicySettings, Ports, ServiceSettings, Source, Timeouts, Uplink, UplinkDriver, Vfs, Vxlan, XdpMode,
};
pub use units::{Queues, Seconds, Workers};

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use self::units::port_range;
use crate::model::{Family, PortRange};
use crate::nearest::nearest;

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not a configuration.
    #[error("{path}:{line}:{column}: {reason}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
        /// What is wrong, with the nearest known name for an unknown field.
        reason: String,
    },
    /// A value does not make sense, alone or beside another.
    #[error("{path}: {field}: {why}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// The field, as `masquerade.ports`.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

/// The whole configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// This node's name, as its Node object has it.
    pub node: String,
    /// Where cluster state comes from.
    pub source: Source,
    /// The ports.
    pub ports: Ports,
    /// The CPUs of the workers.
    pub workers: Workers,
    /// What an idle worker does.
    pub idle: Idle,
    /// The overlay.
    pub vxlan: Vxlan,
    /// The cluster's networks.
    pub cidrs: Cidrs,
    /// Source translation.
    pub masquerade: Masquerade,
    /// The ports of NodePort Services.
    pub node_ports: PortRange,
    /// Services.
    pub services: ServiceSettings,
    /// The flow table.
    pub flows: Flows,
    /// Signs of life between nodes.
    pub liveness: Liveness,
    /// Policy settings.
    pub policy: PolicySettings,
    /// The Unix socket of the agent.
    pub socket: PathBuf,
    /// Leases, the last good state and the flow tables' names; `NODE` in it is replaced by the node's name.
    pub state_dir: PathBuf,
    /// Where metrics and health are served.
    pub metrics: SocketAddr,
    /// What the container runtime finds on the host.
    pub cni: Cni,
    /// The dead man's switch of the uplink.
    pub guard: Guard,
    /// Virtual functions.
    pub vfs: Vfs,
}

impl Default for Config {
    /// The defaults, for the node that `$NODE_NAME` or else the host's name says.
    fn default() -> Self {
        Config::builtin(&node_name())
    }
}

impl Config {
    /// The defaults for a node of this name, whatever the machine.
    pub fn builtin(node: &str) -> Config {
        Config {
            node: node.to_owned(),
            source: Source::Kubernetes { kubeconfig: None },
            ports: Ports::default(),
            workers: Workers::Auto,
            idle: Idle::Adaptive,
            vxlan: Vxlan::default(),
            cidrs: Cidrs::default(),
            masquerade: Masquerade::default(),
            node_ports: port_range(30_000, 32_767),
            services: ServiceSettings::default(),
            flows: Flows::default(),
            liveness: Liveness::default(),
            policy: PolicySettings::default(),
            socket: PathBuf::from("/run/sluicegate/sluiced.sock"),
            state_dir: Path::new("/var/lib/sluicegate").join(node),
            metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, 9765)),
            cni: Cni::default(),
            guard: Guard::default(),
            vfs: Vfs::default(),
        }
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
        Config::parse(&text, path, &node_name())
    }

    /// Reads and checks a text; `path` is for messages, `node` is the name where the text gives none.
    pub fn parse(text: &str, path: &Path, node: &str) -> Result<Config, ConfigError> {
        let document: Option<Document> = serde_yaml_ng::from_str(text).map_err(|error| {
            let (line, column) = error.location().map_or((1, 1), |l| (l.line(), l.column()));
            ConfigError::Parse { path: path.to_path_buf(), line, column, reason: explain(&error.to_string()) }
        })?;
        let document = document.unwrap_or_default();
        let invalid = |(field, why)| ConfigError::Invalid { path: path.to_path_buf(), field, why };
        let config = document.complete(node).map_err(invalid)?;
        config.check().map_err(invalid)?;
        Ok(config)
    }

    fn check(&self) -> Result<(), (&'static str, String)> {
        let no = |field, why: String| Err((field, why));
        if self.node.is_empty() || self.node == "." || self.node == ".." || self.node.contains(['/', '\0']) {
            return no("node", format!("{:?} is not a node's name", self.node));
        }
        for (field, name) in [
            ("ports.uplink.interface", &self.ports.uplink.interface),
            ("ports.host.interface", &self.ports.host.interface),
        ] {
            // A capture file has a path.
            let file = matches!(self.ports.uplink.driver, UplinkDriver::Pcap | UplinkDriver::Mem);
            let kernel = field == "ports.host.interface" || !file;
            if name.is_empty() || (kernel && (name.len() > 15 || name.contains(['/', ' ']))) {
                return no(field, format!("{name:?} is not an interface's name"));
            }
        }
        if let Some(device) = &self.ports.uplink.device {
            if self.ports.uplink.driver != UplinkDriver::Dpdk {
                return no("ports.uplink.device", "is for ports.uplink.driver: dpdk".to_owned());
            }
            if device.is_empty() || device.contains(char::is_whitespace) {
                return no(
                    "ports.uplink.device",
                    format!("{device:?} is neither a PCI address nor a DPDK device such as net_af_xdp0,iface=eth1"),
                );
            }
        }
        if self.ports.uplink.interface == self.ports.host.interface {
            return no("ports.host.interface", "is the uplink's already".to_owned());
        }
        if self.vxlan.vni >= 1 << 24 {
            return no("vxlan.vni", format!("{} has more than 24 bits", self.vxlan.vni));
        }
        if self.vxlan.port == 0 {
            return no("vxlan.port", "must not be 0".to_owned());
        }
        self.check_networks()?;
        self.check_ports()?;
        if self.flows.path.as_ref().is_some_and(|path| !path.is_absolute()) {
            return no("flows.path", "must be absolute".to_owned());
        }
        if !(1024..=1 << 28).contains(&self.flows.max) {
            return no("flows.max", format!("{} is not from 1024 to {}", self.flows.max, 1 << 28));
        }
        if self.socket.as_os_str().len() > 107 || !self.socket.is_absolute() {
            return no("socket", "must be an absolute path of at most 107 bytes".to_owned());
        }
        if !self.state_dir.is_absolute() {
            return no("state_dir", "must be an absolute path".to_owned());
        }
        for (field, folder) in [("cni.conf_dir", &self.cni.conf_dir), ("cni.bin_dir", &self.cni.bin_dir)] {
            if !folder.is_absolute() {
                return no(field, "must be an absolute path".to_owned());
            }
        }
        if !self.vfs.root.is_absolute() {
            return no("vfs.root", "must be an absolute path".to_owned());
        }
        if let Some(name) = self.vfs.devices.iter().find(|n| n.is_empty() || *n == "any") {
            return no("vfs.devices", format!("{name:?} is neither an interface, a PCI address nor a resource"));
        }
        if self.cni.conf_name.contains('/') || !self.cni.conf_name.ends_with(".conflist") {
            return no(
                "cni.conf_name",
                format!("{:?} is not a file's name that ends in .conflist", self.cni.conf_name),
            );
        }
        Ok(())
    }

    fn check_networks(&self) -> Result<(), (&'static str, String)> {
        let lists = [
            ("cidrs.pods", &self.cidrs.pods),
            ("cidrs.services", &self.cidrs.services),
            ("masquerade.exclude", &self.masquerade.exclude),
        ];
        for (field, nets) in lists {
            if let Some(net) = nets.iter().find(|n| **n != n.trunc()) {
                return Err((field, format!("{net} has host bits, {} was meant?", net.trunc())));
            }
            if nets.is_empty() && field != "masquerade.exclude" {
                return Err((field, "must name at least one network".to_owned()));
            }
        }
        for pods in &self.cidrs.pods {
            let overlap =
                |n: &&IpNet| Family::of_net(n) == Family::of_net(pods) && (n.contains(pods) || pods.contains(*n));
            if let Some(services) = self.cidrs.services.iter().find(overlap) {
                return Err(("cidrs.services", format!("{services} overlaps {pods} of cidrs.pods")));
            }
        }
        Ok(())
    }

    fn check_ports(&self) -> Result<(), (&'static str, String)> {
        let (ours, nodes) = (self.masquerade.ports, self.node_ports);
        if ours.first() < 1024 || ours.count() < 64 {
            return Err(("masquerade.ports", format!("{ours} must start at 1024 or above and hold 64 ports or more")));
        }
        if self.masquerade.blocks_per_source == 0 {
            return Err(("masquerade.blocks_per_source", "must be 1 or more".to_owned()));
        }
        if nodes.first() == 0 {
            return Err(("node_ports", "must not start at 0".to_owned()));
        }
        if ours.overlaps(nodes) {
            return Err(("masquerade.ports", format!("{ours} overlaps node_ports {nodes}")));
        }
        if self.liveness.port == 0 || self.liveness.port == self.vxlan.port {
            return Err(("liveness.port", format!("{} cannot be used", self.liveness.port)));
        }
        for (field, range) in [("masquerade.ports", ours), ("node_ports", nodes)] {
            if range.contains(self.vxlan.port) {
                return Err((field, format!("{range} holds vxlan.port {}", self.vxlan.port)));
            }
        }
        Ok(())
    }
}

/// `$NODE_NAME`, else the host's name.
fn node_name() -> String {
    std::env::var("NODE_NAME")
        .ok()
        .filter(|n| !n.is_empty())
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// The file as it is written: what is left out has its default.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    node: Option<String>,
    source: SourceDocument,
    ports: Ports,
    workers: Workers,
    idle: Idle,
    vxlan: Vxlan,
    cidrs: Cidrs,
    masquerade: Masquerade,
    node_ports: Option<PortRange>,
    services: ServiceSettings,
    flows: Flows,
    liveness: Liveness,
    policy: PolicySettings,
    socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    metrics: Option<SocketAddr>,
    cni: Cni,
    guard: Guard,
    vfs: Vfs,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SourceKind {
    #[default]
    Kubernetes,
    Manifests,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SourceDocument {
    kind: SourceKind,
    path: Option<PathBuf>,
    kubeconfig: Option<PathBuf>,
}

impl Document {
    fn complete(self, node: &str) -> Result<Config, (&'static str, String)> {
        let node = self.node.unwrap_or_else(|| node.to_owned());
        let defaults = Config::builtin(&node);
        let source = match (self.source.kind, self.source.path) {
            (SourceKind::Kubernetes, None) => Source::Kubernetes { kubeconfig: self.source.kubeconfig },
            (SourceKind::Kubernetes, Some(_)) => {
                return Err(("source.path", "belongs to kind manifests".to_owned()));
            }
            (SourceKind::Manifests, _) if self.source.kubeconfig.is_some() => {
                return Err(("source.kubeconfig", "belongs to kind kubernetes".to_owned()));
            }
            (SourceKind::Manifests, Some(path)) => Source::Manifests { path },
            (SourceKind::Manifests, None) => return Err(("source.path", "must name a folder".to_owned())),
        };
        let own_name = |part: std::path::Component<'_>| match part.as_os_str() == "NODE" {
            true => PathBuf::from(&node),
            false => PathBuf::from(part.as_os_str()),
        };
        let state_dir = self.state_dir.map_or(defaults.state_dir, |dir| dir.components().map(own_name).collect());
        Ok(Config {
            source,
            ports: self.ports,
            workers: self.workers,
            idle: self.idle,
            vxlan: self.vxlan,
            cidrs: self.cidrs,
            masquerade: self.masquerade,
            node_ports: self.node_ports.unwrap_or(defaults.node_ports),
            services: self.services,
            flows: self.flows,
            liveness: self.liveness,
            policy: self.policy,
            socket: self.socket.unwrap_or(defaults.socket),
            state_dir,
            metrics: self.metrics.unwrap_or(defaults.metrics),
            cni: self.cni,
            guard: self.guard,
            vfs: self.vfs,
            node,
        })
    }
}

/// Adds the nearest known name to a message about an unknown one, and leaves the place to the caller.
fn explain(message: &str) -> String {
    let reason = message.rsplit_once(" at line ").map_or(message, |(reason, _)| reason);
    let mut quoted = reason.split('`').skip(1).step_by(2);
    let known_unknown = reason.contains("unknown field") || reason.contains("unknown variant");
    if let (true, Some(unknown)) = (known_unknown, quoted.next()) {
        let known: Vec<&str> = quoted.collect();
        if let Some(near) = nearest(unknown, &known) {
            return format!("{reason} (did you mean `{near}`?)");
        }
    }
    reason.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("c.yaml"), "here")
    }

    fn refused(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    /// The documented file, with every field at its default.
    const DOCUMENTED: &str = r#"
node: node-a
source: { kind: kubernetes }
ports:
  uplink: { driver: af_xdp, interface: eth0, queues: auto, mode: auto }
  pods:   { driver: auto }
  host:   { interface: sluice0 }
workers: auto
idle: adaptive
vxlan: { vni: 4096, port: 4789 }
cidrs: { pods: [10.244.0.0/16, fd00:10:244::/56], services: [10.96.0.0/12, fd00:10:96::/112] }
masquerade: { enabled: true, exclude: [10.0.0.0/8], ports: 40000-57343 }
node_ports: 30000-32767
services: { external_ips: false, node_port_addresses: [], health_port: 10256 }
flows:
  max: 1048576
  timeouts: { tcp_established: 24h, tcp_handshake: 60s, tcp_closing: 120s, udp: 30s, udp_stream: 180s, icmp: 30s, sctp_established: 24h, other: 60s }
policy: { default_action: drop, listed_peers: 67108864 }
socket: /run/sluicegate/sluiced.sock
state_dir: /var/lib/sluicegate/NODE
metrics: 127.0.0.1:9765
cni: { install: auto, conf_dir: /etc/cni/net.d, conf_name: 10-sluicegate.conflist, bin_dir: /opt/cni/bin }
guard: { check: auto, after: 60s }
vfs: { devices: [], bare_pods: [], root: / }
"#;

    #[test]
    fn the_documented_file_says_exactly_the_defaults() {
        assert_eq!(parse(DOCUMENTED).unwrap(), Config::builtin("node-a"));
        assert_eq!(parse("node: node-a").unwrap(), Config::builtin("node-a"));
        assert_eq!(parse("# nothing\n").unwrap(), Config::builtin("here"));
        assert_eq!(parse("").unwrap().state_dir, Path::new("/var/lib/sluicegate/here"));
        Config::builtin("x").check().unwrap();
    }

    #[test]
    fn what_was_read_is_written_as_it_can_be_read_again() {
        let text = "{workers: '2-4,8', ports: {uplink: {queues: 3}}, flows: {timeouts: {udp: 2m}}, source: {kind: manifests, path: ./cluster}}";
        let config = parse(text).unwrap();
        assert_eq!(config.workers, Workers::Cpus([2, 3, 4, 8].into()));
        assert_eq!(config.ports.uplink.queues, Queues::Count(3));
        assert_eq!(config.flows.timeouts.udp, Seconds(120));
        assert_eq!(config.flows.timeouts.icmp.duration(), Duration::from_secs(30));
        assert_eq!(config.source, Source::Manifests { path: "./cluster".into() });
        assert_eq!(parse(&serde_yaml_ng::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn an_unknown_field_is_refused_with_its_line_and_the_nearest_name() {
        let message = refused("node: a\nmasquerade:\n  enabled: true\n  exlude: []\n");
        assert!(message.starts_with("c.yaml:4:3: "), "{message}");
        assert!(message.ends_with("(did you mean `exclude`?)"), "{message}");
        let message = refused("worker: 2\n");
        assert!(message.starts_with("c.yaml:1:1: ") && message.ends_with("(did you mean `workers`?)"), "{message}");
        assert!(refused("idle: adaptiv\n").ends_with("(did you mean `adaptive`?)"));
        assert!(refused("zzz: 2\n").contains("unknown field `zzz`"));
    }

    #[test]
    fn values_out_of_shape_are_refused_with_their_line() {
        for (text, part) in [
            ("flows: {timeouts: {udp: 30}}", "has no unit"),
            ("flows: {timeouts: {udp: 0s}}", "is no time at all"),
            ("flows: {timeouts: {udp: 500ms}}", "has an unknown unit"),
            ("node_ports: 32767-30000", "ends before it starts"),
            ("node_ports: 70000", "is not a range of ports"),
            ("workers: 5-2", "which is no CPU"),
            ("ports: {uplink: {queues: 0}}", "is no count of queues"),
            ("cidrs: {pods: [10.0.0.0/99]}", "invalid IP address syntax"),
            ("metrics: nowhere", "invalid socket address syntax"),
            ("node: [a]", "invalid type"),
            ("node: a\nnode: b", "duplicate field"),
            ("node: [", "c.yaml:"),
        ] {
            let message = refused(text);
            assert!(message.contains(part) && message.starts_with("c.yaml:"), "{text}: {message}");
        }
    }

    #[test]
    fn values_that_do_not_fit_together_name_their_field() {
        for (text, start) in [
            ("node: a/b", "c.yaml: node: "),
            ("node: ''", "c.yaml: node: "),
            ("source: {kind: manifests}", "c.yaml: source.path: "),
            ("source: {path: x}", "c.yaml: source.path: "),
            ("vxlan: {vni: 16777216}", "c.yaml: vxlan.vni: "),
            ("vfs: {root: x}", "c.yaml: vfs.root: "),
            ("vfs: {devices: [any]}", "c.yaml: vfs.devices: "),
            ("vxlan: {port: 30001}", "c.yaml: node_ports: "),
            ("masquerade: {ports: 32000-33000}", "c.yaml: masquerade.ports: "),
            ("masquerade: {ports: 40000-40010}", "c.yaml: masquerade.ports: "),
            ("masquerade: {blocks_per_source: 0}", "c.yaml: masquerade.blocks_per_source: "),
            ("cidrs: {pods: [10.96.1.0/24]}", "c.yaml: cidrs.services: "),
            ("cidrs: {pods: [10.244.0.1/16]}", "c.yaml: cidrs.pods: "),
            ("cidrs: {services: []}", "c.yaml: cidrs.services: "),
            ("flows: {max: 1}", "c.yaml: flows.max: "),
            ("socket: relative", "c.yaml: socket: "),
            ("ports: {host: {interface: eth0}}", "c.yaml: ports.host.interface: "),
            ("ports: {uplink: {interface: a-very-long-interface}}", "c.yaml: ports.uplink.interface: "),
        ] {
            let message = refused(text);
            assert!(message.starts_with(start), "{text}: {message}");
        }
    }

    #[test]
    fn only_a_whole_part_of_the_path_stands_for_the_node() {
        assert_eq!(parse("state_dir: /x/NODE/y").unwrap().state_dir, Path::new("/x/here/y"));
        assert_eq!(parse("state_dir: /x/NODES").unwrap().state_dir, Path::new("/x/NODES"));
    }
}
