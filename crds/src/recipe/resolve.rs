//! From the user's recipe to the resolved one: every default filled in, every
//! count fixed, every path made absolute.
//!
//! Inputs of the resolved recipe are named by position (`data0`, `data1`, …,
//! `model`), so that renaming or moving data never changes the key of a result.

use std::path::Path;

use petaflop_plan::recipe::{
    Dataset, DatasetKind, Decay, Export, Input, ModelSource, Optimizer, Precision, ResolvedRecipe,
    Schedule, TokenizerSource, TrainingLength,
};
use petaflop_plan::shape::{ModelShape, Rope, RopeScaling};

use super::{Adapter, DatasetSpec, DatasetType, LrScheduler, OptimizerName, Recipe, ScratchModel};
use crate::FieldError;
use crate::training_job::{JobInput, Output};

/// Steps of warm-up where a recipe counts epochs and says nothing.
const WARMUP_WITH_EPOCHS: u64 = 20;
/// Most steps of warm-up that are taken by default.
const WARMUP_MOST: u64 = 100;

impl Recipe {
    /// Fixes every choice. `directory` is the folder of the manifest, against which relative
    /// paths are taken; in a cluster there is none, and they are refused.
    ///
    /// Errors name the fields, from the document's root; all of them are returned at once.
    pub fn resolve(
        &self,
        inputs: &[JobInput],
        output: &Output,
        directory: Option<&Path>,
    ) -> Result<(ResolvedRecipe, Vec<Input>), Vec<FieldError>> {
        let Recipe {
            base_model,
            model,
            datasets,
            val_set_size,
            adapter,
            lora_r,
            lora_alpha,
            lora_dropout,
            lora_target_modules,
            sequence_len,
            micro_batch_size,
            gradient_accumulation_steps,
            num_epochs,
            max_steps,
            learning_rate,
            lr_scheduler,
            cosine_min_lr_ratio,
            warmup_steps,
            warmup_ratio,
            optimizer,
            weight_decay,
            adam_beta1,
            adam_beta2,
            adam_epsilon,
            max_grad_norm,
            seed,
            gradient_checkpointing,
            saves_per_epoch,
        } = self;
        let places = Places { inputs, directory };
        let mut errors = Vec::new();

        // Refused by the CRD's rules too; checked again so that no caller can lose them.
        let unbuilt = [
            ("adapter", matches!(adapter, Some(Adapter::Lora | Adapter::Qlora))),
            ("lora_r", lora_r.is_some()),
            ("lora_alpha", lora_alpha.is_some()),
            ("lora_dropout", lora_dropout.is_some()),
            ("lora_target_modules", !lora_target_modules.is_empty()),
            ("gradient_checkpointing", *gradient_checkpointing == Some(true)),
            ("saves_per_epoch", saves_per_epoch.is_some()),
        ];
        for (field, given) in unbuilt {
            if given {
                errors.push(FieldError::new(
                    format!("spec.recipe.{field}"),
                    format_args!("{field} is not built yet: leave it out"),
                ));
            }
        }

        let mut resolved_inputs = Vec::new();
        let mut resolved_datasets = Vec::new();
        for (index, DatasetSpec { path, kind }) in datasets.iter().enumerate() {
            let name = format!("data{index}");
            match places.find(path, Role::Dataset) {
                Ok((uri, digest)) => {
                    resolved_inputs.push(Input { name: name.clone(), uri, digest })
                }
                Err(message) => errors
                    .push(FieldError::new(format!("spec.recipe.datasets[{index}].path"), message)),
            }
            let kind = match kind {
                DatasetType::Completion => DatasetKind::Completion,
                DatasetType::ChatTemplate => DatasetKind::ChatTemplate,
                DatasetType::Alpaca => DatasetKind::Alpaca,
            };
            resolved_datasets.push(Dataset { input: name, kind });
        }
        if datasets.is_empty() {
            errors.push(FieldError::new(
                "spec.recipe.datasets",
                "expected at least one dataset, found none",
            ));
        }

        let (model, tokenizer) = match (base_model, model) {
            (Some(base), None) => {
                match places.find(base, Role::Model) {
                    Ok((uri, digest)) => {
                        resolved_inputs.push(Input { name: "model".into(), uri, digest })
                    }
                    Err(message) => errors.push(FieldError::new("spec.recipe.base_model", message)),
                }
                (ModelSource::Base { input: "model".into() }, TokenizerSource::Base)
            }
            (None, Some(scratch)) => match scratch.shape(*sequence_len) {
                Ok(shape) => {
                    let vocab = shape.vocab;
                    (ModelSource::Scratch(shape), TokenizerSource::TrainBpe { vocab })
                }
                Err(error) => {
                    errors.push(error);
                    return Err(errors);
                }
            },
            _ => {
                errors.push(FieldError::new(
                    "spec.recipe",
                    "exactly one of base_model and model must be given",
                ));
                return Err(errors);
            }
        };

        let length = match (num_epochs, max_steps) {
            (_, Some(steps)) => TrainingLength::Steps(*steps),
            (Some(epochs), None) => TrainingLength::Epochs(*epochs),
            (None, None) => TrainingLength::Epochs(1),
        };
        let warmup_steps = match (warmup_steps, warmup_ratio, length) {
            (Some(steps), _, _) => *steps,
            (None, Some(ratio), TrainingLength::Steps(steps)) => {
                (ratio * steps as f64).round() as u64
            }
            (None, Some(_), TrainingLength::Epochs(_)) => {
                errors.push(FieldError::new(
                    "spec.recipe.warmup_ratio",
                    "warmup_ratio needs max_steps: with num_epochs give warmup_steps",
                ));
                0
            }
            (None, None, TrainingLength::Steps(steps)) => (steps * 3 / 100).clamp(1, WARMUP_MOST),
            (None, None, TrainingLength::Epochs(_)) => WARMUP_WITH_EPOCHS,
        };
        let (decay, min_ratio) = match lr_scheduler {
            LrScheduler::Cosine => (Decay::Cosine, cosine_min_lr_ratio.unwrap_or(0.0) + 0.0),
            LrScheduler::Linear => (Decay::Linear, 0.0),
            LrScheduler::ConstantWithWarmup => (Decay::Constant, 1.0),
        };
        let optimizer = match optimizer {
            OptimizerName::Adamw | OptimizerName::AdamwTorch | OptimizerName::AdamwTorchFused => {
                Optimizer::Adamw {
                    beta1: *adam_beta1 + 0.0,
                    beta2: *adam_beta2 + 0.0,
                    eps: *adam_epsilon + 0.0,
                    weight_decay: *weight_decay + 0.0,
                }
            }
        };

        let output = output.export().unwrap_or_else(|error| {
            errors.push(error);
            Export::default()
        });

        if !errors.is_empty() {
            return Err(errors);
        }
        // Adding 0 turns -0, which would be another key, into 0.
        let recipe = ResolvedRecipe {
            model,
            tokenizer,
            datasets: resolved_datasets,
            val_set_size: *val_set_size + 0.0,
            sequence_len: *sequence_len,
            micro_batch_size: *micro_batch_size,
            gradient_accumulation_steps: *gradient_accumulation_steps,
            length,
            optimizer,
            learning_rate: *learning_rate + 0.0,
            schedule: Schedule { warmup_steps, decay, min_ratio },
            max_grad_norm: *max_grad_norm + 0.0,
            seed: *seed,
            precision: Precision::F32,
            output,
        };
        match recipe.validate() {
            Ok(()) => Ok((recipe, resolved_inputs)),
            Err(error) => Err(vec![FieldError::new("spec.recipe", error)]),
        }
    }
}

