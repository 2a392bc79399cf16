//! The two-way sweep: machines no claim wants, and claims whose machine is gone, or one of several.
//!
//! The provider is listed **first**, and only then is each machine's claim asked for, at the API
//! server itself: a claim made meanwhile is found. A machine is an orphan only if the server says
//! that its claim does not exist or is another; an error, a refusal or a partial list proves
//! nothing. Young machines are left alone for longer than a list may lag behind. An account in the ledger
//! that has neither is closed.

use std::collections::{HashMap, HashSet};
use std::iter;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::{Identity, Phase};
use petaflop_arbiter::reason::Reason;
use petaflop_providers::{Instance, InstanceId, Listing, Provider};

use crate::act::ActError;
use crate::act::accounts::{self, Kept};
use crate::claims::{Claims, ClaimsError};
use crate::cluster::error::Error;
use crate::cluster::events::{Event, Happened};
use crate::cluster::table::Name;
use crate::cluster::{Operator, book, listed};

/// Rounds after the start that come quickly.
pub const QUICK_ROUNDS: u32 = 20;
/// Between two quick rounds.
pub const QUICK: Duration = Duration::from_secs(10);
/// Between two rounds after that.
pub const SLOW: Duration = Duration::from_secs(120);

/// Machines that are ended at once without asking whether that can be meant.
const FEW: usize = 3;

/// What a round did at one provider.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    /// Machines that were ended.
    pub orphans: Vec<String>,
    /// Machines that were not, for they are too many to be believed.
    pub spared: Vec<String>,
    /// Machines that are to be ended, and accounts that are to be closed, and could not be, and why.
    pub stuck: Vec<String>,
    /// Accounts of machines that are gone that were closed, for their claims are gone too.
    pub closed: Vec<String>,
    /// Claims whose machine was not seen.
    pub missing: Vec<Name>,
    /// Claims with more than one machine: a launch that was given up for lost showed after all.
    pub doubled: Vec<Name>,
}

/// One round at one provider.
pub async fn round(operator: &Operator, provider: &dyn Provider) -> Result<Swept, Error> {
    let listing = provider.list(&operator.installation.uid).await.map_err(ActError::from)?;
    compare(operator, provider, &listing).await
}

/// What a provider listed, against the claims as they are afterwards.
pub async fn compare(
    operator: &Operator,
    provider: &dyn Provider,
    listing: &Listing,
) -> Result<Swept, Error> {
    let mut swept = Swept::default();
    orphans(operator, provider, listing, &mut swept).await?;
    // What is missing from a part of a list is not gone.
    if listing.complete {
        missing(operator, provider, listing, &mut swept);
        close_accounts(operator, provider, listing, &mut swept).await;
        listed::tell(operator, provider.name(), listing).await?;
    }
    Ok(swept)
}

async fn orphans(
    operator: &Operator,
    provider: &dyn Provider,
    listing: &Listing,
    swept: &mut Swept,
) -> Result<(), Error> {
    let installation = &operator.installation.uid;
    let unclaimed = unclaimed(&operator.claims, installation, provider, listing).await?;
    // The young ones count here too, or the rest could be ended one small sweep at a time.
    if too_many(&unclaimed, listing) {
        swept.spared = unclaimed.iter().map(|instance| instance.id.to_string()).collect();
        return Ok(());
    }
    let now = operator.clock.now();
    for instance in unclaimed {
        if !is_old(instance, provider, now) || !operator.leadership.leads() {
            continue;
        }
        let ledger = Some(&operator.ledger);
        let ended = accounts::end_orphan(ledger, provider, instance, &operator.clock, false).await;
        let booked = match ended {
            Ok(booked) => booked,
            // The others do not wait for it.
            Err(error) => {
                swept.stuck.push(format!("{}: {error}", instance.id));
                continue;
            }
        };
        operator.metrics.orphan_terminated(provider.name());
        swept.orphans.push(instance.id.to_string());
        booked.rows.iter().for_each(|row| operator.book.add(row));
        if let Some(object) = operator.provider_object(provider.name()) {
            let note = match &instance.identity {
                Some(Identity { namespace, claim, .. }) => {
                    format!("{} of claim {namespace}/{claim}, which is gone", instance.id)
                }
                None => format!(
                    "{} has our name and no identity; no claim knows it, and what it cost is not booked",
                    instance.id
                ),
            };
            operator.events.tell(&object, [Event::happened(Happened::OrphanTerminated, note)]);
        }
    }
    Ok(())
}

