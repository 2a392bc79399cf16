//! The ComputeClaim's controller: whether the claim is wanted, and then one drive of the buying
//! protocol, [`crate::act`]. What a claim says beside how far it is: `words`.

use std::time::Duration;

use jiff::SignedDuration;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::ComputeClaim;
use petaflop_crds::spend_budget::Period;
use petaflop_providers::{Begins, Instance, InstanceId, InstanceState, Provider, Work};

use crate::act::{self, ActError, Actor, Driven};
use crate::agents::Way;
use crate::claims::{Claims, StoredClaim};
use crate::cluster::budgets::Stopped;
use crate::cluster::error::Error;
use crate::cluster::events::{Event, Happened};
use crate::cluster::lane::{self, Who};
use crate::cluster::owner::Owner;
use crate::cluster::parting::{self, Hold};
use crate::cluster::queue::Again;
use crate::cluster::table::Name;
use crate::cluster::{Operator, abandon, claims, finalizer};
use crate::unmet;

mod words;

/// A ledger row at least this often while a machine runs.
const CHARGE: SignedDuration = SignedDuration::from_secs(300);

/// Between two looks at something that takes time.
const SOON: SignedDuration = SignedDuration::from_secs(2);

/// Between two looks at a machine that comes up, where its bill begins once it runs: nobody but we will
/// have seen when that was.
const COMES_UP: SignedDuration = SignedDuration::from_secs(1);

/// Of a command whose owner is not known any more.
const LONGEST_GRACE: Duration = Duration::from_secs(600);

/// Longest time between two looks at a machine that may be ending by itself, whatever its provider answers.
const MISSED_WITHIN: Duration = Duration::from_secs(10);

/// One pass over one claim.
pub async fn reconcile(operator: &Operator, name: &Name) -> Result<Again, Error> {
    let Some(object) = operator.table.get(&name.0, &name.1) else {
        operator.agents.forget(name);
        operator.suspects.remove(name);
        operator.placement.lane().held(name);
        return Ok(Again::OnChange);
    };
    let stored = claims::read(&object)?;
    if abandon::act(operator, &object, &stored).await? {
        return Ok(Again::OnChange);
    }
    let planned = stored.claim.phase == Phase::Planned && !stored.deleting;
    if planned && let Some(wait) = stands_back(operator, &stored, name) {
        return Ok(Again::After(wait));
    }
    let seller = &stored.claim.spec.offer.provider;
    let Some(provider) = operator.providers.get(seller).and_then(|known| known.provider.ok())
    else {
        tracing::warn!(claim = %name.1, provider = %seller, "its provider cannot be asked");
        words::not_gone_yet(operator, &object, &stored).await?;
        return Ok(Again::Backoff);
    };
    let owner = owner(operator, &stored).await?;
    if owner.is_none() {
        words::orphaned(operator, &stored).await?;
    }
    // Accident: a job went after its claim was written and before it was held.
    if owner.is_none() && !stored.deleting {
        operator.claims.delete(&stored).await?;
        operator.claim_changed(name);
        return Ok(Again::OnChange);
    }
    let pass = Pass { operator, provider: provider.as_ref(), owner: owner.as_ref(), name };
    let wanted = match pass.wanted(&stored) {
        Wanted::Yes if planned && provider.capabilities().rented => {
            match parting::hold(operator, seller) {
                Hold::Held => Wanted::Yes,
                Hold::Soon => {
                    operator.handle().provider_changed(seller);
                    return Ok(Again::After(SOON.unsigned_abs()));
                }
                Hold::Never => Wanted::No(Reason::ProviderUnavailable),
            }
        }
        wanted => wanted,
    };
    if planned && wanted == Wanted::Yes && owner.as_ref().is_some_and(|owner| !owner.is_held()) {
        return Ok(Again::After(SOON.unsigned_abs()));
    }
    // Refused for now: asked again when its time has come, whatever else wakes us.
    let now = operator.clock.now();
    if stored.claim.phase == Phase::Planned
        && wanted == Wanted::Yes
        && let Some(rest) = operator.providers.rests_for(&stored.claim.uid, now)
    {
        return Ok(Again::After(rest.unsigned_abs()));
    }
    match (&stored.claim.phase, wanted) {
        (Phase::Launched { instance, .. }, Wanted::Yes) => {
            let instance = InstanceId(instance.clone());
            pass.runs(stored, &instance).await
        }
        (Phase::Launched { .. }, Wanted::No(reason)) if pass.drains(reason) => {
            words::leaves(operator, &stored).await?;
            Ok(Again::After(SOON.unsigned_abs()))
        }
        _ => {
            let driven = pass.drive(stored.clone(), wanted).await;
            match &driven {
                Ok(Again::OnChange) => {}
                Ok(_) => words::not_gone_yet(operator, &object, &stored).await?,
                Err(_) => {
                    // Its provider may forget it with its end: then it is booked until it was missed.
                    operator.handle().look_at_claim_within(name, MISSED_WITHIN);
                    words::not_gone_yet(operator, &object, &stored).await?;
                }
            }
            driven
        }
    }
}

