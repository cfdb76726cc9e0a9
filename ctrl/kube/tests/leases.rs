//! Leases against the fake API server: fencing, expiry by our own clock, and who holds.

use sluice_fake_apiserver::Fake;
use sluice_kube::{ApiError, Connection, Elector, LeaseChange, LeaseRecord, Leases};
use std::sync::{Arc, Mutex};
use std::time::Duration;

struct Setup {
    fake: Fake,
    leases: Leases,
    _folder: tempfile::TempDir,
}

fn setup() -> Setup {
    let fake = Fake::start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let config = fake.kubeconfig(folder.path(), None).unwrap();
    Setup { leases: Leases::new(Connection::new(Some(config)), "sluicegate"), fake, _folder: folder }
}

#[tokio::test]
async fn a_write_with_a_version_that_was_overtaken_is_refused() {
    let Setup { leases, fake: _fake, _folder } = setup();
    assert_eq!(leases.get("vip").await, Ok(None));
    let record = LeaseRecord { holder: Some("a".into()), ..LeaseRecord::new("vip", Duration::from_secs(5)) };
    let made = leases.create(&record).await.unwrap();
    assert!(matches!(leases.create(&record).await, Err(ApiError::Conflict(_))));
    let newer = leases.update(&LeaseRecord { holder: Some("b".into()), ..made.clone() }).await.unwrap();
    assert_ne!(newer.version, made.version);
    assert!(matches!(leases.update(&made).await, Err(ApiError::Conflict(_))));
    assert!(matches!(leases.delete(&made).await, Err(ApiError::Conflict(_))));
    assert_eq!(leases.list().await.unwrap()[0].holder.as_deref(), Some("b"));
    leases.delete(&newer).await.unwrap();
    assert_eq!(leases.list().await, Ok(vec![]));
}

#[tokio::test]
async fn a_lease_changes_hands_when_it_is_given_up_or_not_renewed_and_not_before() {
    let Setup { leases, fake, _folder } = setup();
    let elector = |who: &str| Elector::new(leases.clone(), "writer", who, Duration::from_secs(1));
    let (mut a, mut b) = (elector("a"), elector("b"));
    assert_eq!(a.attempt().await, Ok(true));
    assert_eq!(b.attempt().await, Ok(false));
    assert!(a.holds() && !b.holds());
    a.give_up().await.unwrap();
    assert_eq!(b.attempt().await, Ok(true));
    assert_eq!(a.attempt().await, Ok(false));
    // b stops renewing: a has to see the same record for its whole duration first.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(a.attempt().await, Ok(false));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(a.attempt().await, Ok(true));
    assert!(!b.holds(), "b's own clock has ended its hold");
    let lease = fake.get("apis/coordination.k8s.io/v1/leases", "sluicegate", "writer").unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "a");
    assert_eq!(lease["spec"]["leaseTransitions"], 2);
}

#[tokio::test]
async fn followers_are_told_of_every_change() {
    let Setup { leases, fake: _fake, _folder } = setup();
    let told = Arc::new(Mutex::new(Vec::new()));
    let follow = {
        let (leases, told) = (leases.clone(), told.clone());
        tokio::spawn(async move { leases.follow(|change| told.lock().unwrap().push(change)).await })
    };
    let seen = async |wanted: usize| {
        for _ in 0..200 {
            if told.lock().unwrap().len() >= wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{:?}", told.lock().unwrap());
    };
    seen(1).await;
    let made = leases.create(&LeaseRecord::new("vip", Duration::from_secs(5))).await.unwrap();
    seen(2).await;
    leases.delete(&made).await.unwrap();
    seen(3).await;
    let told = told.lock().unwrap();
    assert_eq!(told[0], LeaseChange::All(vec![]));
    assert!(matches!(&told[1], LeaseChange::Set(record) if record.name == "vip"));
    assert_eq!(told[2], LeaseChange::Gone("vip".into()));
    follow.abort();
}
