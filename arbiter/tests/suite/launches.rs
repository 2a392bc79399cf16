//! The buying protocol against a provider that loses answers, lags and refuses, and a process that dies between
//! any two steps.

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::{
    Claim, Device, FrozenRequest, Identity, LaunchAnswer, LaunchSafety, Phase, Refusal, claim_name,
};
use petaflop_arbiter::launch::{Listing, Observation, ReadBack, Step, Wanted, next_step};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use proptest::prelude::*;

use crate::worlds::{claim, machine, now, training};

fn a_claim() -> Claim {
    claim(petaflop_arbiter::claim::ClaimSpec {
        name: claim_name(&training("job").id, 1, 0),
        owner: training("job").id,
        placement: 1,
        index: 0,
        offer: machine("m", "1"),
        device: Device::Cpu,
        reserved: Usd::ZERO,
        decided_at: now(),
        revision: None,
        checkpoint_interval_seconds: None,
        runners_up: Vec::new(),
    })
}

/// What goes wrong at a call or between two steps.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// The launch is made, and its answer is lost.
    MadeAnswerLost,
    /// The launch is not made, and nobody is told.
    NotMadeAnswerLost,
    /// The launch is refused for a while.
    Transient,
    /// The process dies after the call, before it writes anything.
    DiesAfterCall,
    /// The process dies before the call.
    DiesBefore,
    /// A list fails.
    ListFails,
    /// Nothing.
    None,
}

struct Machine {
    id: String,
    attempt: u32,
    /// When it begins to exist, and to bill.
    from: Timestamp,
    /// When it shows in lists.
    listed_from: Timestamp,
    ended: bool,
}

struct Cloud {
    safety: LaunchSafety,
    machines: Vec<Machine>,
    most_at_once: usize,
}

impl Cloud {
    fn launch(&mut self, claim: &Claim, at: Timestamp, lag: SignedDuration) -> String {
        if self.safety.idempotent
            && let Some(known) = self.machines.iter().find(|m| m.attempt == claim.attempt)
        {
            return known.id.clone();
        }
        let id = format!("i-{}", self.machines.len());
        self.machines.push(Machine {
            id: id.clone(),
            attempt: claim.attempt,
            from: at + lag / 2,
            listed_from: at + lag,
            ended: false,
        });
        id
    }

    fn billed(&mut self, at: Timestamp) -> Vec<String> {
        let billed: Vec<String> = self
            .machines
            .iter()
            .filter(|machine| !machine.ended && machine.from <= at)
            .map(|machine| machine.id.clone())
            .collect();
        self.most_at_once = self.most_at_once.max(billed.len());
        billed
    }

    fn listed(&self, at: Timestamp) -> Vec<String> {
        self.machines
            .iter()
            .filter(|machine| !machine.ended && machine.listed_from <= at)
            .map(|machine| machine.id.clone())
            .collect()
    }
}

