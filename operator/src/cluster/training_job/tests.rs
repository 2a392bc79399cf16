use petaflop_arbiter::claim::{Claim, ClaimSpec, Device, claim_name};
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};
use petaflop_crds::scalar::Money;
use petaflop_crds::training_job::TrainingJobSpec;

use super::*;
use crate::cluster::budgets::Stopped;
use crate::cluster::testing::offer;
use crate::run::End;

const NOW: i64 = 1_800_000_000;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(NOW + seconds).expect("a plain time")
}

fn job(spec: serde_json::Value) -> TrainingJob {
    let mut spec = spec;
    spec["recipe"] = serde_json::json!({
        "model": {"dim": 128, "layers": 4, "heads": 4, "vocab": 512},
        "datasets": [{"path": "builtin:petaflop", "type": "completion"}],
        "sequence_len": 128, "micro_batch_size": 16, "max_steps": 20, "learning_rate": 0.003, "seed": 1,
    });
    let spec: TrainingJobSpec = serde_json::from_value(spec).expect("a spec");
    let mut job = TrainingJob::new("job", spec);
    job.metadata.uid = Some("owner".into());
    job.metadata.generation = Some(1);
    job
}

fn claim(placement: u32, phase: ClaimPhase, enrolled: bool) -> StoredClaim {
    let owner = WorkloadId {
        kind: OwnerKind::TrainingJob,
        namespace: "ns".into(),
        name: "job".into(),
        uid: "owner".into(),
    };
    StoredClaim {
        version: "1".into(),
        deleting: false,
        billed_from: None,
        running_from: None,
        endpoint: None,
        agent_key: enrolled.then(|| "key".into()),
        claim: Claim {
            spec: ClaimSpec {
                name: claim_name(&owner, placement, 0),
                owner,
                placement,
                index: 0,
                offer: offer("m", "0.5"),
                device: Device::Cpu,
                reserved: Usd::ZERO,
                decided_at: at(0),
                revision: None,
                checkpoint_interval_seconds: None,
                runners_up: Vec::new(),
            },
            uid: format!("c{placement}"),
            phase,
            attempt: 1,
            spent: Usd::ZERO,
        },
    }
}

fn launched() -> ClaimPhase {
    ClaimPhase::Launched { instance: "i".into(), at: at(0) }
}

fn ended(reason: Reason) -> ClaimPhase {
    ClaimPhase::Ended { reason }
}

fn run(end: Option<End>) -> Run {
    let mut run = Run::default();
    (run.started, run.end) = (true, end);
    run
}

fn look<'a>(job: &'a TrainingJob, claims: &'a [StoredClaim], run: Option<&'a Run>) -> Seen<'a> {
    Seen {
        job,
        claims,
        run,
        spent: Usd::from_micros(1_000),
        settled: false,
        waits: None,
        at_risk: false,
        key: None,
        repeats: false,
        stop: None,
        now: at(0),
    }
}

fn condition(status: &TrainingJobStatus, type_: &str) -> (String, String) {
    let found = status.conditions.iter().find(|c| c.type_ == type_);
    found.map(|c| (c.status.clone(), c.reason.clone())).unwrap_or_default()
}

/// The status that a pass wrote, taken over by the next.
fn then(job: &TrainingJob, next: Next) -> TrainingJob {
    TrainingJob { status: Some(next.status), ..job.clone() }
}

#[test]
fn a_new_job_asks_for_a_machine_and_says_so_as_kstatus_wants() {
    let job = job(serde_json::json!({}));
    let next = next(&look(&job, &[], None));
    assert!(next.place && !next.finalizer && next.unwanted.is_empty());
    assert_eq!(condition(&next.status, "Ready").0, "Unknown");
    assert_eq!(condition(&next.status, "Reconciling").0, "True");
    assert_eq!(next.status.observed_generation, Some(1));
    assert_eq!(next.status.phase, Some(Phase::Pending));
}

