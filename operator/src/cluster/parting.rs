//! Letting go of a provider. Whoever removes its object ends the sweep of every place in which it bought,
//! so our finalizer holds it while there are claims on it, and after the last of them until all its
//! machines were listed, later than such a list may lag behind, none of ours was there, and what all
//! of them cost is booked.
//!
//! Accident: a purchase fails by all that is heard of it, its claim ends, and its machine shows up
//! afterwards. The sweep ends it, as long as there is one.

use jiff::Timestamp;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::ComputeProvider;
use petaflop_providers::{Instance, Provider, ProviderError};

use crate::cluster::error::Error;
use crate::cluster::{Operator, finalizer, sweep};

/// Why a provider is not let go of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stays {
    /// So many claims are on it.
    Claims(usize),
    /// Its lists may not show everything before then.
    Until(Timestamp),
    /// It does not say what is there, or not all of it.
    Unlisted(ProviderError),
    /// So many machines of ours are there, which the sweep ends.
    Machines(usize),
    /// So many machines that are gone have no last row in the ledger yet, which the sweep writes.
    Accounts(usize),
}

impl Stays {
    /// For its conditions, where its object is being removed.
    pub fn said(&self) -> (Reason, String) {
        let message = match self {
            Self::Claims(claims) => format!("it is needed until its {claims} claims have ended"),
            Self::Until(at) => format!(
                "its machines are listed once more at {at:.0}, when everything that was bought must show"
            ),
            Self::Unlisted(error) => {
                let mend = "where it never will answer again and somebody has made sure that nothing bills there, take our finalizer off by hand";
                return (error.reason(), format!("what is there is not known: {error}; {mend}"));
            }
            Self::Machines(machines) => {
                format!("{machines} machines of ours are there and are being ended")
            }
            Self::Accounts(accounts) => {
                format!("what {accounts} machines cost that are gone is being booked")
            }
        };
        (Reason::Releasing, message)
    }
}

/// Whether a provider's object will outlast what is bought there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It will.
    Held,
    /// Its turn has to come first.
    Soon,
    /// It is being removed, or gone, and nothing held it.
    Never,
}

/// Whether anything may be bought from a provider whose machines are rented.
pub fn hold(operator: &Operator, name: &str) -> Hold {
    match operator.provider_object(name) {
        Some(object) if finalizer::is_held(&object) => Hold::Held,
        Some(object) if object.metadata.deletion_timestamp.is_none() => Hold::Soon,
        Some(_) | None => Hold::Never,
    }
}

/// Why a provider is not let go of now. `None`: nothing holds it.
pub async fn stays(operator: &Operator, object: &ComputeProvider) -> Result<Option<Stays>, Error> {
    let name = object.metadata.name.as_deref().unwrap_or_default();
    if let Some(claims) = claims(operator, name) {
        return Ok(Some(claims));
    }
    // What never had a claim since it was let go of has no machines.
    let Some(known) = operator.providers.get(name).filter(|_| finalizer::is_held(object)) else {
        return Ok(None);
    };
    let provider = match known.provider {
        Ok(provider) if provider.capabilities().rented => provider,
        // What cannot be had from has no machines either.
        Ok(_) | Err(ProviderError::NotOffered { .. }) => return Ok(None),
        Err(error) => return Ok(Some(Stays::Unlisted(error))),
    };
    let (now, left) = (operator.clock.now(), operator.table.was_left(name));
    let since = operator.providers.unneeded_since(name, now, left);
    let listed = since.saturating_add(sweep::grace(provider.as_ref())).unwrap_or(Timestamp::MAX);
    if now < listed {
        return Ok(Some(Stays::Until(listed)));
    }
    let there = there(operator, provider.as_ref()).await?;
    // A claim may have come meanwhile, and gone.
    if operator.table.was_left(name) {
        let since = operator.providers.unneeded_since(name, operator.clock.now(), true);
        return Ok(Some(Stays::Until(since)));
    }
    Ok(claims(operator, name).or(there))
}

fn claims(operator: &Operator, name: &str) -> Option<Stays> {
    let needed = operator.table.needs_provider(name);
    needed.then(|| Stays::Claims(operator.table.of_provider(name).len()))
}

/// A round of the sweep, and what it found of ours.
async fn there(operator: &Operator, provider: &dyn Provider) -> Result<Option<Stays>, Error> {
    let ours = &operator.installation.uid;
    let listing = match provider.list(ours).await {
        Ok(listing) => listing,
        Err(error) => return Ok(Some(Stays::Unlisted(error))),
    };
    sweep::compare(operator, provider, &listing).await?;
    let bills = listing.instances.iter().filter(|instance| instance.state.may_bill());
    let is_ours = |one: &&Instance| {
        one.identity.as_ref().is_none_or(|identity| identity.installation == *ours)
    };
    match (bills.filter(is_ours).count(), listing.complete) {
        (0, true) => {
            let open = operator.book.open_at(provider.name()).len();
            Ok((open > 0).then_some(Stays::Accounts(open)))
        }
        (0, false) => Ok(Some(Stays::Unlisted(ProviderError::Unreachable {
            provider: provider.name().to_owned(),
            detail: "only a part of its machines was listed".to_owned(),
        }))),
        (machines, _) => Ok(Some(Stays::Machines(machines))),
    }
}
