//! The nodes of this cluster as a provider: an instance is one Pod, an offer a
//! slice of a node that is free now.
//!
//! | module | holds |
//! |---|---|
//! | `offers` | nodes and Pods in, offers out; pure |
//! | `devices` | accelerators of a node, by their vendors' labels; pure |
//! | `requests` | what a Pod takes of a node; pure |
//! | `slice` | a part of a node and its name |
//! | `manifest` | the Pod of a claim |
//! | `instance` | a Pod as an instance |
//! | `answer` | what the API server's answers mean |
//! | `once` | the client that sends a purchase a single time |
//! | [`labels`] | how a Pod says whose it is |
//! | [`prune`] | what of nodes and Pods a cache may forget |

mod answer;
mod devices;
mod instance;
pub mod labels;
mod manifest;
mod offers;
mod once;
pub mod prune;
mod requests;
mod slice;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Toleration};
use kube::api::{Api, DeleteParams, ListParams, Preconditions};
use kube::runtime::reflector::Store;
use petaflop_arbiter::bill::Billing;
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchSafety, Refusal};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use tokio::sync::watch;

use crate::error::{LaunchError, ProviderError, refused};
use crate::machine::EnrolmentToken;
use crate::price::PowerPrice;
use crate::provider::{Capabilities, Instance, InstanceId, Listing, Order, Provider, Used, Work};
use instance::PodId;
use offers::Terms;
pub use once::SingleShot;

/// Objects a page.
const PAGE: u32 = 500;
/// A call that has not ended after this long has failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a quote waits for the first lists.
const FIRST_LIST: Duration = Duration::from_secs(10);

/// How nodes are offered.
#[derive(Clone, Debug)]
pub struct NodesConfig {
    /// Name of the ComputeProvider, in offers and claims.
    pub name: String,
    /// Uid of the installation.
    pub installation: String,
    /// Namespaces in which there may be claims; empty: all.
    pub namespaces: Vec<String>,
    /// Labels a node must have to be offered.
    pub selector: BTreeMap<String, String>,
    /// Taints that the Pods put up with. That of a device they ask for they always do.
    pub tolerations: Vec<Toleration>,
    /// Groups of the job beside its own; where devices belong to one (`render`).
    pub groups: Vec<i64>,
    /// What the owner says about electricity.
    pub power: PowerPrice,
}

/// Where nodes and Pods are seen for quotes.
#[derive(Clone)]
pub enum Sight {
    /// In caches that somebody keeps current: all nodes, and all Pods of all namespaces.
    Stores {
        /// Nodes.
        nodes: Store<Node>,
        /// Pods, finished ones may be missing.
        pods: Store<Pod>,
        /// Whether each holds all that there is; before that, nothing is offered.
        complete: [watch::Receiver<bool>; 2],
    },
    /// Nowhere: the server is asked each time.
    Server,
}

/// The nodes of this cluster.
pub struct Nodes {
    config: NodesConfig,
    client: kube::Client,
    once: SingleShot,
    sight: Sight,
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

impl Nodes {
    /// `client` may repeat calls as it likes; purchases go through `once`.
    pub fn new(config: NodesConfig, client: kube::Client, once: SingleShot, sight: Sight) -> Self {
        Self { config, client, once, sight, now: Arc::new(Timestamp::now) }
    }

    /// Quotes carry the time of this clock instead of the system's.
    #[must_use]
    pub fn by_clock(mut self, now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        self.now = Arc::new(now);
        self
    }

    fn failed(&self, what: &str) -> impl FnOnce(kube::Error) -> ProviderError {
        let (provider, what) = (self.config.name.clone(), what.to_owned());
        move |error| answer::of_call(&provider, &what, &error)
    }

    /// The call's answer, if there is one in time.
    async fn within<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, ProviderError> {
        match tokio::time::timeout(PATIENCE, call).await {
            Ok(answer) => answer.map_err(self.failed(what)),
            Err(_) => Err(ProviderError::Unreachable {
                provider: self.config.name.clone(),
                detail: format!("{what}: no answer within {} s", PATIENCE.as_secs()),
            }),
        }
    }

