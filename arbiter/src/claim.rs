//! Claims: machines we intend to pay for, from before they are asked for until their last second
//! is in the ledger. [`crate::launch`] is the protocol that buys one.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::money::Usd;
use crate::offer::{Offer, OfferId};
use crate::reason::Reason;
use crate::workload::WorkloadId;

/// What a claim is for. Never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimSpec {
    /// Deterministic name, unique in the namespace: see [`claim_name`].
    pub name: String,
    /// Who asked for it; the claim lives in its namespace.
    pub owner: WorkloadId,
    /// Placement number of the owner, from 1.
    pub placement: u32,
    /// Machine of that placement, from 0.
    pub index: u32,
    /// What is bought, as it was quoted.
    pub offer: Offer,
    /// Which part of it computes.
    pub device: Device,
    /// Most that this claim is expected to cost; counts against budgets until it ends.
    pub reserved: Usd,
    /// When it was decided.
    pub decided_at: Timestamp,
    /// What the owner's specification asked for then, where the owner replaces machines of an
    /// earlier one: equal texts ask for the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Seconds between two checkpoints there, for a job whose work is known: see [`crate::checkpoint`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_interval_seconds: Option<u32>,
    /// The places that came next, cheapest first, for the record: at most [`RUNNERS_UP`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub runners_up: Vec<RunnerUp>,
}

/// Runners-up that a claim remembers.
pub const RUNNERS_UP: usize = 3;

/// A place that lost against the one that was claimed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunnerUp {
    /// Its offer.
    pub offer: OfferId,
    /// What it was expected to cost to the end, beside [`ClaimSpec::reserved`].
    pub total: Usd,
}

/// Which part of a machine computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Device {
    /// Its processor.
    Cpu,
    /// Its accelerators.
    Accelerators,
}

/// A claim as it is recorded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// What it is for.
    pub spec: ClaimSpec,
    /// Given by the place that stores it: one uid is one intention to buy.
    pub uid: String,
    /// How far it is.
    pub phase: Phase,
    /// Number of the launch attempt; rises only after a definite refusal of a kind worth repeating.
    pub attempt: u32,
    /// What it has cost so far, by the ledger.
    pub spent: Usd,
}

/// How far a claim is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Phase {
    /// Written; nothing was asked for.
    Planned,
    /// The request is frozen and may have been sent (`LaunchAttempted`).
    Attempted {
        /// Every byte of the request.
        request: FrozenRequest,
        /// When it was written.
        at: Timestamp,
    },
    /// Sent without a clear answer (`LaunchAmbiguous`): looked for until it is there, or absent for long enough.
    Ambiguous {
        /// Every byte of the request.
        request: FrozenRequest,
        /// When the last call may have ended.
        since: Timestamp,
    },
    /// The machine is there.
    Launched {
        /// The provider's id of it.
        instance: String,
        /// When its id was written.
        at: Timestamp,
    },
    /// The machine is being ended.
    Ending {
        /// The provider's id, if there ever was a machine.
        instance: Option<String>,
        /// Why.
        reason: Reason,
    },
    /// Gone, and its last ledger row is written.
    Ended {
        /// Why.
        reason: Reason,
    },
}

/// A provider's request, frozen: opaque to the arbiter, repeated byte for byte.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FrozenRequest {
    /// The bytes, as the provider's module wrote them (JSON).
    pub body: String,
}

/// The identity a machine carries in its tags or environment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Identity {
    /// Uid of the installation.
    pub installation: String,
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// Uid of the claim.
    pub claim_uid: String,
    /// Launch attempt.
    pub attempt: u32,
}

impl Identity {
    /// 32 hex digits that are the same for the same claim and attempt, and for nothing else:
    /// blake3 of uid and attempt. The idempotency token where a provider takes one.
    pub fn token(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"petaflop claim launch\0");
        hasher.update(self.claim_uid.as_bytes());
        hasher.update(b"\0");
        hasher.update(self.attempt.to_string().as_bytes());
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// A name for providers that have names only: `pf-<8 hex of the installation>-<token>`, 44 characters.
    pub fn unique_name(&self) -> String {
        format!("pf-{}-{}", hex8(&self.installation), self.token())
    }
}

