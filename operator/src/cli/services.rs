//! The services of `petaflop run`: looked at before anything starts, then started and
//! waited for until they answer.

use std::net::TcpListener;
use std::path::Path;

use petaflop_arbiter::workload::OwnerKind;
use petaflop_crds::InferenceServiceSpec;
use petaflop_crds::training_job::WeightFormat;

use super::follow::{Followed, follow};
use super::report::{Report, service_report};
use super::run::{Args, bad_input, first_place, fresh_start, known_status};
use super::{Code, Failure, Outcome, say};
use crate::embedded::admit::{self, Resolved};
use crate::embedded::claims::FileClaims;
use crate::embedded::home::Home;
use crate::embedded::job::{Admission, Compute, Folder, Intent, Phase, ServedModel, Task};
use crate::embedded::observe::Providers;
use crate::embedded::operate;

/// First port that is tried for a service that names none.
const FIRST_PORT: u16 = 8080;

/// A service of the file.
pub(super) struct Wanted<'a> {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) spec: &'a InferenceServiceSpec,
    pub(super) directory: &'a Path,
}

/// What already now speaks against a service.
pub(super) fn unservable(
    home: &Home,
    service: &Wanted<'_>,
    jobs: &[(Resolved, Compute)],
    port: Option<u16>,
) -> Option<String> {
    let name = &service.name;
    let Some(model) = &service.spec.model else {
        return Some(format!(
            "{name}: spec.container runs in a cluster only, so far: kubectl apply it there, or use model"
        ));
    };
    if let Some(job) = &model.training_job {
        let here = jobs.iter().any(|(j, _)| j.name == *job && j.namespace == service.namespace);
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

pub(super) fn taken(name: &str, port: u16) -> String {
    format!(
        "{name}: port {port} is taken by another program; stop that program, or choose another port with --port or spec.port"
    )
}

pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// Whether this very service listens there already.
pub(super) fn is_ours(folder: &Folder, port: u16) -> bool {
    let Ok(Some(Admission { task: Task::Serving(task), .. })) = folder.admission() else {
        return false;
    };
    task.port == port && folder.is_operated()
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
    if let Some(hash) = uri.strip_prefix("artifact:") {
        return Ok(Some(ServedModel::Artifact(hash.to_owned())));
    }
    let path = std::path::absolute(directory.join(uri.strip_prefix("file://").unwrap_or(uri)))?;
    model_at(&path, model.format).map(Some).map_err(Failure::bad_input)
}

/// The model that lies at a path, of the form that it was said to have, if it was.
fn model_at(path: &Path, format: Option<WeightFormat>) -> Result<ServedModel, String> {
    let gguf = [path.to_owned(), path.join("model.gguf")].into_iter().find(|file| file.is_file());
    match (gguf, format) {
        (Some(file), Some(WeightFormat::Safetensors)) => Err(format!(
            "spec.model.format: {} is GGUF; leave format out, or name a folder with safetensors",
            file.display()
        )),
        (Some(file), _) => Ok(ServedModel::Gguf(file.display().to_string())),
        (None, Some(WeightFormat::Gguf)) => Err(format!(
            "spec.model.uri: there is no GGUF file at {}; name the file, or a folder with model.gguf",
            path.display()
        )),
        (None, _) => Ok(ServedModel::Folder(path.display().to_string())),
    }
}

/// The service with its model and port; `None` while its job is not complete.
pub(super) fn admit_service(
    home: &Home,
    args: &Args,
    service: &Wanted<'_>,
) -> Result<Option<(Folder, Admission)>, Failure> {
    let Wanted { namespace, name, spec, directory } = service;
    let Some(model) = model_of(home, directory, namespace, spec)? else {
        return Ok(None);
    };
    let folder = Folder::of(home, OwnerKind::InferenceService, namespace, name);
    let known = match folder.admission()? {
        Some(Admission { task: Task::Serving(task), .. }) => Some(task.port),
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
    admit::serving(home, namespace, name, spec, model, port, args.compute.clone())
        .map(Some)
        .map_err(bad_input)
}

pub(super) async fn one_service(
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
        say(format_args!("{name}: changed; the old one is stopped first"));
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
        let claimed =
            FileClaims::of(home).all()?.iter().any(|c| c.claim.spec.owner.uid == admission.uid);
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
    report.services.push(service_report(&folder, task.model.clone(), &status, decision));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_that_was_said_is_held_against_what_lies_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, file) = (folder.path(), folder.path().join("model.gguf"));
        let as_folder = Ok(ServedModel::Folder(path.display().to_string()));
        assert_eq!(model_at(path, None), as_folder);
        assert_eq!(model_at(path, Some(WeightFormat::Safetensors)), as_folder);
        let none = model_at(path, Some(WeightFormat::Gguf)).expect_err("there is none");
        assert!(none.starts_with("spec.model.uri: there is no GGUF file"), "{none}");
        std::fs::write(&file, "").expect("a file");
        let as_file = Ok(ServedModel::Gguf(file.display().to_string()));
        assert_eq!(model_at(path, None), as_file);
        assert_eq!(model_at(&file, Some(WeightFormat::Gguf)), as_file);
        let other = model_at(path, Some(WeightFormat::Safetensors)).expect_err("it is another");
        assert!(other.contains("is GGUF; leave format out"), "{other}");
    }
}
