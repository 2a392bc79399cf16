//! Offers: one thing that can be had now, and what is known of it.

use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};

use crate::money::UsdPerHour;

/// A stable name of an offer: the same thing quoted again has the same id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OfferId(pub String);

impl fmt::Display for OfferId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// How a machine is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Capacity {
    /// May be taken away at short notice.
    Spot,
    /// Kept until we end it.
    OnDemand,
    /// Ours: costs electricity and margin, needs no purchase.
    Owned,
}

impl Capacity {
    /// As the API writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Capacity::Spot => "Spot",
            Capacity::OnDemand => "OnDemand",
            Capacity::Owned => "Owned",
        }
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Instruction set of the host processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arch {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

impl Arch {
    /// As `uname -m` writes it on Linux.
    pub const fn as_str(self) -> &'static str {
        match self {
            Arch::X86_64 => "x86_64",
            Arch::Aarch64 => "aarch64",
        }
    }

    /// From `uname -m` or `std::env::consts::ARCH`.
    pub fn from_name(name: &str) -> Option<Arch> {
        match name {
            "x86_64" | "amd64" => Some(Arch::X86_64),
            "aarch64" | "arm64" => Some(Arch::Aarch64),
            _ => None,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The accelerators of one offer: always one model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Accelerators {
    /// Key in the accelerator catalogue; a name that is not in it makes the devices unusable, not the offer.
    pub model: String,
    /// Devices; at least 1.
    pub count: u32,
    /// Memory of one device as the provider reports it, in bytes, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
}

impl Accelerators {
    /// A name for a model that the catalogue does not have: the provider's own, as objects and labels
    /// take it. Letters, digits, `.`, `_` and `-`, at most 63.
    pub fn foreign_model(name: &str) -> String {
        let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_', '-'].contains(&c);
        let words = name.split(|c| !plain(c)).filter(|word| !word.is_empty());
        let joined: String = words.collect::<Vec<_>>().join("-").chars().take(63).collect();
        let trimmed = joined.trim_matches(|c: char| !c.is_ascii_alphanumeric());
        if trimmed.is_empty() { "unknown".to_owned() } else { trimmed.to_owned() }
    }
}

/// Whether somebody we can name owns the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HostOwner {
    /// The user, or a provider that owns its data centres.
    Known,
    /// Somebody who rents out a machine through a marketplace (RunPod Community).
    Unknown,
}

/// Whether the offer can be taken, or only looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Sale {
    /// A live quote of a provider that we can ask.
    Buyable,
    /// A price seen at some time and shipped with the program: for comparison, never bought from.
    Snapshot {
        /// The day it was seen, where the source says so.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        observed_on: Option<Date>,
    },
}

impl Sale {
    /// Whether the offer can be taken.
    pub const fn is_buyable(self) -> bool {
        matches!(self, Sale::Buyable)
    }
}

/// A part of something that several offers of one provider are parts of: of a node's processors, say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Share {
    /// Of what, by a name that the provider uses once (`node-a/memory`).
    pub of: String,
    /// How much, in whatever unit it has.
    pub amount: u64,
    /// How much of it can be held at once, unfinished claims included; in the same unit.
    pub all: u64,
}

/// Rates that were measured on this very machine, on everything the job would get of it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MeasuredRates {
    /// f32 matrix product on the processor, 10⁹ operations a second (a fused multiply-add counts two).
    pub gemm_gflops: f64,
    /// Reading memory, 10⁹ bytes a second.
    pub read_gb_s: f64,
}

/// One thing that can be had now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Offer {
    /// [`Offer::id_of`] the place and thing.
    pub id: OfferId,
    /// Name of the ComputeProvider (`host`, `runpod-main`); its kind and limits are in the world's provider list.
    pub provider: String,
    /// The provider's region, or empty.
    pub region: String,
    /// The provider's zone or data centre, or empty.
    pub zone: String,
    /// The provider's name of the machine type.
    pub instance_type: String,
    /// Its accelerators, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerators: Option<Accelerators>,
    /// Instruction set of its processor.
    pub arch: Arch,
    /// Processors in thousandths, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu_milli: Option<u32>,
    /// Host memory a job may use, in bytes, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// How it is held.
    pub capacity: Capacity,
    /// Price of the whole offer for an hour.
    pub price: UsdPerHour,
    /// When the provider said so.
    pub quoted_at: Timestamp,
    /// Seconds after which the quote is stale and is not bought from.
    pub ttl_seconds: u32,
    /// Whether somebody we can name owns the machine.
    pub owner: HostOwner,
    /// Whether it can be taken.
    pub sale: Sale,
    /// Measured rates of its processor, where known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<MeasuredRates>,
    /// How many of it can be held at once, unfinished claims included; `None` where the provider does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slots: Option<u32>,
    /// What it takes of things that other offers take of too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
    /// Expected losses an hour, where the provider tells; spot offers without it take the world's assumption.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interruptions_per_hour: Option<f64>,
}

impl Offer {
    /// The stable id of a thing at a place: `provider/region/zone/instance type/capacity`, empty parts as `-`.
    /// An instance type that holds different things of one price class (RunPod Secure and Community) must
    /// say so in its name.
    pub fn id_of(
        provider: &str,
        region: &str,
        zone: &str,
        instance_type: &str,
        capacity: Capacity,
    ) -> OfferId {
        let part = |text: &str| {
            if text.is_empty() { "-".to_owned() } else { text.replace('/', "_") }
        };
        let capacity = match capacity {
            Capacity::Spot => "spot",
            Capacity::OnDemand => "on-demand",
            Capacity::Owned => "owned",
        };
        OfferId(format!(
            "{}/{}/{}/{}/{capacity}",
            part(provider),
            part(region),
            part(zone),
            part(instance_type),
        ))
    }

    /// When the quote stops being good to buy from.
    pub fn expires_at(&self) -> Timestamp {
        Timestamp::from_millisecond(
            self.quoted_at
                .as_millisecond()
                .saturating_add(i64::from(self.ttl_seconds) * 1000)
                .min(Timestamp::MAX.as_millisecond()),
        )
        .unwrap_or(Timestamp::MAX)
    }
}

/// Offers of which only a dated price is known.
impl Offer {
    /// The words to show beside a price that cannot be bought from.
    pub fn not_for_sale(&self) -> Option<String> {
        match self.sale {
            Sale::Buyable => None,
            Sale::Snapshot { observed_on: Some(day) } => {
                Some(format!("prices of {day}, not for sale"))
            }
            Sale::Snapshot { observed_on: None } => {
                Some("prices of unknown date, not for sale".to_owned())
            }
        }
    }
}
