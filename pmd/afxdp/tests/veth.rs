//! The driver on veth pairs, with packet sockets as the far end. Needs root; skips without.

mod lab;

use lab::{FAR, Memory, NEAR, Raw, enter, ip, open_all, receive, received, test_frame, transmit, veth_pair};
use sluice_afxdp::{AttachMode, BindMode, OpenError, Program, ProgramError, QueueOptions, XskQueue};
use sluice_port::{Burst, Checksum, Queue};
use std::time::Duration;

const BOTH: [AttachMode; 2] = [AttachMode::Native, AttachMode::Generic];
const SECOND: Duration = Duration::from_secs(1);

/// A fresh namespace and pair for each mode, each in a thread of its own.
fn in_both_modes(mtu: u32, test: fn(AttachMode)) {
    for mode in BOTH {
        in_namespace(move || {
            veth_pair(NEAR, FAR, mtu);
            test(mode);
        });
    }
}

fn in_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        if enter() {
            test();
        }
    })
    .join()
    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn frames_arrive_in_order_and_unchanged() {
    in_both_modes(1500, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let (program, mut queue) = open_all(NEAR, mode, &mut memory);
        for round in 0..20 {
            let sent: Vec<_> = (0..40).map(|i| test_frame(60 + i * 30, round + i as u8)).collect();
            sent.iter().for_each(|f| far.send(f));
            let got = received(&mut queue, &mut memory.cache, 40);
            assert_eq!(got, sent, "{mode:?} round {round}");
        }
        let stats = queue.stats();
        assert_eq!((stats.rx_packets, stats.rx_missed), (800, 0));
        assert!(program.verdicts().unwrap().redirected >= 800);
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn received_data_begins_at_the_headroom_and_its_checksum_is_unknown() {
    in_both_modes(1500, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        far.send(&test_frame(100, 1));
        for frame in receive(&mut queue, &mut memory.cache, 1) {
            assert_eq!(frame.offset(), sluice_port::HEADROOM, "{mode:?}");
            assert_eq!(frame.checksum, Checksum::Unknown);
            memory.cache.free(frame);
        }
        assert_eq!(queue.stats().rx_packets, 1);
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn sent_frames_come_out_at_the_far_end() {
    in_both_modes(1500, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(2048);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        for round in 0..5u8 {
            let sent: Vec<_> = (0..200).map(|i| test_frame(60 + i * 7, round.wrapping_add(i as u8))).collect();
            let frames: Burst = sent.iter().map(|f| memory.cache.alloc_copy(f).unwrap()).collect();
            transmit(&mut queue, &mut memory.cache, frames);
            for expected in &sent {
                let (got, offloads) = far.recv(SECOND).expect("a frame");
                assert_eq!(&got, expected);
                assert!(!offloads.needs_checksum);
            }
        }
        assert_eq!((queue.stats().tx_packets, queue.stats().tx_errors), (1000, 0));
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn jumbo_frames_travel_as_chains_in_both_directions() {
    in_both_modes(9000, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(2048);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        assert!(queue.capabilities().chained, "{:?}", queue.mode());
        let sizes = [9014, 60, 3840, 3841, 7680, 7681, 4096, 9014];
        let sent: Vec<_> = sizes.iter().enumerate().map(|(i, n)| test_frame(*n, i as u8)).collect();
        sent.iter().for_each(|f| far.send(f));
        let frames = receive(&mut queue, &mut memory.cache, sent.len());
        assert_eq!(frames.iter().map(|f| f.to_vec()).collect::<Vec<_>>(), sent, "{mode:?}");
        assert!(frames[0].segments() >= 3);
        transmit(&mut queue, &mut memory.cache, frames);
        for expected in &sent {
            assert_eq!(&far.recv(SECOND).expect("a frame").0, expected, "{mode:?}");
        }
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn a_64_kilobyte_packet_passes_whole() {
    in_both_modes(65535, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(2048);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        let sent = test_frame(65535 + 14, 3);
        let frames = vec![memory.cache.alloc_copy(&sent).unwrap()];
        assert_eq!(frames[0].segments(), 18);
        transmit(&mut queue, &mut memory.cache, frames);
        assert_eq!(far.recv(SECOND).expect("a frame").0, sent, "{mode:?}");
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

/// Ethernet, IPv4, UDP with the pseudo-header sum in the checksum field.
fn partial_udp(len: usize) -> (Vec<u8>, Checksum) {
    let mut frame = test_frame(len, 9);
    frame[12..14].copy_from_slice(&[8, 0]);
    frame[14..34].copy_from_slice(&[
        0x45,
        0,
        ((len - 14) >> 8) as u8,
        (len - 14) as u8,
        0,
        1,
        0x40,
        0,
        64,
        17,
        0,
        0,
        192,
        0,
        2,
        1,
        192,
        0,
        2,
        2,
    ]);
    let udp = (len - 34) as u16;
    frame[34..38].copy_from_slice(&[0x12, 0x34, 0x56, 0x78]);
    frame[38..40].copy_from_slice(&udp.to_be_bytes());
    let mut sum = 17 + u32::from(udp);
    for pair in frame[26..34].chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    frame[40..42].copy_from_slice(&(sum as u16).to_be_bytes());
    (frame, Checksum::Partial { start: 34, offset: 6 })
}

#[test]
fn a_partial_checksum_is_left_to_the_kernel_where_it_takes_the_request() {
    in_both_modes(9000, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        let software = queue.mode().reason.contains("checksums in software");
        for len in [60, 1514, 9014] {
            let (sent, checksum) = partial_udp(len);
            let mut frame = memory.cache.alloc_copy(&sent).unwrap();
            frame.checksum = checksum;
            transmit(&mut queue, &mut memory.cache, vec![frame]);
            let (got, offloads) = far.recv(SECOND).expect("a frame");
            assert_eq!(offloads.needs_checksum, !software, "{mode:?}");
            if !software {
                assert_eq!((offloads.start, offloads.offset), (34, 6));
                assert_eq!(got, sent);
            }
        }
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn a_frame_without_headroom_is_moved_and_its_checksum_still_completed() {
    in_both_modes(1500, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        let (sent, checksum) = partial_udp(300);
        // Data at 16, the least a frame can have; at 24, enough for a plain frame; at 40, enough for the request.
        for pushed in [240, 232, 216] {
            for checksum in [Checksum::None, checksum] {
                let mut frame = memory.cache.alloc_copy(&sent[pushed..]).unwrap();
                frame.push(pushed).unwrap()[..pushed].copy_from_slice(&sent[..pushed]);
                frame.checksum = checksum;
                transmit(&mut queue, &mut memory.cache, vec![frame]);
                let (got, offloads) = far.recv(SECOND).expect("a frame");
                assert_eq!((&got[..40], &got[42..]), (&sent[..40], &sent[42..]), "{mode:?}");
                let completed = offloads.needs_checksum || got[40..42] != sent[40..42];
                assert_eq!(completed, checksum != Checksum::None, "{mode:?} {pushed}");
            }
        }
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn a_chain_of_more_pieces_than_the_kernel_takes_is_sent_all_the_same() {
    in_both_modes(9000, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        let (sent, checksum) = partial_udp(9000);
        let mut pieces = sent.chunks(90);
        let mut frame = memory.cache.alloc_copy(pieces.next().unwrap()).unwrap();
        pieces.for_each(|piece| frame.append(memory.cache.alloc_copy(piece).unwrap()));
        assert_eq!(frame.segments(), 100);
        frame.checksum = checksum;
        transmit(&mut queue, &mut memory.cache, vec![frame]);
        let (got, offloads) = far.recv(SECOND).expect("a frame");
        assert_eq!((&got[..40], &got[42..]), (&sent[..40], &sent[42..]), "{mode:?}");
        assert!(offloads.needs_checksum || got[40..42] != sent[40..42]);
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn two_sockets_forward_a_frame_through_one_memory_without_copying() {
    in_both_modes(1500, |mode| {
        veth_pair("sg-near2", "sg-far2", 1500);
        let (far, far2) = (Raw::open(FAR), Raw::open("sg-far2"));
        let mut memory = Memory::new(1024);
        let (_p1, mut a) = open_all(NEAR, mode, &mut memory);
        let (_p2, mut b) = open_all("sg-near2", mode, &mut memory);
        for i in 0..200 {
            let sent = test_frame(64 + i, i as u8);
            far.send(&sent);
            let frames = receive(&mut a, &mut memory.cache, 1);
            let chunk = frames[0].index();
            let outstanding = memory.pool.outstanding();
            transmit(&mut b, &mut memory.cache, frames);
            assert!(memory.pool.outstanding() <= outstanding, "chunk {chunk} was sent as it lay");
            assert_eq!(far2.recv(SECOND).expect("a frame").0, sent);
        }
        Box::new(a).close(&mut memory.cache);
        // The memory stays registered while any socket is left, whichever was first.
        let sent = test_frame(99, 1);
        let frames = vec![memory.cache.alloc_copy(&sent).unwrap()];
        transmit(&mut b, &mut memory.cache, frames);
        assert_eq!(far2.recv(SECOND).expect("a frame").0, sent);
        Box::new(b).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn a_queue_can_be_opened_again_at_once_after_closing() {
    in_both_modes(1500, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let mut program = Program::attach_all(NEAR, mode).unwrap();
        for round in 0..4 {
            let mut queue = memory.open(&mut program, &QueueOptions::default());
            far.send(&test_frame(80, round));
            assert_eq!(received(&mut queue, &mut memory.cache, 1), [test_frame(80, round)], "{mode:?} {round}");
            // Closed with frames waiting in its rings.
            (0..30).for_each(|i| far.send(&test_frame(90, i)));
            Box::new(queue).close(&mut memory.cache);
        }
        memory.assert_whole();
    });
}

#[test]
fn a_full_ring_leaves_frames_in_the_burst_and_loses_none() {
    in_both_modes(1500, |_| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(2048);
        let mut program = Program::attach_all(NEAR, AttachMode::Auto).unwrap();
        let mut queue = memory.open(&mut program, &QueueOptions { ring_size: 64, ..QueueOptions::default() });
        let mut frames: Burst = (0..100).map(|i| memory.cache.alloc_copy(&test_frame(60, i)).unwrap()).collect();
        let taken = queue.tx(&mut memory.cache, &mut frames);
        assert!(taken <= 64 && taken + frames.len() == 100, "{taken}");
        assert_eq!(queue.stats().tx_full as usize, frames.len());
        transmit(&mut queue, &mut memory.cache, frames);
        for i in 0..100 {
            assert_eq!(far.recv(SECOND).expect("a frame").0, test_frame(60, i));
        }
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn frames_that_cannot_be_sent_are_freed_and_counted() {
    in_both_modes(1500, |_| {
        let mut memory = Memory::new(2048);
        let (_program, mut queue) = open_all(NEAR, AttachMode::Auto, &mut memory);
        let mut frames: Burst = [10, 1515, 3000, 9000]
            .iter()
            .map(|n| memory.cache.alloc_copy(&test_frame(20.max(*n), 0)[..*n]).unwrap())
            .collect();
        assert_eq!(queue.tx(&mut memory.cache, &mut frames), 4);
        assert_eq!((queue.stats().tx_packets, queue.stats().tx_errors), (0, 4));
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn a_receive_ring_that_is_not_polled_loses_packets_and_says_so() {
    in_both_modes(1500, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let (program, mut queue) = open_all(NEAR, mode, &mut memory);
        (0..200).for_each(|i| far.send(&test_frame(60, i)));
        let got = received(&mut queue, &mut memory.cache, 200).len() as u64;
        let stats = queue.stats();
        assert!((64..200).contains(&got), "{got}");
        assert_eq!(stats.rx_packets + stats.rx_missed, 200, "{mode:?} {stats:?} {:?}", program.verdicts());
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn the_receive_reserve_grows_under_load() {
    in_both_modes(1500, |_| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(2048);
        let (_program, mut queue) = open_all(NEAR, AttachMode::Auto, &mut memory);
        // Each burst fits what the one before it made the reserve grow to: 64, 128, 256, 512 chunks.
        for burst in [60usize, 120, 250, 500] {
            (0..burst).for_each(|i| far.send(&test_frame(60, i as u8)));
            assert_eq!(received(&mut queue, &mut memory.cache, burst).len(), burst);
        }
        assert_eq!(queue.stats().rx_missed, 0);
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn a_socket_whose_device_is_removed_still_gives_its_chunks_back() {
    in_both_modes(1500, |_| {
        let mut memory = Memory::new(1024);
        let (program, mut queue) = open_all(NEAR, AttachMode::Auto, &mut memory);
        ip("link del sg-near");
        let mut frames = vec![memory.cache.alloc_copy(&test_frame(60, 0)).unwrap()];
        queue.tx(&mut memory.cache, &mut frames);
        let mut frames: Burst = vec![memory.cache.alloc_copy(&test_frame(60, 0)).unwrap()];
        assert_eq!(queue.tx(&mut memory.cache, &mut frames), 1, "a lost device does not fill up");
        assert_eq!(queue.stats().tx_errors, 1);
        assert_eq!(receive(&mut queue, &mut memory.cache, 1).len(), 0);
        drop(program);
        // A new device in its place works, though the socket that registered the memory is dead.
        veth_pair(NEAR, FAR, 1500);
        let far = Raw::open(FAR);
        let (_program, mut next) = open_all(NEAR, AttachMode::Auto, &mut memory);
        far.send(&test_frame(70, 7));
        assert_eq!(received(&mut next, &mut memory.cache, 1), [test_frame(70, 7)]);
        Box::new(queue).close(&mut memory.cache);
        Box::new(next).close(&mut memory.cache);
        memory.assert_whole();
    });
}

#[test]
fn the_mode_says_what_runs_and_why_not_better() {
    in_namespace(|| {
        veth_pair(NEAR, FAR, 1500);
        let mut memory = Memory::new(1024);
        let (program, queue) = open_all(NEAR, AttachMode::Auto, &mut memory);
        let mode = queue.mode();
        assert_eq!((mode.driver, mode.mode.as_str()), ("af_xdp", "native, copy"));
        assert!(mode.reason.contains("no zero-copy: veth has none"), "{mode:?}");
        Box::new(queue).close(&mut memory.cache);
        drop(program);
        let mut program = Program::attach_all(NEAR, AttachMode::Auto).unwrap();
        let zero = QueueOptions { mode: BindMode::ZeroCopy, ..QueueOptions::default() };
        let refused = XskQueue::open(&memory.umem, &mut program, 0, &zero, &mut memory.cache).err().unwrap();
        assert!(matches!(refused, OpenError::Mode { mode: "zero-copy", .. }), "{refused}");
        let no_queue = XskQueue::open(&memory.umem, &mut program, 1, &QueueOptions::default(), &mut memory.cache);
        assert!(matches!(no_queue.err().unwrap(), OpenError::NoQueue { queue: 1, .. }));
        memory.assert_whole();
    });
}

#[test]
fn too_few_receive_queues_fall_back_to_generic_mode_with_the_reason() {
    in_namespace(|| {
        ip("link add sg-near numrxqueues 1 numtxqueues 1 type veth peer name sg-far numrxqueues 1 numtxqueues 4");
        ip("link set sg-near up");
        ip("link set sg-far up");
        let program = Program::attach_all(NEAR, AttachMode::Auto).unwrap();
        assert_eq!(program.attached(), sluice_afxdp::Attached::Generic);
        assert!(program.reason().contains("fewer rx queues"), "{}", program.reason());
        drop(program);
        let refused = Program::attach_all(NEAR, AttachMode::Native).err().unwrap();
        assert!(matches!(refused, ProgramError::Attach { .. }), "{refused}");
    });
}

#[test]
fn an_interface_that_has_a_program_is_refused_by_name() {
    in_namespace(|| {
        veth_pair(NEAR, FAR, 1500);
        let _first = Program::attach_all(NEAR, AttachMode::Auto).unwrap();
        let second = Program::attach(NEAR, AttachMode::Auto).err().unwrap();
        assert!(matches!(second, ProgramError::Occupied(ref name) if name == NEAR), "{second}");
    });
}

#[test]
fn a_busy_queue_is_refused_after_waiting() {
    in_namespace(|| {
        veth_pair(NEAR, FAR, 1500);
        let mut memory = Memory::new(1024);
        let mut program = Program::attach_all(NEAR, AttachMode::Auto).unwrap();
        let first = memory.open(&mut program, &QueueOptions::default());
        let second =
            XskQueue::open(&memory.umem, &mut program, 0, &QueueOptions::default(), &mut memory.cache).err().unwrap();
        assert!(matches!(second, OpenError::Busy { queue: 0, .. }), "{second}");
        Box::new(first).close(&mut memory.cache);
        memory.assert_whole();
    });
}

/// Whether the queue's descriptor says within `wait` that frames are there.
fn readable(queue: &XskQueue, wait: Duration) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let fd = queue.wait_fd().unwrap();
    let wait = Timespec::try_from(wait).unwrap();
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&wait)).unwrap() == 1
}

#[test]
fn an_idle_worker_can_sleep_on_the_queue() {
    in_both_modes(1500, |mode| {
        let far = Raw::open(FAR);
        let mut memory = Memory::new(1024);
        let (_program, mut queue) = open_all(NEAR, mode, &mut memory);
        assert!(!readable(&queue, Duration::from_millis(20)), "{mode:?}");
        far.send(&test_frame(60, 0));
        assert!(readable(&queue, SECOND));
        assert_eq!(received(&mut queue, &mut memory.cache, 1).len(), 1);
        assert!(!readable(&queue, Duration::from_millis(20)), "{mode:?}");
        // A lost device must not keep an idle worker awake.
        ip("link del sg-near");
        assert!(!readable(&queue, Duration::from_millis(20)), "{mode:?}");
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}

const CHILD: &str = "SLUICE_AFXDP_ATTACH_AND_WAIT";

/// Not a test of its own: what the next one starts as a process. Does nothing when run with the others.
#[test]
fn attach_and_wait_when_asked_to() {
    let Some(interface) = std::env::var_os(CHILD) else { return };
    let mut memory = Memory::new(1024);
    let (_program, _queue) = open_all(interface.to_str().unwrap(), AttachMode::Auto, &mut memory);
    println!("attached");
    std::thread::sleep(Duration::from_secs(30));
}

#[test]
fn a_killed_process_leaves_no_program_behind() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    in_namespace(|| {
        veth_pair(NEAR, FAR, 1500);
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "attach_and_wait_when_asked_to", "--nocapture"])
            .env(CHILD, NEAR)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|l| l.is_ok_and(|l| l.contains("attached"))), "the child attaches");
        assert!(ip("-d link show sg-near").contains("prog/xdp"));
        child.kill().unwrap();
        child.wait().unwrap();
        let gone = (0..50).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            !ip("-d link show sg-near").contains("prog/xdp")
        });
        assert!(gone, "{}", ip("-d link show sg-near"));
        // And the queue can be had again.
        let mut memory = Memory::new(1024);
        let (_program, queue) = open_all(NEAR, AttachMode::Auto, &mut memory);
        Box::new(queue).close(&mut memory.cache);
        memory.assert_whole();
    });
}
