//! The ledger: what every claim cost, in rows that add up to the last micro-dollar.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::claim::ClaimSpec;
use crate::money::{Usd, UsdPerHour};

/// What a row records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RowKind {
    /// A span of running.
    Running,
    /// The last span: the machine is gone; the sum is an estimate until the provider's bill is read.
    Final,
    /// The last span of a machine that no claim knew of any more.
    Orphan,
    /// The provider's bill says otherwise.
    Correction,
}

/// One row. Rows are never changed; equal keys hold equal rows. What a later version adds to them is
/// passed over: whoever goes back to this one, or asks a newer operator, still reads what was spent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// `<claim uid>/<sequence in six digits>`: the same on every retry.
    pub key: String,
    /// What it records.
    pub kind: RowKind,
    /// Namespace of the owner.
    pub namespace: String,
    /// Name of the owner.
    pub job: String,
    /// Uid of the owner.
    pub job_uid: String,
    /// Name of the claim.
    pub claim: String,
    /// Uid of the claim.
    pub claim_uid: String,
    /// The provider's name of the machine; empty in rows that are older than this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// Name of the provider.
    pub provider: String,
    /// Region, or empty.
    pub region: String,
    /// Zone, or empty; in rows that are older than this field too.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub zone: String,
    /// Machine type.
    pub instance_type: String,
    /// Model of its accelerators; empty where it has none, and in rows that are older than this field.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub accelerator: String,
    /// Capacity type.
    pub capacity: crate::offer::Capacity,
    /// Begin of the span (inclusive).
    pub from: Timestamp,
    /// End of the span (exclusive).
    pub to: Timestamp,
    /// Rate of the span.
    pub rate: UsdPerHour,
    /// What the span cost; negative only in a correction.
    pub amount: Usd,
    /// Names of the budgets of its namespace that it counted under when it was written. None in rows
    /// that are older than this field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<String>,
}

impl Row {
    /// Whether it is of a machine beside the claim's own, or after it: one more that a lost launch made,
    /// one that was given back within the call, one that was found when the claim was over.
    pub fn is_beside(&self) -> bool {
        self.claim_uid.contains('.')
    }
}

/// The ledger of one claim: what was written so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimLedger {
    /// What was bought.
    pub spec: ClaimSpec,
    /// Uid of the claim.
    pub claim_uid: String,
    /// The provider's name of its machine, as far as is known.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub instance: String,
    /// When billing began.
    pub began: Timestamp,
    /// Rows written so far, in order.
    pub rows: Vec<Row>,
    /// Names of the budgets that the next row counts under; `None`: those of the row before it,
    /// where nobody knows the owner any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<Vec<String>>,
}

/// A ledger that cannot be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The last row is written already.
    #[error("claim {claim_uid}: its last row is written; only corrections may follow")]
    Closed {
        /// Uid of the claim.
        claim_uid: String,
    },
    /// A correction before the last row.
    #[error("claim {claim_uid}: still open; corrections follow its last row")]
    Open {
        /// Uid of the claim.
        claim_uid: String,
    },
    /// The amount does not fit in 64 bits.
    #[error("claim {claim_uid}: the amount does not fit in 64 bits")]
    Overflow {
        /// Uid of the claim.
        claim_uid: String,
    },
}

impl ClaimLedger {
    /// The ledger of a claim whose billing begins.
    pub fn new(spec: ClaimSpec, claim_uid: String, began: Timestamp) -> ClaimLedger {
        let (instance, rows) = (String::new(), Vec::new());
        ClaimLedger { spec, claim_uid, instance, began, rows, budgets: None }
    }

    /// Sum of the rows.
    ///
    /// # Errors
    /// A sum beyond 64 bits.
    pub fn total(&self) -> Result<Usd, LedgerError> {
        self.rows
            .iter()
            .try_fold(Usd::ZERO, |sum, row| sum.checked_add(row.amount))
            .ok_or_else(|| self.overflow())
    }

    /// The row that brings the ledger up to a time, by when the machine has cost `billed`
    /// ([`crate::bill`]): that − sum of the earlier rows, so that nothing is lost to rounding.
    /// `None` where no time has passed (a clock that went back adds nothing); the last row is
    /// written even then. Where earlier rows hold more than was billed it is a row of nothing, and
    /// a [`ClaimLedger::correction`] takes the rest back. The row is returned, not added: add it once it
    /// is durable.
    ///
    /// # Errors
    /// The last row is written already, or the amount does not fit.
    pub fn next_row(
        &self,
        until: Timestamp,
        billed: Usd,
        last: bool,
    ) -> Result<Option<Row>, LedgerError> {
        self.row_until(until, billed, last.then_some(RowKind::Final))
    }

    /// The last row of a machine that was found without a claim: see [`RowKind::Orphan`].
    ///
    /// # Errors
    /// As [`ClaimLedger::next_row`].
    pub fn orphan_row(&self, until: Timestamp, billed: Usd) -> Result<Option<Row>, LedgerError> {
        self.row_until(until, billed, Some(RowKind::Orphan))
    }

