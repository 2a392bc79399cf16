//! Names of jobs and services on the command line: `name`, `trainingjob/name` (`trj/…`),
//! `inferenceservice/name` (`infs/…`).

use petaflop_arbiter::workload::OwnerKind;

use super::Failure;
use crate::embedded::home::Home;
use crate::embedded::job::{DEFAULT_NAMESPACE, Folder};

/// The kinds that a name may be of, and the name itself; a bare name stands for both kinds.
pub(crate) fn parse(text: &str) -> Result<(&'static [OwnerKind], &str), Failure> {
    match text.split_once('/') {
        Some(("trj" | "trainingjob" | "trainingjobs" | "job", name)) => {
            Ok((&[OwnerKind::TrainingJob], name))
        }
        Some(("infs" | "inferenceservice" | "inferenceservices" | "service", name)) => {
            Ok((&[OwnerKind::InferenceService], name))
        }
        Some((kind, _)) => Err(Failure::bad_input(format!(
            "{text}: expected trainingjob/<name> or inferenceservice/<name>, found the kind {kind:?}"
        ))),
        None => Ok((&[OwnerKind::TrainingJob, OwnerKind::InferenceService], text)),
    }
}

/// The objects that a name stands for; a bare name stands for both kinds.
pub(crate) fn find(
    home: &Home,
    namespace: Option<&str>,
    text: &str,
) -> Result<Vec<Folder>, Failure> {
    let namespace = namespace.unwrap_or(DEFAULT_NAMESPACE);
    let (kinds, name) = parse(text)?;
    let all = Folder::all(home)?;
    let found: Vec<Folder> = all
        .iter()
        .filter(|f| f.namespace == namespace && f.name == name && kinds.contains(&f.kind))
        .cloned()
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let nearest = all
        .iter()
        .filter(|f| f.namespace == namespace)
        .map(|f| (strsim::damerau_levenshtein(&f.name, name), &f.name))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4)
        .map(|(_, known)| format!("; did you mean {known}?"));
    Err(Failure::bad_input(format!(
        "there is no {text} in namespace {namespace}{}; `petaflop ps --all` lists what there is",
        nearest.unwrap_or_default()
    )))
}
