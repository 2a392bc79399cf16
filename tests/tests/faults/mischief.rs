//! That the other oracles can fail, those that `mutations` does not show: an operator that says all
//! twice, is busy while nothing is to be done, asks for what it has no right to, panics, or books the
//! wrong sum. It is what the operator is given that does so, as there; no fault is needed for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use http::{Request, Response};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, Patch, PatchParams};
use kube::client::Body;
use kube::{Api, Client};
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::ledger::Row;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Offer;
use petaflop_crds::ComputeProvider;
use petaflop_fake_provider::Manners;
use petaflop_providers::{
    Capabilities, EnrolmentToken, Instance, InstanceId, LaunchError, Listing, Order, Provider,
    ProviderError, Used,
};
use serde_json::{Value, json};

use crate::layers::class;
use crate::oracles::{Unsure, compare};
use crate::scenario::{ALL, Scenario};
use crate::sweep::{Task, all};
use crate::world::{PRICE, Twist};

/// What goes wrong.
#[derive(Clone, Copy)]
enum Mischief {
    /// Each call of this class is made twice.
    Twice(&'static str),
    /// Each round of the sweep writes, though nothing has changed.
    Writes,
    /// Each round of the sweep asks for all Secrets.
    Asks,
    /// Each round of the sweep panics.
    Panics,
    /// Half of what a machine cost is booked.
    Half,
}

/// Each with the oracle that must see it.
const ALL_MISCHIEF: [(&str, Mischief, &str); 6] = [
    ("statuses", Mischief::Twice("k8s.update.trainingjobs/status"), "O2"),
    ("events", Mischief::Twice("k8s.create.events"), "O7"),
    ("writes", Mischief::Writes, "O5"),
    ("asks", Mischief::Asks, "O8"),
    ("panics", Mischief::Panics, "O6"),
    ("half", Mischief::Half, "ledger"),
];

#[test]
fn each_oracle_turns_red_by_what_it_is_about() -> Result<()> {
    let scenario: Scenario = ALL[0];
    let task = |job: &str, twist: Twist| Task {
        scenario,
        job: format!("mischief-{job}"),
        faults: Vec::new(),
        twist,
    };
    let honest = std::iter::once(task("none", Twist::default()));
    let wrong = ALL_MISCHIEF.iter().map(|(name, mischief, _)| task(name, mischief.twist()));
    let done = all(honest.chain(wrong).collect())?;
    let outcome = |job: &str| {
        let found = done.iter().find(|done| done.task.job == format!("mischief-{job}"));
        let outcome = &found.context("a run")?.outcome;
        outcome.as_ref().map_err(|error| anyhow::anyhow!("{job}: {error:?}"))
    };
    let reference = outcome("none")?;
    let broken = reference.judge(reference, scenario.machines);
    ensure!(broken.is_empty(), "without mischief: {broken:#?}");
    for (name, _, oracle) in ALL_MISCHIEF {
        let broken = outcome(name)?.judge(reference, scenario.machines);
        eprintln!("{name}: {broken:#?}");
        ensure!(broken.iter().any(|one| one.oracle == oracle), "{name}, {oracle}: {broken:#?}");
    }
    Ok(())
}

impl Mischief {
    fn twist(self) -> Twist {
        let known: Arc<Mutex<Option<Client>>> = Arc::default();
        let writes_to = known.clone();
        Twist {
            client: Some(Arc::new(move |client| {
                *known.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
                match self {
                    Self::Twice(class) => twice(client, class),
                    _ => client,
                }
            })),
            provider: Some(Arc::new(move |inner| {
                Arc::new(Wrong { inner, mischief: self, client: writes_to.clone() })
            })),
        }
    }
}

/// A client that makes each call of a class again when it was taken: a write over what it answered,
/// an object under another name.
fn twice(client: Client, of: &'static str) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let client = client.clone();
        async move {
            if class(request.method(), request.uri()) != of {
                return client.send(request).await;
            }
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await?;
            let first = Request::from_parts(parts.clone(), Body::from(bytes.clone()));
            let (answer, body) = client.send(first).await?.into_parts();
            let said = body.collect_bytes().await?;
            if !answer.status.is_success() {
                return Ok(Response::from_parts(answer, Body::from(said)));
            }
            let again = match of.starts_with("k8s.create.") {
                false => said,
                true => {
                    let mut object: Value =
                        serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)?;
                    let name = object["metadata"]["name"].as_str().unwrap_or_default();
                    object["metadata"]["name"] = format!("{name}-again").into();
                    object.to_string().into_bytes().into()
                }
            };
            client.send(Request::from_parts(parts, Body::from(again))).await
        }
    });
    Client::new(service, "default")
}

