//! What can go wrong with a provider. Every error answers two questions by an
//! exhaustive match: when to try again ([`Retry`]), and the CamelCase reason that
//! appears, the same string, in conditions, events and metrics.

use std::time::Duration;

use jiff::Timestamp;
use petaflop_arbiter::claim::{LaunchAnswer, Refusal};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::reason::Reason;

use crate::provider::InstanceId;

/// When it makes sense to try the same call again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// After this long.
    After(Duration),
    /// Not before a person has changed something.
    AfterChange,
    /// Never with this offer: decide again without it.
    ElsewhereFor(Duration),
}

/// A provider could not do what was asked. Nothing was bought: for launches see [`LaunchError`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// There are no credentials.
    #[error("{provider}: {detail}")]
    NoCredentials {
        /// The provider.
        provider: String,
        /// Where they were looked for, and the mend.
        detail: String,
    },
    /// Credentials are refused.
    #[error("{provider}: not authorised: {detail}")]
    Unauthorized {
        /// The provider.
        provider: String,
        /// What it said.
        detail: String,
    },
    /// Too many calls.
    #[error("{provider}: asked to slow down for {} s", wait.as_secs())]
    RateLimited {
        /// The provider.
        provider: String,
        /// How long it wants to be left alone.
        wait: Duration,
    },
    /// No answer, or none that makes sense.
    #[error("{provider}: {detail}")]
    Unreachable {
        /// The provider.
        provider: String,
        /// What happened.
        detail: String,
    },
    /// The provider's set-up is wrong.
    #[error("{provider}: {detail}")]
    Misconfigured {
        /// The provider.
        provider: String,
        /// What is wrong, and the mend.
        detail: String,
    },
    /// The provider has switched this interface off (410). Says nothing about instances.
    #[error("{provider}: this interface was switched off: {detail}")]
    Retired {
        /// The provider.
        provider: String,
        /// What it said.
        detail: String,
    },
    /// This provider does not do this (a price snapshot sells nothing).
    #[error("{provider}: {detail}")]
    NotOffered {
        /// The provider.
        provider: String,
        /// What, and what to use instead.
        detail: String,
    },
}

impl ProviderError {
    /// The reason in conditions, events and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::NoCredentials { .. } => Reason::SecretNotFound,
            Self::Unauthorized { .. } => Reason::Unauthorized,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::Unreachable { .. } => Reason::Unreachable,
            Self::Misconfigured { .. } => Reason::InvalidSpec,
            Self::Retired { .. } => Reason::ApiRetired,
            Self::NotOffered { .. } => Reason::ProviderUnavailable,
        }
    }

    /// When to try again.
    pub fn retry(&self) -> Retry {
        match self {
            Self::RateLimited { wait, .. } => Retry::After(*wait),
            Self::Unreachable { .. } => Retry::After(Duration::from_secs(10)),
            Self::NoCredentials { .. }
            | Self::Unauthorized { .. }
            | Self::Misconfigured { .. }
            | Self::Retired { .. }
            | Self::NotOffered { .. } => Retry::AfterChange,
        }
    }
}

/// How a launch ended, when not with an instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// A definite no: nothing was started, nothing bills.
    #[error("{}: {detail}", kind.reason())]
    Refused {
        /// What kind of no.
        kind: Refusal,
        /// The provider's words.
        detail: String,
    },
    /// A definite no for now: nothing was started, and nothing will be before this long.
    #[error("asked to slow down for {} s: {detail}", wait.as_secs())]
    Later {
        /// How long the provider wants to be left alone.
        wait: Duration,
        /// The provider's words.
        detail: String,
    },
    /// What was made is not what was decided on: dearer, or elsewhere. It was ended at once, and cost
    /// something.
    #[error("{}: {detail}", kind.reason())]
    GivenBack {
        /// As what it is taken.
        kind: Refusal,
        /// What it cost.
        waste: Box<Waste>,
        /// What was wrong with it.
        detail: String,
    },
    /// The answer was lost or says nothing: an instance may exist. Find out by
    /// identity before anything else; never launch again on this.
    #[error("unclear whether the launch happened: {detail}")]
    Ambiguous {
        /// What is known.
        detail: String,
    },
}

/// A definite no to a purchase.
#[cfg(any(feature = "aws", feature = "nodes", feature = "runpod"))]
pub(crate) fn refused(kind: Refusal, detail: impl Into<String>) -> LaunchError {
    LaunchError::Refused { kind, detail: detail.into() }
}

impl LaunchError {
    /// The reason in conditions, events and metrics.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused { kind, .. } | Self::GivenBack { kind, .. } => kind.reason(),
            Self::Later { .. } => Reason::RateLimited,
            Self::Ambiguous { .. } => Reason::LaunchAmbiguous,
        }
    }

    /// When to try again. An ambiguous launch is never repeated; its wait is until the next look.
    pub fn retry(&self) -> Retry {
        match self {
            Self::Later { wait, .. } => Retry::After(*wait),
            Self::Refused { kind, .. } | Self::GivenBack { kind, .. } => match kind {
                Refusal::NoCapacity => Retry::ElsewhereFor(Duration::from_secs(180)),
                Refusal::Quota => Retry::ElsewhereFor(Duration::from_secs(900)),
                Refusal::PriceChanged => Retry::ElsewhereFor(Duration::from_secs(60)),
                Refusal::RateLimited => Retry::After(Duration::from_secs(30)),
                Refusal::Transient => Retry::After(Duration::from_secs(10)),
                Refusal::Unauthorized
                | Refusal::BalanceTooLow
                | Refusal::Retired
                | Refusal::Invalid => Retry::AfterChange,
            },
            Self::Ambiguous { .. } => Retry::After(Duration::from_secs(5)),
        }
    }

    /// What the buying protocol makes of it.
    pub fn answer(&self) -> LaunchAnswer {
        match self {
            Self::Refused { kind, .. } | Self::GivenBack { kind, .. } => {
                LaunchAnswer::Refused(*kind)
            }
            Self::Later { .. } => LaunchAnswer::Refused(Refusal::RateLimited),
            Self::Ambiguous { .. } => LaunchAnswer::Unclear,
        }
    }
}

/// A machine that was paid for and never used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waste {
    /// The provider's name of it.
    pub instance: InstanceId,
    /// What an hour of it cost.
    pub price: UsdPerHour,
    /// When it began to bill.
    pub from: Timestamp,
    /// When it was told to end, and did.
    pub to: Timestamp,
}
