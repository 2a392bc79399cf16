//! The TrainingJob's controller, the part with a client: what is seen goes into
//! [`training_job::next`], and what comes out is written, each thing only if it differs.

use std::time::Duration;

use jiff::SignedDuration;
use kube::api::{DeleteParams, PostParams, Preconditions};
use kube::{Api, ResourceExt};
use petaflop_arbiter::claim::Phase as ClaimPhase;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::training_job::TrainingJobPhase;
use petaflop_crds::{TrainingJob, TrainingJobStatus};
use petaflop_store::StoreError;

use crate::claims::StoredClaim;
use crate::cluster::admit::{Admitted, Amount};
use crate::cluster::budgets::Counted;
use crate::cluster::error::{Error, is_conflict, is_not_found};
use crate::cluster::lane::{self, Who};
use crate::cluster::queue::Again;
use crate::cluster::repeat::Ran;
use crate::cluster::table::Name;
use crate::cluster::training_job::{self, Next, Seen, Waits};
use crate::cluster::{Operator, admit, artifacts, events, finalizer, secrets};
use crate::learned::Lesson;
use crate::proof::{Refused, Told};
use crate::run::{End, Run, left_behind};

/// A job that was only just seen is written to after its first placement pass, which saves a
/// write; but not later than this, or, while claims of others are written, than they go first.
const FIRST_WORD: Duration = Duration::from_secs(1);

/// Between two looks for a Secret, a ConfigMap or an artifact that is not there.
const ASK_AGAIN: Duration = Duration::from_secs(60);

/// One pass over one job as the watch has it; where that turns out to be old, over it as the API
/// server has it: a watch may be long in saying what was written.
pub async fn reconcile(operator: &Operator, name: &Name) -> Result<Again, Error> {
    let Some(job) = operator.job(&name.0, &name.1) else {
        return Ok(Again::OnChange);
    };
    match pass(operator, name, job).await {
        Err(Error::Api { source, .. }) if is_conflict(&source) => {
            let api: Api<TrainingJob> = Api::namespaced(operator.client.clone(), &name.0);
            let now = api.get_opt(&name.1).await.map_err(Error::api("reading a job"))?;
            match now {
                Some(job) => pass(operator, name, job).await,
                None => Ok(Again::OnChange),
            }
        }
        other => other,
    }
}

