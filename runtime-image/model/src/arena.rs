//! The memory of a model: one allocation a segment, exactly as planned.

use std::collections::BTreeMap;
use std::ops::Range;

use petaflop_device::{HostBuffer, OutOfMemory};
use petaflop_kernel::{PackedWeight, Weight};
use petaflop_plan::dtype::Dtype;
use petaflop_plan::ops::BufferId;
use petaflop_plan::plan::{Buffer, Layout, Plan, Segment};

/// Every buffer of a plan. Passes read the parameters and write the rest, so the
/// two are borrowed apart.
pub(crate) struct Arena {
    pub(crate) parameters: Parameters,
    pub(crate) work: Work,
}

/// The weights.
pub(crate) struct Parameters {
    /// Those that lie in rows, each in its format.
    memory: HostBuffer,
    /// The others, by buffer.
    packed: BTreeMap<BufferId, PackedWeight>,
    places: Vec<Place>,
}

/// A weight as the kernels take it.
pub(crate) enum Matrix<'a> {
    Rows(Weight<'a>),
    Packed(&'a PackedWeight),
}

/// All other segments; every buffer in them is of 32-bit numbers.
pub(crate) struct Work {
    segments: Vec<HostBuffer>,
    places: Vec<Place>,
}

#[derive(Clone, Copy)]
struct Place {
    segment: Segment,
    layout: Layout,
    dtype: Dtype,
    /// In bytes.
    start: usize,
    bytes: usize,
}

impl Arena {
    /// Allocates what the plan says, zeroed; packed weights come with [`Parameters::pack`].
    pub(crate) fn new(plan: &Plan) -> Result<Self, OutOfMemory> {
        let size =
            |bytes: u64| usize::try_from(bytes).map_err(|_| OutOfMemory { bytes: usize::MAX });
        let allocate = |segment: Segment| HostBuffer::zeroed(size(plan.segments.of(segment))?);
        let place = |b: &Buffer| {
            Ok(Place {
                segment: b.segment,
                layout: b.layout,
                dtype: b.dtype,
                start: size(b.offset)?,
                bytes: size(b.bytes)?,
            })
        };
        let places = plan.buffers.iter().map(place).collect::<Result<Vec<_>, OutOfMemory>>()?;
        let packed: u64 =
            plan.buffers.iter().filter(|b| b.layout == Layout::Packed).map(|b| b.bytes).sum();
        let memory = HostBuffer::zeroed(size(plan.segments.parameters - packed)?)?;
        let segments = Segment::ALL.into_iter().skip(1).map(allocate).collect::<Result<_, _>>()?;
        Ok(Self {
            parameters: Parameters { memory, packed: BTreeMap::new(), places: places.clone() },
            work: Work { segments, places },
        })
    }

    /// Bytes that were allocated.
    pub(crate) fn bytes(&self) -> u64 {
        let all = self.work.segments.iter().chain(std::iter::once(&self.parameters.memory));
        let packed = self.parameters.packed.values().map(|p| p.bytes() as u64);
        all.map(|s| s.bytes().len() as u64).chain(packed).sum()
    }
}

impl Parameters {
    /// A matrix of weights.
    pub(crate) fn matrix(&self, id: BufferId) -> Matrix<'_> {
        match self.packed.get(&id) {
            Some(packed) => Matrix::Packed(packed),
            None => Matrix::Rows(self.weight(id)),
        }
    }

    /// A matrix that lies in rows: any in training.
    pub(crate) fn weight(&self, id: BufferId) -> Weight<'_> {
        match self.places[id.index()].dtype {
            Dtype::F32 => Weight::F32(self.f32s(id)),
            Dtype::Bf16 => Weight::Bf16(bytemuck::cast_slice(self.bytes(id))),
            Dtype::Q8_0 => Weight::Q8_0(self.bytes(id)),
            Dtype::Q4_0 => Weight::Q4_0(self.bytes(id)),
            Dtype::U32 | Dtype::F16 => unreachable!("the planner keeps no weights in these"),
        }
    }

    /// Keeps a weight in the layout that products read.
    pub(crate) fn pack(&mut self, id: BufferId, weight: PackedWeight) {
        self.packed.insert(id, weight);
    }

    /// A weight that lies in rows, in f32: a gain, a bias, or anything that is trained.
    pub(crate) fn f32s(&self, id: BufferId) -> &[f32] {
        let numbers = self.numbers(id);
        &self.memory.f32s()[numbers]
    }

    pub(crate) fn f32s_mut(&mut self, id: BufferId) -> &mut [f32] {
        let numbers = self.numbers(id);
        &mut self.memory.f32s_mut()[numbers]
    }

    /// A weight that lies in rows, in its format.
    fn bytes(&self, id: BufferId) -> &[u8] {
        &self.memory.bytes()[self.rows(id)]
    }

    pub(crate) fn bytes_mut(&mut self, id: BufferId) -> &mut [u8] {
        let rows = self.rows(id);
        &mut self.memory.bytes_mut()[rows]
    }

    fn numbers(&self, id: BufferId) -> Range<usize> {
        assert_eq!(self.places[id.index()].dtype, Dtype::F32, "weights are read in their format");
        let Range { start, end } = self.rows(id);
        start / 4..end / 4
    }

    fn rows(&self, id: BufferId) -> Range<usize> {
        let Place { segment, layout, dtype: _, start, bytes } = self.places[id.index()];
        assert_eq!(
            (segment, layout),
            (Segment::Parameters, Layout::Rows),
            "weights that lie in rows are read as such"
        );
        start..start + bytes
    }

    /// All buffers of the segment that are in f32, in the order of their places. Training
    /// only: none is packed.
    pub(crate) fn all_mut(&mut self) -> Vec<&mut [f32]> {
        let mut places = in_order(&self.places, Segment::Parameters);
        places.retain(|p| p.dtype == Dtype::F32);
        split(self.memory.f32s_mut(), &places)
    }
}

