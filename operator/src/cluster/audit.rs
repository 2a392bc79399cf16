//! Machines that carry our identity, compared with the claims: what the sweep does, without an
//! operator. Whoever runs it needs no Lease: it buys nothing, and ending what no claim knows may
//! be done twice.

use jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_crds::ComputeProvider;
use petaflop_providers::{Instance, Provider};
use serde::Serialize;

use crate::act::ActError;
use crate::cluster::claims::ObjectClaims;
use crate::cluster::error::Error;
use crate::cluster::events::Events;
use crate::cluster::providers::MakeProvider;
use crate::cluster::sweep;
use crate::cluster::table::ClaimTable;
use crate::ledger::Ledger;

/// What is compared, and what is done about it.
pub struct Audit<'a> {
    /// The API server.
    pub client: Client,
    /// Tells the time.
    pub clock: Clock,
    /// Uid of the installation.
    pub installation: &'a str,
    /// Makes providers.
    pub make: &'a dyn MakeProvider,
    /// Labels of the ComputeProviders to ask; `None`: all.
    pub provider_labels: Option<&'a str>,
    /// Whether to end what no claim knows.
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
    pub unclaimed: Vec<Unclaimed>,
    /// Providers that could not be asked, or not for everything.
    pub unasked: Vec<Unasked>,
}

/// A machine that no claim knows.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Unclaimed {
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

/// What became of a machine that no claim knows.
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
        let bad = |machine: &Unclaimed| match machine.fate {
            Fate::GoesOn | Fate::Spared => true,
            Fate::Ended | Fate::Young => false,
        };
        self.unclaimed.iter().any(bad) || !self.unasked.is_empty()
    }
}

impl Audit<'_> {
    /// Looks, and ends what is to be ended.
    ///
    /// # Errors
    /// The API server does not answer or refuses: then nothing is known of any machine.
    pub async fn run(&self) -> Result<Findings, Error> {
        let providers: Api<ComputeProvider> = Api::all(self.client.clone());
        let which = ListParams {
            label_selector: self.provider_labels.map(str::to_owned),
            ..ListParams::default()
        };
        let objects =
            providers.list(&which).await.map_err(Error::api("listing the ComputeProviders"))?;
        let mut findings = Findings::default();
        for object in &objects {
            let name = object.name_any();
            let asked = match self.make.make(object) {
                Ok(provider) => self.one(provider.as_ref(), &mut findings).await?,
                // What cannot be had from has no machines either.
                Err(petaflop_providers::ProviderError::NotOffered { .. }) => None,
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = asked {
                findings.unasked.push(Unasked { provider: name, why });
            }
        }
        Ok(findings)
    }

    /// One provider. Returns why not all of it is known. It is listed first, and only then are the
    /// claims asked for.
    async fn one(
        &self,
        provider: &dyn Provider,
        findings: &mut Findings,
    ) -> Result<Option<String>, Error> {
        let listing = match provider.list(self.installation).await {
            Ok(listing) => listing,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let claims = ObjectClaims::new(
            self.client.clone(),
            Vec::new(),
            ClaimTable::default(),
            self.clock.clone(),
            Events::silent(),
        );
        let unclaimed = sweep::unclaimed(&claims, self.installation, &listing).await?;
        findings.machines += listing.instances.iter().filter(|i| i.state.may_bill()).count();
        let spared = sweep::too_many(&unclaimed, &listing);
        let now = self.clock.now();
        for machine in unclaimed {
            let fate = match (sweep::is_old(machine, provider, now), self.terminate) {
                (false, _) => Fate::Young,
                (true, false) => Fate::GoesOn,
                (true, true) if spared => Fate::Spared,
                (true, true) => {
                    provider.terminate(&machine.id).await.map_err(ActError::from)?;
                    if let Some(ledger) = self.ledger {
                        sweep::book(ledger, machine, now).await?;
                    }
                    Fate::Ended
                }
            };
            findings.unclaimed.push(found(provider.name(), machine, fate, now));
        }
        Ok((!listing.complete).then(|| "only a part of its machines was listed".to_owned()))
    }
}

fn found(provider: &str, machine: &Instance, fate: Fate, now: Timestamp) -> Unclaimed {
    let identity = machine.identity.as_ref();
    let price = machine.offer.as_ref().map(|offer| offer.price);
    let millis = machine.started.map(|at| now.as_millisecond() - at.as_millisecond());
    Unclaimed {
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
