//! The keeper of the host's devices: which are ours to take, who has which, taking and giving back.
//!
//! Control thread only. Nothing is remembered between calls: sysfs and the ledger are read each time, since drivers, operators
//! and other agents change both.

use crate::binding::{self, before, device, fit};
use crate::ledger::{Before, Claim, Ledger, Owner, State};
use crate::naming::{self, Allocated};
use crate::{Bus, VfError};
use serde::Serialize;
use sluice_machine::Root;
use sluice_machine::devices::{self, Method, VFIO};
use sluice_machine::pci::{self, NetDevice, is_address};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// What may be taken: names from the configuration, and what was allocated to this process.
#[derive(Clone, Debug, Default)]
pub struct Allowed {
    /// PFs by interface or address (their VFs), VFs by address, resources as `vendor.com/name`.
    pub names: Vec<String>,
    /// What a device plugin or DRA driver gave to this process.
    pub allocated: Vec<Allocated>,
}

/// What must be left alone at this moment.
#[derive(Clone, Debug, Default)]
pub struct Use {
    /// Interfaces with a default route.
    pub default_routes: BTreeSet<String>,
    /// The agent's own uplink.
    pub uplink: Option<String>,
}

/// How interfaces are moved and set: the kernel's hands, or a test's.
pub trait Links {
    /// Brings a claim's interface home from its pod, where it is still there.
    fn bring_home(&self, claim: &Claim) -> Result<(), String>;
    /// Gives the interface that is there now the name, MAC and MTU it had, and nothing else.
    fn settle(&self, interface: &str, was: &Before) -> Result<(), String>;
}

/// A device as `sluice vfs` lists it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Listed {
    /// The device.
    #[serde(flatten)]
    pub device: NetDevice,
    /// How a userspace driver takes it; none if the table does not know it.
    pub method: Option<Method>,
    /// Whether the agent may take it.
    pub allowed: bool,
    /// Who has it.
    pub claim: Option<Claim>,
    /// Why it cannot be taken now; none where it could.
    pub unfit: Option<String>,
}

/// The keeper.
pub struct Keeper {
    root: PathBuf,
    bus: Box<dyn Bus>,
    ledger: Ledger,
    allowed: Allowed,
    node: String,
}

impl Keeper {
    /// Of the host below `root`, for the agent of `node`.
    pub fn new(root: &Path, bus: Box<dyn Bus>, node: &str, allowed: Allowed) -> Result<Self, VfError> {
        const BOOT: &str = "proc/sys/kernel/random/boot_id";
        // A container may see little of the host's root, but the same kernel.
        let boot = Root::new(root).word(BOOT)?.or(Root::new(Path::new("/")).word(BOOT)?);
        let ledger = Ledger::new(root, boot);
        Ok(Keeper { root: root.to_owned(), bus, ledger, allowed, node: node.to_owned() })
    }

    /// All network devices that are VFs, allowed or claimed, by address; claims on devices that are gone too, as errors.
    pub fn list(&self, used: &Use) -> Result<(Vec<Listed>, Vec<VfError>), VfError> {
        let devices = pci::read(Root::new(&self.root))?;
        let mut claims = self.ledger.claims()?;
        let mut all = Vec::new();
        for device in &devices {
            let claim = claims.remove(&device.address);
            let allowed = self.is_allowed(device, &devices);
            if !device.is_vf() && !allowed && claim.is_none() {
                continue;
            }
            let unfit = match &claim {
                Some(_) => None,
                None if !allowed => Some("not in vfs.devices".to_owned()),
                None => self.idle(device, used).err().map(|e| e.to_string()),
            };
            let method = devices::kind(device.vendor, device.device).map(|k| k.method);
            all.push(Listed { device: device.clone(), method, allowed, claim, unfit });
        }
        let mut problems: Vec<VfError> = all.iter().filter_map(dirt).collect();
        for claim in claims.into_values() {
            problems.push(VfError::Gone {
                mend: format!("it belongs to {}: delete that pod, or recreate the PF's VFs", claim.owner),
                address: claim.address,
            });
        }
        Ok((all, problems))
    }

    /// Claims of this node's agent.
    pub fn own_claims(&self) -> Result<Vec<Claim>, VfError> {
        let claims = self.ledger.claims()?;
        Ok(claims.into_values().filter(|c| c.owner.node() == self.node).collect())
    }

