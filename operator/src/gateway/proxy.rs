//! One request: to the least loaded replica, elsewhere when that one fails before its first
//! byte, and waiting when there is none.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response, StatusCode, header, request};
use hyper::body::Incoming;
use petaflop_agent_api::clock::Clock;
use tokio::sync::{Semaphore, watch};

use super::Config;
use super::headers::{self, Ids};
use super::hold::{Activity, Hold, Wish};
use super::metrics::Metrics;
use super::payload::Payload;
use super::refusal::Refusal;
use super::relay::{Answer, Relay};
use super::replicas::{Endpoint, Lease, Replica, Replicas};
use super::upstream::{self, Connect, Failure, Sender, Unsent};

/// The gateway of one service. [`serve`](super::serve()) gives it sockets.
pub struct Gateway {
    pub(super) config: Arc<Config>,
    pub(super) clock: Clock,
    pub(super) metrics: Arc<Metrics>,
    pub(super) draining: AtomicBool,
    connect: Arc<dyn Connect>,
    replicas: Arc<Replicas>,
    said: watch::Receiver<Vec<Replica>>,
    hold: Hold,
    may_hold: watch::Sender<bool>,
    activity: Arc<Activity>,
    /// Bytes left for bodies that are kept.
    room: Arc<Semaphore>,
    ids: Ids,
}

/// A replica's answer, of which the client has seen nothing yet.
struct Reply {
    response: Response<Incoming>,
    sender: Sender,
    lease: Lease,
}

/// What one request has tried.
#[derive(Default)]
struct Tries {
    endpoints: Vec<Arc<Endpoint>>,
    /// The one try beyond one on each replica is used up.
    again: bool,
    /// When it first had to wait, since boot.
    held: Option<Duration>,
    made: usize,
}

impl Gateway {
    /// A gateway over the replicas that `replicas` names, now and whenever it changes.
    pub fn new(
        config: Config,
        clock: Clock,
        connect: Arc<dyn Connect>,
        replicas: watch::Receiver<Vec<Replica>>,
    ) -> Arc<Self> {
        let config = Arc::new(config);
        let metrics = Arc::new(Metrics::new());
        Arc::new(Self {
            replicas: Replicas::new(
                config.clone(),
                clock.clone(),
                connect.clone(),
                metrics.clone(),
            ),
            hold: Hold::new(config.hold_requests, metrics.held.clone()),
            may_hold: watch::Sender::new(true),
            activity: Arc::new(Activity::new(clock.clone())),
            room: Arc::new(Semaphore::new(config.replay_bytes_in_all.min(Semaphore::MAX_PERMITS))),
            said: replicas,
            draining: AtomicBool::new(false),
            ids: Ids::default(),
            config,
            clock,
            metrics,
            connect,
        })
    }

    /// What the waiting requests ask for, now and from now on.
    pub fn wish(&self) -> watch::Receiver<Wish> {
        self.hold.wish()
    }

    /// How long nobody has asked for anything; zero while a request is under way.
    pub fn idle_for(&self) -> Duration {
        self.activity.idle_for()
    }

    /// Whether a request may wait while there is no replica. Not where none is going to come.
    pub fn may_hold(&self, may: bool) {
        self.may_hold.send_replace(may);
    }

    /// Names of replicas that get no more requests and have none left.
    pub fn drained(&self) -> Vec<String> {
        self.replicas.drained()
    }

    /// Told when [`Gateway::drained`] may have changed.
    pub(super) fn quiet(&self) -> watch::Receiver<u64> {
        self.replicas.quiet()
    }

    /// Bytes of bodies that are kept in memory now.
    pub fn kept_bytes(&self) -> usize {
        let all = self.config.replay_bytes_in_all.min(Semaphore::MAX_PERMITS);
        all - self.room.available_permits()
    }

    /// Follows the replicas; never ends.
    pub(super) async fn follow(&self) {
        self.replicas.follow(self.said.clone(), &self.hold, &self.activity).await;
    }

