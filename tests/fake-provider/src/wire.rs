//! The bodies of requests and answers. The interface is the fake's own; what
//! matters of the real ones is what they promise and how they fail.

use std::collections::BTreeMap;

use jiff::Timestamp;
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Offer, OfferId};
use serde::{Deserialize, Serialize};

/// A purchase.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Create {
    /// A name; not unique.
    pub(crate) name: String,
    /// Makes repeating safe, where the cloud has manners for it.
    pub(crate) token: String,
    /// The identity, as a tag.
    pub(crate) identity: String,
    /// What is bought.
    pub(crate) offer: OfferId,
    /// All of it as it was offered, as a tag.
    pub(crate) offered: Offer,
    /// The most that an hour may cost.
    pub(crate) bid: UsdPerHour,
    /// The image to run.
    pub(crate) image: String,
    /// The machine's environment.
    pub(crate) env: BTreeMap<String, String>,
}

/// A machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct View {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) identity: Option<String>,
    pub(crate) state: State,
    pub(crate) offer: OfferId,
    /// The tag of what was offered.
    pub(crate) offered: Option<Offer>,
    pub(crate) price: UsdPerHour,
    pub(crate) created: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) endpoint: Option<String>,
    /// Exit status, where the cloud tells.
    pub(crate) exit: Option<i32>,
    /// Why it is ending or has ended, where the cloud tells.
    pub(crate) reason: Option<String>,
    /// What of it still bills although it has ended.
    pub(crate) leftovers: Vec<String>,
}

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    Pending,
    Running,
    /// What ran on it has ended; the machine has not.
    Exited,
    Stopping,
    Terminated,
}

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Page {
    pub(crate) machines: Vec<View>,
    /// Where the next page begins, if there is one.
    #[serde(default)]
    pub(crate) cursor: Option<String>,
    /// How many there are on all pages.
    pub(crate) total: usize,
}

/// Words of an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Problem {
    /// Empty where the cloud has only words.
    #[serde(default)]
    pub(crate) code: String,
    pub(crate) message: String,
}
