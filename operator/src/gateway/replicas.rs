//! The replicas of the moment: what the caller says of them, what they have to do, and which
//! are left alone because they failed.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::gateway::Server;
use petaflop_agent_api::keys::NoisePublic;
use petaflop_agent_api::task::Secret;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use super::balance::{Load, backoff, choose};
use super::hold::{Activity, Hold};
use super::metrics::Metrics;
use super::payload::Outgoing;
use super::upstream::{self, Connect, Idle};
use super::{Config, headers};

/// One place that answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its claim's name; the label in metrics.
    pub name: String,
    /// `host:port`: of its agent where one is named, else of the server itself.
    pub address: String,
    /// Whom we must find there, to speak through it.
    pub agent: Option<NoisePublic>,
    /// How much it can do beside the others.
    pub weight: NonZeroU32,
    /// Whether it may get requests.
    pub state: State,
    /// What it asks of whoever sends it requests.
    pub key: Option<Secret>,
    /// What answers there.
    pub server: Server,
}

/// Whether a replica may get requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Not yet.
    Starting,
    /// Yes.
    Ready,
    /// No more; what it has, it finishes.
    Draining,
}

/// One replica and what this gateway has to do with it. Another address is another one.
#[derive(Debug)]
pub(super) struct Endpoint {
    pub(super) replica: Replica,
    /// [`Replica::key`] as a header's value, for a server that asks for it.
    key: Option<HeaderValue>,
    pub(super) idle: Idle,
    in_flight: AtomicUsize,
    gauge: Gauge,
    health: Mutex<Health>,
    /// No longer among the replicas.
    gone: AtomicBool,
    /// Gets no more requests.
    draining: AtomicBool,
}

#[derive(Debug, Default)]
struct Health {
    /// Failures since it last answered a request.
    failures: u32,
    /// Left alone until it has answered a probe.
    out: bool,
}

impl Endpoint {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is(&self, replica: &Replica) -> bool {
        self.replica.name == replica.name
            && self.replica.address == replica.address
            && self.replica.agent == replica.agent
            && self.replica.weight == replica.weight
            && self.replica.key == replica.key
            && self.replica.server == replica.server
    }

    /// Puts what only this replica may see into a head that is sent to it.
    pub(super) fn address(&self, headers: &mut HeaderMap) {
        headers.insert(header::HOST, headers::host(&self.replica.address));
        if let Some(key) = &self.key {
            headers.insert(headers::REPLICA_KEY, key.clone());
        }
    }
}

#[derive(Debug, Default)]
struct Table {
    entries: Vec<(Arc<Endpoint>, State)>,
    /// Who is asked first.
    turn: usize,
}

/// The replicas of one service.
pub(super) struct Replicas {
    me: Weak<Self>,
    config: Arc<Config>,
    clock: Clock,
    connect: Arc<dyn Connect>,
    metrics: Arc<Metrics>,
    table: Mutex<Table>,
    /// Told when a replica can take a request that could not before.
    room: Notify,
    quiet: watch::Sender<u64>,
}