    fn row_until(
        &self,
        until: Timestamp,
        billed: Usd,
        last: Option<RowKind>,
    ) -> Result<Option<Row>, LedgerError> {
        if self.is_closed() {
            return Err(LedgerError::Closed { claim_uid: self.claim_uid.clone() });
        }
        let from = self.rows.last().map_or(self.began, |row| row.to);
        let to = until.max(from);
        if to == from && last.is_none() {
            return Ok(None);
        }
        let amount = billed.checked_sub(self.total()?).ok_or_else(|| self.overflow())?;
        let amount = amount.max(Usd::ZERO);
        Ok(Some(self.row(last.unwrap_or(RowKind::Running), from, to, amount)))
    }

    /// The row that makes the sum equal to the provider's bill; `None` where it is already.
    ///
    /// # Errors
    /// The claim is still open, or the amount does not fit.
    pub fn correction(&self, billed: Usd) -> Result<Option<Row>, LedgerError> {
        if !self.is_closed() {
            return Err(LedgerError::Open { claim_uid: self.claim_uid.clone() });
        }
        let amount = billed.checked_sub(self.total()?).ok_or_else(|| self.overflow())?;
        // A correction belongs to the time when the machine ended, whenever the bill was read.
        let at = self.rows.last().map_or(self.began, |row| row.to);
        Ok((amount != Usd::ZERO).then(|| self.row(RowKind::Correction, at, at, amount)))
    }

    /// Whether the last row is written.
    pub fn is_closed(&self) -> bool {
        self.rows.iter().any(|row| row.kind != RowKind::Running)
    }

    fn row(&self, kind: RowKind, from: Timestamp, to: Timestamp, amount: Usd) -> Row {
        let offer = &self.spec.offer;
        Row {
            key: row_key(&self.claim_uid, self.rows.len() as u64),
            kind,
            namespace: self.spec.owner.namespace.clone(),
            job: self.spec.owner.name.clone(),
            job_uid: self.spec.owner.uid.clone(),
            claim: self.spec.name.clone(),
            claim_uid: self.claim_uid.clone(),
            instance: self.instance.clone(),
            provider: offer.provider.clone(),
            region: offer.region.clone(),
            zone: offer.zone.clone(),
            instance_type: offer.instance_type.clone(),
            accelerator: offer.accelerators.as_ref().map(|a| a.model.clone()).unwrap_or_default(),
            capacity: offer.capacity,
            from,
            to,
            rate: offer.price,
            amount,
            budgets: match (&self.budgets, self.rows.last()) {
                (Some(names), _) => names.clone(),
                (None, Some(before)) => before.budgets.clone(),
                (None, None) => Vec::new(),
            },
        }
    }

    fn overflow(&self) -> LedgerError {
        LedgerError::Overflow { claim_uid: self.claim_uid.clone() }
    }
}

/// Key of a claim's row of this number, from 0.
pub fn row_key(claim_uid: &str, number: u64) -> String {
    format!("{claim_uid}/{number:06}")
}

/// Under which uid a machine is booked that a claim has beside its own, or had: beside the claim's rows.
pub fn beside(claim_uid: &str, instance: &str) -> String {
    format!("{claim_uid}.{instance}")
}

/// What rows are summed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// The namespace.
    Namespace,
    /// `namespace/job`.
    Job,
    /// The provider.
    Provider,
    /// `namespace/budget`. A row counts under each of its budgets, so these sums may add up to more
    /// than was spent; rows without one are left out.
    Budget,
}

impl GroupBy {
    /// The groups that a row counts in.
    fn groups(self, row: &Row) -> Vec<String> {
        match self {
            GroupBy::Namespace => vec![row.namespace.clone()],
            GroupBy::Job => vec![format!("{}/{}", row.namespace, row.job)],
            GroupBy::Provider => vec![row.provider.clone()],
            GroupBy::Budget => {
                row.budgets.iter().map(|name| format!("{}/{name}", row.namespace)).collect()
            }
        }
    }
}

/// Sums the rows of a period (see [`in_period`]). Groups come sorted.
///
/// # Errors
/// A sum beyond 64 bits names its group.
pub fn sums<'a>(
    rows: impl IntoIterator<Item = &'a Row>,
    by: GroupBy,
    period: std::ops::Range<Timestamp>,
) -> Result<std::collections::BTreeMap<String, Usd>, SumError> {
    let mut sums = std::collections::BTreeMap::new();
    for row in rows.into_iter().filter(|row| in_period(row, &period)) {
        for group in by.groups(row) {
            let sum = sums.entry(group.clone()).or_insert(Usd::ZERO);
            *sum = sum.checked_add(row.amount).ok_or(SumError { group })?;
        }
    }
    Ok(sums)
}

/// A sum beyond 64 bits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the sum of {group} does not fit in 64 bits")]
pub struct SumError {
    /// The group.
    pub group: String,
}

/// Whether a row counts in a half-open period: by the begin of its span, so that every row counts
/// in exactly one of adjoining periods. Write a row at each end of a period to split a span there.
pub fn in_period(row: &Row, period: &std::ops::Range<Timestamp>) -> bool {
    period.contains(&row.from)
}
