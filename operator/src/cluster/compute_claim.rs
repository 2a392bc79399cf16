//! The ComputeClaim's controller: whether the claim is wanted, and then one drive of the buying
//! protocol, [`crate::act`].

use std::time::Duration;

use jiff::SignedDuration;
use kube::{Api, ResourceExt};
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::TrainingJob;
use petaflop_providers::{Instance, InstanceId, Provider, Work};

use crate::act::{ActError, Driven, left_alone_for};
use crate::claims::{Claims, StoredClaim};
use crate::cluster::error::Error;
use crate::cluster::queue::Again;
use crate::cluster::table::Name;
use crate::cluster::{Operator, claims, machine, training_job};

/// A ledger row at least this often while a machine runs.
const CHARGE: SignedDuration = SignedDuration::from_secs(300);

/// Between two looks at something that takes time.
const SOON: Duration = Duration::from_secs(2);

/// One pass over one claim.
pub async fn reconcile(operator: &Operator, name: &Name) -> Result<Again, Error> {
    let Some(object) = operator.table.get(&name.0, &name.1) else {
        operator.agents.forget(name);
        return Ok(Again::OnChange);
    };
    let stored = claims::read(&object)?;
    let seller = &stored.claim.spec.offer.provider;
    let Some(provider) = operator.providers.get(seller).and_then(|known| known.provider.ok())
    else {
        tracing::warn!(claim = %name.1, provider = %seller, "its provider cannot be asked");
        return Ok(Again::Backoff);
    };
    let owner = owner(operator, &stored).await?;
    let pass = Pass { operator, provider: provider.as_ref(), owner: owner.as_ref(), name };
    let wanted = pass.wanted(&stored);
    match (&stored.claim.phase, wanted) {
        (Phase::Launched { instance, .. }, Wanted::Yes) => {
            let instance = InstanceId(instance.clone());
            pass.runs(stored, &instance).await
        }
        (Phase::Launched { .. }, Wanted::No(_)) if pass.drains() => Ok(Again::After(SOON)),
        _ => pass.drive(stored, wanted).await,
    }
}

/// Whoever asked for a claim, as the API server has it now if it is about to be bought for.
async fn owner(operator: &Operator, stored: &StoredClaim) -> Result<Option<TrainingJob>, Error> {
    let id = &stored.claim.spec.owner;
    let same = |job: &TrainingJob| job.uid().as_deref() == Some(id.uid.as_str());
    let bought = matches!(stored.claim.phase, Phase::Launched { .. });
    let known = operator.job(&id.namespace, &id.name).filter(|job| same(job));
    if let (Some(known), true) = (&known, bought) {
        return Ok(Some(TrainingJob::clone(known)));
    }
    // Money is not spent on what a cache says; nor is a machine ended because a watch is behind.
    let api: Api<TrainingJob> = Api::namespaced(operator.client.clone(), &id.namespace);
    let job = api.get_opt(&id.name).await.map_err(Error::api("reading a claim's owner"))?;
    Ok(job.filter(same))
}

/// What one pass over one claim looks at.
struct Pass<'a> {
    operator: &'a Operator,
    provider: &'a dyn Provider,
    owner: Option<&'a TrainingJob>,
    name: &'a Name,
}