#[test]
fn what_only_a_person_can_mend_stalls_and_what_passes_by_itself_does_not() {
    let job = job(serde_json::json!({}));
    for (reason, stalled) in [
        (Reason::NoMatchingOffer, "True"),
        (Reason::ProviderNotFound, "True"),
        (Reason::NamespaceNotAllowed, "True"),
        (Reason::BudgetExceeded, "True"),
        (Reason::InsufficientCapacity, "False"),
        (Reason::OffersStale, "False"),
        (Reason::QuotaExceeded, "False"),
    ] {
        let waits = Waits { reason, message: "said".into() };
        let next = next(&Seen { waits: Some(&waits), ..look(&job, &[], None) });
        assert_eq!(condition(&next.status, "Stalled").0, stalled, "{reason}");
        assert_eq!(condition(&next.status, "OfferSelected"), ("False".into(), reason.to_string()));
        assert!(next.place, "it waits for a place: {reason}");
    }
}

#[test]
fn an_end_is_counted_once_and_its_claim_goes_only_after_the_count() {
    let first = job(serde_json::json!({"backoffLimit": 1}));
    let claims = [claim(1, launched(), true)];
    let failed = run(Some(End::Failed { message: "no".into(), retry: true }));
    let one = next(&look(&first, &claims, Some(&failed)));
    assert_eq!((one.status.failures, one.status.restarts), (1, 1));
    assert_eq!(one.unwanted, [claims[0].claim.spec.name.clone()]);

    // The same claim is still there: a crash before it went, or a slow server.
    let again = then(&first, one);
    let two = next(&look(&again, &claims, Some(&failed)));
    assert_eq!((two.status.failures, two.status.restarts), (1, 1));
    assert_eq!(two.unwanted, [claims[0].claim.spec.name.clone()]);

    // The second failure is one too many.
    let second = [claim(2, launched(), true)];
    let three = next(&look(&then(&again, two), &second, Some(&failed)));
    assert_eq!(condition(&three.status, "Failed"), ("True".into(), "BackoffLimitExceeded".into()));
    assert_eq!(condition(&three.status, "Stalled").0, "True");
}

#[test]
fn a_result_of_another_key_is_refused_for_its_own_reason_and_its_key_is_not_kept() {
    let claims = [claim(1, launched(), true)];
    let mut first = job(serde_json::json!({"backoffLimit": 1}));
    first.status = Some(TrainingJobStatus { key: Some("made up".into()), ..Default::default() });
    let mut refused = run(Some(End::Refused { message: "another's".into() }));
    refused.key = None;
    let next = next(&look(&first, &claims, Some(&refused)));
    assert_eq!((next.status.failures, &next.status.artifact), (1, &None));
    let told = condition(&next.status, "Interrupted");
    assert_eq!(told, ("True".into(), "ResultRefused".into()));
    assert_eq!(next.status.key, None);
}

#[test]
fn machines_that_are_lost_are_interruptions_and_no_failures() {
    let first = job(serde_json::json!({"backoffLimit": 0}));
    let claims = [claim(1, ended(Reason::SpotInterrupted), true)];
    let one = next(&look(&first, &claims, None));
    assert_eq!((one.status.failures, one.status.interruptions), (0, 1));
    assert_eq!(one.status.phase, Some(Phase::Interrupted));
    // It is placed again at once.
    let two = next(&look(&then(&first, one), &[], None));
    assert!(two.place);

    let fails = job(serde_json::json!({"placement": {"interruption": {"policy": "Fail"}}}));
    let next = next(&look(&fails, &claims, None));
    assert_eq!(condition(&next.status, "Failed"), ("True".into(), "SpotInterrupted".into()));
}

#[test]
fn what_a_checkpoint_takes_is_taken_over_from_a_lost_machine_and_stays_known_on_the_next() {
    let mut saved = run(None);
    (saved.progress.steps, saved.progress.checkpoint_seconds) = (20, Some(3.0));
    let mut fresh = run(None);
    fresh.progress.steps = 20;
    let mut job = job(serde_json::json!({}));
    for (claim, run) in [
        (claim(1, ended(Reason::HeartbeatLost), true), &saved),
        (claim(2, launched(), true), &fresh),
        (claim(2, ended(Reason::HeartbeatLost), true), &fresh),
    ] {
        let looked = next(&look(&job, std::slice::from_ref(&claim), Some(run)));
        job = then(&job, looked);
        let progress = job.status.as_ref().and_then(|status| status.progress.as_ref());
        assert_eq!(progress.and_then(|p| p.checkpoint_seconds), Some(3.0), "{claim:?}");
    }
}

