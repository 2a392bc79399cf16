//! The closed list of reasons, in the words of the API: the same string in the condition, the
//! event and the metric label.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares [`Reason`], so that no variant can be without its string or its place in `ALL`.
macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why something is as it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// The reason's string, which is its name.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$name => stringify!($name),)+
                }
            }
        }
    };
}

reasons! {
    /// No offer meets the constraints.
    NoMatchingOffer,
    /// Offers would do, but their quotes are too old to buy from.
    OffersStale,
    /// Offers would do, but cost more than `placement.maxHourlyPrice`.
    PriceAboveLimit,
    /// A SpendBudget has not enough left.
    BudgetExceeded,
    /// A SpendBudget is nearly spent.
    BudgetWarning,
    /// The provider cannot be reached, or is switched off.
    ProviderUnavailable,
    /// The provider has none of it now.
    InsufficientCapacity,
    /// The provider's quota, or the limits set for it, are reached.
    QuotaExceeded,
    /// A machine has been asked for.
    Launching,
    /// The machine did not come up in time.
    LaunchTimedOut,
    /// The image could not be fetched.
    ImagePullFailed,
    /// The machine was taken away.
    SpotInterrupted,
    /// A cheaper place is worth the move.
    CheaperOfferMigration,
    /// The application failed too often.
    BackoffLimitExceeded,
    /// The machine's result is not of what was asked for.
    ResultRefused,
    /// `activeDeadlineSeconds` is over.
    DeadlineExceeded,
    /// `deadline` may be missed.
    DeadlineAtRisk,
    /// `maxTotalCost` is reached.
    CostLimitExceeded,
    /// Suspended by the user.
    Suspended,
    /// No longer suspended.
    Resumed,
    /// Done.
    Succeeded,
    /// The specification cannot be carried out.
    InvalidSpec,
    /// Credentials that the job needs are not there.
    CredentialsMissing,
    /// A provider that is named does not exist.
    ProviderNotFound,
    /// The provider does not serve this namespace.
    NamespaceNotAllowed,
    /// The agent cannot be brought into this image.
    ImageNotEnterable,
    /// Fewer replicas than wanted answer.
    MinimumReplicasUnavailable,
    /// A replica is being started.
    NewReplicaLaunching,
    /// No replica is wanted now.
    ScaledToZero,
    /// Fewer replicas are wanted than there were.
    ScaledDown,
    /// The model could not be loaded.
    BlockedByFailedLoad,
    /// The launch is written down; the call may have gone out.
    LaunchAttempted,
    /// It is not known whether the launch succeeded.
    LaunchAmbiguous,
    /// A machine that carries our identity was found and taken over.
    AdoptedExisting,
    /// Whoever asked for the machine is gone.
    OwnerGone,
    /// The agent was not heard from for too long.
    HeartbeatLost,
    /// Ending the machine failed and is tried again.
    TerminateRetrying,
    /// The device that was bought does not work.
    AcceleratorProbeFailed,
    /// The provider asks us to slow down.
    RateLimited,
    /// The provider refuses our credentials.
    Unauthorized,
    /// The price is not the one that was decided on.
    PriceChanged,
    /// The provider does not answer.
    Unreachable,
    /// What is known is too old.
    Stale,
    /// The Secret with the credentials does not exist.
    SecretNotFound,
    /// The provider's account is nearly empty.
    BalanceTooLow,
    /// The provider has switched this interface off.
    ApiRetired,
    /// The provider's object is removed, and goes once nothing of ours can bill there.
    Releasing,
    /// Within the budget.
    Ok,
    /// A warning threshold is passed.
    WarningThreshold,
    /// The budget's limit is reached.
    LimitReached,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}
