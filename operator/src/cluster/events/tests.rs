use jiff::Timestamp;
use petaflop_crds::shared::PlacementStatus;
use petaflop_crds::training_job::TrainingProgress;

use super::*;
use crate::cluster::status::{Conditions, Is};

fn job(conditions: &[(&str, Is, Reason)]) -> TrainingJobStatus {
    let mut status = TrainingJobStatus::default();
    for (type_, is, reason) in conditions {
        Conditions::of(&mut status.conditions, Some(1), Timestamp::UNIX_EPOCH)
            .set(type_, *is, *reason, "said");
    }
    status
}

/// What is told of a way through statuses, by reason; twice the same status tells nothing.
fn told(way: &[TrainingJobStatus]) -> Vec<&'static str> {
    let mut told = Vec::new();
    let mut old = None;
    for status in way {
        told.extend(of_job(old, status).iter().map(|event| event.reason));
        assert_eq!(of_job(Some(status), status), [], "a pass that changes nothing");
        old = Some(status);
    }
    told
}

#[test]
fn the_life_of_a_job_is_told_once_each_turn() {
    let placed = |number: u32| {
        let claim = Some(format!("trj-job-{number}"));
        Some(PlacementStatus { claim, number: Some(number), ..PlacementStatus::default() })
    };
    let waits = job(&[("OfferSelected", Is::False, Reason::InsufficientCapacity)]);
    let mut launching = job(&[("OfferSelected", Is::True, Reason::Ok)]);
    launching.placement = placed(1);
    let mut runs =
        job(&[("OfferSelected", Is::True, Reason::Ok), ("Running", Is::True, Reason::Ok)]);
    runs.placement = placed(1);
    let mut lost = job(&[
        ("Running", Is::False, Reason::Launching),
        ("Interrupted", Is::True, Reason::SpotInterrupted),
    ]);
    lost.placement = placed(1);
    lost.interruptions = 1;
    lost.progress = Some(TrainingProgress {
        checkpoint_step: Some(5),
        steps: 9,
        ..TrainingProgress::default()
    });
    let mut done = job(&[("Complete", Is::True, Reason::Succeeded)]);
    done.placement = placed(1);
    done.interruptions = 1;
    assert_eq!(
        told(&[waits, launching, runs, lost, done]),
        [
            "InsufficientCapacity",
            "OfferSelected",
            "InstanceReady",
            "CheckpointSaved",
            "SpotInterrupted",
            "Completed"
        ]
    );
}

#[test]
fn what_stalls_is_told_once_and_again_only_for_another_reason() {
    let stalled =
        |reason| job(&[("OfferSelected", Is::False, reason), ("Stalled", Is::True, reason)]);
    let mut again = stalled(Reason::NoMatchingOffer);
    again.conditions[1].message = "other numbers".into();
    assert_eq!(
        told(&[
            stalled(Reason::NoMatchingOffer),
            again,
            stalled(Reason::BudgetExceeded),
            job(&[
                ("Failed", Is::True, Reason::CostLimitExceeded),
                ("Stalled", Is::True, Reason::CostLimitExceeded)
            ]),
        ]),
        ["NoMatchingOffer", "BudgetExceeded", "CostLimitExceeded"]
    );
}

#[test]
fn suspending_and_resuming_are_told_and_a_budget_that_suspends_warns() {
    let by = |reason| job(&[("Suspended", Is::True, reason)]);
    let resumed = || job(&[("Suspended", Is::False, Reason::Resumed)]);
    assert_eq!(
        told(&[by(Reason::Suspended), resumed(), by(Reason::BudgetExceeded), resumed()]),
        ["Suspended", "Resumed", "BudgetExceeded", "Resumed"]
    );
}

