//! What was spent: the question that `petaflop costs` and `/api/v1/costs` ask of the ledger's rows.

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use petaflop_arbiter::ledger::{GroupBy, Row, SumError, in_period, sums};
use petaflop_arbiter::money::Usd;
use serde::{Deserialize, Serialize};

/// What is added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Namespaces.
    Namespace,
    /// Jobs and services.
    #[default]
    Job,
    /// Providers.
    Provider,
    /// Budgets; what counts under none is left out, what counts under several is in each.
    Budget,
}

impl By {
    /// As flags and queries write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "namespace",
            Self::Job => "job",
            Self::Provider => "provider",
            Self::Budget => "budget",
        }
    }
}

impl From<By> for GroupBy {
    fn from(by: By) -> Self {
        match by {
            By::Namespace => Self::Namespace,
            By::Job => Self::Job,
            By::Provider => Self::Provider,
            By::Budget => Self::Budget,
        }
    }
}

/// Sums, and their sum.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Costs {
    /// By what was asked for.
    pub groups: BTreeMap<String, Usd>,
    /// Of all rows, each counted once.
    pub total: Usd,
    /// The rows themselves, the oldest first, where they were asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Vec<Row>>,
}

impl Costs {
    /// Of the rows of a period.
    ///
    /// # Errors
    /// A sum beyond 64 bits.
    pub fn of(mut rows: Vec<Row>, by: By, period: Range<Timestamp>) -> Result<Self, SumError> {
        rows.retain(|row| in_period(row, &period));
        rows.sort_by(|a, b| (a.from, &a.key).cmp(&(b.from, &b.key)));
        let groups = sums(&rows, by.into(), period)?;
        let total = rows.iter().map(|row| row.amount).sum();
        Ok(Self { groups, total, rows: Some(rows) })
    }
}

/// From one time to another, either of which may be left out.
///
/// # Errors
/// What is wrong, by the given names of the two.
pub fn period(
    from: Option<&str>,
    to: Option<&str>,
    names: [&str; 2],
) -> Result<Range<Timestamp>, String> {
    let from = from.map_or(Ok(Timestamp::MIN), |text| time(text, names[0]))?;
    let to = to.map_or(Ok(Timestamp::MAX), |text| time(text, names[1]))?;
    Ok(from..to)
}

fn time(text: &str, name: &str) -> Result<Timestamp, String> {
    text.parse::<Timestamp>().or_else(|_| {
        let day = text.parse::<Date>().and_then(|day| day.to_zoned(TimeZone::UTC));
        day.map(|day| day.timestamp()).map_err(|_| {
            format!("{name}: expected 2026-11-21 or 2026-11-21T08:00:00Z, found {text:?}")
        })
    })
}
