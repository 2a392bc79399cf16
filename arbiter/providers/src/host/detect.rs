//! What this host is: the runtime's own report, so that the machine that is
//! offered and the machine that the job will find are the same.

use std::path::{Path, PathBuf};
use std::time::Duration;

use petaflop_plan::machine::{CpuRates, Machine};
use serde::{Deserialize, Serialize};

use crate::error::ProviderError;

/// Longest time that a look at the machine may take; measuring takes seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// Rates measured on this host, and what they are true of.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Measured {
    cpu_model: String,
    allowed_milli: u32,
    runtime_version: String,
    rates: CpuRates,
}

/// Asks the runtime what this machine is. Rates are measured once and kept in
/// `cache`; they are measured again when processor, quota or runtime change.
pub(super) async fn machine(runtime: &Path, cache: &Path) -> Result<Machine, ProviderError> {
    let mut machine = ask(runtime, false).await?;
    let kept: Option<Measured> =
        std::fs::read(cache).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let fits = |m: &Measured| {
        m.cpu_model == machine.cpu.model
            && m.allowed_milli == machine.cpu.allowed_milli
            && m.runtime_version == machine.runtime_version
    };
    if let Some(kept) = kept.filter(fits) {
        machine.cpu.measured = Some(kept.rates);
        return Ok(machine);
    }
    // Without rates the estimate is wider, not wrong: a failed measurement is no reason to stop.
    match ask(runtime, true).await {
        Ok(seen) => {
            if let Some(rates) = &seen.cpu.measured {
                let measured = Measured {
                    cpu_model: seen.cpu.model.clone(),
                    allowed_milli: seen.cpu.allowed_milli,
                    runtime_version: seen.runtime_version.clone(),
                    rates: rates.clone(),
                };
                keep(cache, &measured);
                machine.cpu.measured = seen.cpu.measured;
            }
        }
        Err(error) => tracing::warn!(%error, "the processor's rates could not be measured"),
    }
    Ok(machine)
}

/// Writes the cache by rename, so that no reader sees half of it.
fn keep(cache: &Path, measured: &Measured) {
    let draft: PathBuf = cache.with_extension(format!("{}.tmp", std::process::id()));
    let written = serde_json::to_vec_pretty(measured)
        .map_err(std::io::Error::from)
        .and_then(|text| std::fs::write(&draft, text))
        .and_then(|()| std::fs::rename(&draft, cache));
    if let Err(error) = written {
        let _ = std::fs::remove_file(&draft);
        tracing::warn!(%error, path = %cache.display(), "measured rates could not be kept");
    }
}

async fn ask(runtime: &Path, measure: bool) -> Result<Machine, ProviderError> {
    let failed = |detail: String| ProviderError::Misconfigured { provider: "host".into(), detail };
    let mut command = tokio::process::Command::new(runtime);
    command.args(["detect", "--json"]).kill_on_drop(true).stdin(std::process::Stdio::null());
    if measure {
        command.arg("--measure");
    }
    let shown = runtime.display();
    let output = tokio::time::timeout(LIMIT, command.output())
        .await
        .map_err(|_| failed(format!("{shown} detect gave no answer in {} s", LIMIT.as_secs())))?
        .map_err(|error| failed(format!("{shown} cannot be started: {error}")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{shown} detect failed ({}): {}", output.status, said.trim())));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| {
        failed(format!(
            "{shown} detect --json: {error}; petaflop and petaflop-runtime are of different versions"
        ))
    })
}
