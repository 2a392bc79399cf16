//! The ledger: `<claim uid>/<sequence>.json`, one row each, created and never changed,
//! in a folder or a bucket. A row that is written again is the same row.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use jiff::{SignedDuration, Timestamp};
use object_store::path::Path;
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, PutMode};
use petaflop_arbiter::claim::{ClaimSpec, Device, Identity};
use petaflop_arbiter::ledger::{ClaimLedger, LedgerError, Row, RowKind, beside, row_key};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::{Accelerators, Arch, HostOwner, Offer, Sale};
use petaflop_arbiter::workload::{OwnerKind, WorkloadId};

/// Rows that are fetched at once.
const AT_ONCE: usize = 32;

/// The clocks of whoever writes rows and of the place that keeps them agree within this.
const CLOCKS: SignedDuration = SignedDuration::from_hours(24);

/// Why a row could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place refuses or does not answer.
    #[error("the ledger at {place}: {source}; see that it can be reached and written")]
    Store {
        /// Folder or URI.
        place: String,
        /// What it said.
        source: object_store::Error,
    },
    /// A row is not what we wrote.
    #[error("the ledger at {place}: {key} is damaged: {what}; keep a copy of it and move it away")]
    Damaged {
        /// Folder or URI.
        place: String,
        /// The row.
        key: String,
        /// What is wrong.
        what: String,
    },
    /// Another row of the same key is there already. Keys hold equal rows, so two installations use one place.
    #[error(
        "the ledger at {place}: {key} holds another row; give each installation a ledger of its own"
    )]
    Conflict {
        /// Folder or URI.
        place: String,
        /// The row.
        key: String,
    },
    /// The rows do not allow it.
    #[error(transparent)]
    Rows(#[from] LedgerError),
}

/// The rows of one installation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Ledger {
    objects: Arc<dyn ObjectStore>,
    place: String,
}

impl Ledger {
    /// Over any object store; `place` stands for it in messages. A local one must sync what it
    /// writes (`LocalFileSystem::with_fsync`), or a power cut loses money.
    pub fn over(objects: Arc<dyn ObjectStore>, place: impl Into<String>) -> Self {
        Self { objects, place: place.into() }
    }

    /// What was written for a claim so far.
    pub async fn claim(
        &self,
        spec: &ClaimSpec,
        uid: &str,
        began: Timestamp,
    ) -> Result<ClaimLedger, Error> {
        let mut ledger = ClaimLedger::new(spec.clone(), uid.to_owned(), began);
        ledger.rows = self.since(uid, 0).await?;
        Ok(ledger)
    }

    /// Brings a claim's ledger up to a time, by when its machine has cost `billed`. Returns what the
    /// claim has cost.
    pub async fn bring_up(
        &self,
        ledger: &mut ClaimLedger,
        until: Timestamp,
        billed: Usd,
        last: bool,
    ) -> Result<Usd, Error> {
        if !ledger.is_closed()
            && let Some(row) = ledger.next_row(until, billed, last)?
        {
            self.append(&row).await?;
            ledger.rows.push(row);
        }
        Ok(ledger.total()?)
    }

    /// A machine's last row is written, and this is what it cost: where rows hold more, one more takes
    /// it back. Returns what it has cost.
    ///
    /// # Errors
    /// The ledger cannot be written, or the amount does not fit.
    pub async fn correct(&self, ledger: &mut ClaimLedger, billed: Usd) -> Result<Usd, Error> {
        if billed < ledger.total()?
            && let Some(row) = ledger.correction(billed)?
        {
            self.append(&row).await?;
            ledger.rows.push(row);
        }
        Ok(ledger.total()?)
    }

