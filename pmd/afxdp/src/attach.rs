//! Attaches a loaded XDP program to an interface: in the driver if it can be, else in the stack, always by BPF link.
//!
//! Runs on the control thread. Source: Documentation/bpf/libbpf, `bpf_xdp_link_attach`; error numbers as the drivers
//! give them, since the kernel tells the reason only to its trace.

use crate::device::Device;
use crate::program::ProgramError;
use aya::EbpfError;
use aya::programs::links::FdLink;
use aya::programs::{ProgramError as AyaProgramError, Xdp, XdpMode};
use std::fmt;

/// Where XDP is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum AttachMode {
    /// In the driver if it can, else in the stack.
    #[default]
    Auto,
    /// In the driver.
    Native,
    /// In the stack (skb mode).
    Generic,
}

/// Where XDP runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// In the driver, before the kernel makes a packet buffer.
    Native,
    /// In the stack, on the kernel's packet buffers.
    Generic,
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Attached::Native => "native",
            Attached::Generic => "generic",
        })
    }
}

/// The first error number in a chain of causes.
pub(crate) fn errno(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut at = Some(error);
    while let Some(error) = at {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return io.raw_os_error();
        }
        at = error.source();
    }
    None
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        at = cause.source();
    }
    text
}

pub(crate) fn load_error(error: EbpfError) -> ProgramError {
    match errno(&error) {
        Some(libc::EPERM | libc::EACCES) => ProgramError::Permission,
        _ => ProgramError::Load(chain(&error)),
    }
}

pub(crate) fn program_error(error: AyaProgramError) -> ProgramError {
    match (&error, errno(&error)) {
        (AyaProgramError::LoadError { .. }, Some(libc::EPERM)) => ProgramError::Permission,
        _ => ProgramError::Load(chain(&error)),
    }
}

/// What the kernel means by an error number of a native attach; it tells the reason only to its trace.
pub(crate) fn native_refusal(device: &Device, error: &AyaProgramError) -> String {
    native_text(device, errno(error)).unwrap_or_else(|| chain(error))
}

/// The same for a bare error number; `None` where the kernel's own text says as much.
pub(crate) fn native_text(device: &Device, errno: Option<i32>) -> Option<String> {
    Some(match errno {
        Some(libc::EOPNOTSUPP) => {
            let driver = if device.driver.is_empty() { "its" } else { &device.driver };
            format!("{driver} driver has no native XDP")
        }
        Some(libc::ERANGE) => "peer MTU too large: native attach refused".into(),
        Some(libc::ENOSPC) => {
            format!("fewer rx queues than the peer has tx queues (`ethtool -L {} rx N` gives more)", device.name)
        }
        Some(libc::EINVAL) if device.driver == "virtio_net" => format!(
            "too few queues or offloads in the way (`ethtool -K {} lro off`, `ethtool -L` with twice the CPUs)",
            device.name
        ),
        _ => return None,
    })
}

pub(crate) fn attach(
    program: &mut Xdp,
    device: &Device,
    mode: AttachMode,
) -> Result<(FdLink, Attached, String), ProgramError> {
    let mut native = String::new();
    if mode != AttachMode::Generic {
        match program.attach_to_if_index(device.index, XdpMode::Driver) {
            Ok(id) => return Ok((fd_link(program, id)?, Attached::Native, String::new())),
            Err(error) => match errno(&error) {
                Some(libc::EBUSY | libc::EEXIST) => return Err(ProgramError::Occupied(device.name.clone())),
                Some(libc::EPERM) => return Err(ProgramError::Permission),
                _ => native = native_refusal(device, &error),
            },
        }
    }
    if mode == AttachMode::Native {
        return Err(ProgramError::Attach { device: device.name.clone(), native, generic: String::new() });
    }
    match program.attach_to_if_index(device.index, XdpMode::Skb) {
        Ok(id) => {
            let reason = if native.is_empty() { "generic XDP was asked for".into() } else { native };
            Ok((fd_link(program, id)?, Attached::Generic, reason))
        }
        Err(error) => match errno(&error) {
            Some(libc::EBUSY | libc::EEXIST) => Err(ProgramError::Occupied(device.name.clone())),
            Some(libc::EPERM) => Err(ProgramError::Permission),
            _ => Err(ProgramError::Attach { device: device.name.clone(), native, generic: chain(&error) }),
        },
    }
}

/// Takes the link out of aya's hands. A netlink attachment, aya's answer to an old kernel, would outlive a killed
/// process: it is undone (aya detaches when its program is dropped) and refused.
pub(crate) fn fd_link(program: &mut Xdp, id: aya::programs::xdp::XdpLinkId) -> Result<FdLink, ProgramError> {
    let link = program.take_link(id).map_err(program_error)?;
    FdLink::try_from(link).map_err(|_| ProgramError::NoLink)
}
