//! `petaflop run -f`: do what a manifest describes, and follow it.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use petaflop_arbiter::decision::Outcome as Decided;
use petaflop_crds::training_job::Cache;
use petaflop_crds::{Document, Object, manifest};

use super::follow::{Followed, follow};
use super::only::OnlyAt;
use super::report::{Only, Report, job_report, summary};
use super::services::{Wanted, admit_service, one_service, unservable};
use super::{Code, Failure, Outcome, print_json, say, show, waiting};
use crate::embedded::admit::{self, AdmitError, Resolved};
use crate::embedded::claims::FileClaims;
use crate::embedded::config::Config;
use crate::embedded::home::Home;
use crate::embedded::job::{Admission, Compute, Folder, Intent, Phase, Status, Task};
use crate::embedded::observe::Providers;
use crate::embedded::operate;
use crate::embedded::place::{PlaceError, place};
use crate::embedded::publish;
use crate::embedded::runtime;
use crate::embedded::sweep;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifest; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    pub(super) file: PathBuf,
    /// Return when everything has a place; it goes on without this terminal
    #[arg(long)]
    pub(super) detach: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    pub(super) json: bool,
    /// Train on this folder, file or URI instead of the manifest's datasets
    #[arg(long, value_name = "PATH")]
    pub(super) data: Option<String>,
    /// Port of the service
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(super) port: Option<u16>,
    #[command(flatten)]
    pub(super) only: OnlyAt,
    #[command(flatten)]
    pub(super) compute: Compute,
}

/// A job that was found good before anything was started.
struct Ready {
    folder: Folder,
    admission: Admission,
    cached: Option<String>,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    if args.only.is_sandbox() {
        return in_sandbox(home);
    }
    let mut documents = manifest::read(&args.file).map_err(Failure::bad_input)?;
    args.only.apply(&mut documents);
    let waiting = waiting()?;
    let runtime = runtime::find()?;
    let (jobs, services) = check(home, &documents, args, &waiting, &runtime)?;

    let swept = waiting.block_on(sweep::sweep(home, &runtime, sweep::Mass::Refused))?;
    swept.lines().iter().for_each(say);
    let mut report = Report::default();
    let code = jobs_then_services(home, args, &waiting, &runtime, jobs, services, &mut report);
    if let [job] = report.jobs.as_slice() {
        report.only = Some(Only {
            artifact: job.artifact.clone(),
            key: job.key.clone(),
            cached: job.cached,
            cost_usd: job.cost_usd.clone(),
        });
    }
    if let Err(failure) = &code {
        report.error = Some(failure.message.clone());
    }
    if args.json {
        print_json(&report)?;
    }
    code
}

#[cfg(feature = "sandbox")]
fn in_sandbox(home: &Home) -> Outcome {
    super::sandbox::again(home)
}

#[cfg(not(feature = "sandbox"))]
fn in_sandbox(_home: &Home) -> Outcome {
    Err(Failure::bad_input(
        "this petaflop was built without its sandbox: build it with --features petaflop-operator/sandbox",
    ))
}

