//! Act: one claim, driven through the arbiter's protocol. Every step that the pure
//! [`next_step`] asks for is done here, written down as it says, and asked again. What its machines
//! cost is in [`accounts`].

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{FrozenRequest, Identity, Phase, Refusal};
use petaflop_arbiter::launch::{
    LaunchAnswer, Listing, Observation, ReadBack, Step, Wanted, next_step,
};
use petaflop_arbiter::ledger::Row;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::{
    EnrolmentToken, Instance, InstanceId, LaunchError, Order, Provider, ProviderError, Retry, Work,
};

use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::ledger::{self, Ledger};

pub mod accounts;

use accounts::with_spent;

/// Steps of one drive; a claim that needs more is looked at again in the next.
const MOST_STEPS: u32 = 64;

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
        Reason::InvalidSpec | Reason::SpotInterrupted | Reason::LaunchTimedOut => 0,
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
