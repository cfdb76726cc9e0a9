//! Where workers go: pure, so that `sluiced` and `hugepage-setup` agree on it.
//!
//! Left to the machine (`workers: auto`): CPUs that this process may use and that the kubelet has given to nobody else; on the
//! NUMA node of the uplink's device where that is known; one of each core before the second thread of any; all but the first
//! CPU, which is control's, where there is more than one. A list is taken as it stands, and what is bad about it is said.

use crate::kubelet::Exclusive;
use crate::list::ranges;
use crate::machine::Machine;
use serde::Serialize;
use std::collections::BTreeSet;

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// These CPUs; empty: left to the machine.
    pub cpus: Vec<u32>,
    /// So many workers, of those that the machine would give; none: all.
    pub count: Option<usize>,
    /// The NUMA node of the uplink's device.
    pub node: Option<u32>,
    /// CPUs that this process may run on; none: no limit.
    pub cpuset: Option<Vec<u32>>,
}

/// A worker's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Seat {
    /// The CPU.
    pub cpu: u32,
    /// Its NUMA node.
    pub node: u32,
    /// Whether the uplink's device is on another one.
    pub cross_numa: bool,
}

/// Places, and what should be known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// The workers, in order of their numbers.
    pub seats: Vec<Seat>,
    /// What is bad, with what mends it.
    pub problems: Vec<String>,
}

/// Why workers cannot be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// More workers than CPUs for them.
    #[error("{workers} workers asked for; {cpus} CPUs are there for them")]
    TooFew {
        /// Asked for.
        workers: usize,
        /// CPUs that workers can have.
        cpus: usize,
    },
    /// No worker, no dataplane.
    #[error("at least one worker is needed")]
    None,
}

/// Places workers on `machine`.
pub fn place(machine: &Machine, wish: &Wish) -> Result<Placement, PlacementError> {
    let mut placement = Placement::default();
    let within = |cpu: &u32| wish.cpuset.as_ref().is_none_or(|set| set.contains(cpu));
    let given = given_to_others(machine, wish);
    let taken = |cpu: &u32| given.iter().find(|e| e.cpus.contains(cpu));
    let chosen = if wish.cpus.is_empty() {
        let mut free: Vec<u32> = machine.online.iter().copied().filter(|c| within(c) && taken(c).is_none()).collect();
        if free.is_empty() {
            free = machine.online.iter().copied().filter(within).collect();
            placement.problems.push(
                "the kubelet has given every CPU to containers; workers share theirs: leave CPUs with \
                 `reservedSystemCPUs` in the kubelet's configuration"
                    .to_owned(),
            );
        }
        left_to_us(machine, wish, &free)?
    } else {
        let listed = &wish.cpus;
        for cpu in listed {
            if !machine.online.contains(cpu) {
                placement.problems.push(format!(
                    "CPU {cpu} is not online: the worker runs where the kernel puts it; name some of CPUs {} in `workers`",
                    ranges(&machine.online)
                ));
            } else if !within(cpu) {
                placement.problems.push(format!(
                    "CPU {cpu} is not in this process's cpuset ({}): the worker runs where the kernel puts it; name CPUs of \
                     the cpuset in `workers`",
                    ranges(wish.cpuset.as_deref().unwrap_or_default())
                ));
            } else if let Some(owner) = taken(cpu) {
                placement.problems.push(format!(
                    "CPU {cpu} belongs to container {} of pod {} (kubelet's CPU manager): name other CPUs in `workers`",
                    owner.container, owner.pod
                ));
            }
        }
        listed.clone()
    };
    for cpu in chosen {
        let node = machine.node_of(cpu);
        let cross_numa = wish.node.is_some_and(|n| n != node);
        placement.seats.push(Seat { cpu, node, cross_numa });
    }
    tell(machine, wish, &mut placement);
    Ok(placement)
}

/// CPUs that the kubelet gave to containers other than this process's own: a cpuset that is one container's is ours.
fn given_to_others<'a>(machine: &'a Machine, wish: &Wish) -> Vec<&'a Exclusive> {
    let Some(kubelet) = &machine.kubelet else { return Vec::new() };
    let ours = |e: &&Exclusive| {
        wish.cpuset.as_ref().is_some_and(|set| !set.is_empty() && set.iter().all(|cpu| e.cpus.contains(cpu)))
    };
    kubelet.exclusive.iter().filter(|e| !ours(e)).collect()
}

