//! The finished weights as files of the form that was asked for. A GGUF file is loaded back as a
//! server would load it, and must give the logits of the model that was trained; where it does not,
//! the weights are left as they were trained, in safetensors.

use std::{collections::BTreeMap, fs, path::Path, sync::Arc};

use petaflop_kernel::Cpu;
use petaflop_model::{
    WeightsError,
    gguf::{export::export, model::GgufModel, value::Value, vocabulary},
    inference::{Chunk, InferenceModel, Logits},
    place::Training,
    tokenizer::Tokenizer,
    training::NO_TARGET,
    weights::{self, GGUF_FILE, WEIGHTS_FILE, Weights as _},
};
use petaflop_plan::{
    inference::ServingOptions,
    plan::KV_BLOCK_TOKENS,
    recipe::{Export, Quantization, ResolvedRecipe},
};
use serde::{Deserialize, Serialize};

use crate::{data::Data, error::Error};

/// Tokens whose logits are compared at most.
const COMPARED: usize = 64;

/// How far the logits of an exported file are from those of the trained model, over the first
/// tokens of the training split. A function of the key, as everything in an artifact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verified {
    /// Rows of logits that were compared.
    pub(crate) rows: u64,
    /// |found − trained| ÷ |trained|, Euclidean norms over all rows; none where it is no number.
    pub(crate) logits_error: Option<f64>,
    /// Rows whose largest logit is the same token's, as a share.
    pub(crate) same_choice: f64,
    /// The tolerance that the error is beyond. The artifact then has the weights as they were
    /// trained, and not this file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) missed: Option<f64>,
}

impl Verified {
    /// What to tell people where the file is not what was trained.
    pub(crate) fn caveat(&self) -> Option<String> {
        let most = self.missed?;
        let found = self.logits_error.map_or_else(
            || "are not numbers".to_owned(),
            |error| format!("are {error:.3} of their size from the trained model's"),
        );
        Some(format!(
            "output: the logits of the exported {GGUF_FILE} {found}, and at most {most} is let \
             pass: the artifact holds {WEIGHTS_FILE} instead. A job with less or no quantization \
             gives a {GGUF_FILE}"
        ))
    }
}

/// What is tolerated as [`Verified::logits_error`]. f32 differs where an epsilon or a base of the
/// recipe is no f32, which is what GGUF keeps them in; the others leave room for models that bear
/// rounding badly, and less than a misplaced matrix needs (which gives an error about 1).
fn tolerance(quantization: Quantization) -> f64 {
    match quantization {
        Quantization::None => 1e-4,
        Quantization::Q8_0 => 0.05,
        Quantization::Q4_0 => 0.5,
    }
}

/// Refuses before training what could not be exported after it.
pub(crate) fn check(recipe: &ResolvedRecipe, data: &Data) -> Result<(), Error> {
    match recipe.output {
        Export::Safetensors => Ok(()),
        Export::Gguf(_) => entries(data, 0).map(drop),
    }
}

/// Writes the weights into an artifact's folder.
pub(crate) fn write(
    folder: &Path,
    recipe: &ResolvedRecipe,
    model: &mut dyn Training,
    cpu: &Arc<Cpu>,
    data: &Data,
) -> Result<Option<Verified>, Error> {
    let failed = |error: WeightsError| match error {
        WeightsError::Io { path, source } => {
            Error::Io { what: "cannot write artifact", path, source }
        }
        other => Error::Internal(other.to_string()),
    };
    let as_trained = |model: &dyn Training| {
        let tensors = model.tensors().map_err(Error::model)?;
        let tensors =
            tensors.iter().map(|(t, values)| (t.name.as_str(), t.shape.as_slice(), &**values));
        weights::save(folder, model.shape(), tensors).map_err(failed)
    };
    let Export::Gguf(quantization) = recipe.output else {
        as_trained(model)?;
        return Ok(None);
    };
    weights::save_config(folder, model.shape()).map_err(failed)?;
    let file = folder.join(GGUF_FILE);
    let more = entries(data, model.shape().vocab)?;
    let tensors = model.tensors().map_err(Error::model)?;
    let values: BTreeMap<&str, &[f32]> =
        tensors.iter().map(|(tensor, values)| (tensor.name.as_str(), &**values)).collect();
    export(&file, model.shape(), quantization, more, |name| values[name]).map_err(failed)?;
    drop(tensors);
    let exported = GgufModel::open(&file).map_err(failed)?;
    let mut verified = compare(&exported, recipe, model, cpu, data).map_err(Error::model)?;
    let most = tolerance(quantization);
    if verified.logits_error.is_none_or(|error| error > most) {
        verified.missed = Some(most);
        drop(exported);
        fs::remove_file(&file).map_err(Error::io("cannot take back", &file))?;
        as_trained(model)?;
    }
    Ok(Some(verified))
}