    /// The ledger of a machine that no claim wants. Who it worked for is known from rows of its claim, if
    /// there are any; where these are another machine's, or its claim has another (`surplus`), it has a
    /// ledger [`beside`] them. `None`: it is closed already.
    pub async fn of_orphan(
        &self,
        identity: &Identity,
        instance: &str,
        offer: Offer,
        began: Timestamp,
        surplus: bool,
    ) -> Result<Option<ClaimLedger>, Error> {
        let of_claim = self.since(&identity.claim_uid, 0).await?;
        let own = |row: &Row| row.instance.is_empty() || row.instance == instance;
        let (claim_uid, rows) = match !surplus && of_claim.iter().all(own) {
            true => (identity.claim_uid.clone(), of_claim.clone()),
            false => {
                let uid = beside(&identity.claim_uid, instance);
                let rows = self.since(&uid, 0).await?;
                (uid, rows)
            }
        };
        let began = rows.first().map_or(began, |row| row.from);
        let first = of_claim.first();
        let owner = WorkloadId {
            kind: OwnerKind::TrainingJob,
            namespace: identity.namespace.clone(),
            name: first.map(|row| row.job.clone()).unwrap_or_default(),
            uid: first.map(|row| row.job_uid.clone()).unwrap_or_default(),
        };
        let spec = spec_of_nobody(identity.claim.clone(), owner, offer, began);
        let instance = instance.to_owned();
        let budgets = of_claim.last().map(|row| row.budgets.clone());
        let ledger = ClaimLedger { spec, claim_uid, instance, began, rows, budgets };
        Ok((!ledger.is_closed()).then_some(ledger))
    }

    /// Accounts at a provider whose last row is to come. Reads all rows.
    pub async fn open_at(&self, provider: &str) -> Result<Vec<Open>, Error> {
        let mut open = BTreeMap::new();
        for row in self.rows().await?.iter().filter(|row| row.provider == provider) {
            match row.kind {
                RowKind::Running => drop(open.insert(row.claim_uid.clone(), Open::of(row))),
                RowKind::Final | RowKind::Orphan | RowKind::Correction => {
                    open.remove(&row.claim_uid);
                }
            }
        }
        Ok(open.into_values().collect())
    }

    /// The account of this uid, known by its rows alone: its claim is gone, and its machine too. `None`:
    /// there is no such account, or it is closed.
    pub async fn of_nobody(&self, uid: &str) -> Result<Option<ClaimLedger>, Error> {
        let rows = self.since(uid, 0).await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let owner = WorkloadId {
            kind: OwnerKind::TrainingJob,
            namespace: first.namespace.clone(),
            name: first.job.clone(),
            uid: first.job_uid.clone(),
        };
        let (began, instance) = (first.from, first.instance.clone());
        let spec = spec_of_nobody(first.claim.clone(), owner, offer_of(first), began);
        let ledger =
            ClaimLedger { rows, instance, ..ClaimLedger::new(spec, uid.to_owned(), began) };
        Ok((!ledger.is_closed()).then_some(ledger))
    }

    /// Closes the ledger of a machine whose claim is lost: what it had cost by when it ended.
    pub async fn close_orphan(
        &self,
        ledger: &ClaimLedger,
        ended: Timestamp,
        billed: Usd,
    ) -> Result<Option<Row>, Error> {
        let row = ledger.orphan_row(ended, billed)?;
        if let Some(row) = &row {
            self.append(row).await?;
        }
        Ok(row)
    }

    /// All rows, oldest span first.
    pub async fn rows(&self) -> Result<Vec<Row>, Error> {
        Ok(oldest_first(self.fetch(self.objects.list(None), |_| true).await?))
    }

    /// Rows, oldest span first, with all whose spans begin at this time or later. A row is written when
    /// its span is over, so those that were written long before are not even read.
    pub async fn rows_from(&self, from: Timestamp) -> Result<Vec<Row>, Error> {
        let earliest = from.saturating_sub(CLOCKS).unwrap_or(Timestamp::MIN).as_second();
        let late = |meta: &ObjectMeta| meta.last_modified.timestamp() >= earliest;
        Ok(oldest_first(self.fetch(self.objects.list(None), late).await?))
    }

    /// The rows of a claim beyond the first so many, in order.
    pub async fn since(&self, uid: &str, rows: u64) -> Result<Vec<Row>, Error> {
        let prefix = Path::from(uid);
        let listed = match rows.checked_sub(1) {
            None => self.objects.list(Some(&prefix)),
            Some(last) => {
                self.objects.list_with_offset(Some(&prefix), &location(&row_key(uid, last)))
            }
        };
        let mut rows = self.fetch(listed, |_| true).await?;
        rows.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(rows)
    }

