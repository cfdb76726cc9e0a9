//! The configuration of `sluiced`: one YAML file, every field with a default, unknown fields refused.
//!
//! Owner: the control thread, read once at the start. Source: the documented configuration file. Durations are a number
//! with a unit (`500ms` is too fine, `90s`, `30m`, `24h`, `7d`), port ranges are `first-last`, CPU lists as in the
//! kernel (`2-5,8`). Invariant: a [`Config`] that was loaded is consistent (ranges apart, networks apart, names usable).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

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

/// Where cluster state comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// The API server: the in-cluster service account, or a kubeconfig file.
    #[default]
    Kubernetes,
    /// A folder of manifests.
    Manifests {
        /// The folder.
        path: PathBuf,
    },
}

/// What drives the uplink.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UplinkDriver {
    /// AF_XDP sockets on a kernel interface.
    #[default]
    AfXdp,
    /// A DPDK port.
    Dpdk,
    /// Capture files.
    Pcap,
    /// Memory, for tests.
    Mem,
}

/// What drives the ports of pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PodDriver {
    /// The best one this kernel has.
    #[default]
    Auto,
    /// TAP devices.
    Tap,
    /// AF_XDP sockets on veth pairs.
    AfXdp,
}

/// How an AF_XDP socket is bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum XdpMode {
    /// The fastest one the interface offers.
    #[default]
    Auto,
    /// The NIC writes into our frames.
    ZeroCopy,
    /// XDP in the NIC's driver, one copy.
    Copy,
    /// XDP in the kernel's generic path; works on every interface.
    Skb,
}

/// A count that may be left to the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Queues {
    /// As many as there are workers and the interface has.
    #[default]
    Auto,
    /// This many.
    Count(u16),
}

/// The port towards the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uplink {
    /// What drives it.
    pub driver: UplinkDriver,
    /// The kernel's interface, or DPDK's device.
    pub interface: String,
    /// How many queues are used.
    pub queues: Queues,
    /// How AF_XDP binds.
    pub mode: XdpMode,
}

impl Default for Uplink {
    fn default() -> Self {
        Uplink { driver: UplinkDriver::AfXdp, interface: "eth0".to_owned(), queues: Queues::Auto, mode: XdpMode::Auto }
    }
}

/// The ports of pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PodPorts {
    /// What drives them.
    pub driver: PodDriver,
}

/// The port towards the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostPort {
    /// The interface the host sees; it carries the node's overlay address.
    pub interface: String,
}

impl Default for HostPort {
    fn default() -> Self {
        HostPort { interface: "sluice0".to_owned() }
    }
}

/// All ports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ports {
    /// Towards the network.
    pub uplink: Uplink,
    /// Towards the pods.
    pub pods: PodPorts,
    /// Towards the host.
    pub host: HostPort,
}

/// The CPUs that workers are pinned to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Workers {
    /// Every CPU but the control thread's, where there is more than one.
    #[default]
    Auto,
    /// These CPUs.
    Cpus(BTreeSet<u16>),
}

/// What a worker does when there is nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Idle {
    /// Spin.
    Busy,
    /// Spin a little, then sleep on the sockets.
    #[default]
    Adaptive,
}

/// The overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vxlan {
    /// The network identifier, 24 bits.
    pub vni: u32,
    /// The UDP port.
    pub port: u16,
}

impl Default for Vxlan {
    fn default() -> Self {
        Vxlan { vni: 4096, port: 4789 }
    }
}

/// The cluster's networks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cidrs {
    /// What pods have addresses from, over all nodes.
    pub pods: Vec<IpNet>,
    /// What Services have cluster addresses from.
    pub services: Vec<IpNet>,
}

impl Default for Cidrs {
    fn default() -> Self {
        let net = |a: [u8; 4], len| IpNet::new_assert(IpAddr::from(a), len);
        let net6 = |a: [u16; 8], len| IpNet::new_assert(IpAddr::from(a), len);
        Cidrs {
            pods: vec![net([10, 244, 0, 0], 16), net6([0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0], 56)],
            services: vec![net([10, 96, 0, 0], 12), net6([0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0], 112)],
        }
    }
}

/// Source translation of what leaves the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Masquerade {
    /// Whether pods leave with their node's address.
    pub enabled: bool,
    /// Destinations that see the pod's own address.
    pub exclude: Vec<IpNet>,
    /// The ports translated flows leave from.
    pub ports: PortRange,
}

