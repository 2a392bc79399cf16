//! The kind `SpendBudget`: dollars for a period, for a namespace or a part of it.
//!
//! Written by those who answer for the money, not by those who spend it. Every budget that counts
//! a workload applies to it; what a claim may still cost is reserved before it is bought.

#![expect(
    unreachable_pub,
    reason = "KubeSchema copies each struct into a function, its `pub` with it"
)]

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Unit, Zoned, ZonedRound};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema, ResourceExt};
use petaflop_arbiter::money::{Usd, UsdPerHour};
use petaflop_arbiter::world::Budget;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::FieldError;
use crate::field_error::Errors;
use crate::scalar::Money;
use crate::shared::NameRef;

/// Dollars for a period, for a namespace or the workloads of it that carry certain labels.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "petaflop.dev",
    version = "v1alpha1",
    kind = "SpendBudget",
    namespaced,
    status = "SpendBudgetStatus",
    shortname = "budget",
    category = "petaflop",
    derive = "PartialEq",
    cel,
    doc = "Dollars for a period, for a namespace or the workloads of it that carry certain labels.",
    printcolumn(name = "Period", type_ = "string", json_path = ".spec.period"),
    printcolumn(name = "Limit", type_ = "string", json_path = ".spec.limit"),
    printcolumn(name = "Spent", type_ = "string", json_path = ".status.spent"),
    printcolumn(name = "Reserved", type_ = "string", json_path = ".status.reserved"),
    printcolumn(name = "$/h", type_ = "string", json_path = ".status.committedHourlyRate"),
    printcolumn(name = "Projected", type_ = "string", json_path = ".status.projected"),
    printcolumn(name = "Within", type_ = "string", json_path = ".status.conditions[?(@.type==\"WithinBudget\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "On-Exceeded", type_ = "string", json_path = ".spec.onExceeded", priority = 1),
    printcolumn(name = "Ends", type_ = "string", json_path = ".status.periodEnd", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 63")
        .message("metadata.name must be at most 63 characters: metrics carry it as a label"),
)]
#[serde(rename_all = "camelCase")]
pub struct SpendBudgetSpec {
    /// Calendar period, in UTC, after which it begins anew.
    pub period: Period,
    /// Dollars for one period.
    pub limit: Money,
    /// Which workloads it counts. Empty: all of the namespace.
    #[serde(default)]
    pub selector: Selector,
    /// What happens when the limit is reached.
    #[serde(default)]
    pub on_exceeded: OnExceeded,
    /// Shares of the limit, in per cent, at which it warns.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(range(min = 1, max = 100)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub warn_at_percent: Vec<u32>,
}

/// A calendar period, in UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Period {
    /// From one full hour to the next.
    Hourly,
    /// From midnight to midnight.
    Daily,
    /// From the first of a month to the first of the next.
    Monthly,
}

impl Period {
    /// The period that `now` lies in, its end exclusive. At the end of time it is cut short.
    pub fn around(self, now: Timestamp) -> Range<Timestamp> {
        let now = now.to_zoned(TimeZone::UTC);
        let begin = self.begin(&now).map_or(Timestamp::MIN, |begin| begin.timestamp());
        let end = self.begin(&now).and_then(|begin| match self {
            Period::Hourly => begin.checked_add(1.hour()),
            Period::Daily => begin.checked_add(1.day()),
            Period::Monthly => begin.checked_add(1.month()),
        });
        begin..end.map_or(Timestamp::MAX, |end| end.timestamp())
    }

    fn begin(self, now: &Zoned) -> Result<Zoned, jiff::Error> {
        match self {
            Period::Hourly => {
                now.round(ZonedRound::new().smallest(Unit::Hour).mode(jiff::RoundMode::Floor))
            }
            Period::Daily => now.start_of_day(),
            Period::Monthly => now.first_of_month()?.start_of_day(),
        }
    }
}

/// Which workloads a budget counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that a TrainingJob or InferenceService must have, all of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 32), inner(length(max = 63)))]
    pub match_labels: BTreeMap<String, String>,
}

/// What happens when a budget's limit is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnExceeded {
    /// Nothing new is bought.
    #[default]
    BlockNew,
    /// What runs is stopped after its checkpoint, and goes on in the next period.
    Suspend,
    /// What runs is stopped at once, and its jobs fail.
    Terminate,
}

/// What a budget's workloads have cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SpendBudgetStatus {
    /// Generation of the spec that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions; types and reasons are closed lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// When the running period began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_start: Option<Time>,
    /// When it ends (exclusive).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_end: Option<Time>,
    /// Dollars spent in the period, booked and run up since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spent: Option<Money>,
    /// Dollars that running claims may still cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved: Option<Money>,
    /// Dollars an hour that running claims cost now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_hourly_rate: Option<Money>,
    /// Dollars spent at the period's end if all goes on as it does now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projected: Option<Money>,
    /// When these figures were taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub as_of: Option<Time>,
    /// The highest of `warnAtPercent` that was passed in this period: each warns once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warned_at_percent: Option<u32>,
}

impl SpendBudgetSpec {
    /// Whether it counts a workload of its namespace: one that has the labels, or that names this
    /// budget (`name`) in its `budgetRef`.
    pub fn counts(
        &self,
        name: &str,
        labels: &BTreeMap<String, String>,
        budget_ref: Option<&NameRef>,
    ) -> bool {
        let selected = self
            .selector
            .match_labels
            .iter()
            .all(|(label, value)| labels.get(label) == Some(value));
        selected || budget_ref.is_some_and(|named| named.name == name)
    }

    /// Whether it counts every workload of its namespace.
    pub fn counts_all(&self) -> bool {
        self.selector.match_labels.is_empty()
    }

    /// The highest of `warnAtPercent` that an amount has reached.
    pub fn warning(&self, spent: Usd) -> Option<u32> {
        let limit = self.limit.micro_dollars().ok()?;
        let reached = |percent: u32| {
            i128::from(spent.micros()) * 100 >= i128::from(limit) * i128::from(percent)
        };
        self.warn_at_percent.iter().copied().filter(|percent| reached(*percent)).max()
    }
}

impl SpendBudget {
    /// The budget as decisions see it at `now`. `spent` is the ledger's sum of the running period;
    /// `workloads` are the uids that it counts, asked for only where it does not count all.
    ///
    /// # Errors
    /// Fields that do not stand for a value, which the CRD's schema refuses.
    pub fn budget(
        &self,
        spent: Usd,
        workloads: impl IntoIterator<Item = String>,
        now: Timestamp,
    ) -> Result<Budget, Vec<FieldError>> {
        let SpendBudgetSpec {
            period,
            limit,
            selector: _,        // in `workloads`
            on_exceeded: _,     // of the controller; nothing new is bought in any case
            warn_at_percent: _, // of the controller
        } = &self.spec;
        let mut errors = Errors::default();
        let micros = limit.micro_dollars().map_err(|error| errors.add("spec.limit", error));
        let budget = Budget {
            namespace: errors.need("metadata.namespace", self.namespace()).unwrap_or_default(),
            name: self.name_any(),
            limit: Usd::from_micros(micros.unwrap_or(0)),
            spent,
            period_ends_at: period.around(now).end,
            workloads: (!self.spec.counts_all()).then(|| workloads.into_iter().collect()),
        };
        errors.or(budget)
    }
}

/// What is spent at the end of a period if all goes on as it does now.
pub fn projected(spent: Usd, rate: UsdPerHour, now: Timestamp, period_end: Timestamp) -> Usd {
    let left = period_end.as_millisecond().saturating_sub(now.as_millisecond());
    spent.saturating_add(rate.for_millis(left))
}
