//! Weights that mean nothing.

use std::{collections::BTreeMap, path::Path};

use petaflop_model::{
    WeightsError,
    gguf::{TensorType, block, export::export},
    weights::Weights,
};
use petaflop_plan::{
    dtype::Dtype,
    recipe::Quantization,
    shape::{ModelShape, Rope, RopeScaling},
};

use super::turns::draw;

/// The shape of SmolLM2-135M, by its `config.json`, of so many blocks and so large a vocabulary.
pub(super) fn smollm2(layers: u32, vocab: u32) -> ModelShape {
    ModelShape {
        layers,
        hidden: 576,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        intermediate: 1536,
        vocab,
        max_positions: 8192,
        norm_eps: 1e-5,
        rope: Rope { theta: 100_000.0, scaling: RopeScaling::None },
        tied_embeddings: true,
        qkv_bias: false,
        qk_norm: false,
    }
}

/// Weights that mean nothing, of some shape: numbers from −0.02 to 0.02, gains 1.
pub(super) struct MadeUp {
    pub(super) shape: ModelShape,
    pub(super) format: Dtype,
}

/// As many different numbers as there are: no number of a product depends on another's being
/// different. A multiple of every block.
const RUN: usize = 4096;

/// The numbers of a tensor, over and over.
fn run(name: &str) -> Vec<f32> {
    let gain = name.ends_with("norm.weight");
    let number = |n| if gain { 1.0 } else { (n as f32 / 65536.0 - 0.5) * 0.04 };
    draw(RUN as u32, 1 << 16, 2).into_iter().map(number).collect()
}

impl MadeUp {
    /// Writes them as a GGUF file without a tokenizer.
    pub(super) fn write(&self, path: &Path) -> Result<(), WeightsError> {
        let quantization = match self.format {
            Dtype::Q8_0 => Quantization::Q8_0,
            Dtype::Q4_0 => Quantization::Q4_0,
            _ => Quantization::None,
        };
        let most = self.shape.tensors().iter().map(|t| t.shape.iter().product::<u64>()).max();
        let [gains, numbers] = ["norm.weight", "weight"].map(|name| {
            run(name).into_iter().cycle().take(most.unwrap_or(0) as usize).collect::<Vec<_>>()
        });
        let counts: BTreeMap<_, _> = self
            .shape
            .tensors()
            .into_iter()
            .map(|t| (t.name, t.shape.iter().product::<u64>() as usize))
            .collect();
        let no_vocabulary = ("tokenizer.ggml.model".to_owned(), "no_vocab".into());
        export(path, &self.shape, quantization, vec![no_vocabulary], |name| {
            let all = if name.ends_with("norm.weight") { &gains } else { &numbers };
            &all[..counts[name]]
        })
    }
}

impl Weights for MadeUp {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn path(&self) -> &Path {
        Path::new("made up")
    }

    fn serving_format(&self) -> Dtype {
        self.format
    }

    fn read(&self, name: &str, dtype: Dtype, out: &mut [u8]) -> Result<(), WeightsError> {
        let mut bytes = vec![0; dtype.bytes(RUN as u64) as usize];
        block::encode(&run(name), TensorType::of(dtype), &mut bytes);
        for out in out.chunks_mut(bytes.len()) {
            out.copy_from_slice(&bytes[..out.len()]);
        }
        Ok(())
    }
}
