//! A machine is held exactly as long as the newest lease says.

use std::time::Duration;

use petaflop_agent_api::keys::{LeaseSecret, NoisePublic, NoiseSecret, OperatorRoot};
use petaflop_agent_api::lease::{Lease, LeaseError, Nonce, Tenure};
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn fixture() -> (LeaseSecret, NoisePublic, Tenure) {
    let key = OperatorRoot::generate().lease();
    let agent = NoiseSecret::generate().public();
    let mut tenure = Tenure::new("uid", agent, SECOND * 100);
    tenure.trust([key.public()]);
    (key, agent, tenure)
}

fn lease(agent: NoisePublic, nonce: Nonce, sequence: u64) -> Lease {
    Lease { claim_uid: "uid".into(), agent, nonce, sequence, duration_seconds: 60 }
}

#[test]
fn a_lease_runs_from_the_moment_its_nonce_was_issued() {
    let (key, agent, mut tenure) = fixture();
    assert_eq!(tenure.deadline(), SECOND * 100);
    let nonce = tenure.issue(SECOND * 90);
    // It may be on its way for as long as it likes; it is worth less by just as much.
    tenure.accept(&lease(agent, nonce, 1).sign(&key)).unwrap();
    assert_eq!(tenure.deadline(), SECOND * 150);
    assert_eq!(tenure.sequence(), 1);
}

#[test]
fn what_does_not_count_is_refused_by_name_and_changes_nothing() {
    let (key, agent, mut tenure) = fixture();
    let nonce = tenure.issue(SECOND);
    tenure.accept(&lease(agent, nonce, 5).sign(&key)).unwrap();
    let before = tenure.deadline();
    let fresh = tenure.issue(SECOND * 2);
    let stranger = OperatorRoot::generate().lease();
    let good = lease(agent, fresh, 6);
    let with = |change: fn(&mut Lease)| {
        let mut lease = good.clone();
        change(&mut lease);
        lease.sign(&key)
    };
    let mut altered = good.clone().sign(&key);
    altered.lease.duration_seconds += 1;
    let mut bad_signature = good.clone().sign(&key);
    bad_signature.signature[9] ^= 1;
    let mut no_signature = good.clone().sign(&key);
    no_signature.signature.clear();
    let cases = [
        ("replayed", lease(agent, nonce, 5).sign(&key), LeaseError::OldSequence),
        ("its nonce answered again", lease(agent, nonce, 6).sign(&key), LeaseError::ForeignNonce),
        ("older sequence", with(|l| l.sequence = 4), LeaseError::OldSequence),
        ("foreign nonce", with(|l| l.nonce = Nonce::generate()), LeaseError::ForeignNonce),
        ("another claim", with(|l| l.claim_uid = "other".into()), LeaseError::WrongClaim),
        (
            "another agent",
            with(|l| l.agent = NoiseSecret::generate().public()),
            LeaseError::WrongAgent,
        ),
        ("no duration", with(|l| l.duration_seconds = 0), LeaseError::Duration),
        ("endless", with(|l| l.duration_seconds = u64::MAX), LeaseError::Duration),
        ("another operator", good.clone().sign(&stranger), LeaseError::Signature),
        ("altered", altered, LeaseError::Signature),
        ("another signature", bad_signature, LeaseError::Signature),
        ("no signature", no_signature, LeaseError::Signature),
    ];
    for (name, signed, error) in cases {
        assert_eq!(tenure.accept(&signed), Err(error), "{name}");
        assert_eq!((tenure.deadline(), tenure.sequence()), (before, 5), "{name}");
    }
    tenure.accept(&good.sign(&key)).unwrap();
}

#[test]
fn two_keys_count_while_they_are_changed_and_the_old_one_no_longer_after() {
    let (old, agent, mut tenure) = fixture();
    let new = OperatorRoot::generate().lease();
    tenure.trust([old.public(), new.public()]);
    for (sequence, key) in [(1, &old), (2, &new), (3, &old)] {
        let nonce = tenure.issue(SECOND);
        tenure.accept(&lease(agent, nonce, sequence).sign(key)).unwrap();
    }
    tenure.trust([new.public()]);
    let nonce = tenure.issue(SECOND);
    assert_eq!(tenure.accept(&lease(agent, nonce, 4).sign(&old)), Err(LeaseError::Signature));
}

#[test]
fn a_lost_answer_does_not_stop_renewal() {
    let (key, agent, mut tenure) = fixture();
    // The operator never saw the newest nonces; it answers one that it knows.
    let known = tenure.issue(SECOND);
    for _ in 0..7 {
        tenure.issue(SECOND * 2);
    }
    tenure.accept(&lease(agent, known, 1).sign(&key)).unwrap();
    // What was asked too long ago is forgotten.
    let forgotten = tenure.issue(SECOND * 3);
    for _ in 0..8 {
        tenure.issue(SECOND * 4);
    }
    let late = lease(agent, forgotten, 2).sign(&key);
    assert_eq!(tenure.accept(&late), Err(LeaseError::ForeignNonce));
}

proptest! {
    #[test]
    fn in_whatever_order_leases_come_the_sequence_only_rises(order in prop::collection::vec(0usize..8, 1..30)) {
        let (key, agent, mut tenure) = fixture();
        let leases: Vec<_> = (1..=8)
            .map(|sequence| lease(agent, tenure.issue(SECOND * sequence as u32), sequence).sign(&key))
            .collect();
        let mut highest = 0;
        for index in order {
            let sequence = index as u64 + 1;
            let taken = tenure.accept(&leases[index]);
            prop_assert_eq!(taken.is_ok(), sequence > highest);
            highest = highest.max(sequence);
            prop_assert_eq!(tenure.sequence(), highest);
            prop_assert_eq!(tenure.deadline(), SECOND * highest as u32 + SECOND * 60);
        }
    }
}
