//! `petaflop run -f`: do what a manifest describes, and follow it.

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use petaflop_arbiter::decision::{Decision, Outcome as Decided};
use petaflop_arbiter::workload::OwnerKind;
use petaflop_crds::training_job::Cache;
use petaflop_crds::{Document, InferenceServiceSpec, Object, manifest};
use serde::Serialize;

use super::follow::{Followed, follow};
use super::{Code, Failure, Outcome, print_json, say, show, waiting};
use crate::admit::{self, AdmitError, Resolved};
use crate::claims::Claims;
use crate::config::Config;
use crate::home::Home;
use crate::job::{Admission, Compute, Folder, Intent, Phase, ServedModel, Status, Task};
use crate::observe::Providers;
use crate::operate;
use crate::place::{PlaceError, place};
use crate::runtime;
use crate::sweep;

/// First port that is tried for a service that names none.
const FIRST_PORT: u16 = 8080;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifest; `-` is standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// Return when everything has a place; it goes on without this terminal
    #[arg(long)]
    detach: bool,
    /// Print one JSON object at the end
    #[arg(long)]
    json: bool,
    /// Train on this folder, file or URI instead of the manifest's datasets
    #[arg(long, value_name = "PATH")]
    data: Option<String>,
    /// Port of the service
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
    #[command(flatten)]
    compute: Compute,
}

/// What is printed with `--json`.
#[derive(Serialize, Default)]
struct Report {
    jobs: Vec<JobReport>,
    services: Vec<ServiceReport>,
    #[serde(flatten)]
    only: Option<Only>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// The result of the only job of a file, at the top.
#[derive(Serialize)]
struct Only {
    artifact: Option<String>,
    key: String,
    cached: bool,
    cost_usd: String,
}

/// One TrainingJob.
#[derive(Serialize)]
struct JobReport {
    name: String,
    namespace: String,
    phase: Phase,
    artifact: Option<String>,
    key: String,
    cached: bool,
    /// Everything it has cost, all its machines.
    cost_usd: String,
    steps: u64,
    first_loss: Option<f64>,
    loss: Option<f64>,
    bits_per_byte: Option<f64>,
    tokens_per_second: Option<f64>,
    restarts: u32,
    reason: Option<String>,
    message: String,
    decision: Option<Decision>,
    summary: Option<serde_json::Value>,
}

/// One InferenceService.
#[derive(Serialize)]
struct ServiceReport {
    name: String,
    namespace: String,
    phase: Phase,
    url: Option<String>,
    model: ServedModel,
    message: String,
    decision: Option<Decision>,
}

/// A job that was found good before anything was started.
struct Ready {
    folder: Folder,
    admission: Admission,
    cached: Option<String>,
}

/// A service of the file.
struct Wanted<'a> {
    namespace: String,
    name: String,
    spec: &'a InferenceServiceSpec,
    directory: &'a Path,
}

pub(crate) fn run(home: &Home, args: &Args) -> Outcome {
    let documents = manifest::read(&args.file).map_err(Failure::bad_input)?;
    let waiting = waiting()?;
    let runtime = runtime::find()?;
    let (jobs, services) = check(home, &documents, args, &waiting, &runtime)?;

    waiting.block_on(sweep::sweep(home, &runtime))?;
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
    for service in &services {
        errors.extend(unservable(home, service, &resolved, args.port));
    }
    if !errors.is_empty() {
        return Err(Failure::bad_input(errors.join("\n\n")));
    }
    let mut jobs = Vec::new();
    for (job, compute) in resolved {
        let identity = waiting
            .block_on(admit::identify(home, runtime, &job))
            .map_err(bad_input)?;
        say(format_args!(
            "{}: key {}, recipe resolved:",
            job.name, identity.key
        ));
        say(serde_saphyr::to_string(&job.recipe)?.trim_end());
        let cached = identity
            .cached
            .clone()
            .filter(|_| job.spec.cache != Cache::Never);
        let (folder, admission) =
            admit::training(home, job, &identity, compute).map_err(bad_input)?;
        jobs.push(Ready {
            folder,
            admission,
            cached,
        });
    }
    Ok((jobs, services))
}

fn bad_input(error: AdmitError) -> Failure {
    match error {
        AdmitError::BadInput(message) => Failure::bad_input(message),
        AdmitError::Home(_) | AdmitError::Runtime(_) => Failure::failed(error),
    }
}

