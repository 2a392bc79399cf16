//! The two-way sweep: machines no claim wants, and claims whose machine is gone.
//!
//! The provider is listed **first**, and only then is each machine's claim asked for, at the API
//! server itself: a claim made meanwhile is found. A machine is an orphan only if the server says
//! that its claim does not exist or is another; an error, a refusal or a partial list proves
//! nothing. Young machines are left alone for longer than a list may lag behind.

use std::time::Duration;

use jiff::SignedDuration;
use petaflop_arbiter::claim::Phase;
use petaflop_providers::{Instance, Listing, Provider};

use crate::act::ActError;
use crate::claims::Claims;
use crate::cluster::Operator;
use crate::cluster::error::Error;
use crate::cluster::table::Name;

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
    /// Claims whose machine was not seen.
    pub missing: Vec<Name>,
}

/// One round at one provider.
pub async fn round(operator: &Operator, provider: &dyn Provider) -> Result<Swept, Error> {
    let listing = provider.list(&operator.installation.uid).await.map_err(ActError::from)?;
    let mut swept = Swept::default();
    orphans(operator, provider, &listing, &mut swept).await?;
    // What is missing from a part of a list is not gone.
    if listing.complete {
        missing(operator, provider, &listing, &mut swept);
    }
    Ok(swept)
}

async fn orphans(
    operator: &Operator,
    provider: &dyn Provider,
    listing: &Listing,
    swept: &mut Swept,
) -> Result<(), Error> {
    let safety = provider.capabilities().launch_safety;
    let grace = SignedDuration::from_secs(i64::from(safety.settle_seconds) + 30);
    let now = operator.clock.now();
    let bills: Vec<&Instance> = listing.instances.iter().filter(|i| i.state.may_bill()).collect();
    let mut unclaimed = Vec::new();
    for instance in &bills {
        let Some(identity) = &instance.identity else { continue };
        // Lists are not trusted to hold only what was asked for.
        if identity.installation != operator.installation.uid {
            continue;
        }
        let claim = operator.claims.get(&identity.namespace, &identity.claim).await?;
        if claim.is_none_or(|stored| stored.claim.uid != identity.claim_uid) {
            unclaimed.push(*instance);
        }
    }
    // The young ones count here too, or the rest could be ended one small sweep at a time.
    if unclaimed.len() > FEW && unclaimed.len() * 2 > bills.len() {
        swept.spared = unclaimed.iter().map(|instance| instance.id.to_string()).collect();
        return Ok(());
    }
    for instance in unclaimed {
        let old = instance.started.is_some_and(|at| now.duration_since(at) >= grace);
        if !old || !operator.leadership.leads() {
            continue;
        }
        provider.terminate(&instance.id).await.map_err(ActError::from)?;
        swept.orphans.push(instance.id.to_string());
        if let (Some(identity), Some(began), Some(offer)) =
            (&instance.identity, instance.started, &instance.offer)
        {
            operator.ledger.close_orphan(identity, offer.clone(), began, now).await?;
        }
    }
    Ok(())
}

fn missing(operator: &Operator, provider: &dyn Provider, listing: &Listing, swept: &mut Swept) {
    let settle = provider.capabilities().launch_safety.settle_seconds;
    let grace = SignedDuration::from_secs(i64::from(settle));
    let now = operator.clock.now();
    for stored in operator.table.all() {
        let spec = &stored.claim.spec;
        let Phase::Launched { instance, at } = &stored.claim.phase else { continue };
        if spec.offer.provider != provider.name() || now.duration_since(*at) < grace {
            continue;
        }
        let there =
            listing.instances.iter().any(|seen| seen.id.0 == *instance && seen.state.may_bill());
        if !there {
            let name = (spec.owner.namespace.clone(), spec.name.clone());
            operator.suspects.insert(name.clone());
            operator.claim_changed(&name);
            swept.missing.push(name);
        }
    }
}
