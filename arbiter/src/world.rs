//! Everything a decision may depend on, in one value that can be written down and replayed.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::catalogue::Catalogue;
use crate::claim::Claim;
use crate::estimate::Corrections;
use crate::market::Market;
use crate::money::{Usd, UsdPerHour};
use crate::offer::{Accelerators, OfferId};
use crate::reason::Reason;
use crate::spot::shelf::Shelf;
use crate::support::SupportTable;
use crate::watch::Watch;
use crate::workload::Workload;

/// What is known when a decision is made. [`crate::decide::decide`] reads nothing else but the time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct World {
    /// Uid of this installation; machines of others are none of our business.
    pub installation: String,
    /// All current offers. Shared: a pass does not copy the market.
    #[serde(serialize_with = "write_market", deserialize_with = "read_market")]
    pub market: Arc<Market>,
    /// Providers, their limits and what it is like to start there.
    pub providers: Vec<ProviderState>,
    /// Offers that refused a launch lately.
    pub unavailable: Vec<Unavailable>,
    /// All workloads that are not finished.
    pub workloads: Vec<Workload>,
    /// All claims that are not finished: they are the reservations.
    pub claims: Vec<Claim>,
    /// Budgets of the namespaces.
    pub budgets: Vec<Budget>,
    /// What past runs taught about rates.
    pub corrections: Corrections,
    /// Where our runtime runs.
    pub support: SupportTable,
    /// What is taken for granted where nothing is known.
    pub assumptions: Assumptions,
    /// What jobs with a deadline saw until now: [`crate::deadline`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub watched: Vec<Watch>,
    /// Tables of the spot policy that are ready. Shared, like the market.
    #[serde(default, skip_serializing_if = "Shelf::is_empty")]
    pub tables: Shelf,
}

/// A world and the time at which it was decided: what `petaflop explain --world` replays, bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Recorded {
    /// When.
    pub now: Timestamp,
    /// What was known.
    pub world: World,
}

impl Recorded {
    /// Hash of what was known and when: blake3 of its JSON, in hex. Equal hashes, equal decisions.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(self).expect("a world is maps with text keys");
        blake3::hash(&json).to_hex().to_string()
    }
}

/// A provider, as far as decisions go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProviderState {
    /// Name, as offers and `placement.providers` use it.
    pub name: String,
    /// Whether it takes new claims.
    pub state: Switch,
    /// Namespaces it serves; `None`: all (outside a cluster).
    pub allowed_namespaces: Option<Vec<String>>,
    /// Which accelerators its owner lets be had of it.
    #[serde(default, skip_serializing_if = "ModelRule::is_open")]
    pub accelerators: ModelRule,
    /// Limit of the sum of the hourly prices of all claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hourly: Option<UsdPerHour>,
    /// Limit of what a calendar month may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub monthly: Option<MonthlyLimit>,
    /// Most machines at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_machines: Option<u32>,
    /// Milliseconds from asking for a machine until it can begin to fetch.
    pub startup_millis: i64,
    /// Bytes a second at which a fresh machine fetches image, data and checkpoints; `None`: everything
    /// is there already (this host).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fetch_bytes_per_second: Option<u64>,
    /// Price of 10⁹ bytes that leave the place.
    pub egress_usd_per_gb: Usd,
    /// Whether its machines are elsewhere, and reach nothing that only the cluster or this host has:
    /// [`Workload::tied`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub remote: bool,
    /// Bytes of disk that each of its machines has, where they all have the same; `None`: not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<u64>,
    /// Whether what it quotes is in stock; of others only a price is known until somebody tries.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quotes_stock: bool,
}

/// Which models of accelerators may be had. Names are catalogue keys (`H100-SXM`) or families (`H100`). Machines
/// without accelerators are not meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ModelRule {
    /// Only these; empty: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// But none of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
}

impl ModelRule {
    /// Whether all models may be had.
    pub fn is_open(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// Whether these devices may be had.
    pub fn admits(&self, devices: &Accelerators) -> bool {
        let named = |names: &[String]| {
            names.iter().any(|name| Catalogue::embedded().answers(&devices.model, name))
        };
        (self.allow.is_empty() || named(&self.allow)) && !named(&self.deny)
    }
}

/// Whether a provider takes new claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Switch {
    /// Takes new claims.
    Enabled,
    /// Keeps what runs, takes nothing new.
    Cordoned,
    /// Switched off, or cannot be reached.
    Disabled,
}

/// Limit of a calendar month.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MonthlyLimit {
    /// The limit.
    pub limit: Usd,
    /// Spent in this month, by the ledger.
    pub spent: Usd,
    /// When the month ends.
    pub ends_at: Timestamp,
}

/// An offer that refused a launch lately.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Unavailable {
    /// The offer.
    pub offer: OfferId,
    /// When it is worth another try.
    pub until: Timestamp,
    /// What it said.
    pub reason: Reason,
}

/// A SpendBudget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Budget {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Dollars for the period.
    pub limit: Usd,
    /// Spent in the period.
    pub spent: Usd,
    /// When the period ends (exclusive).
    pub period_ends_at: Timestamp,
    /// Uids of the workloads it counts; `None`: all of the namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workloads: Option<BTreeSet<String>>,
}

impl Budget {
    /// Whether it counts a workload.
    pub fn counts(&self, namespace: &str, uid: &str) -> bool {
        self.namespace == namespace && self.workloads.as_ref().is_none_or(|uids| uids.contains(uid))
    }
}

/// What is taken for granted where nothing is known. The defaults are guesses on the careful side.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Assumptions {
    /// Losses an hour of a spot machine of which nothing is known.
    pub spot_losses_per_hour: f64,
    /// Losses an hour of every other machine (failures).
    pub other_losses_per_hour: f64,
    /// Bytes of the runtime's image.
    pub image_bytes: u64,
    /// A quote from further in the future than this is not believed (clocks differ a little).
    pub clock_skew_seconds: u32,
}

impl Default for Assumptions {
    fn default() -> Assumptions {
        Assumptions {
            // One loss in twenty hours: between the steady zones (one in days) and the flapping
            // ones (one in an hour or two) of the public one-machine V100 traces.
            spot_losses_per_hour: 0.05,
            // One loss in two months.
            other_losses_per_hour: 0.0007,
            image_bytes: 300_000_000,
            clock_skew_seconds: 120,
        }
    }
}

fn write_market<S: Serializer>(market: &Arc<Market>, serializer: S) -> Result<S::Ok, S::Error> {
    market.as_ref().serialize(serializer)
}

fn read_market<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Arc<Market>, D::Error> {
    Market::deserialize(deserializer).map(Arc::new)
}
