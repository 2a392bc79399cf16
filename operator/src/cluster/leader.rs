//! Which of several operators acts: a Lease that is renewed, or lost.
//!
//! Times in the Lease are for people. Whether somebody else's Lease has run out is judged by how
//! long *we* saw it unchanged, by our own clock, so that clocks that differ do no harm. And we
//! think that we lead only until our last successful renewal is [`DURATION`] − a margin ago: an
//! operator that was stopped and goes on finds that it no longer leads before it acts.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use petaflop_agent_api::clock::Clock;
use tokio::sync::watch;

use crate::cluster::error::{Error, is_conflict};

/// Name of the Lease.
pub const LEASE: &str = "petaflop-operator";
/// A Lease that was not renewed this long may be taken.
pub const DURATION: Duration = Duration::from_secs(15);
/// Whoever holds it may ask for longer, as [`Election::seize`] does; for more than this nobody.
const LONGEST: Duration = Duration::from_secs(120);
/// We stop to act this long before others may begin.
const MARGIN: Duration = Duration::from_secs(5);
/// Between two renewals, or two looks at somebody else's.
const RENEW: Duration = Duration::from_secs(2);

/// Whether we lead, now. Clones ask the same.
#[derive(Clone, Debug)]
pub struct Leadership {
    clock: Clock,
    /// Time since boot until which we lead; `None`: we do not.
    until: Arc<Mutex<Option<Duration>>>,
    changed: watch::Sender<bool>,
}

impl Leadership {
    /// Nobody's yet.
    pub fn new(clock: Clock) -> Self {
        Self { clock, until: Arc::default(), changed: watch::Sender::new(false) }
    }

    /// For one that has no rivals: outside of elections.
    pub fn sole(clock: Clock) -> Self {
        let leadership = Self::new(clock);
        leadership.set(Some(Duration::MAX));
        leadership
    }

