//! Keeping gc and writers apart in a bucket, where there is no lock.
//!
//! ```text
//! gc/<random>    "running" while a gc removes things, then "done"
//! ```
//!
//! 1. A writer leaves a chunk in place that it finds there only where that is younger than
//!    [`TRUSTED`]; an older one it writes again, which makes it young. It has [`LONGEST_PUT`]
//!    from its first chunk to its manifest.
//! 2. gc removes nothing younger than [`REMOTE_MIN_AGE`], whatever it is told.
//! 3. A writer that finds that a gc ran since it began looks at all its chunks again, before
//!    it writes the manifest.
//!
//! So a chunk that a writer counts on is safe. If gc began before the writer's last look, rule 3
//! catches what it took. If it began later, the chunk was then younger than `TRUSTED + LONGEST_PUT`,
//! which is less than `REMOTE_MIN_AGE`, with half a day to spare for clocks that differ.

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use object_store::{PutMode, path::Path};

use crate::{Store, StoreError, store::timestamp};

/// gc in a bucket removes nothing younger.
pub const REMOTE_MIN_AGE: Duration = Duration::from_secs(48 * 3600);
/// A chunk in a bucket that is younger is not written again.
pub(crate) const TRUSTED: Duration = Duration::from_secs(24 * 3600);
/// An artifact takes no longer to be written to a bucket.
pub(crate) const LONGEST_PUT: Duration = Duration::from_secs(12 * 3600);
/// A gc stops by itself after this long; another goes on where it stopped.
pub(crate) const LONGEST_GC: Duration = Duration::from_secs(30 * 60);
/// One that says "running" for longer is dead, and so are its last calls.
const DEAD: Duration = Duration::from_secs(3600);
/// How long a writer waits for a gc.
const PATIENCE: Duration = Duration::from_secs(45 * 60);

const RUNNING: &[u8] = b"running";
const DONE: &[u8] = b"done";

/// Which gcs there were so far.
pub(crate) type Sweeps = BTreeSet<(String, Option<String>)>;

impl Store {
    /// All gcs that have ended; one that runs is waited for.
    pub(crate) async fn sweeps(&self) -> Result<Sweeps, StoreError> {
        let waiting = tokio::time::Instant::now();
        loop {
            let mut ended = Sweeps::new();
            let mut running = false;
            for meta in self.list_under("gc").await? {
                let age = jiff::Timestamp::now().duration_since(timestamp(&meta));
                if Duration::try_from(age).unwrap_or_default() < DEAD {
                    running |= self.get(&meta.location).await?.is_some_and(|said| said == RUNNING);
                }
                ended.insert((meta.location.to_string(), meta.e_tag));
            }
            if !running {
                return Ok(ended);
            }
            if waiting.elapsed() > PATIENCE {
                return Err(StoreError::Busy { store: self.name().to_owned() });
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Says that a gc runs; old signs go.
    pub(crate) async fn begin_sweep(&self) -> Result<Path, StoreError> {
        for meta in self.list_under("gc").await? {
            let age = jiff::Timestamp::now().duration_since(timestamp(&meta));
            if Duration::try_from(age).unwrap_or_default() > REMOTE_MIN_AGE {
                self.remove(&meta.location).await?;
            }
        }
        let nanoseconds = jiff::Timestamp::now().as_nanosecond();
        let sign = Path::from_iter(["gc", &format!("{nanoseconds:x}-{}", std::process::id())]);
        self.put(&sign, Bytes::from_static(RUNNING), PutMode::Create).await?;
        Ok(sign)
    }

    /// Says that it has ended, well or badly: it removes nothing any more.
    pub(crate) async fn end_sweep(&self, sign: &Path) -> Result<(), StoreError> {
        self.put(sign, Bytes::from_static(DONE), PutMode::Overwrite).await.map(drop)
    }
}
