//! Gives each buffer its place. Buffers that are alive together never overlap;
//! others may share a place.
//!
//! "Greedy by size" (Pisarchyk and Lee 2020, *Efficient Memory Management for Deep
//! Neural Net Inference*): the largest first, each at the lowest aligned offset
//! that is free for its whole life. Ties break by order of creation, so a plan is
//! a function of its inputs alone.

use crate::ops::BufferId;
use crate::plan::{ALIGNMENT, Buffer, Layout, Segment, SegmentBytes, Step};

/// Sets `first`, `last` and `offset` of every buffer, and returns the segments' sizes.
/// `outputs` are read by the caller after the last step, so they live to the end.
pub(crate) fn place(buffers: &mut [Buffer], steps: &[Step], outputs: &[BufferId]) -> SegmentBytes {
    let end = u32::try_from(steps.len().saturating_sub(1)).unwrap_or(u32::MAX);
    live(buffers, steps, outputs, end);
    let mut bytes = SegmentBytes::default();
    for segment in Segment::ALL {
        let mut members: Vec<usize> =
            (0..buffers.len()).filter(|&i| buffers[i].segment == segment).collect();
        *bytes.of_mut(segment) = if segment.reuses() {
            members.sort_by_key(|&i| (std::cmp::Reverse(buffers[i].bytes), i));
            pack(buffers, &members)
        } else {
            lay_out_in_order(buffers, &members)
        };
    }
    bytes
}

fn live(buffers: &mut [Buffer], steps: &[Step], outputs: &[BufferId], end: u32) {
    for buffer in buffers.iter_mut() {
        (buffer.first, buffer.last) = if buffer.segment.reuses() { (end, 0) } else { (0, end) };
    }
    for (at, step) in (0u32..).zip(steps) {
        let access = step.op.access();
        for id in access.reads.into_iter().chain(access.writes) {
            let buffer = &mut buffers[id.index()];
            buffer.first = buffer.first.min(at);
            buffer.last = buffer.last.max(at);
        }
    }
    for id in outputs {
        buffers[id.index()].last = end;
    }
}

/// One after another; packed ones are allocations of their own, and only counted.
fn lay_out_in_order(buffers: &mut [Buffer], members: &[usize]) -> u64 {
    let (mut next, mut packed) = (0, 0);
    for &i in members {
        match buffers[i].layout {
            Layout::Rows => {
                buffers[i].offset = next;
                next += buffers[i].bytes.next_multiple_of(ALIGNMENT);
            }
            Layout::Packed => packed += buffers[i].bytes,
        }
    }
    next + packed
}

fn pack(buffers: &mut [Buffer], members: &[usize]) -> u64 {
    // Placed so far, by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(members.len());
    let mut size = 0;
    for &i in members {
        let (first, last, bytes) =
            (buffers[i].first, buffers[i].last, buffers[i].bytes.next_multiple_of(ALIGNMENT));
        let mut offset = 0;
        for other in
            placed.iter().map(|&p| &buffers[p]).filter(|o| o.first <= last && first <= o.last)
        {
            if other.offset >= offset + bytes {
                break;
            }
            offset = offset.max(other.offset + other.bytes.next_multiple_of(ALIGNMENT));
        }
        buffers[i].offset = offset;
        size = size.max(offset + bytes);
        let at = placed.partition_point(|&p| buffers[p].offset <= offset);
        placed.insert(at, i);
    }
    size
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{pack, place};
    use crate::dtype::Dtype;
    use crate::plan::{ALIGNMENT, Buffer, Layout, Segment};

    fn buffer(bytes: u64, first: u32, last: u32) -> Buffer {
        Buffer {
            name: String::new(),
            shape: vec![bytes],
            dtype: Dtype::F32,
            layout: Layout::Rows,
            segment: Segment::Activations,
            offset: u64::MAX,
            bytes,
            first,
            last,
        }
    }

    #[test]
    fn buffers_that_never_meet_share_a_place() {
        let mut buffers = vec![buffer(1000, 0, 1), buffer(1024, 2, 3), buffer(1, 0, 3)];
        let order = [1, 0, 2];
        assert_eq!(pack(&mut buffers, &order), 1024 + 256);
        assert_eq!((buffers[0].offset, buffers[1].offset, buffers[2].offset), (0, 0, 1024));
    }

    #[test]
    fn no_steps_take_no_activations() {
        assert_eq!(place(&mut [], &[], &[]).activations, 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn buffers_alive_together_never_overlap(lives in prop::collection::vec((1u64..5000, 0u32..40, 0u32..12), 1..60)) {
            let mut buffers: Vec<_> = lives.iter().map(|&(bytes, first, len)| buffer(bytes, first, first + len)).collect();
            let mut order: Vec<usize> = (0..buffers.len()).collect();
            order.sort_by_key(|&i| std::cmp::Reverse(buffers[i].bytes));
            let size = pack(&mut buffers, &order);
            for (i, a) in buffers.iter().enumerate() {
                prop_assert_eq!(a.offset % ALIGNMENT, 0);
                prop_assert!(a.offset + a.bytes <= size);
                for b in &buffers[..i] {
                    let meet = a.first <= b.last && b.first <= a.last;
                    let apart = a.offset + a.bytes <= b.offset || b.offset + b.bytes <= a.offset;
                    prop_assert!(!meet || apart);
                }
            }
        }
    }
}