#[test]
fn a_machine_that_was_not_to_be_had_counts_as_nothing() {
    let job = job(serde_json::json!({"backoffLimit": 0}));
    let claims = [claim(1, ended(Reason::InsufficientCapacity), false)];
    let next = next(&look(&job, &claims, None));
    assert_eq!((next.status.failures, next.status.interruptions, next.status.restarts), (0, 0, 0));
    assert!(next.place && next.unwanted.len() == 1);
}

#[test]
fn a_machine_without_its_accelerators_is_no_loss_and_no_failure_and_says_so_once_more_elsewhere() {
    let first = job(serde_json::json!({
        "backoffLimit": 0, "placement": {"interruption": {"policy": "Fail"}},
    }));
    let unfit = run(Some(End::Unfit { message: "no device is there".into() }));
    // Heard from its agent; or, by an operator that has just begun, from its claim.
    let table = [
        (claim(1, launched(), true), Some(&unfit)),
        (claim(1, ended(Reason::AcceleratorProbeFailed), true), None),
    ];
    for (claim, run) in table {
        let claims = [claim];
        let one = next(&look(&first, &claims, run));
        assert_eq!((one.status.failures, one.status.interruptions), (0, 0));
        let why = one.status.conditions.iter().find(|c| c.type_ == "Interrupted").expect("it");
        assert_eq!((&*why.status, &*why.reason), ("True", "AcceleratorProbeFailed"));
        assert!(why.message.contains(&claims[0].claim.spec.offer.id.0), "{why:?}");
        assert!(one.place && one.unwanted.len() == 1);
        assert_eq!(
            unwanted_because(Some(&then(&first, one)), &claims[0]),
            Reason::AcceleratorProbeFailed
        );
    }
}

#[test]
fn a_machine_that_nobody_was_met_on_counts_as_a_failure_and_says_what_to_look_at() {
    let first = job(serde_json::json!({
        "backoffLimit": 1, "placement": {"interruption": {"policy": "Fail"}},
    }));
    let called = Run::called_at("203.0.113.7:7443".into());
    for (run, words) in [
        (Some(&called), "nobody answered at 203.0.113.7:7443 (TCP): let the operator through"),
        (None, "it never had an address"),
    ] {
        let one = next(&look(&first, &[claim(1, ended(Reason::LaunchTimedOut), false)], run));
        assert_eq!((one.status.failures, one.status.interruptions), (1, 0));
        let why = one.status.conditions.iter().find(|c| c.type_ == "Interrupted").expect("it");
        assert_eq!((&*why.status, &*why.reason), ("True", "LaunchTimedOut"));
        assert!(why.message.contains(words), "{why:?}");
        assert!(one.place, "elsewhere, at once");
        let second = [claim(2, ended(Reason::LaunchTimedOut), false)];
        let two = next(&look(&then(&first, one), &second, run));
        let failed = ("True".into(), "BackoffLimitExceeded".into());
        assert_eq!(condition(&two.status, "Failed"), failed);
    }
}

#[test]
fn a_command_of_the_users_is_complete_with_its_end_and_a_runtime_only_with_a_result() {
    let claims = [claim(1, launched(), true)];
    let mut ended = run(Some(End::Done));
    (ended.started, ended.up) = (false, true);
    let mut own = job(serde_json::json!({}));
    let recipe = next(&look(&own, &claims, Some(&ended)));
    assert_eq!((recipe.status.failures, recipe.status.phase), (1, Some(Phase::Interrupted)));
    own.spec.recipe = None;
    own.spec.container = serde_json::from_value(serde_json::json!({
        "image": "busybox", "command": ["true"],
    }))
    .ok();
    let command = next(&look(&own, &claims, Some(&ended)));
    assert_eq!(condition(&command.status, "Complete"), ("True".into(), "Succeeded".into()));
    // It says nothing of itself while it runs.
    let mut runs = run(None);
    (runs.started, runs.up) = (false, true);
    let running = next(&look(&own, &claims, Some(&runs)));
    assert_eq!(condition(&running.status, "Running").0, "True");
}

