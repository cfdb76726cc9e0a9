//! Virtual functions of this node: bare ones handed to pods and taken back, the uplink's, and what is told of all.
//!
//! Control thread. A pod asks by annotation and beside its port, which stays as it is: policy, Services and source checks know the
//! port's packets, not the VF's; the pod is shown as *unenforced*. Order: claim on disk ─▶ interface moved ─▶ held; and
//! backwards (ADR 27).

use super::attachments::Attachment;
use super::control::Control;
use crate::api::report::VfReport;
use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};
use sluice_ctrl::config::Config;
use sluice_ctrl::model::NamespacedName;
use sluice_hostnet::Netns;
use sluice_machine::devices::Method;
use sluice_machine::pci::{Function, NetDevice, is_address};
use sluice_vf::naming;
use sluice_vf::{Allowed, Before, Claim, Keeper, Links, Owner, State, Sysfs, Use};
use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

/// Annotation of a Pod: `any`, a PF's interface or address, or a VF's address.
pub const ANNOTATION: &str = "sluicegate.dev/vf";
/// Annotation of a Pod: the VF's name inside.
pub const INTERFACE_ANNOTATION: &str = "sluicegate.dev/vf-interface";
/// The name where the pod says none.
const INTERFACE: &str = "vf0";
/// How often devices are looked at.
const LOOK: Duration = Duration::from_secs(5);

/// The bare VF that a pod asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BareVf {
    /// As it was asked for.
    pub wanted: String,
    /// Its name inside the pod.
    pub ifname: String,
}

/// The keeper, and what was seen last.
pub struct Vfs {
    keeper: Keeper,
    /// What could not be read of allocations, at the start.
    unread: Vec<String>,
    problems: Vec<String>,
    looked: Option<Instant>,
}

impl Vfs {
    /// Of this configuration and this process's environment.
    pub fn new(config: &Config) -> Result<Vfs> {
        let text = |(name, value): (OsString, OsString)| Some((name.into_string().ok()?, value.into_string().ok()?));
        let environment = std::env::vars_os().filter_map(text);
        let (mut allocated, mut unread) = naming::from_environment(environment);
        let (more, problems) = naming::from_dra(Path::new(naming::DRA));
        allocated.extend(more);
        unread.extend(problems);
        let allowed = Allowed { names: config.vfs.devices.clone(), allocated };
        let keeper = Keeper::new(&config.vfs.root, Box::new(Sysfs), &config.node, allowed)?;
        Ok(Vfs { keeper, unread, problems: Vec::new(), looked: None })
    }

    /// What is wrong with devices.
    pub fn problems(&self) -> impl Iterator<Item = &String> {
        self.unread.iter().chain(&self.problems)
    }
}

/// Moves interfaces between the agent's namespace and pods'.
struct Hands<'a> {
    own: &'a Netns,
    /// The pod's namespace, where it is still there.
    pod: Option<&'a Netns>,
}

impl Links for Hands<'_> {
    fn bring_home(&self, claim: &Claim) -> Result<(), String> {
        let (Owner::Pod { ifname, .. }, Some(pod)) = (&claim.owner, self.pod) else { return Ok(()) };
        let Some(found) = sluice_hostnet::interface(pod, ifname).map_err(|e| e.to_string())? else {
            // The kernel takes hardware home when a namespace ends; and the move may never have happened.
            return Ok(());
        };
        let home = claim.before.interface.as_deref().unwrap_or(&found.name);
        sluice_hostnet::move_link(pod, ifname, self.own, home).map_err(|e| e.to_string())
    }

    fn settle(&self, interface: &str, was: &Before) -> Result<(), String> {
        let name = was.interface.as_deref().unwrap_or(interface);
        let mac = was.mac.as_deref().and_then(mac);
        let found = sluice_hostnet::interface(self.own, interface).map_err(|e| e.to_string())?;
        let Some(found) = found else {
            return Err(format!("its interface {interface} is not in the agent's namespace"));
        };
        let mac = mac.unwrap_or(found.mac);
        sluice_hostnet::settle_link(self.own, interface, name, mac, was.mtu).map_err(|e| e.to_string())
    }
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let bytes: Vec<u8> = text.split(':').map(|b| u8::from_str_radix(b, 16)).collect::<Result<_, _>>().ok()?;
    bytes.try_into().ok()
}