#[test]
fn a_claim_tells_what_it_buys_and_what_goes_wrong() {
    let mut status = ComputeClaimStatus { attempt: 1, ..ComputeClaimStatus::default() };
    let mut told = Vec::new();
    let mut step = |status: &mut ComputeClaimStatus, change: &dyn Fn(&mut ComputeClaimStatus)| {
        let old = status.clone();
        change(status);
        told.extend(
            of_claim("m at 0.4 $/h", Some(&old), status).iter().map(|e| (e.reason, e.warning)),
        );
        assert_eq!(of_claim("m", Some(status), status), []);
    };
    let set = |status: &mut ComputeClaimStatus, type_: &str, is, reason| {
        let now = Timestamp::UNIX_EPOCH;
        Conditions::of(&mut status.conditions, Some(1), now).set(type_, is, reason, "said");
    };
    step(&mut status, &|s| s.phase = Some(ComputeClaimPhase::Attempted));
    step(&mut status, &|s| s.phase = Some(ComputeClaimPhase::Ambiguous));
    step(&mut status, &|s| s.phase = Some(ComputeClaimPhase::Launched));
    step(&mut status, &|s| set(s, "Registered", Is::True, Reason::Ok));
    step(&mut status, &|s| set(s, "Drifted", Is::True, Reason::PriceChanged));
    step(&mut status, &|s| set(s, "Orphaned", Is::True, Reason::LaunchAmbiguous));
    step(&mut status, &|s| set(s, "Orphaned", Is::False, Reason::Ok));
    step(&mut status, &|s| set(s, "Interrupting", Is::True, Reason::SpotInterrupted));
    step(&mut status, &|s| {
        s.phase = Some(ComputeClaimPhase::Ending);
        s.reason = Some("SpotInterrupted".into());
        set(s, "Terminating", Is::True, Reason::SpotInterrupted);
    });
    step(&mut status, &|s| set(s, "Terminating", Is::True, Reason::TerminateRetrying));
    assert_eq!(
        told,
        [
            ("InstanceLaunching", false),
            ("LaunchAmbiguous", true),
            ("InstanceReady", false),
            ("OrphanTerminated", true),
            ("SpotInterrupted", true),
            ("SpotInterrupted", true),
            ("TerminateRetrying", true),
        ]
    );
}

#[test]
fn a_provider_tells_once_what_is_wrong_and_once_that_its_offers_are_too_old() {
    let said = |way: &[(&str, Is, Reason)]| {
        let mut status = ComputeProviderStatus::default();
        let mut conditions = Conditions::of(&mut status.conditions, Some(1), Timestamp::UNIX_EPOCH);
        way.iter().for_each(|(type_, is, reason)| conditions.set(type_, *is, *reason, "said"));
        status
    };
    let away = |reason| [("Reconciling", Is::True, reason), ("OffersFresh", Is::True, Reason::Ok)];
    let old =
        |reason| [("Reconciling", Is::True, reason), ("OffersFresh", Is::False, Reason::Stale)];
    let well = [("Reconciling", Is::False, Reason::Ok), ("OffersFresh", Is::True, Reason::Ok)];
    let way = [
        said(&well),
        said(&away(Reason::RateLimited)),
        said(&away(Reason::Unreachable)),
        said(&away(Reason::Unreachable)),
        said(&old(Reason::Unreachable)),
        said(&well),
        said(&old(Reason::Stale)),
    ];
    let told: Vec<&str> = way
        .windows(2)
        .flat_map(|pair| of_provider(Some(&pair[0]), &pair[1]))
        .map(|event| event.reason)
        .collect();
    assert_eq!(told, ["RateLimited", "Unreachable", "Stale", "Stale"]);
}

#[test]
fn a_budget_warns_at_each_threshold_and_when_it_is_spent() {
    let warned = |percent| SpendBudgetStatus { warned_at_percent: percent, ..Default::default() };
    let mut spent = warned(Some(80));
    let mut conditions = Conditions::of(&mut spent.conditions, Some(1), Timestamp::UNIX_EPOCH);
    conditions.set("Exhausted", Is::True, Reason::LimitReached, "said");
    let way =
        [warned(None), warned(Some(50)), warned(Some(80)), spent.clone(), spent, warned(None)];
    let told: Vec<&str> = way
        .windows(2)
        .flat_map(|pair| of_budget(Some(&pair[0]), &pair[1]))
        .map(|event| event.reason)
        .collect();
    assert_eq!(told, ["BudgetWarning", "BudgetWarning", "BudgetExceeded"]);
}

#[test]
fn words_are_short_enough_for_the_api() {
    let long = "é".repeat(5000);
    assert!(shortened(&long).len() <= 1024);
    let longest = Reason::ALL.iter().map(|reason| reason.as_str().len()).max();
    assert!(longest <= Some(128));
}
