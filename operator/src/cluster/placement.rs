//! The placement pass: one at a time for the whole cluster, over all workloads that wait, in a
//! stable order: observe → [`World`] → [`decide`] → claims. It never buys; writing a claim twice is safe.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use petaflop_arbiter::claim::Claim;
use petaflop_arbiter::decide::decide;
use petaflop_arbiter::decision::{Action, Decision, Outcome};
use petaflop_arbiter::estimate::Correction;
use petaflop_arbiter::reason::Reason;
use petaflop_arbiter::support::SupportTable;
use petaflop_arbiter::workload::{Progress, TrainingWork, Workload, WorkloadId};
use petaflop_arbiter::world::{Assumptions, Recorded, World};
use petaflop_crds::inference_service::InferenceServiceSpec;
use petaflop_crds::spend_budget::Period;
use petaflop_crds::workload::Observed;
use petaflop_crds::{InferenceService, TrainingJob};
use tokio::sync::Notify;

use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::cluster::Operator;
use crate::cluster::admit::Amount;
use crate::cluster::budgets::{self, Counted};
use crate::cluster::error::Error;
use crate::cluster::inference_service::{self, revision::Revision};
use crate::cluster::lane::Lane;
use crate::cluster::moves::{self, Moves, may_move};
use crate::cluster::providers::Registry;
use crate::cluster::record;
use crate::cluster::training_job::{self, Waits};
use crate::learned::Lesson;
use crate::spot::Spot;

/// What was asked for within this time of the first is decided together.
const TOGETHER: Duration = Duration::from_millis(20);

/// What is said of a workload that waits is kept this long while only its numbers move.
const SAID_FOR: SignedDuration = SignedDuration::from_secs(300);

/// Until a watch has caught up.
const SOON: Duration = Duration::from_millis(200);

/// Claims that are written at once.
const AT_ONCE: usize = 16;

/// How long an offer is left alone that no claim can be made of.
const LEFT_ALONE: SignedDuration = SignedDuration::from_mins(10);

/// Who asks for passes, and what the last one said. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    asked: Notify,
    last: Mutex<HashMap<String, Arc<Said>>>,
    passed: Mutex<Option<Timestamp>>,
    lane: Lane,
    moves: Moves,
    spot: Spot,
}

/// What a pass said of a workload.
#[derive(Clone, Debug)]
pub struct Said {
    workload: WorkloadId,
    /// The decision, with reasons; `None` where there was nothing to decide.
    pub decision: Option<Box<Decision>>,
    /// Why there is no machine, where there is none.
    pub waits: Option<Waits>,
    /// Wherever it was placed last, its deadline may be missed.
    pub at_risk: bool,
    /// It has its machines.
    settled: bool,
    /// Generation of the workload that this was said of.
    generation: Option<i64>,
    at: Timestamp,
}

impl Said {
    /// Of a workload that cannot even be asked for.
    fn impossible(
        workload: WorkloadId,
        message: String,
        generation: Option<i64>,
        at: Timestamp,
    ) -> Self {
        let waits = Some(Waits { reason: Reason::InvalidSpec, message });
        Self { workload, decision: None, waits, at_risk: false, settled: false, generation, at }
    }

    /// What is left of it once the machine is there.
    fn settled(&self) -> Self {
        let Self { workload, at_risk, generation, at, .. } = self;
        let (at_risk, generation, at) = (*at_risk, *generation, *at);
        let workload = workload.clone();
        Self { workload, decision: None, waits: None, at_risk, settled: true, generation, at }
    }

    /// The words of before, where only their numbers moved: a status is not written for those.
    fn or_before(mut self, before: Option<&Said>) -> Said {
        // Once it has its machine nothing more is said of it.
        self.at_risk |= self.settled && before.is_some_and(|before| before.at_risk);
        let words = |said: &Said| {
            let but_digits = |text: &str| text.replace(|c: char| c.is_ascii_digit(), "");
            said.waits.as_ref().map(|waits| (waits.reason, but_digits(&waits.message)))
        };
        match before {
            Some(before)
                if words(before) == words(&self)
                    && before.generation == self.generation
                    && self.at.duration_since(before.at) < SAID_FOR =>
            {
                Said { waits: before.waits.clone(), at: before.at, ..self }
            }
            _ => self,
        }
    }
}

