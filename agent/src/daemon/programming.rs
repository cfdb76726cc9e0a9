//! From the cluster as it is known to tables that every worker runs on, and to what goes with them outside the workers: the
//! uplink's program and the host's redirects. Runs on the control thread; what one change costs is in docs/performance.md.

use super::carriers::Topology;
use super::control::Control;
use super::workers::Handle;
use crate::settings;
use sluice_ctrl::compile::{Redirect, Steering};
use sluice_ctrl::import::Defaults;
use sluice_ctrl::ipam::all_pools;
use sluice_ctrl::model::standalone::Standalone;
use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest wait for all workers to take up new tables.
const APPLY: Duration = Duration::from_secs(2);

impl Control {
    /// What importing needs besides objects.
    pub fn defaults(&self) -> Defaults {
        let standalone = Standalone {
            node: self.config.node.clone(),
            service_cidrs: self.config.cidrs.services.clone(),
            node_ports: self.config.node_ports,
            leases: self.ipam.addresses_by_pod(),
        };
        // A cluster with an API server has controllers of its own.
        Defaults { standalone: self.following.is_none().then_some(standalone) }
    }

    /// Objects to cluster.
    pub fn import(&mut self) {
        // Changes of an API server's objects are imported as they come.
        if self.following.is_some() {
            return self.set_pools();
        }
        let defaults = self.defaults();
        let (cluster, invalid) = self.importer.build(&self.snapshot.objects, &defaults);
        self.cluster = cluster;
        self.invalid = invalid;
        self.set_pools();
    }

    /// Gives IPAM the networks that pods here get addresses from.
    pub(super) fn set_pools(&mut self) {
        self.ipam.set_pools(all_pools(&self.cluster, &self.config.node));
    }

    /// Cluster and view to tables, and waits until every worker runs on them. On an error the last good tables stand.
    pub fn apply(&mut self, since: Instant) -> bool {
        self.prepare_host();
        let compiled = match self.publisher.compile(&self.cluster, &self.view, &self.knobs) {
            Ok(compiled) => compiled,
            Err(error) => {
                self.compile_problem = Some(error.to_string());
                return false;
            }
        };
        self.compile_problem = None;
        self.nothing_touched();
        settings::ensure_spaces(&self.shared, &compiled.tables);
        self.steer(&compiled.steering);
        self.redirect(&compiled.redirects);
        // Asked for at once, not at the next second: the first packet would wait for it.
        let known = &self.publisher.current().wanted_neighbours;
        self.solicit_now |= !compiled.wanted_neighbours.is_subset(known);
        let topology = Topology::of(&self.cluster, &self.config.node, compiled.placement.clone());
        if let Some(carriers) = &mut self.carriers {
            carriers.know(topology);
        }
        let generation = self.publisher.publish(compiled);
        self.workers.iter().for_each(Handle::wake);
        let applied = self.wait_applied(generation);
        self.announce();
        let took = since.elapsed().as_secs_f64();
        self.programming.observe(took);
        self.network_programming.observe(took);
        self.show_health();
        self.last_sync = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        applied
    }

    fn wait_applied(&self, generation: u64) -> bool {
        let until = Instant::now() + APPLY;
        while self.publisher.applied() < generation {
            if Instant::now() >= until {
                tracing::error!(generation, "not every worker has taken up the tables");
                return false;
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        true
    }

    /// Tells the uplink's driver what is ours.
    pub fn steer(&mut self, steering: &Steering) {
        let Some(uplink) = self.uplink.as_mut().filter(|_| self.put_back.is_none()) else {
            self.steered = None;
            return;
        };
        if self.steered.as_ref() == Some(steering) {
            return;
        }
        let done = uplink.steer(steering);
        self.steered = done.is_ok().then(|| steering.clone());
        if let Err(error) = done {
            tracing::error!("cannot tell the uplink what is ours: {error:#}");
            self.machine_problems.push(format!("{error:#}"));
        }
    }

    /// Tells the host which of its own ports are ours.
    fn redirect(&mut self, wanted: &BTreeSet<Redirect>) {
        if self.redirects != *wanted && self.put_back.is_none() {
            self.set_redirects(wanted);
        }
    }

    /// Makes these the host's redirects.
    pub fn set_redirects(&mut self, wanted: &BTreeSet<Redirect>) {
        let make = |r: &Redirect| sluice_hostnet::Redirect {
            address: r.address,
            protocol: r.protocol,
            port: r.port,
            to: r.to,
        };
        let all = wanted.iter().map(make).collect();
        const ABOUT: &str = "ports of the node, from the node itself";
        self.machine_problems.retain(|p| !p.starts_with(ABOUT));
        match sluice_hostnet::set_redirects(&self.netns, &self.config.ports.host.interface, &all) {
            Ok(()) => self.redirects.clone_from(wanted),
            Err(error) => {
                tracing::error!(%error, "the host itself cannot reach its NodePorts and host ports");
                self.machine_problems.push(format!("{ABOUT}: {error}"));
            }
        }
    }
}
