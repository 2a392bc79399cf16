//! Choosing the next token.
//!
//! The choice depends on the logits, the request's settings and the position
//! alone: no generator carries state from token to token, so it does not matter
//! what else ran in the batch, or in which order. All sums run in one fixed
//! order in f64, exponentials come from `libm` rather than the system, and ties
//! go to the smaller token id.

use petaflop_model::rng::Philox;

/// How the next token is chosen from the logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub(crate) temperature: f64,
    /// Only the fewest most likely tokens whose probabilities reach this sum are considered. In `(0, 1]`.
    pub(crate) top_p: f64,
    /// Key of the request's randomness.
    pub(crate) seed: u64,
}

/// The token that follows, at `position` (its index in the whole sequence).
/// `logits` is not empty; values that are not numbers are never chosen.
pub(crate) fn sample(logits: &[f32], sampling: &Sampling, position: u64) -> u32 {
    let best = argmax(logits);
    if sampling.temperature == 0.0 || !logits[best].is_finite() {
        return best as u32;
    }
    let peak = f64::from(logits[best]);
    let weights: Vec<f64> =
        logits
            .iter()
            .map(|&l| {
                if l.is_nan() {
                    0.0
                } else {
                    libm::exp((f64::from(l) - peak) / sampling.temperature)
                }
            })
            .collect();
    let total: f64 = weights.iter().sum();
    let draw = uniform(sampling.seed, position);
    if sampling.top_p >= 1.0 {
        return walk((0..weights.len()).map(|i| (i, weights[i])), draw * total).unwrap_or(best)
            as u32;
    }
    let nucleus = nucleus(&weights, total, sampling.top_p);
    let mass: f64 = nucleus.iter().map(|&i| weights[i]).sum();
    walk(nucleus.iter().map(|&i| (i, weights[i])), draw * mass).unwrap_or(best) as u32
}

/// The largest logit's index; the first of equals.
fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (i, &l) in logits.iter().enumerate() {
        if l > logits[best] || logits[best].is_nan() {
            best = i;
        }
    }
    best
}

/// The fewest most likely tokens whose weights reach `top_p · total`, most
/// likely first, equals by id.
fn nucleus(weights: &[f64], total: f64, top_p: f64) -> Vec<usize> {
    // Tokens below this weight have less than (1 - top_p) · total between them,
    // so they are never needed; without them the sort is short.
    let floor = (1.0 - top_p) * total / weights.len() as f64;
    let mut order: Vec<usize> =
        (0..weights.len()).filter(|&i| weights[i] >= floor && weights[i] > 0.0).collect();
    order.sort_unstable_by(|&a, &b| weights[b].total_cmp(&weights[a]).then(a.cmp(&b)));
    let mut sum = 0.0;
    let mut keep = 0;
    for &i in &order {
        sum += weights[i];
        keep += 1;
        if sum >= top_p * total {
            break;
        }
    }
    order.truncate(keep);
    order
}

/// The first item at which the running sum exceeds `target`; the last item with
/// any weight where rounding kept the sum below it.
fn walk(items: impl Iterator<Item = (usize, f64)>, target: f64) -> Option<usize> {
    let mut sum = 0.0;
    let mut last = None;
    for (index, weight) in items {
        if weight > 0.0 {
            sum += weight;
            last = Some(index);
            if sum > target {
                break;
            }
        }
    }
    last
}