impl Default for Masquerade {
    fn default() -> Self {
        Masquerade {
            enabled: true,
            exclude: vec![IpNet::new_assert(IpAddr::from([10, 0, 0, 0]), 8)],
            ports: port_range(40_000, 57_343),
        }
    }
}

/// How long a flow without packets is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// TCP after the handshake.
    pub tcp_established: Seconds,
    /// TCP during the handshake.
    pub tcp_handshake: Seconds,
    /// TCP after a FIN or RST.
    pub tcp_closing: Seconds,
    /// UDP that saw one packet, or packets of one side.
    pub udp: Seconds,
    /// UDP that goes back and forth.
    pub udp_stream: Seconds,
    /// ICMP echo.
    pub icmp: Seconds,
    /// SCTP after the handshake.
    pub sctp_established: Seconds,
    /// All else.
    pub other: Seconds,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            tcp_established: Seconds(86_400),
            tcp_handshake: Seconds(60),
            tcp_closing: Seconds(120),
            udp: Seconds(30),
            udp_stream: Seconds(180),
            icmp: Seconds(30),
            sctp_established: Seconds(86_400),
            other: Seconds(60),
        }
    }
}

/// The flow table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flows {
    /// How many flows a node remembers; both directions of a connection are one.
    pub max: u32,
    /// How long each is remembered.
    pub timeouts: Timeouts,
}

impl Default for Flows {
    fn default() -> Self {
        Flows { max: 1_048_576, timeouts: Timeouts::default() }
    }
}

/// What a denied packet meets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyAction {
    /// Silence.
    #[default]
    Drop,
    /// A TCP reset or an ICMP error.
    Reject,
}

/// Policy settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// What a denied packet meets.
    pub default_action: DenyAction,
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
    /// The flow table.
    pub flows: Flows,
    /// Policy settings.
    pub policy: PolicySettings,
    /// The Unix socket of the agent.
    pub socket: PathBuf,
    /// Leases, the last good state and the flow tables' names; `NODE` in it is replaced by the node's name.
    pub state_dir: PathBuf,
    /// Where metrics and health are served.
    pub metrics: SocketAddr,
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
            source: Source::Kubernetes,
            ports: Ports::default(),
            workers: Workers::Auto,
            idle: Idle::Adaptive,
            vxlan: Vxlan::default(),
            cidrs: Cidrs::default(),
            masquerade: Masquerade::default(),
            node_ports: port_range(30_000, 32_767),
            flows: Flows::default(),
            policy: PolicySettings::default(),
            socket: PathBuf::from("/run/sluicegate/sluiced.sock"),
            state_dir: Path::new("/var/lib/sluicegate").join(node),
            metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, 9765)),
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
            // A DPDK device has a longer name, a capture file a path.
            let kernel = field == "ports.host.interface" || self.ports.uplink.driver == UplinkDriver::AfXdp;
            if name.is_empty() || (kernel && (name.len() > 15 || name.contains(['/', ' ']))) {
                return no(field, format!("{name:?} is not an interface's name"));
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
        if !(1024..=1 << 28).contains(&self.flows.max) {
            return no("flows.max", format!("{} is not from 1024 to {}", self.flows.max, 1 << 28));
        }
        if self.socket.as_os_str().len() > 107 || !self.socket.is_absolute() {
            return no("socket", "must be an absolute path of at most 107 bytes".to_owned());
        }
        if !self.state_dir.is_absolute() {
            return no("state_dir", "must be an absolute path".to_owned());
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
        if nodes.first() == 0 {
            return Err(("node_ports", "must not start at 0".to_owned()));
        }
        if ours.overlaps(nodes) {
            return Err(("masquerade.ports", format!("{ours} overlaps node_ports {nodes}")));
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

/// The ranges of the defaults, which are in order.
fn port_range(first: u16, last: u16) -> PortRange {
    PortRange::new(first, last).unwrap_or_else(|| unreachable!("{first} is not above {last}"))
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
    flows: Flows,
    policy: PolicySettings,
    socket: Option<PathBuf>,
    state_dir: Option<PathBuf>,
    metrics: Option<SocketAddr>,
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
}

impl Document {
    fn complete(self, node: &str) -> Result<Config, (&'static str, String)> {
        let node = self.node.unwrap_or_else(|| node.to_owned());
        let defaults = Config::builtin(&node);
        let source = match (self.source.kind, self.source.path) {
            (SourceKind::Kubernetes, None) => Source::Kubernetes,
            (SourceKind::Kubernetes, Some(_)) => {
                return Err(("source.path", "belongs to kind manifests".to_owned()));
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
            flows: self.flows,
            policy: self.policy,
            socket: self.socket.unwrap_or(defaults.socket),
            state_dir,
            metrics: self.metrics.unwrap_or(defaults.metrics),
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

/// Reads a value from text or from a whole number.
struct Words<T> {
    expected: &'static str,
    read: fn(&str) -> Result<T, String>,
}

impl<T> Visitor<'_> for Words<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.read)(text).map_err(|why| E::custom(format_args!("{text:?} {why}, expected {}", self.expected)))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }
}

/// A timeout in whole seconds, at least one; written as a number with a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seconds(pub u32);

impl Seconds {
    /// As the standard library's type.
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = text[..digits].parse().map_err(|_| "has no number".to_owned())?;
        let unit = match &text[digits..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "" => return Err("has no unit".to_owned()),
            _ => return Err("has an unknown unit".to_owned()),
        };
        match number.checked_mul(unit).and_then(|n| u32::try_from(n).ok()) {
            Some(0) => Err("is no time at all".to_owned()),
            Some(seconds) => Ok(Seconds(seconds)),
            None => Err("is too long".to_owned()),
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "a duration such as 90s, 30m or 24h", read: str::parse })
    }
}

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}s", self.0))
    }
}

fn parse_range(text: &str) -> Result<PortRange, String> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let port = |t: &str| t.trim().parse::<u16>().map_err(|_| "is not a range of ports".to_owned());
    PortRange::new(port(first)?, port(last)?).ok_or_else(|| "ends before it starts".to_owned())
}

