//! Fast ports: pods that speak memif or vhost-user to us in place of a kernel interface.
//!
//! A pod asks by its annotation and finds a socket: memif's is an abstract one in the pod's own network namespace, so it needs
//! no mount, no host path and no rights; vhost-user's is a file in a folder of the pod's own, to be mounted into it. Where the
//! meta-plugin names a device-info file, what the pod's program needs to know is written there.
//! Owner: the control thread. Source: Device Information Specification 1.1.0 (k8snetworkplumbingwg), CNI 1.1.0 `socketPath`.

use super::attachments::Attachment;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// What a program in a pod speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FastKind {
    /// Shared memory over a memif socket.
    Memif,
    /// virtio rings over a vhost-user socket.
    VhostUser,
}

impl FastKind {
    /// Of an annotation's value.
    pub fn named(text: &str) -> Option<FastKind> {
        match text {
            "memif" => Some(FastKind::Memif),
            "vhost-user" => Some(FastKind::VhostUser),
            _ => None,
        }
    }
}

/// A pod's fast port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FastPort {
    /// What it speaks.
    pub kind: FastKind,
    /// memif: an abstract socket's name, without its leading zero byte; vhost-user: a path on the host.
    pub socket: String,
    /// Device-info file that the meta-plugin asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_info: Option<PathBuf>,
}

/// Longest name of a socket, in bytes: `sun_path` less the zero in front or behind.
const LONGEST: usize = 107;

impl FastPort {
    /// For a pod; `run` is the folder of the agent's own socket. An error says why the pod cannot have one.
    pub fn new(kind: FastKind, namespace: &str, name: &str, run: &Path, config: &Value) -> Result<FastPort, String> {
        let socket = match kind {
            FastKind::Memif => format!("sluicegate/{namespace}/{name}"),
            FastKind::VhostUser => {
                let path = run.join("pods").join(format!("{namespace}_{name}")).join("vhost.sock");
                path.to_str().ok_or("the agent's socket lies in a folder without a name in UTF-8")?.to_owned()
            }
        };
        if socket.len() > LONGEST {
            return Err(format!("its socket {socket:?} would have {} bytes, and {LONGEST} are possible", socket.len()));
        }
        let device_info = match &config["runtimeConfig"]["CNIDeviceInfoFile"] {
            Value::Null => None,
            Value::String(path) if Path::new(path).is_absolute() => Some(PathBuf::from(path)),
            other => return Err(format!("runtimeConfig.CNIDeviceInfoFile: {other} is no absolute path")),
        };
        Ok(FastPort { kind, socket, device_info })
    }

    /// The content of the device-info file.
    fn device_info(&self) -> Value {
        match self.kind {
            FastKind::Memif => json!({
                "type": "memif",
                "version": "1.1.0",
                "memif": { "role": "server", "path": format!("@{}", self.socket), "mode": "ethernet" },
            }),
            FastKind::VhostUser => json!({
                "type": "vhost-user",
                "version": "1.1.0",
                "vhost-user": { "mode": "server", "path": self.socket },
            }),
        }
    }

    /// What the pod's program connects to, as CNI's `socketPath`; an abstract socket's name begins with `@`.
    pub fn socket_path(&self) -> String {
        match self.kind {
            FastKind::Memif => format!("@{}", self.socket),
            FastKind::VhostUser => self.socket.clone(),
        }
    }

    /// Makes what must be there before the socket.
    pub fn prepare(&self) -> Result<()> {
        if self.kind == FastKind::VhostUser
            && let Some(folder) = Path::new(&self.socket).parent()
        {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            // What an earlier process left: nobody listens on it.
            let _ = std::fs::remove_file(&self.socket);
        }
        if let Some(path) = &self.device_info {
            let folder = path.parent().unwrap_or(Path::new("/"));
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
            std::fs::write(path, self.device_info().to_string())
                .with_context(|| format!("cannot write the device-info file {}", path.display()))?;
        }
        Ok(())
    }

    /// Removes what [`prepare`](Self::prepare) made, and the socket.
    pub fn remove(&self) -> Result<()> {
        let gone = |result: std::io::Result<()>, path: &Path| match result {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        };
        if let Some(path) = &self.device_info {
            gone(std::fs::remove_file(path), path)?;
        }
        if self.kind == FastKind::VhostUser
            && let Some(folder) = Path::new(&self.socket).parent()
        {
            gone(std::fs::remove_dir_all(folder), folder)?;
        }
        Ok(())
    }
}

/// Why this agent can give a pod no fast port; none if it can.
pub fn impossible() -> Option<&'static str> {
    (!cfg!(feature = "dpdk")).then_some(
        "this sluiced was built without DPDK: apt install libdpdk-dev libclang-dev && cargo build --release -p \
         sluice-agent --features dpdk",
    )
}

#[cfg(not(feature = "dpdk"))]
impl super::control::Control {
    /// Opens a pod's fast port.
    pub fn open_fast(
        &self,
        attachment: &Attachment,
        _port: &FastPort,
        _ns: &sluice_hostnet::Netns,
    ) -> Result<Box<dyn sluice_port::Queue>> {
        anyhow::bail!("pod {}: {}", attachment.pod(), impossible().unwrap_or_default())
    }
}

#[cfg(feature = "dpdk")]
pub use with_dpdk::{lacking, start_dpdk};

