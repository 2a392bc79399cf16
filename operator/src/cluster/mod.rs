//! The operator in a cluster: what is asked for stands in objects, and what was decided too.
//!
//! | module | holds |
//! |---|---|
//! | [`settings`] | what it is started with |
//! | [`installation`], [`leader`] | who it is; whether it may act |
//! | [`watches`] | what the API server tells: kept on shelves, passed to queues |
//! | [`shelf`] | objects at rest, packed |
//! | [`queue`] | keys in turn; failing ones later and later |
//! | [`table`], [`claims`], [`claim_status`] | claims: what is known of them, and writing them |
//! | [`admit`], [`artifacts`] | a job's recipe, resolved once, and how much work it is; what it starts from |
//! | [`secrets`] | the Secrets and ConfigMaps that a job names |
//! | [`placement`], [`moves`] | **the serial placement pass**; jobs that leave for a better place |
//! | [`record`] | worlds in which something was decided, for replays |
//! | [`lane`] | who stands back while claims are written |
//! | [`training_job`], [`jobs`] | TrainingJob: what follows from what is seen; doing it |
//! | [`inference_service`], [`services`] | InferenceService: what follows from what is seen; doing it |
//! | [`served`] | the models that services serve |
//! | [`gateways`], [`gateway_objects`] | talking to gateways; their Deployment and Service |
//! | [`owner`] | whoever asked for a claim |
//! | [`compute_claim`], [`machine`] | ComputeClaim: buying, and whoever is there |
//! | [`providers`], [`compute_provider`] | ComputeProvider: whom to ask, and what they offer |
//! | [`spend_budget`], [`budgets`] | SpendBudget: what follows from its sums; the sums, and doing it |
//! | [`book`] | what was spent, in memory |
//! | [`sweep`], `listed` | machines no claim wants, claims whose machine is gone; what a list says to claims |
//! | [`trace`] | which log lines belong together |
//! | [`metrics`], [`health`] | what is counted; what the probes ask |
//! | [`status`], [`finalizer`], [`error`] | conditions; holding objects; what can go wrong and when to try again |
//! | [`events`] | what people are told when something changes |
//! | [`abandon`] | giving a machine up by hand |
//! | [`patience`] | when an API server that has too much to do wants to be asked again |
//! | [`probe`], [`schema`] | whether the cluster is fit |
//! | [`make`], `keyed` | providers as their objects describe them; with credentials from a Secret |
//! | [`begin`], [`operate`] | from settings to parts; from parts to all of it at work |
//! | `work` | what only the one that leads does |

pub mod abandon;
pub mod admit;
pub mod artifacts;
pub mod audit;
pub mod begin;
pub mod book;
pub mod budgets;
pub mod claim_status;
pub mod claims;
pub mod compute_claim;
pub mod compute_provider;
pub mod error;
pub mod events;
pub mod finalizer;
pub mod gateway_objects;
pub mod gateways;
pub mod guard;
pub mod health;
pub mod inference_service;
pub mod installation;
pub mod jobs;
mod keyed;
pub mod lane;
pub mod leader;
mod listed;
pub mod machine;
pub mod make;
pub mod metrics;
pub mod moves;
pub mod operate;
pub mod owner;
pub mod parting;
pub mod patience;
pub mod placement;
pub mod probe;
pub mod providers;
pub mod queue;
pub mod record;
pub mod repeat;
pub mod schema;
pub mod secrets;
pub mod served;
pub mod services;
pub mod set;
pub mod settings;
pub mod shelf;
pub mod spend_budget;
pub mod status;
pub mod sweep;
pub mod table;
#[cfg(test)]
pub(crate) mod testing;
pub mod trace;
pub mod training_job;
pub mod watches;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::Ingress;
use kube::runtime::reflector::Store;
use kube::{Api, Client};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{ClaimSpec, Identity};
use petaflop_arbiter::ledger::Row;
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};
use petaflop_crds::{ComputeProvider, InferenceService, SpendBudget, TrainingJob};
use petaflop_providers::{EnrolmentToken, Provider, Work};

use crate::act::Actor;
use crate::agents::{Agents, Listener};
use crate::fleet::Fleet;
use crate::installation::Installation;
use crate::ledger::Ledger;
use admit::Admissions;
use artifacts::Artifacts;
use book::Book;
use claims::ObjectClaims;
use health::Health;
use leader::Leadership;
use metrics::Metrics;
use placement::Placement;
use providers::Registry;
use queue::Queue;
use set::{Shared, Waiting};
use settings::Settings;
use shelf::Shelf;
use table::{ClaimTable, Name};

