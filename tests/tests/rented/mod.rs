//! Rented machines for tests: each is the real agent as a task of this process, with an address of
//! its own, as its provider's start command would begin it and end its machine after it. And their
//! time, which stands still while a machine is being ended, so that bill and ledger see the same.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use kube::ResourceExt;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::offer::Offer;
use petaflop_cloud_box::host::{Boot, Host, Wake};
use petaflop_crds::ComputeProvider;
use petaflop_fake_provider::real;
use petaflop_operator::cluster::make::Make;
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_operator::installation::Installation;
use petaflop_providers::provider::Capabilities;
use petaflop_providers::runpod::AgentDownload;
use petaflop_providers::{
    EnrolmentToken, Instance, InstanceId, LaunchError, Listing, Order, Provider, ProviderError,
};
use tokio::sync::RwLock;
use tokio::task::JoinHandle;

use crate::operator::Cluster;

/// Where a machine's agent listens, and the agent.
type Running = (SocketAddr, JoinHandle<()>);

/// Machines as tasks of this process. Clones are the same.
#[derive(Clone)]
pub(crate) struct Here {
    folder: PathBuf,
    runtime: tokio::runtime::Handle,
    url: Arc<OnceLock<String>>,
    wake: Arc<OnceLock<Wake>>,
    machines: Arc<Mutex<HashMap<String, Running>>>,
}

impl Here {
    /// Their files go below this folder. On a runtime.
    pub(crate) fn new(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
            runtime: tokio::runtime::Handle::current(),
            url: Arc::default(),
            wake: Arc::default(),
            machines: Arc::default(),
        }
    }

    /// Where the API is that machines end themselves by.
    pub(crate) fn at(&self, url: String) {
        let _ = self.url.set(url);
    }

    fn machines(&self) -> MutexGuard<'_, HashMap<String, Running>> {
        self.machines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host for Here {
    fn wakes(&mut self, wake: Wake) {
        let _ = self.wake.set(wake);
    }

    fn start(&mut self, machine: &str, boot: &Boot) {
        // Loopback is large: an address that no other machine and no other process that tests has.
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let [_, _, high, low] = (number + 1).to_be_bytes();
        let process = u8::try_from(std::process::id() % 251).expect("less than 251");
        let at = SocketAddr::from(([127, 101 + high, process, low], 7443));
        let (environment, work) = (boot.environment.clone(), self.folder.join(machine));
        let (id, here) = (machine.to_owned(), self.clone());
        let task = self.runtime.spawn(async move {
            real::pod(&environment, at, work).await;
            // As the start command does when the agent has ended.
            let url = here.url.get().expect("the cloud's address");
            let key = environment.get("RUNPOD_API_KEY").cloned().unwrap_or_default();
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            let call = client.post(format!("{url}/v2/pods/{id}/action")).bearer_auth(key);
            let call = call.header("content-type", "application/json");
            let answer = call.body(r#"{"action":"terminate"}"#).send().await;
            tracing::info!(?answer, id, "a pod ended itself");
        });
        self.machines().insert(machine.to_owned(), (at, task));
    }

    fn notice(&mut self, _machine: &str, _left: Duration) {}

    fn end(&mut self, machine: &str, _grace: Duration) {
        if let Some((_, task)) = self.machines().remove(machine) {
            task.abort();
        }
    }

    fn alive(&mut self, machine: &str) -> bool {
        self.machines().get(machine).is_some_and(|(_, task)| !task.is_finished())
    }

    fn address(&self, machine: &str, _port: u16) -> Option<SocketAddr> {
        self.machines().get(machine).map(|(at, _)| *at)
    }
}

/// A manual clock that goes by itself, a second at a time, twenty times as fast as others.
pub(crate) struct Ticking {
    clock: Clock,
    still: Arc<RwLock<()>>,
    task: JoinHandle<()>,
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Ticking {
    pub(crate) fn start(clock: Clock) -> Self {
        let still = Arc::new(RwLock::new(()));
        let (hands, lock) = (clock.clone(), still.clone());
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let _nothing_ends = lock.write().await;
                hands.advance(Duration::from_secs(1));
            }
        });
        Self { clock, still, task }
    }

    /// The providers that ship, of one object alone: others are other tests'.
    pub(crate) async fn make(
        &self,
        cluster: &Cluster,
        provider: &str,
    ) -> Result<Arc<dyn MakeProvider>> {
        let client = cluster.plane.client().await?;
        let uid = Installation::of(&client, &cluster.namespace).await?.uid;
        let agent = AgentDownload {
            url: "https://example.org/petaflop-agent".to_owned(),
            sha256: "0".repeat(64),
        };
        let make = Make::unwatched(client, self.clock.clone(), &uid, &[])
            .secrets_of(&cluster.namespace)
            .agent_from(Some(agent));
        Ok(Arc::new(Only { make, name: provider.to_owned(), still: self.still.clone() }))
    }
}

struct Only {
    make: Make,
    name: String,
    still: Arc<RwLock<()>>,
}

impl MakeProvider for Only {
    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        let name = object.name_any();
        if name != self.name {
            let detail = format!("{name} is not asked in this test");
            return Err(ProviderError::NotOffered { provider: name, detail });
        }
        let inner = self.make.make(object)?;
        Ok(Arc::new(Still { inner, still: self.still.clone() }))
    }
}

/// No second passes while a machine is being made or ended.
struct Still {
    inner: Arc<dyn Provider>,
    still: Arc<RwLock<()>>,
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
        // What is made may be given back within the call.
        let _still = self.still.read().await;
        self.inner.launch(request, token).await
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        self.inner.find(identity).await
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        self.inner.list(installation).await
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        self.inner.get(id).await
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        let _still = self.still.read().await;
        self.inner.terminate(id).await
    }
}