/// A provider through which the sweep, or the ledger, goes wrong.
struct Wrong {
    inner: Arc<dyn Provider>,
    mischief: Mischief,
    client: Arc<Mutex<Option<Client>>>,
}

impl Wrong {
    fn client(&self) -> Option<Client> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl Provider for Wrong {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        self.inner.quote().await
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        self.inner.prepare(order).await
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        self.inner.launch(request, token).await
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        self.inner.find(identity).await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        match (self.mischief, self.client()) {
            (Mischief::Panics, _) => panic!("mischief"),
            (Mischief::Writes, Some(client)) => {
                let nothing = Patch::Merge(json!({}));
                let api: Api<ComputeProvider> = Api::all(client);
                let _ = api.patch(self.name(), &PatchParams::default(), &nothing).await;
            }
            (Mischief::Asks, Some(client)) => {
                let api: Api<Secret> = Api::all(client);
                let _ = api.list(&ListParams::default()).await;
            }
            _ => {}
        }
        self.inner.list(installation).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        self.inner.get(id).await
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.inner.terminate(id).await
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        let whole = self.inner.billed(used).await?;
        Ok(match self.mischief {
            Mischief::Half => Usd::from_micros(whole.micros() / 2),
            _ => whole,
        })
    }
}

/// A row of one claim: its place, kind, begin and end in seconds, and micro-dollars.
fn row(claim: &str, number: u32, kind: &str, from: i64, to: i64, micros: i64) -> Result<Row> {
    let at = |second| jiff::Timestamp::from_second(second).map(|at| at.to_string());
    let (rate, amount) = (UsdPerHour::from_micros(PRICE)?, Usd::from_micros(micros));
    Ok(serde_json::from_value(json!({
        "key": format!("{claim}/{number:06}"), "kind": kind,
        "namespace": "n", "job": "j", "jobUid": "u", "claim": claim, "claimUid": claim,
        "provider": "p", "region": "", "instanceType": "t", "capacity": "OnDemand",
        "from": at(from)?, "to": at(to)?, "rate": rate, "amount": amount,
    }))?)
}

#[test]
fn a_ledger_that_is_not_the_bill_is_seen() -> Result<()> {
    let unit = i64::try_from(Manners::aws().granularity.as_millis())? * PRICE / 3_600_000;
    let first = || row("a", 0, "running", 0, 60, 24_000);
    let last = |micros| row("a", 1, "final", 60, 100, micros);
    // Of machines that billed 40,000 micro-dollars, or as many as is said.
    let cases = [
        ("in order", vec![first()?, last(16_000)?], 40_000, None),
        ("a begun unit", vec![first()?, last(16_000 + unit)?], 40_000, None),
        ("too little", vec![first()?, last(15_998 - unit)?], 40_000, Some("billed 40000")),
        ("too much", vec![first()?, last(16_002 + unit)?], 40_000, Some("billed 40000")),
        ("no row", vec![], 40_000, Some("booked 0")),
        ("not closed", vec![first()?], 24_000, Some("0 last rows")),
        (
            "closed twice",
            vec![first()?, last(16_000)?, row("a", 2, "final", 100, 100, 0)?],
            40_000,
            Some("2 last rows"),
        ),
        (
            "one left out",
            vec![first()?, row("a", 2, "final", 60, 100, 16_000)?],
            40_000,
            Some("where 1 is due"),
        ),
        (
            "a gap",
            vec![first()?, row("a", 1, "final", 61, 101, 16_000)?],
            40_000,
            Some("a gap before it"),
        ),
        (
            "nobody's",
            vec![first()?, last(16_000)?, row("b", 0, "final", 0, 0, 0)?],
            40_000,
            Some("never billed"),
        ),
    ];
    for (what, rows, micros, says) in cases {
        let bill = BTreeMap::from([("petaflop/installation/j/a".to_owned(), micros)]);
        let wrong = compare(&rows, &bill, &Manners::aws(), PRICE, 0, Unsure::default());
        match says {
            None => ensure!(wrong.is_empty(), "{what}: {wrong:?}"),
            Some(says) => {
                ensure!(wrong.len() == 1 && wrong[0].contains(says), "{what}: {wrong:?}");
            }
        }
    }
    Ok(())
}