    /// Answers one request.
    pub(super) async fn handle(
        self: Arc<Self>,
        peer: IpAddr,
        request: Request<Incoming>,
    ) -> Response<Answer> {
        let visit = Visit::begin(&self);
        let (mut head, body) = request.into_parts();
        let id = self.ids.of(&head.headers);
        let reply = match headers::check(&head) {
            Ok(()) => {
                headers::towards_replica(&mut head, peer, &id);
                self.reply(&head, body).await
            }
            Err(refusal) => Err(refusal),
        };
        let mut response = match reply {
            Ok(Reply { response, sender, lease }) => {
                visit.answered(response.status());
                let (mut head, body) = response.into_parts();
                headers::towards_client(&mut head.headers);
                let silence = self.config.idle_timeout;
                let relay = Relay::new(body, sender, lease, visit, silence);
                Response::from_parts(head, Answer::Relayed(Box::new(relay)))
            }
            Err(refusal) => {
                tracing::debug!(?id, ?refusal, "refused");
                visit.answered(refusal.status());
                refusal.response().map(Answer::Own)
            }
        };
        response.headers_mut().insert(headers::REQUEST_ID, id);
        if self.draining.load(Ordering::Relaxed) {
            // The next request of this client shall find another gateway.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        response
    }

    async fn reply(&self, head: &request::Parts, body: Incoming) -> Result<Reply, Refusal> {
        let mut payload = Payload::read(body, &self.config, &self.room).await?;
        let reply = self.tried(head, &mut payload).await;
        if reply.is_err() {
            payload.discard().await;
        }
        reply
    }

    async fn tried(&self, head: &request::Parts, payload: &mut Payload) -> Result<Reply, Refusal> {
        let mut tries = Tries::default();
        loop {
            let lease = self.lease(&mut tries).await?;
            tries.made += 1;
            if tries.endpoints.iter().any(|tried| Arc::ptr_eq(tried, &lease.endpoint)) {
                tries.again = true;
            } else {
                tries.endpoints.push(lease.endpoint.clone());
            }
            let over = tries.made >= self.config.tries || tries.again;
            match self.once(head, payload, lease, &mut tries).await {
                Ok(reply) if failing(&reply.response) => {
                    let status = reply.response.status();
                    self.replicas.failed(&reply.lease.endpoint, &status);
                    if over || !payload.again() {
                        return match status {
                            // That is between the replica and us.
                            StatusCode::UNAUTHORIZED => {
                                Err(Refusal::Failed("it does not take our key".to_owned()))
                            }
                            // What the replica says is better than what we could say for it.
                            _ => Ok(reply),
                        };
                    }
                    self.metrics.retried("status");
                }
                Ok(reply) => {
                    self.replicas.worked(&reply.lease.endpoint);
                    return Ok(reply);
                }
                Err((endpoint, failure)) => {
                    if let Some(fault) = payload.fault() {
                        return Err(fault);
                    }
                    self.replicas.failed(&endpoint, &failure);
                    if let Failure::Silent = failure {
                        return Err(Refusal::Silent(self.config.idle_timeout.as_secs()));
                    }
                    if over || !payload.again() {
                        return Err(Refusal::Failed(failure.to_string()));
                    }
                    self.metrics.retried(failure.reason());
                }
            }
        }
    }

    /// A replica for the next try, after a wait where it must be.
    async fn lease(&self, tries: &mut Tries) -> Result<Lease, Refusal> {
        let again = !tries.again;
        if let Some(lease) = self.replicas.pick(&tries.endpoints, again) {
            return Ok(lease);
        }
        let _held = self.hold.enter().ok_or(Refusal::Full)?;
        let now = self.clock.boottime();
        let limit = self.config.hold_timeout;
        let left = (*tries.held.get_or_insert(now) + limit).saturating_sub(now);
        let wait = self.replicas.wait(&tries.endpoints, again);
        tokio::select! {
            biased;
            lease = self.clock.timeout(left, wait) => {
                lease.ok_or(Refusal::NoReplica(limit.as_secs()))
            }
            () = self.off() => Err(Refusal::Off),
        }
    }

    /// Returns once there is no replica and none is going to come.
    async fn off(&self) {
        let (mut may_hold, mut wish) = (self.may_hold.subscribe(), self.hold.wish());
        while *may_hold.borrow_and_update() || wish.borrow_and_update().ready > 0 {
            // Both live as long as we do.
            let _ = tokio::select! {
                changed = may_hold.changed() => changed,
                changed = wish.changed() => changed,
            };
        }
    }

    /// One try on one replica. An unused connection that turns out to be closed is no failure of
    /// the replica: it is asked once more on a new one, which uses up the try beyond.
    async fn once(
        &self,
        head: &request::Parts,
        payload: &mut Payload,
        lease: Lease,
        tries: &mut Tries,
    ) -> Result<Reply, (Arc<Endpoint>, Failure)> {
        let endpoint = lease.endpoint.clone();
        let failed = |failure| (endpoint.clone(), failure);
        let idle = || endpoint.idle.take(self.replicas.now(), self.config.keep_alive);
        let mut unused = idle();
        loop {
            let reused = unused.is_some();
            let mut sender = match unused.take() {
                Some(sender) => sender,
                None => upstream::connect(&*self.connect, &endpoint.replica, &self.config)
                    .await
                    .map_err(failed)?,
            };
            let mut head = head.clone();
            endpoint.address(&mut head.headers);
            // The caller has looked: there is one.
            let Some(body) = payload.take() else { return Err(failed(Failure::Silent)) };
            let request = Request::from_parts(head, body);
            let silence = self.config.idle_timeout;
            match upstream::send(&mut sender, request, reused, silence).await {
                Ok(response) => return Ok(Reply { response, sender, lease }),
                // Not a byte was written.
                Err(Unsent { failure: Failure::Stale(_), body: Some(body) }) => {
                    payload.put_back(body);
                    unused = idle();
                }
                Err(Unsent { failure: Failure::Stale(_), body: None })
                    if !tries.again && payload.again() =>
                {
                    tries.again = true;
                    self.metrics.retried("stale");
                }
                Err(Unsent { failure, .. }) => return Err(failed(failure)),
            }
        }
    }
}

/// Whether an answer says that the replica cannot answer, so that another one should.
fn failing<B>(response: &Response<B>) -> bool {
    matches!(
        response.status(),
        StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE | StatusCode::GATEWAY_TIMEOUT
    ) || headers::refuses_key(response.status(), response.headers())
}

/// One request from its arrival to the last byte of its answer, in the metrics. None ends unseen.
pub(super) struct Visit {
    metrics: Arc<Metrics>,
    activity: Arc<Activity>,
    arrived: Instant,
    answered: std::cell::Cell<bool>,
}

impl Visit {
    fn begin(gateway: &Gateway) -> Self {
        gateway.metrics.in_flight.inc();
        gateway.activity.begin();
        Self {
            metrics: gateway.metrics.clone(),
            activity: gateway.activity.clone(),
            arrived: Instant::now(),
            answered: std::cell::Cell::new(false),
        }
    }

    /// The answer's head goes out.
    fn answered(&self, status: StatusCode) {
        self.answered.set(true);
        self.metrics.answered(status.as_u16(), self.arrived.elapsed());
    }

    /// The answer broke off on the replica's side.
    pub(super) fn cut(&self) {
        self.metrics.cut.inc();
    }

    /// The client left.
    pub(super) fn abandoned(&self) {
        self.metrics.abandoned.inc();
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // The handler was dropped before it had an answer.
        if !self.answered.get() {
            self.abandoned();
        }
        self.metrics.in_flight.dec();
        self.activity.end();
    }
}