/// Looks at every document before anything is started.
fn check<'a>(
    home: &Home,
    documents: &'a [Document],
    args: &Args,
    waiting: &tokio::runtime::Runtime,
    runtime: &Path,
) -> Result<(Vec<Ready>, Vec<Wanted<'a>>), Failure> {
    let mut resolved: Vec<(Resolved, Compute)> = Vec::new();
    let mut services = Vec::new();
    let mut errors = Vec::new();
    for document in documents {
        let namespace = admit::namespace_of(document);
        let ignored = match &document.object {
            Object::TrainingJob(job) => {
                match admit::resolve(document, &job.spec, &namespace, args.data.as_deref()) {
                    Ok(job) => resolved.push((job, args.compute.clone())),
                    Err(error) => errors.push(error.to_string()),
                }
                job.spec.ignored_outside_cluster()
            }
            Object::InferenceService(service) => {
                services.push(Wanted {
                    namespace,
                    name: document.name(),
                    spec: &service.spec,
                    directory: document.directory(),
                });
                service.spec.ignored_outside_cluster()
            }
        };
        if !ignored.is_empty() {
            say(format_args!(
                "{}: ignored outside a cluster: {}",
                document.name(),
                ignored.join(", ")
            ));
        }
    }
    let mut names = std::collections::BTreeSet::new();
    for document in documents {
        let namespace = admit::namespace_of(document);
        if !names.insert((document.kind(), namespace, document.name())) {
            errors.push(format!(
                "{} {} stands in the file twice",
                document.kind(),
                document.name()
            ));
        }
    }
    for (job, _) in &resolved {
        if let Some(output) = &job.spec.output.uri
            && let Err(error) = petaflop_store::Store::open(output)
        {
            errors.push(format!("{}: spec.output.uri: {error}", job.name));
        }
    }
    for service in &services {
        errors.extend(unservable(home, service, &resolved, args.port));
    }
    if !errors.is_empty() {
        return Err(Failure::bad_input(errors.join("\n\n")));
    }
    let mut jobs = Vec::new();
    for (job, compute) in resolved {
        let identity = waiting.block_on(admit::identify(home, runtime, &job)).map_err(bad_input)?;
        say(format_args!("{}: key {}, recipe resolved:", job.name, identity.key));
        say(serde_saphyr::to_string(&job.recipe)?.trim_end());
        let cached = identity.cached.clone().filter(|_| job.spec.cache != Cache::Never);
        let (folder, admission) =
            admit::training(home, job, &identity, compute).map_err(bad_input)?;
        jobs.push(Ready { folder, admission, cached });
    }
    Ok((jobs, services))
}

pub(super) fn bad_input(error: AdmitError) -> Failure {
    match error {
        AdmitError::BadInput(message) => Failure::bad_input(message),
        AdmitError::Home(_) | AdmitError::Runtime(_) => Failure::failed(error),
    }
}

fn jobs_then_services(
    home: &Home,
    args: &Args,
    waiting: &tokio::runtime::Runtime,
    runtime: &Path,
    jobs: Vec<Ready>,
    services: Vec<Wanted<'_>>,
    report: &mut Report,
) -> Outcome {
    let providers = Providers::of(home, &Config::read(home)?, runtime.to_owned())?;
    let mut worst = Code::Done;
    for job in jobs {
        let code = waiting.block_on(one_job(home, args, &providers, job, report))?;
        match code {
            Code::Done => {}
            // What was interrupted or cannot go on stops here; nothing else is begun.
            Code::Failed | Code::NoOffer | Code::Stopped | Code::Interrupted => return Ok(code),
        }
    }
    for service in services {
        let Some((folder, admission)) = admit_service(home, args, &service)? else {
            say(format_args!(
                "{}: waits until its TrainingJob is complete; run this again then",
                service.name
            ));
            continue;
        };
        let code =
            waiting.block_on(one_service(home, args, &providers, folder, admission, report))?;
        if code != Code::Done {
            worst = code;
        }
    }
    Ok(worst)
}

async fn one_job(
    home: &Home,
    args: &Args,
    providers: &Providers,
    job: Ready,
    report: &mut Report,
) -> Outcome {
    let Ready { folder, admission, cached } = job;
    let Task::Training(task) = &admission.task else {
        return Ok(Code::Done);
    };
    let key = task.key.clone();
    // A machine of an earlier run: whoever worked for it died, and the sweep starts another.
    let claimed =
        FileClaims::of(home).all()?.iter().any(|c| c.claim.spec.owner.uid == admission.uid);
    if claimed || folder.is_operated() {
        let running = folder.admission()?.is_some_and(|known| known.uid == admission.uid);
        if !running {
            return Err(Failure::failed(format!(
                "{} is running with another recipe or data; stop it first: petaflop stop {}",
                admission.name,
                folder.reference()
            )));
        }
        say(format_args!("{}: is running already; following it", admission.name));
        folder.write_intent(Intent::default())?;
        operate::start(home, &folder)?;
    } else {
        folder.admit(&admission)?;
        folder.write_intent(Intent::default())?;
        if let Some(artifact) = cached {
            let status = Status {
                phase: Phase::Complete,
                artifact: Some(artifact.clone()),
                cached: true,
                completed: Some(Timestamp::now()),
                // What it cost when it was trained here; this time it costs nothing.
                ..known_status(&folder, &admission)?
            };
            if let Some(output) = &task.spec.output.uri {
                publish::copy(home, &artifact, &key, output).await.map_err(Failure::failed)?;
            }
            folder.write_status(&status)?;
            say(format_args!(
                "{}: finished before, nothing to do: artifact {artifact}",
                admission.name
            ));
            let paid_now = Status { cost: petaflop_arbiter::money::Usd::ZERO, ..status };
            report.jobs.push(job_report(&folder, key, &paid_now, None)?);
            return Ok(Code::Done);
        }
        let known = known_status(&folder, &admission)?;
        // What ended well has nothing to go on with: `cache: Never` trains it from the first step.
        let from_the_start = known.phase == Phase::Complete;
        let mut status = fresh_start(known);
        if from_the_start {
            folder.forget_progress(&key)?;
            status = status.without_progress();
        }
        folder.write_status(&status)?;
        if let Some(code) = first_place(home, providers, &folder, &admission, &mut status).await? {
            report.jobs.push(job_report(&folder, key, &status, folder.decision()?)?);
            return Ok(code);
        }
        operate::start(home, &folder)?;
    }
    if args.detach {
        let status = folder.status()?;
        say(format_args!(
            "{}: goes on by itself; petaflop attach {}",
            admission.name,
            folder.reference()
        ));
        report.jobs.push(job_report(&folder, key, &status, folder.decision()?)?);
        return Ok(Code::Done);
    }
    let status = match follow(home, &folder, |_| false).await? {
        Followed::Ended(status) => status,
        Followed::Left => return Ok(Code::Interrupted),
    };
    report.jobs.push(job_report(&folder, key, &status, folder.decision()?)?);
    finish(args, &folder, &admission.name, &status)
}