/// Gives back every device that this node's agent has; for a cleanup, when no agent runs.
pub fn give_back_all(config: &Config, own: &Netns, pods: &[(String, &Netns)]) -> Result<()> {
    let keeper = Keeper::new(&config.vfs.root, Box::new(Sysfs), &config.node, Allowed::default())?;
    for claim in keeper.own_claims()? {
        let pod = pods.iter().find(|(container, _)| container == claim.owner.token()).map(|(_, ns)| *ns);
        keeper.give_back(claim.owner.token(), &Hands { own, pod })?;
    }
    Ok(())
}

/// Takes the uplink's device for a userspace driver: bound to VFIO, or left on its kernel driver. Called before any port is
/// opened; its errors name what mends them.
pub fn take_uplink(config: &Config, card: &str, own: &Netns) -> Result<(NetDevice, Method)> {
    let mut vfs = Vfs::new(config)?;
    // Being named as the uplink allows it.
    let names = [config.vfs.devices.clone(), vec![card.to_owned()]].concat();
    vfs.keeper = Keeper::new(&config.vfs.root, Box::new(Sysfs), &config.node, Allowed { names, ..Allowed::default() })?;
    let used = Use { default_routes: sluice_hostnet::default_route_interfaces(own)?, uplink: None };
    Ok(vfs.keeper.take_uplink(card, &used)?)
}

impl Control {
    /// The bare VF that a pod asks for, or why it may not have one.
    pub fn bare_vf(&self, name: &NamespacedName, config: &serde_json::Value) -> Result<Option<BareVf>, String> {
        let annotation = |key: &str| Some(self.cluster.pods.get(name)?.annotations.get(key)?.to_owned());
        let Some(wanted) = annotation(ANNOTATION) else { return Ok(None) };
        if !self.config.vfs.bare_pods.contains(&name.namespace) {
            return Err(format!(
                "a bare VF is past policy and Services, and namespace {} is not in vfs.bare_pods; name it there, or take the \
                 annotation {ANNOTATION} off the pod",
                name.namespace
            ));
        }
        let ifname = annotation(INTERFACE_ANNOTATION).unwrap_or_else(|| INTERFACE.to_owned());
        // A device plugin's choice goes before the annotation's.
        let wanted = match naming::from_configuration(config) {
            Some(device) if is_address(device) => device.to_owned(),
            Some(device) => return Err(format!("deviceID {device:?} is no PCI address")),
            None => wanted,
        };
        Ok(Some(BareVf { wanted, ifname }))
    }

    fn used(&self) -> Result<Use> {
        let uplink = Some(self.uplink_name.clone());
        Ok(Use { default_routes: sluice_hostnet::default_route_interfaces(&self.netns)?, uplink })
    }

    /// Hands a pod its bare VF. Done already is fine.
    pub fn hand_vf(&self, attachment: &Attachment, ns: &Netns) -> Result<()> {
        let Some(bare) = &attachment.vf else { return Ok(()) };
        let owner = Owner::Pod {
            node: self.config.node.clone(),
            pod: attachment.pod().to_string(),
            container: attachment.container.clone(),
            ifname: bare.ifname.clone(),
        };
        let keeper = &self.vfs.keeper;
        let claim = keeper.reserve(&bare.wanted, owner, &self.used()?)?;
        if claim.state == State::Taking && sluice_hostnet::interface(ns, &bare.ifname)?.is_none() {
            let home =
                claim.before.interface.as_deref().ok_or_else(|| anyhow!("{} has no interface", claim.address))?;
            sluice_hostnet::move_link(&self.netns, home, ns, &bare.ifname)
                .with_context(|| format!("VF {}", claim.address))?;
        }
        keeper.held(&attachment.container)?;
        let (pod, address) = (attachment.pod(), &claim.address);
        tracing::warn!(%pod, address, ifname = bare.ifname, "a bare VF: policy, Services and source checks do not see its packets");
        Ok(())
    }

    /// Takes a pod's bare VF back. What did not come back clean stays claimed and is told in the status; the pod goes all the same.
    pub fn take_vf_back(&self, attachment: &Attachment) {
        if attachment.vf.is_none() {
            return;
        }
        let pod = Netns::open(&attachment.netns).ok().filter(|ns| ns.inode() == attachment.netns_inode);
        let hands = Hands { own: &self.netns, pod: pod.as_ref() };
        if let Err(error) = self.vfs.keeper.give_back(&attachment.container, &hands) {
            tracing::error!(pod = %attachment.pod(), "its VF stays claimed: {error}");
        }
    }