#[test]
fn what_ran_to_its_end_before_has_no_machine_and_what_ran_now_says_under_which_key() {
    let new = job(serde_json::json!({}));
    let asks = Seen { key: Some("k"), ..look(&new, &[], None) };
    assert!(next(&asks).place);
    let done = next(&Seen { repeats: true, ..asks });
    assert_eq!(condition(&done.status, "Complete"), ("True".into(), "Succeeded".into()));
    assert_eq!((done.status.key.as_deref(), done.status.cached), (Some("k"), Some(true)));
    assert!(!done.place && !done.finalizer);
    // Suspended, it says so first.
    let suspended = job(serde_json::json!({ "suspend": true }));
    let waits = next(&Seen { key: Some("k"), repeats: true, ..look(&suspended, &[], None) });
    assert_eq!(waits.status.phase, Some(Phase::Suspended));
}

#[test]
fn a_finished_job_keeps_its_result_before_its_machine_goes_and_its_last_sum_after() {
    let first = job(serde_json::json!({"ttlSecondsAfterFinished": 60}));
    let claims = [claim(1, launched(), true)];
    let caveat = Some("not as a GGUF file".to_owned());
    let done = run(Some(End::Finished { artifact: "hash".into(), cached: false, caveat }));
    let one = next(&look(&first, &claims, Some(&done)));
    let complete = one.status.conditions.iter().find(|condition| condition.type_ == "Complete");
    assert_eq!(complete.map(|condition| &condition.message[..]), Some("not as a GGUF file"));
    assert_eq!(one.status.artifact.as_deref(), Some("hash"));
    assert_eq!(condition(&one.status, "Complete"), ("True".into(), "Succeeded".into()));
    assert_eq!(condition(&one.status, "Ready").0, "True");
    assert_eq!(one.unwanted.len(), 1);
    assert!(!one.delete);

    let over = then(&first, one);
    let last = Seen { spent: Usd::from_micros(2_000), ..look(&over, &[], None) };
    let two = next(&last);
    let total = two.status.cost.clone().and_then(|cost| cost.total);
    assert_eq!(total, Some(Money::from(Usd::from_micros(2_000))));
    assert_eq!(two.again, Some(Duration::from_secs(60)));
    let later = then(&over, two);
    assert!(next(&Seen { now: at(61), ..look(&later, &[], None) }).delete);
    // It was reckoned too high while it ran; but another's book may only be behind.
    let less = |settled| {
        let spent = Usd::from_micros(1_500);
        let next = next(&Seen { spent, settled, ..look(&later, &[], None) });
        next.status.cost.and_then(|cost| cost.total).and_then(|total| total.micro_dollars().ok())
    };
    assert_eq!((less(false), less(true)), (Some(2_000), Some(1_500)));
    // Nothing is written that has not changed.
    let third =
        next(&Seen { spent: Usd::from_micros(2_000), now: at(30), ..look(&later, &[], None) });
    assert_eq!(Some(third.status), later.status);
}

#[test]
fn suspending_ends_the_machine_keeps_the_cost_and_resuming_begins_the_clocks_anew() {
    let mut job = job(serde_json::json!({"suspend": true}));
    let claims = [claim(1, launched(), true)];
    let running = run(None);
    let one = next(&look(&job, &claims, Some(&running)));
    assert_eq!(one.unwanted.len(), 1);
    assert_eq!(condition(&one.status, "Suspended").0, "");
    let two = next(&look(&then(&job, one), &[], None));
    assert_eq!(condition(&two.status, "Suspended"), ("True".into(), "Suspended".into()));
    assert_eq!(condition(&two.status, "Ready").0, "True");
    assert!(two.status.cost.is_some() && two.status.start_time.is_none() && !two.place);

    job.spec.suspend = false;
    let resumed = next(&Seen { now: at(500), ..look(&then(&job, two), &[], None) });
    assert_eq!(condition(&resumed.status, "Suspended"), ("False".into(), "Resumed".into()));
    assert_eq!(resumed.status.admitted_time, Some(time(at(500))));
    assert!(resumed.place);
}

