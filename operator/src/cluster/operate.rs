//! Starting the operator: caches first, then the election, and whoever leads works until it no
//! longer does. A new leader reads the claims by quorum and the ledger before it places anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector;
use kube::{Api, Client};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::TrainingJob;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::Instrument;

use crate::agents::Agents;
use crate::claims::Claims;
use crate::cluster::claims::ObjectClaims;
use crate::cluster::error::Error;
use crate::cluster::events::Events;
use crate::cluster::gateway_objects::GATEWAY_LABEL;
use crate::cluster::gateways::Gateways;
use crate::cluster::leader::{Election, Leadership};
use crate::cluster::metrics::{Controller, Metrics, Outcome};
use crate::cluster::providers::{MakeProvider, Registry};
use crate::cluster::queue::{Again, Queue};
use crate::cluster::settings::Settings;
use crate::cluster::shelf::Shelf;
use crate::cluster::table::ClaimTable;
use crate::cluster::trace::{self, Named};
use crate::cluster::watches::{
    Part, follow_claims, on_budget, on_gateway_object, on_job, on_provider, on_service,
};
use crate::cluster::{
    Handle, Operator, budgets, compute_claim, compute_provider, jobs, placement, services, sweep,
    training_job, watches,
};
use crate::http;
use crate::installation::Installation;
use crate::ledger::Ledger;

/// Objects of one kind that are worked on at once.
const AT_ONCE: usize = 16;

/// Longest time between two placement passes while something waits.
const PLACE_AGAIN: Duration = Duration::from_secs(30);

/// What a stopping operator gives to passes that are under way; the chart gives it 30 s in all.
const LAST_TURNS: Duration = Duration::from_secs(15);
/// What it gives to the API server to take the Lease back.
const RESIGNATION: Duration = Duration::from_secs(5);

/// What cannot be made by the operator itself, so that tests may give their own.
pub struct Parts {
    /// The API server. Its client repeats no call by itself.
    pub client: Client,
    /// Tells the time.
    pub clock: Clock,
    /// The ledger.
    pub ledger: Ledger,
    /// Makes providers.
    pub make: Arc<dyn MakeProvider>,
}

