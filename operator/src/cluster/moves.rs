//! Jobs that leave a rented machine for a better place. The arbiter says who
//! ([`Outcome::Moves`]); here their claim is deleted, so that the agent has a checkpoint written and the
//! next pass places the job anew.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use petaflop_arbiter::claim::{Claim, Phase};
use petaflop_arbiter::decision::{Decision, Outcome};
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::WorkloadId;

use crate::cluster::Operator;
use crate::cluster::error::Error;
use crate::cluster::events::Event;

/// How often jobs that have a rented machine are looked at: a better one may be there.
pub const EVERY: Duration = Duration::from_secs(30);

/// Machines that are left for better ones.
#[derive(Debug, Default)]
pub struct Moves(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// When all were looked at last.
    looked: Option<Timestamp>,
    /// Why, by the uid of the claim. Of this process: after a restart a claim that is on its way out
    /// ends for another reason, and no less.
    leaves: HashMap<String, Reason>,
}

impl Moves {
    /// Why a claim was given up for a better place, if it was.
    pub fn why(&self, claim_uid: &str) -> Option<Reason> {
        self.inner().leaves.get(claim_uid).copied()
    }

    /// Whether this pass looks for better places; then the next one is not due for a while.
    pub fn are_due(&self, now: Timestamp) -> bool {
        let mut inner = self.inner();
        let since = inner.looked.map(|at| Duration::try_from(now.duration_since(at)));
        let due = since.is_none_or(|since| since.is_ok_and(|since| since >= EVERY));
        if due {
            inner.looked = Some(now);
        }
        due
    }

    /// Forgets claims that are gone.
    pub fn forget_but(&self, claims: &[Claim]) {
        let there: HashSet<&str> = claims.iter().map(|claim| claim.uid.as_str()).collect();
        self.inner().leaves.retain(|uid, _| there.contains(uid.as_str()));
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a better place than a claim's is worth looking for: its machine is there, and rented.
pub fn may_move(claim: &Claim) -> bool {
    let rented = match claim.spec.offer.capacity {
        Capacity::Spot | Capacity::OnDemand => true,
        Capacity::Owned => false,
    };
    rented && matches!(claim.phase, Phase::Launched { .. })
}

/// Gives a machine up, if that was decided.
///
/// # Errors
/// The API server refuses, or another operator leads.
pub async fn leave(operator: &Operator, decision: &Decision) -> Result<(), Error> {
    let Outcome::Moves { claim, to, reason, stays, goes, moves } = &decision.outcome else {
        return Ok(());
    };
    let WorkloadId { namespace, name, uid, .. } = &decision.workload;
    let claims = operator.table.of_owner(uid);
    let Some(stored) = claims.iter().find(|stored| stored.claim.spec.name == *claim) else {
        return Ok(());
    };
    if !operator.leadership.leads() {
        return Err(Error::NotLeading);
    }
    let from = &stored.claim.spec.offer.id;
    operator.placement.moves().inner().leaves.insert(stored.claim.uid.clone(), *reason);
    operator.claims.delete(stored).await?;
    tracing::info!(job = %name, %from, %to, %stays, %goes, moves, "moves");
    if let Some(job) = operator.job(namespace, name) {
        let note =
            format!("from {from} to {to}: {goes} $ to the end there, {stays} $ here; move {moves}");
        operator.events.tell(&job, [Event::because(*reason, note)]);
    }
    operator.claim_changed(&(namespace.clone(), claim.clone()));
    Ok(())
}