async fn pass(operator: &Operator, name: &Name, mut job: TrainingJob) -> Result<Again, Error> {
    let uid = job.uid().unwrap_or_default();
    if !training_job::is_ours(&job) {
        return Ok(Again::OnChange);
    }
    let claims = operator.table.of_owner(&uid);
    let newest = claims.iter().max_by_key(|c| c.claim.spec.placement);
    let mut run = newest
        .and_then(|stored| operator.agents.run(&(name.0.clone(), stored.claim.spec.name.clone())));
    if let Some(stored) = newest
        && training_job::is_unexplained(stored, job.status.as_ref(), run.as_ref())
        && let Some(exit) =
            left_behind(operator.settings.store.objects()?, &stored.claim.spec).await?
    {
        let run = run.get_or_insert_default();
        run.exited(&exit);
        if run.lacks().is_some() {
            operator.providers.leave_class_alone(stored, operator.clock.now());
        }
    }
    let ran = Ran::of(&job);
    if let Some(run) = &mut run {
        publish(operator, &job, &uid, run).await?;
        keep(operator, &job, ran.as_ref(), run).await?;
    }
    let said = operator.placement.said(&uid);
    let now = operator.clock.now();
    let stop = operator.stop_of(&Counted::job(&job));
    let missing = match wants_secrets(&job, &claims, operator.secrets.of(&uid).is_some()) {
        true => secrets::learn(operator, (&name.0, &uid), (&job.spec).into()).await?,
        false => None,
    };
    let missing = match missing {
        None if wants_machine(&job) => artifacts::learn(operator, &job).await,
        missing => missing,
    };
    let (repeats, missing) = match (missing, &ran) {
        (None, Some(ran)) if claims.is_empty() && wants_machine(&job) => {
            repeats(operator, ran).await
        }
        (missing, _) => (false, missing),
    };
    let last = job.status.as_ref().and_then(|status| status.placement.as_ref()?.claim.as_deref());
    let mut next = training_job::next(&Seen {
        job: &job,
        claims: &claims,
        run: run.as_ref(),
        spent: operator.book.spent(&uid, &claims, now),
        settled: claims.is_empty() && last.is_some_and(|last| operator.book.is_settled(&uid, last)),
        waits: missing.as_ref().or(said.as_ref().and_then(|said| said.waits.as_ref())),
        at_risk: said.as_ref().is_some_and(|said| said.at_risk),
        key: ran.as_ref().map(|ran| ran.key.as_str()),
        repeats,
        stop: stop.as_ref(),
        now,
    });
    // Nothing is bought for a job that lacks a Secret or ConfigMap, or what it starts from. Neither is watched:
    // they are asked for.
    if missing.is_some() && claims.is_empty() {
        next.place = false;
        next.again = Some(next.again.map_or(ASK_AGAIN, |known| known.min(ASK_AGAIN)));
    }
    let api: Api<TrainingJob> = Api::namespaced(operator.client.clone(), &name.0);
    let deleting = job.metadata.deletion_timestamp.is_some();
    if job.status.is_none()
        && !deleting
        && let Some(decided_at) = newest.map(|stored| stored.claim.spec.decided_at)
        && let Some(wait) =
            operator.placement.lane().stand_back(Who::Job(name.clone()), decided_at, now)
    {
        return Ok(Again::After(wait));
    }
    if next.finalizer != finalizer::is_held(&job) && (next.finalizer || deleting) {
        let written = finalizer::hold(&api, &job, next.finalizer).await;
        match written.map_err(Error::api("writing a job's finalizer"))? {
            Some(new) => job = new,
            // Gone with its last finalizer.
            None => return Ok(Again::OnChange),
        }
    }
    let wait = || {
        let now = operator.clock.boottime();
        operator.waiting.since(&uid, now, || operator.placement.ask())
    };
    let nothing_to_say = said.as_ref().is_none_or(|said| said.waits.is_none());
    if next.place && job.status.is_none() && nothing_to_say {
        let waited = wait();
        let patience = match operator.placement.lane().is_busy() && waited >= FIRST_WORD {
            true => lane::LONGEST.unsigned_abs(),
            false => FIRST_WORD,
        };
        if waited < patience {
            return Ok(Again::After(patience - waited));
        }
    }
    if !next.place {
        operator.waiting.remove(&uid);
        operator.admissions.forget(&uid);
    }
    let mut status = next.status.clone();
    if status.resolved_recipe.is_none()
        && let Ok(Admitted::Recipe(admitted)) = admit::admit(&job)
    {
        status.resolved_recipe = Some(admitted.text);
    }
    let held = finalizer::is_held(&job);
    let changed =
        job.status.as_ref().is_some_and(|s| s.observed_generation != job.metadata.generation);
    // What was concluded must be durable before the claim that shows it goes, and before another
    // machine is asked for: whoever could not write that a job has ended would buy for it again.
    if !deleting && job.status.as_ref() != Some(&status) {
        let before = job.status.as_ref().map_or(0, |status| status.interruptions);
        let lost = status.interruptions.saturating_sub(before);
        let done = job.status.as_ref().and_then(|status| status.phase) != status.phase
            && status.phase == Some(TrainingJobPhase::Complete);
        write(operator, &api, job.clone(), status).await?;
        operator.metrics.interrupted(lost);
        if let (true, Some(stored), Some(run)) = (done, newest, &run) {
            learn(operator, &job, stored, run);
        }
    }
    // The word first: it is short, and people wait for it.
    if held {
        let claims = claims.iter().map(|stored| (name.0.clone(), stored.claim.spec.name.clone()));
        let lane = operator.placement.lane();
        let await_it = claims.filter(|claim| lane.held(claim));
        await_it.for_each(|claim| operator.claim_changed(&claim));
        lane.free(&operator.handle);
    }
    if next.place {
        wait();
        // Somebody may have mended it: it is not left to wait for its turn.
        if changed {
            operator.placement.ask();
        }
    }
    end_claims(operator, &claims, &next).await?;
    if next.delete {
        let only_this = Preconditions { uid: Some(uid), resource_version: None };
        let params = DeleteParams { preconditions: Some(only_this), ..DeleteParams::foreground() };
        match api.delete(&name.1, &params).await {
            Ok(_) => {}
            Err(error) if is_not_found(&error) || is_conflict(&error) => {}
            Err(error) => return Err(Error::api("deleting a finished job")(error)),
        }
    }
    Ok(next.again.map_or(Again::OnChange, Again::After))
}

/// A run that ended well teaches how fast such machines are, and how long they take to begin.
fn learn(operator: &Operator, job: &TrainingJob, stored: &StoredClaim, run: &Run) {
    let spec = &stored.claim.spec;
    let name = &spec.offer.provider;
    let amount = operator.admissions.amount(job, &operator.artifacts);
    let Ok(Amount::Training(work)) = amount else { return };
    let rate = run.progress.tokens_per_second;
    let rate = rate.and_then(|rate| Lesson::of(spec, &work, rate));
    let known = operator.providers.get(name);
    let type_ = known.and_then(|known| known.object.spec.type_());
    let launch = type_.zip(launched_in(job, stored));
    let launch = launch.map(|(type_, took)| Lesson::of_launch(spec, &work, type_, took));
    rate.iter().chain(&launch).for_each(|lesson| operator.providers.learn(name, lesson));
}

