//! The sweep, in both directions: claims that nobody works for, and instances of this
//! installation that no claim wants. The provider is listed first, then each claim is
//! read; what is missing from an incomplete listing is not gone.

use std::path::Path;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::money::Usd;

use crate::act::accounts::{self, Kept};
use crate::claims::{Claims, ClaimsError};
use crate::cluster::sweep::grace;
use crate::embedded::claims::FileClaims;
use crate::embedded::config::Config;
use crate::embedded::home::{Home, HomeError};
use crate::embedded::job::Folder;
use crate::embedded::observe::Providers;
use crate::embedded::operate;
use crate::ledger::{self, Ledger};
use petaflop_providers::{EnrolmentToken, Listing, Provider, ProviderError, host};

/// Younger instances may belong to a launch that is being written down.
const GRACE: SignedDuration = SignedDuration::from_secs(10);

/// What was found and set right.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Jobs and services whose operator was started again.
    pub restarted: Vec<String>,
    /// Instances without a claim that were told to end.
    pub orphans: Vec<String>,
    /// Instances without a claim that were left alone, being suspiciously many.
    pub spared: Vec<String>,
    /// Instances without a claim that could not be ended, and why.
    pub stuck: Vec<String>,
    /// Instances that ended without a claim, with the last row they got.
    pub booked: Vec<(String, Usd)>,
    /// Accounts that had neither a claim nor a machine, and were closed.
    pub closed: Vec<String>,
}

/// Whether most of what runs may be ended at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mass {
    /// No: claims that vanish in numbers are more likely a lost folder than lost machines.
    Refused,
    /// Yes: a person has looked.
    Allowed,
}

impl Swept {
    /// What a person should hear of it.
    pub fn lines(&self) -> Vec<String> {
        let Self { restarted, orphans, spared, stuck, booked, closed } = self;
        let mut lines = Vec::new();
        for name in restarted {
            lines.push(format!("{name}: nobody worked for it; its operator was started again"));
        }
        for id in orphans {
            lines.push(format!("{id}: no claim wants it; it was told to end"));
        }
        for machine in stuck {
            lines.push(format!("{machine}; no claim wants it, and it goes on: it is tried again"));
        }
        for (id, amount) in booked {
            lines.push(format!("{id}: ended without a claim; {amount} $ more are in the ledger"));
        }
        for uid in closed {
            lines
                .push(format!("account {uid}: neither its claim nor its machine is there; closed"));
        }
        if !spared.is_empty() {
            lines.push(format!(
                "no claim wants these {}, which is more than half of what runs, so they were left alone: {}; is the claims folder whole? To end them: petaflop stop --unclaimed",
                spared.len(),
                spared.join(", ")
            ));
        }
        lines
    }
}

/// More than three, and more than half of what is known.
fn too_many(unclaimed: usize, known: usize) -> bool {
    unclaimed > 3 && unclaimed * 2 > known
}

/// Why the sweep could not be done.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The home refuses.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The provider does not answer.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The claims refuse.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The ledger refuses.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
}

/// Sets right what crashes left behind.
pub async fn sweep(home: &Home, runtime: &Path, mass: Mass) -> Result<Swept, SweepError> {
    let providers = Providers::of(home, &Config::read(home)?, runtime.to_owned())?;
    let claims = FileClaims::of(home);
    let ledger = home.ledger()?;
    let clock = Clock::system();
    let mut swept = Swept::default();
    for provider in providers.sellers() {
        match unclaimed(home, &claims, &ledger, provider, &clock, mass, &mut swept).await {
            // Who is elsewhere may be out of reach; what is here is set right all the same.
            Err(SweepError::Provider(error)) if provider.name() != host::NAME => {
                tracing::warn!(%error, "not swept");
            }
            result => result?,
        }
    }
    for stored in claims.list().await? {
        let owner = &stored.claim.spec.owner;
        let folder = Folder::of(home, owner.kind, &owner.namespace, &owner.name);
        let known = folder.admission()?.is_some_and(|admission| admission.uid == owner.uid);
        if known {
            if !folder.is_operated() {
                operate::start(home, &folder)?;
                swept.restarted.push(folder.reference());
            }
            continue;
        }
        // Its object is gone or another: nobody will ever want it.
        let provider = providers.seller(&stored.claim.spec.offer.provider);
        let actor = crate::act::Actor {
            installation: home.installation(),
            claims: &claims,
            ledger: &ledger,
            beside: &|_| {},
            budgets: None,
            provider,
            work: None,
            token: &|_| EnrolmentToken::unused(),
            leads: &|| true,
            heard: None,
            grace: SignedDuration::from_mins(10),
            clock: &clock,
        };
        let reason = match &stored.claim.phase {
            ClaimPhase::Ending { reason, .. } => *reason,
            _ => petaflop_arbiter::reason::Reason::Suspended,
        };
        let wanted = petaflop_arbiter::launch::Wanted::No(reason);
        match actor.drive(stored, wanted).await {
            Ok((crate::act::Driven::Over(stored, _), _)) => claims.release(&stored).await?,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a claim without an owner"),
        }
    }
    Ok(swept)
}

