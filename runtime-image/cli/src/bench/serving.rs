//! A sequence through a model that is served: its prompt, then a token; and the first token of
//! a process.

use std::{path::PathBuf, sync::Arc, time::Instant};

use petaflop_kernel::{Cpu, bench::Rate};
use petaflop_model::{
    inference::{Chunk, InferenceModel, Logits},
    weights::{self, Weights},
};
use petaflop_plan::{
    Numerics, apart::Fusion, dtype::Dtype, inference::ServingOptions, shape::ModelShape,
};

use super::{
    Measured, kernels,
    made_up::{MadeUp, smollm2},
    turns::{draw, in_turn, variant},
};
use crate::exit::Failure;

/// A sequence through a model that is served.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Serving {
    /// A GGUF file to measure, in the format of its matrices, instead of random weights
    #[arg(long, value_name = "FILE", conflicts_with_all = ["layers", "vocab", "weights"])]
    gguf: Option<PathBuf>,
    /// Also write the random weights as a GGUF file, without a tokenizer, for other engines to measure the same
    #[arg(long, value_name = "FILE", conflicts_with = "gguf")]
    write_gguf: Option<PathBuf>,
    /// Transformer blocks
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=256))]
    layers: u32,
    /// Vocabulary
    #[arg(long, value_name = "N", default_value_t = 49152, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    vocab: u32,
    /// Tokens of the prompt
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=8000))]
    prompt: u32,
    /// Format of the weights: f32, q8_0 or q4_0
    #[arg(long, value_name = "FORMAT", default_value = "q8_0", value_parser = kernels::format)]
    weights: Dtype,
    /// Arithmetic of decode and the first token: exact or int8-activations; prefill measures both where weights are q8_0
    #[arg(long, value_name = "MODE", default_value_t = Numerics::Exact)]
    numerics: Numerics,
    /// Measure the generic variant alone: the same kernels, tiles and threads, one launch an operation, no fusion
    #[arg(long)]
    generic: bool,
}

impl Default for Serving {
    fn default() -> Self {
        Self {
            gguf: None,
            write_gguf: None,
            layers: 30,
            vocab: 49152,
            prompt: 512,
            weights: Dtype::Q8_0,
            numerics: Numerics::Exact,
            generic: false,
        }
    }
}

impl Serving {
    /// The whole prompt in one pass, and the logits after its last token; beside it the same of
    /// the generic variant and, of q8_0 weights, with activations rounded to 8 bits, in turn.
    pub(super) fn prefill(&self, cpu: &Arc<Cpu>, millis: u64) -> Result<Measured, Failure> {
        let weights = self.weights()?;
        let mut model = self.model(cpu, &*weights, self.generic, Numerics::Exact)?;
        let prompt = draw(self.prompt, model.shape().vocab, 0);
        let mut first = || pass(&mut model, &prompt, 0);
        let (seconds, generic, int8) = if self.generic {
            let [ours] = in_turn(millis, [&mut first])?;
            (ours[0], None, None)
        } else {
            let mut generic = self.model(cpu, &*weights, true, Numerics::Exact)?;
            let mut second = || pass(&mut generic, &prompt, 0);
            if weights.serving_format() == Dtype::Q8_0 {
                let mut int8 = self.model(cpu, &*weights, false, Numerics::Int8Activations)?;
                let mut third = || pass(&mut int8, &prompt, 0);
                let [ours, generic, int8] = in_turn(millis, [&mut first, &mut second, &mut third])?;
                (ours[0], Some(generic[0]), Some(int8[0]))
            } else {
                let [ours, generic] = in_turn(millis, [&mut first, &mut second])?;
                (ours[0], Some(generic[0]), None)
            }
        };
        let rate = Rate {
            flops: flops(model.shape(), self.prompt, 0),
            bytes: self.bytes(&model, self.prompt, 0),
            seconds,
        };
        let tokens = f64::from(self.prompt);
        let measured = Measured::new(self.name("prefill", &model), rate)
            .with("tokens_per_second", tokens / seconds)
            .with("planned_bytes", model.arena_bytes());
        let measured = measured.beside_generic(tokens, seconds, generic);
        Ok(match int8 {
            None => measured,
            Some(int8) => measured.with("int8_activations_tokens_per_second", tokens / int8),
        })
    }

    /// The token after the prompt, over and over.
    pub(super) fn decode(&self, cpu: &Arc<Cpu>, millis: u64) -> Result<Measured, Failure> {
        let mut model = self.model(cpu, &*self.weights()?, self.generic, self.numerics)?;
        let vocab = model.shape().vocab;
        pass(&mut model, &draw(self.prompt, vocab, 0), 0)?;
        let token = draw(1, vocab, 1);
        let [seconds] = in_turn(millis, [&mut || pass(&mut model, &token, self.prompt)])?;
        let seconds = seconds[0];
        let rate = Rate {
            flops: flops(model.shape(), 1, self.prompt),
            bytes: self.bytes(&model, 1, self.prompt),
            seconds,
        };
        Ok(Measured::new(self.name("decode", &model), rate)
            .with("tokens_per_second", 1.0 / seconds)
            .with("planned_bytes", model.arena_bytes()))
    }

