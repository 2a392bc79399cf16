//! Act: one claim, driven through the arbiter's protocol. Every step that the pure
//! [`next_step`] asks for is done here, written down as it says, and asked again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{FrozenRequest, Identity, Phase, Refusal};
use petaflop_arbiter::launch::{
    LaunchAnswer, Listing, Observation, ReadBack, Step, Wanted, next_step,
};
use petaflop_arbiter::ledger::{Row, beside};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::{
    EnrolmentToken, Instance, InstanceId, InstanceState, LaunchError, Order, Provider,
    ProviderError, Retry, Used, Waste, Work,
};

use crate::agents;
use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::ledger::{self, Ledger};

/// Steps of one drive; a claim that needs more is looked at again in the next.
const MOST_STEPS: u32 = 64;

/// A claim that was booked longer ago than this was watched by nobody meanwhile.
const UNWATCHED: SignedDuration = SignedDuration::from_mins(10);

/// How long an agent keeps its machine without a word from us, and how long ending it takes.
const LEASE: SignedDuration = SignedDuration::from_secs(agents::LEASE.as_secs().cast_signed());
const SHUTDOWN: SignedDuration = SignedDuration::from_mins(2);

/// Why a claim could not be driven on.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The store of claims refuses.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The ledger refuses.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The provider does not answer.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// Where a claim stands after it was driven as far as it goes now.
#[derive(Clone, Debug, PartialEq)]
pub enum Driven {
    /// All is as it should be.
    Steady(StoredClaim),
    /// Something takes time.
    Waiting(StoredClaim, Reason),
    /// It is over, for this reason, and its last row is written.
    Over(StoredClaim, Reason),
    /// It is not ours to act on.
    Gone,
}

/// What claims are driven with.
pub struct Actor<'a> {
    /// Uid of the installation, which machines carry.
    pub installation: &'a str,
    /// Where claims are stored.
    pub claims: &'a dyn Claims,
    /// Where money is booked.
    pub ledger: &'a Ledger,
    /// Hears of rows that are written beside the claim's own: of a surplus machine, or one that was
    /// given back. It may hear of one more than once.
    pub beside: &'a (dyn Fn(&Row) + Send + Sync),
    /// Names of the budgets that it counts under; `None` where its owner is not known any more.
    pub budgets: Option<Vec<String>>,
    /// Who sells the claim's offer.
    pub provider: &'a dyn Provider,
    /// What the machine is to do; `None` where nobody wants one any more.
    pub work: Option<Work<'a>>,
    /// The one secret of a launch: the same for the same claim and attempt.
    pub token: &'a (dyn Fn(&Identity) -> EnrolmentToken + Send + Sync),
    /// Whether this process may still act: false once another leads.
    pub leads: &'a (dyn Fn() -> bool + Send + Sync),
    /// When the agent of the claim's machine was heard last, as far as this process knows.
    pub heard: Option<Timestamp>,
    /// What its command is given to end by itself.
    pub grace: SignedDuration,
    /// Tells the time.
    pub clock: &'a Clock,
}