impl Replicas {
    pub(super) fn new(
        config: Arc<Config>,
        clock: Clock,
        connect: Arc<dyn Connect>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            config,
            clock,
            connect,
            metrics,
            table: Mutex::default(),
            room: Notify::new(),
            quiet: watch::Sender::new(0),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies what the caller says, now and from now on. Never ends: when the caller falls silent,
    /// what it said last holds.
    pub(super) async fn follow(
        &self,
        mut said: watch::Receiver<Vec<Replica>>,
        hold: &Hold,
        activity: &Activity,
    ) {
        loop {
            let replicas = said.borrow_and_update().clone();
            let ready = replicas.iter().filter(|r| r.state == State::Ready).count();
            if hold.ready(ready) == 0 && ready > 0 {
                // Nobody could have asked before.
                activity.touch();
            }
            self.apply(&replicas);
            if said.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    fn apply(&self, replicas: &[Replica]) {
        let mut table = self.table();
        let before = std::mem::take(&mut table.entries);
        for replica in replicas {
            let known = before.iter().find(|(endpoint, _)| endpoint.is(replica));
            let endpoint = known.map_or_else(|| self.endpoint(replica), |(e, _)| e.clone());
            let draining = replica.state == State::Draining;
            endpoint.draining.store(draining, Ordering::Relaxed);
            if draining {
                endpoint.idle.clear();
            }
            table.entries.push((endpoint, replica.state));
        }
        for (endpoint, _) in before {
            if !replicas.iter().any(|replica| endpoint.is(replica)) {
                endpoint.gone.store(true, Ordering::Relaxed);
                endpoint.idle.clear();
                if !replicas.iter().any(|replica| replica.name == endpoint.replica.name) {
                    self.metrics.forget(&endpoint.replica.name);
                }
            }
        }
        drop(table);
        self.room.notify_waiters();
        self.quiet.send_modify(|times| *times += 1);
    }

    /// Told when a replica that drains may have nothing left.
    pub(super) fn quiet(&self) -> watch::Receiver<u64> {
        self.quiet.subscribe()
    }

    /// Names of replicas that drain and have nothing left.
    pub(super) fn drained(&self) -> Vec<String> {
        let table = self.table();
        let drained = table.entries.iter().filter(|(endpoint, state)| {
            *state == State::Draining && endpoint.in_flight.load(Ordering::Acquire) == 0
        });
        drained.map(|(endpoint, _)| endpoint.replica.name.clone()).collect()
    }

    fn endpoint(&self, replica: &Replica) -> Arc<Endpoint> {
        Arc::new(Endpoint {
            replica: replica.clone(),
            key: match &replica.server {
                Server::Ours => replica.key.as_ref().and_then(headers::key),
                Server::Any { .. } => None,
            },
            idle: Idle::default(),
            in_flight: AtomicUsize::new(0),
            gauge: self.metrics.replica(&replica.name),
            health: Mutex::default(),
            gone: AtomicBool::new(false),
            draining: AtomicBool::new(false),
        })
    }

    /// The least loaded replica that may be asked and has room; preferably none of `tried`, and
    /// one of those only if `again`.
    pub(super) fn pick(&self, tried: &[Arc<Endpoint>], again: bool) -> Option<Lease> {
        let mut table = self.table();
        let count = table.entries.len();
        let load = |index: usize, second_time: bool| {
            let (endpoint, state) = &table.entries[index];
            let was_tried = tried.iter().any(|other| Arc::ptr_eq(other, endpoint));
            let in_flight = endpoint.in_flight.load(Ordering::Relaxed);
            let may = *state == State::Ready
                && was_tried == second_time
                && in_flight < self.config.per_replica
                && !endpoint.health().out;
            may.then_some(Load { in_flight, weight: endpoint.replica.weight })
        };
        let index = choose(count, table.turn, |index| load(index, false))
            .or_else(|| choose(count, table.turn, |index| load(index, again)))?;
        table.turn = index + 1;
        let endpoint = table.entries[index].0.clone();
        // Within the lock, so that the next choice sees it.
        endpoint.in_flight.fetch_add(1, Ordering::Relaxed);
        endpoint.gauge.inc();
        Some(Lease { endpoint, replicas: self.me.clone() })
    }

    /// Waits until [`Replicas::pick`] has one.
    pub(super) async fn wait(&self, tried: &[Arc<Endpoint>], again: bool) -> Lease {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Before the look, so that nothing is missed in between.
            room.as_mut().enable();
            if let Some(lease) = self.pick(tried, again) {
                return lease;
            }
            room.await;
        }
    }

    /// It answered.
    pub(super) fn worked(&self, endpoint: &Endpoint) {
        endpoint.health().failures = 0;
    }

    /// It failed: it gets nothing until it has answered a probe. Many requests that fail together
    /// count once.
    pub(super) fn failed(&self, endpoint: &Arc<Endpoint>, why: &dyn std::fmt::Display) {
        let mut health = endpoint.health();
        if std::mem::replace(&mut health.out, true) {
            return;
        }
        health.failures = health.failures.saturating_add(1);
        drop(health);
        endpoint.idle.clear();
        self.metrics.replica_failed(&endpoint.replica.name);
        tracing::warn!(replica = endpoint.replica.name, %why, "left alone until it answers a probe");
        tokio::spawn(revive(self.me.clone(), endpoint.clone()));
    }

    /// Asks a replica for its health, on a connection of its own.
    async fn healthy(&self, endpoint: &Endpoint) -> bool {
        let replica = &endpoint.replica;
        let path = match &replica.server {
            Server::Ours => Some(&self.config.health_path),
            Server::Any { health } => health.as_ref(),
        };
        let probe = async {
            let sender = upstream::connect(&*self.connect, replica, &self.config).await;
            let mut sender = sender.ok()?;
            let Some(path) = path else { return Some(true) };
            let mut request = Request::get(path)
                .header(header::CONNECTION, "close")
                .body(Outgoing::Kept(Full::default()))
                .ok()?;
            endpoint.address(request.headers_mut());
            let answer = sender.send_request(request).await.ok()?;
            let status: StatusCode = answer.status();
            // Read to its end, so that a replica never sees its probes broken off.
            answer.into_body().collect().await.ok()?;
            Some(status.is_success() || status.is_redirection())
        };
        timeout(self.config.health_timeout, probe).await.ok().flatten().unwrap_or(false)
    }
}

/// Probes a failed replica, ever more seldom, until it answers or is gone.
async fn revive(replicas: Weak<Replicas>, endpoint: Arc<Endpoint>) {
    loop {
        let Some(all) = replicas.upgrade() else { return };
        let (first, longest) = (all.config.backoff, all.config.backoff_longest);
        let pause = backoff(endpoint.health().failures, first, longest);
        let clock = all.clock.clone();
        // Not held over the pause: it must not keep a gateway alive that is over.
        drop(all);
        clock.sleep(pause).await;
        let Some(all) = replicas.upgrade() else { return };
        if endpoint.gone.load(Ordering::Relaxed) {
            return;
        }
        if all.healthy(&endpoint).await {
            endpoint.health().out = false;
            tracing::info!(replica = endpoint.replica.name, "answers again");
            all.room.notify_waiters();
            return;
        }
        let mut health = endpoint.health();
        health.failures = health.failures.saturating_add(1);
    }
}

/// One request's share of a replica, until it is dropped.
pub(super) struct Lease {
    pub(super) endpoint: Arc<Endpoint>,
    replicas: Weak<Replicas>,
}

impl Lease {
    /// The answer broke off. For the time after the first byte, when nobody tries again.
    pub(super) fn failed(&self, why: &dyn std::fmt::Display) {
        if let Some(replicas) = self.replicas.upgrade() {
            replicas.failed(&self.endpoint, why);
        }
    }

    /// The answer is complete: the connection may serve another request.
    pub(super) fn give_back(&self, sender: upstream::Sender) {
        let Some(replicas) = self.replicas.upgrade() else { return };
        if !self.endpoint.gone.load(Ordering::Relaxed) {
            let most = replicas.config.idle_connections;
            self.endpoint.idle.put(sender, replicas.clock.boottime(), most);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let last = self.endpoint.in_flight.fetch_sub(1, Ordering::AcqRel) == 1;
        self.endpoint.gauge.dec();
        if let Some(replicas) = self.replicas.upgrade() {
            replicas.room.notify_one();
            if last && self.endpoint.draining.load(Ordering::Relaxed) {
                replicas.quiet.send_modify(|times| *times += 1);
            }
        }
    }
}

/// The time since boot, for [`Idle::take`].
impl Replicas {
    pub(super) fn now(&self) -> Duration {
        self.clock.boottime()
    }
}
