//! What a run teaches: how fast it really was, and how long its machine took to begin, beside what was estimated. For later runs on
//! the like, and, of its rate, at once for the job itself.

use jiff::SignedDuration;
use petaflop_arbiter::claim::ClaimSpec;
use petaflop_arbiter::estimate::{
    Correction, Corrections, correction_key, launch_key, launch_seconds, rates,
};
use petaflop_arbiter::market::Class;
use petaflop_arbiter::support::Operation;
use petaflop_arbiter::workload::TrainingWork;
use petaflop_crds::compute_provider::ProviderType;

/// A rate, or a time, beside what was estimated.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    /// What else it says something about.
    key: String,
    /// Tokens a second, or seconds of a launch, as measured.
    measured: f64,
    /// The same, as estimated by nothing but what the machine, or the provider, is.
    estimated: f64,
}

impl Lesson {
    /// The run of some work on a claim's machine; nothing where no estimate could be made.
    pub fn of(spec: &ClaimSpec, work: &TrainingWork, tokens_per_second: f64) -> Option<Lesson> {
        let class = Class::of(&spec.offer);
        let estimated = rates(&class, spec.device, work.precision)?.training(work).expected;
        let key = correction_key(&class, spec.device, Operation::Train);
        Some(Lesson { key, measured: tokens_per_second, estimated })
    }

    /// The launch of a claim's machine at a provider of a type, which took so long until the job worked.
    pub fn of_launch(
        spec: &ClaimSpec,
        work: &TrainingWork,
        type_: ProviderType,
        took: SignedDuration,
    ) -> Lesson {
        let (startup, fetch) = (type_.startup_millis(), type_.fetch_bytes_per_second());
        Lesson {
            key: launch_key(&spec.offer.provider),
            measured: took.as_secs_f64(),
            estimated: launch_seconds(startup, fetch, work, spec.placement > 1),
        }
    }

    /// For runs of others.
    pub fn teach(&self, corrections: &mut Corrections) {
        corrections.record(&self.key, self.measured, self.estimated);
    }

    /// For the rest of the same job.
    pub fn of_the_job(&self) -> Option<Correction> {
        Corrections::of_own_run(&self.key, self.measured, self.estimated)
    }
}