    /// Whether we lead. Asked before every call that cannot be repeated safely.
    pub fn leads(&self) -> bool {
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| self.clock.boottime() < until)
    }

    /// Waits until we lead.
    pub async fn gained(&self) {
        let mut changes = self.changed.subscribe();
        // The sender lives as long as `self`.
        while changes.wait_for(|leads| *leads).await.is_ok() {
            if self.leads() {
                return;
            }
            // What was said last has run out, and its renewal is under way.
            let _ = changes.changed().await;
        }
    }

    /// Waits until we no longer do.
    pub async fn lost(&self) {
        let mut changes = self.changed.subscribe();
        loop {
            if !self.leads() {
                return;
            }
            tokio::select! {
                changed = changes.wait_for(|leads| !*leads) => {
                    if changed.is_ok() { return; }
                }
                () = self.clock.sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    fn set(&self, until: Option<Duration>) {
        *self.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
        self.changed.send_replace(until.is_some());
    }
}

/// Takes part in the election until it is dropped.
pub struct Election {
    api: Api<Lease>,
    /// Ours alone: name of the Pod and something random.
    me: String,
    clock: Clock,
    leadership: Leadership,
    /// The Lease as last seen, and since when (time since boot) it has been so.
    seen: Option<(String, Duration)>,
}

impl Election {
    /// In the operator's namespace.
    pub fn new(client: Client, namespace: &str, me: String, clock: Clock) -> (Self, Leadership) {
        let leadership = Leadership::new(clock.clone());
        let api = Api::namespaced(client, namespace);
        (Self { api, me, clock, leadership: leadership.clone(), seen: None }, leadership)
    }

    /// Never ends by itself.
    pub async fn run(mut self) {
        loop {
            // Counted from its begin: on a slow server two rounds must fit into what one gives.
            let next = self.clock.boottime() + RENEW;
            // A request that hangs must not outlive what it would renew.
            let attempt = self.clock.clone().timeout(DURATION - MARGIN, self.attempt()).await;
            match attempt {
                Some(Ok(until)) => self.leadership.set(until),
                Some(Err(error)) => {
                    tracing::warn!(%error, "leader election");
                    if !self.leadership.leads() {
                        self.leadership.set(None);
                    }
                }
                None => {
                    tracing::warn!("leader election: the API server does not answer");
                    if !self.leadership.leads() {
                        self.leadership.set(None);
                    }
                }
            }
            self.clock.sleep_until(next).await;
        }
    }

    /// Gives the Lease back, so that the next need not wait.
    pub async fn resign(api: &Api<Lease>, me: &str) -> Result<(), Error> {
        let Some(mut lease) = api.get_opt(LEASE).await.map_err(Error::api("resigning"))? else {
            return Ok(());
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(me) {
            return Ok(());
        }
        spec.holder_identity = None;
        api.replace(LEASE, &PostParams::default(), &lease)
            .await
            .map(drop)
            .map_err(Error::api("resigning"))
    }

    /// When the Lease was renewed last, by the clock of whoever did, and the version that says so;
    /// `None`: nobody ever led.
    pub async fn renewed(api: &Api<Lease>) -> Result<Option<(String, Timestamp)>, Error> {
        let read = api.get_opt(LEASE).await.map_err(Error::api("reading the Lease"))?;
        Ok(read.and_then(|lease| {
            let MicroTime(at) = lease.spec?.renew_time?;
            Some((lease.metadata.resource_version?, at))
        }))
    }

    /// Takes the Lease from whoever has it, for this long: nobody leads, until it runs out or is given
    /// back. Returns how long the one who led may still think so; `None`: nobody ever led.
    pub async fn seize(
        api: &Api<Lease>,
        me: &str,
        hold: Duration,
        now: Timestamp,
    ) -> Result<Option<Duration>, Error> {
        loop {
            let read = api.get_opt(LEASE).await.map_err(Error::api("taking the Lease"))?;
            let Some(mut lease) = read else { return Ok(None) };
            let spec = lease.spec.get_or_insert_default();
            spec.holder_identity = Some(me.to_owned());
            spec.lease_duration_seconds = i32::try_from(hold.as_secs()).ok();
            spec.renew_time = Some(MicroTime(now));
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
            match api.replace(LEASE, &PostParams::default(), &lease).await {
                Ok(_) => return Ok(Some(DURATION - MARGIN)),
                // It was renewed meanwhile.
                Err(error) if is_conflict(&error) => {}
                Err(error) => return Err(Error::api("taking the Lease")(error)),
            }
        }
    }

    /// One round: renews ours, takes a free one, or waits. Returns until when we lead.
    async fn attempt(&mut self) -> Result<Option<Duration>, Error> {
        let began = self.clock.boottime();
        let Some(mut lease) =
            self.api.get_opt(LEASE).await.map_err(Error::api("reading the Lease"))?
        else {
            let lease = Lease {
                metadata: ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
                spec: Some(self.held(0)),
            };
            return match self.api.create(&PostParams::default(), &lease).await {
                Ok(_) => Ok(Some(until(began))),
                Err(error) if is_conflict(&error) => Ok(None),
                Err(error) => Err(Error::api("making the Lease")(error)),
            };
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((known, since)) if *known == version => *since,
            _ => {
                self.seen = Some((version, began));
                began
            }
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or("");
        let transitions = spec.lease_transitions.unwrap_or(0);
        let ours = holder == self.me;
        let asked = spec.lease_duration_seconds.unwrap_or(0).max(0).unsigned_abs();
        let holds = Duration::from_secs(asked.into()).clamp(DURATION, LONGEST);
        if !ours && !holder.is_empty() && began.saturating_sub(since) < holds {
            return Ok(None);
        }
        lease.spec = Some(self.held(if ours { transitions } else { transitions + 1 }));
        // A compare-and-swap: of two that try, one wins.
        match self.api.replace(LEASE, &PostParams::default(), &lease).await {
            Ok(_) => Ok(Some(until(began))),
            Err(error) if is_conflict(&error) => Ok(None),
            Err(error) => Err(Error::api("renewing the Lease")(error)),
        }
    }

    fn held(&self, transitions: i32) -> LeaseSpec {
        let now = MicroTime(self.clock.now());
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: Some(DURATION.as_secs() as i32),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

/// Counted from before the request was sent: the server saw it later, never earlier.
fn until(began: Duration) -> Duration {
    began + (DURATION - MARGIN)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use petaflop_agent_api::clock::Clock;

    use super::Leadership;

    #[test]
    fn what_has_run_out_is_not_gained_until_it_is_renewed() {
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let leadership = Leadership::new(clock.clone());
        assert_eq!(leadership.gained().now_or_never(), None);
        leadership.set(Some(clock.boottime() + Duration::from_secs(10)));
        assert_eq!(leadership.gained().now_or_never(), Some(()));
        assert_eq!(leadership.lost().now_or_never(), None);

        clock.advance(Duration::from_secs(11));
        assert_eq!(leadership.lost().now_or_never(), Some(()));
        let gained = leadership.gained();
        futures::pin_mut!(gained);
        assert_eq!(gained.as_mut().now_or_never(), None);
        leadership.set(Some(clock.boottime() + Duration::from_secs(10)));
        assert_eq!(gained.now_or_never(), Some(()));
    }
}
