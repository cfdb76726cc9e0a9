//! A patch cable between two network namespaces: a TAP `eth0` in each, frames carried from one to the other, addresses
//! rewritten. The least that a dataplane over TAPs does, so what it reaches is the ceiling.
//!
//! `tap_patch NETNS MAC NETNS MAC`, each MAC being that of the namespace's `eth0`; ends when its standard input does.
//! For figures run it with `setsid` and pinned: within one scheduler autogroup a polling thread starves its neighbours.

use sluice_port::{Burst, FramePool, PoolOptions, Queue};
use sluice_tap::{Namespace, TapOptions, TapQueue};
use std::error::Error;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const GATEWAY: [u8; 6] = [0x02, 0x00, 0xa9, 0xfe, 0x01, 0x01];

fn end(netns: &str, mac: &str) -> Result<(Box<TapQueue>, [u8; 6]), Box<dyn Error>> {
    let queue = TapQueue::open(&TapOptions::new("eth0").within(Namespace::Path(Path::new(netns))))?;
    let bytes = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    let mac = <[u8; 6]>::try_from(bytes).map_err(|_| format!("`{mac}` is no MAC address"))?;
    Ok((Box::new(queue), mac))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [netns_a, mac_a, netns_b, mac_b] = arguments.as_slice() else {
        return Err("usage: tap_patch NETNS MAC NETNS MAC".into());
    };
    let mut ends = [end(netns_a, mac_a)?, end(netns_b, mac_b)?];
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        stop.store(true, Ordering::Relaxed);
    });
    let mut cache = FramePool::new(PoolOptions { frames: 8192, huge_pages: true })?.cache();
    let mut burst = Burst::with_capacity(64);
    while !stopped.load(Ordering::Relaxed) {
        for from in 0..2 {
            let to_mac = ends[1 - from].1;
            ends[from].0.rx(&mut cache, &mut burst, 64);
            for frame in &mut burst {
                let head = frame.head_mut();
                head[..6].copy_from_slice(&to_mac);
                head[6..12].copy_from_slice(&GATEWAY);
            }
            ends[1 - from].0.tx(&mut cache, &mut burst);
            burst.drain(..).for_each(|frame| cache.free(frame));
        }
    }
    for (queue, _) in ends {
        eprintln!("{:?} {:?}", queue.mode(), queue.stats());
        queue.close(&mut cache);
    }
    Ok(())
}
