//! The `petaflop-runtime` binary: finding it, and asking it.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use petaflop_plan::dtype::Dtype;
use petaflop_plan::recipe::JobSpec;
use petaflop_plan::shape::ModelShape;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Why the runtime gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// It is nowhere.
    #[error(
        "petaflop-runtime is neither beside {beside} nor in PATH; build it (cargo build --release --bin petaflop-runtime) or set PETAFLOP_RUNTIME to its path"
    )]
    Missing {
        /// Where it was looked for first.
        beside: PathBuf,
    },
    /// It could not be started.
    #[error("{path} cannot be started: {source}")]
    Start {
        /// The binary.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The job is wrong; the same job can never work.
    #[error("{0}")]
    BadInput(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// The binary: `PETAFLOP_RUNTIME` if it is set, else beside this program, else in `PATH`.
pub fn find() -> Result<PathBuf, RuntimeError> {
    if let Some(set) = std::env::var_os("PETAFLOP_RUNTIME").filter(|v| !v.is_empty()) {
        return Ok(PathBuf::from(set));
    }
    const NAME: &str = "petaflop-runtime";
    let me = std::env::current_exe().unwrap_or_default();
    let beside = me.with_file_name(NAME);
    if beside.is_file() {
        return Ok(beside);
    }
    std::env::var_os("PATH")
        .iter()
        .flat_map(std::env::split_paths)
        .map(|folder| folder.join(NAME))
        .find(|path| path.is_file())
        .ok_or(RuntimeError::Missing { beside: me })
}

/// A job's identity, as `petaflop-runtime key` prints it.
#[derive(Clone, Debug, Deserialize)]
pub struct JobIdentity {
    /// The key (hex).
    pub key: String,
    /// Content digests of the inputs, by name.
    pub digests: std::collections::BTreeMap<String, String>,
    /// The artifact of a job of this key that ended well before.
    pub cached: Option<String>,
}

/// Asks for a job's key. Reads all inputs, trains nothing.
pub async fn key(
    runtime: &Path,
    job: &JobSpec,
    scratch: &Path,
) -> Result<JobIdentity, RuntimeError> {
    crate::embedded::home::write_json(scratch, job)
        .map_err(|e| RuntimeError::Failed(e.to_string()))?;
    let output = tokio::process::Command::new(runtime)
        .args(["key", "--job"])
        .arg(scratch)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|source| RuntimeError::Start { path: runtime.to_owned(), source })?;
    said("key", &output)
}

/// The form of the model in a GGUF file, and the format in which its matrices are served. Reads
/// what the file says of itself.
pub fn model(runtime: &Path, file: &Path) -> Result<(ModelShape, Dtype), RuntimeError> {
    /// Of what `petaflop-runtime plan` prints.
    #[derive(Deserialize)]
    struct Planned {
        config: serde_json::Value,
        weights: Dtype,
    }
    let output = std::process::Command::new(runtime)
        .args(["plan", "--serve", "--json", "--model"])
        .arg(file)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| RuntimeError::Start { path: runtime.to_owned(), source })?;
    let Planned { config, weights } = said("plan", &output)?;
    let shape = ModelShape::from_hf_config(&config)
        .map_err(|e| RuntimeError::Failed(format!("petaflop-runtime plan: {e}")))?;
    Ok((shape, weights))
}

/// What a command of the runtime answered.
fn said<T: DeserializeOwned>(command: &str, output: &Output) -> Result<T, RuntimeError> {
    let failed = |why: String| RuntimeError::Failed(format!("petaflop-runtime {command}{why}"));
    if output.status.success() {
        return serde_json::from_slice(&output.stdout).map_err(|e| failed(format!(": {e}")));
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim().trim_start_matches("error: ").to_owned();
    Err(match output.status.code() {
        Some(2) => RuntimeError::BadInput(said),
        _ => failed(format!(" ({}): {said}", output.status)),
    })
}
