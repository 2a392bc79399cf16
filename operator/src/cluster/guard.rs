//! Before the operator is taken away: nobody would be left to end the machines that run, nor to
//! take our finalizer off what is deleted later.

use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ListMeta;
use kube::api::{ListParams, Patch, PatchParams};
use kube::core::{DeserializeGuard, PartialObjectMeta};
use kube::{Api, Client, Resource, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::{ComputeClaim, ComputeProvider, InferenceService, TrainingJob};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::cluster::error::{Error, is_conflict, is_not_found};
use crate::cluster::leader::Election;
use crate::cluster::{claims, finalizer, within};

/// As whom it holds the Lease.
const ME: &str = "uninstallation";

/// How long the operator rests: until its Deployment is gone, with some to spare.
pub const REST: Duration = Duration::from_secs(60);

/// Between two looks at claims that end.
const AGAIN: Duration = Duration::from_secs(2);

/// Objects that are asked for at once.
const PAGE: u32 = 500;

/// What stands in the way of an uninstallation.
pub struct Guard {
    /// The API server.
    pub client: Client,
    /// Tells the time.
    pub clock: Clock,
    /// Namespaces with objects of ours; empty: all.
    pub namespaces: Vec<String>,
}

/// A claim that is not over.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Open {
    /// Its namespace and name.
    pub claim: String,
    /// Whose it is, as kubectl takes it: `trainingjob/name`.
    pub owner: String,
    /// Its machine, once there is one.
    pub machine: String,
}

impl Guard {
    /// The claims that are not over, at the API server itself.
    ///
    /// # Errors
    /// It refuses or does not answer.
    pub async fn open(&self) -> Result<BTreeSet<Open>, Error> {
        let mut open = BTreeSet::new();
        for api in within::<DeserializeGuard<ComputeClaim>>(&self.client, &self.namespaces) {
            let mut page = Some(ListParams::default().limit(PAGE));
            while let Some(params) = page {
                let list = api.list(&params).await.map_err(Error::api("listing the claims"))?;
                open.extend(list.items.iter().filter_map(unfinished));
                page = next_page(params, &list.metadata);
            }
        }
        Ok(open)
    }

    /// Suspends every job and service, and waits until no claim is left. The operator does the rest:
    /// checkpoint, end, ledger. `said` hears whenever fewer are left.
    ///
    /// # Errors
    /// The API server refuses or does not answer.
    pub async fn drain(
        &self,
        within: Duration,
        said: impl Fn(&BTreeSet<Open>),
    ) -> Result<BTreeSet<Open>, Error> {
        for job in self.all::<TrainingJob>("listing the jobs").await? {
            self.suspend(&job).await?;
        }
        for service in self.all::<InferenceService>("listing the services").await? {
            self.suspend(&service).await?;
        }
        let until = self.clock.boottime().saturating_add(within);
        let mut before = usize::MAX;
        loop {
            let open = self.open().await?;
            if open.is_empty() || self.clock.boottime() >= until {
                return Ok(open);
            }
            if open.len() < before {
                before = open.len();
                said(&open);
            }
            self.clock.sleep(AGAIN).await;
        }
    }

