//! Giving a machine up by hand: the annotation `petaflop.dev/abandon-instance` on a claim that is
//! being removed, when its provider cannot say that the machine is gone and somebody has made sure
//! of it. It must repeat the machine's id exactly; then the ledger is closed, and the claim goes.
//! Should the machine be there after all, the sweep ends it once its provider answers.

use kube::ResourceExt;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::ComputeClaim;

use crate::claims::{Claims, StoredClaim};
use crate::cluster::error::Error;
use crate::cluster::events::{Event, Happened};
use crate::cluster::shelf::named;
use crate::cluster::status::Is;
use crate::cluster::{Operator, finalizer};

/// The annotation.
pub const ANNOTATION: &str = "petaflop.dev/abandon-instance";

/// What an annotation asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Nothing: there is none, or the claim is not being removed.
    Nothing,
    /// It does not name the machine.
    Wrong(String),
    /// To let go of this machine.
    Abandon(String),
}

/// What is asked for a claim.
pub fn asked(object: &ComputeClaim, phase: &Phase) -> Asked {
    let Some(named) = object.annotations().get(ANNOTATION) else { return Asked::Nothing };
    if object.metadata.deletion_timestamp.is_none() {
        return Asked::Nothing;
    }
    let known = match phase {
        Phase::Launched { instance, .. } => Some(instance),
        Phase::Ending { instance, .. } => instance.as_ref(),
        Phase::Planned
        | Phase::Attempted { .. }
        | Phase::Ambiguous { .. }
        | Phase::Ended { .. } => None,
    };
    match known {
        Some(instance) if instance == named => Asked::Abandon(instance.clone()),
        Some(instance) => Asked::Wrong(format!(
            "annotation {ANNOTATION} names {named:?}, but the machine is {instance:?}: repeat its id exactly"
        )),
        None => Asked::Wrong(format!(
            "annotation {ANNOTATION} names {named:?}, but no machine's id is known here: nothing can be abandoned"
        )),
    }
}

/// Does what is asked for. Returns whether the claim was let go.
pub async fn act(
    operator: &Operator,
    object: &ComputeClaim,
    stored: &StoredClaim,
) -> Result<bool, Error> {
    let instance = match asked(object, &stored.claim.phase) {
        Asked::Nothing => return Ok(false),
        Asked::Wrong(message) => {
            operator.claims.say(stored, "Stalled", Is::True, Reason::InvalidSpec, &message).await?;
            return Ok(false);
        }
        Asked::Abandon(instance) => instance,
    };
    if !finalizer::is_held(object) || !operator.leadership.leads() {
        return Ok(false);
    }
    let owner = &stored.claim.spec.owner;
    let budgets = operator.workload(owner).map(|workload| operator.budgets_of(&workload));
    if let Some(began) = stored.billed_from {
        let claim = &stored.claim;
        let mut rows = operator.ledger.claim(&claim.spec, &claim.uid, began).await?;
        rows.budgets = budgets;
        rows.instance.clone_from(&instance);
        // Its provider has nothing to say of it: at the price that was decided on.
        let now = operator.clock.now();
        let millis = now.as_millisecond().saturating_sub(began.as_millisecond());
        let billed = claim.spec.offer.price.for_millis(millis);
        operator.ledger.bring_up(&mut rows, now, billed, true).await?;
        operator.book.refresh(&operator.ledger, claim).await?;
    }
    operator.claims.release(stored).await?;
    operator.metrics.instance_abandoned();
    let note = format!("{instance} was given up by hand; nobody knows whether it is gone");
    operator.events.tell(object, [Event::happened(Happened::InstanceAbandoned, note)]);
    operator.agents.forget(&named(object));
    operator.owner_changed(owner);
    operator.placement.ask();
    Ok(true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(annotation: Option<&str>, deleting: bool) -> ComputeClaim {
        let mut metadata = json!({ "name": "c", "namespace": "ns" });
        if let Some(value) = annotation {
            metadata["annotations"] = json!({ (ANNOTATION): value });
        }
        if deleting {
            metadata["deletionTimestamp"] = json!("2026-11-21T12:00:00Z");
        }
        serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeClaim", "metadata": metadata,
            "spec": {
                "owner": { "kind": "TrainingJob", "name": "job", "uid": "u" },
                "placement": 1, "index": 0, "provider": "p", "device": "Cpu", "reserved": "1",
                "decidedAt": "2026-11-21T11:00:00Z",
                "offer": {
                    "id": "o", "instanceType": "m", "arch": "x86_64", "capacity": "OnDemand",
                    "price": "1", "quotedAt": "2026-11-21T11:00:00Z", "ttlSeconds": 60,
                    "hostOwner": "Known",
                },
            },
        }))
        .expect("a claim")
    }

    #[test]
    fn only_the_exact_id_of_a_machine_whose_claim_is_being_removed_is_taken() {
        let ending = Phase::Ending { instance: Some("i-1".into()), reason: Reason::Suspended };
        let launched = Phase::Launched { instance: "i-1".into(), at: jiff::Timestamp::UNIX_EPOCH };
        let abandon = Asked::Abandon("i-1".into());
        assert_eq!(asked(&claim(None, true), &ending), Asked::Nothing);
        assert_eq!(
            asked(&claim(Some("i-1"), false), &ending),
            Asked::Nothing,
            "it is still wanted"
        );
        assert_eq!(asked(&claim(Some("i-1"), true), &ending), abandon);
        assert_eq!(asked(&claim(Some("i-1"), true), &launched), abandon);
        for (named, phase) in [
            ("i-2", &ending),
            ("I-1", &ending),
            (" i-1", &launched),
            ("", &launched),
            ("true", &launched),
            ("i-1", &Phase::Planned),
            ("", &Phase::Ending { instance: None, reason: Reason::Suspended }),
        ] {
            let found = asked(&claim(Some(named), true), phase);
            assert!(matches!(&found, Asked::Wrong(said) if said.contains(named)), "{found:?}");
        }
    }
}