/// What already now speaks against a service.
fn unservable(
    home: &Home,
    service: &Wanted<'_>,
    jobs: &[(Resolved, Compute)],
    port: Option<u16>,
) -> Option<String> {
    let name = &service.name;
    let Some(model) = &service.spec.model else {
        return Some(format!(
            "{name}: spec.container is not built yet: use model"
        ));
    };
    if let Some(job) = &model.training_job {
        let here = jobs
            .iter()
            .any(|(j, _)| j.name == *job && j.namespace == service.namespace);
        let known = Folder::of(home, OwnerKind::TrainingJob, &service.namespace, job);
        if !here && !matches!(known.admission(), Ok(Some(_))) {
            return Some(format!(
                "{name}: spec.model.trainingJob: there is no TrainingJob {job} in this file or in {}",
                home.root().display()
            ));
        }
    }
    if let Some(uri) = &model.uri
        && uri.contains("://")
        && !uri.starts_with("file://")
    {
        return Some(format!(
            "{name}: spec.model.uri: {uri} is not built yet; use a path or file:///…"
        ));
    }
    let fixed = port.or(service.spec.port)?;
    let folder = Folder::of(home, OwnerKind::InferenceService, &service.namespace, name);
    (!is_ours(&folder, fixed) && !is_free(fixed)).then(|| taken(name, fixed))
}

