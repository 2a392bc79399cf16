//! What a run teaches: how fast it really was, beside what was estimated.

use petaflop_arbiter::claim::ClaimSpec;
use petaflop_arbiter::estimate::{correction_key, rates};
use petaflop_arbiter::market::Class;
use petaflop_arbiter::support::Operation;
use petaflop_arbiter::workload::TrainingWork;

use crate::embedded::home::{self, Home, HomeError};
use crate::embedded::observe;

/// Takes one run into account for later estimates.
pub fn from_run(
    home: &Home,
    spec: &ClaimSpec,
    work: &TrainingWork,
    tokens_per_second: f64,
) -> Result<(), HomeError> {
    let class = Class::of(&spec.offer);
    let Some(estimated) = rates(&class, spec.device, work.precision) else {
        return Ok(());
    };
    let estimated = estimated.training(work).expected;
    let _lock = home::lock(&home.root().join("corrections.lock"))?;
    let mut corrections = observe::corrections(home)?;
    let key = correction_key(&class, spec.device, Operation::Train);
    corrections.record(&key, tokens_per_second, estimated);
    observe::write_corrections(home, &corrections)
}
