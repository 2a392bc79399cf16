//! What `petaflop run` reports: one JSON object for machines, a few lines for people.

use petaflop_arbiter::decision::Decision;
use serde::Serialize;

use super::{Failure, show};
use crate::embedded::job::{Folder, Phase, ServedModel, Status};

/// What is printed with `--json`.
#[derive(Serialize, Default)]
pub(super) struct Report {
    pub(super) jobs: Vec<JobReport>,
    pub(super) services: Vec<ServiceReport>,
    #[serde(flatten)]
    pub(super) only: Option<Only>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
}

/// The result of the only job of a file, at the top.
#[derive(Serialize)]
pub(super) struct Only {
    pub(super) artifact: Option<String>,
    pub(super) key: String,
    pub(super) cached: bool,
    pub(super) cost_usd: String,
}

/// One TrainingJob.
#[derive(Serialize)]
pub(super) struct JobReport {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) phase: Phase,
    pub(super) artifact: Option<String>,
    pub(super) key: String,
    pub(super) cached: bool,
    /// Everything it has cost, all its machines.
    pub(super) cost_usd: String,
    pub(super) steps: u64,
    pub(super) first_loss: Option<f64>,
    pub(super) loss: Option<f64>,
    pub(super) bits_per_byte: Option<f64>,
    pub(super) tokens_per_second: Option<f64>,
    pub(super) restarts: u32,
    pub(super) reason: Option<String>,
    pub(super) message: String,
    pub(super) decision: Option<Decision>,
    pub(super) summary: Option<serde_json::Value>,
}

/// One InferenceService.
#[derive(Serialize)]
pub(super) struct ServiceReport {
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) phase: Phase,
    pub(super) url: Option<String>,
    pub(super) model: ServedModel,
    pub(super) message: String,
    pub(super) decision: Option<Decision>,
}

pub(super) fn job_report(
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

pub(super) fn service_report(
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
pub(super) fn summary(name: &str, status: &Status, decision: Option<&Decision>) -> String {
    let fact = |key: &str| status.summary.as_ref().and_then(|s| s.get(key)?.as_f64());
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |v| format!("{v:.3}"));
    let mut lines = vec![format!("{name}: complete")];
    let mut add = |what: &str, text: String| lines.push(format!("  {what:<14} {text}"));
    add("loss", format!("{} → {}", number(status.first_loss), number(status.loss)));
    if let Some(bits) = status.bits_per_byte {
        let xz = fact("xz_bits_per_byte").map(|xz| format!("; xz needs {xz:.3} for the same text"));
        add("validation", format!("{bits:.3} bits per byte{}", xz.unwrap_or_default()));
    }
    let rate = fact("tokens_per_second").or(status.tokens_per_second);
    if let Some(rate) = rate {
        let backend = status.backend.as_deref().map(|b| format!(" ({b})")).unwrap_or_default();
        add("speed", format!("{} tokens/s{backend}", show::grouped(rate.max(0.0) as u64)));
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
    if !status.message.is_empty() {
        add("note", status.message.clone());
    }
    add("cost", format!("{} $", status.cost));
    if let Some(saving) = decision.and_then(|d| d.saving.as_ref()) {
        let note = saving.note.as_deref().map(|n| format!("; {n}")).unwrap_or_default();
        let saved = saving.would_cost.saturating_sub(status.cost);
        add(
            "saved",
            format!(
                "{saved} $ against {} ({} $ expected there{note})",
                saving.against, saving.would_cost
            ),
        );
    }
    if let Some(curve) = status.summary.as_ref().and_then(|s| s.get("loss_curve")?.as_str()) {
        add("loss curve", curve.to_owned());
    }
    lines.join("\n")
}