/// Runs a claim until it rests, with faults; unwanted from step `unwanted_at` on.
fn run(
    safety: LaunchSafety,
    lag_seconds: i64,
    mut faults: Vec<Fault>,
    unwanted_at: Option<usize>,
) -> (Claim, Cloud, Timestamp) {
    let lag = SignedDuration::from_secs(lag_seconds);
    let mut cloud = Cloud { safety, machines: Vec::new(), most_at_once: 0 };
    let mut claim = a_claim();
    let mut at = now();
    let mut seen = Observation::new(at, Wanted::Yes);
    faults.reverse();
    for step_number in 0..2_000 {
        at += SignedDuration::from_millis(300);
        cloud.billed(at);
        let wanted = match unwanted_at {
            Some(from) if step_number >= from => Wanted::No(Reason::Suspended),
            _ => Wanted::Yes,
        };
        seen.now = at;
        seen.wanted = wanted;
        let step = next_step(&claim, safety, &seen);
        let fresh = |at| Observation::new(at, wanted);
        match step {
            Step::ReadBack => seen.read = ReadBack::Ours,
            Step::Look { after_millis } => {
                at += SignedDuration::from_millis(after_millis);
                seen.looked(match faults.pop().unwrap_or(Fault::None) {
                    Fault::ListFails => Listing::Failed,
                    Fault::DiesBefore => {
                        seen = fresh(at);
                        continue;
                    }
                    _ => Listing::Complete(cloud.listed(at)),
                });
            }
            Step::WriteAttempt { request } => {
                claim.phase = Phase::Attempted {
                    request: request.unwrap_or(FrozenRequest { body: "{}".into() }),
                    at,
                };
                seen = fresh(at);
                seen.fresh_attempt = !matches!(faults.pop(), Some(Fault::DiesBefore));
            }
            Step::Launch { .. } => match faults.pop().unwrap_or(Fault::None) {
                Fault::MadeAnswerLost => {
                    cloud.launch(&claim, at, lag);
                    seen.answer = Some(LaunchAnswer::Unclear);
                }
                Fault::NotMadeAnswerLost => seen.answer = Some(LaunchAnswer::Unclear),
                Fault::Transient => {
                    seen.answer = Some(LaunchAnswer::Refused(Refusal::Transient));
                }
                Fault::DiesAfterCall => {
                    cloud.launch(&claim, at, lag);
                    seen = fresh(at);
                }
                Fault::DiesBefore => seen = fresh(at),
                Fault::ListFails | Fault::None => {
                    let instance = cloud.launch(&claim, at, lag);
                    seen.answer = Some(LaunchAnswer::Accepted { instance });
                }
            },
            Step::Record { phase, attempt, .. } => {
                // Dying here loses the write; what is known must be found out again.
                if !matches!(faults.pop(), Some(Fault::DiesAfterCall)) {
                    claim.phase = phase;
                    claim.attempt = attempt;
                }
                seen = fresh(at);
            }
            Step::Terminate { instance } => {
                for machine in &mut cloud.machines {
                    machine.ended |= machine.id == instance;
                }
                seen.terminate_sent = true;
            }
            Step::CloseLedger => seen.ledger_closed = true,
            Step::WaitUntil { at: until, .. } => {
                assert!(until > at, "waiting makes progress");
                at = until;
                seen = fresh(at);
            }
            Step::Nothing => {
                if faults.is_empty() && unwanted_at.is_none() {
                    break;
                }
                seen = fresh(at);
                faults.pop();
            }
            Step::Release => break,
            Step::Leave => panic!("the claim is ours"),
        }
    }
    (claim, cloud, at)
}

fn faults() -> impl Strategy<Value = Vec<Fault>> {
    let one = prop_oneof![
        Just(Fault::MadeAnswerLost),
        Just(Fault::NotMadeAnswerLost),
        Just(Fault::Transient),
        Just(Fault::DiesAfterCall),
        Just(Fault::DiesBefore),
        Just(Fault::ListFails),
        Just(Fault::None),
        Just(Fault::None),
    ];
    prop::collection::vec(one, 0..14)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// One intention to buy is one machine, whatever is lost or dies, as long as the provider shows
    /// a machine within the time it promises.
    #[test]
    fn a_wanted_claim_ends_with_one_machine_and_never_bills_two(
        faults in faults(), idempotent: bool, lag in 0..20_i64,
    ) {
        let safety = LaunchSafety { idempotent, settle_seconds: 20 };
        let transients = faults.iter().filter(|f| matches!(f, Fault::Transient)).count();
        let (claim, mut cloud, at) = run(safety, lag, faults, None);
        prop_assert!(cloud.most_at_once <= 1, "{} at once", cloud.most_at_once);
        let billed = cloud.billed(at + SignedDuration::from_secs(60));
        match &claim.phase {
            Phase::Launched { instance, .. } => prop_assert_eq!(&billed, std::slice::from_ref(instance)),
            // Too many refusals end a claim.
            Phase::Ending { .. } | Phase::Ended { .. } => {
                prop_assert!(transients >= 5);
                prop_assert!(billed.is_empty());
            }
            other => prop_assert!(false, "unfinished: {:?}", other),
        }
    }

    /// Whatever is lost or dies, a claim that is no longer wanted leaves nothing behind.
    #[test]
    fn an_unwanted_claim_leaves_no_machine(
        faults in faults(), idempotent: bool, lag in 0..20_i64, unwanted_at in 0..40_usize,
    ) {
        let safety = LaunchSafety { idempotent, settle_seconds: 20 };
        let (claim, mut cloud, at) = run(safety, lag, faults, Some(unwanted_at));
        let ended = matches!(claim.phase, Phase::Ended { .. });
        prop_assert!(ended, "{:?}", claim.phase);
        prop_assert!(cloud.billed(at + SignedDuration::from_secs(60)).is_empty());
        prop_assert!(cloud.most_at_once <= 1);
    }
}

