//! EC2 in the box: the query protocol of EC2, and on the same port what of SSM, Pricing and STS
//! belongs to buying there, in front of one engine. The real SDK is pointed at it by its endpoint
//! URL, signs as always, and the whole signature is verified.
//!
//! | module | holds |
//! |---|---|
//! | `serve` | a call: service, signature, faults, buckets, action; how its answer is written |
//! | `form`, `filter`, `page`, `xml`, `error` | the protocol: what is read, sorted out, cut, written, refused |
//! | `sign`, [`keys`] | whose request it is, and what he may do |
//! | `launch`, `place`, `buy` | `RunInstances`: what is asked for; from where, if at all; the purchase |
//! | `instances` | how instances look and are ended |
//! | `prices` | the log of spot prices |
//! | `types`, `places`, `volumes`, `requests` | the other lists; tags |
//! | `sts`, `json` | the other services |
//! | `world` | everything of the account that changes |
//! | [`catalog`], [`kinds`] | what is sold, and where |
//! | [`quota`], [`limits`] | how much, how often |

mod buy;
pub mod catalog;
mod error;
mod filter;
pub(crate) mod form;
mod instances;
mod json;
pub mod keys;
pub mod kinds;
mod launch;
pub mod limits;
mod page;
mod place;
mod places;
mod prices;
pub mod quota;
mod requests;
mod serve;
pub(crate) mod sign;
mod sts;
mod types;
mod volumes;
mod world;
mod xml;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;

use self::catalog::{Catalog, long};
use self::keys::{Key, Policy};
use self::limits::{Buckets, Limits};
use self::quota::Quotas;
use self::world::World;
use crate::engine::bill::Rules;
use crate::engine::product::{Product, ProductId};
use crate::engine::{Engine, Pace, Setup as EngineSetup};
use crate::faults::Faults;
use crate::host::Host;
pub use crate::shell::Call;
use crate::shell::Shell;

/// How fast EC2 is where nobody says otherwise. Terminated instances are seen for an hour, and notice
/// is two minutes before; the rest is made.
pub const PACE: Pace = Pace {
    provision: Duration::from_secs(2),
    start: Duration::from_secs(8),
    appear: Duration::from_secs(2),
    vanish: Duration::from_secs(3600),
    settle: Duration::from_secs(3600),
    grace: Duration::from_secs(30),
    wind_down: Duration::from_secs(40),
    notice: Duration::from_secs(120),
};

/// What an EC2 is made of.
pub struct Setup {
    /// Its time. Steps of the wall do not reach it: a cloud has clocks of its own.
    pub clock: Clock,
    /// For ids and prices.
    pub seed: u64,
    /// Where it listens.
    pub listen: SocketAddr,
    /// The account's number.
    pub account: String,
    /// Access keys, by their ids.
    pub keys: BTreeMap<String, Key>,
    /// Roles that machines and others can take, by name. An instance profile is called as its role.
    pub roles: BTreeMap<String, Policy>,
    /// Tokens of somebody else's, such as a ServiceAccount's, and the role that each may take.
    pub identities: BTreeMap<String, String>,
    /// How fast things go.
    pub pace: Pace,
    /// How it bills.
    pub rules: Rules,
    /// How much may be had.
    pub quotas: Quotas,
    /// How often may be asked.
    pub limits: Limits,
    /// Rows of a page at most, where that is less than was asked for.
    pub page: Option<usize>,
    /// Ports that the security group `petaflop` opens.
    pub ports: Vec<u16>,
    /// What is sold instead of what [`catalog::made`] makes.
    pub market: Option<(Catalog, Vec<Product>)>,
    /// Where machines live.
    pub host: Box<dyn Host>,
}

impl Setup {
    /// An account with one key, which may do everything and has no quota to speak of, on a free port.
    pub fn new(clock: Clock, key: &str, secret: &str, host: Box<dyn Host>) -> Self {
        let own = Key {
            secret: secret.to_owned(),
            token: None,
            expires: None,
            principal: "user/petaflop".to_owned(),
            policy: Policy::Everything,
        };
        Self {
            clock,
            seed: 1,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            account: "111122223333".to_owned(),
            keys: BTreeMap::from([(key.to_owned(), own)]),
            roles: BTreeMap::new(),
            identities: BTreeMap::new(),
            pace: PACE,
            rules: Rules::EC2_LINUX,
            quotas: Quotas::generous(),
            limits: Limits::REAL,
            page: None,
            ports: vec![7443],
            market: None,
            host,
        }
    }
}

/// A running EC2.
pub struct Ec2(Shell<World>);

impl Ec2 {
    /// Starts one.
    ///
    /// # Errors
    /// When it cannot listen there.
    pub fn start(setup: Setup) -> io::Result<Self> {
        let Setup { clock, seed, listen, account, keys, roles, pace, .. } = setup;
        let Setup { identities, rules, quotas, limits, page, ports, market, mut host, .. } = setup;
        let make = |now, wake| {
            host.wakes(wake);
            let (catalog, products) = market.unwrap_or_else(|| catalog::made(seed, now, &ports));
            let engine = EngineSetup {
                products,
                rules,
                pace,
                deposit: None,
                spend_limit: i64::MAX,
                seed,
                name: |chance| long("i", chance),
                host,
            };
            World {
                engine: Engine::new(engine, now),
                catalog,
                account,
                faults: Faults::default(),
                keys,
                roles,
                identities,
                quotas,
                limits,
                buckets: Buckets::default(),
                page,
                instances: BTreeMap::new(),
                volumes: BTreeMap::new(),
                requests: BTreeMap::new(),
                tags: BTreeMap::new(),
                tokens: BTreeMap::new(),
                calls: Vec::new(),
            }
        };
        Ok(Self(Shell::start("ec2", clock, listen, make)?))
    }

    /// The endpoint URL of all its services: `http://127.0.0.1:…`.
    pub fn url(&self) -> String {
        self.0.url()
    }

    /// Looks at what is rented and billed, and changes it, as of now.
    pub fn engine<T>(&self, look: impl FnOnce(&mut Engine) -> T) -> T {
        self.0.world(|world| look(&mut world.engine))
    }

    /// Looks at what is sold, and changes it: subnets, addresses, images. Products are the engine's.
    pub fn catalog<T>(&self, look: impl FnOnce(&mut Catalog) -> T) -> T {
        self.0.world(|world| look(&mut world.catalog))
    }

    /// The product of a type in a zone, by the zone's id.
    pub fn product(&self, kind: &str, zone: &str, spot: bool) -> Option<ProductId> {
        self.0.world(|world| world.product(kind, zone, spot).map(|(id, _)| id))
    }

    /// Switches faults on and off.
    pub fn faults<T>(&self, switch: impl FnOnce(&mut Faults) -> T) -> T {
        self.0.world(|world| switch(&mut world.faults))
    }

    /// Changes what the account may have.
    pub fn quotas<T>(&self, change: impl FnOnce(&mut Quotas) -> T) -> T {
        self.0.world(|world| change(&mut world.quotas))
    }

    /// Every call so far.
    pub fn calls(&self) -> Vec<Call> {
        self.0.world(|world| world.calls.clone())
    }

    /// The provider's own time.
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }
}
