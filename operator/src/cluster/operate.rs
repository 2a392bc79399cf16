//! Starting the operator: caches first, then the election, and whoever leads works until it no
//! longer does. A new leader reads the claims by quorum and the ledger before it places anything.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use kube::{Api, Client};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::{ComputeClaim, ComputeProvider, SpendBudget, TrainingJob};
use petaflop_providers::EnrolmentToken;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::claims::Claims;
use crate::cluster::agents::Agents;
use crate::cluster::claims::ObjectClaims;
use crate::cluster::error::Error;
use crate::cluster::installation::Installation;
use crate::cluster::leader::{Election, Leadership};
use crate::cluster::providers::{MakeProvider, Registry};
use crate::cluster::queue::{Again, Queue};
use crate::cluster::settings::Settings;
use crate::cluster::table::ClaimTable;
use crate::cluster::watches::{Watched, follow_claims, on_budget, on_job, on_provider};
use crate::cluster::{Handle, Operator, compute_claim, compute_provider, jobs, placement, sweep};
use crate::ledger::Ledger;

/// Objects of one kind that are worked on at once.
const AT_ONCE: usize = 16;

/// Longest time between two placement passes while something waits.
const PLACE_AGAIN: Duration = Duration::from_secs(30);

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
    /// The CRDs are not there.
    #[error(
        "{kind} cannot be listed: {source}; install the CRDs (helm install petaflop-crds charts/petaflop-crds) and see that the operator's ClusterRole is bound"
    )]
    Kinds {
        /// Which kind.
        kind: &'static str,
        /// What the API server said.
        source: Box<kube::Error>,
    },
}

/// A started operator. Dropping it stops everything at once, as a crash would.
pub struct Running {
    /// What it works with.
    pub operator: Arc<Operator>,
    /// The queues, for whoever waits until nothing is left to do.
    pub queues: Queues,
    tasks: JoinSet<()>,
}

/// What waits for its turn.
#[derive(Clone)]
pub struct Queues {
    /// Jobs.
    pub jobs: Queue<crate::cluster::table::Name>,
    /// Claims.
    pub claims: Queue<crate::cluster::table::Name>,
    /// Providers.
    pub providers: Queue<String>,
}

impl Running {
    /// Works until it is dropped, or a task of it ends, which none does by itself.
    pub async fn wait(&mut self) {
        self.tasks.join_next().await;
    }
}

/// Starts it.
///
/// # Errors
/// What is missing in the cluster, in words.
pub async fn start(settings: Settings, parts: Parts) -> Result<Running, StartError> {
    let Parts { client, clock, ledger, make } = parts;
    probe(&client).await?;
    let installation = Arc::new(Installation::of(&client, &settings.namespace).await?);
    let mut tasks = JoinSet::new();
    let leadership = match settings.leader_elect {
        true => {
            let me = format!("{}-{}", settings.replica, installation_suffix());
            let (election, leadership) =
                Election::new(client.clone(), &settings.namespace, me, clock.clone());
            tasks.spawn(election.run());
            leadership
        }
        false => Leadership::sole(clock.clone()),
    };
    let queues = Queues {
        jobs: Queue::new(clock.clone()),
        claims: Queue::new(clock.clone()),
        providers: Queue::new(clock.clone()),
    };
    let table = ClaimTable::default();
    let mut job_watch = Watched::<TrainingJob>::default();
    let mut provider_watch = Watched::<ComputeProvider>::default();
    let mut budget_watch = Watched::<SpendBudget>::default();
    let handle = Handle {
        jobs: queues.jobs.clone(),
        claims: queues.claims.clone(),
        suspects: Default::default(),
        owners: Arc::default(),
    };
    let root = installation.clone();
    let leads = leadership.clone();
    let operator = Arc::new(Operator {
        claims: ObjectClaims::new(
            client.clone(),
            settings.watch_namespace.clone(),
            table.clone(),
            clock.clone(),
        ),
        agents: Agents::new(clock.clone())?,
        providers: Registry::new(make),
        book: Default::default(),
        admissions: Default::default(),
        placement: Default::default(),
        waiting: Default::default(),
        suspects: handle.suspects.clone(),
        jobs: job_watch.store.clone(),
        budgets: budget_watch.store.clone(),
        provider_objects: provider_watch.store.clone(),
        handle: handle.clone(),
        token: Box::new(move |identity| {
            let token = root.root.token(&identity.claim_uid, identity.attempt);
            EnrolmentToken::new(token.expose().as_str())
        }),
        leads: Box::new(move || leads.leads()),
        client: client.clone(),
        clock,
        settings,
        installation,
        leadership,
        table: table.clone(),
        ledger,
    });
    let namespace = operator.settings.watch_namespace.as_deref();
    let (claims_ready, mut claims_seen) = watch::channel(false);
    let ready = [job_watch.ready(), provider_watch.ready(), budget_watch.ready()];
    tasks.spawn(until_over(job_watch.start(
        within(&client, namespace),
        None,
        on_job(handle.clone()),
    )));
    tasks.spawn(until_over(provider_watch.start(
        Api::all(client.clone()),
        operator.settings.provider_labels.as_deref(),
        on_provider(queues.providers.clone()),
    )));
    tasks.spawn(until_over(budget_watch.start(
        within(&client, namespace),
        None,
        on_budget(operator.placement.clone()),
    )));
    tasks.spawn(follow_claims(within(&client, namespace), table, handle, claims_ready));
    let (leader, shared) = (operator.clone(), queues.clone());
    tasks.spawn(async move {
        for mut watch in ready {
            // Its sender lives as long as the watch.
            let _ = watch.wait_for(|ready| *ready).await;
        }
        let _ = claims_seen.wait_for(|ready| *ready).await;
        lead(leader, shared).await;
    });
    Ok(Running { operator, queues, tasks })
}

