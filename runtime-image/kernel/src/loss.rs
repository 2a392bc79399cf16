//! Cross-entropy over the vocabulary, its gradient in place of the logits.

use crate::isa::{Lanes, Sc, on_every_isa};
use crate::simd::{Simd, rows, rows_mut};
use crate::{Cpu, bodies};

/// Marks a position that has no target in [`cross_entropy`].
pub const IGNORE: u32 = u32::MAX;

/// Elements a task covers, about.
const TASK: usize = 1 << 14;

/// Cross-entropy of each row: `nll[t] = logsumexp(logits[t]) − logits[t, target]`, 0 where
/// the target is [`IGNORE`]; `logits[t, v]` become their gradient
/// `scale · (softmax − onehot)` in place (0 for ignored rows).
///
/// # Panics
/// A slice's length does not fit, or a target is beyond the vocabulary (of 2²⁴ at most).
pub fn cross_entropy(cpu: &Cpu, logits: &mut [f32], targets: &[u32], nll: &mut [f32], scale: f32) {
    let (v, many) = split(logits.len(), targets, nll);
    let work = logits.len() * 32;
    let parts =
        logits.chunks_mut((many * v).max(1)).zip(targets.chunks(many)).zip(nll.chunks_mut(many));
    cpu.each(work, parts, |((x, targets), nll)| gradient_rows(cpu.isa(), x, targets, nll, scale));
}

/// The losses of [`cross_entropy`] alone, the same bits; logits stay.
///
/// # Panics
/// As [`cross_entropy`].
pub fn cross_entropy_loss(cpu: &Cpu, logits: &[f32], targets: &[u32], nll: &mut [f32]) {
    let (v, many) = split(logits.len(), targets, nll);
    let parts =
        logits.chunks((many * v).max(1)).zip(targets.chunks(many)).zip(nll.chunks_mut(many));
    cpu.each(logits.len() * 24, parts, |((x, targets), nll)| loss_rows(cpu.isa(), x, targets, nll));
}

/// Checks shapes; the vocabulary and the rows of a task.
fn split(len: usize, targets: &[u32], nll: &[f32]) -> (usize, usize) {
    let t = targets.len();
    let v = len / t.max(1);
    assert_eq!(len, t * v, "cross_entropy: {len} logits for {t} targets");
    assert_eq!(nll.len(), t, "cross_entropy: {} losses for {t} targets", nll.len());
    assert!(v <= 1 << 24, "cross_entropy: a vocabulary of {v}");
    if let Some(wrong) = targets.iter().find(|&&y| y != IGNORE && y as usize >= v) {
        panic!("cross_entropy: target {wrong} in a vocabulary of {v}");
    }
    (v, (TASK / v.max(1)).max(1))
}

#[inline(always)]
fn gradient_lanes<V: Lanes>(logits: &mut [f32], targets: &[u32], nll: &mut [f32], scale: f32) {
    let v = logits.len() / targets.len();
    for ((x, &target), nll) in logits.chunks_exact_mut(v).zip(targets).zip(nll) {
        if target == IGNORE {
            x.fill(0.0);
            *nll = 0.0;
            continue;
        }
        let of_target = ([target as f32], [x[target as usize]]);
        let numbers = (rows(&of_target.0, 0), rows(&of_target.1, 0));
        let (x, nll) = (rows_mut(x, 0), rows_mut(std::slice::from_mut(nll), 0));
        bodies::cross_entropy(
            Simd::<V>::row(0, v),
            x.read(),
            numbers,
            nll,
            Some((x, x.read(), Sc(scale))),
        );
    }
}
on_every_isa! { fn gradient_rows = gradient_lanes(logits: &mut [f32], targets: &[u32], nll: &mut [f32], scale: f32) }

#[inline(always)]
fn loss_lanes<V: Lanes>(logits: &[f32], targets: &[u32], nll: &mut [f32]) {
    let v = logits.len() / targets.len();
    for ((x, &target), nll) in logits.chunks_exact(v).zip(targets).zip(nll) {
        if target == IGNORE {
            *nll = 0.0;
            continue;
        }
        let of_target = ([target as f32], [x[target as usize]]);
        let numbers = (rows(&of_target.0, 0), rows(&of_target.1, 0));
        let nll = rows_mut(std::slice::from_mut(nll), 0);
        bodies::cross_entropy(Simd::<V>::row(0, v), rows(x, 0), numbers, nll, None);
    }
}
on_every_isa! { fn loss_rows = loss_lanes(logits: &[f32], targets: &[u32], nll: &mut [f32]) }
