//! Leases of addresses against the fake API server: one holder at a time, whoever dies or is cut off.

use sluice_fake_apiserver::Fake;
use sluice_kube::keeper::{Keeper, Wish, address_name, session_name};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

const LEASES: &str = "apis/coordination.k8s.io/v1/leases";

/// An API server, and a folder of credentials for each node.
struct Setup {
    fake: Fake,
    folders: Vec<tempfile::TempDir>,
}

impl Setup {
    fn new() -> Setup {
        let fake = Fake::start().unwrap();
        fake.with(|world| world.faults.tokens = vec!["a".into(), "b".into()]);
        Setup { fake, folders: Vec::new() }
    }

    fn keeper(&mut self, node: &str) -> Keeper {
        let folder = tempfile::tempdir().unwrap();
        let config = self.fake.kubeconfig(Path::new(folder.path()), Some(node)).unwrap();
        self.folders.push(folder);
        Keeper::start(node, Some(config)).unwrap()
    }

    fn holder(&self, address: IpAddr) -> Option<String> {
        let lease = self.fake.get(LEASES, "sluicegate", &address_name(address))?;
        lease["spec"]["holderIdentity"].as_str().map(str::to_owned)
    }
}

fn vip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

fn wish(addresses: &[u8]) -> Wish {
    Wish { wanted: addresses.iter().map(|n| vip(*n)).collect(), carriers: 1, ..Wish::default() }
}

fn holds(keeper: &Keeper, address: IpAddr) -> bool {
    let held = keeper.held();
    held.until.is_some_and(|until| Instant::now() < until) && held.ours.contains(&address)
}

fn wait(what: &str, done: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn an_address_has_one_holder_and_changes_hands_when_it_is_let_go() {
    let mut setup = Setup::new();
    let (a, b) = (setup.keeper("a"), setup.keeper("b"));
    let many: Vec<u8> = (50..70).collect();
    a.wish(wish(&many));
    wait("a holds all of them", || many.iter().all(|n| holds(&a, vip(*n))));
    b.wish(wish(&[50, 51]));
    wait("b knows whose they are", || b.held().others.len() == 2);
    assert!(!holds(&b, vip(50)));
    a.wish(wish(&many[1..]));
    wait("b takes what a let go", || holds(&b, vip(50)));
    assert!(!holds(&a, vip(50)) && holds(&a, vip(51)) && !holds(&b, vip(51)));
    assert_eq!((setup.holder(vip(50)).as_deref(), setup.holder(vip(51)).as_deref()), (Some("b"), Some("a")));
    // Who carries nothing has no session.
    b.wish(Wish::default());
    wait("b's session is gone", || setup.fake.get(LEASES, "sluicegate", &session_name("b")).is_none());
    assert_eq!(setup.holder(vip(50)), None);
}

#[test]
fn a_keeper_that_takes_its_leave_need_not_be_waited_for_and_one_that_dies_is_waited_for() {
    let mut setup = Setup::new();
    let (a, b) = (setup.keeper("a"), setup.keeper("b"));
    a.wish(wish(&[50]));
    wait("a holds it", || holds(&a, vip(50)));
    b.wish(wish(&[50]));
    a.leave();
    wait("b holds it", || holds(&b, vip(50)));
    let a = setup.keeper("a");
    a.wish(wish(&[50]));
    wait("a knows whose it is", || a.held().others.contains_key(&vip(50)));
    let last = b.held().until.unwrap();
    drop(b);
    wait("a holds it", || holds(&a, vip(50)));
    assert!(Instant::now() > last, "not before b's own clock has ended its hold");
}

#[test]
fn a_node_that_is_cut_off_from_the_api_server_loses_its_hold_before_another_begins() {
    let mut setup = Setup::new();
    let (a, b) = (setup.keeper("a"), setup.keeper("b"));
    a.wish(wish(&[50]));
    wait("a holds it", || holds(&a, vip(50)));
    b.wish(wish(&[50]));
    for (cut, from, to) in [("b", &a, &b), ("a", &b, &a)] {
        setup.fake.with(|world| world.faults.tokens = vec![cut.into()]);
        wait("the other holds it", || {
            let (there, here) = (holds(from, vip(50)), holds(to, vip(50)));
            assert!(!(there && here), "two hold one address");
            here
        });
        // It comes back, and finds that its Lease names another.
        setup.fake.with(|world| world.faults.tokens = vec!["a".into(), "b".into()]);
        wait("it knows whose it is", || from.held().others.contains_key(&vip(50)));
        assert!(holds(to, vip(50)) && !holds(from, vip(50)));
    }
}

#[test]
fn a_session_that_ran_out_unnoticed_is_begun_anew_and_its_addresses_are_written_again() {
    let mut setup = Setup::new();
    let a = setup.keeper("a");
    a.wish(wish(&[50, 51]));
    wait("a holds them", || holds(&a, vip(50)) && holds(&a, vip(51)));
    let version =
        || setup.fake.get(LEASES, "sluicegate", &address_name(vip(50))).unwrap()["metadata"]["resourceVersion"].clone();
    let before = version();
    setup.fake.with(|world| world.faults.answer = Some(503));
    wait("its session has run out", || !holds(&a, vip(50)));
    let heard = a.held().heard.unwrap();
    setup.fake.with(|world| world.faults.answer = None);
    wait("a holds them again", || holds(&a, vip(50)) && holds(&a, vip(51)));
    assert_ne!(version(), before, "whoever read the old version is refused");
    assert!(a.held().heard.unwrap() > heard);
}

#[test]
fn a_server_that_forbids_leases_is_told_of() {
    let mut setup = Setup::new();
    setup.fake.with(|world| world.faults.forbidden.insert("leases".to_owned()));
    let a = setup.keeper("a");
    a.wish(wish(&[50]));
    wait("it is denied", || a.held().denied.is_some_and(|why| why.contains("leases")));
    setup.fake.with(|world| world.faults.forbidden.clear());
    wait("and allowed later", || holds(&a, vip(50)) && a.held().denied.is_none());
}