    /// The claim that a token stands for.
    pub fn claim_of(&self, token: &str) -> Result<Option<Claim>, VfError> {
        Ok(self.own_claims()?.into_iter().find(|c| c.owner.token() == token))
    }

    /// Claims a VF with a kernel interface for a pod: `wanted` is `any`, a PF (its interface or address) or a VF's address. The same
    /// token asked again gets the same VF. The interface is still where it was; the caller moves it, then calls
    /// [`held`](Self::held).
    pub fn reserve(&self, wanted: &str, owner: Owner, used: &Use) -> Result<Claim, VfError> {
        self.ledger.change(|claims| {
            if let Some(known) = claims.values().find(|c| c.owner.token() == owner.token()) {
                return Ok(known.clone());
            }
            // Read under the lock: a device that is being given back looks like anything.
            let devices = pci::read(Root::new(&self.root))?;
            let candidates = self.candidates(wanted, &devices)?;
            let mut why = Vec::new();
            for vf in &candidates {
                let free = match claims.get(&vf.address) {
                    Some(claim) => Err(refused(claim)),
                    None => self.idle(vf, used).and_then(|()| with_interface(vf)),
                };
                match free {
                    Ok(()) => {
                        let claim = Claim {
                            address: vf.address.clone(),
                            owner: owner.clone(),
                            state: State::Taking,
                            before: before(vf),
                            since: now(),
                        };
                        claims.insert(vf.address.clone(), claim.clone());
                        return Ok(claim);
                    }
                    Err(error) => why.push(error),
                }
            }
            // One that was named gets its own answer.
            if why.len() == 1
                && is_address(wanted)
                && let Some(error) = why.pop()
            {
                return Err(error);
            }
            let of = if wanted == "any" { String::new() } else { format!(" of {wanted}") };
            let mut each: Vec<String> = why.iter().map(ToString::to_string).collect();
            if each.is_empty() {
                each.push("there is none".to_owned());
            }
            Err(VfError::NoneFree { of, why: each.join("; ") })
        })
    }

    /// The owner has its device.
    pub fn held(&self, token: &str) -> Result<(), VfError> {
        self.set_state(token, State::Held)
    }

    fn set_state(&self, token: &str, state: State) -> Result<(), VfError> {
        self.ledger.change(|claims| {
            let own = claims.values_mut().find(|c| c.owner.token() == token && c.owner.node() == self.node);
            if let Some(claim) = own {
                claim.state = state;
            }
            Ok(())
        })
    }

    /// Takes a pod's device back: home, made anew, settled, proved. What could not be proved stays claimed as dirty. Nothing to do
    /// is fine; only the token that a claim names does anything.
    pub fn give_back(&self, token: &str, links: &dyn Links) -> Result<(), VfError> {
        let Some(claim) = self.claim_of(token)? else { return Ok(()) };
        let done = self.return_home(&claim, links);
        if let Err(error) = done {
            // A device that is gone has no state to be proved; it starts anew when it comes back.
            if !matches!(error, VfError::Gone { .. }) {
                let why = error.to_string();
                self.set_state(token, State::Dirty { why })?;
                return Err(error);
            }
        }
        self.ledger.change(|claims| {
            claims.retain(|_, c| c.owner.token() != token || c.owner.node() != self.node);
            Ok(())
        })
    }