/// Changes of what is spent within this time are looked at together.
const MONEY_TOGETHER: Duration = Duration::from_secs(1);

type TokenOf = Box<dyn Fn(&Identity) -> EnrolmentToken + Send + Sync>;
type Leads = Box<dyn Fn() -> bool + Send + Sync>;
type Beside = Box<dyn Fn(&Row) + Send + Sync>;

/// A kind's objects of each of these namespaces; of the whole cluster, where none are named.
fn within<K>(client: &Client, namespaces: &[String]) -> Vec<Api<K>>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespaces {
        [] => vec![Api::all(client.clone())],
        names => names.iter().map(|name| Api::namespaced(client.clone(), name)).collect(),
    }
}

/// Everything that a pass may look at or act through.
pub struct Operator {
    /// The API server.
    pub client: Client,
    /// Tells the time.
    pub clock: Clock,
    /// What it was started with.
    pub settings: Settings,
    /// Who it is.
    pub installation: Arc<Installation>,
    /// Whether it may act.
    pub leadership: Leadership,
    /// Claims, written.
    pub claims: ObjectClaims,
    /// Claims, known.
    pub table: ClaimTable,
    /// Money, booked.
    pub ledger: Ledger,
    /// Money, known.
    pub book: Book,
    /// Whom to buy from.
    pub providers: Registry,
    /// Agents of claimed machines.
    pub agents: Agents,
    /// Jobs that were admitted.
    pub admissions: Admissions,
    /// What jobs start from and services serve.
    pub artifacts: Artifacts,
    /// Secrets of jobs.
    pub secrets: secrets::Secrets,
    /// The models that services serve.
    pub models: served::Models,
    /// What passes over services remember.
    pub memories: services::Memories,
    /// Gateways of services.
    pub gateways: gateways::Gateways,
    /// The placement pass.
    pub placement: Placement,
    /// What happened, counted.
    pub metrics: Metrics,
    /// How far this process is.
    pub health: Health,
    /// Uids of workloads that wait for a machine.
    pub waiting: Waiting,
    /// What people are told.
    pub events: events::Events,
    /// Claims whose machine may be gone.
    pub suspects: Shared<Name>,
    /// Uids of accounts in the ledger that have neither a claim nor a machine.
    pub unkept: Waiting,
    jobs: Shelf<TrainingJob>,
    services: Shelf<InferenceService>,
    // Few, and large types: as they are.
    deployments: Store<Deployment>,
    cluster_services: Store<Service>,
    ingresses: Store<Ingress>,
    budgets: Shelf<SpendBudget>,
    exhausted: budgets::Exhausted,
    provider_objects: Shelf<ComputeProvider>,
    handle: Handle,
    token: TokenOf,
    leads: Leads,
    beside: Beside,
}

/// How whoever learns something wakes those whom it concerns. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    jobs: Queue<Name>,
    services: Queue<Name>,
    claims: Queue<Name>,
    providers: Queue<String>,
    budgets: Queue<Name>,
    suspects: Shared<Name>,
    /// Names of the budgets of a namespace.
    budget_names: Arc<std::sync::Mutex<BTreeMap<String, BTreeSet<String>>>>,
}

impl Listener for Handle {
    fn heard(&self, claim: &Name, owner: &WorkloadId) {
        self.owner_changed(owner);
        self.claim_changed(claim);
    }

    fn silent(&self, claim: &Name) {
        self.suspect(claim);
    }
}

impl Handle {
    /// Something is new about a workload.
    pub fn owner_changed(&self, owner: &WorkloadId) {
        let name = (owner.namespace.clone(), owner.name.clone());
        match owner.kind {
            OwnerKind::TrainingJob => self.jobs.add(name),
            OwnerKind::InferenceService => self.services.add(name),
        }
    }

    /// Something is new about a service.
    pub fn service_changed(&self, name: &Name) {
        self.services.add(name.clone());
    }

    /// Something is new about a claim.
    pub fn claim_changed(&self, name: &Name) {
        self.claims.add(name.clone());
    }