/// All objects of a kind, or those of one namespace.
fn within<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: kube::Resource<DynamicType = (), Scope = kube::core::NamespaceResourceScope>,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
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

/// Whether the kinds are there and may be read: said at once, and not by a watch that fails for ever.
async fn probe(client: &Client) -> Result<(), StartError> {
    async fn one<K>(client: &Client, kind: &'static str) -> Result<(), StartError>
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::all(client.clone());
        let list = api.list_metadata(&kube::api::ListParams::default().limit(1)).await;
        list.map(drop).map_err(|source| StartError::Kinds { kind, source: Box::new(source) })
    }
    one::<TrainingJob>(client, "TrainingJob").await?;
    one::<ComputeClaim>(client, "ComputeClaim").await?;
    one::<ComputeProvider>(client, "ComputeProvider").await?;
    one::<SpendBudget>(client, "SpendBudget").await
}

/// Something that no other process has, so that a restarted Pod of the same name is another.
fn installation_suffix() -> String {
    crate::embedded::home::new_uid().map(|uid| uid[..8].to_owned()).unwrap_or_default()
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
        operator.agents.forget_all();
        operator.waiting.clear();
    }
}

/// Everything that only the leader does. Dropping it cancels all of it.
async fn work(operator: Arc<Operator>, queues: Queues) {
    while let Err(error) = begin(&operator).await {
        tracing::warn!(%error, "cannot begin yet");
        operator.clock.sleep(Duration::from_secs(2)).await;
    }
    for job in operator.jobs() {
        use kube::ResourceExt;
        queues.jobs.add((job.namespace().unwrap_or_default(), job.name_any()));
    }
    for stored in operator.table.all() {
        let spec = stored.claim.spec;
        queues.claims.add((spec.owner.namespace, spec.name));
    }
    let Queues { jobs, claims, providers } = queues;
    tokio::join!(
        turns(
            &operator,
            &jobs,
            |operator, name| async move { jobs::reconcile(&operator, &name).await }
        ),
        turns(&operator, &claims, |operator, name| async move {
            compute_claim::reconcile(&operator, &name).await
        }),
        turns(&operator, &providers, |operator, name| async move {
            compute_provider::reconcile(&operator, &name).await
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
            operator.providers.put(&name, object);
            operator.providers.refresh(&name, operator.clock.now()).await;
        }
    }
    Ok(())
}

/// Works on keys, a bounded number at once, until it is dropped.
async fn turns<K, F>(
    operator: &Arc<Operator>,
    queue: &Queue<K>,
    reconcile: impl Fn(Arc<Operator>, K) -> F + Copy,
) where
    K: Clone + Eq + Ord + std::hash::Hash + std::fmt::Debug + Send + 'static,
    F: Future<Output = Result<Again, Error>>,
{
    let one = || async {
        loop {
            let key = queue.next().await;
            let turn = std::panic::AssertUnwindSafe(reconcile(operator.clone(), key.clone()));
            // One poisoned object must not take the others with it.
            let again = match turn.catch_unwind().await {
                Ok(Ok(again)) => again,
                Ok(Err(error)) => {
                    let again = error.again();
                    match again {
                        Again::Backoff => {
                            tracing::warn!(?key, %error, reason = %error.reason(), "again later");
                        }
                        Again::OnChange | Again::After(_) => {
                            tracing::debug!(?key, %error, "again");
                        }
                    }
                    again
                }
                Err(_) => {
                    tracing::error!(?key, "a pass panicked");
                    Again::Backoff
                }
            };
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
        again = match placement::pass(operator).await {
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
            match sweep::round(operator, provider.as_ref()).await {
                Ok(swept) if swept != sweep::Swept::default() => {
                    tracing::warn!(provider = %name, ?swept, "swept");
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(provider = %name, %error, "sweep"),
            }
        }
    }
}
