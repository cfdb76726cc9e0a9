//! The sections of the configuration, with their defaults.
//!
//! Owner: the control thread. Source: the documented configuration file.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::units::{Queues, Seconds, port_range};
use crate::model::PortRange;

/// Where cluster state comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Source {
    /// The API server: the in-cluster service account, or a kubeconfig file.
    Kubernetes {
        /// The kubeconfig; none for the service account.
        #[serde(skip_serializing_if = "Option::is_none")]
        kubeconfig: Option<PathBuf>,
    },
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

/// The port towards the network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Uplink {
    /// What drives it.
    pub driver: UplinkDriver,
    /// The kernel's interface. With DPDK: the TAP by which the kernel keeps what is not ours.
    pub interface: String,
    /// DPDK's device: a PCI address, or a virtual device with its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// How many queues are used.
    pub queues: Queues,
    /// How AF_XDP binds.
    pub mode: XdpMode,
}

impl Default for Uplink {
    fn default() -> Self {
        Uplink {
            driver: UplinkDriver::AfXdp,
            interface: "eth0".to_owned(),
            device: None,
            queues: Queues::Auto,
            mode: XdpMode::Auto,
        }
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
    /// Most blocks of 64 ports of one address that one source may have.
    pub blocks_per_source: u16,
}

impl Default for Masquerade {
    fn default() -> Self {
        Masquerade {
            enabled: true,
            exclude: vec![IpNet::new_assert(IpAddr::from([10, 0, 0, 0]), 8)],
            ports: port_range(40_000, 57_343),
            blocks_per_source: 64,
        }
    }
}

/// How nodes tell each other that they are there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Liveness {
    /// UDP port on the nodes' overlay addresses.
    pub port: u16,
    /// Where there is an API server, its Leases say who may answer for an address that moves.
    pub leases: bool,
}

impl Default for Liveness {
    fn default() -> Self {
        Liveness { port: 9766, leases: true }
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
    /// Folder of the tables; beside the socket or in shared memory where it is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
}

impl Default for Flows {
    fn default() -> Self {
        Flows { max: 1_048_576, timeouts: Timeouts::default(), path: None }
    }
}

/// Services.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServiceSettings {
    /// Whether `spec.externalIPs` are programmed: whoever may create a Service may then take over any address outside
    /// the cluster's ranges (CVE-2020-8554).
    pub external_ips: bool,
    /// Networks: NodePorts answer at the node's InternalIPs and ExternalIPs in them; none: at its first InternalIP of each
    /// family.
    pub node_port_addresses: Vec<IpNet>,
    /// With an API server: where load balancers ask after the whole node (`/healthz`, `/livez`), as they do of kube-proxy;
    /// 0: nowhere.
    pub health_port: u16,
}

impl Default for ServiceSettings {
    fn default() -> Self {
        ServiceSettings { external_ips: false, node_port_addresses: Vec::new(), health_port: 10_256 }
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// What a denied packet meets.
    pub default_action: DenyAction,
    /// Peers that all rule sets of the node together may list, some 10 bytes each; more is no new tables.
    pub listed_peers: u32,
}

impl Default for PolicySettings {
    fn default() -> Self {
        PolicySettings { default_action: DenyAction::default(), listed_peers: 1 << 26 }
    }
}

/// Whether the agent puts its CNI configuration and plugin on the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CniInstall {
    /// With an API server; not with manifests.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What the container runtime finds on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cni {
    /// Whether it is put there.
    pub install: CniInstall,
    /// The runtime's folder of network configurations.
    pub conf_dir: PathBuf,
    /// The file in it; the runtime takes the first by name.
    pub conf_name: String,
    /// The runtime's folder of plugins.
    pub bin_dir: PathBuf,
}

impl Default for Cni {
    fn default() -> Self {
        Cni {
            install: CniInstall::Auto,
            conf_dir: "/etc/cni/net.d".into(),
            conf_name: "10-sluicegate.conflist".to_owned(),
            bin_dir: "/opt/cni/bin".into(),
        }
    }
}

/// Virtual functions, and devices for userspace drivers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Vfs {
    /// What may be taken: PFs by interface or PCI address (their VFs), VFs by PCI address, resources of a device plugin or DRA
    /// driver as `vendor.com/name`. Empty: nothing.
    pub devices: Vec<String>,
    /// Namespaces whose pods may ask for a bare VF, past policy and Services. Empty: none.
    pub bare_pods: Vec<String>,
    /// The host's root folder as the agent sees it, for devices and their claims.
    pub root: PathBuf,
}

impl Default for Vfs {
    fn default() -> Self {
        Vfs { devices: Vec::new(), bare_pods: Vec::new(), root: "/".into() }
    }
}

/// What must stay reachable after the uplink was attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GuardCheck {
    /// The API server, where there is one.
    #[default]
    Auto,
    /// Nothing.
    Off,
    /// A TCP connection to this `host:port`.
    Connect(String),
}

impl<'de> Deserialize<'de> for GuardCheck {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "auto" => Ok(GuardCheck::Auto),
            "off" => Ok(GuardCheck::Off),
            target => match target.rsplit_once(':') {
                Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|p| p != 0) => {
                    Ok(GuardCheck::Connect(text))
                }
                _ => Err(serde::de::Error::custom(format_args!("{text:?} is not auto, off or HOST:PORT"))),
            },
        }
    }
}

impl Serialize for GuardCheck {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(match self {
            GuardCheck::Auto => "auto",
            GuardCheck::Off => "off",
            GuardCheck::Connect(target) => target,
        })
    }
}

/// The dead man's switch of the uplink.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guard {
    /// What must stay reachable.
    pub check: GuardCheck,
    /// How long it may be unreachable before everything is put back.
    pub after: Seconds,
}

impl Default for Guard {
    fn default() -> Self {
        Guard { check: GuardCheck::Auto, after: Seconds(60) }
    }
}