impl Actor<'_> {
    /// Drives a claim as far as it goes now. The second value is what a refused launch said: before
    /// its time has passed the claim is not to be driven again, or it is refused for ever.
    pub async fn drive(
        &self,
        mut stored: StoredClaim,
        wanted: Wanted,
    ) -> Result<(Driven, Option<LaunchError>), ActError> {
        let safety = self.provider.capabilities().launch_safety;
        let mut seen = Observation::new(self.clock.now(), wanted);
        let mut refusal = None;
        if matches!(stored.claim.phase, Phase::Launched { .. }) {
            seen.looked(self.look(&stored).await);
        }
        for _ in 0..MOST_STEPS {
            match next_step(&stored.claim, safety, &seen) {
                Step::ReadBack => {
                    let spec = &stored.claim.spec;
                    match self.claims.get(&spec.owner.namespace, &spec.name).await? {
                        Some(now) if now.claim.uid == stored.claim.uid && (self.leads)() => {
                            seen.read = match now.deleting {
                                true => ReadBack::Deleting,
                                false => ReadBack::Ours,
                            };
                            stored = now;
                        }
                        _ => seen.read = ReadBack::NotOurs,
                    }
                }
                Step::Look { after_millis } => {
                    let pause = Duration::from_millis(after_millis.unsigned_abs());
                    if !pause.is_zero() {
                        self.clock.sleep(pause).await;
                    }
                    seen.now = self.clock.now();
                    seen.looked(self.look(&stored).await);
                }
                Step::WriteAttempt { request } => {
                    let request = match request {
                        Some(request) => request,
                        None => match self.prepare(&stored).await {
                            Ok(request) => request,
                            // Nothing was asked for, so there is nothing to look for either.
                            Err(error) => {
                                let reason = error.reason();
                                refusal = Some(error);
                                let phase = Phase::Ending { instance: None, reason };
                                match self.write(&stored, phase, stored.claim.attempt).await? {
                                    Some(written) => stored = written,
                                    None => return Ok((Driven::Gone, refusal)),
                                }
                                seen = Observation::new(self.clock.now(), wanted);
                                continue;
                            }
                        },
                    };
                    let phase = Phase::Attempted { request, at: self.clock.now() };
                    let written = self.write(&stored, phase, stored.claim.attempt).await?;
                    seen = Observation::new(self.clock.now(), wanted);
                    // Another process wrote first: only the winner of the swap may call.
                    if let Some(written) = written {
                        seen.fresh_attempt = true;
                        stored = written;
                    }
                }
                // The lease was held when the attempt was written; writing took time.
                Step::Launch { .. } if !(self.leads)() => return Ok((Driven::Gone, refusal)),
                Step::Launch { request } => {
                    let answer = self
                        .provider
                        .launch(&request, &(self.token)(&self.identity(&stored)))
                        .await;
                    seen.now = self.clock.now();
                    seen.answer = Some(match answer {
                        Ok(InstanceId(instance)) => LaunchAnswer::Accepted { instance },
                        Err(error) => {
                            tracing::warn!(%error, claim = %stored.claim.spec.name, "launch");
                            if let LaunchError::GivenBack { waste, .. } = &error {
                                self.account_waste(&stored, waste).await?;
                            }
                            let answer = error.answer();
                            refusal = Some(error);
                            answer
                        }
                    });
                }
                Step::Record { phase, attempt, note } => {
                    if let Some(reason) = note {
                        tracing::info!(claim = %stored.claim.spec.name, %reason, "{phase:?}");
                    }
                    let again = matches!(phase, Phase::Planned);
                    match self.write(&stored, phase, attempt).await? {
                        Some(written) => stored = written,
                        None => return Ok((Driven::Gone, refusal)),
                    }
                    // Refused, and worth repeating: in its time, not at once.
                    if again {
                        return Ok((
                            Driven::Waiting(stored, note.unwrap_or(Reason::Launching)),
                            refusal,
                        ));
                    }
                    seen = Observation::new(self.clock.now(), wanted);
                }
                Step::Terminate { instance } => {
                    let id = InstanceId(instance);
                    let surplus = self.surplus(&stored, &id).await?;
                    if let Some(surplus) = &surplus {
                        self.account_surplus(&stored, surplus, false).await?;
                    }
                    self.provider.terminate(&id).await?;
                    if let Some(surplus) = &surplus {
                        self.account_surplus(&stored, surplus, true).await?;
                    }
                    seen.terminate_sent = true;
                }
                Step::CloseLedger => {
                    let spent = self.account(&stored, None, true).await?;
                    // A claim that is being removed need not say what it cost: the ledger does.
                    if stored.deleting {
                        stored.claim.spent = spent;
                    } else {
                        let new = with_spent(&stored, spent);
                        match self.claims.replace(&stored, new).await? {
                            Some(written) => stored = written,
                            None => return Ok((Driven::Gone, refusal)),
                        }
                    }
                    seen.ledger_closed = true;
                }
                Step::WaitUntil { at: _, reason } => {
                    return Ok((Driven::Waiting(stored, reason), refusal));
                }
                Step::Leave => return Ok((Driven::Gone, refusal)),
                Step::Nothing => return Ok((Driven::Steady(stored), refusal)),
                Step::Release => {
                    let reason = match &stored.claim.phase {
                        Phase::Ended { reason } | Phase::Ending { reason, .. } => *reason,
                        _ => Reason::Succeeded,
                    };
                    return Ok((Driven::Over(stored, reason), refusal));
                }
            }
        }
        Ok((Driven::Waiting(stored, Reason::Launching), refusal))
    }

    /// Brings the claim's ledger up to now, and writes the sum into the claim.
    pub async fn charge(&self, stored: StoredClaim) -> Result<StoredClaim, ActError> {
        let spent = self.account(&stored, None, false).await?;
        if spent == stored.claim.spent {
            return Ok(stored);
        }
        let new = with_spent(&stored, spent);
        Ok(self.claims.replace(&stored, new).await?.unwrap_or(stored))
    }

    /// Brings the ledger of a claim that bills up to a time: a row ends there. The claim is not
    /// written.
    pub async fn book_until(&self, stored: &StoredClaim, until: Timestamp) -> Result<(), ActError> {
        self.account(stored, Some(until), false).await.map(drop)
    }

    /// The claim's instance, as the provider sees it.
    pub async fn instance(&self, stored: &StoredClaim) -> Result<Option<Instance>, ActError> {
        match own(stored) {
            Some(id) => Ok(self.provider.get(&id).await?),
            None => Ok(None),
        }
    }

    /// Writes down since when the claim's machine runs, once that was seen and as long as it is not
    /// written.
    pub async fn note_running(
        &self,
        stored: StoredClaim,
        seen: Option<&Instance>,
    ) -> Result<StoredClaim, ActError> {
        let since = seen.and_then(|instance| instance.running);
        if stored.running_from.is_some() || since.is_none() {
            return Ok(stored);
        }
        let new = StoredClaim { running_from: since, ..stored.clone() };
        Ok(self.claims.replace(&stored, new).await?.unwrap_or(stored))
    }

    async fn account(
        &self,
        stored: &StoredClaim,
        until: Option<Timestamp>,
        last: bool,
    ) -> Result<Usd, ActError> {
        let mut instance = match until.is_none() && (last || stored.billed_from.is_none()) {
            true => self.instance(stored).await?,
            false => None,
        };
        let began = stored.billed_from.or(instance.as_ref().and_then(|i| i.started));
        // No machine ever billed: there is no row to write.
        let (Some(began), Some(own)) = (began, own(stored)) else {
            return Ok(stored.claim.spent);
        };
        let claim = &stored.claim;
        let mut rows = self.ledger.claim(&claim.spec, &claim.uid, began).await?;
        rows.budgets.clone_from(&self.budgets);
        rows.instance.clone_from(&own.0);
        // A row in between goes to now, or to the full hour, whatever the provider would say; unless
        // nobody looked for so long that the machine may have ended meanwhile. Then its last row says
        // when.
        let booked = rows.rows.last().map_or(began, |row| row.to);
        if !last && self.clock.now().duration_since(booked) > UNWATCHED {
            instance = self.instance(stored).await?;
            if !instance.as_ref().is_some_and(|i| i.state.may_bill()) {
                return Ok(rows.total().map_err(ledger::Error::from)?);
            }
        }
        let ended = instance.as_ref().and_then(|i| i.ended);
        let until = until.or(ended).unwrap_or_else(|| match last && stored.agent_key.is_some() {
            true => self.clock.now().min(self.outlived(booked)),
            false => self.clock.now(),
        });
        let billed = self
            .provider
            .billed(Used {
                instance: &own,
                offer: &claim.spec.offer,
                from: began,
                running: stored.running_from,
                until,
                taken: instance.is_some_and(|i| was_taken(&i)),
                over: last,
            })
            .await?;
        let booked = self.ledger.bring_up(&mut rows, until, billed, last).await?;
        // A row in between may reach beyond an end that was noticed later, or hold what was free.
        match last {
            true => Ok(self.ledger.correct(&mut rows, billed).await?),
            false => Ok(booked),
        }
    }

    /// When a machine that is gone, and of which nobody says since when, must have ended by itself: its
    /// agent's lease goes by our last word, and a row that was written was written by one who could
    /// give it.
    fn outlived(&self, booked: Timestamp) -> Timestamp {
        let heard =
            self.heard.unwrap_or_else(|| booked.saturating_add(UNWATCHED).unwrap_or(booked));
        let alone = LEASE.saturating_add(self.grace).saturating_add(SHUTDOWN);
        heard.saturating_add(alone).unwrap_or(Timestamp::MAX)
    }

    /// A machine that the claim has beside its own, or after it was given up for lost.
    async fn surplus(
        &self,
        stored: &StoredClaim,
        id: &InstanceId,
    ) -> Result<Option<Instance>, ActError> {
        match own(stored).as_ref() == Some(id) {
            true => Ok(None),
            false => Ok(self.provider.get(id).await?),
        }
    }

    /// What a surplus machine cost, in a ledger of its own beside the claim's: once before it is
    /// ended, for a provider may forget it with its end, and once after.
    async fn account_surplus(
        &self,
        stored: &StoredClaim,
        surplus: &Instance,
        last: bool,
    ) -> Result<(), ActError> {
        let Some(began) = surplus.started else { return Ok(()) };
        let claim = &stored.claim;
        let uid = beside(&claim.uid, &surplus.id.0);
        let mut rows = self.ledger.claim(&claim.spec, &uid, began).await?;
        rows.instance.clone_from(&surplus.id.0);
        rows.budgets.clone_from(&self.budgets);
        let now = self.clock.now();
        let used = Used {
            instance: &surplus.id,
            offer: &claim.spec.offer,
            from: began,
            running: None,
            until: now,
            taken: false,
            over: last,
        };
        let billed = billed_or_decided(self.provider, used).await;
        self.ledger.bring_up(&mut rows, now, billed, last).await?;
        rows.rows.iter().for_each(self.beside);
        Ok(())
    }

    /// What a machine cost that was given back within the call that made it.
    async fn account_waste(&self, stored: &StoredClaim, waste: &Waste) -> Result<(), ActError> {
        let Waste { instance, price, from, to } = waste;
        let claim = &stored.claim;
        let mut spec = claim.spec.clone();
        spec.offer.price = *price;
        let uid = beside(&claim.uid, &instance.0);
        let mut rows = self.ledger.claim(&spec, &uid, *from).await?;
        rows.budgets.clone_from(&self.budgets);
        rows.instance.clone_from(&instance.0);
        let used = Used {
            instance,
            offer: &spec.offer,
            from: *from,
            running: None,
            until: *to,
            taken: false,
            over: true,
        };
        let billed = billed_or_decided(self.provider, used).await;
        self.ledger.bring_up(&mut rows, *to, billed, true).await?;
        rows.rows.iter().for_each(self.beside);
        Ok(())
    }

    async fn look(&self, stored: &StoredClaim) -> Listing {
        match self.provider.find(&self.identity(stored)).await {
            Ok(listing) if listing.complete => {
                let mut there: Vec<Instance> =
                    listing.instances.into_iter().filter(|i| i.state.may_bill()).collect();
                there.sort_by(|a, b| (a.started, &a.id).cmp(&(b.started, &b.id)));
                Listing::Complete(there.into_iter().map(|i| i.id.0).collect())
            }
            Ok(_) => Listing::Failed,
            Err(error) => {
                tracing::warn!(%error, reason = %error.reason(), "looking for an instance");
                Listing::Failed
            }
        }
    }

    async fn prepare(&self, stored: &StoredClaim) -> Result<FrozenRequest, LaunchError> {
        let identity = self.identity(stored);
        let Some(work) = self.work else {
            let detail = "whoever wanted it is gone".to_owned();
            return Err(LaunchError::Refused { kind: Refusal::Invalid, detail });
        };
        let order = Order { identity: &identity, offer: &stored.claim.spec.offer, work };
        self.provider.prepare(order).await
    }

    fn identity(&self, stored: &StoredClaim) -> Identity {
        stored.claim.identity(self.installation)
    }

    /// Writes phase and attempt by compare-and-swap; a machine that is there now begins to bill.
    async fn write(
        &self,
        stored: &StoredClaim,
        phase: Phase,
        attempt: u32,
    ) -> Result<Option<StoredClaim>, ActError> {
        let billed_from = match (&stored.billed_from, &phase) {
            (None, Phase::Launched { instance, at }) => {
                let seen = self.provider.get(&InstanceId(instance.clone())).await?;
                Some(seen.and_then(|i| i.started).unwrap_or(*at))
            }
            (known, _) => *known,
        };
        let mut new = stored.clone();
        new.billed_from = billed_from;
        new.claim.phase = phase;
        new.claim.attempt = attempt;
        Ok(self.claims.replace(stored, new).await?)
    }
}

