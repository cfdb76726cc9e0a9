//! A network interface as the kernel describes it: index, name, MTU, MAC, driver, queues.
//!
//! Runs on the control thread, in whatever network namespace that thread is in: ioctls and not sysfs, because sysfs
//! shows the namespace it was mounted in. Source: netdevice(7), `include/uapi/linux/ethtool.h`.

use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// `ETHTOOL_GDRVINFO`, `ETHTOOL_GCHANNELS`: commands behind `SIOCETHTOOL`.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;

/// Why an interface could not be described.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No socket to ask through.
    #[error("cannot open a control socket: {0}")]
    Socket(Errno),
    /// No such interface in this network namespace.
    #[error("no network interface {0} in this network namespace; `ip link` lists those there are")]
    NotFound(String),
    /// The kernel refused to answer.
    #[error("cannot read {what} of {name}: {source}")]
    Read {
        /// Interface name.
        name: String,
        /// Which property.
        what: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

/// How the caller names an interface; always looked up in the calling thread's network namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface<'a> {
    /// By name.
    Name(&'a str),
    /// By index.
    Index(u32),
}

impl<'a> From<&'a str> for Interface<'a> {
    fn from(name: &'a str) -> Self {
        Interface::Name(name)
    }
}

impl From<u32> for Interface<'_> {
    fn from(index: u32) -> Self {
        Interface::Index(index)
    }
}

/// What is known of an interface; read once, when the port is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Kernel index.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Largest layer-3 packet, in bytes.
    pub mtu: u32,
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Kernel driver (`veth`, `ixgbe`), empty if it does not say.
    pub driver: String,
    /// Receive queues in use (1 where the driver does not say).
    pub rx_queues: u32,
}

impl Device {
    /// Looks the interface up.
    pub fn find<'a>(interface: impl Into<Interface<'a>>) -> Result<Device, DeviceError> {
        let fd = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
            .map_err(DeviceError::Socket)?;
        let (index, name) = match interface.into() {
            Interface::Name(name) => {
                (name_to_index(&fd, name).map_err(|_| DeviceError::NotFound(name.into()))?, name.to_owned())
            }
            Interface::Index(index) => {
                (index, index_to_name(&fd, index).map_err(|_| DeviceError::NotFound(format!("with index {index}")))?)
            }
        };
        let failed = |what| move |(name, source): (String, Errno)| DeviceError::Read { name, what, source };
        let mut request = request(&name);
        ioctl(&fd, libc::SIOCGIFMTU, &mut request).map_err(|e| failed("the MTU")((name.clone(), e)))?;
        // SAFETY: SIOCGIFMTU filled this member.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu } as u32;
        ioctl(&fd, libc::SIOCGIFHWADDR, &mut request).map_err(|e| failed("the MAC address")((name.clone(), e)))?;
        // SAFETY: SIOCGIFHWADDR filled this member.
        let hardware = unsafe { request.ifr_ifru.ifru_hwaddr };
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(hardware.sa_data) {
            *to = from as u8;
        }
        let (driver, rx_queues) = (driver(&fd, &name), rx_queues(&fd, &name));
        Ok(Device { index, name, mtu, mac, driver, rx_queues })
    }

    /// Whether the device hands over packets whose transport checksum was left to the hardware, without saying so to
    /// XDP: those whose other end is a socket of this machine.
    pub fn hides_partial_checksums(&self) -> bool {
        matches!(self.driver.as_str(), "veth" | "tun" | "netkit" | "bridge")
    }

    /// Whether the driver is known to have no zero-copy AF_XDP, so that trying it is wasted time.
    pub fn copies_always(&self) -> bool {
        matches!(
            self.driver.as_str(),
            "veth" | "tun" | "netkit" | "bridge" | "802.1Q VLAN Support" | "macvlan" | "vxlan"
        )
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: an ifreq of zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

fn ioctl(fd: &OwnedFd, command: libc::Ioctl, request: &mut libc::ifreq) -> Result<(), Errno> {
    // SAFETY: every command used here reads and writes one ifreq; where it holds a pointer, the caller keeps the
    // target alive and large enough.
    match unsafe { libc::ioctl(fd.as_raw_fd(), command, core::ptr::from_mut(request)) } {
        0.. => Ok(()),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

/// Sends an ethtool command whose struct is `words` 32-bit words long, the command in the first.
fn ethtool<const WORDS: usize>(fd: &OwnedFd, name: &str, command: u32) -> Result<[u32; WORDS], Errno> {
    let mut reply = [0u32; WORDS];
    reply[0] = command;
    let mut request = request(name);
    request.ifr_ifru.ifru_data = reply.as_mut_ptr().cast();
    ioctl(fd, libc::SIOCETHTOOL, &mut request)?;
    Ok(reply)
}

/// `struct ethtool_drvinfo`: 196 bytes, the driver's name in bytes 4..36.
fn driver(fd: &OwnedFd, name: &str) -> String {
    let Ok(info) = ethtool::<49>(fd, name, ETHTOOL_GDRVINFO) else { return String::new() };
    let bytes: Vec<u8> = info[1..9].iter().flat_map(|w| w.to_ne_bytes()).take_while(|b| *b != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `struct ethtool_channels`: command, four maxima, then rx, tx, other and combined counts.
fn rx_queues(fd: &OwnedFd, name: &str) -> u32 {
    ethtool::<9>(fd, name, ETHTOOL_GCHANNELS).map_or(1, |c| (c[5] + c[8]).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_found_by_name_and_by_index() {
        let by_name = Device::find("lo").unwrap();
        assert_eq!(by_name.mac, [0; 6]);
        assert!(by_name.mtu >= 1500, "{by_name:?}");
        assert_eq!(Device::find(by_name.index).unwrap(), by_name);
    }

    #[test]
    fn an_unknown_interface_is_named_in_the_error() {
        let error = Device::find("sg-none").unwrap_err();
        assert_eq!(error, DeviceError::NotFound("sg-none".into()));
        assert!(error.to_string().contains("ip link"));
    }
}