impl<'de> Deserialize<'de> for PortRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "ports such as 30000-32767", read: parse_range })
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn parse_workers(text: &str) -> Result<Workers, String> {
    if text == "auto" {
        return Ok(Workers::Auto);
    }
    let mut cpus = BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let cpu = |t: &str| t.trim().parse::<u16>().ok().filter(|n| *n < 4096);
        match (cpu(first), cpu(last)) {
            (Some(first), Some(last)) if first <= last => cpus.extend(first..=last),
            _ => return Err(format!("has {part:?}, which is no CPU")),
        }
    }
    Ok(Workers::Cpus(cpus))
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "auto or CPUs such as 2-5,8", read: parse_workers })
    }
}

impl Serialize for Workers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Workers::Auto => serializer.serialize_str("auto"),
            Workers::Cpus(cpus) => {
                let cpus: Vec<String> = cpus.iter().map(u16::to_string).collect();
                serializer.serialize_str(&cpus.join(","))
            }
        }
    }
}

fn parse_queues(text: &str) -> Result<Queues, String> {
    if text == "auto" {
        return Ok(Queues::Auto);
    }
    let count = text.parse::<u16>().ok().filter(|n| (1..=256).contains(n));
    count.map(Queues::Count).ok_or_else(|| "is no count of queues".to_owned())
}

impl<'de> Deserialize<'de> for Queues {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Words { expected: "auto or a number from 1 to 256", read: parse_queues })
    }
}

impl Serialize for Queues {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Queues::Auto => serializer.serialize_str("auto"),
            Queues::Count(count) => serializer.serialize_u16(*count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
flows:
  max: 1048576
  timeouts: { tcp_established: 24h, tcp_handshake: 60s, tcp_closing: 120s, udp: 30s, udp_stream: 180s, icmp: 30s, sctp_established: 24h, other: 60s }
policy: { default_action: drop }
socket: /run/sluicegate/sluiced.sock
state_dir: /var/lib/sluicegate/NODE
metrics: 127.0.0.1:9765
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
            ("vxlan: {port: 30001}", "c.yaml: node_ports: "),
            ("masquerade: {ports: 32000-33000}", "c.yaml: masquerade.ports: "),
            ("masquerade: {ports: 40000-40010}", "c.yaml: masquerade.ports: "),
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
