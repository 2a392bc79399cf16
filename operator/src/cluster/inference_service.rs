//! The InferenceService's controller, the part that needs no client: from what is seen to what its
//! status shall say, how many machines it wants, which claims go, and where its gateways find it.
//!
//! What a replica serves is what it says itself; a replica of another model, or of another
//! [`revision`], than is wanted is an old one. A replica that answers is drained by the gateways before
//! its claim goes. Nothing is remembered from pass to pass: the same replicas go in the same order as
//! long as the same is seen.
//!
//! | module | holds |
//! |---|---|
//! | [`revision`] | what a replica was made of, and whether that is still what is wanted |
//! | `rollout` | who goes and how many come |
//! | `failures` | how replicas ended; when another may be tried, and when that is of no use |
//! | `words` | what the status says |

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use petaflop_agent_api::gateway;
use petaflop_agent_api::task::Secret;
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::workload::ServingWork;
use petaflop_crds::compute_claim::{OWNER_KIND_LABEL, OWNER_LABEL};
use petaflop_crds::inference_service::{InferenceServicePhase as Phase, InferenceServiceSpec};
use petaflop_crds::{InferenceService, InferenceServiceStatus, MANAGED_BY};

use crate::claims::StoredClaim;
use crate::cluster::gateway_objects;
use crate::cluster::status::is_true;
use crate::cluster::training_job::Waits;
use crate::run::Run;

mod failures;
pub mod revision;
mod rollout;
mod words;
use failures::Tries;
use revision::Revision;
use rollout::{Live, rollout};
use words::Counts;

/// Port of the service where its spec names none.
pub const PORT: u16 = 8080;

/// Seconds that a replica has to finish its answers when its machine goes.
pub const GRACE_SECONDS: u64 = 30;

/// Between two looks at agents that were not heard yet.
const SOON: SignedDuration = SignedDuration::from_secs(1);

/// What is seen of a service.
#[derive(Debug)]
pub struct Seen<'a> {
    /// The object.
    pub service: &'a InferenceService,
    /// Its claims, and what their agents said.
    pub replicas: &'a [Replica],
    /// What it is to serve.
    pub model: &'a Model,
    /// What its gateways say.
    pub route: &'a Route,
    /// Everything that its claims have cost, by the ledger and the running rate.
    pub spent: Usd,
    /// Why the last placement pass found no machine for it.
    pub waits: Option<&'a Waits>,
    /// A budget whose limit is reached asks that it be stopped.
    pub stopped_by_budget: Option<&'a str>,
    /// Image that replicas run.
    pub image: &'a str,
    /// Agents that run have had the time to say how they are, since we began to ask.
    pub all_heard: bool,
    /// Now.
    pub now: Timestamp,
}

/// A claim, and what its agent said last.
#[derive(Clone, Debug)]
pub struct Replica {
    /// The claim.
    pub stored: StoredClaim,
    /// What its agent said, if there is a session with it.
    pub run: Option<Run>,
    /// What its server asks of whoever sends it requests.
    pub key: Secret,
    /// Its machine is on the cluster's own network: gateways reach what it serves without its agent.
    pub near: bool,
}

impl Replica {
    fn name(&self) -> &str {
        &self.stored.claim.spec.name
    }

    /// Where gateways find it, once it answers: straight, or by its agent, which passes on what they
    /// send it encrypted.
    fn told(&self, draining: bool, server: &gateway::Server) -> Option<gateway::Replica> {
        let run = self.run.as_ref().filter(|run| run.end.is_none())?;
        let serving = run.serving.as_ref()?;
        // `host:port` of the agent, which is on the same machine.
        let endpoint = self.stored.endpoint.clone()?;
        let (address, agent) = match self.near {
            true => (format!("{}:{}", endpoint.rsplit_once(':')?.0, serving.port), None),
            false => (endpoint, Some(self.stored.agent_key.as_ref()?.parse().ok()?)),
        };
        Some(gateway::Replica {
            name: self.name().to_owned(),
            address,
            agent,
            weight: NonZeroU32::MIN,
            draining,
            key: self.key.clone(),
            server: server.clone(),
        })
    }

    /// Whether it answers.
    fn answers(&self) -> bool {
        self.told(false, &gateway::Server::Ours).is_some()
    }

    /// Whether it may be answering, though we have not heard from it yet.
    fn is_unheard(&self) -> bool {
        self.stored.agent_key.is_some()
            && !self.stored.deleting
            && matches!(self.stored.claim.phase, ClaimPhase::Launched { .. })
            && !self.run.as_ref().is_some_and(|run| run.heard)
    }
}

/// What a service is to serve.
#[derive(Clone, Debug)]
pub enum Model {
    /// This.
    Known(Arc<Served>),
    /// It is not there yet.
    Waits(Waits),
    /// Waiting will not help.
    Wrong(Waits),
}

/// What can be served.
#[derive(Clone, Debug, PartialEq)]
pub enum Served {
    /// A model, by our runtime.
    Artifact {
        /// Its hash.
        hash: String,
        /// Work of a replica.
        work: ServingWork,
    },
    /// Whatever a command of the user's answers, in an image of the user's.
    Container,
}