    /// Waits until a cache is complete. A part of the Pods would make nodes look free.
    async fn listed(&self, mut complete: watch::Receiver<bool>) -> Result<(), ProviderError> {
        match tokio::time::timeout(FIRST_LIST, complete.wait_for(|complete| *complete)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(ProviderError::Unreachable {
                provider: self.config.name.clone(),
                detail: "not all nodes and Pods are known yet; if this lasts, see in the log \
                         whether they may be listed and watched"
                    .to_owned(),
            }),
        }
    }

    /// All pages of a list, read from the server's store and not from its cache.
    async fn all<K>(
        &self,
        what: &str,
        api: &Api<K>,
        labels: &str,
    ) -> (Vec<K>, Option<ProviderError>)
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let mut seen = Vec::new();
        let mut parameters = ListParams::default().labels(labels).limit(PAGE);
        loop {
            let page = match self.within(what, api.list(&parameters)).await {
                Ok(page) => page,
                // Also 410: the list changed too much between two pages.
                Err(error) => return (seen, Some(error)),
            };
            seen.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => return (seen, None),
            }
        }
    }

    /// Pods by their labels, in one namespace or in all that there may be claims in.
    async fn pods(&self, namespace: Option<&str>, labels: &str) -> Result<Listing, ProviderError> {
        let api = |name: &str| Api::<Pod>::namespaced(self.client.clone(), name);
        let apis = match (namespace, self.config.namespaces.as_slice()) {
            (Some(name), _) => vec![api(name)],
            (None, []) => vec![Api::all(self.client.clone())],
            (None, names) => names.iter().map(|name| api(name)).collect(),
        };
        let mut instances = Vec::new();
        let mut incomplete = None;
        for api in &apis {
            let (pods, error) = self.all("list Pods", api, labels).await;
            instances.extend(pods.iter().filter_map(instance::of));
            incomplete = incomplete.or(error);
        }
        match incomplete {
            // What was seen is true; what was not seen may be there.
            Some(_) if !instances.is_empty() => Ok(Listing { instances, complete: false }),
            Some(error) => Err(error),
            None => Ok(Listing { instances, complete: true }),
        }
    }

    fn quoted<'a>(
        &self,
        nodes: impl IntoIterator<Item = &'a Node>,
        pods: impl IntoIterator<Item = &'a Pod>,
    ) -> Result<Vec<Offer>, ProviderError> {
        let NodesConfig { name, installation, selector, tolerations, power, .. } = &self.config;
        let terms = Terms { provider: name, installation, selector, tolerations, power };
        offers::offers(&terms, nodes, pods, (self.now)())
            .map_err(|detail| ProviderError::Misconfigured { provider: name.clone(), detail })
    }

    fn pod_api(&self, id: &PodId) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &id.namespace)
    }

    /// A Pod of the name that we would give is there: the one of our claim, launched by a call
    /// whose answer was lost, or somebody else's.
    async fn already_there(&self, wanted: &Pod) -> Result<InstanceId, LaunchError> {
        let (namespace, name) = (text(&wanted.metadata.namespace), text(&wanted.metadata.name));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let found = self
            .within("get the Pod that is already there", api.get_opt(name))
            .await
            .map_err(|error| LaunchError::Ambiguous { detail: error.to_string() })?;
        let owners = |pod: &Pod| -> Vec<String> {
            let list = pod.metadata.owner_references.iter().flatten();
            list.map(|owner| owner.uid.clone()).collect()
        };
        match found {
            Some(pod) if owners(&pod) == owners(wanted) => Ok(id_of(&pod)),
            Some(_) => Err(refused(
                Refusal::Invalid,
                format!("a Pod {namespace}/{name} that is not this claim's is in the way"),
            )),
            // It was there and is gone: an interruption, not a reason to make it anew.
            None => Err(refused(
                Refusal::NoCapacity,
                format!("Pod {namespace}/{name} was there already and is gone"),
            )),
        }
    }
}

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}

