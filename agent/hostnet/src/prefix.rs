//! What is left of a set of prefixes when others are taken out of it.
//!
//! A route cannot say "except": a prefix that must not go over an interface is left out by routing the pieces around it.
//! Taking out one prefix costs at most one piece for each bit between the two lengths.

use ipnet::IpNet;

/// The fewest prefixes that cover `routes` less `exclude`; sorted, host bits cleared.
pub(crate) fn without(routes: &[IpNet], exclude: &[IpNet]) -> Vec<IpNet> {
    let mut left = routes.to_vec();
    for out in exclude {
        left = left.into_iter().flat_map(|route| minus(route, out)).collect();
    }
    IpNet::aggregate(&left)
}

fn minus(route: IpNet, out: &IpNet) -> Vec<IpNet> {
    if out.contains(&route) {
        return Vec::new();
    }
    if !route.contains(out) {
        return vec![route];
    }
    // Not equal, so `route` is the shorter one and has two halves.
    halves(route).into_iter().flat_map(|half| minus(half, out)).collect()
}

fn halves(route: IpNet) -> Vec<IpNet> {
    let length = route.prefix_len() + 1;
    match route {
        IpNet::V4(v4) => v4.subnets(length).map(|halves| halves.map(IpNet::V4).collect::<Vec<_>>()),
        IpNet::V6(v6) => v6.subnets(length).map(|halves| halves.map(IpNet::V6).collect()),
    }
    .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn nets(text: &[&str]) -> Vec<IpNet> {
        text.iter().map(|net| net.parse().unwrap()).collect()
    }

    #[test]
    fn nothing_excluded_leaves_the_routes_without_repetition() {
        let routes = nets(&["10.244.0.0/16", "fd00::/56", "10.244.3.0/24", "10.96.0.0/12"]);
        assert_eq!(without(&routes, &[]), nets(&["10.96.0.0/12", "10.244.0.0/16", "fd00::/56"]));
    }

    #[test]
    fn an_excluded_part_is_routed_around() {
        let left = without(&nets(&["10.0.0.0/30", "fd00::/126"]), &nets(&["10.0.0.1/32", "fd00::/127"]));
        assert_eq!(left, nets(&["10.0.0.0/32", "10.0.0.2/31", "fd00::2/127"]));
    }

    #[test]
    fn an_exclusion_that_covers_all_leaves_nothing() {
        assert_eq!(without(&nets(&["10.1.0.0/16"]), &nets(&["10.0.0.0/8"])), []);
        assert_eq!(without(&nets(&["::/0"]), &nets(&["0.0.0.0/0"])), nets(&["::/0"]));
    }

    proptest! {
        #[test]
        fn an_address_is_left_exactly_if_routed_and_not_excluded(
            routes in proptest::collection::vec((any::<u8>(), 24u8..=32), 1..4),
            exclude in proptest::collection::vec((any::<u8>(), 24u8..=32), 0..4),
        ) {
            let net = |&(last, length): &(u8, u8)| IpNet::new(Ipv4Addr::new(10, 0, 0, last).into(), length).unwrap();
            let routes: Vec<IpNet> = routes.iter().map(net).collect();
            let exclude: Vec<IpNet> = exclude.iter().map(net).collect();
            let left = without(&routes, &exclude);
            let within = |nets: &[IpNet], address: IpAddr| nets.iter().any(|net| net.contains(&address));
            for last in 0..=255 {
                let address = IpAddr::from(Ipv4Addr::new(10, 0, 0, last));
                let expected = within(&routes, address) && !within(&exclude, address);
                prop_assert_eq!(within(&left, address), expected, "{}", address);
            }
        }
    }
}
