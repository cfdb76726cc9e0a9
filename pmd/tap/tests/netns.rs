//! TAP queues between real kernels: two network namespaces, each with a TAP as `eth0`, and a thread that carries
//! frames from one to the other as the dataplane would.
//!
//! Needs root, `ip` and `ping`; says so and passes where there is no root.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use sluice_port::{Burst, Checksum, FramePool, GsoKind, PoolOptions, Queue};
use sluice_tap::{Namespace, TapError, TapOptions, TapQueue, delete};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const GATEWAY: [u8; 6] = [0x02, 0x00, 0xa9, 0xfe, 0x01, 0x01];

/// A network namespace that goes with the value, also when a test panics.
struct Ns {
    name: String,
}

impl Ns {
    fn new() -> Ns {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("sg-tap-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        run("ip", &["netns", "add", &name]);
        let ns = Ns { name };
        ns.ip("link set lo up");
        ns
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    fn ip(&self, arguments: &str) -> String {
        let mut all = vec!["-n", &self.name];
        all.extend(arguments.split(' '));
        run("ip", &all)
    }

    /// Runs `work` on a thread inside the namespace.
    fn spawn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let file = File::open(self.path()).unwrap();
        std::thread::spawn(move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        })
    }

    fn inside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        self.spawn(work).join().unwrap()
    }

    fn ping(&self, address: &str) {
        run("ip", &["netns", "exec", &self.name, "ping", "-n", "-c", "3", "-i", "0.2", "-W", "2", address]);
    }
}

impl Drop for Ns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}{error}");
    said
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: making network namespaces needs root");
    }
    root
}

/// One pod of the test: number `n` has 10.9.0.n and fd09::n, a MAC ending in n.
struct Pod {
    ns: Ns,
    n: u8,
}

impl Pod {
    fn new(n: u8) -> Pod {
        Pod { ns: Ns::new(), n }
    }

    fn open(&self) -> TapQueue {
        TapQueue::open(&TapOptions::new("eth0").within(Namespace::Path(&self.ns.path()))).unwrap()
    }

    fn mac(&self) -> [u8; 6] {
        [0x02, 0, 10, 9, 0, self.n]
    }

    fn configure(&self) {
        let n = self.n;
        for step in [
            &format!("link set eth0 address 02:00:0a:09:00:{n:02x} mtu 1500 up"),
            &format!("addr add 10.9.0.{n}/32 dev eth0"),
            &format!("-6 addr add fd09::{n}/128 dev eth0 nodad"),
            "neigh replace 169.254.1.1 lladdr 02:00:a9:fe:01:01 dev eth0 nud permanent",
            "neigh replace fe80::1 lladdr 02:00:a9:fe:01:01 dev eth0 nud permanent",
            "route add default via 169.254.1.1 dev eth0 onlink",
            "-6 route add default via fe80::1 dev eth0 onlink",
        ] {
            self.ns.ip(step);
        }
    }
}

/// What the carrier saw.
#[derive(Default)]
struct Seen {
    longest: usize,
    tcp4: u64,
    tcp6: u64,
    udp: u64,
    partial: u64,
}

/// Carries frames between two queues until told to stop; then closes both and proves that no chunk is missing.
struct Carrier {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Seen>,
}

