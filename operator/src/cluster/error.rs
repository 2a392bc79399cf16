//! What can go wrong in a pass, and the two answers that every error has: when to try again, and
//! the reason that appears in condition, event and metric.

use std::time::Duration;

use petaflop_arbiter::reason::Reason;
use petaflop_providers::{ProviderError, Retry};

use crate::act::ActError;
use crate::claims::ClaimsError;
use crate::cluster::patience;
use crate::cluster::queue::Again;
use crate::ledger;

/// Why a pass over one object ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refuses or does not answer.
    #[error("{what}: {}", words(source))]
    Api {
        /// What was being done.
        what: &'static str,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// A claim could not be driven on.
    #[error(transparent)]
    Act(#[from] ActError),
    /// The claims cannot be read or written.
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    /// The ledger cannot be read or written.
    #[error(transparent)]
    Ledger(#[from] ledger::Error),
    /// The store of results cannot be read.
    #[error("the store: {0}")]
    Store(#[from] petaflop_store::StoreError),
    /// Another process leads now.
    #[error("another process leads")]
    NotLeading,
}

impl Error {
    /// From a request to the API server.
    pub fn api(what: &'static str) -> impl FnOnce(kube::Error) -> Self {
        move |source| Self::Api { what, source: Box::new(source) }
    }

    /// When it is worth another try.
    pub fn again(&self) -> Again {
        if let Some(wait) = self.not_before() {
            return Again::NotBefore(wait);
        }
        match self {
            // Somebody wrote first; their writing comes by the watch, or has come.
            Self::Api { source, .. } if is_conflict(source) => Again::LostRace,
            Self::Api { .. } | Self::Claims(_) | Self::Ledger(_) | Self::Store(_) => Again::Backoff,
            Self::Act(ActError::Provider(error)) => provider_again(error),
            Self::Act(ActError::Claims(_) | ActError::Ledger(_)) => Again::Backoff,
            Self::NotLeading => Again::OnChange,
        }
    }

    /// How long the API server asks to be left alone, where it does.
    pub fn not_before(&self) -> Option<Duration> {
        match self {
            Self::Api { source, .. } => patience::asked_for(source),
            Self::Claims(ClaimsError::Store { source, .. })
            | Self::Act(ActError::Claims(ClaimsError::Store { source, .. })) => {
                source.downcast_ref().and_then(patience::asked_for)
            }
            Self::Act(_)
            | Self::Claims(_)
            | Self::Ledger(_)
            | Self::Store(_)
            | Self::NotLeading => None,
        }
    }

    /// The reason that appears.
    pub fn reason(&self) -> Reason {
        match self {
            Self::Act(ActError::Provider(error)) => error.reason(),
            Self::Act(ActError::Claims(_) | ActError::Ledger(_))
            | Self::Api { .. }
            | Self::Claims(_)
            | Self::Ledger(_)
            | Self::Store(_)
            | Self::NotLeading => Reason::Unreachable,
        }
    }
}

fn provider_again(error: &ProviderError) -> Again {
    match error.retry() {
        Retry::After(wait) | Retry::ElsewhereFor(wait) => Again::After(wait),
        // A claim that bills is asked after, whatever was said.
        Retry::AfterChange => Again::Backoff,
    }
}

/// What the API server said, in its own words and in one line; of other errors their causes too,
/// which kube leaves out.
pub fn words(error: &kube::Error) -> String {
    let said = match error {
        kube::Error::Api(status) => status.message.clone(),
        other => chain(other),
    };
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// An error with its causes, in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        next = cause.source();
    }
    words.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the object was written by somebody else since it was read.
pub fn is_conflict(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 409)
}

/// Whether we have no right to it.
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

/// Whether the object is not one that the server takes.
pub fn is_invalid(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 422)
}

/// Whether the object is not there.
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}