    /// Something is new about a ComputeProvider.
    pub fn provider_changed(&self, name: &str) {
        self.providers.add(name.to_owned());
    }

    /// A claim is looked at within this time, whatever else is known of it.
    pub fn look_at_claim_within(&self, name: &Name, wait: Duration) {
        self.claims.add_after(name.clone(), wait);
    }

    /// A claim's machine may be gone.
    pub fn suspect(&self, name: &Name) {
        self.suspects.insert(name.clone());
        self.claims.add(name.clone());
    }

    /// Something costs more or less in a namespace: its budgets are looked at soon, all changes together.
    pub fn money_moved(&self, namespace: &str) {
        let known = self.budget_names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for name in known.get(namespace).into_iter().flatten() {
            self.budgets.add_after((namespace.to_owned(), name.clone()), MONEY_TOGETHER);
        }
    }

    /// What is offered is other than it was: every budget may buy more or less for its money.
    pub fn offers_changed(&self) {
        let known = self.budget_names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for (namespace, names) in known.iter() {
            for name in names {
                self.budgets.add_after((namespace.clone(), name.clone()), MONEY_TOGETHER);
            }
        }
    }

    fn know_budget(&self, (namespace, name): &Name, there: bool) {
        let mut known = self.budget_names.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let names = known.entry(namespace.clone()).or_default();
        match there {
            true => names.insert(name.clone()),
            false => names.remove(name),
        };
        if names.is_empty() {
            known.remove(namespace);
        }
    }
}

impl Operator {
    /// How others wake us.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What all machines have in common.
    pub fn fleet(&self) -> Fleet<'_> {
        Fleet {
            installation: &self.installation,
            runtime_image: &self.settings.runtime_image,
            runtime: &self.settings.runtime,
            agent_image: &self.settings.agent_image,
            store: &self.settings.store,
        }
    }

    /// See [`Handle::owner_changed`].
    pub fn owner_changed(&self, owner: &WorkloadId) {
        self.handle.owner_changed(owner);
    }

    /// See [`Handle::claim_changed`].
    pub fn claim_changed(&self, name: &Name) {
        self.handle.claim_changed(name);
    }

    /// A job, as the watch has it.
    pub fn job(&self, namespace: &str, name: &str) -> Option<TrainingJob> {
        self.jobs.get(namespace, name)
    }

    /// A service, as the watch has it.
    pub fn service(&self, namespace: &str, name: &str) -> Option<InferenceService> {
        self.services.get(namespace, name)
    }

    /// All services, as the watch has them.
    pub fn services(&self) -> Vec<InferenceService> {
        self.services.all()
    }

    /// A ComputeProvider, as the watch has it.
    pub fn provider_object(&self, name: &str) -> Option<ComputeProvider> {
        self.provider_objects.get("", name)
    }

    /// Whether a claim's machine is a node of this cluster, on its network.
    pub fn is_near(&self, claim: &ClaimSpec) -> bool {
        let provider = self.provider_object(&claim.offer.provider);
        provider.is_some_and(|provider| provider.spec.nodes.is_some())
    }

    /// Where the agent of a job's machine calls, if it is to. What a provider rents may have no address at
    /// which we reach it, so all of those call once there is somewhere to; a service's gateways dial.
    pub fn call_at(&self, claim: &ClaimSpec) -> Option<&str> {
        let calls = self.settings.agent_calls.as_ref()?;
        let calling = claim.owner.kind == OwnerKind::TrainingJob && !self.is_near(claim);
        calling.then_some(calls.endpoint.as_str())
    }

    /// Names of all ComputeProviders.
    pub fn provider_names(&self) -> Vec<String> {
        self.provider_objects.names().into_iter().map(|(_, name)| name).collect()
    }

    /// The buying protocol's actor for one claim of an owner.
    pub fn actor<'a>(
        &'a self,
        owner: &WorkloadId,
        provider: &'a dyn Provider,
        work: Option<Work<'a>>,
    ) -> Actor<'a> {
        Actor {
            installation: &self.installation.uid,
            claims: &self.claims,
            ledger: &self.ledger,
            beside: &*self.beside,
            budgets: self.workload(owner).map(|workload| self.budgets_of(&workload)),
            provider,
            work,
            token: &*self.token,
            leads: &*self.leads,
            heard: None,
            grace: SignedDuration::ZERO,
            clock: &self.clock,
        }
    }
}