impl Placement {
    /// Asks for a pass.
    pub fn ask(&self) {
        self.inner.lane.ask();
        self.inner.asked.notify_one();
    }

    /// Waits until one is asked for, and a moment more for whoever asks next.
    pub async fn asked(&self, operator: &Operator) {
        self.inner.asked.notified().await;
        operator.clock.sleep(TOGETHER).await;
    }

    /// What the last pass said of a workload.
    pub fn said(&self, uid: &str) -> Option<Arc<Said>> {
        self.inner.last.lock().unwrap_or_else(PoisonError::into_inner).get(uid).cloned()
    }

    /// Who stands back while claims are written.
    pub fn lane(&self) -> &Lane {
        &self.inner.lane
    }

    /// Machines that are left for better places.
    pub fn moves(&self) -> &Moves {
        &self.inner.moves
    }

    /// What the spot policies keep.
    fn spot(&self) -> &Spot {
        &self.inner.spot
    }

    /// When the last pass was made, if there was one.
    pub fn passed(&self) -> Option<Timestamp> {
        *self.inner.passed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a pass would look at now, for `explain`. The last one's is not kept: it is as large as all
/// that is known.
pub fn recorded(operator: &Operator) -> Recorded {
    let now = operator.clock.now();
    Recorded { now, world: world(operator, now, Of::Everybody).world }
}

/// One pass. Returns when to look again though nothing happens.
pub async fn pass(operator: &Operator) -> Result<Option<Duration>, Error> {
    let passing = operator.placement.lane().begin();
    let now = operator.clock.now();
    let of = match operator.placement.moves().are_due(now) {
        true => Of::WhoeverMayMove,
        false => Of::WhoeverLacksOne,
    };
    let Looked { world, mut said, generations, revisions, settled } = world(operator, now, of);
    let rents = world.claims.iter().any(may_move);
    if of == Of::WhoeverMayMove {
        operator.placement.moves().forget_but(&world.claims);
    }
    let began = operator.clock.boottime();
    let seen = Recorded { now, world };
    let mut plan = decide(&seen.world, now);
    let took = operator.clock.boottime().saturating_sub(began);
    operator.placement.spot().take_in(&plan);
    operator
        .placement
        .spot()
        .forget_but(|uid| generations.contains_key(uid) || settled.contains(uid));
    record::keep(operator, seen, &mut plan).await;
    operator.metrics.decided(&plan.decisions, took);
    let mut writes = Vec::new();
    for action in plan.actions {
        match action {
            Action::CreateClaim(mut spec) => {
                spec.revision = revisions.get(&spec.owner.uid).cloned();
                writes.push(spec);
            }
            // A claim is ended by whoever asked for it: its controller deletes it. What moves, below.
            Action::EndClaim { .. } => {}
        }
    }
    // Accident: a job comes by its watch before the budget that was there first comes by its own.
    let unknown =
        budgets::unknown(operator, writes.iter().map(|spec| &*spec.owner.namespace)).await?;
    writes.retain(|spec| !unknown.holds(&spec.owner.namespace));
    // Reserved in the order of the plan; written side by side.
    use futures::{StreamExt, TryStreamExt};
    let created: Vec<_> = futures::stream::iter(writes)
        .map(|spec| async {
            if !operator.leadership.leads() {
                return Err(Error::NotLeading);
            }
            let (offer, now) = (spec.offer.id.clone(), operator.clock.now());
            match operator.claims.create(spec).await {
                // An offer that no claim can name is no reason to place nothing else.
                Err(error @ ClaimsError::Refused { .. }) => {
                    tracing::error!(%error, %offer, "left alone");
                    let until = now.saturating_add(LEFT_ALONE).unwrap_or(Timestamp::MAX);
                    operator.providers.leave_alone(&offer, until, Reason::InvalidSpec);
                    operator.placement.ask();
                    Ok(None)
                }
                created => Ok(created?),
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    drop(passing);
    for stored in created.into_iter().flatten() {
        let spec = stored.claim.spec;
        operator.claim_changed(&(spec.owner.namespace, spec.name));
    }
    operator.placement.lane().free(&operator.handle);
    for decision in &plan.decisions {
        moves::leave(operator, decision).await?;
    }
    for decision in plan.decisions {
        let waits = match &decision.outcome {
            Outcome::Waiting { reason, message } => {
                Some(Waits { reason: *reason, message: message.clone() })
            }
            Outcome::Placed { .. } => {
                let message = unknown.unreadable.get(&decision.workload.namespace).cloned();
                message.map(|message| Waits { reason: Reason::InvalidSpec, message })
            }
            Outcome::Settled { .. } | Outcome::Moves { .. } => None,
        };
        let workload = decision.workload.clone();
        let uid = workload.uid.clone();
        let generation = generations.get(&uid).copied().flatten();
        let at_risk = decision.warning == Some(Reason::DeadlineAtRisk);
        let settled =
            matches!(decision.outcome, Outcome::Settled { machines: 1.. } | Outcome::Moves { .. });
        let nothing = matches!(decision.outcome, Outcome::Settled { .. });
        let decision = (!nothing).then(|| Box::new(decision));
        said.insert(uid, Said { workload, decision, waits, at_risk, settled, generation, at: now });
    }
    let changed: Vec<WorkloadId> = {
        let mut last = operator.placement.inner.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever has a machine is not asked about again; what was foreseen of its deadline stands.
        let foreseen = last.iter().filter(|(uid, before)| before.at_risk && settled.contains(*uid));
        for (uid, before) in foreseen {
            said.entry(uid.clone()).or_insert_with(|| before.settled());
        }
        let said: HashMap<String, Arc<Said>> = said
            .into_iter()
            .map(|(uid, now)| {
                let before = last.get(&uid).map(|said| &**said);
                let now = Arc::new(now.or_before(before));
                (uid, now)
            })
            .collect();
        let waits = |uid: &str| said.get(uid).and_then(|said| said.waits.as_ref());
        let new = said.iter().filter(|(uid, _)| !last.contains_key(*uid));
        let other = last.iter().filter(|(uid, before)| before.waits.as_ref() != waits(uid));
        let changed = new.chain(other).map(|(_, said)| said.workload.clone()).collect();
        *last = said;
        changed
    };
    changed.iter().for_each(|workload| operator.owner_changed(workload));
    *operator.placement.inner.passed.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    if !unknown.late.is_empty() {
        return Ok(Some(SOON));
    }
    let again =
        plan.requeue_at.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default());
    Ok(again.into_iter().chain(rents.then_some(moves::EVERY)).min())
}

/// What a pass looks at.
struct Looked {
    /// The world as it is now.
    world: World,
    /// What is said at once of workloads that cannot even be asked for.
    said: HashMap<String, Said>,
    /// By uid of the workload.
    generations: HashMap<String, Option<i64>>,
    /// What a service's machines are made of, by its uid.
    revisions: HashMap<String, String>,
    /// Uids of those who have a machine, and that are left out for that.
    settled: HashSet<String>,
}

/// Whose machines are decided about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Of {
    /// Jobs without a machine, and services: nothing is to decide for a job that has its one.
    WhoeverLacksOne,
    /// And jobs whose machine is rented.
    WhoeverMayMove,
    /// All that have not come to their end.
    Everybody,
}

fn world(operator: &Operator, now: Timestamp, of: Of) -> Looked {
    let mut said = HashMap::new();
    let mut generations = HashMap::new();
    let mut revisions = HashMap::new();
    let mut workloads = Vec::new();
    // One look at the claims for all: what is counted for a service is what is decided by.
    let claims: Vec<StoredClaim> = operator.table.all();
    let working = claims.iter().filter(|stored| stored.claim.is_working());
    let settled: HashSet<String> = working
        .filter(|stored| match of {
            Of::WhoeverLacksOne => true,
            Of::WhoeverMayMove => stored.deleting || !may_move(&stored.claim),
            Of::Everybody => false,
        })
        .map(|stored| stored.claim.spec.owner.uid.clone())
        .collect();
    for job in operator.jobs.unfinished(|uid| settled.contains(uid)) {
        if !training_job::is_ours(&job) || job.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let uid = job.uid().unwrap_or_default();
        let generation = job.metadata.generation;
        match workload(operator, &job, now) {
            Ok(None) => {}
            Ok(Some(workload)) => {
                generations.insert(uid, generation);
                workloads.push(workload);
            }
            Err(message) => {
                let id = Counted::job(&job).id;
                said.insert(uid, Said::impossible(id, message, generation, now));
            }
        }
    }
    for service in operator.services() {
        let uid = service.uid().unwrap_or_default();
        let generation = service.metadata.generation;
        match service_workload(operator, &service, &claims, now) {
            Ok(None) => {}
            Ok(Some(workload)) => {
                let image = &operator.settings.runtime_image;
                let revision = Revision::of(&service.spec, image).text().to_owned();
                revisions.insert(uid.clone(), revision);
                generations.insert(uid, generation);
                workloads.push(workload);
            }
            Err(message) => {
                let id = Counted::service(&service).id;
                said.insert(uid, Said::impossible(id, message, generation, now));
            }
        }
    }
    let mut market = operator.providers.market();
    let mut providers = Vec::new();
    let month = Period::Monthly.around(now);
    for (name, known) in operator.providers.all() {
        let of_it = claims.iter().filter(|stored| stored.claim.spec.offer.provider == name);
        let running = operator.book.running(of_it, month.start, now);
        let spent = operator.book.of_provider(&name, &month).saturating_add(running);
        match known.object.state(&Registry::facts(&known, spent), now) {
            Ok(state) => providers.push(state),
            Err(errors) => {
                tracing::error!(provider = %name, ?errors, "left out");
                Arc::make_mut(&mut market).replace(&name, &[]);
            }
        }
    }
    // What an agent said a moment ago counts, though its claim's turn has not come yet.
    for name in operator.agents.unfit() {
        let is_it = |stored: &&StoredClaim| {
            let spec = &stored.claim.spec;
            (&spec.owner.namespace, &spec.name) == (&name.0, &name.1)
        };
        if let Some(stored) = claims.iter().find(is_it) {
            operator.providers.leave_class_alone(stored, now);
        }
    }
    let budgets = operator.budgets(&claims, now);
    let watched = operator.placement.spot().watched(&workloads);
    let world = World {
        installation: operator.installation.uid.clone(),
        market,
        providers,
        unavailable: operator.providers.unavailable(now),
        workloads,
        claims: claims.into_iter().map(|stored| spent_by_now(operator, stored, now)).collect(),
        budgets,
        corrections: operator.providers.corrections(),
        support: SupportTable::default(),
        assumptions: Assumptions::default(),
        watched,
        tables: operator.placement.spot().tables(),
    };
    Looked { world, said, generations, revisions, settled }
}

/// A claim with what its machine has cost by now: the rest of its reservation is what is held.
fn spent_by_now(operator: &Operator, stored: StoredClaim, now: Timestamp) -> Claim {
    let spent = operator.book.of_claim(&stored, now);
    Claim { spent, ..stored.claim }
}

/// What is asked of the arbiter for a job; nothing, before what it starts from was read.
fn workload(
    operator: &Operator,
    job: &TrainingJob,
    now: Timestamp,
) -> Result<Option<Workload>, String> {
    let work = match operator.admissions.amount(job, &operator.artifacts)? {
        Amount::Unread => return Ok(None),
        Amount::Training(work) => Some(work),
        Amount::Unknown => None,
    };
    let status = job.status.clone().unwrap_or_default();
    let uid = job.uid().unwrap_or_default();
    let claims = operator.table.of_owner(&uid);
    let created_at = job.metadata.creation_timestamp.as_ref().map_or(now, |at| at.0);
    let (placement, progress) = (status.placement.as_ref(), status.progress.as_ref());
    let observed = Observed {
        namespace: job.namespace().unwrap_or_default(),
        name: job.name_any(),
        created_at,
        admitted_at: status.admitted_time.as_ref().map_or(now, |at| at.0),
        progress: Progress {
            steps_done: progress.and_then(|p| p.checkpoint_step).unwrap_or(0),
            checkpoint_millis: progress
                .and_then(|p| p.checkpoint_seconds)
                .and_then(Progress::measured),
            spent: operator.book.spent(&uid, &claims, now),
            interruptions: status.interruptions,
            placements: placement.and_then(|p| p.number.max(p.settled)).unwrap_or(0),
        },
        measured: measured(operator, job, work.as_ref(), &claims),
        uid,
    };
    let mut workload = job.spec.workload(&observed, work).map_err(|errors| {
        let said: Vec<String> =
            errors.iter().map(|error| format!("{}: {}", error.path, error.message)).collect();
        said.join("; ")
    })?;
    workload.tied.extend(store_at_home(&operator.settings.store.uri));
    // What runs goes on, also when its budget was taken away.
    if let (Some(message), true) = (operator.no_such_budget(&Counted::job(job)), claims.is_empty())
    {
        return Err(message);
    }
    // Whoever must wait before the next start wants no machine now; nor does one of whose last machine
    // it is not written yet how it ended.
    let works = claims.iter().any(|stored| stored.claim.is_working());
    workload.suspended |= !works && !operator.waiting.contains(&observed.uid);
    Ok(Some(workload))
}

/// How fast a job was where it ran last: as its machine says now, or said when it had one.
fn measured(
    operator: &Operator,
    job: &TrainingJob,
    work: Option<&TrainingWork>,
    claims: &[StoredClaim],
) -> Option<Correction> {
    let newest = claims.iter().max_by_key(|stored| stored.claim.spec.placement);
    let now = newest.and_then(|stored| {
        let spec = &stored.claim.spec;
        let run = operator.agents.run(&(spec.owner.namespace.clone(), spec.name.clone()))?;
        Lesson::of(spec, work?, run.progress.tokens_per_second?)?.of_the_job()
    });
    operator.placement.spot().measured(&job.uid().unwrap_or_default(), now)
}

/// The store, in words, where it is a folder: machines elsewhere do not reach it.
fn store_at_home(uri: &str) -> Option<String> {
    let folder = uri.starts_with("file://") || !uri.contains("://");
    folder.then(|| format!("the store {uri}"))
}

/// What is asked of the arbiter for a service; nothing, before the first pass over it.
fn service_workload(
    operator: &Operator,
    service: &InferenceService,
    claims: &[StoredClaim],
    now: Timestamp,
) -> Result<Option<Workload>, String> {
    let uid = service.uid().unwrap_or_default();
    let Some((wants, served)) = operator.memories.wants(&uid) else { return Ok(None) };
    if !inference_service::is_ours(service) || service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let own: Vec<StoredClaim> =
        claims.iter().filter(|stored| stored.claim.spec.owner.uid == uid).cloned().collect();
    let status = service.status.as_ref();
    let created_at = service.metadata.creation_timestamp.as_ref().map_or(now, |at| at.0);
    let observed = Observed {
        namespace: service.namespace().unwrap_or_default(),
        name: service.name_any(),
        created_at,
        admitted_at: created_at,
        progress: Progress {
            steps_done: 0,
            checkpoint_millis: None,
            spent: operator.book.spent(&uid, &own, now),
            // A service goes on, however often a machine of its was lost.
            interruptions: 0,
            placements: status.and_then(|s| s.placement.as_ref()?.number).unwrap_or(0),
        },
        measured: None,
        uid,
    };
    // What runs goes on, also when its budget was taken away.
    if let (Some(message), true) =
        (operator.no_such_budget(&Counted::service(service)), own.is_empty())
    {
        return Err(message);
    }
    // Those that are on their way out work as long as they are there, and are not counted on.
    let others = own.iter().filter(|stored| {
        stored.claim.is_working()
            && (stored.deleting || wants.others.contains(&stored.claim.spec.name))
    });
    let others = u32::try_from(others.count()).unwrap_or(u32::MAX);
    let spec = InferenceServiceSpec {
        replicas: wants.count.saturating_add(others),
        ..service.spec.clone()
    };
    let mut workload = spec.workload(&observed, served.work()).map_err(|errors| {
        let said: Vec<String> =
            errors.iter().map(|error| format!("{}: {}", error.path, error.message)).collect();
        said.join("; ")
    })?;
    // Its model is there.
    workload.tied.extend(store_at_home(&operator.settings.store.uri));
    Ok(Some(workload))
}
