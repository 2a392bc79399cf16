//! Machines that carry our identity, compared with the claims: what the sweep does, for a person, and
//! where no operator is. Whoever runs it needs no Lease: it buys nothing, and ending what no claim
//! knows may be done twice. [`crate::cluster::audit`] runs it over a cluster's ComputeProviders,
//! [`crate::embedded::audit`] over the accounts of `petaflop run`.

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_providers::{Instance, Provider};
use serde::Serialize;

use crate::act::accounts::{self, Booked};
use crate::claims::{Claims, ClaimsError};
use crate::cluster::sweep::{self, Standing};
use crate::ledger::Ledger;

/// What is compared, and what is done about it.
pub struct Audit<'a> {
    /// Tells the time.
    pub clock: &'a Clock,
    /// Uid of the installation.
    pub installation: &'a str,
    /// Its claims.
    pub claims: &'a dyn Claims,
    /// Nobody has renewed any lease for longer than it lasts.
    pub lapsed: bool,
    /// So many without a claim are no surprise: there are no claims of theirs any more.
    pub all: bool,
    /// Whether to end what is found.
    pub terminate: bool,
    /// Where the cost of what is ended is booked; `None`: it is only said.
    pub ledger: Option<&'a Ledger>,
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Findings {
    /// Machines that carry our identity and may bill.
    pub machines: usize,
    /// Those that no claim knows.
    pub unclaimed: Vec<Found>,
    /// Those whose claim has another one.
    pub surplus: Vec<Found>,
    /// Those whose claim knows them, and whose lease nobody has renewed for longer than it lasts.
    pub lapsed: Vec<Found>,
    /// Providers that could not be asked, or not for everything.
    pub unasked: Vec<Unasked>,
    /// Machines that could not be ended, or were and are not booked.
    pub troubles: Vec<Trouble>,
}

/// A machine that should not be there.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Found {
    /// The ComputeProvider.
    pub provider: String,
    /// Its name of the machine.
    pub machine: String,
    /// Namespace of the claim that it was bought for.
    pub namespace: String,
    /// That claim's name.
    pub claim: String,
    /// Since when it bills.
    pub started_at: Option<Timestamp>,
    /// Dollars an hour, where it says.
    pub hourly_price: Option<UsdPerHour>,
    /// Dollars until now, where that is known.
    pub cost: Option<Usd>,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a machine that should not be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Fate {
    /// It was told to end.
    Ended,
    /// It goes on.
    GoesOn,
    /// It is so young that its claim may not be seen yet.
    Young,
    /// It goes on, for so many have no claim that rather the claims are not all seen.
    Spared,
}

/// A machine with which not all was done.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Trouble {
    /// The ComputeProvider.
    pub provider: String,
    /// Its name of the machine.
    pub machine: String,
    /// What was not, and why.
    pub why: String,
}

/// A provider of which not everything is known.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unasked {
    /// The ComputeProvider.
    pub provider: String,
    /// Why.
    pub why: String,
}

impl Findings {
    /// Whether somebody must look: a machine goes on unowned, or we do not know.
    pub fn is_bad(&self) -> bool {
        let bad = |machine: &Found| match machine.fate {
            Fate::GoesOn | Fate::Spared => true,
            Fate::Ended | Fate::Young => false,
        };
        self.found().any(|(_, machine)| bad(machine))
            || !self.unasked.is_empty()
            || !self.troubles.is_empty()
    }

    /// Of this provider not everything is known.
    pub fn unasked(&mut self, provider: &str, why: impl std::fmt::Display) {
        let (provider, why) = (provider.to_owned(), why.to_string());
        self.unasked.push(Unasked { provider, why });
    }

    /// All that should not be there, and why it should not.
    pub fn found(&self) -> impl Iterator<Item = (&'static str, &Found)> {
        let Self { machines: _, unclaimed, surplus, lapsed, unasked: _, troubles: _ } = self;
        let lists = [("no claim", unclaimed), ("surplus", surplus), ("lease lapsed", lapsed)];
        lists.into_iter().flat_map(|(why, list)| list.iter().map(move |machine| (why, machine)))
    }
}

impl Audit<'_> {
    /// Looks at one provider, and ends there what is to be ended. It is listed first, and only then are
    /// the claims asked for.
    ///
    /// # Errors
    /// The claims cannot be read: then nothing is known of any machine.
    pub async fn look(
        &self,
        provider: &dyn Provider,
        findings: &mut Findings,
    ) -> Result<(), ClaimsError> {
        let listing = match provider.list(self.installation).await {
            Ok(listing) => listing,
            Err(error) => {
                findings.unasked(provider.name(), error);
                return Ok(());
            }
        };
        let standings =
            sweep::standings(self.claims, self.installation, provider, &listing).await?;
        let unclaimed = standings.iter().filter(|(_, is)| *is == Standing::Unclaimed);
        let unclaimed: Vec<&Instance> = unclaimed.map(|(machine, _)| *machine).collect();
        let spared = !self.all && sweep::too_many(&unclaimed, &listing);
        findings.machines += standings.len();
        for (machine, standing) in standings {
            if standing == Standing::Claimed && !self.lapsed {
                continue;
            }
            let spared = spared && standing == Standing::Unclaimed;
            let now = self.clock.now();
            let fate = match (sweep::is_old(machine, provider, now), self.terminate) {
                (false, _) => Fate::Young,
                (true, false) => Fate::GoesOn,
                (true, true) if spared => Fate::Spared,
                (true, true) => self.end(provider, machine, standing, findings).await,
            };
            let list = match standing {
                Standing::Unclaimed => &mut findings.unclaimed,
                Standing::Surplus => &mut findings.surplus,
                Standing::Claimed => &mut findings.lapsed,
            };
            list.push(found(provider.name(), machine, fate, now));
        }
        if !listing.complete {
            findings.unasked(provider.name(), "only a part of its machines was listed");
        }
        Ok(())
    }

    /// Ends one. What cannot be ended or booked is said, and keeps nobody from the others.
    async fn end(
        &self,
        provider: &dyn Provider,
        machine: &Instance,
        standing: Standing,
        findings: &mut Findings,
    ) -> Fate {
        let surplus = standing == Standing::Surplus;
        // What its claim knows is in that claim's own rows.
        let ledger = self.ledger.filter(|_| standing != Standing::Claimed);
        let (fate, why) =
            match accounts::end_orphan(ledger, provider, machine, self.clock, surplus).await {
                Ok(Booked { rows: _, unwritten: None }) => return Fate::Ended,
                Ok(Booked { rows: _, unwritten: Some(error) }) => {
                    (Fate::Ended, format!("ended, but its last row is not in the ledger: {error}"))
                }
                Err(error) => (Fate::GoesOn, format!("could not be ended: {error}")),
            };
        let (provider, machine) = (provider.name().to_owned(), machine.id.to_string());
        findings.troubles.push(Trouble { provider, machine, why });
        fate
    }
}

fn found(provider: &str, machine: &Instance, fate: Fate, now: Timestamp) -> Found {
    let identity = machine.identity.as_ref();
    let price = machine.offer.as_ref().map(|offer| offer.price);
    let millis = machine.started.map(|at| now.as_millisecond() - at.as_millisecond());
    Found {
        provider: provider.to_owned(),
        machine: machine.id.to_string(),
        namespace: identity.map(|i| i.namespace.clone()).unwrap_or_default(),
        claim: identity.map(|i| i.claim.clone()).unwrap_or_default(),
        started_at: machine.started,
        hourly_price: price,
        cost: price.zip(millis).map(|(price, millis)| price.for_millis(millis.max(0))),
        fate,
    }
}
