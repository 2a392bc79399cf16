//! The learning rate over the steps, as a function of the step alone.

use crate::recipe::{Decay, Schedule};

impl Schedule {
    /// The learning rate of step `step` of `total`, counted from 0, for this peak.
    ///
    /// The warm-up rises linearly and reaches the peak at step `warmup_steps`, its
    /// first step already above 0: `peak · (step + 1) / (warmup_steps + 1)`. What
    /// follows goes from the peak there to `peak · min_ratio` at the last step.
    /// The cosine is libm's, so its bits do not depend on the system.
    pub fn rate(&self, step: u64, total: u64, peak: f64) -> f64 {
        let Self { warmup_steps, decay, min_ratio } = self;
        if step < *warmup_steps {
            return peak * (step + 1) as f64 / (warmup_steps + 1) as f64;
        }
        let last = total.saturating_sub(1);
        let length = last.saturating_sub(*warmup_steps).max(1) as f64;
        let done = ((step - warmup_steps) as f64 / length).min(1.0);
        let share = match decay {
            Decay::Cosine => {
                min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done))
            }
            Decay::Linear => min_ratio + (1.0 - min_ratio) * (1.0 - done),
            Decay::Constant => 1.0,
        };
        peak * share
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::recipe::{Decay, Schedule};

    #[test]
    fn the_rate_rises_then_falls_to_its_minimum() {
        let schedule = Schedule { warmup_steps: 4, decay: Decay::Cosine, min_ratio: 0.1 };
        assert_eq!(schedule.rate(0, 101, 1.0), 0.2);
        assert_eq!(schedule.rate(4, 101, 1.0), 1.0);
        assert!((schedule.rate(52, 101, 1.0) - 0.55).abs() < 1e-12);
        assert!((schedule.rate(100, 101, 1.0) - 0.1).abs() < 1e-15);
        let linear = Schedule { warmup_steps: 0, decay: Decay::Linear, min_ratio: 0.0 };
        assert_eq!(
            (linear.rate(0, 11, 2.0), linear.rate(5, 11, 2.0), linear.rate(10, 11, 2.0)),
            (2.0, 1.0, 0.0)
        );
        let constant = Schedule { warmup_steps: 0, decay: Decay::Constant, min_ratio: 0.0 };
        assert_eq!(constant.rate(7, 8, 0.5), 0.5);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn the_rate_is_never_above_its_peak_nor_below_its_minimum(
            warmup in 0u64..50, total in 1u64..200, step in 0u64..400, ratio in 0.0f64..1.0, decay in 0..3,
        ) {
            let decay = [Decay::Cosine, Decay::Linear, Decay::Constant][decay as usize];
            let rate = Schedule { warmup_steps: warmup, decay, min_ratio: ratio }.rate(step, total, 1e-3);
            prop_assert!(rate <= 1e-3 * (1.0 + 1e-12));
            let least = if step < warmup { 0.0 } else { 1e-3 * ratio * (1.0 - 1e-12) };
            prop_assert!(rate >= least);
        }
    }
}