fn seen(read: ReadBack) -> Observation {
    Observation { read, ..Observation::new(now(), Wanted::Yes) }
}

const SAFE: LaunchSafety = LaunchSafety { idempotent: true, settle_seconds: 30 };

#[test]
fn nothing_is_done_to_a_claim_that_is_not_ours() {
    for phase in [Phase::Planned, Phase::Launched { instance: "i".into(), at: now() }] {
        let claim = Claim { phase, ..a_claim() };
        assert_eq!(next_step(&claim, SAFE, &seen(ReadBack::NotRead)), Step::ReadBack);
        assert_eq!(next_step(&claim, SAFE, &seen(ReadBack::NotOurs)), Step::Leave);
    }
}

#[test]
fn a_capacity_refusal_ends_the_claim_and_a_transient_one_raises_the_attempt() {
    let claim = Claim {
        phase: Phase::Attempted { request: FrozenRequest { body: "{}".into() }, at: now() },
        ..a_claim()
    };
    let refused = |refusal| {
        let seen = Observation {
            fresh_attempt: true,
            answer: Some(LaunchAnswer::Refused(refusal)),
            ..seen(ReadBack::Ours)
        };
        match next_step(&claim, SAFE, &seen) {
            Step::Record { phase, attempt, note } => (phase, attempt, note),
            other => panic!("{other:?}"),
        }
    };
    let (phase, attempt, note) = refused(Refusal::NoCapacity);
    assert!(matches!(phase, Phase::Ending { instance: None, .. }));
    assert_eq!((attempt, note), (1, Some(Reason::InsufficientCapacity)));
    let (phase, attempt, note) = refused(Refusal::RateLimited);
    assert_eq!((phase, attempt), (Phase::Planned, 2));
    assert_eq!(note, Some(Reason::RateLimited));
}

#[test]
fn a_surplus_machine_is_ended_and_a_lost_one_is_noticed() {
    let claim = Claim {
        phase: Phase::Launched {
            instance: "i-1".into(),
            at: now() - SignedDuration::from_secs(600),
        },
        ..a_claim()
    };
    let listing = |ids: &[&str]| Observation {
        listing: Listing::Complete(ids.iter().map(|id| (*id).to_owned()).collect()),
        ..seen(ReadBack::Ours)
    };
    assert_eq!(
        next_step(&claim, SAFE, &listing(&["i-1", "i-2"])),
        Step::Terminate { instance: "i-2".into() }
    );
    assert_eq!(next_step(&claim, SAFE, &listing(&["i-1"])), Step::Nothing);
    assert!(matches!(
        next_step(&claim, SAFE, &listing(&[])),
        Step::Record { note: Some(Reason::SpotInterrupted), .. }
    ));
}

#[test]
fn identities_are_deterministic_and_differ_by_claim_and_attempt() {
    let identity = |uid: &str, attempt| Identity {
        installation: "5f0e8d2a-1b1b-4000-8000-000000000000".into(),
        namespace: "default".into(),
        claim: "c".into(),
        claim_uid: uid.into(),
        attempt,
    };
    let name = identity("u", 1).unique_name();
    assert_eq!(name, identity("u", 1).unique_name());
    assert!(name.starts_with("pf-5f0e8d2a-") && name.len() == 44, "{name}");
    assert_ne!(identity("u", 1).token(), identity("u", 2).token());
    assert_ne!(identity("u1", 1).token(), identity("u", 11).token());
    assert_eq!(a_claim().spec.name, "trj-job-006a6f62-1-0");
}
