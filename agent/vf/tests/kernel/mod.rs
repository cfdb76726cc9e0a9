//! A stand-in for the kernel's PCI bus: it does to a fixture tree what the kernel does when sysfs is written to. Interfaces vanish with
//! their driver and are made anew, with the MAC they had at first, when one is bound.
#![allow(dead_code, reason = "each test uses a part")]

use sluice_machine::Root;
use sluice_machine::devices::{self, VFIO};
use sluice_machine::pci;
use sluice_vf::{Before, Bus, Claim, Links};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The bus below `root`.
#[derive(Clone)]
pub struct FakeBus {
    root: PathBuf,
    /// Interfaces as they were at first, by device: name and MAC.
    born: BTreeMap<String, (String, String)>,
    /// Drivers that take no device.
    pub broken: Vec<String>,
    /// The MAC that a device comes up with, in place of its first one.
    pub random_mac: Option<String>,
}

impl FakeBus {
    pub fn new(root: &Path) -> Self {
        let devices = pci::read(Root::new(root)).unwrap();
        let born = devices.iter().filter_map(|d| {
            let interface = d.interfaces.first()?;
            Some((d.address.clone(), (interface.name.clone(), interface.mac.clone())))
        });
        FakeBus { root: root.to_owned(), born: born.collect(), broken: Vec::new(), random_mac: None }
    }

    fn folder(&self, address: &str) -> PathBuf {
        fs::canonicalize(self.root.join(pci::DEVICES).join(address)).unwrap()
    }

    fn unbind(&self, address: &str) -> io::Result<()> {
        let folder = self.folder(address);
        fs::remove_file(folder.join("driver"))?;
        match fs::remove_dir_all(folder.join("net")) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    fn bind(&self, address: &str, driver: &str) -> io::Result<()> {
        let folder = self.folder(address);
        let wish = fs::read_to_string(folder.join("driver_override"))?;
        if self.broken.iter().any(|b| b == driver) || !["(null)", driver].contains(&wish.trim()) {
            return Err(io::Error::from_raw_os_error(19)); // ENODEV
        }
        symlink(self.root.join(pci::DRIVERS).join(driver), folder.join("driver"))?;
        if let (Some((name, mac)), true) = (self.born.get(address), driver != VFIO) {
            let net = folder.join("net").join(name);
            fs::create_dir_all(&net)?;
            fs::write(net.join("address"), format!("{}\n", self.random_mac.as_ref().unwrap_or(mac)))?;
            fs::write(net.join("mtu"), "1500\n")?;
            fs::write(net.join("flags"), "0x1002\n")?;
        }
        Ok(())
    }
}

impl Bus for FakeBus {
    fn write(&self, file: &Path, value: &str) -> io::Result<()> {
        let part = |n: usize| file.iter().rev().nth(n).and_then(|p| p.to_str()).unwrap_or_default().to_owned();
        match part(0).as_str() {
            "driver_override" => {
                fs::write(file, if value.is_empty() { "(null)\n".to_owned() } else { format!("{value}\n") })
            }
            "unbind" => self.unbind(value),
            "bind" => self.bind(value, &part(1)),
            "drivers_probe" => {
                let device = pci::device(Root::new(&self.root), value).unwrap().unwrap();
                let kernel = devices::kind(device.vendor, device.device).map(|k| k.kernel.to_owned());
                match device.driver_override.clone().or(kernel) {
                    // The kernel says nothing when no driver wants a device.
                    Some(driver) => self.bind(value, &driver).or(Ok(())),
                    None => Ok(()),
                }
            }
            other => panic!("nobody writes {other}"),
        }
    }
}

/// Interfaces of the tree: a pod's network namespace is a folder.
pub struct FakeLinks {
    pub root: PathBuf,
}

impl FakeLinks {
    /// Into the pod, as the agent does.
    pub fn send(&self, claim: &Claim) {
        let net = self.root.join(pci::DEVICES).join(&claim.address).join("net");
        let name = claim.before.interface.as_ref().unwrap();
        fs::create_dir_all(self.root.join("pods")).unwrap();
        fs::rename(net.join(name), self.root.join("pods").join(claim.owner.token())).unwrap();
    }
}

impl Links for FakeLinks {
    fn bring_home(&self, claim: &Claim) -> Result<(), String> {
        let pod = self.root.join("pods").join(claim.owner.token());
        let net = self.root.join(pci::DEVICES).join(&claim.address).join("net");
        let name = claim.before.interface.as_deref().unwrap_or_default();
        if pod.exists() { fs::rename(pod, net.join(name)).map_err(|e| e.to_string()) } else { Ok(()) }
    }

    fn settle(&self, interface: &str, was: &Before) -> Result<(), String> {
        for device in pci::read(Root::new(&self.root)).unwrap() {
            for found in device.interfaces.iter().filter(|i| i.name == interface) {
                let net = self.root.join(device.folder()).join("net").join(&found.name);
                fs::write(net.join("address"), format!("{}\n", was.mac.as_deref().unwrap_or_default())).unwrap();
                fs::write(net.join("mtu"), format!("{}\n", was.mtu)).unwrap();
            }
        }
        Ok(())
    }
}
