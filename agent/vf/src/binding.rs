//! Devices from the kernel's driver to VFIO and back, and a device made fresh.
//!
//! `driver_override` names the one driver that may take a device (`Documentation/ABI/testing/sysfs-bus-pci`): with it, no other
//! device of the same kind changes hands, as `new_id` would have it. Every step is proved by reading the device again.

use crate::VfError;
use crate::bus::Bus;
use crate::ledger::Before;
use sluice_machine::Root;
use sluice_machine::devices::{self, Method, VFIO};
use sluice_machine::pci::{self, DEVICES, DRIVERS, NetDevice};
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a driver may take to come up with its interface.
pub const APPEARS: Duration = Duration::from_secs(5);

/// The device as it is now.
pub fn device(root: &Path, address: &str) -> Result<NetDevice, VfError> {
    let found = pci::device(Root::new(root), address)?;
    found.ok_or_else(|| VfError::Gone {
        address: address.to_owned(),
        mend: "`echo 1 > /sys/bus/pci/rescan` looks again, `hugepage-setup --vfs PF=N --apply` makes VFs".to_owned(),
    })
}

/// How a device is now, to be put back so.
pub fn before(device: &NetDevice) -> Before {
    let interface = device.interfaces.first();
    Before {
        driver: device.driver.clone(),
        driver_override: device.driver_override.clone(),
        interface: interface.map(|i| i.name.clone()),
        mac: interface.map(|i| i.mac.clone()),
        mtu: interface.map_or(0, |i| i.mtu),
    }
}

/// Whether a userspace driver could take the device now; what it takes to do so.
pub fn fit(root: &Path, device: &NetDevice) -> Result<Method, VfError> {
    let address = device.address.clone();
    let kind = devices::kind(device.vendor, device.device)
        .ok_or_else(|| VfError::NotInTable { address: address.clone(), id: device.id() })?;
    if kind.method == Method::Bifurcated {
        return match device.driver.as_deref() == Some(kind.kernel) {
            true => Ok(Method::Bifurcated),
            false => Err(VfError::WrongDriver {
                address,
                found: device.driver.clone().unwrap_or_else(|| "no driver".to_owned()),
                expected: kind.kernel.to_owned(),
            }),
        };
    }
    if let pci::Function::Physical { vfs, .. } = &device.function
        && !vfs.is_empty()
    {
        return Err(VfError::HasVfs { address, vfs: vfs.join(", ") });
    }
    let Some(group) = device.iommu_group else { return Err(VfError::NoIommu { address }) };
    let root = Root::new(root);
    if !root.has(&format!("{DRIVERS}/{VFIO}")) {
        return Err(VfError::NoVfio);
    }
    for other in root.names(&format!("sys/kernel/iommu_groups/{group}/devices"))? {
        let driver = root.link(&format!("{DEVICES}/{other}/driver"));
        // Bridges of the group have no say in VFIO.
        let bridge = root.hex(&format!("{DEVICES}/{other}/class"))?.is_some_and(|class| class >> 16 == 6);
        if let Some(driver) = driver.filter(|d| other != device.address && d != VFIO && !bridge) {
            return Err(VfError::SharedGroup { address, group, other, driver });
        }
    }
    Ok(Method::VfioPci)
}

fn put(bus: &dyn Bus, root: &Path, file: &str, value: &str) -> Result<(), VfError> {
    let path = Root::new(root).path(file);
    bus.write(&path, value).map_err(|source| VfError::Kernel { what: "writing", path, source })
}

fn unbind(bus: &dyn Bus, root: &Path, address: &str, driver: &str) -> Result<(), VfError> {
    put(bus, root, &format!("{DRIVERS}/{driver}/unbind"), address)
}

/// Gives the device to `vfio-pci`. Where it does not arrive, it is put back and the error says why.
pub fn to_vfio(bus: &dyn Bus, root: &Path, address: &str) -> Result<(), VfError> {
    let now = device(root, address)?;
    if now.driver.as_deref() == Some(VFIO) {
        return Ok(());
    }
    let was = before(&now);
    let take = || -> Result<(), VfError> {
        put(bus, root, &format!("{DEVICES}/{address}/driver_override"), VFIO)?;
        if let Some(driver) = &now.driver {
            unbind(bus, root, address, driver)?;
        }
        put(bus, root, "sys/bus/pci/drivers_probe", address)?;
        match device(root, address)?.driver.as_deref() {
            Some(VFIO) => Ok(()),
            found => Err(VfError::WrongDriver {
                address: address.to_owned(),
                found: found.unwrap_or("no driver").to_owned(),
                expected: VFIO.to_owned(),
            }),
        }
    };
    take().inspect_err(|_| {
        // What failed is what is told; how far the way back got shows in the device's state.
        let _ = restore(bus, root, address, &was);
    })
}

