//! The drivers' conformance suite over DPDK's virtual devices, and what only this driver can get wrong.
//!
//! DPDK starts once a process, so each mode is a process of its own: this one runs on small pages (`--no-huge`), and starts
//! itself again on huge pages where the machine has some to give.
#![cfg(feature = "dpdk")]

mod lab;

use lab::{FAR, FAR_MAC, NEAR, NEAR_MAC, enter, ip, packet_end, tap_end, veth_pair};
use sluice_dpdk::{DpdkError, DpdkQueue, Eal, EalOptions, Pages, Port, PortOptions, open};
use sluice_port::capture::{PcapWriter, Resolution};
use sluice_port::conformance::{Laws, Pair, Peer, Rig, assert_conforms};
use sluice_port::{Burst, Checksum, FramePool, PoolCache, PoolOptions, Queue};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Set in the process that this one starts on huge pages.
const HUGE: &str = "SLUICE_DPDK_TEST_HUGE";

/// Devices have names, and DPDK probes one at a time: one test at a time.
static ONE: Mutex<()> = Mutex::new(());

fn eal() -> (&'static Eal, MutexGuard<'static, ()>) {
    let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let pages = if std::env::var_os(HUGE).is_some() { Pages::Huge } else { Pages::Small };
    let eal = Eal::start(&EalOptions { pages, ..EalOptions::default() }).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(eal.huge_pages(), pages == Pages::Huge);
    (eal, one)
}

fn open_one(eal: &'static Eal, options: &PortOptions, pool: &Arc<FramePool>) -> Result<(Port, DpdkQueue), DpdkError> {
    let (port, mut queues) = open(eal, options, pool)?;
    Ok((port, queues.remove(0)))
}

fn frame_pool(frames: usize) -> Arc<FramePool> {
    FramePool::new(PoolOptions { frames, huge_pages: false }).unwrap()
}

/// Asserts that every chunk is back.
fn nothing_out(pool: &FramePool, mut cache: PoolCache) {
    cache.account();
    assert_eq!(pool.outstanding(), 0, "chunks did not come back");
}

