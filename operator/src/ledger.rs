//! The ledger in files: `ledger/<claim uid>/<sequence>.json`, one row each, created
//! and never changed. A row that is written again is the same row.

use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use petaflop_arbiter::claim::{ClaimSpec, Device, Identity};
use petaflop_arbiter::ledger::{ClaimLedger, LedgerError, Row};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};

use crate::home::{self, Home, HomeError};

/// Why a row could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The folder refuses.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// The rows do not allow it.
    #[error(transparent)]
    Rows(#[from] LedgerError),
}

/// The rows of one home.
#[derive(Clone, Debug)]
pub struct Ledger {
    folder: PathBuf,
}

impl Ledger {
    /// Of this home.
    pub fn of(home: &Home) -> Self {
        Self { folder: home.root().join("ledger") }
    }

    /// What was written for a claim so far.
    pub fn claim(
        &self,
        spec: &ClaimSpec,
        uid: &str,
        began: Timestamp,
    ) -> Result<ClaimLedger, Error> {
        let mut ledger = ClaimLedger::new(spec.clone(), uid.to_owned(), began);
        ledger.rows = self.rows_of(uid)?;
        Ok(ledger)
    }

    /// Brings a claim's ledger up to a time. Returns what the claim has cost.
    pub fn bring_up(
        &self,
        ledger: &mut ClaimLedger,
        until: Timestamp,
        last: bool,
    ) -> Result<Usd, Error> {
        if !ledger.is_closed()
            && let Some(row) = ledger.next_row(until, last)?
        {
            self.append(&row)?;
            ledger.rows.push(row);
        }
        Ok(ledger.total()?)
    }

    /// Closes the ledger of a machine whose claim is lost: what it cost until it ended. Who it
    /// worked for is known from earlier rows, if there are any. `None`: it is closed already.
    pub fn close_orphan(
        &self,
        identity: &Identity,
        offer: Offer,
        began: Timestamp,
        ended: Timestamp,
    ) -> Result<Option<Row>, Error> {
        let rows = self.rows_of(&identity.claim_uid)?;
        let first = rows.first();
        let began = first.map_or(began, |row| row.from);
        let spec = ClaimSpec {
            name: identity.claim.clone(),
            owner: WorkloadId {
                kind: OwnerKind::TrainingJob,
                namespace: identity.namespace.clone(),
                name: first.map(|row| row.job.clone()).unwrap_or_default(),
                uid: first.map(|row| row.job_uid.clone()).unwrap_or_default(),
            },
            placement: 0,
            index: 0,
            offer,
            device: Device::Cpu,
            reserved: Usd::ZERO,
            decided_at: began,
        };
        let ledger = ClaimLedger { spec, claim_uid: identity.claim_uid.clone(), began, rows };
        if ledger.is_closed() {
            return Ok(None);
        }
        let row = ledger.orphan_row(ended)?;
        if let Some(row) = &row {
            self.append(row)?;
        }
        Ok(row)
    }

    /// All rows, oldest span first.
    pub fn rows(&self) -> Result<Vec<Row>, HomeError> {
        let mut rows = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(HomeError::unusable(&self.folder))? {
            let entry = entry.map_err(HomeError::unusable(&self.folder))?;
            if let Some(uid) = entry.file_name().to_str() {
                rows.extend(self.rows_of(uid)?);
            }
        }
        rows.sort_by(|a, b| (a.from, &a.key).cmp(&(b.from, &b.key)));
        Ok(rows)
    }

    fn rows_of(&self, uid: &str) -> Result<Vec<Row>, HomeError> {
        let folder = self.folder.join(uid);
        let Ok(entries) = fs::read_dir(&folder) else {
            return Ok(Vec::new());
        };
        let mut rows: Vec<Row> = Vec::new();
        for entry in entries {
            let path = entry.map_err(HomeError::unusable(&folder))?.path();
            if path.extension().is_some_and(|e| e == "json") {
                rows.extend(home::read_json::<Row>(&path)?);
            }
        }
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(rows)
    }

    fn append(&self, row: &Row) -> Result<(), HomeError> {
        let path = self.folder.join(format!("{}.json", row.key));
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder).map_err(HomeError::unusable(folder))?;
        let text = serde_json::to_vec_pretty(row)
            .map_err(|e| HomeError::Unusable { path: path.clone(), source: e.into() })?;
        home::create_new(&path, &text).map(|_| ())
    }
}