/// Why the operator could not be started, or ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// It does not know who it is.
    #[error(transparent)]
    Installation(#[from] crate::cluster::installation::InstallationError),
    /// It cannot talk to agents.
    #[error("no HTTP client can be made: {0}")]
    Http(#[from] reqwest::Error),
    /// Nothing can be served.
    #[error("--http-address {address}: {source}")]
    Address {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A started operator. Dropping it stops everything at once, as a crash would.
pub struct Running {
    /// What it works with.
    pub operator: Arc<Operator>,
    /// The queues, for whoever waits until nothing is left to do.
    pub queues: Queues,
    /// Where it answers by HTTP.
    pub http: SocketAddr,
    tasks: JoinSet<()>,
    /// Who holds the Lease, where there is an election.
    me: Option<String>,
}

/// What waits for its turn.
#[derive(Clone)]
pub struct Queues {
    /// Jobs.
    pub jobs: Queue<crate::cluster::table::Name>,
    /// Services.
    pub services: Queue<crate::cluster::table::Name>,
    /// Claims.
    pub claims: Queue<crate::cluster::table::Name>,
    /// Providers.
    pub providers: Queue<String>,
    /// Budgets.
    pub budgets: Queue<crate::cluster::table::Name>,
}

impl Queues {
    fn close(&self) {
        self.jobs.close();
        self.services.close();
        self.claims.close();
        self.providers.close();
        self.budgets.close();
    }

    async fn idle(&self, clock: &Clock) {
        let busy = || {
            self.jobs.is_busy()
                || self.services.is_busy()
                || self.claims.is_busy()
                || self.providers.is_busy()
                || self.budgets.is_busy()
        };
        while busy() {
            clock.sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Queues {
    /// How many objects wait for their turn, by whose turn it is.
    pub fn depths(&self) -> [(Controller, usize); 5] {
        let Self { jobs, services, claims, providers, budgets } = self;
        [
            (Controller::TrainingJob, jobs.depth()),
            (Controller::InferenceService, services.depth()),
            (Controller::ComputeClaim, claims.depth()),
            (Controller::ComputeProvider, providers.depth()),
            (Controller::SpendBudget, budgets.depth()),
        ]
    }
}

impl Running {
    /// Works until it is dropped, or a task of it ends, which none does by itself.
    pub async fn wait(&mut self) {
        self.tasks.join_next().await;
    }

    /// Ends in order: nothing new is begun, what is under way is given some seconds, and the Lease
    /// is given back only when nothing acts any more.
    pub async fn stop(mut self) {
        self.operator.health.drain();
        self.queues.close();
        let clock = &self.operator.clock;
        if clock.timeout(LAST_TURNS, self.queues.idle(clock)).await.is_none() {
            tracing::warn!("some passes did not end in time; the next operator takes them up");
        }
        self.tasks.shutdown().await;
        let Some(me) = &self.me else { return };
        let leases =
            Api::namespaced(self.operator.client.clone(), &self.operator.settings.namespace);
        match clock.timeout(RESIGNATION, Election::resign(&leases, me)).await {
            Some(Ok(())) => tracing::info!("the Lease is given back"),
            Some(Err(error)) => tracing::warn!(%error, "the Lease runs out by itself"),
            None => tracing::warn!("the Lease runs out by itself"),
        }
    }
}

/// Starts it.
///
/// # Errors
/// What is missing in the cluster, in words.
pub fn start(settings: Settings, parts: Parts) -> BoxFuture<'static, Result<Running, StartError>> {
    // Boxed here, so that no other crate compiles everything in it once more.
    Box::pin(start_all(settings, parts))
}

async fn start_all(settings: Settings, parts: Parts) -> Result<Running, StartError> {
    let Parts { client, clock, ledger, make } = parts;
    let address = settings.http_address;
    let listener = http::listen(address)
        .await
        .and_then(|listener| Ok((listener.local_addr()?, listener)))
        .map_err(|source| StartError::Address { address, source });
    let (bound, listener) = listener?;
    let installation = Arc::new(Installation::of(&client, &settings.namespace).await?);
    let mut tasks = JoinSet::new();
    let me =
        settings.leader_elect.then(|| format!("{}-{}", settings.replica, installation_suffix()));
    let leadership = match &me {
        Some(me) => {
            let (election, leadership) =
                Election::new(client.clone(), &settings.namespace, me.clone(), clock.clone());
            tasks.spawn(election.run());
            leadership
        }
        None => Leadership::sole(clock.clone()),
    };
    let queues = Queues {
        jobs: Queue::new(clock.clone()),
        services: Queue::new(clock.clone()),
        claims: Queue::new(clock.clone()),
        providers: Queue::new(clock.clone()),
        budgets: Queue::new(clock.clone()),
    };
    let table = ClaimTable::default();
    let is_over = |job: &TrainingJob| job.status.as_ref().is_some_and(training_job::is_over);
    let jobs = Shelf::new(is_over);
    let services = Shelf::new(|_| false);
    let (deployments, keep_deployments) = reflector::store();
    let (cluster_services, keep_services) = reflector::store();
    let (_, keep_pods) = reflector::store();
    let provider_objects = Shelf::new(|_| false);
    let budgets = Shelf::new(|_| false);
    let handle = Handle {
        jobs: queues.jobs.clone(),
        services: queues.services.clone(),
        claims: queues.claims.clone(),
        budgets: queues.budgets.clone(),
        suspects: Default::default(),
        budget_names: Arc::default(),
    };
    make.tells(&handle);
    let (events, sending) = Events::new(client.clone(), &settings.replica);
    tasks.spawn(sending);
    let root = installation.clone();
    let leads = leadership.clone();
    let metrics = Metrics::new(clock.clone());
    let claims = ObjectClaims::new(
        client.clone(),
        settings.watch_namespaces.clone(),
        table.clone(),
        clock.clone(),
        events.clone(),
    );
    let operator = Arc::new(Operator {
        agents: Agents::new(
            clock.clone(),
            installation.clone(),
            Arc::new(claims.clone()),
            Arc::new(handle.clone()),
            settings.lease,
        )?,
        claims,
        events,
        providers: Registry::new(make, metrics.clone()),
        metrics,
        health: Default::default(),
        book: Default::default(),
        admissions: Default::default(),
        artifacts: Default::default(),
        secrets: Default::default(),
        models: Default::default(),
        memories: Default::default(),
        gateways: Gateways::new(clock.clone(), installation.clone())?,
        placement: Default::default(),
        waiting: Default::default(),
        suspects: handle.suspects.clone(),
        jobs: jobs.clone(),
        services: services.clone(),
        deployments,
        cluster_services,
        budgets: budgets.clone(),
        exhausted: Default::default(),
        provider_objects: provider_objects.clone(),
        handle: handle.clone(),
        token: Box::new(move |identity| root.token(identity)),
        leads: Box::new(move || leads.leads()),
        client: client.clone(),
        clock,
        settings,
        installation,
        leadership,
        table: table.clone(),
        ledger,
    });
    let namespaces = &operator.settings.watch_namespaces;
    let (claims_ready, claims_complete) = watch::channel(false);
    let watches = [
        watches::begin(
            Part::each(&client, namespaces),
            jobs,
            |_| {},
            on_job(handle.clone(), operator.models.clone(), jobs::forgets(&operator)),
        ),
        watches::begin(
            Part::each(&client, namespaces),
            services,
            |_| {},
            on_service(handle.clone()),
        ),
        watches::begin(
            of_gateways(&client, namespaces),
            keep_deployments,
            |_| {},
            on_gateway_object(handle.clone()),
        ),
        watches::begin(
            of_gateways(&client, namespaces),
            keep_services,
            |_| {},
            on_gateway_object(handle.clone()),
        ),
        watches::begin(
            of_gateways(&client, namespaces),
            keep_pods,
            |pod: &mut Pod| pod.spec = None,
            operator.gateways.on_pod(handle.clone()),
        ),
        watches::begin(
            vec![Part::all(&client).labels(operator.settings.provider_labels.as_deref())],
            provider_objects,
            |_| {},
            on_provider(queues.providers.clone()),
        ),
        watches::begin(
            Part::each(&client, namespaces),
            budgets,
            |_| {},
            on_budget(handle.clone(), operator.placement.clone()),
        ),
    ];
    let mut complete = vec![claims_complete];
    for watch in watches {
        tasks.spawn(until_over(watch.task));
        complete.push(watch.complete);
    }
    tasks.spawn(follow_claims(Part::each(&client, namespaces), table, handle, claims_ready));
    tasks.spawn(http::serve(operator.clone(), queues.clone(), listener));
    let (leader, shared) = (operator.clone(), queues.clone());
    tasks.spawn(async move {
        for mut list in complete {
            // Its sender lives as long as the watch.
            let _ = list.wait_for(|complete| *complete).await;
        }
        leader.health.filled();
        lead(leader, shared).await;
    });
    Ok(Running { operator, queues, http: bound, tasks, me })
}

/// What belongs to gateways, of a kind.
fn of_gateways<K>(client: &Client, namespaces: &[String]) -> Vec<Part<K>>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    let parts = Part::each(client, namespaces).into_iter();
    parts.map(|part| part.labelled(GATEWAY_LABEL, true)).collect()
}

async fn until_over(task: tokio::task::JoinHandle<()>) {
    let _abort = AbortOnDrop(task.abort_handle());
    let _ = task.await;
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Something that no other process has, so that a restarted Pod of the same name is another.
fn installation_suffix() -> String {
    crate::uid::random().map(|uid| uid[..8].to_owned()).unwrap_or_default()
}

/// Waits to lead, works, and stops the moment it no longer leads; again and again.
async fn lead(operator: Arc<Operator>, queues: Queues) {
    loop {
        operator.leadership.gained().await;
        tracing::info!("leading");
        tokio::select! {
            () = work(operator.clone(), queues.clone()) => {}
            () = operator.leadership.lost() => tracing::warn!("no longer leading"),
        }
        operator.health.begun(false);
        operator.agents.forget_all();
        operator.gateways.forget_all();
        operator.memories.clear();
        operator.waiting.clear();
    }
}

/// Everything that only the leader does. Dropping it cancels all of it.
async fn work(operator: Arc<Operator>, queues: Queues) {
    while let Err(error) = begin(&operator).await {
        tracing::warn!(%error, "cannot begin yet");
        operator.clock.sleep(Duration::from_secs(2)).await;
    }
    operator.health.begun(true);
    operator.jobs.names().into_iter().for_each(|name| queues.jobs.add(name));
    operator.services.names().into_iter().for_each(|name| queues.services.add(name));
    operator.table.names().into_iter().for_each(|name| queues.claims.add(name));
    operator.budgets.names().into_iter().for_each(|name| queues.budgets.add(name));
    let Queues { jobs, services, claims, providers, budgets } = queues;
    tokio::join!(
        turns(Controller::TrainingJob, &operator, &jobs, |operator, name| async move {
            jobs::reconcile(&operator, &name).await
        }),
        turns(Controller::InferenceService, &operator, &services, |operator, name| async move {
            services::reconcile(&operator, &name).await
        }),
        turns(Controller::ComputeClaim, &operator, &claims, |operator, name| async move {
            compute_claim::reconcile(&operator, &name).await
        }),
        turns(Controller::ComputeProvider, &operator, &providers, |operator, name| async move {
            compute_provider::reconcile(&operator, &name).await
        }),
        turns(Controller::SpendBudget, &operator, &budgets, |operator, name| async move {
            budgets::reconcile(&operator, &name).await
        }),
        placements(&operator),
        sweeps(&operator),
    );
}

/// The reservations and the money, as the stores themselves have them now.
async fn begin(operator: &Operator) -> Result<(), Error> {
    operator.claims.list().await?;
    operator.book.read(&operator.ledger).await?;
    for name in operator.provider_names() {
        if let Some(object) = operator.provider_object(&name) {
            operator.providers.put(&name, Arc::new(object));
            operator.providers.refresh(&name, operator.clock.now()).await;
        }
    }
    operator.know_exhausted();
    Ok(())
}

/// Works on keys, a bounded number at once, until it is dropped.
async fn turns<K, F>(
    controller: Controller,
    operator: &Arc<Operator>,
    queue: &Queue<K>,
    reconcile: impl Fn(Arc<Operator>, K) -> F + Copy,
) where
    K: Named + Clone + Eq + Ord + std::hash::Hash + Send + 'static,
    F: Future<Output = Result<Again, Error>>,
{
    let one = || async {
        loop {
            let key = queue.next().await;
            let span = trace::reconcile(controller.as_str(), &key);
            let pass = operator.metrics.begin(controller);
            let turn = std::panic::AssertUnwindSafe(reconcile(operator.clone(), key.clone()));
            // One poisoned object must not take the others with it.
            let turn = turn.catch_unwind().instrument(span.clone()).await;
            pass.end(turn.as_ref().map_or(Outcome::Panicked, Outcome::of));
            let again = span.in_scope(|| match turn {
                Ok(Ok(again)) => again,
                Ok(Err(error)) => {
                    let again = error.again();
                    match again {
                        Again::Backoff => {
                            tracing::warn!(%error, reason = %error.reason(), "again later");
                        }
                        Again::OnChange | Again::After(_) | Again::LostRace => {
                            tracing::debug!(%error, "again");
                        }
                    }
                    again
                }
                Err(_) => {
                    tracing::error!("a pass panicked");
                    Again::Backoff
                }
            });
            queue.done(&key, again);
        }
    };
    futures::future::join_all((0..AT_ONCE).map(|_| one())).await;
}

async fn placements(operator: &Operator) {
    let mut again = Duration::ZERO;
    loop {
        tokio::select! {
            () = operator.placement.asked(operator) => {}
            () = operator.clock.sleep(again) => {}
        }
        let pass = operator.metrics.begin(Controller::Placement);
        let result = placement::pass(operator).instrument(trace::pass("placement")).await;
        pass.end(Outcome::of(&result));
        again = match result {
            Ok(again) => again.unwrap_or(PLACE_AGAIN).max(Duration::from_millis(100)),
            Err(error) => {
                tracing::warn!(%error, reason = %error.reason(), "placement");
                Duration::from_secs(2)
            }
        };
    }
}

async fn sweeps(operator: &Operator) {
    let mut rounds = 0_u32;
    loop {
        let wait = if rounds < sweep::QUICK_ROUNDS { sweep::QUICK } else { sweep::SLOW };
        operator.clock.sleep(wait).await;
        rounds = rounds.saturating_add(1);
        for (name, known) in operator.providers.all() {
            let Ok(provider) = known.provider else { continue };
            let pass = operator.metrics.begin(Controller::Sweep);
            let round = sweep::round(operator, provider.as_ref());
            let result = round.instrument(trace::pass("sweep")).await;
            pass.end(Outcome::of(&result));
            match result {
                Ok(swept) if swept != sweep::Swept::default() => {
                    tracing::warn!(provider = %name, ?swept, "swept");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(provider = %name, %error, "sweep"),
            }
        }
    }
}