fn id_of(pod: &Pod) -> InstanceId {
    let meta = &pod.metadata;
    let (namespace, name, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
    PodId { namespace: namespace.to_owned(), name: name.to_owned(), uid: uid.to_owned() }.instance()
}

#[async_trait]
impl Provider for Nodes {
    fn name(&self) -> &str {
        &self.config.name
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            // A Pod's name is unique. A call that timed out here may be stored a little later;
            // whatever is stored shows in the next list.
            launch_safety: LaunchSafety { idempotent: true, settle_seconds: 5 },
            // Large images are pulled in this time.
            launch_timeout: Duration::from_secs(20 * 60),
            termination_timeout: Duration::from_secs(5 * 60),
            billing: Billing::new(Duration::from_secs(1), Duration::ZERO),
            sells: true,
            own_address: true,
            rented: false,
        }
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        match &self.sight {
            Sight::Stores { nodes, pods, complete } => {
                for list in complete {
                    self.listed(list.clone()).await?;
                }
                let (nodes, pods) = (nodes.state(), pods.state());
                self.quoted(nodes.iter().map(Arc::as_ref), pods.iter().map(Arc::as_ref))
            }
            Sight::Server => {
                // Pods last: one that appears meanwhile is seen, one that goes frees nothing yet.
                let nodes: Api<Node> = Api::all(self.client.clone());
                let (nodes, error) = self.all("list nodes", &nodes, "").await;
                error.map_or(Ok(()), Err)?;
                let pods: Api<Pod> = Api::all(self.client.clone());
                let (pods, error) = self.all("list Pods", &pods, "").await;
                error.map_or(Ok(()), Err)?;
                self.quoted(&nodes, &pods)
            }
        }
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        let Order { identity, offer, work } = order;
        let invalid = |detail: String| refused(Refusal::Invalid, detail);
        let Work::Machine(machine) = work else {
            return Err(invalid("a node runs images, not commands of this host".to_owned()));
        };
        if offer.provider != self.config.name {
            return Err(invalid(format!("offer {} is not of {}", offer.id, self.config.name)));
        }
        let pod = manifest::pod(&self.config, identity, offer, machine).map_err(invalid)?;
        let body = serde_json::to_string(&pod).map_err(|error| invalid(error.to_string()))?;
        Ok(FrozenRequest { body })
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let pod: Pod = serde_json::from_str(&request.body)
            .map_err(|error| refused(Refusal::Invalid, error.to_string()))?;
        let sent = manifest::with_token(pod.clone(), token);
        match tokio::time::timeout(PATIENCE, self.once.create(&sent)).await {
            Ok(Ok(created)) => Ok(id_of(&created)),
            Ok(Err(error)) => match answer::of_launch(&error) {
                Some(error) => Err(error),
                None => self.already_there(&pod).await,
            },
            Err(_) => Err(LaunchError::Ambiguous {
                detail: format!("no answer within {} s", PATIENCE.as_secs()),
            }),
        }
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        let Identity { installation, namespace, claim_uid, .. } = identity;
        let labels =
            format!("{}={installation},{}={claim_uid}", labels::INSTALLATION, labels::CLAIM_UID);
        self.pods(Some(namespace), &labels).await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        let provider = &self.config.name;
        let labels =
            format!("{}={installation},{}={provider}", labels::INSTALLATION, labels::PROVIDER);
        self.pods(None, &labels).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        let Some(id) = PodId::parse(id) else {
            return Ok(None);
        };
        let pod = self.within("get a Pod", self.pod_api(&id).get_opt(&id.name)).await?;
        Ok(pod
            .filter(|pod| pod.metadata.uid.as_ref() == Some(&id.uid))
            .and_then(|p| instance::of(&p)))
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        let Some(id) = PodId::parse(id) else {
            return Ok(());
        };
        let this_one = Preconditions { uid: Some(id.uid.clone()), resource_version: None };
        let parameters = DeleteParams::background().preconditions(this_one);
        let api = self.pod_api(&id);
        let call = async {
            match api.delete(&id.name, &parameters).await {
                Ok(_) => Ok(()),
                // Gone, or another Pod has the name now.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.within("delete a Pod", call).await
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        Ok(used.at_its_price(self.capabilities().billing))
    }
}
