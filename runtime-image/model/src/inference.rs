//! A model in serving: chunks of many sequences in one pass, over a key/value
//! cache in blocks. What a sequence gets does not depend on what else is in the
//! pass, nor on how its tokens were cut into chunks.

use std::sync::Arc;

use petaflop_device::{HostBuffer, OutOfMemory};
use petaflop_kernel as kernel;
use petaflop_kernel::{Cpu, PackedWeight, PagedSequence, Weight};
use petaflop_plan::Numerics;
use petaflop_plan::dtype::Dtype;
use petaflop_plan::inference::{ServingOptions, plan_inference};
use petaflop_plan::ops::Op;
use petaflop_plan::plan::{KV_BLOCK_TOKENS, Layout, Plan};
use petaflop_plan::shape::ModelShape;

use crate::arena::Arena;
use crate::error::ModelError;
use crate::pass::Pass;
use crate::rope;
use crate::weights::Weights;

/// A model with its key/value cache.
pub struct InferenceModel {
    cpu: Arc<Cpu>,
    shape: ModelShape,
    options: ServingOptions,
    plan: Plan,
    arena: Arena,
}

/// A run of new tokens of one sequence, in one pass.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The tokens; never empty.
    pub tokens: &'a [u32],
    /// Tokens of the sequence before them, whose keys and values are in `blocks`.
    pub start: usize,
    /// The sequence's blocks of [`KV_BLOCK_TOKENS`] tokens, in the order of
    /// positions, with room for these tokens.
    pub blocks: &'a [u32],
    /// Whose logits are wanted.
    pub logits: Logits,
}

/// Which tokens of a chunk the logits are wanted after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Logits {
    /// None: more of the prompt follows.
    None,
    /// The last.
    Last,
    /// Every one.
    All,
}

/// Rows of a pass by what is asked of them.
pub(crate) struct Batch {
    pub(crate) tokens: Vec<u32>,
    positions: Vec<u32>,
    /// Row of the cache for each row of the pass.
    pub(crate) slots: Vec<u32>,
    /// Rows whose logits are wanted.
    wanted: Vec<usize>,
}

impl InferenceModel {
    /// Plans, allocates, and takes the weights in the planned format.
    ///
    /// # Errors
    /// No plan, no memory, or a tensor that cannot be read.
    pub fn new(
        cpu: Arc<Cpu>,
        weights: &dyn Weights,
        options: &ServingOptions,
    ) -> Result<Self, ModelError> {
        let shape = weights.shape().clone();
        let plan = plan_inference(&shape, options)?;
        let mut arena = Arena::new(&plan)?;
        let [cos, sin] = arena.work.views([plan.ports.cos, plan.ports.sin]);
        rope::fill_tables(&shape, cos, sin);
        for tensor in &plan.tensors {
            let buffer = plan.buffer(tensor.value);
            match (buffer.layout, &tensor.shape[..]) {
                (Layout::Packed, &[rows, width]) => {
                    let packed = pack(
                        &cpu,
                        weights,
                        &tensor.name,
                        buffer.dtype,
                        options.numerics,
                        rows as usize,
                        width as usize,
                    )?;
                    arena.parameters.pack(tensor.value, packed);
                }
                _ => weights.read_f32(&tensor.name, arena.parameters.f32s_mut(tensor.value))?,
            }
        }
        assert_eq!(arena.bytes(), plan.arena_bytes(), "the arena is what was planned");
        Ok(Self { cpu, shape, options: options.clone(), plan, arena })
    }

    /// The model's form.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// What was planned.
    pub fn options(&self) -> &ServingOptions {
        &self.options
    }

    /// What is executed.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Bytes that were allocated: [`Plan::arena_bytes`].
    pub fn arena_bytes(&self) -> u64 {
        self.arena.bytes()
    }

    /// Format of the matrices.
    pub fn weights(&self) -> Dtype {
        self.options.weights
    }

    /// Takes all chunks through the model in one pass. Returns the wanted logits,
    /// `[wanted, V]`, chunk after chunk. Chunks must be of different sequences.
    ///
    /// # Errors
    /// A chunk that does not fit the plan; nothing was run then.
    pub fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<&[f32], ModelError> {
        let batch = Batch::of(chunks, self.shape.vocab, &self.options)?;
        let sequences: Vec<PagedSequence<'_>> = chunks
            .iter()
            .map(|c| PagedSequence {
                rows: c.tokens.len(),
                context: c.start + c.tokens.len(),
                blocks: c.blocks,
            })
            .collect();
        let wanted = batch.wanted.len();
        let cpu = Arc::clone(&self.cpu);
        cpu.install(|| {
            let mut pass = Pass {
                cpu: &self.cpu,
                shape: &self.shape,
                plan: &self.plan,
                parameters: &self.arena.parameters,
                work: &mut self.arena.work,
                tokens: &batch.tokens,
                positions: &batch.positions,
                rows: batch.tokens.len(),
            };
            for step in &self.plan.steps {
                if matches!(step.op, Op::GatherRows { .. }) && wanted == 0 {
                    break;
                }
                execute(&mut pass, &step.op, &batch, &sequences);
            }
        });
        let logits = self.arena.work.view(self.plan.ports.logits);
        Ok(&logits[..wanted * self.shape.vocab as usize])
    }
}