    /// Devices that are gone or dirty; claims whose pod is gone are tried again.
    pub fn look_at_vfs(&mut self) {
        if self.vfs.looked.is_some_and(|at| at.elapsed() < LOOK) {
            return;
        }
        // A node without VFs costs nothing; what an earlier configuration left is found at the first look.
        let asked = self.vfs.looked.is_none() || !self.config.vfs.devices.is_empty() || !self.vfs.problems.is_empty();
        self.vfs.looked = Some(Instant::now());
        if !asked && !self.attachments.iter().any(|a| a.vf.is_some()) {
            return;
        }
        let hands = Hands { own: &self.netns, pod: None };
        let attachments = &self.attachments;
        let gone = |owner: &Owner| attachments.get(owner.token()).is_none();
        let mut problems = Vec::new();
        match self.vfs.keeper.clean(&hands, gone) {
            Ok(still) => problems.extend(still.iter().map(ToString::to_string)),
            Err(error) => problems.push(format!("VFs: {error}")),
        }
        match self.used().and_then(|used| Ok(self.vfs.keeper.list(&used)?)) {
            Ok((_, found)) => problems.extend(found.iter().map(ToString::to_string)),
            Err(error) => problems.push(format!("VFs: {error:#}")),
        }
        if let Ok(claims) = self.vfs.keeper.own_claims() {
            let lost = |a: &&Attachment| a.vf.is_some() && !claims.iter().any(|c| c.owner.token() == a.container);
            for attachment in self.attachments.iter().filter(lost) {
                let pod = attachment.pod();
                problems.push(format!(
                    "pod {pod}: the claim on its VF is lost; `kubectl delete pod -n {} {}`",
                    pod.namespace, pod.name
                ));
            }
        }
        problems.sort();
        problems.dedup();
        self.vfs.problems = problems;
    }

    /// Pods with a bare VF, in sentences.
    pub fn unenforced(&self) -> Vec<String> {
        let bare = self.attachments.iter().filter_map(|a| Some((a, a.vf.as_ref()?)));
        bare.map(|(a, vf)| {
            format!(
                "pod {}: its VF {} is unenforced: policy, Services and source checks do not see its packets",
                a.pod(),
                vf.ifname
            )
        })
        .collect()
    }

    /// The address of a pod's bare VF.
    pub fn vf_address(&self, attachment: &Attachment) -> Option<String> {
        attachment.vf.as_ref()?;
        Some(self.vfs.keeper.claim_of(&attachment.container).ok()??.address)
    }

    /// `GET /v1/vfs`.
    pub fn vf_reports(&self) -> Vec<VfReport> {
        let listed = self.used().and_then(|used| Ok(self.vfs.keeper.list(&used)?));
        let Ok((all, _)) = listed.inspect_err(|error| tracing::error!("cannot list VFs: {error:#}")) else {
            return Vec::new();
        };
        all.into_iter().map(report).collect()
    }
}

fn report(listed: sluice_vf::Listed) -> VfReport {
    let sluice_vf::Listed { device, method, allowed, claim, unfit } = listed;
    let (pf, index) = match &device.function {
        Function::Virtual { pf, index } => (Some(pf.clone()), *index),
        Function::Physical { .. } => (None, None),
    };
    let (state, owner, interface) = match &claim {
        None if unfit.is_none() => ("free", String::new(), None),
        None => ("unfit", String::new(), None),
        Some(claim) => {
            let inside = match &claim.owner {
                Owner::Pod { ifname, .. } => Some(ifname.clone()),
                Owner::Uplink { .. } => None,
            };
            let state = match (&claim.state, &claim.owner) {
                (State::Dirty { .. }, _) => "dirty",
                (State::Taking, _) => "taking",
                (State::Held, Owner::Pod { .. }) => "pod",
                (State::Held, Owner::Uplink { .. }) => "uplink",
            };
            (state, claim.owner.to_string(), inside)
        }
    };
    let why = match claim.map(|c| c.state) {
        Some(State::Dirty { why }) => why,
        _ => unfit.unwrap_or_default(),
    };
    VfReport {
        id: device.id(),
        pf,
        index,
        numa_node: device.node,
        driver: device.driver.clone().unwrap_or_default(),
        iommu_group: device.iommu_group,
        method: match method {
            Some(Method::VfioPci) => "vfio-pci",
            Some(Method::Bifurcated) => "bifurcated",
            None => "",
        }
        .to_owned(),
        interface: interface.or_else(|| device.interfaces.first().map(|i| i.name.clone())).unwrap_or_default(),
        enforced: state != "pod",
        allowed,
        state: state.to_owned(),
        owner,
        reason: why,
        address: device.address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_is_read_as_the_kernel_writes_it() {
        assert_eq!(mac("0e:00:00:00:00:ff"), Some([0x0e, 0, 0, 0, 0, 0xff]));
        assert_eq!(mac("0e:00"), None);
    }
}
