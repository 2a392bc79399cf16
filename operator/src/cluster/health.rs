//! What the probes ask: whether this process is alive, and whether it should be talked to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cluster::metrics::Metrics;

/// A pass that takes longer than this hangs: every wait in one is bounded well below.
const STUCK: Duration = Duration::from_secs(15 * 60);

/// How far this process is. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Health {
    flags: Arc<Flags>,
}

#[derive(Debug, Default)]
struct Flags {
    filled: AtomicBool,
    begun: AtomicBool,
    draining: AtomicBool,
}

impl Health {
    /// Every watch has listed its objects once.
    pub fn filled(&self) {
        self.flags.filled.store(true, Ordering::Relaxed);
    }

    /// It leads, and has read claims and ledger; or no longer.
    pub fn begun(&self, begun: bool) {
        self.flags.begun.store(begun, Ordering::Relaxed);
    }

    /// It was asked to end: nobody new should talk to it.
    pub fn drain(&self) {
        self.flags.draining.store(true, Ordering::Relaxed);
    }

    /// Whether it leads and knows claims, offers and money.
    pub fn has_begun(&self) -> bool {
        self.flags.begun.load(Ordering::Relaxed)
    }

    /// Whether it should be talked to, else why not. A replica that stands by is ready. So is one
    /// whose API server is away: what it knows can still be asked for, and no other replica knows more.
    pub fn ready(&self) -> Result<(), &'static str> {
        if self.flags.draining.load(Ordering::Relaxed) {
            return Err("draining");
        }
        match self.flags.filled.load(Ordering::Relaxed) {
            true => Ok(()),
            false => Err("the first lists of the API server's objects are not complete"),
        }
    }

    /// Whether the controllers turn, else what hangs.
    pub fn alive(&self, metrics: &Metrics) -> Result<(), String> {
        let longest = metrics.longest_under_way();
        match longest < STUCK {
            true => Ok(()),
            false => Err(format!("a pass has been under way for {} s", longest.as_secs())),
        }
    }
}