/// The machine that a claim paid for, as its provider calls it.
fn own(stored: &StoredClaim) -> Option<InstanceId> {
    match &stored.claim.phase {
        Phase::Launched { instance, .. } | Phase::Ending { instance: Some(instance), .. } => {
            Some(InstanceId(instance.clone()))
        }
        _ => None,
    }
}

/// Whether it was taken away, and not ended by us or by itself.
fn was_taken(instance: &Instance) -> bool {
    let trouble = instance.trouble.as_ref().map(|trouble| trouble.reason);
    instance.state == InstanceState::Terminated && trouble == Some(Reason::SpotInterrupted)
}

/// What a provider bills for a machine; at the price that was decided on, where that cannot be had
/// now and nobody will ask again.
pub async fn billed_or_decided(provider: &dyn Provider, used: Used<'_>) -> Usd {
    match provider.billed(used).await {
        Ok(billed) => billed,
        Err(error) => {
            tracing::warn!(%error, instance = %used.instance, "booked as it was decided");
            used.at_its_price(provider.capabilities().billing)
        }
    }
}

/// Books what a machine that no claim wants had cost by then, where that is known: its last row.
/// `surplus`: its claim is there, and has another one.
///
/// # Errors
/// The ledger refuses.
pub async fn book_orphan(
    ledger: &Ledger,
    provider: &dyn Provider,
    machine: &Instance,
    until: Timestamp,
    surplus: bool,
) -> Result<Option<Row>, ledger::Error> {
    let (Some(identity), Some(began), Some(offer)) =
        (&machine.identity, machine.started, &machine.offer)
    else {
        return Ok(None);
    };
    let id = machine.id.0.as_str();
    let Some(rows) = ledger.of_orphan(identity, id, offer.clone(), began, surplus).await? else {
        return Ok(None);
    };
    let used = Used {
        instance: &machine.id,
        offer: &rows.spec.offer,
        from: rows.began,
        running: None,
        until,
        taken: was_taken(machine),
        over: false,
    };
    let billed = billed_or_decided(provider, used).await;
    ledger.close_orphan(&rows, until, billed).await
}

