//! What a claim says beside how far it is: that its machine will be taken away, that nobody is there
//! any more who asked for it, that its provider does not end it. Each is written once, when it becomes so.

use jiff::SignedDuration;
use kube::ResourceExt;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::ComputeClaim;

use crate::claims::StoredClaim;
use crate::cluster::error::Error;
use crate::cluster::status::Is;
use crate::cluster::table::Name;
use crate::cluster::{Operator, abandon};

/// A machine that is to be ended is usually gone after this long.
const PATIENCE: SignedDuration = SignedDuration::from_secs(120);

/// Says of a machine that should be gone for a while already that its provider does not say so.
pub(super) async fn not_gone_yet(
    operator: &Operator,
    object: &ComputeClaim,
    stored: &StoredClaim,
) -> Result<(), Error> {
    let instance = match &stored.claim.phase {
        Phase::Ending { instance: Some(instance), .. } | Phase::Launched { instance, .. } => {
            instance
        }
        _ => return Ok(()),
    };
    let conditions = object.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let ending = conditions.iter().find(|c| c.type_ == "Terminating" && c.status == "True");
    let since = ending.map(|c| c.last_transition_time.0);
    let since = since.or(object.metadata.deletion_timestamp.as_ref().map(|at| at.0));
    if since.is_none_or(|at| operator.clock.now().duration_since(at) < PATIENCE) {
        return Ok(());
    }
    let (name, namespace) = (object.name_any(), object.namespace().unwrap_or_default());
    let by_hand = format!(
        "kubectl annotate computeclaim -n {namespace} {name} {}={instance}",
        abandon::ANNOTATION
    );
    let message = format!(
        "{} has not said yet that {instance} is gone; it is ended again and again. If you made sure of it yourself: {by_hand}",
        stored.claim.spec.offer.provider
    );
    let reason = Reason::TerminateRetrying;
    operator.claims.say(stored, "Terminating", Is::True, reason, &message).await?;
    Ok(())
}

/// Says of a claim that nobody is there any more who asked for it: somebody took its owner's finalizer.
pub(super) async fn orphaned(operator: &Operator, stored: &StoredClaim) -> Result<(), Error> {
    match &stored.claim.phase {
        // There is nothing yet, or no longer.
        Phase::Planned | Phase::Ended { .. } => return Ok(()),
        Phase::Attempted { .. }
        | Phase::Ambiguous { .. }
        | Phase::Launched { .. }
        | Phase::Ending { .. } => {}
    }
    let owner = &stored.claim.spec.owner;
    let message = format!("{:?} {} is gone; its machine is ended", owner.kind, owner.name);
    operator.claims.say(stored, "Orphaned", Is::True, Reason::OwnerGone, &message).await?;
    Ok(())
}

/// Says that its command is being drained because the job leaves for a better place. A claim that is
/// left is being removed: it is never taken back.
pub(super) async fn leaves(operator: &Operator, stored: &StoredClaim) -> Result<(), Error> {
    if let Some(reason) = operator.placement.moves().why(&stored.claim.uid) {
        let message = "its job leaves for a better place; its command saves what it has";
        operator.claims.say(stored, "Interrupting", Is::True, reason, message).await?;
    }
    Ok(())
}

/// Says that the provider takes the machine away while it is wanted, once the agent has heard so.
/// No provider takes that back. Returns whether that is news.
pub(super) async fn is_taken(
    operator: &Operator,
    stored: &StoredClaim,
    name: &Name,
) -> Result<bool, Error> {
    if !operator.agents.run(name).is_some_and(|run| run.taken) {
        return Ok(false);
    }
    let message = "its provider takes it away; its command saves what it has";
    let reason = Reason::SpotInterrupted;
    Ok(operator.claims.say(stored, "Interrupting", Is::True, reason, message).await?)
}