/// Says how a job ended.
fn finish(args: &Args, folder: &Folder, name: &str, status: &Status) -> Outcome {
    match status.phase {
        Phase::Complete => {
            say(summary(name, status, folder.decision()?.as_ref()));
            Ok(Code::Done)
        }
        Phase::Suspended => {
            say(format_args!(
                "{name}: stopped at step {} of {}, nothing is paid for now; go on with: petaflop run -f {}",
                status.checkpoint_step,
                status.steps,
                args.file.display()
            ));
            Ok(Code::Stopped)
        }
        _ => Err(Failure::failed(format!(
            "{name}: {}{}",
            status.reason.map(|r| format!("{r}: ")).unwrap_or_default(),
            status.message
        ))),
    }
}

/// The status of the same object, or a new one's.
pub(super) fn known_status(folder: &Folder, admission: &Admission) -> Result<Status, Failure> {
    let status = folder.status()?;
    // The claim's name carries the uid; without one nothing was started that could matter.
    let same = status.place.as_ref().is_none_or(|place| {
        place
            .claim
            .contains(&admission.uid.chars().filter(|c| *c != '-').take(8).collect::<String>())
    });
    Ok(if same { status } else { Status::default() })
}

/// What stays when it is run again: what was done and paid.
pub(super) fn fresh_start(status: Status) -> Status {
    Status {
        phase: Phase::Pending,
        reason: None,
        message: String::new(),
        end: None,
        artifact: None,
        cached: false,
        summary: None,
        url: None,
        failures: 0,
        interruptions: 0,
        refusals: 0,
        not_before: None,
        started: None,
        completed: None,
        ..status
    }
}

/// The first placement, before anything is started: prints the decision. Returns a code
/// where there is no place.
pub(super) async fn first_place(
    home: &Home,
    providers: &Providers,
    folder: &Folder,
    admission: &Admission,
    status: &mut Status,
) -> Result<Option<Code>, Failure> {
    let placed =
        place(home, providers, folder, admission, status).await.map_err(|error| match error {
            PlaceError::Spec(_) => Failure::bad_input(error),
            PlaceError::Home(_) | PlaceError::Claims(_) | PlaceError::NoOffers(_) => {
                Failure::failed(error)
            }
        })?;
    folder.write_status(status)?;
    say(show::decision(&placed.decision));
    match &placed.decision.outcome {
        Decided::Placed { .. } | Decided::Settled { .. } | Decided::Moves { .. } => Ok(None),
        Decided::Waiting { .. } => {
            if !placed.decision.misses.is_empty() {
                say(show::misses(&placed.decision.misses));
            }
            // Outside a cluster nobody waits for a place: it is run again when something changed.
            status.phase = Phase::Failed;
            folder.write_status(status)?;
            Ok(Some(Code::NoOffer))
        }
    }
}
