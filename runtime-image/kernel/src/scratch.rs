//! Working memory that a thread keeps between kernels, so that none of them pays
//! for fresh pages.

use std::cell::RefCell;

/// One cache line; what scratch is aligned to.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub(crate) [f32; 16]);

thread_local! {
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// A `Vec` of at least `len` floats, aligned to cache lines.
pub(crate) fn lines(len: usize) -> Vec<Line> {
    vec![Line([0.0; 16]); len.div_ceil(16)]
}

/// The floats of `lines`.
pub(crate) fn floats(lines: &mut [Line]) -> &mut [f32] {
    // SAFETY: a `Line` is sixteen floats and nothing else.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * 16) }
}

/// Runs `f` with `len` floats of scratch, aligned to 64 bytes, holding anything.
pub(crate) fn scratch<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    // The smallest that is long enough, or else the longest, to be replaced.
    let mut kept = KEPT.with_borrow_mut(|all| {
        let long = all.iter().position(|v| v.len() * 16 >= len).or(all.len().checked_sub(1));
        long.map(|i| all.remove(i)).unwrap_or_default()
    });
    if kept.len() * 16 < len {
        kept = lines(len);
    }
    let result = f(&mut floats(&mut kept)[..len]);
    KEPT.with_borrow_mut(|all| {
        let place = all.partition_point(|v| v.len() < kept.len());
        all.insert(place, kept);
    });
    result
}