/// Instances of this installation at one provider that no claim wants.
async fn unclaimed(
    home: &Home,
    claims: &FileClaims,
    ledger: &Ledger,
    provider: &dyn Provider,
    clock: &Clock,
    mass: Mass,
    swept: &mut Swept,
) -> Result<(), SweepError> {
    let listing = provider.list(home.installation()).await?;
    let now = clock.now();
    let known = listing.instances.iter().filter(|i| i.state.may_bill()).count();
    let mut unclaimed = Vec::new();
    for instance in &listing.instances {
        let Some(identity) = &instance.identity else {
            continue;
        };
        let claim = claims.get(&identity.namespace, &identity.claim).await?;
        if claim.is_some_and(|stored| stored.claim.uid == identity.claim_uid) {
            continue;
        }
        if instance.state.may_bill() {
            unclaimed.push(instance);
            continue;
        }
        // Gone, and its claim with it: either its ledger was closed before, or it is now.
        if let Some(ended) = instance.ended
            && let Some(row) =
                accounts::book_orphan(ledger, provider, instance, ended, false, true).await?
        {
            swept.booked.push((instance.id.to_string(), row.amount));
        }
    }
    swept.closed.extend(close_accounts(claims, ledger, provider, &listing, now).await?);
    // The young ones count here too, or the rest could be ended one small sweep at a time.
    if too_many(unclaimed.len(), known) && mass == Mass::Refused {
        swept.spared = unclaimed.iter().map(|instance| instance.id.to_string()).collect();
    } else {
        let old = |at: Timestamp| now.duration_since(at) >= GRACE;
        for instance in unclaimed.into_iter().filter(|i| i.started.is_some_and(old)) {
            let id = instance.id.to_string();
            match accounts::end_orphan(Some(ledger), provider, instance, clock, false).await {
                Ok(_) => swept.orphans.push(id),
                // The others do not wait for it.
                Err(error) => swept.stuck.push(format!("{id}: {error}")),
            }
        }
    }
    Ok(())
}

/// Closes the accounts that have neither a claim nor a machine. What is here is listed with its end, and
/// closed by that.
async fn close_accounts(
    claims: &dyn Claims,
    ledger: &Ledger,
    provider: &dyn Provider,
    listing: &Listing,
    now: Timestamp,
) -> Result<Vec<String>, SweepError> {
    let mut closed = Vec::new();
    if !provider.capabilities().rented {
        return Ok(closed);
    }
    for open in ledger.open_at(provider.name()).await? {
        let Kept::No { ended } = accounts::kept(claims, listing, &open).await? else { continue };
        // Booked so lately that a list may lag behind.
        let is_young = now.duration_since(open.until) < grace(provider);
        if ended.is_some() || !is_young {
            accounts::close_of_nobody(ledger, provider, &open, ended, now).await?;
            closed.push(open.uid);
        }
    }
    Ok(closed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_what_runs_is_not_ended_at_once() {
        for (unclaimed, known, refused) in [
            (0, 0, false),
            (3, 3, false),
            (4, 4, true),
            (4, 7, true),
            (4, 8, false),
            (9, 100, false),
        ] {
            assert_eq!(too_many(unclaimed, known), refused, "{unclaimed} of {known}");
        }
    }
}