/// How long an offer is left alone after it refused.
pub fn left_alone_for(error: &LaunchError) -> Option<Duration> {
    match error.retry() {
        Retry::ElsewhereFor(wait) => Some(wait),
        Retry::After(_) | Retry::AfterChange => None,
    }
}

/// How long a machine in this trouble may still come up.
pub const fn patience(trouble: Reason) -> SignedDuration {
    SignedDuration::from_secs(match trouble {
        Reason::InsufficientCapacity => 30,
        Reason::ImagePullFailed => 180,
        Reason::InvalidSpec | Reason::SpotInterrupted => 0,
        _ => i64::MAX,
    })
}

/// How long all offers of a provider are left alone after it refused us, and not this one thing.
pub fn shut_for(error: &LaunchError) -> Option<Duration> {
    match error {
        LaunchError::Refused {
            kind: Refusal::Unauthorized | Refusal::BalanceTooLow | Refusal::Retired,
            ..
        } => Some(Duration::from_secs(600)),
        LaunchError::Refused { .. }
        | LaunchError::Later { .. }
        | LaunchError::GivenBack { .. }
        | LaunchError::Ambiguous { .. } => None,
    }
}

/// When a launch that was refused for now may be tried again.
pub fn rest(error: &LaunchError) -> Option<Duration> {
    match (error.answer(), error.retry()) {
        (LaunchAnswer::Refused(refusal), Retry::After(wait)) if refusal.is_worth_repeating() => {
            Some(wait)
        }
        _ => None,
    }
}

fn with_spent(stored: &StoredClaim, spent: Usd) -> StoredClaim {
    let mut new = stored.clone();
    new.claim.spent = spent;
    new
}