impl Served {
    /// Hash of the artifact, where it is one.
    pub fn artifact(&self) -> Option<&str> {
        match self {
            Self::Artifact { hash, .. } => Some(hash),
            Self::Container => None,
        }
    }

    /// Work of a replica, where that can be known.
    pub fn work(&self) -> Option<ServingWork> {
        match self {
            Self::Artifact { work, .. } => Some(work.clone()),
            Self::Container => None,
        }
    }
}

/// What the gateways of a service say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Route {
    /// Gateways that have been told everything.
    pub linked: usize,
    /// Somebody waits there, and there is no replica.
    pub wakes: bool,
    /// How long nobody has asked for anything; `None` where that is not known of all gateways.
    pub idle: Option<Duration>,
    /// Draining replicas on which no gateway has a request.
    pub drained: BTreeSet<String>,
}

/// What is to be done for a service.
#[derive(Clone, Debug, PartialEq)]
pub struct Next {
    /// What its status shall say.
    pub status: InferenceServiceStatus,
    /// Whether its finalizer shall be there.
    pub finalizer: bool,
    /// Names of claims that it no longer wants.
    pub unwanted: Vec<String>,
    /// Machines it wants; `None`: as before.
    pub wants: Option<Wants>,
    /// Where its gateways find it; `None`: as before.
    pub told: Option<gateway::Told>,
    /// A replica failed that was not counted before.
    pub failure: Option<Failure>,
    /// When to look again though nothing changes.
    pub again: Option<Duration>,
}

/// Machines that a service wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    /// How many.
    pub count: u32,
    /// Its claims that are not among them.
    pub others: BTreeSet<String>,
}

/// How a replica failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// In words.
    pub message: String,
    /// Whether another try could help.
    pub retry: bool,
}

/// Whether it is ours to reconcile.
pub fn is_ours(service: &InferenceService) -> bool {
    service.spec.managed_by == MANAGED_BY
}

/// The port that clients use.
pub fn port(service: &InferenceService) -> u16 {
    service.spec.port.unwrap_or(PORT)
}

/// What answers at a replica.
fn server(spec: &InferenceServiceSpec) -> gateway::Server {
    let Some(_) = &spec.container else { return gateway::Server::Ours };
    // Gateways reach the port that serves, and no other.
    let readiness = spec.probes.readiness.as_ref();
    let port = spec.port.unwrap_or(PORT);
    let asked = readiness.filter(|probe| probe.port.is_none_or(|asked| asked == port));
    gateway::Server::Any { health: asked.map(|probe| probe.path.clone()) }
}

/// Selects the replicas that are Pods, for scalers.
fn selector(service: &InferenceService) -> String {
    format!("{OWNER_KIND_LABEL}=InferenceService,{OWNER_LABEL}={}", service.name_any())
}

/// Decides for one service.
pub fn next(seen: &Seen) -> Next {
    let service = seen.service;
    let mut next = Next {
        status: service.status.clone().unwrap_or_default(),
        finalizer: true,
        unwanted: Vec::new(),
        wants: Some(Wants::default()),
        told: Some(gateway::Told::new(false, Vec::new())),
        failure: None,
        again: None,
    };
    if service.metadata.deletion_timestamp.is_some() {
        next.unwanted = names(seen);
        next.finalizer = !seen.replicas.is_empty();
        return next;
    }
    let stops = service.spec.suspend || seen.stopped_by_budget.is_some();
    if !stops && !seen.all_heard && seen.replicas.iter().any(Replica::is_unheard) {
        (next.wants, next.told) = (None, None);
        look_again(&mut next.again, SOON);
        return next;
    }
    let changed = next.status.observed_generation != service.metadata.generation;
    let asleep = is_asleep(seen, changed);
    let status = &mut next.status;
    status.observed_generation = service.metadata.generation;
    status.selector = Some(selector(service));
    status.url = Some(gateway_objects::url(service));
    let revision = Revision::of(&service.spec, seen.image);
    let tries = failures::settle(seen, &revision, &mut next);
    words::placement(seen, &mut next.status);
    if stops {
        next.unwanted = names(seen);
        words::suspended(seen, &mut next);
        return next;
    }
    words::resumed(seen, &mut next);
    next.status.revision = Some(revision.text().to_owned());
    match seen.model {
        Model::Known(served) => next.status.artifact = served.artifact().map(str::to_owned),
        // What the earlier spec asked for is no answer to this one.
        Model::Waits(_) | Model::Wrong(_) if changed => next.status.artifact = None,
        Model::Waits(_) | Model::Wrong(_) => {}
    }
    let want = if asleep { 0 } else { service.spec.replicas };
    replicas(seen, want, asleep, &revision, &tries, &mut next);
    next
}

