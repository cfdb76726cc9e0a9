//! An XDP program that stays on its interface when the process that put it there ends, and how a later process finds it,
//! takes its place, or takes it off.
//!
//! A BPF link goes with its last descriptor unless it is pinned in a bpffs, which a container may not see and a private
//! mount namespace does not keep. What netlink attaches is held by the interface itself, wherever it was attached from.
//! Runs on the control thread, in the interface's network namespace. Source: rtnetlink(7), `IFLA_XDP` in
//! `include/uapi/linux/if_link.h`; replacing is atomic (`dev_xdp_install`): no packet meets neither program.

use crate::attach::{AttachMode, Attached, errno, native_text};
use crate::device::Device;
use crate::program::{NAME, ProgramError};
use aya::programs::loaded_programs;
use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage, LinkXdp, XdpAttached};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

const XDP_FLAGS_UPDATE_IF_NOEXIST: u32 = 1;
const XDP_FLAGS_SKB_MODE: u32 = 2;
const XDP_FLAGS_DRV_MODE: u32 = 4;
const XDP_FLAGS_REPLACE: u32 = 16;

/// A program of ours that an earlier process left.
pub(crate) struct Predecessor {
    /// Where it runs.
    pub attached: Attached,
    fd: OwnedFd,
}

/// What is on an interface.
pub(crate) enum Found {
    /// No program.
    Nothing,
    /// One of ours.
    Ours(Predecessor),
    /// Somebody else's.
    Foreign,
}

/// Looks at what is on the interface.
pub(crate) fn look(device: &Device) -> Result<Found, ProgramError> {
    let mut message = LinkMessage::default();
    message.header.index = device.index;
    let answers = ask(RouteNetlinkMessage::GetLink(message)).map_err(|e| failed(device, &e))?;
    let xdp = answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewLink(link) => link.attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Xdp(list) => Some(list),
            _ => None,
        }),
        _ => None,
    });
    let (mut attached, mut id) = (None, None);
    for part in xdp.unwrap_or_default() {
        match part {
            LinkXdp::Attached(XdpAttached::Driver) => attached = Some(Attached::Native),
            LinkXdp::Attached(XdpAttached::SocketBuffer) => attached = Some(Attached::Generic),
            LinkXdp::Attached(XdpAttached::None) => return Ok(Found::Nothing),
            LinkXdp::Attached(_) => return Ok(Found::Foreign),
            LinkXdp::ProgId(number) => id = Some(number),
            _ => {}
        }
    }
    let (Some(attached), Some(id)) = (attached, id) else { return Ok(Found::Nothing) };
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    let ours = program.filter(|program| program.name_as_str() == Some(NAME));
    match ours.and_then(|program| program.fd().ok()) {
        Some(fd) => {
            let fd = fd.as_fd().try_clone_to_owned().map_err(|e| failed(device, &e))?;
            Ok(Found::Ours(Predecessor { attached, fd }))
        }
        None => Ok(Found::Foreign),
    }
}

/// Puts a program on an interface that has none.
pub(crate) fn put_on(
    device: &Device,
    program: BorrowedFd<'_>,
    mode: AttachMode,
) -> Result<(Attached, String), ProgramError> {
    let mut native = String::new();
    if mode != AttachMode::Generic {
        match set(device, program.as_raw_fd(), XDP_FLAGS_DRV_MODE | XDP_FLAGS_UPDATE_IF_NOEXIST, None) {
            Ok(()) => return Ok((Attached::Native, String::new())),
            Err(error) => match error.raw_os_error() {
                Some(libc::EBUSY | libc::EEXIST) => return Err(ProgramError::Occupied(device.name.clone())),
                Some(libc::EPERM) => return Err(ProgramError::Permission),
                number => native = native_text(device, number).unwrap_or_else(|| error.to_string()),
            },
        }
    }
    if mode == AttachMode::Native {
        return Err(ProgramError::Attach { device: device.name.clone(), native, generic: String::new() });
    }
    match set(device, program.as_raw_fd(), XDP_FLAGS_SKB_MODE | XDP_FLAGS_UPDATE_IF_NOEXIST, None) {
        Ok(()) => {
            let reason = if native.is_empty() { "generic XDP was asked for".into() } else { native };
            Ok((Attached::Generic, reason))
        }
        Err(error) => Err(match error.raw_os_error() {
            Some(libc::EBUSY | libc::EEXIST) => ProgramError::Occupied(device.name.clone()),
            Some(libc::EPERM) => ProgramError::Permission,
            _ => ProgramError::Attach { device: device.name.clone(), native, generic: error.to_string() },
        }),
    }
}

/// Puts a program in the place of its predecessor, if that is still there.
pub(crate) fn replace(device: &Device, old: &Predecessor, program: BorrowedFd<'_>) -> Result<(), ProgramError> {
    set(device, program.as_raw_fd(), flags(old), Some(old.fd.as_fd())).map_err(|error| match error.raw_os_error() {
        Some(libc::EEXIST | libc::EBUSY) => ProgramError::Occupied(device.name.clone()),
        _ => failed(device, &error),
    })
}

/// Takes a program of ours off, if it is still there.
pub(crate) fn take_off(device: &Device, old: &Predecessor) -> Result<(), ProgramError> {
    set(device, -1, flags(old), Some(old.fd.as_fd())).map_err(|error| failed(device, &error))
}

fn flags(old: &Predecessor) -> u32 {
    match old.attached {
        Attached::Native => XDP_FLAGS_DRV_MODE,
        Attached::Generic => XDP_FLAGS_SKB_MODE,
    }
}

fn set(device: &Device, program: i32, flags: u32, expected: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = device.index;
    let mut xdp = vec![LinkXdp::Fd(program)];
    match expected {
        Some(fd) => xdp.extend([
            LinkXdp::Flags(flags | XDP_FLAGS_REPLACE),
            LinkXdp::ExpectedFd(u32::try_from(fd.as_raw_fd()).unwrap_or(u32::MAX)),
        ]),
        None => xdp.push(LinkXdp::Flags(flags)),
    }
    message.attributes.push(LinkAttribute::Xdp(xdp));
    ask(RouteNetlinkMessage::SetLink(message)).map(drop)
}

fn failed(device: &Device, error: &io::Error) -> ProgramError {
    match errno(error) {
        Some(libc::EPERM) => ProgramError::Permission,
        _ => ProgramError::Load(format!("program of {}: {error}", device.name)),
    }
}

/// Sends one request; returns what came before its acknowledgement.
fn ask(message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK;
    header.sequence_number = 1;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut answers = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        let mut rest = &bytes[..];
        while rest.len() >= 16 {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.to_string()))?;
            match message.payload {
                NetlinkPayload::InnerMessage(inner) => answers.push(inner),
                NetlinkPayload::Error(e) if e.code.is_some() => return Err(e.to_io()),
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
    }
}
