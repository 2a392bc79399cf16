//! That the oracles can fail: three ways to get the protocol wrong, each by a wrapper around what the
//! operator is given, so that nothing in it knows of them. The same fault leaves the protocol as it is
//! unharmed, and turns the oracles red with the mutation.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use http::{Method, Request};
use kube::client::Body;
use kube::{Api, Client};
use petaflop_arbiter::claim::{FrozenRequest, Identity, Refusal};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_crds::ComputeClaim;
use petaflop_providers::{
    Capabilities, EnrolmentToken, Instance, InstanceId, LaunchError, Listing, Order, Provider,
    ProviderError, Used,
};
use serde_json::{Value, json};
use tracing::Span;
use tracing::span::Id;

use crate::calls::{Fault, Point, Trouble};
use crate::layers::{class, refused};
use crate::scenario::{ALL, Scenario};
use crate::sweep::{Task, all};
use crate::world::Twist;

/// Runs `charged` with these faults, as it is and mutated. The oracles that the mutation broke.
fn broken_by(
    name: &str,
    faults: &[(Point, Fault)],
    twist: Twist,
) -> Result<BTreeSet<&'static str>> {
    let scenario: Scenario = ALL[1];
    let task = |job: &str, faults: &[(Point, Fault)], twist: Twist| Task {
        scenario,
        job: format!("{name}-{job}"),
        faults: faults.to_vec(),
        twist,
    };
    let tasks = vec![
        task("reference", &[], Twist::default()),
        task("honest", faults, Twist::default()),
        task("mutated", faults, twist),
    ];
    let done = all(tasks)?;
    let outcome = |job: &str| {
        let found = done.iter().find(|done| done.task.job == format!("{name}-{job}"));
        let outcome = &found.context("a run")?.outcome;
        outcome.as_ref().map_err(|error| anyhow::anyhow!("{job}: {error:?}"))
    };
    let reference = outcome("reference")?;
    let honest = outcome("honest")?.judge(reference, scenario.machines);
    ensure!(honest.is_empty(), "the protocol itself: {honest:#?}");
    ensure!(outcome("honest")?.struck as usize == faults.len(), "the faults were not reached");
    let mutated = outcome("mutated")?.judge(reference, scenario.machines);
    eprintln!("{name}: {mutated:#?}");
    Ok(mutated.into_iter().map(|broken| broken.oracle).collect())
}

#[test]
fn an_attempt_that_rises_because_an_answer_was_lost_is_seen() -> Result<()> {
    let twist = Twist {
        provider: Some(Arc::new(|inner| Arc::new(Wrong { inner, asked_first: None }))),
        ..Twist::default()
    };
    let lost = [(Point::new("provider.launch", 1), Fault::LoseResponse)];
    let broken = broken_by("attempt", &lost, twist)?;
    ensure!(broken.contains("O4"), "{broken:?}");
    Ok(())
}

#[test]
fn a_finalizer_that_comes_after_its_claim_is_seen() -> Result<()> {
    let twist = Twist { client: Some(Arc::new(finalizer_later)), ..Twist::default() };
    let between = [(Point::new("k8s.create.computeclaims", 1), Fault::CrashAfter)];
    let broken = broken_by("finalizer", &between, twist)?;
    ensure!(broken.contains("O3"), "{broken:?}");
    Ok(())
}

#[test]
fn a_sweep_that_asks_for_claims_before_it_lists_machines_is_seen() -> Result<()> {
    let known = Known::default();
    let (asks, hides) = (known.clone(), known);
    let twist = Twist {
        client: Some(Arc::new(move |client| hides.hide(client))),
        provider: Some(Arc::new(move |inner| {
            Arc::new(Wrong { inner, asked_first: Some(asks.clone()) })
        })),
    };
    // The claim is written while a slow sweep is under way, and its machine is no longer young when
    // the list is there.
    let slow = [
        (Point::new("k8s.create.computeclaims", 1), Fault::Delay(Duration::from_secs(30))),
        (Point::new("provider.list", 1), Fault::Delay(Duration::from_secs(200))),
    ];
    let broken = broken_by("sweep", &slow, twist)?;
    ensure!(broken.contains("O1") && broken.contains("O4"), "{broken:?}");
    Ok(())
}

