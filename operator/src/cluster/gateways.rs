//! The gateways of services: dialled at their Pods' addresses, told where the replicas are, and asked
//! what they know. One task a gateway; what it learns is in memory only, for a new leader asks again.
//! The protocol is [`petaflop_agent_api::gateway`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::gateway::{Known, PATH, Told};
use petaflop_agent_api::message::{MessageError, from_bytes, to_bytes};
use petaflop_agent_api::session::{Opened, SessionError};
use tokio::sync::watch;

use crate::cluster::Handle;
use crate::cluster::gateway_objects::{GATEWAY_LABEL, OWN};
use crate::cluster::inference_service::Route;
use crate::cluster::table::Name;
use crate::cluster::watches::Seen;
use crate::installation::Installation;

/// How long a gateway waits for something new before it answers.
const WATCH: Duration = Duration::from_secs(30);
/// A call that has not ended after this long has failed.
const PATIENCE: Duration = Duration::from_secs(45);
/// Between two tries to reach a gateway.
const AGAIN: Duration = Duration::from_secs(1);
/// What is known of a gateway's idleness is good for this long.
const FRESH: Duration = Duration::from_secs(5);
/// A replica that drains this long is drained, whatever runs on it: as long as an answer may take.
const DRAIN: Duration = Duration::from_secs(300);

