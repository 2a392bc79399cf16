//! What only the one that leads does: it begins with the claims, read by quorum, and the ledger; works
//! on keys in turn, places and sweeps; and stops the moment it no longer leads.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use petaflop_agent_api::clock::Clock;
use tracing::Instrument;

use crate::claims::Claims;
use crate::cluster::error::Error;
use crate::cluster::metrics::{Controller, Outcome};
use crate::cluster::queue::{Again, Queue};
use crate::cluster::table::Name;
use crate::cluster::trace::{self, Named};
use crate::cluster::{
    Operator, budgets, compute_claim, compute_provider, jobs, placement, services, sweep,
};

/// Objects of one kind that are worked on at once.
const AT_ONCE: usize = 16;

/// Longest time between two placement passes while something waits.
const PLACE_AGAIN: Duration = Duration::from_secs(30);

/// What waits for its turn.
#[derive(Clone)]
pub struct Queues {
    /// Jobs.
    pub jobs: Queue<Name>,
    /// Services.
    pub services: Queue<Name>,
    /// Claims.
    pub claims: Queue<Name>,
    /// Providers.
    pub providers: Queue<String>,
    /// Budgets.
    pub budgets: Queue<Name>,
}

impl Queues {
    /// Nothing waits.
    pub(super) fn new(clock: &Clock) -> Self {
        Self {
            jobs: Queue::new(clock.clone()),
            services: Queue::new(clock.clone()),
            claims: Queue::new(clock.clone()),
            providers: Queue::new(clock.clone()),
            budgets: Queue::new(clock.clone()),
        }
    }

    pub(super) fn close(&self) {
        self.jobs.close();
        self.services.close();
        self.claims.close();
        self.providers.close();
        self.budgets.close();
    }

    pub(super) async fn idle(&self, clock: &Clock) {
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

/// Waits to lead, works, and stops the moment it no longer leads; again and again.
pub(super) async fn lead(operator: Arc<Operator>, queues: Queues) {
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
    operator.providers.forget_unneeded();
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

/// A key's turn; dropped before it is over, the key has another.
struct TurnOf<'a, K: Clone + Eq + Ord + std::hash::Hash + Send + 'static> {
    queue: &'a Queue<K>,
    key: Option<&'a K>,
}

impl<K: Clone + Eq + Ord + std::hash::Hash + Send + 'static> Drop for TurnOf<'_, K> {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.queue.abandoned(key);
        }
    }
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
            // It is dropped in its midst when we no longer lead.
            let mut turn_of = TurnOf { queue, key: Some(&key) };
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
                        Again::Backoff | Again::NotBefore(_) => {
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
            turn_of.key = None;
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
        let turn = std::panic::AssertUnwindSafe(placement::pass(operator)).catch_unwind();
        let turn = turn.instrument(trace::pass("placement")).await;
        pass.end(turn.as_ref().map_or(Outcome::Panicked, Outcome::of));
        again = match turn {
            Ok(Ok(again)) => again.unwrap_or(PLACE_AGAIN).max(Duration::from_millis(100)),
            Ok(Err(error)) => {
                tracing::warn!(%error, reason = %error.reason(), "placement");
                error.not_before().unwrap_or(Duration::from_secs(2))
            }
            // Machines that run are looked after meanwhile.
            Err(_) => {
                tracing::error!("a placement pass panicked");
                PLACE_AGAIN
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
            let round = std::panic::AssertUnwindSafe(round).catch_unwind();
            let turn = round.instrument(trace::pass("sweep")).await;
            pass.end(turn.as_ref().map_or(Outcome::Panicked, Outcome::of));
            let Ok(result) = turn else {
                tracing::error!(provider = %name, "a sweep panicked");
                continue;
            };
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