fn left_to_us(machine: &Machine, wish: &Wish, free: &[u32]) -> Result<Vec<u32>, PlacementError> {
    // The first CPU is control's, where there is more than one.
    let (control, rest) = match free {
        [] => return Err(PlacementError::None),
        [only] => (None, vec![*only]),
        [first, rest @ ..] => (Some(*first), rest.to_vec()),
    };
    let local = |cpu: &u32| wish.node.is_none_or(|n| machine.node_of(*cpu) == n);
    let mut ordered = Vec::new();
    let mut used: BTreeSet<u32> = control.into_iter().collect();
    let (near, far): (Vec<u32>, Vec<u32>) = rest.into_iter().partition(local);
    for group in [&near, &far] {
        let mut second = Vec::new();
        for cpu in group {
            match machine.siblings(*cpu).any(|other| used.contains(&other)) {
                true => second.push(*cpu),
                false => ordered.push(*cpu),
            }
            used.insert(*cpu);
        }
        ordered.extend(second);
    }
    let all = if near.is_empty() { ordered.len() } else { near.len() };
    match wish.count {
        Some(0) => Err(PlacementError::None),
        Some(count) if count > ordered.len() => Err(PlacementError::TooFew { workers: count, cpus: ordered.len() }),
        Some(count) => Ok(ordered[..count].to_vec()),
        None => Ok(ordered[..all].to_vec()),
    }
}

/// What is bad about the places: another node than the device's, two workers on one core.
fn tell(machine: &Machine, wish: &Wish, placement: &mut Placement) {
    let far: Vec<u32> = placement.seats.iter().filter(|s| s.cross_numa).map(|s| s.cpu).collect();
    if let (Some(node), false) = (wish.node, far.is_empty()) {
        let near = machine.nodes.iter().find(|n| n.id == node).map_or(String::new(), |n| ranges(&n.cpus));
        placement.problems.push(format!(
            "workers on CPUs {} are on another NUMA node than the uplink's device (node {node}): every packet crosses; CPUs of \
             its node are {near}",
            ranges(&far)
        ));
    }
    // Left to the machine, second threads come last and are all there is.
    for (at, seat) in placement.seats.iter().enumerate().filter(|_| !wish.cpus.is_empty()) {
        let twin = placement.seats[..at].iter().find(|s| machine.siblings(seat.cpu).any(|other| other == s.cpu));
        if let Some(twin) = twin {
            placement.problems.push(format!(
                "CPUs {} and {} are two threads of one core: two workers there share its speed; name one of each core in \
                 `workers`",
                twin.cpu, seat.cpu
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::plant_named;
    use crate::machine::read;

    fn two_nodes() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        plant_named("two-nodes-mellanox", folder.path()).unwrap();
        read(folder.path()).unwrap()
    }

    fn cpus(machine: &Machine, wish: &Wish) -> Vec<u32> {
        place(machine, wish).unwrap().seats.iter().map(|s| s.cpu).collect()
    }

    #[test]
    fn workers_go_to_the_devices_node_whole_cores_first_and_not_where_the_kubelet_put_others() {
        let machine = two_nodes();
        // Node 0 is 0-3,8-11; 0 is control's, 2 and 3 belong to a pod; 8 shares control's core, 9 that of 1.
        let wish = Wish { node: Some(0), ..Wish::default() };
        assert_eq!(cpus(&machine, &wish), [1, 10, 11, 8, 9]);
        let placed = place(&machine, &wish).unwrap();
        assert!(placed.problems.is_empty() && placed.seats.iter().all(|s| !s.cross_numa), "{placed:?}");
        let far = Wish { node: Some(1), ..Wish::default() };
        assert_eq!(cpus(&machine, &far), [4, 5, 6, 7, 12, 13, 14, 15]);
    }

    #[test]
    fn a_container_of_its_own_cpus_keeps_to_them_and_crossing_is_told() {
        let machine = two_nodes();
        let ours = Wish { cpuset: Some(vec![2, 3]), node: Some(1), ..Wish::default() };
        let placed = place(&machine, &ours).unwrap();
        assert_eq!(placed.seats, [Seat { cpu: 3, node: 0, cross_numa: true }]);
        assert!(placed.problems[0].contains("node 1") && placed.problems[0].contains("4-7,12-15"));
    }

    #[test]
    fn a_list_is_taken_as_it_stands_and_judged() {
        let machine = two_nodes();
        let wish = Wish { cpus: vec![2, 5, 13], cpuset: Some(vec![0, 1, 2, 3, 5]), ..Wish::default() };
        let placed = place(&machine, &wish).unwrap();
        assert_eq!(placed.seats.len(), 3);
        let text = placed.problems.join("\n");
        for part in ["CPU 2 belongs to container app", "CPU 13 is not in this process's cpuset (0-3,5)", "5 and 13"] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        let offline = place(&machine, &Wish { cpus: vec![99], ..Wish::default() }).unwrap();
        assert!(offline.problems[0].contains("CPU 99 is not online") && offline.problems[0].contains("0-15"));
    }

    #[test]
    fn a_count_goes_on_to_the_other_node_and_ends_with_the_cpus() {
        let machine = two_nodes();
        let wish = |count| Wish { count: Some(count), node: Some(0), ..Wish::default() };
        assert_eq!(cpus(&machine, &wish(7)), [1, 10, 11, 8, 9, 4, 5]);
        assert_eq!(place(&machine, &wish(14)), Err(PlacementError::TooFew { workers: 14, cpus: 13 }));
        assert_eq!(place(&machine, &wish(0)), Err(PlacementError::None));
    }
}