/// What claims there were when the sweep asked, which was too early.
#[derive(Clone, Default)]
struct Known {
    client: Arc<Mutex<Option<Client>>>,
    early: Arc<Mutex<Option<Early>>>,
}

/// What one round of the sweep knew.
struct Early {
    /// The round's span. All passes run on one task: the span is what tells the sweep's questions
    /// from those of others.
    round: Id,
    names: BTreeSet<String>,
}

impl Known {
    async fn ask(&self) -> BTreeSet<String> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(client) = client else { return BTreeSet::new() };
        let claims: Api<ComputeClaim> = Api::all(client);
        let list = claims.list_metadata(&Default::default()).await;
        list.into_iter().flatten().filter_map(|claim| claim.metadata.name).collect()
    }

    /// Whether a machine's claim was not there yet, where the round that has listed is who asks.
    fn is_unknown(&self, name: &str) -> bool {
        let early = self.early.lock().unwrap_or_else(PoisonError::into_inner);
        early.as_ref().is_some_and(|early| {
            Span::current().id().as_ref() == Some(&early.round) && !early.names.contains(name)
        })
    }

    /// A client that answers the sweep from what was known before the list.
    fn hide(&self, client: Client) -> Client {
        *self.client.lock().unwrap_or_else(PoisonError::into_inner) = Some(client.clone());
        let known = self.clone();
        Client::new(
            tower::service_fn(move |request: Request<Body>| {
                let (client, known) = (client.clone(), known.clone());
                async move {
                    let about = class(request.method(), request.uri());
                    let name = request.uri().path().rsplit('/').next().unwrap_or_default();
                    match about == "k8s.get.computeclaims" && known.is_unknown(name) {
                        true => refused(Trouble::Status(404)),
                        false => client.send(request).await,
                    }
                }
            }),
            "default",
        )
    }
}

/// A claim is created without its finalizer, which is added by a second call.
fn finalizer_later(client: Client) -> Client {
    let service = tower::service_fn(move |request: Request<Body>| {
        let client = client.clone();
        async move {
            if class(request.method(), request.uri()) != "k8s.create.computeclaims" {
                return client.send(request).await;
            }
            let (parts, body) = request.into_parts();
            let bytes = body.collect_bytes().await?;
            let mut object: Value =
                serde_json::from_slice(&bytes).map_err(kube::Error::SerdeError)?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let finalizers = object["metadata"]["finalizers"].take();
            let path = format!("{}/{name}", parts.uri.path());
            let bare = Body::from(object.to_string().into_bytes());
            let created = client.send(Request::from_parts(parts, bare)).await?;
            if !created.status().is_success() {
                return Ok(created);
            }
            let patch = json!({ "metadata": { "finalizers": finalizers } }).to_string();
            let patch = Request::builder()
                .method(Method::PATCH)
                .uri(path)
                .header("content-type", "application/merge-patch+json")
                .body(Body::from(patch.into_bytes()))
                .expect("a request");
            client.send(patch).await
        }
    });
    Client::new(service, "default")
}

/// A provider through which the protocol goes wrong.
struct Wrong {
    inner: Arc<dyn Provider>,
    /// Asks for the claims before it lists; else it takes a lost answer for a refusal.
    asked_first: Option<Known>,
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
        match (self.inner.launch(request, token).await, &self.asked_first) {
            (Err(LaunchError::Ambiguous { detail }), None) => {
                Err(LaunchError::Refused { kind: Refusal::Transient, detail })
            }
            (answer, _) => answer,
        }
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        let mut listing = self.inner.find(identity).await?;
        // A machine of another attempt is another's.
        if self.asked_first.is_none() {
            listing.instances.retain(|one| one.identity.as_ref() == Some(identity));
        }
        Ok(listing)
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        let Some(known) = &self.asked_first else { return self.inner.list(installation).await };
        let names = known.ask().await;
        let round = Span::current().id();
        *known.early.lock().unwrap_or_else(PoisonError::into_inner) =
            round.map(|round| Early { round, names });
        self.inner.list(installation).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        self.inner.get(id).await
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.inner.terminate(id).await
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        self.inner.billed(used).await
    }
}