impl Carrier {
    fn start(left: (TapQueue, [u8; 6]), right: (TapQueue, [u8; 6])) -> Carrier {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let pool = FramePool::new(PoolOptions { frames: 2048, huge_pages: false }).unwrap();
            let mut cache = pool.cache();
            let (mut left, mut right) = ((Box::new(left.0), left.1), (Box::new(right.0), right.1));
            let mut seen = Seen::default();
            let mut burst = Burst::with_capacity(64);
            while !stopped.load(Ordering::Relaxed) {
                for _ in 0..2 {
                    left.0.rx(&mut cache, &mut burst, 64);
                    for frame in &mut burst {
                        note(&mut seen, frame);
                        let head = frame.head_mut();
                        head[..6].copy_from_slice(&right.1);
                        head[6..12].copy_from_slice(&GATEWAY);
                    }
                    right.0.tx(&mut cache, &mut burst);
                    assert!(burst.is_empty(), "a TAP has no bounded send queue");
                    core::mem::swap(&mut left, &mut right);
                }
                std::thread::yield_now();
            }
            left.0.close(&mut cache);
            right.0.close(&mut cache);
            drop(cache);
            assert_eq!(pool.outstanding(), 0, "every chunk came back");
            seen
        });
        Carrier { stop, thread }
    }

    fn stop(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn note(seen: &mut Seen, frame: &sluice_port::Frame) {
    seen.longest = seen.longest.max(frame.len());
    seen.partial += u64::from(matches!(frame.checksum, Checksum::Partial { .. }));
    match frame.gso.kind {
        GsoKind::None => assert!(frame.len() <= 1514, "a frame over the MTU says how it is to be cut"),
        GsoKind::Tcp4 => seen.tcp4 += 1,
        GsoKind::Tcp6 => seen.tcp6 += 1,
        GsoKind::Udp => seen.udp += 1,
    }
}

fn pair() -> (Pod, Pod, Carrier) {
    let (a, b) = (Pod::new(1), Pod::new(2));
    let (left, right) = (a.open(), b.open());
    assert!(left.created() && right.created());
    a.configure();
    b.configure();
    let carrier = Carrier::start((left, a.mac()), (right, b.mac()));
    (a, b, carrier)
}

/// Sends `bytes` of a pattern over TCP from `a` to `address` in `b` and checks every byte on arrival.
fn transfer(a: &Pod, b: &Pod, address: &'static str, bytes: usize) {
    const PATTERN: usize = 251;
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.ns.spawn(move || {
        let listener = TcpListener::bind(address).unwrap();
        ready.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let (mut total, mut buffer) = (0usize, vec![0u8; 1 << 18]);
        loop {
            let n = stream.read(&mut buffer).unwrap();
            if n == 0 {
                return total;
            }
            for (i, byte) in buffer[..n].iter().enumerate() {
                assert_eq!(usize::from(*byte), (total + i) % PATTERN, "byte {}", total + i);
            }
            total += n;
        }
    });
    listening.recv().unwrap();
    a.ns.inside(move || {
        let data: Vec<u8> = (0..bytes).map(|i| (i % PATTERN) as u8).collect();
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&data).unwrap();
    });
    assert_eq!(server.join().unwrap(), bytes);
}

#[test]
fn pings_of_both_families_pass_between_two_namespaces() {
    if !root() {
        return;
    }
    let (a, b, carrier) = pair();
    a.ns.ping("10.9.0.2");
    b.ns.ping("10.9.0.1");
    a.ns.ping("fd09::2");
    b.ns.ping("fd09::1");
    carrier.stop();
}

#[test]
fn tcp_passes_unharmed_and_its_64_kb_segments_stay_whole() {
    if !root() {
        return;
    }
    let (a, b, carrier) = pair();
    transfer(&a, &b, "10.9.0.2:7000", 64 << 20);
    transfer(&a, &b, "[fd09::2]:7000", 64 << 20);
    let seen = carrier.stop();
    assert!(seen.longest > 60_000, "longest frame {}", seen.longest);
    assert!(seen.tcp4 > 0 && seen.tcp6 > 0 && seen.partial > 0, "segments came with work left to do");
}

#[test]
fn udp_passes_and_a_segmented_send_arrives_as_single_datagrams() {
    if !root() {
        return;
    }
    let (a, b, carrier) = pair();
    let (ready, listening) = std::sync::mpsc::channel();
    let server = b.ns.spawn(move || {
        let socket = UdpSocket::bind("10.9.0.2:7001").unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        ready.send(()).unwrap();
        let mut buffer = [0u8; 2000];
        let mut sizes = vec![];
        while sizes.len() < 11 {
            sizes.push(socket.recv(&mut buffer).unwrap());
        }
        sizes
    });
    listening.recv().unwrap();
    a.ns.inside(|| {
        let socket = UdpSocket::bind("10.9.0.1:0").unwrap();
        socket.connect("10.9.0.2:7001").unwrap();
        socket.send(&[1; 1400]).unwrap();
        let size: libc::c_int = 1200;
        // SAFETY: UDP_SEGMENT reads one int.
        let status = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const size).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        assert_eq!(status, 0);
        socket.send(&[2; 9 * 1200 + 100]).unwrap();
    });
    let mut expected = vec![1400];
    expected.extend([1200; 9]);
    expected.push(100);
    assert_eq!(server.join().unwrap(), expected);
    let seen = carrier.stop();
    // Kernels from 6.2 on hand a segmented send over whole; older ones cut it before.
    eprintln!("UDP segmentation requests seen: {}", seen.udp);
}