/// The first eight hex digits of a uid without its dashes; of its hash where it is not hex.
fn hex8(uid: &str) -> String {
    let digits: String = uid.chars().filter(|c| *c != '-').take(8).collect();
    if digits.len() == 8 && digits.chars().all(|c| c.is_ascii_hexdigit()) {
        digits.to_ascii_lowercase()
    } else {
        blake3::hash(uid.as_bytes()).to_hex()[..8].to_owned()
    }
}

/// The name of a claim: `<trj|infs>-<owner>-<8 hex of the owner's uid>-<placement>-<index>`.
pub fn claim_name(owner: &WorkloadId, placement: u32, index: u32) -> String {
    format!("{}-{}-{}-{placement}-{index}", owner.kind.short(), owner.name, hex8(&owner.uid))
}

impl Claim {
    /// The identity its machine carries in the current attempt.
    pub fn identity(&self, installation: &str) -> Identity {
        Identity {
            installation: installation.to_owned(),
            namespace: self.spec.owner.namespace.clone(),
            claim: self.spec.name.clone(),
            claim_uid: self.uid.clone(),
            attempt: self.attempt,
        }
    }

    /// Whether it still holds its slot, its quota and its reservation.
    pub fn is_unfinished(&self) -> bool {
        !matches!(self.phase, Phase::Ended { .. })
    }

    /// Whether it is, or will be, a machine that works for its owner.
    pub fn is_working(&self) -> bool {
        match &self.phase {
            Phase::Planned
            | Phase::Attempted { .. }
            | Phase::Ambiguous { .. }
            | Phase::Launched { .. } => true,
            Phase::Ending { .. } | Phase::Ended { .. } => false,
        }
    }
}

/// What a provider promises about launching twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LaunchSafety {
    /// The same token and bytes never make a second machine (AWS; a Pod's name).
    pub idempotent: bool,
    /// Seconds after a call ended during which its machine may still appear in no list.
    pub settle_seconds: u32,
}

/// The answer to a launch call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaunchAnswer {
    /// It is there.
    Accepted {
        /// The provider's id.
        instance: String,
    },
    /// Definitely not, and nothing was made.
    Refused(Refusal),
    /// Anything else: time-outs, broken connections, 5xx, `IdempotentParameterMismatch`.
    Unclear,
}

/// A definite refusal of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// None to be had: the claim ends and the offer is left alone for a while.
    NoCapacity,
    /// Quota reached: the claim ends.
    Quota,
    /// Too many calls: worth repeating.
    RateLimited,
    /// A refusal that another try may not meet: worth repeating.
    Transient,
    /// The price is not the quoted one: the claim ends.
    PriceChanged,
    /// Credentials refused: the claim ends.
    Unauthorized,
    /// The account is empty: the claim ends.
    BalanceTooLow,
    /// The provider has switched this interface off: the claim ends.
    Retired,
    /// The request breaks a rule: the claim ends.
    Invalid,
}

impl Refusal {
    /// The reason in the API's words.
    pub const fn reason(self) -> Reason {
        match self {
            Refusal::NoCapacity => Reason::InsufficientCapacity,
            Refusal::Quota => Reason::QuotaExceeded,
            Refusal::RateLimited => Reason::RateLimited,
            Refusal::Transient => Reason::ProviderUnavailable,
            Refusal::PriceChanged => Reason::PriceChanged,
            Refusal::Unauthorized => Reason::Unauthorized,
            Refusal::BalanceTooLow => Reason::BalanceTooLow,
            Refusal::Retired => Reason::ApiRetired,
            Refusal::Invalid => Reason::InvalidSpec,
        }
    }

    /// Whether another attempt may succeed.
    pub const fn is_worth_repeating(self) -> bool {
        match self {
            Refusal::RateLimited | Refusal::Transient => true,
            Refusal::NoCapacity
            | Refusal::Quota
            | Refusal::PriceChanged
            | Refusal::Unauthorized
            | Refusal::BalanceTooLow
            | Refusal::Retired
            | Refusal::Invalid => false,
        }
    }
}
