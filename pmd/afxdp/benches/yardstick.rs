//! Our rings and xsk-rs' side by side on the same veth pair: 60-byte frames sent, and frames received and sent back.
//!
//! `cargo bench -p sluice-afxdp --features yardstick`, as root. Contenders alternate over several rounds; the table
//! has the median and all rounds, in packets a second. Both run in copy mode on one thread, so most of the time is the
//! kernel's (sendto, veth, the peer's receive path): compare the rows, not the numbers with other machines'.

#[path = "../tests/lab/mod.rs"]
mod lab;
#[path = "../tests/lab/xsk_rs_queue.rs"]
mod xsk_rs_queue;

use lab::{FAR, Memory, NEAR, enter, ip, test_frame, veth_pair};
use sluice_afxdp::{AttachMode, Program};
use sluice_port::{Burst, Queue};
use std::time::{Duration, Instant};

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(800);
const BURST: usize = 64;

fn main() {
    // cargo runs benches with --bench; test runs of the bench do nothing.
    if !std::env::args().any(|a| a == "--bench") || !enter() {
        return;
    }
    println!("load {}", std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim());
    for (title, measure) in [("send", send as fn(&mut dyn Queue, &mut Memory) -> f64), ("send and receive", round_trip)]
    {
        let mut rates = [vec![], vec![]];
        for _ in 0..ROUNDS {
            for (contender, rates) in rates.iter_mut().enumerate() {
                veth_pair(NEAR, FAR, 1500);
                let mut memory = Memory::new(8192);
                let (mut queue, program): (Box<dyn Queue>, Option<Program>) = if contender == 0 {
                    let (program, queue) = lab::open_all(NEAR, AttachMode::Native, &mut memory);
                    (Box::new(queue), Some(program))
                } else {
                    (Box::new(xsk_rs_queue::XskRs::open(NEAR, AttachMode::Native)), None)
                };
                rates.push(measure(&mut *queue, &mut memory));
                queue.close(&mut memory.cache);
                drop(program);
                ip("link del sg-near");
            }
        }
        for (name, rates) in ["sluice-afxdp", "xsk-rs"].iter().zip(&mut rates) {
            rates.sort_by(f64::total_cmp);
            let all: Vec<_> = rates.iter().map(|r| format!("{:.3}", r / 1e6)).collect();
            println!("{title:18} {name:14} median {:.3} Mpps  [{}]", rates[ROUNDS / 2] / 1e6, all.join(" "));
        }
    }
}

fn fill_up(burst: &mut Burst, memory: &mut Memory, bytes: &[u8]) {
    while burst.len() < BURST {
        let Some(frame) = memory.cache.alloc_copy(bytes) else { return };
        burst.push(frame);
    }
}

/// Sends to a far end that has no listener: the kernel drops there.
fn send(queue: &mut dyn Queue, memory: &mut Memory) -> f64 {
    let bytes = test_frame(60, 1);
    let mut burst = Burst::new();
    let (start, before) = (Instant::now(), queue.stats().tx_packets);
    while start.elapsed() < ROUND {
        fill_up(&mut burst, memory, &bytes);
        queue.tx(&mut memory.cache, &mut burst);
        queue.flush(&mut memory.cache);
    }
    let rate = (queue.stats().tx_packets - before) as f64 / start.elapsed().as_secs_f64();
    burst.drain(..).for_each(|frame| memory.cache.free(frame));
    rate
}

/// Packets that one of our queues sends on the far end are received, their addresses swapped, and sent back to it; all
/// on this thread.
fn round_trip(queue: &mut dyn Queue, memory: &mut Memory) -> f64 {
    let bytes = test_frame(60, 1);
    let (_far_program, mut far) = lab::open_all(FAR, AttachMode::Native, memory);
    let mut outgoing = Burst::new();
    let (mut burst, mut back) = (Burst::new(), Burst::new());
    let (start, before) = (Instant::now(), queue.stats().tx_packets);
    while start.elapsed() < ROUND {
        fill_up(&mut outgoing, memory, &bytes);
        far.tx(&mut memory.cache, &mut outgoing);
        queue.rx(&mut memory.cache, &mut burst, BURST);
        for frame in &mut burst {
            frame.head_mut()[..12].rotate_left(6);
        }
        queue.tx(&mut memory.cache, &mut burst);
        queue.flush(&mut memory.cache);
        far.rx(&mut memory.cache, &mut back, BURST);
        far.flush(&mut memory.cache);
        back.drain(..).for_each(|frame| memory.cache.free(frame));
    }
    let rate = (queue.stats().tx_packets - before) as f64 / start.elapsed().as_secs_f64();
    for burst in [burst, outgoing] {
        burst.into_iter().for_each(|frame| memory.cache.free(frame));
    }
    Box::new(far).close(&mut memory.cache);
    rate
}
