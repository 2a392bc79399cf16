//! What a claim's status says to people: conditions, from how far the claim is.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::compute_claim::ComputeClaimStatus;

use crate::claims::StoredClaim;
use crate::cluster::status::{Conditions, Is};

/// Writes the conditions of a claim that is now so far.
pub fn summarise(
    status: &mut ComputeClaimStatus,
    stored: &StoredClaim,
    generation: Option<i64>,
    now: Timestamp,
) {
    status.observed_generation = generation;
    let mut conditions = Conditions::of(&mut status.conditions, generation, now);
    let launching = Reason::Launching;
    match &stored.claim.phase {
        Phase::Planned => {
            conditions.progressing(launching, "");
            conditions.set("Launched", Is::False, launching, "");
        }
        Phase::Attempted { .. } => {
            conditions.progressing(Reason::LaunchAttempted, "");
            conditions.set("Launched", Is::Unknown, Reason::LaunchAttempted, "");
        }
        Phase::Ambiguous { .. } => {
            let message = "the answer to the launch was lost; looking for the machine";
            conditions.progressing(Reason::LaunchAmbiguous, message);
            conditions.set("Launched", Is::Unknown, Reason::LaunchAmbiguous, message);
        }
        Phase::Launched { .. } => {
            let launched = launched(conditions.get("Launched"));
            conditions.set("Launched", Is::True, launched, "");
            match &stored.agent_key {
                Some(_) => {
                    conditions.set("Registered", Is::True, Reason::Ok, "");
                    conditions.ready(Reason::Ok, "");
                }
                None => conditions.progressing(launching, "waiting for the agent"),
            }
        }
        Phase::Ending { reason, .. } => {
            conditions.progressing(*reason, "");
            conditions.set("Terminating", Is::True, *reason, "");
        }
        Phase::Ended { reason } => {
            // There is nothing any more of which these could be so.
            for type_ in ["Interrupting", "Drifted", "Orphaned"] {
                conditions.clear(type_);
            }
            conditions.set("Terminating", Is::False, *reason, "");
            conditions.set("InstanceTerminated", Is::True, *reason, "");
            conditions.set("Ready", Is::False, *reason, "");
            conditions.set("Reconciling", Is::False, *reason, "");
            conditions.set("Stalled", Is::False, *reason, "");
        }
    }
}

/// How its machine came to be known, from what was said before: by the answer to the launch; or it was
/// found by its identity, as nobody had an answer.
fn launched(before: Option<&Condition>) -> Reason {
    let adopted = Reason::AdoptedExisting;
    match before.map(|known| (known.status.as_str(), known.reason.as_str())) {
        Some(("True", reason)) if reason != adopted.as_str() => Reason::Ok,
        Some(("Unknown", reason)) if reason == Reason::LaunchAttempted.as_str() => Reason::Ok,
        _ => adopted,
    }
}
