//! Cosines and sines of the rotary position embedding, computed in f64 with libm
//! and rounded once, so that their bits depend on no system.

use petaflop_plan::shape::{ModelShape, RopeScaling};

/// Fills `cos` and `sin`, both `[positions, head_dim / 2]`.
pub(crate) fn fill_tables(shape: &ModelShape, cos: &mut [f32], sin: &mut [f32]) {
    let frequencies = frequencies(shape);
    let rows = cos.chunks_exact_mut(frequencies.len()).zip(sin.chunks_exact_mut(frequencies.len()));
    for (position, (cos, sin)) in rows.enumerate() {
        for (i, frequency) in frequencies.iter().enumerate() {
            let angle = position as f64 * frequency;
            cos[i] = libm::cos(angle) as f32;
            sin[i] = libm::sin(angle) as f32;
        }
    }
}

/// What each frequency is divided by, `[head_dim / 2]`.
pub(crate) fn divisors(shape: &ModelShape) -> Vec<f32> {
    let plain = turning(shape);
    plain.zip(frequencies(shape)).map(|(plain, stretched)| (plain / stretched) as f32).collect()
}

/// Radians a position for each pair of a head's elements: `theta^(−2i/d)`, stretched as the shape says.
fn frequencies(shape: &ModelShape) -> Vec<f64> {
    turning(shape).map(|frequency| stretch(frequency, &shape.rope.scaling)).collect()
}

/// The same before it is stretched.
fn turning(shape: &ModelShape) -> impl Iterator<Item = f64> {
    let (theta, width) = (shape.rope.theta, f64::from(shape.head_dim));
    (0..shape.head_dim / 2).map(move |i| libm::pow(theta, -2.0 * f64::from(i) / width))
}

fn stretch(frequency: f64, scaling: &RopeScaling) -> f64 {
    match *scaling {
        RopeScaling::None => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_positions,
        } => {
            // How often a pair turns within the original context.
            let turns = f64::from(original_max_positions) * frequency / std::f64::consts::TAU;
            // 0 where the frequency is divided, 1 where it is kept.
            let keep =
                ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            (1.0 - keep) * frequency / factor + keep * frequency
        }
    }
}

#[cfg(test)]
mod tests {
    use petaflop_plan::shape::RopeScaling;

    use super::stretch;

    #[test]
    fn llama3_keeps_the_fast_and_divides_the_slow() {
        let scaling = RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 8192,
        };
        assert_eq!(stretch(1.0, &scaling), 1.0);
        assert_eq!(stretch(1e-6, &scaling), 1e-6 / 8.0);
        // 2.5 turns in the original context: half way.
        let middle = 2.5 * std::f64::consts::TAU / 8192.0;
        assert!((stretch(middle, &scaling) / middle - (0.5 / 8.0 + 0.5)).abs() < 1e-12);
        assert_eq!(stretch(1.0, &RopeScaling::Linear { factor: 4.0 }), 0.25);
    }
}
