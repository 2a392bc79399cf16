//! Machines that carry our identity, compared with the claims: what the sweep does, without an
//! operator. Whoever runs it needs no Lease: it buys nothing, and ending what no claim knows may
//! be done twice.
//!
//! Leases of machines are renewed in memory, by whoever leads. So the leader's own Lease tells when
//! all of theirs have lapsed: every agent should have given its machine back by then, and what
//! still bills has none that lives.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_crds::ComputeProvider;
use petaflop_providers::{Instance, Provider};
use serde::Serialize;

use crate::act::{self, ActError};
use crate::agents::LEASE;
use crate::cluster::claims::ObjectClaims;
use crate::cluster::error::Error;
use crate::cluster::events::Events;
use crate::cluster::leader::{DURATION, Election};
use crate::cluster::providers::MakeProvider;
use crate::cluster::sweep::{self, Standing};
use crate::cluster::table::ClaimTable;
use crate::ledger::Ledger;

/// For what an agent has to do at its lease's end: a last checkpoint, and giving its machine back.
const GRACE: Duration = Duration::from_secs(10 * 60);

/// What is compared, and what is done about it.
pub struct Audit<'a> {
    /// The API server.
    pub client: Client,
    /// Tells the time.
    pub clock: Clock,
    /// Uid of the installation.
    pub installation: &'a str,
    /// Namespace of its operator.
    pub namespace: &'a str,
    /// Makes providers.
    pub make: &'a dyn MakeProvider,
    /// Labels of the ComputeProviders to ask; `None`: all.
    pub provider_labels: Option<&'a str>,
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
        self.found().any(|(_, machine)| bad(machine)) || !self.unasked.is_empty()
    }

    /// All that should not be there, and why it should not.
    pub fn found(&self) -> impl Iterator<Item = (&'static str, &Found)> {
        let Self { machines: _, unclaimed, surplus, lapsed, unasked: _ } = self;
        let lists = [("no claim", unclaimed), ("surplus", surplus), ("lease lapsed", lapsed)];
        lists.into_iter().flat_map(|(why, list)| list.iter().map(move |machine| (why, machine)))
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
        let lapsed = self.nobody_leads().await?;
        for object in &objects {
            let name = object.name_any();
            let asked = match self.make.make(object) {
                Ok(provider) => self.one(provider.as_ref(), lapsed, &mut findings).await?,
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

    /// Whether nobody has led for so long that every machine's lease has lapsed.
    async fn nobody_leads(&self) -> Result<bool, Error> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), self.namespace);
        let Some(renewed) = Election::renewed(&leases).await? else { return Ok(false) };
        let lapse = LEASE + GRACE;
        let silent = Duration::try_from(self.clock.now().duration_since(renewed.1));
        if silent.is_ok_and(|silent| silent < lapse) {
            return Ok(false);
        }
        // Two clocks that differ prove nothing: whoever leads renews meanwhile.
        self.clock.sleep(DURATION).await;
        Ok(Election::renewed(&leases).await? == Some(renewed))
    }

    /// One provider. Returns why not all of it is known. It is listed first, and only then are the
    /// claims asked for.
    async fn one(
        &self,
        provider: &dyn Provider,
        lapsed: bool,
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
        let standings = sweep::standings(&claims, self.installation, provider, &listing).await?;
        let unclaimed = standings.iter().filter(|(_, is)| *is == Standing::Unclaimed);
        let unclaimed: Vec<&Instance> = unclaimed.map(|(machine, _)| *machine).collect();
        let spared = sweep::too_many(&unclaimed, &listing);
        findings.machines += standings.len();
        for (machine, standing) in standings {
            let list = match standing {
                Standing::Unclaimed => &mut findings.unclaimed,
                Standing::Surplus => &mut findings.surplus,
                Standing::Claimed if lapsed => &mut findings.lapsed,
                Standing::Claimed => continue,
            };
            let spared = spared && standing == Standing::Unclaimed;
            let now = self.clock.now();
            let fate = match (sweep::is_old(machine, provider, now), self.terminate) {
                (false, _) => Fate::Young,
                (true, false) => Fate::GoesOn,
                (true, true) if spared => Fate::Spared,
                (true, true) => {
                    provider.terminate(&machine.id).await.map_err(ActError::from)?;
                    // What its claim knows is in that claim's own rows.
                    if let (Some(ledger), true) = (self.ledger, standing != Standing::Claimed) {
                        let surplus = standing == Standing::Surplus;
                        act::book_orphan(ledger, provider, machine, now, surplus).await?;
                    }
                    Fate::Ended
                }
            };
            list.push(found(provider.name(), machine, fate, now));
        }
        Ok((!listing.complete).then(|| "only a part of its machines was listed".to_owned()))
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
