//! RunPod in the box: REST v2 and GraphQL on one port, in front of one engine.
//!
//! | module | holds |
//! |---|---|
//! | `serve` | HTTP: connections, cut ones too; keys, quota, faults; then one of the two APIs |
//! | `rest` | REST v2: which call is which; catalogue, credentials, billing |
//! | `pods` | pods of REST v2 |
//! | `wire` | bodies of REST v2 that are read, and their contract |
//! | `graphql` | GraphQL |
//! | `world` | what the two share: pods, how one is bought |
//! | [`catalog`] | what is sold |
//! | [`keys`], [`limits`] | who may do what, how often |
//! | `answer` | a question and its answer as values |

mod answer;
pub mod catalog;
mod graphql;
pub mod keys;
pub mod limits;
mod pods;
mod rest;
mod serve;
mod wire;
mod world;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use petaflop_agent_api::clock::Clock;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Notify;

use self::keys::Scope;
use self::limits::Limits;
pub use self::world::Call;
use self::world::World;
use crate::engine::bill::Rules;
use crate::engine::{Engine, Pace, Setup as EngineSetup};
use crate::faults::Faults;
use crate::host::Host;

/// How fast RunPod is where nobody says otherwise: these times are made, but for the 5 seconds
/// between SIGTERM and SIGKILL and the 5 minutes between settlements.
pub const PACE: Pace = Pace {
    provision: Duration::from_secs(5),
    start: Duration::from_secs(20),
    appear: Duration::ZERO,
    vanish: Duration::ZERO,
    settle: Duration::from_secs(300),
    grace: Duration::from_secs(5),
};

/// Default spend limit of an account: 80 dollars an hour.
pub const SPEND_LIMIT: i64 = 80_000_000;

/// What a RunPod is made of.
pub struct Setup {
    /// Its time. Steps of the wall do not reach it: a cloud has clocks of its own.
    pub clock: Clock,
    /// For ids.
    pub seed: u64,
    /// Keys and what each may do.
    pub keys: BTreeMap<String, Scope>,
    /// How fast things go.
    pub pace: Pace,
    /// What was paid in, micro-dollars.
    pub deposit: i64,
    /// Quotas of calls.
    pub limits: Limits,
    /// Pods of a page; `None`: a listing comes in one piece.
    pub page: Option<usize>,
    /// Where machines live.
    pub host: Box<dyn Host>,
}

/// A running RunPod. It has a runtime of its own: its machines outlive whoever uses it.
pub struct RunPod {
    inner: Arc<Inner>,
    address: SocketAddr,
    runtime: Option<Runtime>,
}

struct Inner {
    clock: Clock,
    began: (Timestamp, Duration),
    world: Mutex<World>,
    /// Something is due earlier than was thought.
    changed: Arc<Notify>,
}

impl RunPod {
    /// Starts one on a free port of this host.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let Setup { clock, seed, keys, pace, deposit, limits, page, mut host } = setup;
        let changed = Arc::new(Notify::new());
        let wake = changed.clone();
        host.wakes(Arc::new(move || wake.notify_one()));
        let (catalog, products) = catalog::captured();
        let began = (clock.now(), clock.boottime());
        let engine = EngineSetup {
            products,
            rules: Rules::RUNPOD,
            pace,
            deposit: Some(deposit),
            spend_limit: SPEND_LIMIT,
            seed,
            host,
        };
        let world = World {
            engine: Engine::new(engine, began.0),
            catalog,
            faults: Faults::default(),
            keys,
            limits,
            specs: BTreeMap::new(),
            registries: Vec::new(),
            named: 0,
            page,
            calls: Vec::new(),
        };
        let inner = Inner { clock, began, world: Mutex::new(world), changed };
        let inner = Arc::new(inner);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("runpod")
            .enable_all()
            .build()?;
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        runtime.spawn(serve::serve(listener, inner.clone()));
        runtime.spawn(keep_time(inner.clone()));
        Ok(Self { inner, address, runtime: Some(runtime) })
    }

    /// What stands before `/v2` and `/graphql`: `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Looks at what is rented and billed, and changes it, as of now.
    pub fn engine<T>(&self, look: impl FnOnce(&mut Engine) -> T) -> T {
        let output = look(&mut self.inner.world().engine);
        self.inner.changed.notify_one();
        output
    }

    /// Switches faults on and off.
    pub fn faults<T>(&self, switch: impl FnOnce(&mut Faults) -> T) -> T {
        switch(&mut self.inner.world().faults)
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.inner.world().calls.clone()
    }

    /// The key that the provider put into a pod.
    pub fn pod_key(&self, pod: &str) -> Option<String> {
        let machine = self.inner.world().engine.machine(pod)?.order.boot.environment.clone();
        machine.get("RUNPOD_API_KEY").cloned()
    }

    /// The provider's own time.
    pub fn now(&self) -> Timestamp {
        self.inner.now()
    }
}

impl Drop for RunPod {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Also from inside another runtime, where waiting would be refused.
            runtime.shutdown_background();
        }
    }
}

impl Inner {
    fn now(&self) -> Timestamp {
        let (wall, boottime) = self.began;
        let passed = self.clock.boottime().saturating_sub(boottime);
        wall + SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX)
    }

    /// The world as of now.
    fn world(&self) -> MutexGuard<'_, World> {
        let mut world = self.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.engine.advance(self.now());
        world
    }
}

/// Lets happen what is due when nobody calls: machines that are more than a state end by it.
async fn keep_time(inner: Arc<Inner>) {
    loop {
        let next = inner.world().engine.next_event();
        let wait = next.map_or(Duration::MAX, |next| {
            Duration::try_from(next.duration_since(inner.now())).unwrap_or(Duration::ZERO)
        });
        tokio::select! {
            () = inner.clock.sleep(wait) => {}
            () = inner.changed.notified() => {}
        }
    }
}