/// How long nothing is bought for a claim yet: its job is to be held first, so that it stays until its
/// machine is gone, and other claims may come first. Whoever it waits for wakes it; what a watch says
/// that is behind holds it back for a while alone.
fn stands_back(operator: &Operator, stored: &StoredClaim, name: &Name) -> Option<Duration> {
    let (decided_at, now) = (stored.claim.spec.decided_at, operator.clock.now());
    let lane = operator.placement.lane();
    let Some(left) = lane::left(decided_at, now) else {
        // Nobody else waits for its job's word any more.
        lane.held(name);
        return None;
    };
    lane.await_hold(name);
    if Owner::known(operator, stored).is_some_and(|owner| owner.is_to_be_held()) {
        return Some(left);
    }
    lane.held(name);
    lane.stand_back(Who::Claim(name.clone()), decided_at, now)
}

/// Whoever asked for a claim, as the API server has it now if it is about to be bought for.
async fn owner(operator: &Operator, stored: &StoredClaim) -> Result<Option<Owner>, Error> {
    if matches!(stored.claim.phase, Phase::Launched { .. })
        && let Some(known) = Owner::known(operator, stored)
    {
        return Ok(Some(known));
    }
    // Money is not spent on what a cache says; nor is a machine ended because a watch is behind.
    Owner::read(operator, stored).await
}

/// What one pass over one claim looks at.
struct Pass<'a> {
    operator: &'a Operator,
    provider: &'a dyn Provider,
    owner: Option<&'a Owner>,
    name: &'a Name,
}

