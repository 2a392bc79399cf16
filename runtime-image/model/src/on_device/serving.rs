//! Answers from a device. Paged decode is not printed for devices, so what stands in a sequence's
//! blocks are its tokens, and each pass goes through the whole sequence again.

use petaflop_device::device::Device;
use petaflop_plan::inference::ServingOptions;
use petaflop_plan::plan::KV_BLOCK_TOKENS;
use petaflop_plan::training::TrainingOptions;

use super::DeviceModel;
use crate::error::ModelError;
use crate::inference::{Batch, Chunk, Logits};
use crate::place::{Serving, Training};
use crate::weights::Weights;

/// A model that answers from a device.
pub struct DeviceServing<D: Device> {
    model: DeviceModel<D>,
    options: ServingOptions,
    /// The token in each row of each block.
    seen: Vec<u32>,
    logits: Vec<f32>,
}

impl<D: Device> DeviceServing<D> {
    /// Plans a pass over one sequence of the whole context, allocates, and takes the weights, in
    /// f32 whatever they were kept in.
    ///
    /// # Errors
    /// No plan, too little memory of the device, or a tensor that cannot be read.
    pub fn new(
        device: D,
        weights: &dyn Weights,
        options: &ServingOptions,
    ) -> Result<Self, ModelError> {
        let shape = weights.shape();
        // Nothing is trained, so nothing of a backward pass is planned.
        let mut frozen = vec!["model".to_owned()];
        frozen.extend((!shape.tied_embeddings).then(|| "lm_head".to_owned()));
        let forward = TrainingOptions { frozen, ..TrainingOptions::new(1, options.context) };
        let mut model = DeviceModel::new(device, shape, &forward)?;
        model.load(weights)?;
        let rows = options.kv_blocks as usize * KV_BLOCK_TOKENS as usize;
        Ok(Self { model, options: options.clone(), seen: vec![0; rows], logits: Vec::new() })
    }
}

impl<D> Serving for DeviceServing<D>
where
    D: Device + Send,
    D::Buffer: Send,
{
    fn arena_bytes(&self) -> u64 {
        self.model.arena_bytes()
    }

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<&[f32], ModelError> {
        let vocab = self.model.shape().vocab;
        let batch = Batch::of(chunks, vocab, &self.options)?;
        for (&row, &token) in batch.slots.iter().zip(&batch.tokens) {
            self.seen[row as usize] = token;
        }
        self.logits.clear();
        for &Chunk { tokens, start, blocks, logits } in chunks {
            let end = start + tokens.len();
            let first = match logits {
                Logits::None => continue,
                Logits::Last => end - 1,
                Logits::All => start,
            };
            let rows = blocks.iter().flat_map(|b| b * KV_BLOCK_TOKENS..(b + 1) * KV_BLOCK_TOKENS);
            let mut text: Vec<u32> = rows.take(end).map(|row| self.seen[row as usize]).collect();
            // What follows is not seen: attention is causal.
            text.resize(self.options.context as usize, 0);
            let all = self.model.logits(&text)?;
            self.logits.extend_from_slice(&all[first * vocab as usize..end * vocab as usize]);
        }
        Ok(&self.logits)
    }
}