impl Pass<'_> {
    fn wanted(&self, stored: &StoredClaim) -> Wanted {
        let no = || Wanted::No(training_job::unwanted_because(self.owner, stored));
        let Some(job) = self.owner else { return no() };
        if stored.deleting || !training_job::wants(job, stored) {
            return no();
        }
        let Phase::Launched { at, .. } = &stored.claim.phase else {
            return Wanted::Yes;
        };
        let waited = self.operator.clock.now().duration_since(*at);
        let patience = self.provider.capabilities().launch_timeout;
        let patience = SignedDuration::try_from(patience).unwrap_or(SignedDuration::MAX);
        if stored.agent_key.is_none() && waited > patience {
            return Wanted::No(Reason::LaunchTimedOut);
        }
        Wanted::Yes
    }

    /// Whether the command is still being given time to save what it has.
    fn drains(&self) -> bool {
        let grace = self.owner.map_or(0, |job| job.spec.checkpoint.grace_seconds);
        self.operator.agents.drains(self.name, Duration::from_secs(u64::from(grace)))
    }

    /// A machine that is wanted and there: its agent is met, its cost booked.
    async fn runs(&self, stored: StoredClaim, instance: &InstanceId) -> Result<Again, Error> {
        let operator = self.operator;
        // The sweep saw no such machine, or its agent is silent: the protocol looks for itself.
        if operator.suspects.remove(self.name) {
            return self.drive(stored, Wanted::Yes).await;
        }
        let endpoint = match &stored.endpoint {
            Some(endpoint) => Some(endpoint.clone()),
            None => {
                let seen = self.provider.get(instance).await.map_err(ActError::from)?;
                if seen.as_ref().is_none_or(|i| !i.state.may_bill()) {
                    operator.suspects.insert(self.name.clone());
                }
                if let Some(reason) = self.hopeless(&stored, seen.as_ref()) {
                    return self.drive(stored, Wanted::No(reason)).await;
                }
                seen.and_then(|i| i.endpoint)
            }
        };
        let Some(endpoint) = endpoint else {
            return Ok(Again::After(SOON));
        };
        if let Some(job) = self.owner {
            operator.agents.meet(operator, self.name, &stored, endpoint, || {
                machine::task(operator, job, &stored)
            });
        }
        let enrolled = stored.agent_key.is_some();
        let charged = operator.book.charged_until(&stored.claim.uid).or(stored.billed_from);
        let now = operator.clock.now();
        if charged.is_none_or(|at| now.duration_since(at) >= CHARGE) {
            let stored = operator.actor(self.provider, None).charge(stored).await?;
            operator.book.refresh(&operator.ledger, &stored.claim).await?;
        }
        let wait = if enrolled { Duration::from_secs(CHARGE.as_secs() as u64) } else { SOON };
        Ok(Again::After(wait))
    }

    /// Why a machine that does not come up never will, once it had its time. Its offer is left alone.
    fn hopeless(&self, stored: &StoredClaim, seen: Option<&Instance>) -> Option<Reason> {
        let trouble = seen?.trouble.as_ref()?;
        let patience = match trouble.reason {
            Reason::InsufficientCapacity => 30,
            Reason::ImagePullFailed => 180,
            Reason::InvalidSpec | Reason::SpotInterrupted => 0,
            _ => return None,
        };
        let Phase::Launched { at, .. } = &stored.claim.phase else { return None };
        let now = self.operator.clock.now();
        if now.duration_since(*at) < SignedDuration::from_secs(patience) {
            return None;
        }
        tracing::warn!(claim = %self.name.1, reason = %trouble.reason, "{}", trouble.message);
        let until = now.saturating_add(CHARGE).unwrap_or(jiff::Timestamp::MAX);
        let offer = &stored.claim.spec.offer.id;
        self.operator.providers.leave_alone(offer, until, trouble.reason);
        Some(trouble.reason)
    }

    async fn drive(&self, stored: StoredClaim, wanted: Wanted) -> Result<Again, Error> {
        let operator = self.operator;
        let machine = self.owner.map(|job| machine::of(operator, job, &stored));
        let work = machine.as_ref().map(Work::Machine);
        let owner_uid = stored.claim.spec.owner.uid.clone();
        let offer = stored.claim.spec.offer.id.clone();
        let (driven, refusal) = operator.actor(self.provider, work).drive(stored, wanted).await?;
        if let Some(error) = refusal
            && let Some(wait) = left_alone_for(&error)
        {
            let wait = SignedDuration::try_from(wait).unwrap_or(CHARGE);
            let until = operator.clock.now().saturating_add(wait).unwrap_or(jiff::Timestamp::MAX);
            operator.providers.leave_alone(&offer, until, error.reason());
        }
        operator.owner_changed(&owner_uid);
        match driven {
            Driven::Steady(_) | Driven::Waiting(..) => Ok(Again::After(SOON)),
            Driven::Gone => Ok(Again::OnChange),
            Driven::Over(stored, _) => {
                operator.book.refresh(&operator.ledger, &stored.claim).await?;
                operator.claims.release(&stored).await?;
                operator.agents.forget(self.name);
                operator.owner_changed(&owner_uid);
                // Its slot, quota and reservation are free.
                operator.placement.ask();
                Ok(Again::OnChange)
            }
        }
    }
}
