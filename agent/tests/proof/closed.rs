//! Before the cluster is known nothing passes, whatever its policies will say; and what was closed before a generation that
//! cannot be made stays closed.

use crate::chance::Chance;
use crate::flow::{Flow, Part};
use crate::node::{Control, Gate, Node};
use crate::world::{NODE, World};
use sluice_ctrl::compile::{Knobs, empty};
use sluice_ctrl::config::Config;
use sluice_port::{FramePool, PoolOptions};
use std::sync::Arc;

#[test]
fn a_node_that_has_not_read_its_cluster_yet_lets_no_packet_to_or_from_a_pod_pass() {
    let pool = FramePool::new(PoolOptions { frames: 2048, huge_pages: false }).expect("memory");
    let mut allowed_later = 0;
    for seed in 0..20 {
        let mut chance = Chance::new(seed);
        let world = World::new(&mut chance);
        let flows: Vec<Flow> = (0..50).map(|n| Flow::new(&world, &mut chance, n)).collect();
        let (tables, view) = Control::new(2).compile(&world);
        let nothing = Arc::new(empty(&view, &Knobs::from(&Config::builtin(NODE))).tables);
        let mut node = Node::new(&nothing, &view, 2, 2048, &pool);
        for (at, flow) in flows.iter().enumerate() {
            let outcome = node.send(flow.enters, flow.packet(Part::Opens), at);
            // What is for the node itself the kernel may have.
            let passed = outcome.out.is_some_and(|(gate, _)| gate != Gate::Host || matches!(flow.enters, Gate::Pod(_)));
            assert!(!passed, "{flow:?}");
        }
        // With the cluster known some of them do pass: the tables were what closed them.
        node.adopt(&tables);
        let packet = |flow: &Flow| flow.packet(Part::Opens);
        allowed_later += flows
            .iter()
            .enumerate()
            .filter(|(at, flow)| node.send(flow.enters, packet(flow), *at).out.is_some())
            .count();
    }
    assert!(allowed_later > 100, "{allowed_later}");
}
