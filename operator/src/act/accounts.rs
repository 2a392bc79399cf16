//! What a claim's machines cost: its ledger brought up to now, and ledgers of their own for machines beside
//! it and machines of nobody.

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::ledger::{Row, beside};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::{
    Instance, InstanceId, InstanceState, Listing, Provider, ProviderError, Used, Waste,
};

use super::{ActError, Actor, own};
use crate::agents;
use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::ledger::{self, Ledger, Open};

/// A claim that was booked longer ago than this was watched by nobody meanwhile.
const UNWATCHED: SignedDuration = SignedDuration::from_mins(10);

/// How long an agent keeps its machine without a word from us, and how long ending it takes.
const LEASE: SignedDuration = SignedDuration::from_secs(agents::LEASE.as_secs().cast_signed());
const SHUTDOWN: SignedDuration = SignedDuration::from_mins(2);

/// What its command may have been given to end by itself, where nobody knows it any more.
const GRACE: SignedDuration = SignedDuration::from_mins(10);

impl Actor<'_> {
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

    pub(super) async fn account(
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
        outlived(booked, self.heard, self.grace)
    }

    /// A machine that the claim has beside its own, or after it was given up for lost.
    pub(super) async fn surplus(
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
    pub(super) async fn account_surplus(
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
    pub(super) async fn account_waste(
        &self,
        stored: &StoredClaim,
        waste: &Waste,
    ) -> Result<(), ActError> {
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
}

/// See [`Actor::outlived`].
fn outlived(booked: Timestamp, heard: Option<Timestamp>, grace: SignedDuration) -> Timestamp {
    let heard = heard.unwrap_or_else(|| booked.saturating_add(UNWATCHED).unwrap_or(booked));
    let alone = LEASE.saturating_add(grace).saturating_add(SHUTDOWN);
    heard.saturating_add(alone).unwrap_or(Timestamp::MAX)
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

/// What ending a machine of nobody left in the ledger.
#[derive(Debug, Default)]
pub struct Booked {
    /// Rows that were written.
    pub rows: Vec<Row>,
    /// Why the last one was not.
    pub unwritten: Option<ledger::Error>,
}

/// Ends a machine that no claim wants. What it has cost is booked before, for a provider may forget it
/// with its end, and closed after. A ledger that cannot be written keeps no machine alive: that would
/// cost more than the row. `surplus`: its claim is there, and has another one.
///
/// # Errors
/// The provider does not end it.
pub async fn end_orphan(
    ledger: Option<&Ledger>,
    provider: &dyn Provider,
    machine: &Instance,
    clock: &Clock,
    surplus: bool,
) -> Result<Booked, ProviderError> {
    let mut booked = Booked::default();
    for over in [false, true] {
        if over {
            provider.terminate(&machine.id).await?;
        }
        let Some(ledger) = ledger else { continue };
        let row = book_orphan(ledger, provider, machine, clock.now(), surplus, over).await;
        booked.unwritten = row.map(|row| booked.rows.extend(row)).err();
    }
    if let Some(error) = &booked.unwritten {
        tracing::error!(machine = %machine.id, %error, "ended, and its last row is not written");
    }
    Ok(booked)
}

/// Books what a machine that no claim wants had cost by then, where that is known; its last row, if
/// it is over. `surplus`: its claim is there, and has another one.
///
/// # Errors
/// The ledger refuses.
pub async fn book_orphan(
    ledger: &Ledger,
    provider: &dyn Provider,
    machine: &Instance,
    until: Timestamp,
    surplus: bool,
    over: bool,
) -> Result<Option<Row>, ledger::Error> {
    let (Some(identity), Some(began), Some(offer)) =
        (&machine.identity, machine.started, &machine.offer)
    else {
        return Ok(None);
    };
    let id = machine.id.0.as_str();
    let Some(mut rows) = ledger.of_orphan(identity, id, offer.clone(), began, surplus).await?
    else {
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
    if over {
        return ledger.close_orphan(&rows, until, billed).await;
    }
    let known = rows.rows.len();
    ledger.bring_up(&mut rows, until, billed, false).await?;
    Ok(rows.rows.drain(known..).next())
}

/// Whether an account that is open belongs to nobody any more: by a provider's complete list its machine
/// does not bill, and afterwards its claim is not there. Whoever dies between a machine's end and its last
/// row leaves one, where somebody removed the claim by force.
pub enum Kept {
    /// Its claim or its machine will close it.
    Yes,
    /// Nobody will. The list may still say when its machine ended.
    No {
        /// When that was.
        ended: Option<Timestamp>,
    },
}

/// See [`Kept`].
///
/// # Errors
/// The claims cannot be read, which proves nothing.
pub async fn kept(
    claims: &dyn Claims,
    listing: &Listing,
    open: &Open,
) -> Result<Kept, ClaimsError> {
    let its = |machine: &&Instance| {
        let identity = machine.identity.as_ref();
        machine.id.0 == open.instance || identity.is_some_and(|i| i.claim_uid == open.claim_uid())
    };
    let machines = || listing.instances.iter().filter(its);
    if !listing.complete || machines().any(|machine| machine.state.may_bill()) {
        return Ok(Kept::Yes);
    }
    match claims.get(&open.namespace, &open.claim).await {
        Ok(Some(stored)) if stored.claim.uid == open.claim_uid() => Ok(Kept::Yes),
        // It is there, whatever it says.
        Err(ClaimsError::Damaged { .. }) => Ok(Kept::Yes),
        Ok(_) => {
            let own = machines().find(|machine| machine.id.0 == open.instance);
            Ok(Kept::No { ended: own.and_then(|machine| machine.ended) })
        }
        Err(error) => Err(error),
    }
}

/// Closes an account of [nobody](Kept::No): as of its machine's end, where that is known; else as of when it
/// was missed, though not later than its agent's lease must have ended it. Returns all its rows: somebody
/// else may have closed it.
///
/// # Errors
/// The ledger refuses.
pub async fn close_of_nobody(
    ledger: &Ledger,
    provider: &dyn Provider,
    open: &Open,
    ended: Option<Timestamp>,
    missed: Timestamp,
) -> Result<Vec<Row>, ledger::Error> {
    if let Some(rows) = ledger.of_nobody(&open.uid).await? {
        let until = ended.unwrap_or_else(|| missed.min(outlived(open.until, None, GRACE)));
        let used = Used {
            instance: &InstanceId(open.instance.clone()),
            offer: &rows.spec.offer,
            from: rows.began,
            running: None,
            until: until.max(open.until),
            taken: false,
            over: false,
        };
        let billed = billed_or_decided(provider, used).await;
        match ledger.close_orphan(&rows, until, billed).await {
            // An audit beside us.
            Ok(_) | Err(ledger::Error::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    ledger.since(&open.uid, 0).await
}

pub(super) fn with_spent(stored: &StoredClaim, spent: Usd) -> StoredClaim {
    let mut new = stored.clone();
    new.claim.spent = spent;
    new
}