#[test]
fn limits_of_money_and_time_are_hard() {
    let claims = [claim(1, launched(), true)];
    let running = run(None);
    let dear = job(serde_json::json!({"maxTotalCost": "0.001"}));
    let spent = next(&look(&dear, &claims, Some(&running)));
    assert_eq!(condition(&spent.status, "Failed"), ("True".into(), "CostLimitExceeded".into()));
    assert_eq!(spent.unwanted.len(), 1);

    let slow = job(serde_json::json!({"activeDeadlineSeconds": 100}));
    let one = next(&look(&slow, &claims, Some(&running)));
    let ran = then(&slow, one);
    let soon = next(&Seen { now: at(60), ..look(&ran, &claims, Some(&running)) });
    assert_eq!(soon.again, Some(Duration::from_secs(40)));
    let late = next(&Seen { now: at(100), ..look(&ran, &claims, Some(&running)) });
    assert_eq!(condition(&late.status, "Failed"), ("True".into(), "DeadlineExceeded".into()));
}

#[test]
fn no_deadline_counts_while_a_job_is_suspended_and_it_begins_anew_afterwards() {
    let (claims, running) = ([claim(1, launched(), true)], run(None));
    let first = job(serde_json::json!({"activeDeadlineSeconds": 100}));
    let mut ran = then(&first, next(&look(&first, &claims, Some(&running))));
    ran.spec.suspend = true;
    let drains = next(&Seen { now: at(150), ..look(&ran, &claims, Some(&running)) });
    assert_eq!(condition(&drains.status, "Failed").0, "", "it saves what it has");
    let mut gone = then(&ran, next(&Seen { now: at(160), ..look(&then(&ran, drains), &[], None) }));
    assert_eq!(condition(gone.status.as_ref().expect("a status"), "Suspended").0, "True");
    gone.spec.suspend = false;
    let second = [claim(2, launched(), true)];
    let again = next(&Seen { now: at(500), ..look(&gone, &second, Some(&running)) });
    assert_eq!(again.status.start_time, Some(time(at(500))));
    let again = then(&gone, again);
    let soon = next(&Seen { now: at(590), ..look(&again, &second, Some(&running)) });
    assert_eq!(soon.again, Some(Duration::from_secs(10)));
}

#[test]
fn a_deleted_job_lets_go_only_when_its_claims_are_gone() {
    let mut job = job(serde_json::json!({}));
    job.metadata.deletion_timestamp = Some(time(at(0)));
    job.metadata.finalizers = Some(vec![petaflop_crds::compute_claim::FINALIZER.to_owned()]);
    let claims = [claim(1, launched(), true)];
    let one = next(&look(&job, &claims, None));
    assert!(one.finalizer && one.unwanted.len() == 1 && !one.place);
    assert!(!next(&look(&job, &[], None)).finalizer);
}

#[test]
fn a_job_is_held_once_it_has_a_claim_and_stays_so() {
    let mut job = job(serde_json::json!({}));
    assert!(!next(&look(&job, &[], None)).finalizer);
    assert!(next(&look(&job, &[claim(1, ClaimPhase::Planned, false)], None)).finalizer);
    job.metadata.finalizers = Some(vec![petaflop_crds::compute_claim::FINALIZER.to_owned()]);
    assert!(next(&look(&job, &[], None)).finalizer);
}

#[test]
fn a_job_that_goes_before_it_was_held_takes_its_claim_with_it() {
    let mut job = job(serde_json::json!({}));
    job.metadata.deletion_timestamp = Some(time(at(0)));
    let going = next(&look(&job, &[claim(1, ClaimPhase::Planned, false)], None));
    assert!(!going.finalizer, "the API server takes no new finalizer now");
    assert_eq!(going.unwanted.len(), 1);
}