/// Puts driver and override back as they were, and proves it.
pub fn restore(bus: &dyn Bus, root: &Path, address: &str, was: &Before) -> Result<(), VfError> {
    let now = device(root, address)?;
    if now.driver_override != was.driver_override {
        let file = format!("{DEVICES}/{address}/driver_override");
        put(bus, root, &file, was.driver_override.as_deref().unwrap_or_default())?;
    }
    if now.driver != was.driver {
        if let Some(driver) = &now.driver {
            unbind(bus, root, address, driver)?;
        }
        if let Some(driver) = &was.driver {
            put(bus, root, &format!("{DRIVERS}/{driver}/bind"), address)?;
        }
    }
    proved(root, address, was)
}

/// Takes the device from its kernel driver and gives it back to it: its interface is made anew, with nothing left of what its
/// last user did to it (addresses, VLANs, XDP programs, filters). The new interface's name, where there was one before.
pub fn renew(bus: &dyn Bus, root: &Path, address: &str, was: &Before) -> Result<Option<String>, VfError> {
    let now = device(root, address)?;
    if let (Some(driver), true) = (&now.driver, now.driver == was.driver) {
        unbind(bus, root, address, driver)?;
        put(bus, root, &format!("{DRIVERS}/{driver}/bind"), address)?;
    }
    // A driver may choose another MAC each time: that is for the caller to set.
    let whatever = Before { mac: None, mtu: 0, ..was.clone() };
    restore(bus, root, address, &whatever)?;
    let until = Instant::now() + APPEARS;
    loop {
        let interface = device(root, address)?.interfaces.first().map(|i| i.name.clone());
        if interface.is_some() || was.interface.is_none() || Instant::now() >= until {
            return Ok(interface);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Waits until the device is as it was, or says what differs.
pub fn proved(root: &Path, address: &str, was: &Before) -> Result<(), VfError> {
    let until = Instant::now() + APPEARS;
    loop {
        let now = device(root, address)?;
        let Some((why, mend)) = differs(&now, was) else { return Ok(()) };
        // An interface appears some time after its driver was bound.
        let may_come = now.driver == was.driver && now.interfaces.is_empty();
        if !may_come || Instant::now() >= until {
            return Err(VfError::Dirty { address: address.to_owned(), why, mend });
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn differs(now: &NetDevice, was: &Before) -> Option<(String, String)> {
    let address = &now.address;
    let said = |word: &Option<String>| word.clone().unwrap_or_else(|| "none".to_owned());
    let again = was.driver.as_deref().map_or(String::new(), |driver| {
        format!(
            "`echo {address} > /sys/bus/pci/devices/{address}/driver/unbind; echo {address} > \
             /sys/bus/pci/drivers/{driver}/bind`"
        )
    });
    if now.driver != was.driver {
        return Some((format!("its driver is {}, it was {}", said(&now.driver), said(&was.driver)), again));
    }
    if now.driver_override != was.driver_override {
        let mend = format!(
            "`echo {} > /sys/bus/pci/devices/{address}/driver_override`",
            was.driver_override.as_deref().unwrap_or_default()
        );
        let (now, was) = (said(&now.driver_override), said(&was.driver_override));
        return Some((format!("its driver override is {now}, it was {was}"), mend));
    }
    let Some(mac) = &was.mac else { return None };
    match now.interfaces.first() {
        None => Some(("its interface is not here".to_owned(), again)),
        Some(interface) if interface.mac != *mac => {
            let mend = format!("`ip link set {} address {mac}`", interface.name);
            Some((format!("its MAC is {}, it was {mac}", interface.mac), mend))
        }
        Some(interface) if was.mtu != 0 && interface.mtu != was.mtu => {
            let mend = format!("`ip link set {} mtu {}`", interface.name, was.mtu);
            Some((format!("its MTU is {}, it was {}", interface.mtu, was.mtu), mend))
        }
        Some(_) => None,
    }
}
