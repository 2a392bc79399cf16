//! What claims have cost, kept in memory so that the ledger need not be read for every look.
//! Read from the ledger at start, and again for a claim whenever a row of it was written.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use petaflop_arbiter::claim::{Claim, Phase};
use petaflop_arbiter::ledger::Row;
use petaflop_arbiter::money::Usd;

use crate::claims::StoredClaim;
use crate::ledger::{self, Ledger};

/// The rows, by claim. Clones are the same book.
#[derive(Clone, Debug, Default)]
pub struct Book {
    rows: Arc<Mutex<HashMap<String, Vec<Row>>>>,
}

impl Book {
    /// Reads everything.
    pub async fn read(&self, ledger: &Ledger) -> Result<(), ledger::Error> {
        let mut by_claim: HashMap<String, Vec<Row>> = HashMap::new();
        for row in ledger.rows().await? {
            by_claim.entry(row.claim_uid.clone()).or_default().push(row);
        }
        *self.lock() = by_claim;
        Ok(())
    }

    /// Reads a claim's rows again.
    pub async fn refresh(&self, ledger: &Ledger, claim: &Claim) -> Result<(), ledger::Error> {
        let rows = ledger.claim(&claim.spec, &claim.uid, Timestamp::UNIX_EPOCH).await?.rows;
        self.lock().insert(claim.uid.clone(), rows);
        Ok(())
    }

    /// Until when a claim's cost is booked.
    pub fn charged_until(&self, claim_uid: &str) -> Option<Timestamp> {
        self.lock().get(claim_uid)?.last().map(|row| row.to)
    }

    /// What a job has cost: its rows, and for machines that run what ran up since the last one.
    pub fn spent(&self, job_uid: &str, claims: &[StoredClaim], now: Timestamp) -> Usd {
        let rows = self.lock();
        let booked: Usd = rows
            .values()
            .flatten()
            .filter(|row| row.job_uid == job_uid)
            .map(|row| row.amount)
            .sum();
        claims.iter().map(|stored| running(stored, &rows, now)).fold(booked, Usd::saturating_add)
    }

    /// What these claims' machines have cost since their last rows.
    pub fn running(&self, claims: &[StoredClaim], now: Timestamp) -> Usd {
        let rows = self.lock();
        claims.iter().map(|stored| running(stored, &rows, now)).sum()
    }

    /// What was spent in a period, by the begin of each row, on what `counts`.
    pub fn spent_in(
        &self,
        period: &std::ops::Range<Timestamp>,
        counts: impl Fn(&Row) -> bool,
    ) -> Usd {
        let rows = self.lock();
        let in_period = |row: &&Row| petaflop_arbiter::ledger::in_period(row, period);
        rows.values().flatten().filter(in_period).filter(|row| counts(row)).map(|r| r.amount).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Vec<Row>>> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a machine has cost since its last row.
fn running(stored: &StoredClaim, rows: &HashMap<String, Vec<Row>>, now: Timestamp) -> Usd {
    let claim = &stored.claim;
    let bills = matches!(claim.phase, Phase::Launched { .. } | Phase::Ending { .. });
    let (Some(began), true) = (stored.billed_from, bills) else {
        return Usd::ZERO;
    };
    let rows = rows.get(&claim.uid).map_or(&[][..], Vec::as_slice);
    let closed = rows.iter().any(|row| row.kind != petaflop_arbiter::ledger::RowKind::Running);
    if closed {
        return Usd::ZERO;
    }
    let booked: Usd = rows.iter().map(|row| row.amount).sum();
    let millis = now.as_millisecond().saturating_sub(began.as_millisecond()).max(0);
    let total = claim.spec.offer.price.for_millis(millis);
    total.checked_sub(booked).filter(|left| *left > Usd::ZERO).unwrap_or(Usd::ZERO)
}
