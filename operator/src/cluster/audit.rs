//! [`crate::audit`] of a cluster: of all its ComputeProviders, without an operator.
//!
//! Leases of machines are renewed in memory, by whoever leads. So the leader's own Lease tells when
//! all of theirs have lapsed: every agent should have given its machine back by then, and what
//! still bills has none that lives.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::ComputeProvider;

use crate::agents::LEASE;
use crate::audit::Findings;
use crate::cluster::claims::ObjectClaims;
use crate::cluster::error::Error;
use crate::cluster::events::Events;
use crate::cluster::leader::{DURATION, Election};
use crate::cluster::providers::MakeProvider;
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
        let claims = ObjectClaims::new(
            self.client.clone(),
            Vec::new(),
            ClaimTable::default(),
            self.clock.clone(),
            Events::silent(),
        );
        let audit = crate::audit::Audit {
            clock: &self.clock,
            installation: self.installation,
            claims: &claims,
            lapsed: self.nobody_leads().await?,
            all: false,
            terminate: self.terminate,
            ledger: self.ledger,
        };
        for object in &objects {
            match self.make.make(object) {
                Ok(provider) => audit.look(provider.as_ref(), &mut findings).await?,
                // What cannot be had from has no machines either.
                Err(petaflop_providers::ProviderError::NotOffered { .. }) => {}
                Err(error) => findings.unasked(&object.name_any(), error),
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
}