    /// Has the operator of a namespace rest, so that it takes no machine while it is taken away. It
    /// goes on by itself after [`REST`], and at once after [`Guard::wake`].
    ///
    /// # Errors
    /// The API server refuses or does not answer.
    pub async fn rest(&self, namespace: &str) -> Result<(), Error> {
        let leases = Api::namespaced(self.client.clone(), namespace);
        let led = Election::seize(&leases, ME, REST, self.clock.now()).await?;
        if let Some(still) = led {
            self.clock.sleep(still).await;
        }
        Ok(())
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// The API server refuses or does not answer.
    pub async fn wake(&self, namespace: &str) -> Result<(), Error> {
        let leases = Api::namespaced(self.client.clone(), namespace);
        Election::resign(&leases, ME).await
    }

    /// The ComputeProviders that the operator has not let go of, once that is so of none or their time
    /// is over. It lists what is there once its last claim has ended, and that has to settle.
    ///
    /// # Errors
    /// The API server refuses or does not answer.
    pub async fn released(
        &self,
        labels: Option<&str>,
        within: Duration,
        said: impl Fn(&BTreeSet<String>),
    ) -> Result<BTreeSet<String>, Error> {
        let api: Api<PartialObjectMeta<ComputeProvider>> = Api::all(self.client.clone());
        let which =
            ListParams { label_selector: labels.map(str::to_owned), ..ListParams::default() };
        let until = self.clock.boottime().saturating_add(within);
        let mut before = BTreeSet::new();
        loop {
            let list = api.list_metadata(&which).await;
            let list = list.map_err(Error::api("listing the ComputeProviders"))?;
            let held = list.items.iter().filter(|object| finalizer::is_held(*object));
            let held: BTreeSet<String> = held.map(ResourceExt::name_any).collect();
            if held.is_empty() || self.clock.boottime() >= until {
                return Ok(held);
            }
            if held != before {
                said(&held);
                before = held;
            }
            self.clock.sleep(AGAIN).await;
        }
    }

    /// Takes our finalizer off jobs and services, of which none has a claim: without an operator
    /// they could not be deleted.
    ///
    /// # Errors
    /// The API server refuses or does not answer.
    pub async fn release(&self) -> Result<(), Error> {
        for job in self.all::<TrainingJob>("listing the jobs").await? {
            self.free(&job).await?;
        }
        for service in self.all::<InferenceService>("listing the services").await? {
            self.free(&service).await?;
        }
        Ok(())
    }

    /// What the API server keeps of each object of a kind, whether we can read the rest of it or not.
    async fn all<K>(&self, what: &'static str) -> Result<Vec<PartialObjectMeta<K>>, Error>
    where
        K: Namespaced,
    {
        let mut all = Vec::new();
        for api in within::<K>(&self.client, &self.namespaces) {
            let mut page = Some(ListParams::default().limit(PAGE));
            while let Some(params) = page {
                let mut list = api.list_metadata(&params).await.map_err(Error::api(what))?;
                list.items.iter_mut().for_each(|object| object.metadata.managed_fields = None);
                all.append(&mut list.items);
                page = next_page(params, &list.metadata);
            }
        }
        Ok(all)
    }

    /// Of what is suspended already nothing is written.
    async fn suspend<K: Namespaced>(&self, object: &PartialObjectMeta<K>) -> Result<(), Error> {
        let patch = Patch::Merge(json!({ "spec": { "suspend": true } }));
        let api = self.api(object);
        match api.patch(&object.name_any(), &PatchParams::default(), &patch).await {
            Ok(_) => Ok(()),
            Err(error) if is_not_found(&error) => Ok(()),
            Err(error) => Err(Error::api("suspending a job or service")(error)),
        }
    }

    async fn free<K: Namespaced>(&self, object: &PartialObjectMeta<K>) -> Result<(), Error> {
        if !finalizer::is_held(object) {
            return Ok(());
        }
        match finalizer::hold(&self.api(object), object, false).await {
            Ok(_) => Ok(()),
            // The operator wrote to it meanwhile, so it is still there to look after it.
            Err(error) if is_conflict(&error) => Ok(()),
            Err(error) => Err(Error::api("taking our finalizer off a job or service")(error)),
        }
    }

    fn api<K: Namespaced>(&self, object: &PartialObjectMeta<K>) -> Api<PartialObjectMeta<K>> {
        Api::namespaced(self.client.clone(), &object.namespace().unwrap_or_default())
    }
}

/// A kind of ours that lives in namespaces.
trait Namespaced:
    Resource<DynamicType = (), Scope = NamespaceResourceScope>
    + Clone
    + std::fmt::Debug
    + DeserializeOwned
{
}
impl Namespaced for TrainingJob {}
impl Namespaced for InferenceService {}

/// The page after a list, if there is one.
fn next_page(page: ListParams, list: &ListMeta) -> Option<ListParams> {
    let token = list.continue_.as_deref().filter(|token| !token.is_empty())?;
    Some(page.continue_token(token))
}

/// What is said of a claim that is not over, or that nobody can read.
fn unfinished(found: &DeserializeGuard<ComputeClaim>) -> Option<Open> {
    let Ok(object) = &found.0 else {
        return Some(Open {
            claim: format!("{}/{}", found.namespace().unwrap_or_default(), found.name_any()),
            owner: "an owner that cannot be read".to_owned(),
            machine: String::new(),
        });
    };
    let over = claims::read(object).is_ok_and(|stored| !stored.claim.is_unfinished());
    (finalizer::is_held(object) || !over).then(|| open(object))
}

fn open(object: &ComputeClaim) -> Open {
    let owner = &object.spec.owner;
    let machine = object.status.as_ref().and_then(|status| status.provider_id.clone());
    Open {
        claim: format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any()),
        owner: format!("{}/{}", owner.kind.as_str().to_lowercase(), owner.name),
        machine: machine.unwrap_or_default(),
    }
}
