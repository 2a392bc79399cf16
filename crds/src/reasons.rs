//! The words of conditions: closed lists of types and reasons. The same string
//! appears in the condition, the event and the metric label.

use std::fmt;

/// Declares a closed list of CamelCase words.
macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $word:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$doc])* $word),+ }

        impl $name {
            /// Every word of the list, in the order of its declaration.
            pub const ALL: &'static [$name] = &[$($name::$word),+];

            /// The word as it is written in the API.
            pub const fn as_str(self) -> &'static str {
                match self { $($name::$word => stringify!($word)),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

words! {
    /// Condition types of a TrainingJob.
    TrainingJobCondition {
        /// Making progress, or done (kstatus).
        Ready,
        /// The controller works towards the spec.
        Reconciling,
        /// The controller cannot go on without a change.
        Stalled,
        /// The arbiter has chosen a place.
        OfferSelected,
        /// The chosen machine is there.
        ComputeReady,
        /// The command runs.
        Running,
        /// Stopped on request; nothing is paid for.
        Suspended,
        /// The machine was taken away.
        Interrupted,
        /// Ended well.
        Complete,
        /// Ended badly.
        Failed,
    }
}

words! {
    /// Condition types of an InferenceService.
    InferenceServiceCondition {
        /// Answers requests as the spec asks (kstatus).
        Ready,
        /// The controller works towards the spec.
        Reconciling,
        /// The controller cannot go on without a change.
        Stalled,
        /// At least the minimum of replicas answers.
        Available,
        /// A rollout is under way.
        Progressing,
        /// Stopped on request; nothing is paid for.
        Suspended,
        /// The model was loaded by at least one replica.
        ModelLoaded,
        /// The address leads to a replica.
        RouteReady,
    }
}

words! {
    /// Reasons of a TrainingJob's and an InferenceService's conditions.
    Reason {
        /// No offer meets the constraints.
        NoMatchingOffer,
        /// Every quote is older than may be bought from.
        OffersStale,
        /// The cheapest place costs more than `maxHourlyPrice`.
        PriceAboveLimit,
        /// A budget is used up.
        BudgetExceeded,
        /// A budget passed one of its warning marks.
        BudgetWarning,
        /// The provider does not answer.
        ProviderUnavailable,
        /// The place had no machine left.
        InsufficientCapacity,
        /// The account may not have another machine.
        QuotaExceeded,
        /// A machine was asked for.
        Launching,
        /// The machine did not come up in time.
        LaunchTimedOut,
        /// The image could not be pulled.
        ImagePullFailed,
        /// A spot machine was taken away.
        SpotInterrupted,
        /// Moving to a cheaper place.
        CheaperOfferMigration,
        /// The application failed more often than `backoffLimit`.
        BackoffLimitExceeded,
        /// `activeDeadlineSeconds` passed.
        DeadlineExceeded,
        /// `maxTotalCost` is spent.
        CostLimitExceeded,
        /// Stopped on request.
        Suspended,
        /// Going on after a suspension.
        Resumed,
        /// Ended well.
        Succeeded,
        /// The spec passes the schema and cannot work.
        InvalidSpec,
        /// A Secret that is named is missing or may not be read.
        CredentialsMissing,
        /// A provider that is named does not exist.
        ProviderNotFound,
        /// The provider does not serve this namespace.
        NamespaceNotAllowed,
        /// The promise of `deadline` can no longer be kept with certainty.
        DeadlineAtRisk,
        /// The agent cannot be brought into this image.
        ImageNotEnterable,
        /// Fewer replicas answer than must.
        MinimumReplicasUnavailable,
        /// A replica is being started.
        NewReplicaLaunching,
        /// Idle; wakes with the next request.
        ScaledToZero,
        /// The new model could not be loaded; the old one answers.
        BlockedByFailedLoad,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_satisfy_the_pattern_of_conditions() {
        for word in Reason::ALL.iter().map(|r| r.as_str()) {
            assert!(word.len() <= 1024 && word.chars().all(|c| c.is_ascii_alphanumeric()));
        }
        assert_eq!(Reason::ALL.len(), 29);
        assert_eq!(TrainingJobCondition::ALL.len(), 10);
        assert_eq!(InferenceServiceCondition::ALL.len(), 8);
        assert_eq!(Reason::CheaperOfferMigration.to_string(), "CheaperOfferMigration");
    }
}