/// What a machine that may bill is to the claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// No claim wants it.
    Unclaimed,
    /// Its claim has another one.
    Surplus,
    /// Its claim has this one.
    Claimed,
}

/// Machines of an installation that may bill, and how each stands: its claim is asked for at the API
/// server itself.
///
/// # Errors
/// The server refuses or does not answer, which proves nothing about any machine.
pub async fn standings<'a>(
    claims: &dyn Claims,
    installation: &str,
    provider: &dyn Provider,
    listing: &'a Listing,
) -> Result<Vec<(&'a Instance, Standing)>, ClaimsError> {
    let (mut standings, mut nameless) = (Vec::new(), Vec::new());
    // Machines of each claim, the one that it says it has first, else the oldest.
    let mut claimed: HashMap<&str, Vec<(bool, &Instance)>> = HashMap::new();
    for instance in listing.instances.iter().filter(|instance| instance.state.may_bill()) {
        let Some(identity) = &instance.identity else {
            nameless.push(instance);
            continue;
        };
        // Lists are not trusted to hold only what was asked for.
        if identity.installation != installation {
            continue;
        }
        let recorded = match claims.get(&identity.namespace, &identity.claim).await {
            Ok(Some(stored)) if stored.claim.uid == identity.claim_uid => {
                says(&stored.claim.phase) == Some(instance.id.0.as_str())
            }
            // It is there, whatever it says.
            Err(ClaimsError::Damaged { .. }) => true,
            Ok(_) => {
                standings.push((instance, Standing::Unclaimed));
                continue;
            }
            Err(error) => return Err(error),
        };
        claimed.entry(&identity.claim_uid).or_default().push((recorded, instance));
    }
    for mut machines in claimed.into_values() {
        machines.sort_by_key(|(recorded, machine)| (!recorded, machine.started, &machine.id));
        let standing = iter::once(Standing::Claimed).chain(iter::repeat(Standing::Surplus));
        standings.extend(machines.into_iter().map(|(_, machine)| machine).zip(standing));
    }
    if !nameless.is_empty() {
        let known = known(claims, installation, provider).await?;
        standings.extend(nameless.into_iter().map(|machine| match &known {
            Some(known) if !known.contains(&machine.id) => (machine, Standing::Unclaimed),
            Some(_) | None => (machine, Standing::Claimed),
        }));
    }
    Ok(standings)
}

/// The machine that a claim says it has.
fn says(phase: &Phase) -> Option<&str> {
    match phase {
        Phase::Launched { instance, .. } => Some(instance),
        Phase::Ending { instance, .. } => instance.as_deref(),
        Phase::Planned
        | Phase::Attempted { .. }
        | Phase::Ambiguous { .. }
        | Phase::Ended { .. } => None,
    }
}

/// Those of [`standings`] that no claim wants.
///
/// # Errors
/// As there.
pub async fn unclaimed<'a>(
    claims: &dyn Claims,
    installation: &str,
    provider: &dyn Provider,
    listing: &'a Listing,
) -> Result<Vec<&'a Instance>, ClaimsError> {
    let all = standings(claims, installation, provider, listing).await?;
    let unclaimed = all.into_iter().filter(|(_, standing)| *standing == Standing::Unclaimed);
    Ok(unclaimed.map(|(machine, _)| machine).collect())
}

/// The machines that claims know, for those whose identity cannot be read and that the provider
/// counts as ours all the same, by a name that holds it: whoever changed their environment, or a
/// key that may not read it, must not make them cost money for ever. `None`: not all are known.
async fn known(
    claims: &dyn Claims,
    installation: &str,
    provider: &dyn Provider,
) -> Result<Option<HashSet<InstanceId>>, ClaimsError> {
    let mut known = HashSet::new();
    for stored in claims.list().await? {
        let claim = &stored.claim;
        if claim.spec.offer.provider != provider.name() {
            continue;
        }
        if let Some(instance) = says(&claim.phase) {
            known.insert(InstanceId(instance.to_owned()));
            continue;
        }
        match provider.find(&claim.identity(installation)).await {
            Ok(found) if found.complete => {
                known.extend(found.instances.into_iter().map(|instance| instance.id));
            }
            Ok(_) | Err(_) => return Ok(None),
        }
    }
    Ok(Some(known))
}

