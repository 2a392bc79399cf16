//! Observe: what the cluster's objects, claims, providers and budgets are to the arbiter.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;
use petaflop_arbiter::claim::Claim;
use petaflop_arbiter::estimate::Correction;
use petaflop_arbiter::support::SupportTable;
use petaflop_arbiter::workload::{Progress, TrainingWork, Workload};
use petaflop_arbiter::world::{Assumptions, World};
use petaflop_crds::inference_service::InferenceServiceSpec;
use petaflop_crds::spend_budget::Period;
use petaflop_crds::workload::Observed;
use petaflop_crds::{InferenceService, TrainingJob};

use super::Said;
use crate::claims::StoredClaim;
use crate::cluster::Operator;
use crate::cluster::admit::Amount;
use crate::cluster::budgets::Counted;
use crate::cluster::inference_service::{self, revision::Revision};
use crate::cluster::moves::may_move;
use crate::cluster::providers::Registry;
use crate::cluster::training_job;
use crate::learned::Lesson;

/// What a pass looks at.
pub(super) struct Looked {
    /// The world as it is now.
    pub(super) world: World,
    /// What is said at once of workloads that cannot even be asked for.
    pub(super) said: HashMap<String, Said>,
    /// By uid of the workload.
    pub(super) generations: HashMap<String, Option<i64>>,
    /// What a service's machines are made of, by its uid.
    pub(super) revisions: HashMap<String, String>,
    /// Uids of those who have a machine, and that are left out for that.
    pub(super) settled: HashSet<String>,
}

/// Whose machines are decided about.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    /// Jobs without a machine, and services: nothing is to decide for a job that has its one.
    WhoeverLacksOne,
    /// And jobs whose machine is rented.
    WhoeverMayMove,
    /// All that have not come to their end.
    Everybody,
}

pub(super) fn world(operator: &Operator, now: Timestamp, of: Of) -> Looked {
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
            moves: status.moves,
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
            moves: 0,
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