impl ScratchModel {
    /// The shape, every default filled in.
    fn shape(&self, sequence_len: u32) -> Result<ModelShape, FieldError> {
        let ScratchModel {
            dim,
            layers,
            heads,
            kv_heads,
            head_dim,
            intermediate,
            vocab,
            max_positions,
            rope_theta,
            norm_eps,
            tied_embeddings,
            qkv_bias,
            qk_norm,
        } = self;
        let error = |field: &str, message: &str| {
            Err(FieldError::new(format!("spec.recipe.model.{field}"), message))
        };
        if *heads == 0 || *dim == 0 || *layers == 0 {
            return error("heads", "dim, layers and heads must be at least 1");
        }
        let kv_heads = kv_heads.unwrap_or(*heads);
        if kv_heads == 0 || heads % kv_heads != 0 {
            return error("kv_heads", "heads must be a multiple of kv_heads");
        }
        let head_dim = match head_dim {
            Some(width) => *width,
            None if dim % heads == 0 => dim / heads,
            None => {
                return error(
                    "heads",
                    "dim must be a multiple of heads, or head_dim must be given",
                );
            }
        };
        if head_dim % 2 != 0 {
            return error(
                "heads",
                "the width of one head must be even: rotary embedding turns pairs",
            );
        }
        let max_positions = max_positions.unwrap_or(sequence_len);
        if max_positions < sequence_len {
            return error("max_positions", "must not be below sequence_len");
        }
        Ok(ModelShape {
            layers: *layers,
            hidden: *dim,
            heads: *heads,
            kv_heads,
            head_dim,
            intermediate: intermediate.unwrap_or_else(|| default_intermediate(*dim)),
            vocab: *vocab,
            max_positions,
            norm_eps: *norm_eps,
            rope: Rope { theta: *rope_theta, scaling: RopeScaling::None },
            tied_embeddings: *tied_embeddings,
            qkv_bias: *qkv_bias,
            qk_norm: *qk_norm,
        })
    }
}