    fn return_home(&self, claim: &Claim, links: &dyn Links) -> Result<(), VfError> {
        let (root, address, was) = (&self.root, claim.address.as_str(), &claim.before);
        let dirty = |why: String| VfError::Dirty {
            address: address.to_owned(),
            why,
            mend: "`sluice vfs` shows it; deleting its pod again tries again".to_owned(),
        };
        device(root, address)?;
        if matches!(claim.owner, Owner::Uplink { .. }) {
            return binding::restore(&*self.bus, root, address, was);
        }
        links.bring_home(claim).map_err(dirty)?;
        let mut interface = binding::renew(&*self.bus, root, address, was)?;
        // A new interface is renamed by udev at any moment: another look finds it under its new name.
        let until = Instant::now() + binding::APPEARS;
        while let Some(name) = interface.take() {
            match links.settle(&name, was) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(50)),
                done => {
                    done.map_err(dirty)?;
                    break;
                }
            }
            interface = device(root, address)?.interfaces.first().map(|i| i.name.clone());
        }
        binding::proved(root, address, was)
    }

    /// Tries dirty claims of pods that `is_gone` again; each that fails stays.
    pub fn clean(&self, links: &dyn Links, is_gone: impl Fn(&Owner) -> bool) -> Result<Vec<VfError>, VfError> {
        let claims = self.own_claims()?;
        let gone = claims.iter().filter(|c| matches!(c.owner, Owner::Pod { .. }) && is_gone(&c.owner));
        Ok(gone.filter_map(|c| self.give_back(c.owner.token(), links).err()).collect())
    }

    /// Takes a device for a userspace driver that is this agent's uplink: bound to `vfio-pci`, or left on its kernel driver
    /// (bifurcated). Asked again, it finds what it has.
    pub fn take_uplink(&self, name: &str, used: &Use) -> Result<(NetDevice, Method), VfError> {
        let owner = Owner::Uplink { node: self.node.clone() };
        let (address, method) = self.ledger.change(|claims| {
            let devices = pci::read(Root::new(&self.root))?;
            let known = claims.values().find(|c| c.owner == owner && c.before.interface.as_deref() == Some(name));
            let name = known.map_or(name, |claim| &claim.address);
            let found = named(name, &devices).ok_or_else(|| VfError::Unknown { name: name.to_owned() })?;
            let address = found.address.clone();
            match claims.get(&address) {
                Some(claim) if claim.owner != owner => return Err(refused(claim)),
                Some(_) => return Ok((address, fit(&self.root, found)?)),
                None => {}
            }
            self.idle(found, used)?;
            let method = fit(&self.root, found)?;
            let state = State::Taking;
            let owner = owner.clone();
            let claim = Claim { address: address.clone(), owner, state, before: before(found), since: now() };
            claims.insert(address.clone(), claim);
            Ok((address, method))
        })?;
        if method == Method::VfioPci
            && let Err(error) = binding::to_vfio(&*self.bus, &self.root, &address)
        {
            let was = self.claim_of("uplink")?.map(|c| c.before);
            if was.is_some_and(|was| binding::proved(&self.root, &address, &was).is_ok()) {
                self.ledger.change(|claims| Ok(claims.remove(&address)))?;
            } else {
                self.set_state("uplink", State::Dirty { why: error.to_string() })?;
            }
            return Err(error);
        }
        self.set_state("uplink", State::Held)?;
        Ok((device(&self.root, &address)?, method))
    }

    /// Gives back all that this node's agent has: pods' and the uplink's.
    pub fn give_back_all(&self, links: &dyn Links) -> Result<Vec<VfError>, VfError> {
        let claims = self.own_claims()?;
        Ok(claims.iter().filter_map(|c| self.give_back(c.owner.token(), links).err()).collect())
    }

    /// Whether a device is ours to take.
    fn is_allowed(&self, device: &NetDevice, devices: &[NetDevice]) -> bool {
        self.allowed.names.iter().any(|name| {
            if name.contains('/') {
                let own = |a: &Allocated| a.address == device.address && naming::is_of(a, name);
                return self.allowed.allocated.iter().any(own);
            }
            let of_pf = device.pf().and_then(|pf| devices.iter().find(|d| d.address == pf));
            device.address == *name || of_pf.is_some_and(|pf| is_named(pf, name))
        })
    }

    /// VFs that `wanted` means, those without a claim's chance last; an error where it means nothing.
    fn candidates(&self, wanted: &str, devices: &[NetDevice]) -> Result<Vec<NetDevice>, VfError> {
        let allowed = |d: &&NetDevice| d.is_vf() && self.is_allowed(d, devices);
        if wanted == "any" {
            return Ok(devices.iter().filter(allowed).cloned().collect());
        }
        let Some(found) = named(wanted, devices) else {
            let gone = is_address(wanted);
            return Err(match gone {
                true => device(&self.root, wanted).err().unwrap_or(VfError::Unknown { name: wanted.to_owned() }),
                false => VfError::Unknown { name: wanted.to_owned() },
            });
        };
        let address = found.address.clone();
        if found.is_vf() {
            return match self.is_allowed(found, devices) {
                true => Ok(vec![found.clone()]),
                false => Err(VfError::NotAllowed { address }),
            };
        }
        let vfs: Vec<&NetDevice> = devices.iter().filter(|d| d.pf() == Some(&address)).collect();
        match vfs.iter().find(|d| self.is_allowed(d, devices)) {
            Some(_) => Ok(vfs.into_iter().filter(allowed).cloned().collect()),
            None if vfs.is_empty() => Err(VfError::NotVf { address }),
            None => Err(VfError::NotAllowed { address }),
        }
    }

    /// Whether nobody would miss the device: no default route on it or on what stands on it, no bond, no VLAN, not the uplink.
    fn idle(&self, device: &NetDevice, used: &Use) -> Result<(), VfError> {
        let address = device.address.clone();
        for interface in &device.interfaces {
            let stands_on = interface.uppers.iter().chain(&interface.master);
            let mut names = stands_on.chain([&interface.name]);
            if let Some(route) = names.find(|name| used.default_routes.contains(*name)) {
                return Err(VfError::DefaultRoute { address, interface: route.clone() });
            }
            if used.uplink.as_ref() == Some(&interface.name) {
                let mend = "name another port in ports.uplink.interface".to_owned();
                return Err(VfError::Busy { address, why: format!("{} is the uplink", interface.name), mend });
            }
            if let Some(master) = &interface.master {
                let mend = format!("ip link set {} nomaster", interface.name);
                return Err(VfError::Busy { address, why: format!("{} belongs to {master}", interface.name), mend });
            }
            if let Some(upper) = interface.uppers.first() {
                let why = format!("{upper} stands on {}", interface.name);
                return Err(VfError::Busy { address, why, mend: format!("ip link del {upper}") });
            }
        }
        let own = self.allowed.allocated.iter().any(|a| a.address == device.address);
        if device.driver.as_deref() == Some(VFIO) && !own {
            let why = "it is bound to vfio-pci, and not by this agent".to_owned();
            let mend = format!(
                "echo {address} > /sys/bus/pci/drivers/vfio-pci/unbind; echo > \
                 /sys/bus/pci/devices/{address}/driver_override; echo {address} > /sys/bus/pci/drivers_probe"
            );
            // A device that an operator gave to VFIO by name, and named to us, is given to us.
            let named = self.allowed.names.iter().any(|name| is_named(device, name));
            return if named { Ok(()) } else { Err(VfError::Busy { address, why, mend }) };
        }
        Ok(())
    }
}