#[test]
fn a_job_that_runs_is_written_at_most_every_five_minutes() {
    let first = job(serde_json::json!({}));
    let claims = [claim(1, launched(), true)];
    let mut running = run(None);
    let started = then(&first, next(&look(&first, &claims, Some(&running))));
    for seconds in [1, 60, 299] {
        running.progress.step += 1;
        running.progress.steps = 100;
        let now = at(seconds);
        let spent = Usd::from_micros(1_000 + seconds);
        let next = next(&Seen { now, spent, ..look(&started, &claims, Some(&running)) });
        assert_eq!(Some(next.status), started.status, "after {seconds} s");
    }
    let spent = Usd::from_micros(2_000);
    let next = next(&Seen { now: at(300), spent, ..look(&started, &claims, Some(&running)) });
    assert_ne!(Some(next.status), started.status);
}

fn by(budget: &str, how: Stopped) -> Stop {
    Stop { budget: budget.into(), how }
}

#[test]
fn a_budget_that_suspends_counts_no_interruption_and_lets_go_on_when_there_is_money() {
    let first = job(serde_json::json!({"placement": {"interruption": {"policy": "Fail"}}}));
    let claims = [claim(1, launched(), true)];
    let running = run(None);
    let ran = then(&first, next(&look(&first, &claims, Some(&running))));
    let stop = by("team", Stopped::Suspended);
    let one = next(&Seen { stop: Some(&stop), ..look(&ran, &claims, Some(&running)) });
    assert_eq!(one.unwanted.len(), 1);
    assert_eq!(condition(&one.status, "Running"), ("False".into(), "BudgetExceeded".into()));
    // It saved what it had and stopped.
    let stopping = then(&ran, one);
    let stopped = run(Some(End::Stopped));
    let two = next(&Seen { stop: Some(&stop), ..look(&stopping, &claims, Some(&stopped)) });
    assert_eq!((two.status.interruptions, two.status.failures), (0, 0));
    let gone = then(&stopping, two);
    let three = next(&Seen { stop: Some(&stop), ..look(&gone, &[], None) });
    assert_eq!(condition(&three.status, "Suspended"), ("True".into(), "BudgetExceeded".into()));
    assert_eq!(condition(&three.status, "Reconciling").0, "True", "it goes on by itself");
    assert!(!three.place);
    let suspended = then(&gone, three);
    let again = next(&Seen { stop: Some(&stop), ..look(&suspended, &[], None) });
    assert_eq!(Some(&again.status), suspended.status.as_ref(), "nothing more is written");
    let goes_on = next(&look(&suspended, &[], None));
    assert_eq!(condition(&goes_on.status, "Suspended"), ("False".into(), "Resumed".into()));
    assert!(goes_on.place);
}

#[test]
fn a_machine_that_is_left_for_a_better_one_is_a_move_and_nothing_else_is() {
    let moved = |spec: serde_json::Value, claim: StoredClaim, run: Option<&Run>| {
        let next = next(&look(&job(spec), &[claim], run));
        (next.status.moves, next.status.interruptions, next.status.failures)
    };
    let stopped = run(Some(End::Stopped));
    let left = |phase| StoredClaim { deleting: true, ..claim(1, phase, true) };
    let plain = || serde_json::json!({});
    // Heard from its agent; or, where that was not heard any more, from its claim.
    assert_eq!(moved(plain(), left(launched()), Some(&stopped)), (1, 0, 0));
    for reason in [Reason::CheaperOfferMigration, Reason::DeadlineAtRisk, Reason::Suspended] {
        assert_eq!(moved(plain(), left(ended(reason)), None), (1, 0, 0));
    }
    let suspended = serde_json::json!({"suspend": true});
    assert_eq!(moved(suspended.clone(), left(launched()), Some(&stopped)), (0, 0, 0));
    assert_eq!(moved(suspended, left(ended(Reason::Suspended)), None), (0, 0, 0));
    assert_eq!(moved(plain(), claim(1, launched(), true), Some(&stopped)), (0, 1, 0), "lost");
    // Counted once.
    let first = job(plain());
    let claims = [left(launched())];
    let once = then(&first, next(&look(&first, &claims, Some(&stopped))));
    assert_eq!(next(&look(&once, &claims, Some(&stopped))).status.moves, 1);
}

