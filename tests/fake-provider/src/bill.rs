//! The cloud's own ledger: what was bought, when it ended, what that costs. On
//! disk, one line an entry, so that a cloud that is killed and started again
//! still knows. Integer micro-dollars; each begun unit of time in full.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manners::Manners;

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", tag = "entry")]
pub enum Entry {
    /// Something begins to bill.
    Began {
        /// Number of the thing.
        id: String,
        /// Whose it is: the identity it carries, or empty.
        identity: String,
        /// Micro-dollars an hour.
        micros_per_hour: i64,
        /// When.
        at: Timestamp,
    },
    /// It bills no more.
    Ended {
        /// Number of the thing.
        id: String,
        /// When.
        at: Timestamp,
    },
}

/// One thing on the bill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Whose it is: the identity it carries, or empty.
    pub identity: String,
    /// Micro-dollars an hour.
    pub micros_per_hour: i64,
    /// When it began to bill.
    pub began: Timestamp,
    /// When it ceased.
    pub ended: Option<Timestamp>,
}

/// The ledger.
#[derive(Debug)]
pub struct Bill {
    file: File,
    items: BTreeMap<String, Item>,
}

impl Bill {
    /// Reads what there is and goes on from there.
    ///
    /// # Errors
    /// When the file cannot be read, or holds something else.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        let mut bill = Self { file: file.try_clone()?, items: BTreeMap::new() };
        for line in BufReader::new(file).lines() {
            bill.take(serde_json::from_str(&line?)?);
        }
        Ok(bill)
    }

    /// Writes an entry down; it is on the disk when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn enter(&mut self, entry: Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()?;
        self.take(entry);
        Ok(())
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::Began { id, identity, micros_per_hour, at } => {
                self.items.insert(id, Item { identity, micros_per_hour, began: at, ended: None });
            }
            Entry::Ended { id, at } => {
                if let Some(item) = self.items.get_mut(&id) {
                    item.ended.get_or_insert(at);
                }
            }
        }
    }

    /// Everything that was ever billed, by number.
    pub fn items(&self) -> &BTreeMap<String, Item> {
        &self.items
    }

    /// Micro-dollars by identity, up to now.
    pub fn by_identity(&self, manners: &Manners, now: Timestamp) -> BTreeMap<String, i64> {
        let mut sums = BTreeMap::new();
        for item in self.items.values() {
            *sums.entry(item.identity.clone()).or_default() += item.micros(manners, now);
        }
        sums
    }
}

impl Item {
    /// What it costs up to now.
    pub fn micros(&self, manners: &Manners, now: Timestamp) -> i64 {
        let until = self.ended.unwrap_or(now);
        let lasted = Duration::try_from(until.duration_since(self.began)).unwrap_or(Duration::ZERO);
        cost(lasted, self.micros_per_hour, manners)
    }
}

/// Begun units in full, at least the minimum, half micro-dollars rounded up.
fn cost(lasted: Duration, micros_per_hour: i64, manners: &Manners) -> i64 {
    let unit = manners.granularity.as_millis().max(1000);
    let millis = lasted.as_millis().max(manners.minimum.as_millis());
    let billed = i128::try_from(millis.div_ceil(unit) * unit).unwrap_or(i128::MAX);
    let exact = billed.saturating_mul(i128::from(micros_per_hour));
    i64::try_from((exact + 1_800_000) / 3_600_000).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn begun_units_are_billed_in_full() {
        let hour = 3_600_000_000; // A dollar a second.
        for (manners, millis, dollars) in [
            (Manners::runpod(), 0, 0),
            (Manners::runpod(), 1, 1_000_000),
            (Manners::runpod(), 1000, 1_000_000),
            (Manners::runpod(), 1001, 2_000_000),
            (Manners::aws(), 1, 60_000_000),
            (Manners::aws(), 60_001, 61_000_000),
            (Manners::by_the_minute(), 1, 60_000_000),
            (Manners::by_the_minute(), 60_000, 60_000_000),
            (Manners::by_the_minute(), 60_001, 120_000_000),
        ] {
            let cost = cost(Duration::from_millis(millis), hour, &manners);
            assert_eq!(cost, dollars, "{manners:?} {millis}");
        }
        // Half a micro-dollar is one: 0.0018 $ an hour for a second.
        assert_eq!(cost(Duration::from_secs(1), 1_800, &Manners::runpod()), 1);
        assert_eq!(cost(Duration::from_secs(1), 1_799, &Manners::runpod()), 0);
    }

    #[test]
    fn the_bill_survives_the_cloud() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("bill");
        let at = |second| Timestamp::from_second(second).expect("in range");
        let began = Entry::Began {
            id: "i-1".into(),
            identity: "a/b".into(),
            micros_per_hour: 3_600_000,
            at: at(100),
        };
        let mut bill = Bill::open(&path).expect("opened");
        bill.enter(began).expect("written");
        drop(bill);
        let mut bill = Bill::open(&path).expect("opened again");
        bill.enter(Entry::Ended { id: "i-1".into(), at: at(110) }).expect("written");
        bill.enter(Entry::Ended { id: "i-1".into(), at: at(500) }).expect("written");
        let again = Bill::open(&path).expect("opened again");
        assert_eq!(again.items(), bill.items());
        let sums = again.by_identity(&Manners::runpod(), at(1000));
        assert_eq!(sums, BTreeMap::from([("a/b".to_owned(), 10_000)]));
    }
}
