//! How the cloud behaves when it behaves.

use std::time::Duration;

/// Whose interface it resembles where the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Errors by code; a token makes creating idempotent.
    Aws,
    /// Errors by words alone, 400 for a broken rule and for no capacity alike; creating twice makes two.
    RunPod,
}

/// The whole of its behaviour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Manners {
    /// Whose interface it resembles.
    pub style: Style,
    /// Whether the same token gives the same machine.
    pub idempotent: bool,
    /// How long after a call ended its machine may be in no list, as the provider is told.
    pub settle: Duration,
    /// From creating to running.
    pub boot: Duration,
    /// From the request to end until it is gone. It bills that long.
    pub shutdown: Duration,
    /// Time is billed in these, each begun one in full. At least a second.
    pub granularity: Duration,
    /// The least that is billed.
    pub minimum: Duration,
    /// Machines a page of a list.
    pub page: usize,
}

impl Manners {
    /// Like AWS: tokens, at least a minute, then by the second.
    pub const fn aws() -> Self {
        Self {
            style: Style::Aws,
            idempotent: true,
            settle: Duration::from_secs(30),
            boot: Duration::from_secs(20),
            shutdown: Duration::from_secs(5),
            granularity: Duration::from_secs(1),
            minimum: Duration::from_secs(60),
            page: 5,
        }
    }

    /// Like RunPod: names only, by the second.
    pub const fn runpod() -> Self {
        Self {
            style: Style::RunPod,
            idempotent: false,
            settle: Duration::from_secs(60),
            boot: Duration::from_secs(10),
            shutdown: Duration::ZERO,
            granularity: Duration::from_secs(1),
            minimum: Duration::ZERO,
            page: 100,
        }
    }

    /// Like those that bill each begun minute.
    pub const fn by_the_minute() -> Self {
        Self { granularity: Duration::from_secs(60), ..Self::runpod() }
    }
}