/// Who stays, who goes, who is asked, and what is said of that.
fn replicas(
    seen: &Seen,
    want: u32,
    asleep: bool,
    revision: &Revision,
    tries: &Tries,
    next: &mut Next,
) {
    let spec = &seen.service.spec;
    let (is_known, target) = match seen.model {
        Model::Known(served) => (true, served.artifact()),
        Model::Waits(_) | Model::Wrong(_) => (false, None),
    };
    let working = |replica: &&Replica| {
        let counted = next.status.counted.iter().any(|name| name == replica.name());
        replica.stored.claim.is_working() && !replica.stored.deleting && !counted
    };
    let live: Vec<Live> = (seen.replicas.iter().filter(working))
        .map(|replica| {
            let serving = replica.run.as_ref().and_then(|run| run.serving.as_ref());
            let is_target = |model: &str| target.is_none_or(|target| target == model);
            Live {
                name: replica.name(),
                // What its provider takes away is replaced while it still answers.
                new: !replica.run.as_ref().is_some_and(|run| run.taken)
                    && serving.is_none_or(|serving| is_target(&serving.model))
                    && revision.is_of(&replica.stored.claim.spec),
                ready: replica.answers(),
                price: replica.stored.claim.spec.offer.price,
            }
        })
        .collect();
    let plan = rollout(want, &spec.rollout, &live);
    let waits_for_another_try = tries.not_before.filter(|at| *at > seen.now);
    if let Some(at) = waits_for_another_try {
        look_again(&mut next.again, at.duration_since(seen.now));
    }
    let may_add = is_known && tries.blocked.is_none() && waits_for_another_try.is_none();
    let add = if may_add { plan.add } else { 0 };
    let kept: Vec<&Live> = live.iter().filter(|one| !plan.go.contains(one.name)).collect();
    let stays: BTreeSet<&str> = kept.iter().map(|one| one.name).collect();
    let is_ready = |name: &str| live.iter().any(|one| one.name == name && one.ready);
    next.wants = Some(Wants {
        count: u32::try_from(kept.len()).unwrap_or(u32::MAX).saturating_add(add),
        others: names(seen).into_iter().filter(|name| !stays.contains(name.as_str())).collect(),
    });
    next.unwanted = names(seen)
        .into_iter()
        .filter(|name| !stays.contains(name.as_str()))
        .filter(|name| !is_ready(name) || seen.route.drained.contains(name))
        .collect();
    let asked = seen.replicas.iter().filter(|replica| is_ready(replica.name()));
    let server = server(spec);
    let asked = asked.filter_map(|replica| replica.told(!stays.contains(replica.name()), &server));
    next.told = Some(gateway::Told::new(spec.replicas > 0, asked.collect()));

    let count = |which: &dyn Fn(&Live) -> bool| kept.iter().filter(|one| which(one)).count();
    let counts = Counts {
        want,
        all: live.len(),
        available: count(&|one| one.ready),
        updated: count(&|one| one.new),
        new_and_ready: count(&|one| one.new && one.ready),
        lacks: plan.add > 0,
        asleep,
        blocked: tries.blocked.as_deref(),
    };
    words::say(seen, &counts, next);
}

/// Whether it sleeps: nobody has asked for long enough, and nobody waits now.
fn is_asleep(seen: &Seen, changed: bool) -> bool {
    let spec = &seen.service.spec;
    let Some(after) = spec.idle.scale_to_zero_after_seconds else { return false };
    let Some(status) = seen.service.status.as_ref().filter(|_| spec.replicas > 0) else {
        return false;
    };
    if status.phase == Some(Phase::Idle) {
        // Whoever changes it, or scales it, wants to see it.
        return !seen.route.wakes && !changed;
    }
    // Gateways count from when there was somebody to answer.
    let idle = seen.route.idle.is_some_and(|idle| idle >= Duration::from_secs(after.into()));
    is_true(&status.conditions, "Available") && idle && !seen.route.wakes
}

fn look_again(known: &mut Option<Duration>, wait: SignedDuration) {
    let wait = Duration::try_from(wait).unwrap_or_default().max(Duration::from_millis(1));
    *known = Some(known.map_or(wait, |known| known.min(wait)));
}

fn names(seen: &Seen) -> Vec<String> {
    seen.replicas.iter().map(|replica| replica.name().to_owned()).collect()
}

/// Whether a service still wants a claim of its.
pub fn wants(service: &InferenceService, stored: &StoredClaim) -> bool {
    let status = service.status.as_ref();
    let name = &stored.claim.spec.name;
    service.metadata.deletion_timestamp.is_none()
        && !service.spec.suspend
        && service.spec.replicas > 0
        && !status.is_some_and(|s| s.phase == Some(Phase::Idle) || s.counted.contains(name))
}

/// Why a claim of this service is no longer wanted.
pub fn unwanted_because(service: &InferenceService, stored: &StoredClaim) -> Reason {
    let status = service.status.as_ref();
    if service.metadata.deletion_timestamp.is_some() || service.spec.suspend {
        return Reason::Suspended;
    }
    let counted = |s: &InferenceServiceStatus| s.counted.contains(&stored.claim.spec.name);
    match status {
        Some(status) if counted(status) => Reason::HeartbeatLost,
        Some(status) if status.phase == Some(Phase::Idle) => Reason::ScaledToZero,
        _ => Reason::ScaledDown,
    }
}

#[cfg(test)]
mod tests;