impl Pass<'_> {
    fn wanted(&self, stored: &StoredClaim) -> Wanted {
        let launched = matches!(stored.claim.phase, Phase::Launched { .. });
        let run = self.operator.agents.run(self.name).filter(|_| launched);
        if run.is_some_and(|run| run.lacks().is_some()) {
            // Whoever wants another machine in its place finds that class left alone.
            let now = self.operator.clock.now();
            if self.operator.providers.leave_class_alone(stored, now) {
                self.operator.handle().provider_changed(self.provider.name());
            }
            return Wanted::No(Reason::AcceleratorProbeFailed);
        }
        let Some(owner) = self.owner else { return Wanted::No(Reason::OwnerGone) };
        if stored.deleting || !owner.wants(stored) {
            let leaves = self.operator.placement.moves().why(&stored.claim.uid);
            return Wanted::No(leaves.unwrap_or_else(|| owner.unwanted_because(stored)));
        }
        let Phase::Launched { at, .. } = &stored.claim.phase else {
            return Wanted::Yes;
        };
        let waited = self.operator.clock.now().duration_since(*at);
        let patience = self.provider.capabilities().launch_timeout;
        let patience = SignedDuration::try_from(patience).unwrap_or(SignedDuration::MAX);
        if stored.agent_key.is_none() && waited > patience {
            return Wanted::No(self.unmet(stored));
        }
        Wanted::Yes
    }

    /// Whether the command is still being given time to save what it has.
    fn drains(&self, why: Reason) -> bool {
        // A budget that terminates gives no time: it is spent.
        let ended = self.owner.and_then(|owner| self.operator.stop_of(&owner.counted()));
        if why == Reason::BudgetExceeded || ended.is_some_and(|s| s.how == Stopped::Terminated) {
            return false;
        }
        let grace = self.owner.map_or(Duration::ZERO, Owner::grace);
        self.operator.agents.drains(self.name, grace)
    }

    /// A machine that is wanted and there: its agent is met, its cost booked.
    async fn runs(&self, mut stored: StoredClaim, instance: &InstanceId) -> Result<Again, Error> {
        let operator = self.operator;
        // The sweep saw no such machine, or its agent is silent: the protocol looks for itself.
        if operator.suspects.remove(self.name) {
            // It may be there and over: a stopped pod stays listed until it is ended.
            let seen = self.provider.get(instance).await.ok().flatten();
            let tells = |seen: &Instance| seen.state.may_bill() || unmet::is_over(&stored, seen);
            let wanted = match self.hopeless(&stored, seen.as_ref().filter(|seen| tells(seen))) {
                Some(reason) => Wanted::No(reason),
                None => Wanted::Yes,
            };
            return self.drive(stored, wanted).await;
        }
        if words::is_taken(operator, &stored, self.name).await? {
            return Ok(Again::After(SOON.unsigned_abs()));
        }
        let mut soon = SOON;
        let way = match (&stored.endpoint, &stored.agent_key) {
            (Some(endpoint), _) => Some(Way::Dial(endpoint.clone())),
            (None, Some(_)) => Some(Way::Called),
            (None, None) => {
                let seen = self.provider.get(instance).await.map_err(ActError::from)?;
                if seen.as_ref().is_none_or(|i| !i.state.may_bill()) {
                    operator.suspects.insert(self.name.clone());
                }
                if let Some(reason) = self.hopeless(&stored, seen.as_ref()) {
                    return self.drive(stored, Wanted::No(reason)).await;
                }
                if seen.as_ref().is_some_and(|i| i.state == InstanceState::Pending) {
                    soon = self.comes_up();
                }
                let actor = operator.actor(&stored.claim.spec.owner, self.provider, None);
                stored = actor.note_running(stored, seen.as_ref()).await?;
                let runs = seen.as_ref().is_some_and(|i| i.state == InstanceState::Running);
                let calls = runs && operator.call_at(&stored.claim.spec).is_some();
                let endpoint = seen.and_then(|i| i.endpoint).map(Way::Dial);
                endpoint.or(calls.then_some(Way::Called))
            }
        };
        let Some(way) = way else {
            return Ok(Again::After(soon.unsigned_abs()));
        };
        let met = self.owner.is_none_or(|owner| {
            operator
                .agents
                .meet(self.name, &stored, way, || owner.task(operator, self.provider, &stored))
        });
        if !met {
            return Ok(Again::After(soon.unsigned_abs()));
        }
        let enrolled = stored.agent_key.is_some();
        let charged = operator.book.charged_until(&stored.claim.uid).or(stored.billed_from);
        let now = operator.clock.now();
        let hour = Period::Hourly.around(now);
        // Every period begins with an hour: a row ends there, so that each period has its own.
        if charged.is_some_and(|at| at < hour.start) {
            let actor = operator.actor(&stored.claim.spec.owner, self.provider, None);
            actor.book_until(&stored, hour.start).await?;
            operator.book.refresh(&operator.ledger, &stored.claim).await?;
            operator.handle().money_moved(&stored.claim.spec.owner.namespace);
        }
        let charged = operator.book.charged_until(&stored.claim.uid).or(stored.billed_from);
        if charged.is_none_or(|at| now.duration_since(at) >= CHARGE) {
            let owner = stored.claim.spec.owner.clone();
            let stored = operator.actor(&owner, self.provider, None).charge(stored).await?;
            operator.book.refresh(&operator.ledger, &stored.claim).await?;
        }
        let wait = if enrolled { CHARGE.min(hour.end.duration_since(now)) } else { soon };
        Ok(Again::After(Duration::try_from(wait).unwrap_or(Duration::ZERO)))
    }

    /// When to look again at a machine that comes up.
    fn comes_up(&self) -> SignedDuration {
        match self.provider.capabilities().billing.begins {
            Begins::Running => COMES_UP,
            Begins::Bought => SOON,
        }
    }

    /// Nobody was met on its machine, and nobody will be: why it ends. Its offer is left alone.
    fn unmet(&self, stored: &StoredClaim) -> Reason {
        if self.operator.providers.leave_unmet_alone(stored, self.operator.clock.now()) {
            tracing::warn!(claim = %self.name.1, "its agent was not met");
        }
        Reason::LaunchTimedOut
    }

    /// Why a machine that does not come up never will, once it had its time. Its offer is left alone.
    fn hopeless(&self, stored: &StoredClaim, seen: Option<&Instance>) -> Option<Reason> {
        let seen = seen?;
        if unmet::is_over(stored, seen) {
            return Some(self.unmet(stored));
        }
        let trouble = seen.trouble.as_ref()?;
        let Phase::Launched { at, .. } = &stored.claim.phase else { return None };
        let now = self.operator.clock.now();
        if now.duration_since(*at) < act::patience(trouble.reason) {
            return None;
        }
        tracing::warn!(claim = %self.name.1, reason = %trouble.reason, "{}", trouble.message);
        let until = now.saturating_add(CHARGE).unwrap_or(jiff::Timestamp::MAX);
        let offer = &stored.claim.spec.offer.id;
        self.operator.providers.leave_alone(offer, until, trouble.reason);
        Some(trouble.reason)
    }

    /// What there is to tell of a claim that is let go now: once, for it has a finalizer only once.
    fn last_words(&self, stored: &StoredClaim) -> Option<(ComputeClaim, Event)> {
        let object = self.operator.table.get(&self.name.0, &self.name.1)?;
        let instance = object.status.as_ref()?.provider_id.clone()?;
        let spent = self.operator.book.of_claim(stored, self.operator.clock.now());
        let note = format!("{instance} is gone; it cost {spent} $");
        let event = Event::happened(Happened::InstanceTerminated, note);
        finalizer::is_held(&object).then_some((object, event))
    }

    async fn drive(&self, stored: StoredClaim, wanted: Wanted) -> Result<Again, Error> {
        let operator = self.operator;
        let machine = self.owner.map(|owner| owner.machine(operator, &stored));
        let work = machine.as_ref().map(Work::Machine);
        let owner = stored.claim.spec.owner.clone();
        let offer = stored.claim.spec.offer.id.clone();
        let uid = stored.claim.uid.clone();
        let grace = self.owner.map_or(LONGEST_GRACE, Owner::grace);
        let actor = Actor {
            heard: operator.agents.heard(self.name),
            grace: SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX),
            ..operator.actor(&owner, self.provider, work)
        };
        let (driven, refusal) = actor.drive(stored, wanted).await?;
        if let Some(error) = refusal {
            let now = operator.clock.now();
            let in_future = |wait| {
                let wait = SignedDuration::try_from(wait).unwrap_or(CHARGE);
                now.saturating_add(wait).unwrap_or(jiff::Timestamp::MAX)
            };
            if let Some(wait) = act::left_alone_for(&error) {
                operator.providers.leave_alone(&offer, in_future(wait), error.reason());
            }
            if let Some(wait) = act::shut_for(&error) {
                let seller = self.provider.name();
                operator.providers.leave_all_alone(seller, in_future(wait), error.reason());
            }
            if let Some(wait) = act::rest(&error) {
                operator.providers.rest(&uid, in_future(wait), now);
            }
        }
        operator.owner_changed(&owner);
        match driven {
            Driven::Steady(stored) if stored.agent_key.is_none() => {
                Ok(Again::After(self.comes_up().unsigned_abs()))
            }
            Driven::Steady(_) | Driven::Waiting(..) => Ok(Again::After(SOON.unsigned_abs())),
            Driven::Gone => Ok(Again::OnChange),
            Driven::Over(stored, _) => {
                operator.book.refresh(&operator.ledger, &stored.claim).await?;
                let told = self.last_words(&stored);
                operator.claims.release(&stored).await?;
                if let Some((object, event)) = told {
                    operator.events.tell(&object, [event]);
                }
                operator.agents.forget(self.name);
                operator.owner_changed(&owner);
                operator.handle().provider_changed(self.provider.name());
                // Its slot, quota and reservation are free.
                operator.placement.ask();
                Ok(Again::OnChange)
            }
        }
    }
}
