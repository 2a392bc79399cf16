//! What several tasks remember together: sets of keys, and since when somebody waits.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A set of keys. Clones are the same set.
#[derive(Debug)]
pub struct Shared<K>(Arc<Mutex<HashSet<K>>>);

impl<K> Clone for Shared<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K> Default for Shared<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Eq + Hash> Shared<K> {
    /// Adds a key. Returns whether it was not there.
    pub fn insert(&self, key: K) -> bool {
        self.lock().insert(key)
    }

    /// Takes a key out. Returns whether it was there.
    pub fn remove(&self, key: &K) -> bool {
        self.lock().remove(key)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<K>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who waits, and since when (time since boot). Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Waiting(Arc<Mutex<HashMap<String, Duration>>>);

impl Waiting {
    /// How long somebody has waited. Whoever begins to is announced.
    pub fn since(&self, uid: &str, now: Duration, begins: impl FnOnce()) -> Duration {
        let mut waiting = self.lock();
        if let Some(since) = waiting.get(uid) {
            return now.saturating_sub(*since);
        }
        waiting.insert(uid.to_owned(), now);
        drop(waiting);
        begins();
        Duration::ZERO
    }

    /// Somebody waits no more.
    pub fn remove(&self, uid: &str) {
        self.lock().remove(uid);
    }

    /// Whether somebody waits.
    pub fn contains(&self, uid: &str) -> bool {
        self.lock().contains_key(uid)
    }

    /// Nobody does.
    pub fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Duration>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
