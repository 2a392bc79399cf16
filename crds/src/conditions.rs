//! The types of conditions, closed lists. Their reasons are the arbiter's one closed
//! list, [`petaflop_arbiter::reason::Reason`]: the same string in the condition, the
//! event and the metric label.

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
    /// Condition types of a ComputeClaim.
    ComputeClaimCondition {
        /// The machine works for its owner (kstatus).
        Ready,
        /// The controller works towards the spec.
        Reconciling,
        /// The controller cannot go on without a change.
        Stalled,
        /// The provider has made the machine.
        Launched,
        /// Its agent has enrolled.
        Registered,
        /// Its command saves what it has: the provider takes the machine away, or its owner moves.
        Interrupting,
        /// The machine is being ended.
        Terminating,
        /// The provider says that the machine is gone.
        InstanceTerminated,
        /// The machine that runs costs more or less than what was decided on.
        Drifted,
        /// A machine of it is nobody's: its owner is gone, or it has another one.
        Orphaned,
    }
}

words! {
    /// Condition types of a ComputeProvider.
    ComputeProviderCondition {
        /// Machines can be had there (kstatus).
        Ready,
        /// The controller works towards the spec.
        Reconciling,
        /// The controller cannot go on without a change.
        Stalled,
        /// The provider takes our credentials.
        CredentialsValid,
        /// Some of what it offered last is young enough to buy from.
        OffersFresh,
    }
}

words! {
    /// Condition types of a SpendBudget.
    SpendBudgetCondition {
        /// It is counted (kstatus).
        Ready,
        /// The controller works towards the spec.
        Reconciling,
        /// The controller cannot go on without a change.
        Stalled,
        /// Spent and reserved are below the first warning threshold.
        WithinBudget,
        /// The limit is reached.
        Exhausted,
    }
}

#[cfg(test)]
mod tests {
    use petaflop_arbiter::reason::Reason;

    use super::*;

    #[test]
    fn words_satisfy_the_patterns_of_conditions() {
        let words = (Reason::ALL.iter().map(|word| word.as_str()))
            .chain(TrainingJobCondition::ALL.iter().map(|word| word.as_str()))
            .chain(InferenceServiceCondition::ALL.iter().map(|word| word.as_str()))
            .chain(ComputeClaimCondition::ALL.iter().map(|word| word.as_str()))
            .chain(ComputeProviderCondition::ALL.iter().map(|word| word.as_str()))
            .chain(SpendBudgetCondition::ALL.iter().map(|word| word.as_str()));
        for word in words {
            assert!(word.len() <= 316 && word.chars().all(|c| c.is_ascii_alphanumeric()), "{word}");
        }
        assert_eq!(TrainingJobCondition::ALL.len(), 10);
        assert_eq!(InferenceServiceCondition::ALL.len(), 8);
        assert_eq!(ComputeClaimCondition::ALL.len(), 10);
        assert_eq!(ComputeProviderCondition::ALL.len(), 5);
        assert_eq!(SpendBudgetCondition::ALL.len(), 5);
    }
}