/// Why a gateway was not understood.
#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error("gateway: {0}")]
    Http(#[from] reqwest::Error),
    #[error("gateway: HTTP {0}")]
    Status(u16),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Message(#[from] MessageError),
}

/// The gateways of all services. Clones are the same.
#[derive(Clone)]
pub struct Gateways {
    http: reqwest::Client,
    clock: Clock,
    root: Arc<Installation>,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    /// Addresses of gateway Pods, by service and uid of the Pod.
    pods: HashMap<Name, BTreeMap<String, String>>,
    services: HashMap<Name, Service>,
}

/// A service whose gateways are talked to.
struct Service {
    say: watch::Sender<Say>,
    links: HashMap<String, Link>,
    /// Since when (time since boot) replicas drain.
    draining: HashMap<String, Duration>,
}

impl Service {
    fn route(&self, now: Duration) -> Route {
        let list = self.say.borrow().told.list.clone();
        let known: Vec<&Known> = self.links.values().filter_map(|l| l.known.as_ref()).collect();
        let is_told = |known: &Known| known.list.as_ref() == Some(&list);
        // A request may have come since.
        let fresh = |link: &Link| link.known.is_some() && now.saturating_sub(link.at) <= FRESH;
        let all_answer = !known.is_empty() && self.links.values().all(fresh);
        let idle = known.iter().map(|known| Duration::from_millis(known.idle_millis)).min();
        let is_drained = |(name, since): &(&String, &Duration)| {
            // One that does not answer, or not yet, may send requests there.
            let by_all = self.links.values().all(|link| {
                let known = link.known.as_ref();
                known.is_some_and(|known| is_told(known) && known.drained.contains(name))
            });
            by_all || now.saturating_sub(**since) > DRAIN
        };
        let drained = self.draining.iter().filter(is_drained);
        Route {
            linked: known.iter().filter(|known| is_told(known)).count(),
            wakes: known.iter().any(|known| known.wakes()),
            idle: idle.filter(|_| all_answer),
            drained: drained.map(|(name, _)| name.clone()).collect(),
        }
    }
}

/// What a service's gateways are told, and when they should speak up.
#[derive(Clone, Debug, PartialEq)]
struct Say {
    told: Told,
    idle_after: Option<Duration>,
}

/// One gateway.
struct Link {
    address: String,
    /// What it said last; `None` where it does not answer.
    known: Option<Known>,
    /// When (time since boot).
    at: Duration,
    task: tokio::task::AbortHandle,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Gateways {
    /// None yet.
    pub fn new(clock: Clock, root: Arc<Installation>) -> Result<Self, reqwest::Error> {
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self { http, clock, root, inner: Arc::default() })
    }

    /// The watch's eyes: which gateways there are.
    pub fn on_pod(&self, handle: Handle) -> impl Fn(&Pod, Seen) + use<> {
        let inner = self.inner.clone();
        move |pod, seen| {
            let Some(service) = pod.labels().get(GATEWAY_LABEL) else { return };
            let name = (pod.namespace().unwrap_or_default(), service.clone());
            let uid = pod.uid().unwrap_or_default();
            let address = address(pod).filter(|_| seen == Seen::There);
            let mut inner = lock(&inner);
            let pods = inner.pods.entry(name.clone()).or_default();
            let changed = match address {
                Some(address) => pods.insert(uid, address.clone()) != Some(address),
                None => pods.remove(&uid).is_some(),
            };
            if pods.is_empty() {
                inner.pods.remove(&name);
            }
            drop(inner);
            if changed {
                handle.service_changed(&name);
            }
        }
    }

    /// What a service's gateways shall know from now on. Those that are new are dialled, those that
    /// are gone forgotten.
    pub fn tell(&self, handle: &Handle, name: &Name, told: Told, idle_after: Option<Duration>) {
        let now = self.clock.boottime();
        let say = Say { told, idle_after };
        let mut inner = self.lock();
        let pods = inner.pods.get(name).cloned().unwrap_or_default();
        let service = inner.services.entry(name.clone()).or_insert_with(|| Service {
            say: watch::Sender::new(say.clone()),
            links: HashMap::new(),
            draining: HashMap::new(),
        });
        let draining: BTreeSet<&str> =
            say.told.replicas.iter().filter(|r| r.draining).map(|r| r.name.as_str()).collect();
        service.draining.retain(|name, _| draining.contains(name.as_str()));
        for name in draining {
            service.draining.entry(name.to_owned()).or_insert(now);
        }
        service.say.send_if_modified(|known| {
            let new = *known != say;
            *known = say;
            new
        });
        service.links.retain(|uid, link| pods.get(uid) == Some(&link.address));
        for (uid, address) in pods {
            if service.links.contains_key(&uid) {
                continue;
            }
            let talk = Talk {
                http: self.http.clone(),
                clock: self.clock.clone(),
                root: self.root.clone(),
                url: format!("http://{address}{PATH}"),
                name: name.clone(),
                uid: uid.clone(),
                say: service.say.subscribe(),
                all: Arc::downgrade(&self.inner),
                handle: handle.clone(),
            };
            let task = tokio::spawn(talk.go_on()).abort_handle();
            service.links.insert(uid, Link { address, known: None, at: now, task });
        }
    }

    /// What a service's gateways say.
    pub fn route(&self, name: &Name) -> Route {
        let inner = self.lock();
        inner
            .services
            .get(name)
            .map(|service| service.route(self.clock.boottime()))
            .unwrap_or_default()
    }

    /// A service is gone.
    pub fn forget(&self, name: &Name) {
        self.lock().services.remove(name);
    }

    /// Forgets all: another process leads.
    pub fn forget_all(&self) {
        self.lock().services.clear();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a gateway listens for us. One that is ending still answers, and must know where.
fn address(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let ip = status.pod_ip.as_deref().filter(|ip| !ip.is_empty() && !over)?;
    Some(if ip.contains(':') { format!("[{ip}]:{OWN}") } else { format!("{ip}:{OWN}") })
}

/// One conversation.
struct Talk {
    http: reqwest::Client,
    clock: Clock,
    root: Arc<Installation>,
    url: String,
    name: Name,
    /// Of its Pod.
    uid: String,
    say: watch::Receiver<Say>,
    all: Weak<Mutex<Inner>>,
    handle: Handle,
}

impl Talk {
    /// Until the link is dropped.
    async fn go_on(mut self) {
        let mut last = None;
        loop {
            let round = self.round(last.as_ref()).await;
            let failed = round.is_err();
            last = round.unwrap_or_else(|error| {
                tracing::debug!(service = %self.name.1, url = %self.url, %error, "gateway");
                None
            });
            self.take(last.clone());
            if failed {
                self.clock.sleep(AGAIN).await;
            }
        }
    }

    /// Asks what is new, and tells what it does not know yet.
    async fn round(&mut self, last: Option<&Known>) -> Result<Option<Known>, TalkError> {
        let Say { told, idle_after } = self.say.borrow_and_update().clone();
        let (after, wait) = match last {
            Some(last) if last.list.as_ref() == Some(&told.list) => {
                (last.change, wait(last, idle_after))
            }
            _ => (0, Duration::ZERO),
        };
        let url = format!("{}?after={after}&wait={}", self.url, wait.as_secs());
        let ask = self.http.get(url).send();
        let answer = tokio::select! {
            answer = ask => answer?,
            // What is to be told does not wait for what is to be heard.
            _ = self.say.changed() => return Ok(last.cloned()),
        };
        let message = body(answer).await?;
        let opened = Opened::read(&self.root.root.noise(), &message)?;
        let mut known: Known = from_bytes(opened.known())?;
        if known.list.as_ref() != Some(&told.list) {
            let answer = opened.tell(&to_bytes(&told))?;
            body(self.http.post(&self.url).body(answer).send().await?).await?;
            known.list = Some(told.list);
            // It speaks of the list before.
            known.drained.clear();
        }
        Ok(Some(known))
    }

    /// Takes over what it said, and wakes the service if it matters.
    fn take(&self, known: Option<Known>) {
        let Some(all) = self.all.upgrade() else { return };
        let mut inner = lock(&all);
        let Some(service) = inner.services.get_mut(&self.name) else { return };
        let idle_after = service.say.borrow().idle_after;
        let Some(link) = service.links.get_mut(&self.uid) else { return };
        let before = std::mem::replace(&mut link.known, known);
        link.at = self.clock.boottime();
        fn tells(known: Option<&Known>) -> Option<(&Option<String>, bool, &[String])> {
            known.map(|known| (&known.list, known.wakes(), &*known.drained))
        }
        let matters = tells(before.as_ref()) != tells(link.known.as_ref())
            || link.known.as_ref().is_some_and(|known| is_idle(known, idle_after));
        drop(inner);
        if matters {
            self.handle.service_changed(&self.name);
        }
    }
}

fn is_idle(known: &Known, idle_after: Option<Duration>) -> bool {
    idle_after.is_some_and(|after| Duration::from_millis(known.idle_millis) >= after)
}

/// How long to wait for something new: not beyond the moment when it may have been idle for long enough.
fn wait(last: &Known, idle_after: Option<Duration>) -> Duration {
    match idle_after {
        Some(after) if !is_idle(last, idle_after) => {
            let left = after.saturating_sub(Duration::from_millis(last.idle_millis));
            left.clamp(Duration::from_secs(1), WATCH)
        }
        _ => WATCH,
    }
}

async fn body(answer: reqwest::Response) -> Result<Vec<u8>, TalkError> {
    match answer.status().as_u16() {
        200..=299 => Ok(answer.bytes().await?.to_vec()),
        status => Err(TalkError::Status(status)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(known: Option<Known>) -> Link {
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        Link { address: String::new(), known, at: Duration::ZERO, task }
    }

    fn known(list: Option<&str>, drained: &[&str]) -> Known {
        Known {
            version: petaflop_agent_api::message::VERSION,
            change: 1,
            list: list.map(str::to_owned),
            waiting: 0,
            ready: 1,
            idle_millis: 0,
            drained: drained.iter().map(|name| (*name).to_owned()).collect(),
        }
    }

    #[tokio::test]
    async fn a_replica_is_drained_once_every_gateway_says_so_or_it_had_its_time() {
        let told = Told::new(true, Vec::new());
        let list = told.list.clone();
        let new = || Some(known(Some(&list), &["a"]));
        let busy = || Some(known(Some(&list), &[]));
        let old = || Some(known(Some("another"), &["a"]));
        // What each gateway said last, and whether that is enough.
        let table = [
            (vec![], true),
            (vec![new()], true),
            (vec![busy()], false),
            (vec![old()], false),
            // A new leader has not heard from it yet.
            (vec![None], false),
            (vec![new(), None], false),
            (vec![new(), busy()], false),
            (vec![new(), new()], true),
        ];
        for (said, enough) in table {
            let links = said.iter().cloned().enumerate();
            let service = Service {
                say: watch::Sender::new(Say { told: told.clone(), idle_after: None }),
                links: links.map(|(uid, known)| (uid.to_string(), link(known))).collect(),
                draining: HashMap::from([("a".to_owned(), Duration::ZERO)]),
            };
            let drained = |now| service.route(now).drained.contains("a");
            assert_eq!(drained(Duration::from_secs(1)), enough, "{said:?}");
            assert!(drained(DRAIN + Duration::from_secs(1)), "{said:?}");
        }
    }
}