/// From the launch of a job's newest machine until it worked there, as its status has it.
fn launched_in(job: &TrainingJob, stored: &StoredClaim) -> Option<SignedDuration> {
    let ClaimPhase::Launched { at, .. } = stored.claim.phase else { return None };
    let conditions = &job.status.as_ref()?.conditions;
    let running = conditions.iter().find(|c| c.type_ == "Running" && c.status == "True")?;
    Some(running.last_transition_time.0.duration_since(at))
}

/// Forgets a job that is gone, by its uid: one that never had a machine goes without a word from us.
pub fn forgets(operator: &Operator) -> impl Fn(&str) + Send + use<> {
    let (waiting, admissions) = (operator.waiting.clone(), operator.admissions.clone());
    let secrets = operator.secrets.clone();
    move |uid| {
        waiting.remove(uid);
        admissions.forget(uid);
        secrets.forget(uid);
    }
}

/// What its machine left where it alone may write goes to the store that all share, before the job is
/// said to be complete. A result that is not there, not what it is called, or of another key is none.
async fn publish(
    operator: &Operator,
    job: &TrainingJob,
    uid: &str,
    run: &mut Run,
) -> Result<(), Error> {
    let over = job.status.as_ref().is_some_and(training_job::is_over);
    let (false, Some(End::Finished { artifact, .. }), Some(key)) = (over, &run.end, &run.key)
    else {
        return Ok(());
    };
    let Ok(Admitted::Recipe(admitted)) = admit::admit(job) else { return Ok(()) };
    let told = Told { artifact, key, recipe: &admitted.recipe, inputs: &admitted.inputs };
    match operator.fleet().publish(uid, told).await {
        Ok(()) => {}
        // A store that is away says nothing about the result.
        Err(Refused::Store(
            error
            @ (StoreError::Backend { .. } | StoreError::Full { .. } | StoreError::Busy { .. }),
        )) => return Err(error.into()),
        Err(Refused::Store(error)) => {
            run.end = Some(End::Failed { message: error.to_string(), retry: true });
        }
        Err(error @ Refused::Wrong { .. }) => {
            (run.end, run.key) = (Some(End::Refused { message: error.to_string() }), None);
        }
    }
    Ok(())
}

/// That a container ran to its end is kept before it is said, where it may be used again.
async fn keep(
    operator: &Operator,
    job: &TrainingJob,
    ran: Option<&Ran>,
    run: &Run,
) -> Result<(), Error> {
    let over = job.status.as_ref().is_some_and(training_job::is_over);
    match (ran, &run.end) {
        (Some(ran), Some(End::Done)) if !over => Ok(ran.keep(&operator.settings.store).await?),
        _ => Ok(()),
    }
}

/// Whether it ran to its end before, or why that is not known.
async fn repeats(operator: &Operator, ran: &Ran) -> (bool, Option<Waits>) {
    match ran.is_known(&operator.settings.store).await {
        Ok(known) => (known, None),
        Err(error) => {
            let message = format!("the store cannot be read: {error}");
            (false, Some(Waits { reason: Reason::Unreachable, message }))
        }
    }
}

/// Whether its Secrets are to be read: anew for each machine, and by each process once.
fn wants_secrets(job: &TrainingJob, claims: &[StoredClaim], known: bool) -> bool {
    wants_machine(job) && secrets::Names::from(&job.spec).any() && (claims.is_empty() || !known)
}

fn wants_machine(job: &TrainingJob) -> bool {
    let over = job.status.as_ref().is_some_and(training_job::is_over);
    !over && !job.spec.suspend && job.metadata.deletion_timestamp.is_none()
}

async fn end_claims(operator: &Operator, claims: &[StoredClaim], next: &Next) -> Result<(), Error> {
    for stored in claims {
        let spec = &stored.claim.spec;
        if next.unwanted.contains(&spec.name) && !stored.deleting {
            operator.claims.delete(stored).await?;
            operator.claim_changed(&(spec.owner.namespace.clone(), spec.name.clone()));
        }
    }
    Ok(())
}

/// A compare-and-swap: a status is never written over one that we did not see.
async fn write(
    operator: &Operator,
    api: &Api<TrainingJob>,
    mut job: TrainingJob,
    status: TrainingJobStatus,
) -> Result<(), Error> {
    let name = job.name_any();
    let told = events::of_job(job.status.as_ref(), &status);
    job.status = Some(status);
    match api.replace_status(&name, &PostParams::default(), &job).await {
        Ok(_) => {
            operator.events.tell(&job, told);
            Ok(())
        }
        Err(error) if is_not_found(&error) => Ok(()),
        Err(error) => Err(Error::api("writing a job's status")(error)),
    }
}