    /// From `started`, the process's first instruction, to the logits after one token: the model
    /// is opened, laid out, and run.
    pub(super) fn first_token(
        &self,
        cpu: &Arc<Cpu>,
        started: Instant,
    ) -> Result<Measured, Failure> {
        let mut model = self.model(cpu, &*self.weights()?, self.generic, self.numerics)?;
        let laid_out = started.elapsed().as_secs_f64();
        let token = draw(1, model.shape().vocab, 0);
        pass(&mut model, &token, 0)?;
        let seconds = started.elapsed().as_secs_f64();
        let rate = Rate { flops: 0.0, bytes: self.bytes(&model, 0, 0), seconds };
        Ok(Measured::new(self.name("first token", &model), rate)
            .with("until_laid_out_ms", laid_out * 1e3)
            .with("first_token_ms", seconds * 1e3))
    }

    fn name(&self, what: &str, model: &InferenceModel) -> String {
        let ModelShape { layers, hidden, vocab, .. } = *model.shape();
        let (generic, format) = (variant(self.generic), model.weights());
        let numerics = match model.options().numerics {
            Numerics::Exact => String::new(),
            numerics => format!(" {numerics}"),
        };
        format!("{generic}{what} L{layers} D{hidden} V{vocab} {format} T{}{numerics}", self.prompt)
    }

    fn weights(&self) -> Result<Box<dyn Weights>, Failure> {
        if let Some(file) = &self.gguf {
            return weights::open(file).map_err(Failure::bad_input);
        }
        let made_up = MadeUp { shape: smollm2(self.layers, self.vocab), format: self.weights };
        if let Some(file) = &self.write_gguf {
            made_up.write(file).map_err(Failure::failed)?;
        }
        Ok(Box::new(made_up))
    }

    fn model(
        &self,
        cpu: &Arc<Cpu>,
        weights: &dyn Weights,
        generic: bool,
        numerics: Numerics,
    ) -> Result<InferenceModel, Failure> {
        let options = ServingOptions {
            numerics,
            fusion: if generic { Fusion::Apart } else { Fusion::Fused },
            ..ServingOptions::new(weights.serving_format(), 1, self.prompt, self.prompt + 1)
        };
        InferenceModel::new(Arc::clone(cpu), weights, &options).map_err(Failure::bad_input)
    }

    /// All weights once, and the keys and values of all tokens so far.
    fn bytes(&self, model: &InferenceModel, tokens: u32, before: u32) -> f64 {
        let cached = model.shape().kv_bytes_per_token(Dtype::F32) as f64;
        model.plan().segments.parameters as f64 + cached * f64::from(tokens + before)
    }
}

/// Two operations for each weight and token, the output projection for one token alone; and
/// attention's two products over the tokens that each token sees.
fn flops(shape: &ModelShape, tokens: u32, before: u32) -> f64 {
    let head = f64::from(shape.vocab) * f64::from(shape.hidden);
    let untied = if shape.tied_embeddings { 1.0 } else { 2.0 };
    let blocks = shape.parameters() as f64 - untied * head;
    let (tokens, before) = (f64::from(tokens), f64::from(before));
    let seen = tokens * before + tokens * (tokens + 1.0) / 2.0;
    let attention = 4.0 * seen * shape.q_width() as f64 * f64::from(shape.layers);
    2.0 * (blocks * tokens + head) + attention
}

fn pass(model: &mut InferenceModel, tokens: &[u32], start: u32) -> Result<(), Failure> {
    let blocks: Vec<u32> = (0..model.options().kv_blocks).collect();
    let chunk = Chunk { tokens, start: start as usize, blocks: &blocks, logits: Logits::Last };
    model.forward(&[chunk]).map(drop).map_err(Failure::failed)
}

#[cfg(test)]
mod tests {
    use super::{flops, smollm2};

    #[test]
    fn operations_of_a_prompt_are_those_of_its_tokens_one_after_another() {
        let shape = smollm2(30, 49152);
        assert_eq!(shape.parameters(), 134_515_008);
        let one_by_one: f64 = (0..512).map(|before| flops(&shape, 1, before)).sum();
        // But for the output projection, which a prompt needs once.
        let head = 2.0 * 49152.0 * 576.0;
        assert_eq!(flops(&shape, 512, 0), one_by_one - 511.0 * head);
    }
}