/// What keeps a claimed device from others.
fn refused(claim: &Claim) -> VfError {
    match &claim.state {
        State::Dirty { why } => VfError::Dirty {
            address: claim.address.clone(),
            why: why.clone(),
            mend: "mend that, then `sluice vfs` shows it free within a minute".to_owned(),
        },
        _ => VfError::Claimed { address: claim.address.clone(), owner: claim.owner.to_string(), since: claim.since },
    }
}

fn dirt(listed: &Listed) -> Option<VfError> {
    let claim = listed.claim.as_ref()?;
    matches!(claim.state, State::Dirty { .. }).then(|| refused(claim))
}

/// A pod gets an interface, so there must be one, of a kernel driver.
fn with_interface(vf: &NetDevice) -> Result<(), VfError> {
    if !vf.interfaces.is_empty() {
        return Ok(());
    }
    let kernel = devices::kind(vf.vendor, vf.device).map_or("its kernel driver", |k| k.kernel);
    let address = vf.address.clone();
    match vf.driver.as_deref() {
        Some(driver) if driver != VFIO => Err(VfError::Busy {
            address: address.clone(),
            why: "its interface is in another network namespace".to_owned(),
            mend: format!("ip netns exec NAMESPACE ip link set dev NAME netns 1  # NAME is below {}", vf.folder()),
        }),
        driver => Err(VfError::WrongDriver {
            address,
            found: driver.unwrap_or("no driver").to_owned(),
            expected: kernel.to_owned(),
        }),
    }
}

fn is_named(device: &NetDevice, name: &str) -> bool {
    device.address == name || device.interfaces.iter().any(|i| i.name == name)
}

fn named<'a>(name: &str, devices: &'a [NetDevice]) -> Option<&'a NetDevice> {
    devices.iter().find(|d| is_named(d, name))
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
