//! The time of clouds and operators: it goes in whole seconds and by itself, faster than ours, and
//! stands still while a machine is made or ended, so that bill and ledger see the same. Machines are
//! real and have the kernel's time: their leases are longer than any test.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use jiff::Timestamp;
use kube::ResourceExt;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_crds::ComputeProvider;
use petaflop_operator::cluster::make::Make;
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_operator::installation::Installation;
use petaflop_providers::machine::AgentDownload;
use petaflop_providers::provider::Capabilities;
use petaflop_providers::{
    Begins, EnrolmentToken, Instance, InstanceId, InstanceState, LaunchError, Listing, Order,
    Provider, ProviderError, Used,
};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::operator::Cluster;

/// A second goes by in so many milliseconds.
pub(crate) const TICK: u64 = 50;
/// The same, where time is to pass faster.
const FAST: u64 = 20;
/// A call that ends within this does so while time stands still.
const AT_ONCE: Duration = Duration::from_secs(5);

/// A manual clock that goes by itself, a second at a time, twenty times as fast as others.
pub(crate) struct Ticking {
    clock: Clock,
    still: Arc<RwLock<()>>,
    coming: Coming,
    tick: Arc<AtomicU64>,
    step: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ticking {
    pub(crate) fn start(clock: Clock) -> Self {
        let (still, tick) = (Arc::new(RwLock::new(())), Arc::new(AtomicU64::new(TICK)));
        let step = Arc::new(AtomicU64::new(1));
        let coming = Coming::default();
        let (hands, lock, every) = (clock.clone(), still.clone(), tick.clone());
        let (seconds, watched) = (step.clone(), coming.clone());
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(every.load(Ordering::Relaxed))).await;
                {
                    let _nothing_ends = lock.write().await;
                    hands.advance(Duration::from_secs(seconds.load(Ordering::Relaxed)));
                }
                watched.are_looked_at(&hands).await;
            }
        });
        Self { clock, still, coming, tick, step, task }
    }

    /// From now on a second goes by in so many milliseconds.
    pub(crate) fn every(&self, millis: u64) {
        self.tick.store(millis, Ordering::Relaxed);
    }

    /// Lets so much time pass, in steps of so many seconds; hours in moments.
    pub(crate) async fn pass(&self, time: Duration, seconds: u64) {
        let until = self.clock.sleep(time);
        self.step.store(seconds, Ordering::Relaxed);
        let before = self.tick.swap(if seconds > 1 { FAST } else { TICK }, Ordering::Relaxed);
        until.await;
        self.step.store(1, Ordering::Relaxed);
        self.tick.store(before, Ordering::Relaxed);
    }

    /// The providers that ship, of these objects alone: others are other tests'.
    pub(crate) async fn make(
        &self,
        cluster: &Cluster,
        providers: &[&str],
        agent: &AgentDownload,
    ) -> Result<Arc<dyn MakeProvider>> {
        let client = cluster.plane.client().await?;
        let uid = Installation::of(&client, &cluster.namespace).await?.uid;
        let make = Make::unwatched(client, self.clock.clone(), &uid, &[])
            .secrets_of(&cluster.namespace)
            .agent_from(Some(agent.clone()));
        let names = providers.iter().map(|name| (*name).to_owned()).collect();
        let (still, coming) = (self.still.clone(), self.coming.clone());
        Ok(Arc::new(Only { make, names, clock: self.clock.clone(), still, coming }))
    }
}

struct Only {
    make: Make,
    names: Vec<String>,
    clock: Clock,
    still: Arc<RwLock<()>>,
    coming: Coming,
}

/// Machines that come up, and when each was looked at last: no second passes unseen, for it is of
/// those looks alone that one knows since when they bill. Who does not look for long is gone.
#[derive(Clone, Default)]
struct Coming(Arc<Mutex<BTreeMap<InstanceId, Timestamp>>>);

impl Coming {
    fn map(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn saw(&self, id: &InstanceId, state: Option<InstanceState>, asked: Timestamp) {
        match state {
            Some(InstanceState::Pending) => drop(self.map().insert(id.clone(), asked)),
            _ => drop(self.map().remove(id)),
        }
    }

    async fn are_looked_at(&self, clock: &Clock) {
        let now = clock.now();
        for _ in 0..400 {
            if self.map().values().all(|looked| *looked >= now) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.map().retain(|_, looked| *looked >= now);
    }
}

impl MakeProvider for Only {
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        let name = object.name_any();
        if !self.names.contains(&name) {
            let detail = format!("{name} is not asked in this test");
            return Err(ProviderError::NotOffered { provider: name, detail });
        }
        let inner = self.make.make(object)?;
        let (still, coming) = (self.still.clone(), self.coming.clone());
        Ok(Arc::new(Still { inner, clock: self.clock.clone(), still, coming }))
    }
}

/// No second passes while a machine is being made or ended.
struct Still {
    inner: Arc<dyn Provider>,
    clock: Clock,
    still: Arc<RwLock<()>>,
    coming: Coming,
}

#[async_trait]
impl Provider for Still {
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
        // What is made may be given back within the call; at once, or the call waits for time to pass.
        let mut call = self.inner.launch(request, token);
        let at_once = {
            let _still = self.still.read().await;
            tokio::time::timeout(AT_ONCE, &mut call).await
        };
        match at_once {
            Ok(answer) => answer,
            Err(_) => call.await,
        }
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        self.inner.find(identity).await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        self.inner.list(installation).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        let asked = self.clock.now();
        let seen = self.inner.get(id).await;
        if self.capabilities().billing.begins == Begins::Running
            && let Ok(seen) = &seen
        {
            self.coming.saw(id, seen.as_ref().map(|one| one.state), asked);
        }
        seen
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        let _still = self.still.read().await;
        self.inner.terminate(id).await
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        self.inner.billed(used).await
    }
}
