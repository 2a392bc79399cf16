//! What decisions about a job keep between them: what one with a deadline saw of places for spot, how fast it was; and tables, which
//! are made beside the decisions that ask for them. Of this process: who starts anew begins with R1, and learns again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use petaflop_arbiter::decision::Plan;
use petaflop_arbiter::estimate::Correction;
use petaflop_arbiter::spot::shelf::{Key, Shelf};
use petaflop_arbiter::watch::Watch;
use petaflop_arbiter::workload::Workload;

/// Tables that may be waited for; whoever wants more asks again.
const MOST_WANTED: usize = 16;

/// What the spot policies keep. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Spot(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// By uid of the workload.
    watched: BTreeMap<String, Watch>,
    /// How fast jobs were where they ran last, by uid.
    measured: BTreeMap<String, Correction>,
    shelf: Shelf,
    wanted: Vec<Key>,
    /// Somebody makes them.
    busy: bool,
}

impl Spot {
    /// What these saw, for a world.
    pub fn watched(&self, workloads: &[Workload]) -> Vec<Watch> {
        let inner = self.inner();
        let seen = workloads.iter().filter_map(|workload| inner.watched.get(&workload.id.uid));
        seen.cloned().collect()
    }

    /// How fast a job is, or was when that was known last.
    pub fn measured(&self, uid: &str, now: Option<Correction>) -> Option<Correction> {
        let mut inner = self.inner();
        match now {
            Some(now) => {
                inner.measured.insert(uid.to_owned(), now.clone());
                Some(now)
            }
            None => inner.measured.get(uid).cloned(),
        }
    }

    /// The tables that are ready, for a world.
    pub fn tables(&self) -> Shelf {
        self.inner().shelf.clone()
    }

    /// Takes in what a plan says; what it lacked is made, one table after the other, on a thread for that.
    pub fn take_in(&self, plan: &Plan) {
        let mut inner = self.inner();
        let seen = plan.watched.iter().map(|watch| (watch.workload.clone(), watch.clone()));
        inner.watched.extend(seen);
        for key in &plan.tables {
            let known = inner.wanted.contains(key) || inner.shelf.has(key);
            if !known && inner.wanted.len() < MOST_WANTED {
                inner.wanted.push(*key);
            }
        }
        if !inner.wanted.is_empty() && !inner.busy {
            inner.busy = true;
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.make());
        }
    }

    /// Forgets jobs that are over.
    pub fn forget_but(&self, is_there: impl Fn(&str) -> bool) {
        let mut inner = self.inner();
        inner.watched.retain(|uid, _| is_there(uid));
        inner.measured.retain(|uid, _| is_there(uid));
    }

    fn make(&self) {
        loop {
            let next = {
                let mut inner = self.inner();
                inner.busy = !inner.wanted.is_empty();
                inner.wanted.first().copied()
            };
            let Some(key) = next else { return };
            let table = key.make();
            let mut inner = self.inner();
            inner.shelf.put(key, table);
            inner.wanted.retain(|wanted| *wanted != key);
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