fn entries(data: &Data, vocab: u32) -> Result<Vec<(String, Value)>, Error> {
    Tokenizer::from_bytes(&data.tokenizer)
        .and_then(|tokenizer| vocabulary::entries(&tokenizer, &data.chat_template, vocab))
        .map_err(|error| Error::BadInput(format!("output.format gguf: {error}")))
}

fn compare(
    exported: &GgufModel,
    recipe: &ResolvedRecipe,
    model: &mut dyn Training,
    cpu: &Arc<Cpu>,
    data: &Data,
) -> Result<Verified, petaflop_model::ModelError> {
    let (sequence, vocab) = (recipe.sequence_len as usize, model.shape().vocab as usize);
    let rows = sequence.min(COMPARED);
    let mut tokens = vec![0; recipe.micro_batch_size as usize * sequence];
    let mut targets = tokens.clone();
    let samples = tokens.chunks_mut(sequence).zip(targets.chunks_mut(sequence));
    for (sample, (tokens, targets)) in (0..).zip(samples) {
        data.train.fill(sample, tokens, targets, NO_TARGET);
    }
    let logits = model.logits(&tokens)?;
    let trained = &logits[..rows * vocab];
    let count = rows as u32;
    let options = ServingOptions {
        logit_rows: count,
        ..ServingOptions::new(exported.serving_format(), 1, count, count)
    };
    let mut served = InferenceModel::new(Arc::clone(cpu), exported, &options)?;
    let blocks: Vec<u32> = (0..count.div_ceil(KV_BLOCK_TOKENS)).collect();
    let chunk = Chunk { tokens: &tokens[..rows], start: 0, blocks: &blocks, logits: Logits::All };
    Ok(distance(served.forward(&[chunk])?, trained, vocab))
}

fn distance(found: &[f32], trained: &[f32], vocab: usize) -> Verified {
    let square = |sum: f64, x: f64| sum + x * x;
    let away = found.iter().zip(trained).map(|(&a, &b)| f64::from(a) - f64::from(b));
    let size = trained.iter().map(|&b| f64::from(b)).fold(0.0, square);
    let pairs = found.chunks_exact(vocab).zip(trained.chunks_exact(vocab));
    let same = pairs.filter(|(a, b)| choice(a) == choice(b)).count();
    let rows = trained.len() / vocab;
    Verified {
        rows: rows as u64,
        logits_error: Some((away.fold(0.0, square) / size).sqrt())
            .filter(|error| error.is_finite()),
        same_choice: same as f64 / rows as f64,
        missed: None,
    }
}

/// The token of the largest logit; of equal ones the first.
fn choice(row: &[f32]) -> Option<usize> {
    (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]))
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn an_error_is_relative_and_a_choice_is_the_first_of_the_largest() {
        let trained = [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 5.0, 5.0];
        let same = distance(&trained, &trained, 4);
        assert_eq!((same.rows, same.logits_error, same.same_choice), (2, Some(0.0), 1.0));
        let other = [4.0, 3.9, 0.0, 0.0, 0.0, 0.0, 5.0, 5.1];
        let other = distance(&other, &trained, 4);
        assert!((other.logits_error.unwrap() - (1.02f64 / 75.0).sqrt()).abs() < 1e-6);
        assert_eq!(other.same_choice, 0.0);
        assert_eq!(distance(&[f32::NAN; 8], &trained, 4).logits_error, None);
    }
}