impl Batch {
    /// Lays the chunks' rows one after another, after checking each.
    pub(crate) fn of(
        chunks: &[Chunk<'_>],
        vocab: u32,
        options: &ServingOptions,
    ) -> Result<Batch, ModelError> {
        let refuse = |what, expected: String, found: String| {
            Err(ModelError::Input { what, expected, found })
        };
        let (context, block) = (options.context as usize, KV_BLOCK_TOKENS as usize);
        let mut batch = Batch {
            tokens: Vec::new(),
            positions: Vec::new(),
            slots: Vec::new(),
            wanted: Vec::new(),
        };
        for &Chunk { tokens, start, blocks, logits } in chunks {
            let end = start.saturating_add(tokens.len());
            if tokens.is_empty() {
                return refuse("chunk.tokens", "at least one".to_owned(), "none".to_owned());
            }
            if end > context {
                return refuse(
                    "chunk",
                    format!("at most the context's {context} tokens"),
                    end.to_string(),
                );
            }
            if blocks.len() < end.div_ceil(block) {
                let expected = format!("{} blocks for {end} tokens", end.div_ceil(block));
                return refuse("chunk.blocks", expected, blocks.len().to_string());
            }
            if let Some(bad) = blocks.iter().find(|&&b| b >= options.kv_blocks) {
                return refuse(
                    "chunk.blocks",
                    format!("numbers below {}", options.kv_blocks),
                    bad.to_string(),
                );
            }
            if let Some(bad) = tokens.iter().find(|&&t| t >= vocab) {
                return refuse(
                    "chunk.tokens",
                    format!("numbers below the vocabulary's {vocab}"),
                    bad.to_string(),
                );
            }
            let first = batch.tokens.len();
            batch.tokens.extend_from_slice(tokens);
            for position in start..end {
                batch.positions.push(position as u32);
                batch
                    .slots
                    .push(blocks[position / block] * KV_BLOCK_TOKENS + (position % block) as u32);
            }
            match logits {
                Logits::None => {}
                Logits::Last => batch.wanted.push(batch.tokens.len() - 1),
                Logits::All => batch.wanted.extend(first..batch.tokens.len()),
            }
        }
        let (rows, most) = (batch.tokens.len(), options.max_batched_tokens as usize);
        if rows == 0 || rows > most {
            return refuse(
                "tokens of all chunks",
                format!("1 to max_batched_tokens ({most})"),
                rows.to_string(),
            );
        }
        let (wanted, most) = (batch.wanted.len(), options.logit_rows as usize);
        if wanted > most {
            return refuse(
                "rows of logits",
                format!("at most logit_rows ({most})"),
                wanted.to_string(),
            );
        }
        Ok(batch)
    }
}

/// Reads a matrix in the planned format, and lays it out for products.
fn pack(
    cpu: &Cpu,
    weights: &dyn Weights,
    name: &str,
    dtype: Dtype,
    numerics: Numerics,
    rows: usize,
    width: usize,
) -> Result<PackedWeight, ModelError> {
    let bytes = usize::try_from(dtype.bytes((rows * width) as u64))
        .map_err(|_| OutOfMemory { bytes: usize::MAX })?;
    let mut buffer;
    // A file may have its numbers anywhere.
    let usable = |lies: &&[u8]| lies.len() == bytes && lies.as_ptr().cast::<f32>().is_aligned();
    let lies = match weights.as_it_lies(name, dtype).filter(usable) {
        Some(lies) => lies,
        None => {
            buffer = HostBuffer::zeroed(bytes)?;
            weights.read(name, dtype, buffer.bytes_mut())?;
            buffer.bytes()
        }
    };
    let weight = match dtype {
        Dtype::F32 => Weight::F32(bytemuck::cast_slice(lies)),
        Dtype::Bf16 => Weight::Bf16(bytemuck::cast_slice(lies)),
        Dtype::Q8_0 if numerics == Numerics::Int8Activations => {
            return Ok(PackedWeight::for_int8(cpu, lies, rows, width));
        }
        Dtype::Q8_0 => Weight::Q8_0(lies),
        Dtype::Q4_0 => Weight::Q4_0(lies),
        Dtype::U32 | Dtype::F16 => unreachable!("the planner keeps no weights in these"),
    };
    Ok(PackedWeight::new(cpu, weight, rows, width))
}

fn execute(pass: &mut Pass<'_>, op: &Op, batch: &Batch, sequences: &[PagedSequence<'_>]) {
    if pass.shared(op) {
        return;
    }
    match *op {
        Op::WriteKv { keys_in, values_in, keys, values } => {
            for (from, cache) in [(keys_in, keys), (values_in, values)] {
                let len = pass.rows * pass.width(from);
                let [from, cache] = pass.work.views([from, cache]);
                kernel::scatter_rows(&from[..len], &batch.slots, cache);
            }
        }
        Op::PagedAttention { q, keys, values, out } => {
            let (cpu, scale, len) = (pass.cpu, pass.score_scale(), pass.rows * pass.width(q));
            let ModelShape { heads, kv_heads, head_dim, .. } = *pass.shape;
            let [q, keys, values, out] = pass.work.views([q, keys, values, out]);
            kernel::attention_paged(
                cpu,
                &q[..len],
                keys,
                values,
                &mut out[..len],
                sequences,
                heads as usize,
                kv_heads as usize,
                head_dim as usize,
                scale,
            );
        }
        Op::GatherRows { x, out } => {
            let width = pass.width(x);
            let [x, out] = pass.work.views([x, out]);
            for (row, out) in batch.wanted.iter().zip(out.chunks_exact_mut(width)) {
                out.copy_from_slice(&x[row * width..][..width]);
            }
            pass.rows = batch.wanted.len();
        }
        _ => unreachable!("a serving plan has no loss and no gradients"),
    }
}