/// Whether so many are without a claim that rather our view of the claims is wrong.
pub fn too_many(unclaimed: &[&Instance], listing: &Listing) -> bool {
    let bills = listing.instances.iter().filter(|instance| instance.state.may_bill()).count();
    unclaimed.len() > FEW && unclaimed.len() * 2 > bills
}

/// Whether a machine is older than a list may lag behind.
pub fn is_old(instance: &Instance, provider: &dyn Provider, now: Timestamp) -> bool {
    instance.started.is_some_and(|at| now.duration_since(at) >= grace(provider))
}

/// How far a list may lag behind, with some to spare.
pub fn grace(provider: &dyn Provider) -> SignedDuration {
    let settle = provider.capabilities().launch_safety.settle_seconds;
    SignedDuration::from_secs(i64::from(settle) + 30)
}

/// Closes the accounts that have neither a claim nor a machine, by lists of longer than one may lag behind,
/// or at once where this one tells when the machine ended.
async fn close_accounts(
    operator: &Operator,
    provider: &dyn Provider,
    listing: &Listing,
    swept: &mut Swept,
) {
    for open in operator.book.open_at(provider.name()) {
        let ended = match accounts::kept(&operator.claims, listing, &open).await {
            Ok(Kept::No { ended }) => ended,
            Ok(Kept::Yes) => {
                operator.unkept.remove(&open.uid);
                continue;
            }
            Err(error) => {
                swept.stuck.push(format!("account {}: {error}", open.uid));
                continue;
            }
        };
        let missed = operator.unkept.since(&open.uid, operator.clock.boottime(), || ());
        let missed = SignedDuration::try_from(missed).unwrap_or(SignedDuration::MAX);
        if (ended.is_none() && missed < grace(provider)) || !operator.leadership.leads() {
            continue;
        }
        let since = operator.clock.now().saturating_sub(missed).unwrap_or(Timestamp::MIN);
        match accounts::close_of_nobody(&operator.ledger, provider, &open, ended, since).await {
            Ok(rows) => {
                rows.iter().for_each(|row| (operator.beside)(row));
                // It may have waited for its last sum.
                if let Some(row) = rows.last() {
                    operator.owner_changed(&book::owner(row));
                }
                operator.unkept.remove(&open.uid);
                swept.closed.push(open.uid);
            }
            Err(error) => swept.stuck.push(format!("account {}: {error}", open.uid)),
        }
    }
}

fn missing(operator: &Operator, provider: &dyn Provider, listing: &Listing, swept: &mut Swept) {
    let settle = provider.capabilities().launch_safety.settle_seconds;
    let grace = SignedDuration::from_secs(i64::from(settle));
    let now = operator.clock.now();
    let bills = || listing.instances.iter().filter(|seen| seen.state.may_bill());
    let there: HashSet<&str> = bills().map(|seen| seen.id.0.as_str()).collect();
    // Stopped without our doing, and listed until they are ended.
    let taken = |seen: &&Instance| {
        seen.trouble.as_ref().is_some_and(|trouble| trouble.reason == Reason::SpotInterrupted)
    };
    let taken: HashSet<&str> = bills().filter(taken).map(|seen| seen.id.0.as_str()).collect();
    let mut machines: HashMap<&str, u32> = HashMap::new();
    for identity in bills().filter_map(|seen| seen.identity.as_ref()) {
        *machines.entry(&identity.claim_uid).or_default() += 1;
    }
    for stored in operator.table.of_provider(provider.name()) {
        let spec = &stored.claim.spec;
        let Phase::Launched { instance, at } = &stored.claim.phase else { continue };
        if now.duration_since(*at) < grace {
            continue;
        }
        let gone = !there.contains(instance.as_str()) || taken.contains(instance.as_str());
        let doubled = machines.get(stored.claim.uid.as_str()).is_some_and(|count| *count > 1);
        if gone || doubled {
            let name = (spec.owner.namespace.clone(), spec.name.clone());
            operator.suspects.insert(name.clone());
            operator.claim_changed(&name);
            match gone {
                true => swept.missing.push(name),
                false => swept.doubled.push(name),
            }
        }
    }
}