/// A number in `[0, 1)` that depends on its arguments alone: 53 bits of the
/// counter-based generator.
fn uniform(seed: u64, position: u64) -> f64 {
    let [low, high, ..] = Philox::new(seed).block([position as u32, (position >> 32) as u32, 0, 0]);
    let bits = u64::from(high) << 32 | u64::from(low);
    (bits >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn settings(temperature: f64, top_p: f64, seed: u64) -> Sampling {
        Sampling { temperature, top_p, seed }
    }

    #[test]
    fn temperature_zero_takes_the_largest_logit_and_the_smaller_id_of_equals() {
        let greedy = settings(0.0, 1.0, 7);
        assert_eq!(sample(&[0.0, 3.0, 1.0, 3.0], &greedy, 0), 1);
        assert_eq!(sample(&[f32::NAN, -1.0, -1.0], &greedy, 0), 1);
        assert_eq!(sample(&[f32::NEG_INFINITY, f32::NEG_INFINITY], &greedy, 0), 0);
    }

    #[test]
    fn frequencies_follow_the_softmax() {
        // Probabilities 1/2, 1/4, 1/4 from logits ln 2, 0, 0.
        let logits = [std::f32::consts::LN_2, 0.0, 0.0];
        let mut counts = [0_u32; 3];
        for position in 0..40_000 {
            counts[sample(&logits, &settings(1.0, 1.0, 3), position) as usize] += 1;
        }
        // Four standard deviations of a binomial with n = 40,000.
        assert!(counts[0].abs_diff(20_000) < 400, "{counts:?}");
        assert!(counts[1].abs_diff(10_000) < 350, "{counts:?}");
        assert!(counts[2].abs_diff(10_000) < 350, "{counts:?}");
    }

    #[test]
    fn a_higher_temperature_spreads_the_choice() {
        let logits = [2.0, 0.0];
        let share = |temperature| {
            (0..10_000).filter(|&p| sample(&logits, &settings(temperature, 1.0, 1), p) == 1).count()
                as f64
                / 10_000.0
        };
        // 1 / (1 + e^(2/t))
        assert!((share(1.0) - 0.1192).abs() < 0.015);
        assert!((share(2.0) - 0.2689).abs() < 0.02);
        assert!((share(0.25) - 0.0003).abs() < 0.002);
    }

    #[test]
    fn top_p_keeps_the_fewest_tokens_that_reach_it() {
        let logits = [0.5_f32, 0.3, 0.15, 0.05].map(f32::ln);
        for (top_p, allowed) in [(0.4, 1), (0.6, 2), (0.9, 3), (0.96, 4)] {
            let mut seen = std::collections::BTreeSet::new();
            for position in 0..4_000 {
                seen.insert(sample(&logits, &settings(1.0, top_p, 9), position));
            }
            assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..allowed).collect::<Vec<_>>());
        }
    }

    #[test]
    fn seed_and_position_change_the_draw_and_nothing_else_does() {
        let logits = [0.0_f32; 64];
        let row = |seed| {
            (0..32).map(|p| sample(&logits, &settings(1.0, 1.0, seed), p)).collect::<Vec<_>>()
        };
        assert_eq!(row(5), row(5));
        assert_ne!(row(5), row(6));
        // Neighbouring seeds are not shifted copies of each other.
        assert_ne!(row(5)[1..], row(6)[..31]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn any_logits_give_a_token_inside_the_nucleus(
            logits in prop::collection::vec(prop_oneof![9 => -30.0_f32..30.0, 1 => Just(f32::NEG_INFINITY), 1 => Just(f32::NAN)], 1..200),
            temperature in 0.0_f64..2.0, top_p in 0.01_f64..=1.0, seed: u64, position: u64,
        ) {
            let token = sample(&logits, &settings(temperature, top_p, seed), position) as usize;
            prop_assert!(token < logits.len());
            if logits.iter().any(|l| l.is_finite()) {
                prop_assert!(logits[token].is_finite());
                // Whatever is strictly likelier than the chosen token has less than top_p between it.
                let peak = logits.iter().copied().filter(|l| l.is_finite()).fold(f32::MIN, f32::max);
                let weight = |l: f32| if l.is_nan() || temperature == 0.0 { 0.0 } else { ((f64::from(l) - f64::from(peak)) / temperature).exp() };
                let total: f64 = logits.iter().map(|&l| weight(l)).sum();
                let above: f64 = logits.iter().filter(|&&l| l > logits[token]).map(|&l| weight(l)).sum();
                prop_assert!(above <= top_p * total * (1.0 + 1e-9));
            }
        }
    }
}
