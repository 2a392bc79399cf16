//! Facts of a run for people and reports. The first group comes from
//! `training.json`, so that a job that was finished before has it too.

use petaflop_store::{ArtifactHash, blocking::Store};
use serde_json::{Map, Value, json};

use crate::{
    artifact::{TRAINING, Training},
    error::Error,
};

/// What `training.json` says in short.
pub(crate) fn of_training(training: &Training) -> Map<String, Value> {
    let Training {
        key: _,
        numerics_version,
        digests: _,
        parameters,
        steps,
        tokens_per_step,
        documents,
        losses,
        validation,
        exported,
    } = training;
    let loss = |entry: Option<&(u64, f64)>| entry.map(|&(_, loss)| loss);
    let measured = |entry: Option<&(u64, f64, f64)>| {
        entry.map(|&(step, loss, bits_per_byte)| json!({"step": step, "loss": loss, "bits_per_byte": bits_per_byte}))
    };
    Map::from_iter([
        ("numerics_version".to_owned(), json!(numerics_version)),
        ("parameters".to_owned(), json!(parameters)),
        ("steps".to_owned(), json!(steps)),
        ("tokens".to_owned(), json!(steps * tokens_per_step)),
        ("documents".to_owned(), json!(documents)),
        ("loss_start".to_owned(), json!(loss(losses.first()))),
        ("loss_end".to_owned(), json!(loss(losses.last()))),
        ("validation_start".to_owned(), json!(measured(validation.first()))),
        ("validation_end".to_owned(), json!(measured(validation.last()))),
        (
            "bits_per_byte".to_owned(),
            json!(validation.last().map(|&(_, _, bits_per_byte)| bits_per_byte)),
        ),
        ("exported".to_owned(), json!(exported)),
    ])
}

/// The record of an artifact that was finished before.
pub(crate) fn recorded(store: &Store, artifact: ArtifactHash) -> Result<Training, Error> {
    let bytes = store.read_file(artifact, TRAINING).map_err(Error::store)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::Store(format!("artifact {artifact}: {TRAINING}: {error}")))
}

/// Most memory this process ever held, where the system says it (Linux).
#[must_use]
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