fn taken(name: &str, port: u16) -> String {
    format!(
        "{name}: port {port} is taken by another program; stop that program, or choose another port with --port or spec.port"
    )
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Whether this very service listens there already.
fn is_ours(folder: &Folder, port: u16) -> bool {
    let Ok(Some(Admission {
        task: Task::Serving(task),
        ..
    })) = folder.admission()
    else {
        return false;
    };
    task.port == port && folder.is_operated()
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
        let code = waiting.block_on(one_service(
            home, args, &providers, folder, admission, report,
        ))?;
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
    let Ready {
        folder,
        admission,
        cached,
    } = job;
    let Task::Training(task) = &admission.task else {
        return Ok(Code::Done);
    };
    let key = task.key.clone();
    // A machine of an earlier run: whoever worked for it died, and the sweep starts another.
    let claimed = Claims::of(home)
        .list()?
        .iter()
        .any(|c| c.claim.spec.owner.uid == admission.uid);
    if claimed || folder.is_operated() {
        let running = folder
            .admission()?
            .is_some_and(|known| known.uid == admission.uid);
        if !running {
            return Err(Failure::failed(format!(
                "{} is running with another recipe or data; stop it first: petaflop stop {}",
                admission.name,
                folder.reference()
            )));
        }
        say(format_args!(
            "{}: is running already; following it",
            admission.name
        ));
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
            folder.write_status(&status)?;
            say(format_args!(
                "{}: finished before, nothing to do: artifact {artifact}",
                admission.name
            ));
            let paid_now = Status {
                cost: petaflop_arbiter::money::Usd::ZERO,
                ..status
            };
            report.jobs.push(job_report(&folder, key, &paid_now, None)?);
            return Ok(Code::Done);
        }
        let mut status = fresh_start(known_status(&folder, &admission)?);
        folder.write_status(&status)?;
        if let Some(code) = first_place(home, providers, &folder, &admission, &mut status).await? {
            report
                .jobs
                .push(job_report(&folder, key, &status, folder.decision()?)?);
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
        report
            .jobs
            .push(job_report(&folder, key, &status, folder.decision()?)?);
        return Ok(Code::Done);
    }
    let status = match follow(home, &folder, |_| false).await? {
        Followed::Ended(status) => status,
        Followed::Left => return Ok(Code::Interrupted),
    };
    report
        .jobs
        .push(job_report(&folder, key, &status, folder.decision()?)?);
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
fn known_status(folder: &Folder, admission: &Admission) -> Result<Status, Failure> {
    let status = folder.status()?;
    // The claim's name carries the uid; without one nothing was started that could matter.
    let same = status.place.as_ref().is_none_or(|place| {
        place.claim.contains(
            &admission
                .uid
                .chars()
                .filter(|c| *c != '-')
                .take(8)
                .collect::<String>(),
        )
    });
    Ok(if same { status } else { Status::default() })
}

/// What stays when it is run again: what was done and paid.
fn fresh_start(status: Status) -> Status {
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
async fn first_place(
    home: &Home,
    providers: &Providers,
    folder: &Folder,
    admission: &Admission,
    status: &mut Status,
) -> Result<Option<Code>, Failure> {
    let placed = place(home, providers, folder, admission, status)
        .await
        .map_err(|error| match error {
            PlaceError::Spec(_) => Failure::bad_input(error),
            PlaceError::Home(_) | PlaceError::NoOffers(_) => Failure::failed(error),
        })?;
    folder.write_status(status)?;
    say(show::decision(&placed.decision));
    match &placed.decision.outcome {
        Decided::Placed { .. } | Decided::Settled { .. } => Ok(None),
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

/// The model that a service serves; `None` while its job is not complete.
pub(super) fn model_of(
    home: &Home,
    directory: &Path,
    namespace: &str,
    spec: &InferenceServiceSpec,
) -> Result<Option<ServedModel>, Failure> {
    let Some(model) = &spec.model else {
        return Ok(None);
    };
    if let Some(job) = &model.training_job {
        let job = Folder::of(home, OwnerKind::TrainingJob, namespace, job);
        return Ok(job.status()?.artifact.map(ServedModel::Artifact));
    }
    if let Some(hash) = &model.artifact {
        return Ok(Some(ServedModel::Artifact(hash.clone())));
    }
    let Some(uri) = &model.uri else {
        return Ok(None);
    };
    let path = std::path::absolute(directory.join(uri.strip_prefix("file://").unwrap_or(uri)))?;
    Ok(Some(ServedModel::Folder(path.display().to_string())))
}

/// The service with its model and port; `None` while its job is not complete.
fn admit_service(
    home: &Home,
    args: &Args,
    service: &Wanted<'_>,
) -> Result<Option<(Folder, Admission)>, Failure> {
    let Wanted {
        namespace,
        name,
        spec,
        directory,
    } = service;
    let Some(model) = model_of(home, directory, namespace, spec)? else {
        return Ok(None);
    };
    let folder = Folder::of(home, OwnerKind::InferenceService, namespace, name);
    let known = match folder.admission()? {
        Some(Admission {
            task: Task::Serving(task),
            ..
        }) => Some(task.port),
        _ => None,
    };
    let port = match args.port.or(spec.port) {
        Some(port) => port,
        None => match known.filter(|port| is_ours(&folder, *port) || is_free(*port)) {
            Some(port) => port,
            None => (FIRST_PORT..=u16::MAX)
                .find(|port| is_free(*port))
                .ok_or_else(|| Failure::failed("no port from 8080 up is free"))?,
        },
    };
    if !is_ours(&folder, port) && !is_free(port) {
        return Err(Failure::bad_input(taken(name, port)));
    }
    admit::serving(
        home,
        namespace,
        name,
        spec,
        model,
        port,
        args.compute.clone(),
    )
    .map(Some)
    .map_err(bad_input)
}

async fn one_service(
    home: &Home,
    args: &Args,
    providers: &Providers,
    folder: Folder,
    admission: Admission,
    report: &mut Report,
) -> Outcome {
    let Task::Serving(task) = &admission.task else {
        return Ok(Code::Done);
    };
    let name = admission.name.clone();
    let unchanged = folder
        .admission()?
        .is_some_and(|known| known.task == admission.task && known.compute == admission.compute);
    if folder.is_operated() && !unchanged {
        say(format_args!(
            "{name}: changed; the old one is stopped first"
        ));
        folder.write_intent(Intent { suspend: true })?;
        if let Followed::Left = follow(home, &folder, |_| false).await? {
            return Ok(Code::Interrupted);
        }
    }
    let mut decision = None;
    if !folder.is_operated() {
        folder.admit(&admission)?;
        folder.write_intent(Intent::default())?;
        let mut status = fresh_start(known_status(&folder, &admission)?);
        folder.write_status(&status)?;
        let claimed = Claims::of(home)
            .list()?
            .iter()
            .any(|c| c.claim.spec.owner.uid == admission.uid);
        if !claimed {
            let code = first_place(home, providers, &folder, &admission, &mut status).await?;
            decision = folder.decision()?;
            if let Some(code) = code {
                report.services.push(service_report(
                    &folder,
                    task.model.clone(),
                    &status,
                    decision,
                ));
                return Ok(code);
            }
        }
        operate::start(home, &folder)?;
    }
    let status = if args.detach {
        folder.status()?
    } else {
        match follow(home, &folder, |status| status.phase == Phase::Available).await? {
            Followed::Ended(status) => status,
            Followed::Left => return Ok(Code::Interrupted),
        }
    };
    report.services.push(service_report(
        &folder,
        task.model.clone(),
        &status,
        decision,
    ));
    match status.phase {
        Phase::Available => {
            let url = status.url.clone().unwrap_or_default();
            say(format_args!(
                "{name}: answers at {url} (OpenAI API: {url}/v1); stop it with: petaflop stop {}",
                folder.reference()
            ));
            Ok(Code::Done)
        }
        Phase::Suspended => Ok(Code::Stopped),
        _ if args.detach => Ok(Code::Done),
        _ => Err(Failure::failed(format!("{name}: {}", status.message))),
    }
}

fn job_report(
    folder: &Folder,
    key: String,
    status: &Status,
    decision: Option<Decision>,
) -> Result<JobReport, Failure> {
    Ok(JobReport {
        name: folder.name.clone(),
        namespace: folder.namespace.clone(),
        phase: status.phase,
        artifact: status.artifact.clone(),
        key,
        cached: status.cached,
        cost_usd: status.cost.to_string(),
        steps: status.steps,
        first_loss: status.first_loss,
        loss: status.loss,
        bits_per_byte: status.bits_per_byte,
        tokens_per_second: status.tokens_per_second,
        restarts: status.placements.saturating_sub(1),
        reason: status.reason.map(|reason| reason.to_string()),
        message: status.message.clone(),
        decision,
        summary: status.summary.clone(),
    })
}

fn service_report(
    folder: &Folder,
    model: ServedModel,
    status: &Status,
    decision: Option<Decision>,
) -> ServiceReport {
    ServiceReport {
        name: folder.name.clone(),
        namespace: folder.namespace.clone(),
        phase: status.phase,
        url: status.url.clone(),
        model,
        message: status.message.clone(),
        decision,
    }
}

/// What became of a job, for people.
fn summary(name: &str, status: &Status, decision: Option<&Decision>) -> String {
    let fact = |key: &str| status.summary.as_ref().and_then(|s| s.get(key)?.as_f64());
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    let mut lines = vec![format!("{name}: complete")];
    let mut add = |what: &str, text: String| lines.push(format!("  {what:<14} {text}"));
    add(
        "loss",
        format!("{} → {}", number(status.first_loss), number(status.loss)),
    );
    if let Some(bits) = status.bits_per_byte {
        let xz = fact("xz_bits_per_byte").map(|xz| format!("; xz needs {xz:.3} for the same text"));
        add(
            "validation",
            format!("{bits:.3} bits per byte{}", xz.unwrap_or_default()),
        );
    }
    let rate = fact("tokens_per_second").or(status.tokens_per_second);
    if let Some(rate) = rate {
        let backend = status
            .backend
            .as_deref()
            .map(|b| format!(" ({b})"))
            .unwrap_or_default();
        add(
            "speed",
            format!("{} tokens/s{backend}", show::grouped(rate.max(0.0) as u64)),
        );
    }
    if let Some((planned, arena)) = status.arena_bytes {
        let rss = fact("peak_rss_bytes").map(|b| format!(", peak RSS {}", show::bytes(b as u64)));
        add(
            "memory",
            format!(
                "arena {} planned, {} taken{}",
                show::bytes(planned),
                show::bytes(arena),
                rss.unwrap_or_default()
            ),
        );
    }
    add("artifact", status.artifact.clone().unwrap_or_default());
    add("cost", format!("{} $", status.cost));
    if let Some(saving) = decision.and_then(|d| d.saving.as_ref()) {
        let note = saving
            .note
            .as_deref()
            .map(|n| format!("; {n}"))
            .unwrap_or_default();
        let saved = saving.would_cost.saturating_sub(status.cost);
        add(
            "saved",
            format!(
                "{saved} $ against {} ({} $ expected there{note})",
                saving.against, saving.would_cost
            ),
        );
    }
    if let Some(curve) = status
        .summary
        .as_ref()
        .and_then(|s| s.get("loss_curve")?.as_str())
    {
        add("loss curve", curve.to_owned());
    }
    lines.join("\n")
}
