//! Starting the operator: caches first, then the election, and whoever leads works (`work`) until it no
//! longer does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector;
use kube::{Api, Client};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::TrainingJob;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::agents::{self, Agents};
use crate::cluster::book::Book;
use crate::cluster::claims::ObjectClaims;
use crate::cluster::events::Events;
use crate::cluster::gateway_objects::GATEWAY_LABEL;
use crate::cluster::gateways::Gateways;
use crate::cluster::leader::{Election, Leadership};
use crate::cluster::metrics::Metrics;
use crate::cluster::providers::{MakeProvider, Registry};
use crate::cluster::settings::Settings;
use crate::cluster::shelf::Shelf;
use crate::cluster::table::ClaimTable;
use crate::cluster::watches::{
    Part, follow_claims, on_budget, on_gateway_object, on_job, on_provider, on_service,
};
pub use crate::cluster::work::Queues;
use crate::cluster::{Handle, Operator, jobs, training_job, watches, work};
use crate::http;
use crate::installation::Installation;
use crate::ledger::Ledger;

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
    #[error("{flag} {address}: {source}")]
    Address {
        /// Who named it.
        flag: &'static str,
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
    let (bound, listener) = listen("--http-address", settings.http_address).await?;
    let calls = match &settings.agent_calls {
        Some(calls) => Some(listen("--agent-listen", calls.listen).await?.1),
        None => None,
    };
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
    let queues = Queues::new(&clock);
    let table = ClaimTable::default();
    let is_over = |job: &TrainingJob| job.status.as_ref().is_some_and(training_job::is_over);
    let jobs = Shelf::new(is_over);
    let services = Shelf::new(|_| false);
    let (deployments, keep_deployments) = reflector::store();
    let (cluster_services, keep_services) = reflector::store();
    let (ingresses, keep_ingresses) = reflector::store();
    let (_, keep_pods) = reflector::store();
    let provider_objects = Shelf::new(|_| false);
    let budgets = Shelf::new(|_| false);
    let handle = Handle {
        jobs: queues.jobs.clone(),
        services: queues.services.clone(),
        claims: queues.claims.clone(),
        providers: queues.providers.clone(),
        budgets: queues.budgets.clone(),
        suspects: Default::default(),
        budget_names: Arc::default(),
    };
    make.tells(&handle);
    let (events, sending) = Events::new(client.clone(), &settings.replica);
    tasks.spawn(sending);
    let book = Book::default();
    let (booked, told) = (book.clone(), handle.clone());
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
        book,
        admissions: Default::default(),
        artifacts: Default::default(),
        secrets: Default::default(),
        models: Default::default(),
        memories: Default::default(),
        gateways: Gateways::new(clock.clone(), installation.clone())?,
        placement: Default::default(),
        waiting: Default::default(),
        unkept: Default::default(),
        suspects: handle.suspects.clone(),
        jobs: jobs.clone(),
        services: services.clone(),
        deployments,
        cluster_services,
        ingresses,
        budgets: budgets.clone(),
        exhausted: Default::default(),
        provider_objects: provider_objects.clone(),
        handle: handle.clone(),
        token: Box::new(move |identity| root.token(identity)),
        leads: Box::new(move || leads.leads()),
        beside: Box::new(move |row| {
            booked.add(row);
            told.money_moved(&row.namespace);
        }),
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
            keep_ingresses,
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
    if let Some(listener) = calls {
        let (clock, router) = (operator.clock.clone(), agents::listen::router(&operator.agents));
        tasks.spawn(async move {
            http::accept(&clock, router, listener, agents::listen::CONNECTIONS).await;
        });
    }
    let (leader, shared) = (operator.clone(), queues.clone());
    tasks.spawn(async move {
        for mut list in complete {
            // Its sender lives as long as the watch.
            let _ = list.wait_for(|complete| *complete).await;
        }
        leader.health.filled();
        work::lead(leader, shared).await;
    });
    Ok(Running { operator, queues, http: bound, tasks, me })
}

/// A socket, and where it is bound.
async fn listen(
    flag: &'static str,
    address: SocketAddr,
) -> Result<(SocketAddr, TcpListener), StartError> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.and_then(|listener| Ok((listener.local_addr()?, listener)));
    listener.map_err(|source| StartError::Address { flag, address, source })
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