#[cfg(feature = "dpdk")]
mod with_dpdk {
    use super::super::control::Control;
    use super::super::host::Lacking;
    use super::{Attachment, FastKind, FastPort};
    use anyhow::{Context, Result};
    use sluice_ctrl::config::{Config, UplinkDriver};
    use sluice_dpdk::{DpdkError, Eal, EalOptions, PciAddress, PortOptions};
    use sluice_hostnet::Netns;
    use sluice_port::Queue;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    /// Starts DPDK with the cards that the configuration names.
    pub fn start_dpdk(config: &Config) -> Result<&'static Eal> {
        let uplink = &config.ports.uplink;
        let device = uplink.device.as_deref().filter(|_| uplink.driver == UplinkDriver::Dpdk);
        let card = device.and_then(|device| device.split(',').next()?.parse::<PciAddress>().ok());
        if let Some(card) = card {
            // What sysfs knows to be wrong with it is said before DPDK is started.
            sluice_dpdk::check(card, Path::new("/sys"), Path::new("/dev")).map_err(lacking)?;
            not_the_nodes_own(card)?;
        }
        let options = EalOptions { cards: card.into_iter().collect(), ..EalOptions::default() };
        Eal::start(&options).map_err(lacking)
    }

    /// A DPDK error as what the machine lacks: the first line says what, the second how to mend it.
    pub fn lacking(error: DpdkError) -> anyhow::Error {
        let text = error.to_string();
        match text.split_once("\n  ") {
            Some((what, mend)) => Lacking { what: what.to_owned(), mend: mend.to_owned() }.into(),
            None => error.into(),
        }
    }

    /// Refuses a card that carries the node's default route: a driver that shares its card with the kernel would take the
    /// node's own traffic from it (law 7).
    fn not_the_nodes_own(card: PciAddress) -> Result<()> {
        let Ok(interfaces) = std::fs::read_dir(format!("/sys/bus/pci/devices/{card}/net")) else { return Ok(()) };
        let netns = Netns::current()?;
        for name in interfaces.filter_map(|entry| entry.ok()?.file_name().into_string().ok()) {
            if sluice_hostnet::default_gateways(&netns, &name).is_ok_and(|found| found.iter().any(Option::is_some)) {
                return Err(Lacking {
                    what: format!("{card} is {name}, which carries this node's default route"),
                    mend: "name a virtual function of it, or another card, in ports.uplink.device".to_owned(),
                }
                .into());
            }
        }
        Ok(())
    }

    impl Control {
        /// Opens a pod's fast port: we are the server, the pod's program connects.
        pub fn open_fast(&self, attachment: &Attachment, port: &FastPort, ns: &Netns) -> Result<Box<dyn Queue>> {
            let eal = start_dpdk(&self.config)?;
            port.prepare()?;
            let (number, socket) = (attachment.port, &port.socket);
            let device = match port.kind {
                FastKind::Memif => format!("net_memif{number},role=server,id=0,socket={socket},socket-abstract=yes"),
                FastKind::VhostUser => format!("net_vhost{number},iface={socket},queues=1"),
            };
            let options = PortOptions { mtu: Some(self.pod_mtu()), ..PortOptions::new(&device) };
            // An abstract socket belongs to the network namespace of the thread that makes it: the pod's.
            let frames = &self.pool;
            let opened = ns.run(|| sluice_dpdk::open(eal, &options, frames))?;
            let (_, mut queues) = opened.map_err(lacking)?;
            if port.kind == FastKind::VhostUser {
                // Whoever sees the pod's folder may connect; its program need not be root.
                std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o666))
                    .with_context(|| format!("cannot open {socket} to the pod"))?;
            }
            Ok(Box::new(queues.remove(0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_finds_its_socket_by_its_own_name() {
        let none = json!({});
        let run = Path::new("/run/sluicegate");
        let memif = FastPort::new(FastKind::Memif, "telco", "upf-0", run, &none).unwrap();
        assert_eq!(memif.socket_path(), "@sluicegate/telco/upf-0");
        let vhost = FastPort::new(FastKind::VhostUser, "telco", "upf-0", run, &none).unwrap();
        assert_eq!(vhost.socket_path(), "/run/sluicegate/pods/telco_upf-0/vhost.sock");
        let long = FastPort::new(FastKind::Memif, "telco", &"x".repeat(100), run, &none).unwrap_err();
        assert!(long.contains("107"), "{long}");
    }

    #[test]
    fn the_device_info_file_is_the_specifications_and_goes_with_the_pod() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("devinfo/cni/net1.json");
        for (kind, expected) in [
            (
                FastKind::Memif,
                json!({"type": "memif", "version": "1.1.0",
                       "memif": {"role": "server", "path": "@sluicegate/a/b", "mode": "ethernet"}}),
            ),
            (
                FastKind::VhostUser,
                json!({"type": "vhost-user", "version": "1.1.0",
                       "vhost-user": {"mode": "server",
                                      "path": folder.path().join("pods/a_b/vhost.sock").to_str().unwrap()}}),
            ),
        ] {
            let config = json!({"runtimeConfig": {"CNIDeviceInfoFile": file.to_str().unwrap()}});
            let port = FastPort::new(kind, "a", "b", folder.path(), &config).unwrap();
            port.prepare().unwrap();
            let written: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            assert_eq!(written, expected);
            port.remove().unwrap();
            port.remove().unwrap();
            assert!(!file.exists() && !folder.path().join("pods/a_b").exists());
        }
        let relative = json!({"runtimeConfig": {"CNIDeviceInfoFile": "here.json"}});
        assert!(FastPort::new(FastKind::Memif, "a", "b", folder.path(), &relative).is_err());
    }
}
