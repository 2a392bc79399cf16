//! Repetitions of whole models, in turn; and the tokens that they get.

use std::time::{Duration, Instant};

use petaflop_model::rng::Philox;

use crate::exit::Failure;

/// Before a benchmark's name.
pub(super) fn variant(generic: bool) -> &'static str {
    if generic { "generic " } else { "" }
}

/// What is measured: one repetition.
pub(super) type Repeated<'a> = &'a mut dyn FnMut() -> Result<(), Failure>;

/// Seconds of each repetition of each, within about `millis` for each, the least first. They take
/// turns, so that all meet the same machine. The first of all touches memory for the first time
/// and is not counted.
pub(super) fn in_turn<const N: usize>(
    millis: u64,
    mut each: [Repeated<'_>; N],
) -> Result<[Vec<f64>; N], Failure> {
    for f in &mut each {
        f()?;
    }
    let mut seconds = [const { Vec::new() }; N];
    let end = Instant::now() + Duration::from_millis(millis.saturating_mul(N as u64));
    loop {
        for (f, seconds) in each.iter_mut().zip(&mut seconds) {
            let before = Instant::now();
            f()?;
            seconds.push(before.elapsed().as_secs_f64());
        }
        if Instant::now() >= end {
            for seconds in &mut seconds {
                seconds.sort_by(f64::total_cmp);
            }
            return Ok(seconds);
        }
    }
}

/// Random tokens; others for each `use_`.
pub(super) fn draw(count: u32, vocab: u32, use_: u32) -> Vec<u32> {
    let random = Philox::new(1);
    (0..count).map(|i| random.block([i, 0, 0, use_])[0] % vocab).collect()
}
