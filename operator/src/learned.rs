//! What a run teaches: how fast it really was, beside what was estimated. For later runs on the like, and, at once, for the job itself.

use petaflop_arbiter::claim::ClaimSpec;
use petaflop_arbiter::estimate::{Correction, Corrections, correction_key, rates};
use petaflop_arbiter::market::Class;
use petaflop_arbiter::support::Operation;
use petaflop_arbiter::workload::TrainingWork;

/// How fast a run was, beside what was estimated.
#[derive(Clone, Debug, PartialEq)]
pub struct Lesson {
    /// What else it says something about.
    key: String,
    /// Tokens a second, as measured.
    measured: f64,
    /// The same, as estimated by nothing but what the machine is.
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

    /// For runs of others.
    pub fn teach(&self, corrections: &mut Corrections) {
        corrections.record(&self.key, self.measured, self.estimated);
    }

    /// For the rest of the same job.
    pub fn of_the_job(&self) -> Option<Correction> {
        Corrections::of_own_run(&self.key, self.measured, self.estimated)
    }
}