/// A device name that no test has used.
fn fresh(driver: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{driver}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A far end that is a queue of ours as well.
struct QueuePeer(Box<dyn Queue>);

impl Peer for QueuePeer {
    fn inject(&mut self, cache: &mut PoolCache, bytes: &[u8]) -> bool {
        let Some(frame) = cache.alloc_copy(bytes) else { return false };
        let mut burst = vec![frame];
        self.0.tx(cache, &mut burst);
        burst.into_iter().map(|frame| cache.free(frame)).count() == 0
    }

    fn collect(&mut self, cache: &mut PoolCache, out: &mut Vec<Vec<u8>>) {
        let mut burst = Burst::new();
        self.0.flush(cache);
        self.0.rx(cache, &mut burst, 256);
        for mut frame in burst {
            assert!(sluice_port::complete_checksum(&mut frame));
            out.push(frame.to_vec());
            cache.free(frame);
        }
    }

    fn close(self: Box<Self>, cache: &mut PoolCache) {
        self.0.close(cache);
    }
}

/// Two rings, each the way of one direction: what one queue sends the other receives.
struct Ring {
    eal: &'static Eal,
    mtu: u16,
}

fn crossed_rings(
    eal: &'static Eal,
    mtu: u16,
    pool: &Arc<FramePool>,
) -> Result<(Port, DpdkQueue, DpdkQueue), DpdkError> {
    let options = PortOptions { queues: 2, mtu: Some(mtu), ..PortOptions::new(&fresh("net_ring")) };
    let (port, mut queues) = open(eal, &options, pool)?;
    let (mut far, mut near) = (queues.pop().unwrap(), queues.pop().unwrap());
    near.cross(&mut far);
    Ok((port, near, far))
}

impl Rig for Ring {
    fn laws(&self) -> Laws {
        Laws {
            longest: usize::from(self.mtu) + 14,
            // net_ring makes its rings 1,024 long, one slot of which stays empty.
            fills_after: Some(1023),
            pool_frames: 4096,
            ..Laws::default()
        }
    }

    fn open(&mut self, pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
        let (_, near, far) = crossed_rings(self.eal, self.mtu, pool).map_err(|error| error.to_string())?;
        Ok(Pair { queue: Box::new(near), peer: Box::new(QueuePeer(Box::new(far))) })
    }
}

#[test]
fn net_ring_conforms() {
    let (eal, _one) = eal();
    let left = std::fs::read_dir("/var/run/dpdk").map_or(0, |all| {
        let ours = format!("sluicegate-{}", std::process::id());
        all.filter_map(Result::ok).filter(|entry| entry.file_name() == *ours).count()
    });
    assert_eq!(left, 0, "DPDK leaves a folder behind");
    println!("{}", assert_conforms(&mut Ring { eal, mtu: 1500 }));
}

#[test]
fn net_ring_conforms_at_mtu_9000() {
    let (eal, _one) = eal();
    println!("{}", assert_conforms(&mut Ring { eal, mtu: 9000 }));
}

/// Sends into nothing.
struct Null(&'static Eal);

struct Nobody;

impl Peer for Nobody {
    fn inject(&mut self, _cache: &mut PoolCache, _bytes: &[u8]) -> bool {
        true
    }

    fn collect(&mut self, _cache: &mut PoolCache, _out: &mut Vec<Vec<u8>>) {}

    fn close(self: Box<Self>, _cache: &mut PoolCache) {}
}

impl Rig for Null {
    fn laws(&self) -> Laws {
        Laws { lossless: false, longest: 1514, patience: Duration::from_millis(20), ..Laws::default() }
    }

    fn open(&mut self, pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
        let options = PortOptions::new(&format!("{},no-rx=1", fresh("net_null")));
        let (_, queue) = open_one(self.0, &options, pool).map_err(|error| error.to_string())?;
        Ok(Pair { queue: Box::new(queue), peer: Box::new(Nobody) })
    }
}

#[test]
fn net_null_conforms() {
    let (eal, _one) = eal();
    println!("{}", assert_conforms(&mut Null(eal)));
}

/// Files in and out.
struct Pcap {
    eal: &'static Eal,
    folder: PathBuf,
    opened: u32,
}

struct PcapPeer {
    file: File,
    /// Read, not complete yet.
    rest: Vec<u8>,
}

impl Peer for PcapPeer {
    fn inject(&mut self, _cache: &mut PoolCache, _bytes: &[u8]) -> bool {
        false
    }

    fn collect(&mut self, _cache: &mut PoolCache, out: &mut Vec<Vec<u8>>) {
        self.file.read_to_end(&mut self.rest).unwrap();
        let mut at = if self.file.stream_position().unwrap() == self.rest.len() as u64 { 24 } else { 0 };
        // A record: seconds, fraction, bytes kept, bytes there were; then the bytes kept.
        while let Some(header) = self.rest.get(at..at + 16) {
            let len = u32::from_ne_bytes(header[8..12].try_into().unwrap()) as usize;
            let Some(bytes) = self.rest.get(at + 16..at + 16 + len) else { break };
            out.push(bytes.to_vec());
            at += 16 + len;
        }
        if self.rest.len() >= 24 {
            self.rest.drain(..at);
        }
    }

    fn close(self: Box<Self>, _cache: &mut PoolCache) {}
}

impl Rig for Pcap {
    fn laws(&self) -> Laws {
        Laws { live: false, longest: 9014, ..Laws::default() }
    }

    fn open(&mut self, pool: &Arc<FramePool>, recorded: &[Vec<u8>]) -> Result<Pair, String> {
        self.opened += 1;
        let [incoming, outgoing] = ["in", "out"].map(|way| self.folder.join(format!("{way}{}.pcap", self.opened)));
        let mut writer = PcapWriter::create(&incoming, Resolution::Microseconds).map_err(|error| error.to_string())?;
        for (n, bytes) in recorded.iter().enumerate() {
            writer.write(n as u64 * 1000, bytes).map_err(|error| error.to_string())?;
        }
        writer.finish().map_err(|error| error.to_string())?;
        let name = fresh("net_pcap");
        let device = format!("{name},rx_pcap={},tx_pcap={}", incoming.display(), outgoing.display());
        let options = PortOptions { mtu: Some(9000), ..PortOptions::new(&device) };
        let (_, queue) = open_one(self.eal, &options, pool).map_err(|error| error.to_string())?;
        let file = File::open(&outgoing).map_err(|error| error.to_string())?;
        Ok(Pair { queue: Box::new(queue), peer: Box::new(PcapPeer { file, rest: Vec::new() }) })
    }
}

#[test]
fn net_pcap_conforms() {
    let (eal, _one) = eal();
    let folder = tempfile::tempdir().unwrap();
    println!("{}", assert_conforms(&mut Pcap { eal, folder: folder.path().to_owned(), opened: 0 }));
}

/// Runs `work` on a thread in a namespace of its own.
fn in_namespace(work: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if enter() {
                work();
            }
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// A TAP that DPDK makes, bridged with one that asked for no offloads.
struct Tap(&'static Eal);

impl Rig for Tap {
    fn laws(&self) -> Laws {
        Laws { quiet: false, longest: 1514, stress_frames: 3000, addresses: [NEAR_MAC, FAR_MAC], ..Laws::default() }
    }

    fn open(&mut self, pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
        let _ = Command::new("ip").args(["link", "del", "sg-bridge"]).output();
        // Not by the MAC that frames are sent to: a bridge keeps what is for a port of its own.
        let device = format!("{},iface={NEAR},mac=02:00:00:00:00:99", fresh("net_tap"));
        let options = PortOptions { ring: 256, ..PortOptions::new(&device) };
        let (_, queue) = open_one(self.0, &options, pool).map_err(|error| error.to_string())?;
        let peer = tap_end(FAR);
        ip("link add sg-bridge type bridge stp_state 0 forward_delay 0 mcast_snooping 0");
        for name in [NEAR, FAR] {
            ip(&format!("link set {name} master sg-bridge up"));
        }
        ip("link set sg-bridge up");
        Ok(Pair { queue: Box::new(queue), peer: Box::new(peer) })
    }
}

#[test]
fn net_tap_conforms() {
    let (eal, _one) = eal();
    in_namespace(|| println!("{}", assert_conforms(&mut Tap(eal))));
}

/// DPDK's own AF_XDP on a veth pair.
struct AfXdp(&'static Eal);

impl Rig for AfXdp {
    fn laws(&self) -> Laws {
        Laws { quiet: false, longest: 1514, stress_frames: 3000, addresses: [NEAR_MAC, FAR_MAC], ..Laws::default() }
    }

    fn open(&mut self, pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
        let _ = Command::new("ip").args(["link", "del", NEAR]).output();
        veth_pair();
        let device = format!("{},iface={NEAR},busy_budget=0", fresh("net_af_xdp"));
        // A socket's end is not over when its descriptor is closed; the next may find the queue taken for a moment.
        let until = Instant::now() + Duration::from_secs(5);
        loop {
            match open_one(self.0, &PortOptions::new(&device), pool) {
                Ok((_, queue)) => return Ok(Pair { queue: Box::new(queue), peer: Box::new(packet_end(FAR)) }),
                Err(error) if Instant::now() > until => return Err(error.to_string()),
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        }
    }
}

#[test]
fn net_af_xdp_conforms() {
    let (eal, _one) = eal();
    in_namespace(|| println!("{}", assert_conforms(&mut AfXdp(eal))));
}

/// Both ends of a memif in this process: the far end connects to the queue's socket.
struct Memif {
    eal: &'static Eal,
    socket: PathBuf,
}

/// Waits for a device's link.
fn link_up(port: &Port) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(10);
    while !port.link().up {
        if Instant::now() > until {
            return Err("the link does not come up".to_owned());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

impl Rig for Memif {
    fn laws(&self) -> Laws {
        Laws { longest: 1514, ..Laws::default() }
    }

    fn open(&mut self, pool: &Arc<FramePool>, _recorded: &[Vec<u8>]) -> Result<Pair, String> {
        let mut ends = ["server", "client"].into_iter().map(|role| {
            let name = fresh("net_memif");
            let socket = self.socket.display();
            let options = PortOptions::new(&format!("{name},role={role},id=0,socket={socket},socket-abstract=no"));
            open_one(self.eal, &options, pool).map_err(|error| error.to_string())
        });
        let (near_port, near) = ends.next().unwrap()?;
        let (far_port, far) = ends.next().unwrap()?;
        link_up(&near_port)?;
        link_up(&far_port)?;
        Ok(Pair { queue: Box::new(near), peer: Box::new(QueuePeer(Box::new(far))) })
    }
}

#[test]
fn net_memif_conforms() {
    let (eal, _one) = eal();
    let folder = tempfile::tempdir().unwrap();
    println!("{}", assert_conforms(&mut Memif { eal, socket: folder.path().join("memif.sock") }));
}

#[test]
fn an_abstract_socket_is_free_again_when_its_device_is_gone() {
    let (eal, _one) = eal();
    let pool = frame_pool(256);
    let mut cache = pool.cache();
    let socket = format!("sg-memif-{}", std::process::id());
    for _ in 0..3 {
        let device = format!("{},role=server,id=0,socket={socket},socket-abstract=yes", fresh("net_memif"));
        let (_, queue) = open_one(eal, &PortOptions::new(&device), &pool).unwrap_or_else(|error| panic!("{error}"));
        Box::new(queue).close(&mut cache);
        // DPDK's event thread looks at its descriptors again.
        std::thread::sleep(Duration::from_millis(50));
    }
    nothing_out(&pool, cache);
}

#[test]
fn frames_come_from_nowhere_until_the_pool_is_empty_and_all_come_back() {
    let (eal, _one) = eal();
    let pool = frame_pool(1024);
    let mut cache = pool.cache();
    let (port, mut queue) = open_one(eal, &PortOptions::new(&fresh("net_null")), &pool).unwrap();
    assert_eq!((port.driver.as_str(), port.is_open(), port.is_removed()), ("net_null", true, false));
    let mut held = Burst::new();
    for _ in 0..100 {
        queue.rx(&mut cache, &mut held, 64);
    }
    // A burst is all or nothing to net_null, and the queue's cache may keep a group.
    assert!(held.len() > 1024 - 192 && held.len() <= 1024, "{}", held.len());
    let distinct: std::collections::HashSet<u32> = held.iter().map(|frame| frame.index()).collect();
    assert_eq!(distinct.len(), held.len(), "a chunk was handed out twice");
    assert!(held.iter().all(|frame| frame.len() == 64 && frame.headroom() >= 94 && frame.segments() == 1));
    let sent = queue.tx(&mut cache, &mut held);
    assert!(held.is_empty() && sent > 800);
    assert_eq!(queue.stats().tx_packets, sent as u64);
    assert_eq!((queue.stats().rx_copied, queue.stats().tx_copied), (0, 0), "nothing is copied in shared memory");
    Box::new(queue).close(&mut cache);
    assert!(!port.is_open());
    nothing_out(&pool, cache);
}

#[test]
fn a_frame_goes_round_a_ring_in_its_own_chunk() {
    let (eal, _one) = eal();
    let pool = frame_pool(1024);
    let mut cache = pool.cache();
    let (_, mut near, mut far) = crossed_rings(eal, 1500, &pool).unwrap();
    let frame = cache.alloc_copy(&[7; 300]).unwrap();
    let (chunk, address) = (frame.index(), frame.data_ptr());
    let mut burst = vec![frame];
    assert_eq!(near.tx(&mut cache, &mut burst), 1);
    assert_eq!(far.rx(&mut cache, &mut burst, 64), 1);
    let frame = burst.pop().unwrap();
    assert_eq!((frame.index(), frame.data_ptr(), frame.head()), (chunk, address, &[7; 300][..]));
    // It may grow in front, go back, and be shorter.
    let mut frame = frame;
    frame.push(70).unwrap().fill(9);
    assert!(frame.truncate(200));
    let mut burst = vec![frame];
    assert_eq!(far.tx(&mut cache, &mut burst), 1);
    assert_eq!(near.rx(&mut cache, &mut burst, 64), 1);
    assert_eq!((burst[0].index(), burst[0].len(), burst[0].offset()), (chunk, 200, address.addr() % 4096 - 70));
    // Only what begins where no mbuf can is copied, and counted.
    assert_eq!(near.stats().tx_copied + far.stats().tx_copied, 0);
    let mut frame = burst.pop().unwrap();
    let all = frame.headroom();
    frame.push(all).unwrap().fill(3);
    let bytes = frame.to_vec();
    let mut burst = vec![frame];
    assert_eq!(near.tx(&mut cache, &mut burst), 1);
    assert_eq!(far.rx(&mut cache, &mut burst, 64), 1);
    assert_eq!((burst[0].to_vec(), near.stats().tx_copied), (bytes, 1));
    cache.free(burst.pop().unwrap());
    Box::new(near).close(&mut cache);
    Box::new(far).close(&mut cache);
    nothing_out(&pool, cache);
}

#[test]
fn frames_of_another_pool_are_refused_and_what_stays_in_a_ring_comes_back_at_the_end() {
    let (eal, _one) = eal();
    let pool = frame_pool(1024);
    let mut cache = pool.cache();
    let (_, mut near, far) = crossed_rings(eal, 1500, &pool).unwrap();
    let mut burst: Burst = (0..100).map(|n| cache.alloc_copy(&[n; 100]).unwrap()).collect();
    assert_eq!(near.tx(&mut cache, &mut burst), 100);
    // Nobody receives them; each end closes.
    Box::new(near).close(&mut cache);
    Box::new(far).close(&mut cache);
    nothing_out(&pool, cache);
}

#[test]
fn a_device_that_is_pulled_out_is_noticed_and_survived() {
    let (eal, _one) = eal();
    let pool = frame_pool(4096);
    let mut cache = pool.cache();
    let (other_port, mut other) = open_one(eal, &PortOptions::new(&fresh("net_null")), &pool).unwrap();
    let (port, mut queue, far) = crossed_rings(eal, 1500, &pool).unwrap();
    assert!(!port.is_removed());
    queue.pretend_removal();
    assert!(port.is_removed() && !port.link().up && port.xstats().is_empty());
    assert_eq!(queue.mode().mode, "removed");
    // What is sent is lost and counted, nothing is received, nobody panics.
    let mut burst: Burst = (0..10).map(|n| cache.alloc_copy(&[n; 100]).unwrap()).collect();
    assert_eq!(queue.tx(&mut cache, &mut burst), 10);
    assert_eq!((queue.stats().tx_errors, burst.len()), (10, 0));
    assert_eq!(queue.rx(&mut cache, &mut burst, 64), 0);
    // Others go on.
    assert_eq!(other.rx(&mut cache, &mut burst, 32), 32);
    assert_eq!(other.tx(&mut cache, &mut burst), 32);
    assert!(!other_port.is_removed());
    for queue in [queue, far, other] {
        Box::new(queue).close(&mut cache);
    }
    nothing_out(&pool, cache);
}

#[test]
fn what_cannot_be_opened_is_named_and_leaves_nothing() {
    let (eal, _one) = eal();
    let pool = frame_pool(256);
    let error = |device: &str| open(eal, &PortOptions::new(device), &pool).map(|_| ()).unwrap_err();
    assert!(matches!(error("eth0"), DpdkError::Name(_)));
    assert!(matches!(error("0000:ff:1f.7"), DpdkError::Absent(_)));
    let unknown = error("net_nosuchdriver0");
    assert!(matches!(unknown, DpdkError::Probe { .. }), "{unknown}");
    let missing = error("net_af_xdp9,iface=sg-never-made");
    assert!(missing.to_string().contains("sg-never-made") || matches!(missing, DpdkError::Probe { .. }), "{missing}");
    // Two owners of one device.
    let name = fresh("net_null");
    let (_, queue) = open_one(eal, &PortOptions::new(&name), &pool).unwrap();
    let busy = error(&name);
    assert!(matches!(&busy, DpdkError::Busy { device, .. } if *device == name), "{busy}");
    let mut cache = pool.cache();
    Box::new(queue).close(&mut cache);
    // And again, now that it is free.
    let (_, queue) = open_one(eal, &PortOptions::new(&name), &pool).unwrap();
    Box::new(queue).close(&mut cache);
    nothing_out(&pool, cache);
}

#[test]
fn one_device_too_many_is_named_and_costs_only_itself() {
    let (eal, _one) = eal();
    let pool = frame_pool(1024);
    let mut cache = pool.cache();
    let mut open_ones = Vec::new();
    let refused = loop {
        match open_one(eal, &PortOptions::new(&fresh("net_null")), &pool) {
            Ok((_, queue)) => open_ones.push(queue),
            Err(error) => break error,
        }
    };
    let most = open_ones.len() as u32;
    assert!(matches!(refused, DpdkError::TooMany { most: said, .. } if said == most), "{refused} after {most}");
    for queue in open_ones {
        Box::new(queue).close(&mut cache);
    }
    let (_, queue) = open_one(eal, &PortOptions::new(&fresh("net_null")), &pool).unwrap();
    Box::new(queue).close(&mut cache);
    nothing_out(&pool, cache);
}

#[test]
fn counters_of_the_device_have_names() {
    let (eal, _one) = eal();
    let pool = frame_pool(1024);
    let mut cache = pool.cache();
    let (port, mut queue) = open_one(eal, &PortOptions::new(&fresh("net_null")), &pool).unwrap();
    let mut burst = Burst::new();
    queue.rx(&mut cache, &mut burst, 32);
    let received = port.xstats().into_iter().find(|(name, _)| name == "rx_good_packets");
    assert_eq!(received, Some(("rx_good_packets".to_owned(), 32)));
    burst.into_iter().for_each(|frame| cache.free(frame));
    Box::new(queue).close(&mut cache);
    nothing_out(&pool, cache);
}

#[test]
fn several_queues_of_a_device_are_given_back_by_the_last() {
    let (eal, _one) = eal();
    let pool = frame_pool(1024);
    let mut cache = pool.cache();
    let options = PortOptions { queues: 4, ..PortOptions::new(&fresh("net_ring")) };
    let (port, queues) = open(eal, &options, &pool).unwrap();
    assert_eq!(queues.len(), 4);
    for queue in queues {
        assert!(port.is_open());
        Box::new(queue).close(&mut cache);
    }
    assert!(!port.is_open());
    nothing_out(&pool, cache);
}

/// Two workers on two queues of one device at once, with frames that change hands.
#[test]
fn two_threads_move_frames_between_each_other_without_losing_one() {
    let (eal, _one) = eal();
    let pool = frame_pool(4096);
    let (_, near, far) = crossed_rings(eal, 1500, &pool).unwrap();
    const FRAMES: u64 = 100_000;
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let (mut queue, mut cache, mut sent, mut burst) = (near, pool.cache(), 0, Burst::new());
            while sent < FRAMES {
                let want = 32.min(FRAMES as usize - sent as usize).saturating_sub(burst.len());
                burst.extend((0..want).map_while(|_| {
                    let mut frame = cache.alloc()?;
                    frame.reset(64)?.fill(1);
                    Some(frame)
                }));
                sent += queue.tx(&mut cache, &mut burst) as u64;
                queue.flush(&mut cache);
                if sent < FRAMES && burst.len() == 32 {
                    std::thread::yield_now();
                }
            }
            burst.into_iter().for_each(|frame| cache.free(frame));
            queue
        });
        let (mut queue, mut cache, mut received, mut burst) = (far, pool.cache(), 0, Burst::new());
        while received < FRAMES {
            let n = queue.rx(&mut cache, &mut burst, 64);
            received += n as u64;
            burst.drain(..).for_each(|frame| cache.free(frame));
            if n == 0 {
                std::thread::yield_now();
            }
        }
        let near = sender.join().unwrap();
        Box::new(near).close(&mut cache);
        Box::new(queue).close(&mut cache);
    });
    assert_eq!(pool.outstanding(), 0);
}

/// What a guest left open is completed, whoever sends it on.
#[test]
fn a_partial_checksum_is_completed_where_the_device_cannot() {
    let (eal, _one) = eal();
    let pool = frame_pool(1024);
    let mut cache = pool.cache();
    let (_, mut near, far) = crossed_rings(eal, 1500, &pool).unwrap();
    // A ring has no checksum offload: the worker completes, or the frame is an error.
    assert!(!near.capabilities().tx_checksum);
    let mut frame = cache.alloc_copy(&[0; 100]).unwrap();
    frame.checksum = Checksum::Partial { start: 34, offset: 6 };
    let mut burst = vec![frame];
    assert_eq!(near.tx(&mut cache, &mut burst), 1);
    assert_eq!(near.stats().tx_errors, 1);
    Box::new(near).close(&mut cache);
    Box::new(far).close(&mut cache);
    nothing_out(&pool, cache);
}

/// The same tests on 2 MB pages, in a process of their own. Pages are reserved for the test if none are free, and given back.
#[test]
fn all_of_it_on_huge_pages() {
    if std::env::var_os(HUGE).is_some() {
        return;
    }
    let Some(_reserved) = Reserved::pages(64) else { return };
    let output = Command::new(std::env::current_exe().unwrap())
        .env(HUGE, "1")
        .args(["--test-threads=1", "--nocapture"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

/// Huge pages reserved for a test; what there was is put back when it ends.
struct Reserved {
    before: u64,
}

impl Reserved {
    const FILE: &'static str = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";

    fn read(file: &str) -> Option<u64> {
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    }

    /// So many free pages, or `None` with the reason printed.
    fn pages(wanted: u64) -> Option<Reserved> {
        let before = Self::read(Self::FILE);
        let free = Self::read(&Self::FILE.replace("nr_hugepages", "free_hugepages"));
        let (Some(before), Some(free)) = (before, free) else {
            println!("skipped: this kernel has no 2 MB pages");
            return None;
        };
        let reserved = Reserved { before };
        if free < wanted {
            let _ = std::fs::write(Self::FILE, (before + wanted - free).to_string());
        }
        let free = Self::read(&Self::FILE.replace("nr_hugepages", "free_hugepages")).unwrap_or(0);
        if free < wanted {
            println!("skipped: {free} of {wanted} huge pages are free, and no more can be reserved here");
            return None;
        }
        Some(reserved)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::FILE, self.before.to_string());
    }
}