impl Work {
    /// Buffers to read and write side by side, in the order asked for.
    ///
    /// Panics where two of them overlap: an operation's own buffers never do.
    pub(crate) fn views<const N: usize>(&mut self, ids: [BufferId; N]) -> [&mut [f32]; N] {
        let places = ids.map(|id| self.places[id.index()]);
        let mut order: [usize; N] = std::array::from_fn(|i| i);
        order.sort_unstable_by_key(|&i| (places[i].segment, places[i].start));
        let mut rest: Vec<(&mut [f32], usize)> =
            self.segments.iter_mut().map(|s| (s.f32s_mut(), 0)).collect();
        let mut views = [const { None }; N];
        for i in order {
            let Place { segment, start, bytes, .. } = places[i];
            let (start, len) = (start / 4, bytes / 4);
            let (slice, consumed) = &mut rest[work_index(segment)];
            let before =
                start.checked_sub(*consumed).expect("an operation's buffers do not overlap");
            let (view, after) = std::mem::take(slice)[before..].split_at_mut(len);
            views[i] = Some(view);
            (*slice, *consumed) = (after, start + len);
        }
        views.map(|view| view.expect("each index was visited"))
    }

    /// One buffer.
    pub(crate) fn view(&self, id: BufferId) -> &[f32] {
        let Place { segment, start, bytes, .. } = self.places[id.index()];
        &self.segments[work_index(segment)].f32s()[start / 4..(start + bytes) / 4]
    }

    /// A whole segment, the gaps between its buffers included (they hold zeros).
    pub(crate) fn segment_mut(&mut self, segment: Segment) -> &mut [f32] {
        self.segments[work_index(segment)].f32s_mut()
    }

    /// All buffers of a segment that is not reused, in the order of their places.
    pub(crate) fn all_mut(&mut self, segment: Segment) -> Vec<&mut [f32]> {
        split(self.segments[work_index(segment)].f32s_mut(), &in_order(&self.places, segment))
    }
}

fn work_index(segment: Segment) -> usize {
    match segment {
        Segment::Parameters => panic!("parameters are not written by a pass"),
        Segment::Gradients => 0,
        Segment::Moments => 1,
        Segment::Constants => 2,
        Segment::Activations => 3,
        Segment::Workspace => 4,
        Segment::KvCache => 5,
    }
}

fn in_order(places: &[Place], segment: Segment) -> Vec<Place> {
    let mut places: Vec<Place> = places.iter().copied().filter(|p| p.segment == segment).collect();
    places.sort_unstable_by_key(|p| p.start);
    places
}

fn split<'a>(mut rest: &'a mut [f32], places: &[Place]) -> Vec<&'a mut [f32]> {
    let mut consumed = 0;
    let mut views = Vec::with_capacity(places.len());
    for place in places {
        let (start, len) = (place.start / 4, place.bytes / 4);
        let (view, after) = std::mem::take(&mut rest)[start - consumed..].split_at_mut(len);
        views.push(view);
        (rest, consumed) = (after, start + len);
    }
    views
}