/// 8/3 of the width, to the next multiple of 32 above: `int(dim·8/3/32 + 1)·32`.
fn default_intermediate(dim: u32) -> u32 {
    (dim / 12 + 1) * 32
}

/// What a path stands for; messages differ.
#[derive(Clone, Copy)]
enum Role {
    Dataset,
    Model,
}

/// What paths are taken against.
struct Places<'a> {
    inputs: &'a [JobInput],
    directory: Option<&'a Path>,
}

impl Places<'_> {
    /// The URI and digest that a path of the recipe stands for.
    fn find(&self, path: &str, role: Role) -> Result<(String, Option<String>), String> {
        if let Some(rest) = path.strip_prefix("/inputs/") {
            return self.input(rest, role);
        }
        Ok((self.uri(path, role)?, None))
    }

    /// `<name>` or `<name>/<path below it>`.
    fn input(&self, rest: &str, role: Role) -> Result<(String, Option<String>), String> {
        let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
        let Some(JobInput { name: _, uri, digest, secret_ref: _ }) =
            self.inputs.iter().find(|input| input.name == name)
        else {
            let names: Vec<&str> = self.inputs.iter().map(|input| input.name.as_str()).collect();
            let mend = match crate::nearest(name, &names) {
                Some(near) => format!("did you mean /inputs/{near}?"),
                None if names.is_empty() => "spec.inputs is empty".to_owned(),
                None => format!("spec.inputs has {}", names.join(", ")),
            };
            return Err(format!(
                "expected the name of an entry of spec.inputs, found {name:?}; {mend}"
            ));
        };
        let whole = self.uri(uri, role)?;
        if below.is_empty() {
            return Ok((whole, digest.clone()));
        }
        if below.split('/').any(|part| part == "..") {
            return Err(format!(
                "expected a path below /inputs/{name}, found {path:?}",
                path = format!("/inputs/{rest}")
            ));
        }
        if whole.starts_with("artifact:") || whole.starts_with("builtin:") {
            return Err(format!("{whole} has no files that can be named: write /inputs/{name}"));
        }
        if digest.is_some() {
            return Err(format!(
                "the digest of input {name:?} covers the whole of it and cannot be checked for a part: give the part an input of its own"
            ));
        }
        Ok((format!("{}/{below}", whole.trim_end_matches('/')), None))
    }

    /// A URI, or a path made absolute.
    fn uri(&self, text: &str, role: Role) -> Result<String, String> {
        const SUPPORTED: &str = "a path beside the manifest (./data), an absolute path, file:///…, s3://bucket/…, /inputs/<name>, artifact:<hash>";
        if text == "builtin:petaflop" {
            return match role {
                Role::Dataset => Ok(text.to_owned()),
                Role::Model => {
                    Err(format!("builtin:petaflop is text, not a model; use {SUPPORTED}"))
                }
            };
        }
        if let Some(name) = text.strip_prefix("builtin:") {
            return Err(format!(
                "there is no built-in data called {name:?}: the only one is builtin:petaflop"
            ));
        }
        if let Some(hash) = text.strip_prefix("artifact:") {
            let fine =
                hash.len() == 64 && hash.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            return match fine {
                true => Ok(text.to_owned()),
                false => Err("expected artifact: and 64 lower-case hex digits".to_owned()),
            };
        }
        if let Some(rest) = text.strip_prefix("file://") {
            return match rest.starts_with('/') {
                true => Ok(text.to_owned()),
                false => Err(format!(
                    "expected file:// and an absolute path (file:///data/text), found {text:?}"
                )),
            };
        }
        if text.starts_with("s3://") {
            return match role {
                Role::Dataset => Ok(text.to_owned()),
                Role::Model => Err(format!(
                    "s3:// is not built yet for a model; use artifact:<hash>, or a folder ({text} copied beside the manifest)"
                )),
            };
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!("{scheme}:// is not built yet; use builtin:petaflop, {SUPPORTED}"));
        }
        if text.contains('\0') {
            return Err("a path cannot contain a zero byte".to_owned());
        }
        if text.starts_with('/') {
            return Ok(text.to_owned());
        }
        // What axolotl means by `org/name`, and for models by any bare name.
        let parts: Vec<&str> = text.split('/').collect();
        let hub_name = match (role, &parts[..]) {
            (_, [first, ..]) if first.starts_with('.') => false,
            (Role::Model, [_] | [_, _]) => true,
            (Role::Dataset, [_, name]) => !name.is_empty() && !name.contains('.'),
            _ => false,
        };
        if hub_name {
            return Err(format!(
                "{text} reads as a name on the Hugging Face hub, which is not built yet; for a folder beside the manifest write ./{text}"
            ));
        }
        match self.directory {
            Some(directory) => Ok(directory.join(text).display().to_string()),
            None => Err(format!(
                "{text} is relative to a manifest's folder, and there is none here; use {SUPPORTED}"
            )),
        }
    }
}
