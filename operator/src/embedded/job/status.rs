//! How far a job or service is, as `status.json` has it.

use jiff::Timestamp;
use petaflop_arbiter::estimate::Correction;
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::reason::Reason;
use serde::{Deserialize, Serialize};

/// A summary, as in the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No place yet.
    #[default]
    Pending,
    /// A machine was asked for.
    Launching,
    /// A job's command runs.
    Running,
    /// A service answers.
    Available,
    /// Between two machines.
    Interrupted,
    /// Stopped on request; can go on.
    Suspended,
    /// Ended well.
    Complete,
    /// Ended badly.
    Failed,
}

impl Phase {
    /// Whether nothing more happens by itself.
    pub fn is_over(self) -> bool {
        match self {
            Self::Suspended | Self::Complete | Self::Failed => true,
            Self::Pending
            | Self::Launching
            | Self::Running
            | Self::Available
            | Self::Interrupted => false,
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Pending => "Pending",
            Self::Launching => "Launching",
            Self::Running => "Running",
            Self::Available => "Available",
            Self::Interrupted => "Interrupted",
            Self::Suspended => "Suspended",
            Self::Complete => "Complete",
            Self::Failed => "Failed",
        })
    }
}

/// How it will end, decided before its last machine is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct End {
    /// Complete or Failed.
    pub phase: Phase,
    /// Why.
    pub reason: Reason,
    /// For people.
    pub message: String,
}

/// A machine that is left for a better one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Leaving {
    /// The claim.
    pub claim: String,
    /// Why.
    pub reason: Reason,
}

/// Where it runs now, or ran last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Place {
    /// The claim.
    pub claim: String,
    /// The offer's id.
    pub offer: String,
    /// The provider.
    pub provider: String,
    /// The type of machine.
    pub instance_type: String,
    /// How it is held.
    pub capacity: Capacity,
    /// Dollars an hour.
    pub price: UsdPerHour,
}

/// How far it is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// A summary.
    pub phase: Phase,
    /// Why, in the API's words.
    pub reason: Option<Reason>,
    /// For people.
    pub message: String,
    /// Highest placement number used.
    pub placements: u32,
    /// Where it runs now, or ran last.
    pub place: Option<Place>,
    /// The claim whose end was already counted.
    pub counted: Option<String>,
    /// How it will end.
    pub end: Option<End>,
    /// The claim that it leaves for a better place.
    pub leaving: Option<Leaving>,
    /// Optimiser steps done.
    pub step: u64,
    /// Optimiser steps in all.
    pub steps: u64,
    /// Tokens trained on in one step.
    pub tokens_per_step: u64,
    /// Step of the newest durable checkpoint.
    pub checkpoint_step: u64,
    /// Seconds that it took to be durable.
    pub checkpoint_seconds: Option<f64>,
    /// Mean training loss of the first step that was reported, nats a token.
    pub first_loss: Option<f64>,
    /// Mean training loss of the last step, nats a token.
    pub loss: Option<f64>,
    /// Validation, bits for each byte of the text.
    pub bits_per_byte: Option<f64>,
    /// Tokens a second.
    pub tokens_per_second: Option<f64>,
    /// The same beside what was estimated for the machine that it was measured on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<Correction>,
    /// Kernel variant and threads.
    pub backend: Option<String>,
    /// Bytes of the arena: planned, and allocated.
    pub arena_bytes: Option<(u64, u64)>,
    /// Hash of the result.
    pub artifact: Option<String>,
    /// The result was there before.
    pub cached: bool,
    /// What the runtime said at the end.
    pub summary: Option<serde_json::Value>,
    /// Address of a service.
    pub url: Option<String>,
    /// Failures of the application, counted against `backoffLimit`.
    pub failures: u32,
    /// Machines lost.
    pub interruptions: u32,
    /// Machines left for a better place.
    pub moves: u32,
    /// Machines that could not be had, in a row.
    pub refusals: u32,
    /// Nothing is started before this.
    pub not_before: Option<Timestamp>,
    /// What it has cost, by the ledger.
    pub cost: Usd,
    /// When it first ran, or ran again after a stop.
    pub started: Option<Timestamp>,
    /// When it ended.
    pub completed: Option<Timestamp>,
}

impl Status {
    /// Why it leaves this claim's machine, if it does.
    pub fn leaves(&self, claim: &str) -> Option<Reason> {
        let leaving = self.leaving.as_ref().filter(|leaving| leaving.claim == claim);
        leaving.map(|leaving| leaving.reason)
    }

    /// What stays when it is trained again from the first step.
    pub fn without_progress(self) -> Self {
        Self {
            step: 0,
            checkpoint_step: 0,
            checkpoint_seconds: None,
            first_loss: None,
            loss: None,
            bits_per_byte: None,
            tokens_per_second: None,
            measured: None,
            ..self
        }
    }
}
