//! RunPod in the box: REST v2 and GraphQL on one port, in front of one engine.
//!
//! | module | holds |
//! |---|---|
//! | `serve` | a call: keys, quota, faults; then one of the two APIs |
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
use std::time::Duration;

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;

use self::keys::Scope;
use self::limits::Limits;
use self::world::World;
use crate::engine::bill::Rules;
use crate::engine::{Engine, Pace, Setup as EngineSetup};
use crate::faults::Faults;
use crate::host::Host;
pub use crate::shell::Call;
use crate::shell::Shell;

/// How fast RunPod is where nobody says otherwise: these times are made, but for the 5 seconds
/// between SIGTERM and SIGKILL and the 5 minutes between settlements.
pub const PACE: Pace = Pace {
    provision: Duration::from_secs(5),
    start: Duration::from_secs(20),
    appear: Duration::ZERO,
    vanish: Duration::ZERO,
    settle: Duration::from_secs(300),
    grace: Duration::from_secs(5),
    wind_down: Duration::ZERO,
    notice: Duration::ZERO,
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

/// A running RunPod.
pub struct RunPod(Shell<World>);

impl RunPod {
    /// Starts one on a free port of this host, where its machines reach it too.
    ///
    /// # Errors
    /// When there is no port.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let Setup { clock, seed, keys, pace, deposit, limits, page, mut host } = setup;
        let listen = SocketAddr::new(host.listens(), 0);
        let (catalog, products) = catalog::captured();
        let make = |now, wake| {
            host.wakes(wake);
            let engine = EngineSetup {
                products,
                rules: Rules::RUNPOD,
                pace,
                deposit: Some(deposit),
                spend_limit: SPEND_LIMIT,
                seed,
                name: |chance| chance.word(14),
                host,
            };
            World {
                engine: Engine::new(engine, now),
                catalog,
                faults: Faults::default(),
                keys,
                limits,
                specs: BTreeMap::new(),
                registries: Vec::new(),
                named: 0,
                page,
                calls: Vec::new(),
            }
        };
        Ok(Self(Shell::start("runpod", clock, listen, make)?))
    }

    /// What stands before `/v2` and `/graphql`: `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Looks at what is rented and billed, and changes it, as of now.
    pub fn engine<T>(&self, look: impl FnOnce(&mut Engine) -> T) -> T {
        self.0.world(|world| look(&mut world.engine))
    }

    /// Switches faults on and off.
    pub fn faults<T>(&self, switch: impl FnOnce(&mut Faults) -> T) -> T {
        self.0.world(|world| switch(&mut world.faults))
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.world(|world| world.calls.clone())
    }

    /// The key that the provider put into a pod.
    pub fn pod_key(&self, pod: &str) -> Option<String> {
        self.0.world(|world| {
            let environment = &world.engine.machine(pod)?.order.boot.environment;
            environment.get("RUNPOD_API_KEY").cloned()
        })
    }

    /// The provider's own time.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }
}