    /// Reads of what is listed the rows that are wanted.
    async fn fetch(
        &self,
        listed: BoxStream<'static, object_store::Result<ObjectMeta>>,
        wanted: impl Fn(&ObjectMeta) -> bool,
    ) -> Result<Vec<Row>, Error> {
        let is_row = |meta: &ObjectMeta| meta.location.extension() == Some("json");
        listed
            .try_filter(|meta| std::future::ready(is_row(meta) && wanted(meta)))
            .map_err(|error| self.store(error))
            .map(|meta| async move { self.read(&meta?.location).await })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await
    }

    async fn read(&self, location: &Path) -> Result<Row, Error> {
        let got = self.objects.get(location).await.map_err(|error| self.store(error))?;
        let bytes = got.bytes().await.map_err(|error| self.store(error))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Damaged {
            place: self.place.clone(),
            key: location.to_string(),
            what: error.to_string(),
        })
    }

    async fn append(&self, row: &Row) -> Result<(), Error> {
        let location = location(&row.key);
        let text = serde_json::to_vec_pretty(row).map_err(|error| Error::Damaged {
            place: self.place.clone(),
            key: row.key.clone(),
            what: error.to_string(),
        })?;
        match self.objects.put_opts(&location, text.into(), PutMode::Create.into()).await {
            Ok(_) => Ok(()),
            // Written before a crash: then it is the same row.
            Err(object_store::Error::AlreadyExists { .. }) => {
                match self.read(&location).await? == *row {
                    true => Ok(()),
                    false => {
                        Err(Error::Conflict { place: self.place.clone(), key: row.key.clone() })
                    }
                }
            }
            Err(error) => Err(self.store(error)),
        }
    }

    fn store(&self, source: object_store::Error) -> Error {
        Error::Store { place: self.place.clone(), source }
    }
}

/// An account without a last row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// Uid that its rows are kept under: of its claim, or [`beside`] that.
    pub uid: String,
    /// Namespace of its claim.
    pub namespace: String,
    /// Name of its claim.
    pub claim: String,
    /// The provider's name of its machine; empty where rows are too old to say.
    pub instance: String,
    /// Name of the provider.
    pub provider: String,
    /// Until when it is booked.
    pub until: Timestamp,
}

impl Open {
    /// The account that a row is of.
    pub fn of(row: &Row) -> Self {
        Self {
            uid: row.claim_uid.clone(),
            namespace: row.namespace.clone(),
            claim: row.claim.clone(),
            instance: row.instance.clone(),
            provider: row.provider.clone(),
            until: row.to,
        }
    }

    /// Uid of its claim.
    pub fn claim_uid(&self) -> &str {
        self.uid.split('.').next().unwrap_or_default()
    }
}

/// What a claim was that nobody has any more, as far as a ledger needs it.
fn spec_of_nobody(name: String, owner: WorkloadId, offer: Offer, began: Timestamp) -> ClaimSpec {
    ClaimSpec {
        name,
        owner,
        placement: 0,
        index: 0,
        offer,
        device: Device::Cpu,
        reserved: Usd::ZERO,
        decided_at: began,
        revision: None,
        checkpoint_interval_seconds: None,
        runners_up: Vec::new(),
    }
}

/// What was bought, as far as a row tells: enough to say what it costs.
fn offer_of(row: &Row) -> Offer {
    let Row { provider, region, zone, instance_type, accelerator, capacity, .. } = row;
    let model = (!accelerator.is_empty()).then(|| accelerator.clone());
    Offer {
        id: Offer::id_of(provider, region, zone, instance_type, *capacity),
        provider: provider.clone(),
        region: region.clone(),
        zone: zone.clone(),
        instance_type: instance_type.clone(),
        accelerators: model.map(|model| Accelerators { model, count: 1, memory: None }),
        arch: Arch::X86_64,
        vcpu_milli: None,
        memory: None,
        capacity: *capacity,
        price: row.rate,
        quoted_at: row.from,
        ttl_seconds: 0,
        owner: HostOwner::Unknown,
        sale: Sale::Snapshot { observed_on: None },
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

fn oldest_first(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| (a.from, &a.key).cmp(&(b.from, &b.key)));
    rows
}

/// Where a row is kept.
fn location(key: &str) -> Path {
    Path::from(format!("{key}.json"))
}

#[cfg(test)]
mod tests;