#[test]
fn a_budget_that_terminates_ends_what_runs_for_good_and_leaves_what_waits() {
    let first = job(serde_json::json!({}));
    let stop = by("team", Stopped::Terminated);
    let claims = [claim(1, launched(), true)];
    let one = next(&Seen { stop: Some(&stop), ..look(&first, &claims, Some(&run(None))) });
    assert_eq!(condition(&one.status, "Failed"), ("True".into(), "BudgetExceeded".into()));
    assert_eq!(one.unwanted.len(), 1);
    let ended = then(&first, one);
    assert_eq!(unwanted_because(Some(&ended), &claims[0]), Reason::BudgetExceeded);
    for how in [Stopped::Terminated, Stopped::Suspended] {
        let stop = by("team", how);
        let waits = next(&Seen { stop: Some(&stop), ..look(&first, &[], None) });
        assert!(waits.place, "nothing is bought for it, but it may wait: {how:?}");
        assert_eq!(waits.status.phase, Some(Phase::Pending));
    }
}

#[test]
fn a_machine_that_we_let_go_is_no_interruption_though_its_job_goes_on() {
    let job = job(serde_json::json!({"placement": {"interruption": {"policy": "Fail"}}}));
    let claims = [StoredClaim { deleting: true, ..claim(1, launched(), true) }];
    let stopped = run(Some(End::Stopped));
    let next = next(&look(&job, &claims, Some(&stopped)));
    assert_eq!(next.status.interruptions, 0);
    assert_eq!(condition(&next.status, "Failed").0, "");
}

#[test]
fn a_deadline_that_may_be_missed_is_said_when_it_is_placed_while_it_runs_and_when_it_passes() {
    let risky = (String::from("True"), String::from("DeadlineAtRisk"));
    let first = job(serde_json::json!({"deadline": {"within": "1h"}}));
    let planned = [claim(1, ClaimPhase::Planned, false)];
    let one = next(&Seen { at_risk: true, ..look(&first, &planned, None) });
    assert_eq!(condition(&one.status, "OfferSelected"), risky);
    // The next placement pass says nothing of it any more.
    let placed = then(&first, one);
    let two = next(&look(&placed, &planned, None));
    assert_eq!(condition(&two.status, "OfferSelected"), risky);

    let claims = [claim(1, launched(), true)];
    let mut running = run(None);
    let started = then(&first, next(&look(&first, &claims, Some(&running))));
    (running.progress.step, running.progress.steps) = (10, 100);
    let spent = Usd::from_micros(2_000);
    let at_half = |step: u64| {
        let mut running = running.clone();
        running.progress.step = step;
        let now = at(1800);
        next(&Seen { now, spent, ..look(&started, &claims, Some(&running)) })
    };
    assert_eq!(condition(&at_half(51).status, "Running").1, "Ok");
    let late = at_half(49);
    assert_eq!(condition(&late.status, "Running"), risky);
    assert_eq!(condition(&late.status, "Ready"), risky, "a promise, not a kill");
    let late = then(&started, late);
    // Between two refreshes nothing is thought over anew, and nothing written.
    running.progress.step = 99;
    let soon = next(&Seen { now: at(1860), spent, ..look(&late, &claims, Some(&running)) });
    assert_eq!(Some(&soon.status), late.status.as_ref());
    let better = next(&Seen { now: at(2100), spent, ..look(&late, &claims, Some(&running)) });
    assert_eq!(condition(&better.status, "Running").1, "Ok");
    let near = next(&Seen { now: at(3500), ..look(&started, &claims, Some(&running)) });
    assert_eq!(near.again, Some(Duration::from_secs(100)), "it is looked at when it passes");
    let over = next(&Seen { now: at(3600), ..look(&started, &claims, Some(&running)) });
    assert_eq!(condition(&over.status, "Running"), risky);
    assert_eq!(condition(&over.status, "Failed").0, "");
}
