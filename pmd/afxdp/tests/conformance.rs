//! The drivers' conformance suite over AF_XDP on veth pairs. Needs root; skips without.

mod lab;
#[cfg(feature = "yardstick")]
#[path = "lab/xsk_rs_queue.rs"]
mod xsk_rs_queue;

use lab::{FAR, FAR_MAC, NEAR, NEAR_MAC, Raw, complete, enter, ip, veth_pair};
use sluice_afxdp::{AttachMode, Program, QueueOptions, Umem, XskQueue};
use sluice_port::conformance::{Laws, Pair, Peer, Rig, assert_conforms};
use sluice_port::{FramePool, PoolCache};
use std::sync::Arc;
use std::time::Duration;

struct FarEnd(Raw);

impl Peer for FarEnd {
    fn inject(&mut self, _cache: &mut PoolCache, bytes: &[u8]) -> bool {
        self.0.send(bytes);
        true
    }

    fn collect(&mut self, _cache: &mut PoolCache, out: &mut Vec<Vec<u8>>) {
        while let Some((mut bytes, offloads)) = self.0.recv(Duration::ZERO) {
            complete(&mut bytes, offloads);
            out.push(bytes);
        }
    }

    fn close(self: Box<Self>, _cache: &mut PoolCache) {}
}

struct Veth {
    mode: AttachMode,
    mtu: u32,
    umem: Option<Arc<Umem>>,
    /// The last device's, alive until the next is opened: a queue is closed before its program.
    program: Option<Program>,
}

impl Rig for Veth {
    fn laws(&self) -> Laws {
        Laws {
            quiet: false,
            longest: self.mtu as usize + 14,
            // What the least receive reserve holds at this MTU.
            window: if self.mtu > 20_000 {
                3
            } else if self.mtu > 1500 {
                16
            } else {
                32
            },
            stress_frames: 3000,
            addresses: [NEAR_MAC, FAR_MAC],
            ..Laws::default()
        }
    }

    fn open(&mut self, pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
        if self.program.take().is_some() {
            ip("link del sg-near");
        }
        veth_pair(NEAR, FAR, self.mtu);
        let umem = self.umem.get_or_insert_with(|| Umem::new(pool));
        let mut program = Program::attach_all(NEAR, self.mode).map_err(|e| e.to_string())?;
        let queue = XskQueue::open(umem, &mut program, 0, &QueueOptions::default(), &mut pool.cache())
            .map_err(|e| e.to_string())?;
        self.program = Some(program);
        Ok(Pair { queue: Box::new(queue), peer: Box::new(FarEnd(Raw::open(FAR))) })
    }
}

fn conforms(mode: AttachMode, mtu: u32) {
    std::thread::spawn(move || {
        if enter() {
            println!("{}", assert_conforms(&mut Veth { mode, mtu, umem: None, program: None }));
        }
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn native_mode_at_mtu_1500() {
    conforms(AttachMode::Native, 1500);
}

#[test]
fn native_mode_at_mtu_9000() {
    conforms(AttachMode::Native, 9000);
}

#[test]
fn native_mode_at_mtu_65535() {
    conforms(AttachMode::Native, 65535);
}

#[test]
fn generic_mode_at_mtu_1500() {
    conforms(AttachMode::Generic, 1500);
}

#[test]
fn generic_mode_at_mtu_9000() {
    conforms(AttachMode::Generic, 9000);
}

/// The suite itself is held against a driver we did not write.
#[cfg(feature = "yardstick")]
#[test]
fn xsk_rs_as_the_yardstick() {
    struct Yardstick;
    impl Rig for Yardstick {
        fn laws(&self) -> Laws {
            Laws { quiet: false, longest: 1514, stress_frames: 3000, addresses: [NEAR_MAC, FAR_MAC], ..Laws::default() }
        }

        fn open(&mut self, _pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
            if ip("link").contains(NEAR) {
                ip("link del sg-near");
            }
            veth_pair(NEAR, FAR, 1500);
            let queue = xsk_rs_queue::XskRs::open(NEAR, AttachMode::Native);
            Ok(Pair { queue: Box::new(queue), peer: Box::new(FarEnd(Raw::open(FAR))) })
        }
    }
    std::thread::spawn(|| {
        if enter() {
            println!("{}", assert_conforms(&mut Yardstick));
        }
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}
