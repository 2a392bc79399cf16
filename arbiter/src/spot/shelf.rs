//! Tables that are ready: made off the decision path, named in a recorded world by what they are made of.
//!
//! A table follows from its [`Key`] alone. So a world holds keys, and whoever replays a decision makes the tables again that it
//! looks into; a key's hash covers the version of the code that made it, and a world of another version is refused.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::law::Shape;
use super::table::{LawIndex, Spec, Table, Tables};

/// Raised whenever the same key makes another table.
const VERSION: u32 = 1;

/// Bytes of all tables that are kept; the one that was made first goes first.
pub const MOST_BYTES: usize = 32 << 20;

/// What a table is made of, beside the shape of the law, which is the shipped one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Key {
    /// The job's side.
    pub spec: Spec,
    /// The market's side.
    pub law: LawIndex,
}

impl Key {
    /// Hash of all that the table depends on: blake3, 32 hex digits.
    pub fn hash(&self) -> String {
        let json = serde_json::to_vec(&(VERSION, self)).expect("a key is numbers");
        let mut hasher = blake3::Hasher::new();
        hasher.update(&json);
        let Shape { down, up } = Shape::default();
        down.iter().chain(&up).for_each(|hazard| {
            hasher.update(&hazard.to_bits().to_le_bytes());
        });
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// Makes the table: up to a second of one processor.
    pub fn make(&self) -> Arc<Table> {
        Arc::new(Table::made(&self.spec, &Shape::default(), self.law))
    }
}

/// A table, made when it is first looked into where it was only named.
#[derive(Clone, Debug)]
struct Kept {
    order: u64,
    table: Arc<OnceLock<Arc<Table>>>,
}

/// Tables that are ready. A clone shares them.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    kept: BTreeMap<Key, Kept>,
}

/// What is written of a table.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Named {
    hash: String,
    #[serde(flatten)]
    key: Key,
}

impl Shelf {
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether it is there.
    pub fn has(&self, key: &Key) -> bool {
        self.kept.contains_key(key)
    }

    /// Puts a table there; those made first go, where all take more than [`MOST_BYTES`].
    pub fn put(&mut self, key: Key, table: Arc<Table>) {
        self.name(key).table.get_or_init(|| table);
        let bytes = |kept: &Kept| kept.table.get().map_or(0, |table| table.bytes());
        while self.kept.len() > 1 && self.kept.values().map(bytes).sum::<usize>() > MOST_BYTES {
            let oldest = self.kept.iter().min_by_key(|(_, kept)| kept.order);
            let Some(oldest) = oldest.map(|(key, _)| *key) else { break };
            self.kept.remove(&oldest);
        }
    }

    fn name(&mut self, key: Key) -> &Kept {
        let order = self.kept.values().map(|kept| kept.order + 1).max().unwrap_or(0);
        self.kept.entry(key).or_insert_with(|| Kept { order, table: Arc::default() })
    }

    /// What is ready of a job's tables.
    pub fn tables(&self, spec: Spec) -> Tables {
        let mut tables = Tables::made_beforehand(spec, Shape::default());
        for (key, kept) in self.kept.iter().filter(|(key, _)| key.spec == spec) {
            tables.put(key.law, Arc::clone(kept.table.get_or_init(|| key.make())));
        }
        tables
    }
}

/// Equal shelves name the same tables.
impl PartialEq for Shelf {
    fn eq(&self, other: &Self) -> bool {
        self.kept.keys().eq(other.kept.keys())
    }
}

impl Serialize for Shelf {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_seq(self.kept.keys().map(|key| Named { hash: key.hash(), key: *key }))
    }
}

impl<'de> Deserialize<'de> for Shelf {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let mut shelf = Shelf::default();
        for Named { hash, key } in Vec::<Named>::deserialize(from)? {
            if !key.spec.is_makeable() || !key.law.is_of_the_grid() {
                return Err(D::Error::custom(format!("no table can be made of {key:?}")));
            }
            let ours = key.hash();
            if hash != ours {
                let said =
                    "was made by another version of this program, which would decide otherwise";
                return Err(D::Error::custom(format!("table {hash} is {ours} here: it {said}")));
            }
            shelf.name(key);
        }
        Ok(shelf)
    }
}
