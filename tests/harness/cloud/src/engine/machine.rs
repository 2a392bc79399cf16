//! A rented machine and its life.

use jiff::Timestamp;

use super::product::{ProductId, Sale};
use crate::host::Boot;

/// Where in its life a machine is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Bought, no host yet.
    Provisioning,
    /// On a host that fetches the image.
    Starting,
    /// Its program runs.
    Running,
    /// Its program does not run; what it keeps bills on.
    Exited,
    /// It will be gone soon, and bills no longer.
    Ending,
    /// Gone, for ever.
    Terminated,
}

/// Why a machine no longer runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Whoever rents it said so.
    User,
    /// Its own program ended.
    Process,
    /// The provider wanted it back, or its host died.
    Evicted,
    /// The market's price passed what was bid.
    Price,
    /// The account has no money left.
    Balance,
    /// Its own deadline came.
    Deadline,
}

impl Why {
    /// The provider took it back.
    pub(super) fn is_taken(self) -> bool {
        matches!(self, Self::Evicted | Self::Price)
    }
}

/// What becomes of a machine that runs no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is kept, and what it keeps bills.
    Stops,
    /// It is terminated.
    Ends,
}

/// What becomes of a machine that nobody told to stop or end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AtEnd {
    /// Its program ended.
    pub program: Outcome,
    /// The provider took it back.
    pub eviction: Outcome,
}

impl AtEnd {
    /// It is kept whatever happens.
    pub const KEPT: Self = Self { program: Outcome::Stops, eviction: Outcome::Stops };
}

/// That a machine will be taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notice {
    /// When it was told so.
    pub given: Timestamp,
    /// When it is taken away.
    pub due: Timestamp,
    /// Why.
    pub why: Why,
}

/// What is bought.
#[derive(Clone, Debug)]
pub struct Order {
    /// By what people find it.
    pub name: String,
    /// What.
    pub product: ProductId,
    /// How much of it.
    pub units: u32,
    /// How.
    pub sale: Sale,
    /// GB of disk that live while it runs.
    pub disk: u32,
    /// GB of disk that live until it is terminated.
    pub volume: u32,
    /// What starts on it.
    pub boot: Boot,
    /// When the provider stops it by itself.
    pub stop_after: Option<Timestamp>,
    /// When the provider terminates it by itself.
    pub end_after: Option<Timestamp>,
    /// What becomes of it when it ends by itself or is taken away.
    pub at_end: AtEnd,
}

/// A rented machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The provider's id.
    pub id: String,
    /// As it was bought; name, disks and boot can be changed later.
    pub order: Order,
    /// Micro-dollars an hour for all of its units, agreed when bought.
    pub rate: i64,
    /// Where in its life.
    pub life: Life,
    /// When it was bought.
    pub created: Timestamp,
    /// When its program last started.
    pub started: Option<Timestamp>,
    /// When, and why, it stopped running.
    pub stopped: Option<(Timestamp, Why)>,
    /// It was told that it will be taken away.
    pub noticed: Option<Notice>,
    /// When, and why, it began to end for ever.
    pub leaving: Option<(Timestamp, Why)>,
    /// When it was terminated.
    pub ended: Option<Timestamp>,
    /// Its host never gets as far as the program.
    pub stuck: bool,
    /// Number of the attempt that runs; events of earlier ones are void.
    pub(super) attempt: u32,
}

impl Machine {
    /// It holds units of its product.
    pub fn holds_units(&self) -> bool {
        matches!(self.life, Life::Provisioning | Life::Starting | Life::Running)
    }
}