#[test]
fn a_persistent_device_keeps_its_addresses_and_works_again_when_reattached() {
    if !root() {
        return;
    }
    let (a, b, carrier) = pair();
    a.ns.ping("10.9.0.2");
    let before = (a.ns.ip("-o addr show dev eth0 scope global"), a.ns.ip("route show"), a.ns.ip("-6 route show"));
    carrier.stop();
    assert!(a.ns.ip("-o link show dev eth0").contains("NO-CARRIER"), "the pod sees that nobody serves it");
    let (left, right) = (a.open(), b.open());
    assert!(!left.created() && !right.created());
    let carrier = Carrier::start((left, a.mac()), (right, b.mac()));
    a.ns.ping("10.9.0.2");
    a.ns.ping("fd09::2");
    let after = (a.ns.ip("-o addr show dev eth0 scope global"), a.ns.ip("route show"), a.ns.ip("-6 route show"));
    assert_eq!(before, after);
    carrier.stop();
    let (path, name) = (a.ns.path(), "eth0");
    assert!(delete(name, Namespace::Path(&path)).unwrap());
    assert!(!delete(name, Namespace::Path(&path)).unwrap(), "absent is done");
    assert!(!a.ns.ip("-o link show").contains("eth0"));
}

#[test]
fn a_device_in_use_and_a_device_that_is_no_tap_are_told_apart() {
    if !root() {
        return;
    }
    let pod = Pod::new(1);
    let held = pod.open();
    let path = pod.ns.path();
    let open = |name| TapQueue::open(&TapOptions::new(name).within(Namespace::Path(&path))).map(|_| ());
    assert!(matches!(open("eth0"), Err(TapError::Busy(_))));
    assert!(matches!(delete("eth0", Namespace::Path(&path)), Err(TapError::Busy(_))));
    pod.ns.ip("link add plain type veth peer name plain-peer");
    assert!(matches!(open("plain"), Err(TapError::NotTap(_))));
    assert!(matches!(open("lo"), Err(TapError::NotTap(_))));
    drop(held);
    open("eth0").unwrap();
}

#[test]
fn a_link_that_is_down_takes_frames_and_counts_them_as_errors() {
    if !root() {
        return;
    }
    let pod = Pod::new(1);
    let mut queue = Box::new(pod.open());
    let pool = FramePool::new(PoolOptions { frames: 128, huge_pages: false }).unwrap();
    let mut cache = pool.cache();
    let mut burst: Burst = (0..3).map(|_| cache.alloc_copy(&[0xff; 60]).unwrap()).collect();
    assert_eq!(queue.tx(&mut cache, &mut burst), 3);
    assert_eq!((queue.stats().tx_errors, queue.stats().tx_packets), (3, 0));
    assert_eq!(queue.rx(&mut cache, &mut burst, 64), 0);
    queue.close(&mut cache);
    drop(cache);
    assert_eq!(pool.outstanding(), 0);
}

#[test]
fn a_device_deleted_under_the_queue_makes_it_lost_and_quiet() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    if !root() {
        return;
    }
    let pod = Pod::new(1);
    let mut queue = Box::new(pod.open());
    assert_eq!((queue.mode().driver, queue.mode().mode.as_str()), ("tap", "vnet_hdr"));
    pod.configure();
    pod.ns.ip("link del eth0");
    let pool = FramePool::new(PoolOptions { frames: 128, huge_pages: false }).unwrap();
    let mut cache = pool.cache();
    let mut burst = Burst::with_capacity(64);
    // What the interface said while it lived may still be readable.
    let deadline = Instant::now() + Duration::from_secs(2);
    while !queue.lost() && Instant::now() < deadline {
        queue.rx(&mut cache, &mut burst, 64);
        burst.drain(..).for_each(|frame| cache.free(frame));
    }
    assert!(queue.lost());
    assert_eq!(queue.mode().mode, "lost");
    burst.push(cache.alloc_copy(&[0xff; 60]).unwrap());
    assert_eq!(queue.tx(&mut cache, &mut burst), 1, "frames for it are taken, else they would stay for ever");
    let fd = queue.wait_fd().unwrap();
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&now)).unwrap(), 0, "an idle worker may sleep");
    queue.close(&mut cache);
    drop(cache);
    assert_eq!(pool.outstanding(), 0);
}

#[test]
fn an_idle_worker_is_woken_by_the_descriptor() {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    if !root() {
        return;
    }
    let pod = Pod::new(1);
    let queue = pod.open();
    pod.configure();
    pod.ns.inside(|| UdpSocket::bind("10.9.0.1:0").unwrap().send_to(b"x", "10.9.0.2:9").unwrap());
    let fd = queue.wait_fd().unwrap();
    let soon = Timespec { tv_sec: 2, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&soon)).unwrap(), 1);
}
