//! Names that people write for fields we call something else, or do not have.

/// Names that other tools use for our fields, and fields of axolotl that have no counterpart.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("hidden", "dim"),
    ("hidden_size", "dim"),
    ("d_model", "dim"),
    ("num_hidden_layers", "layers"),
    ("n_layers", "layers"),
    ("num_attention_heads", "heads"),
    ("n_heads", "heads"),
    ("num_key_value_heads", "kv_heads"),
    ("n_kv_heads", "kv_heads"),
    ("intermediate_size", "intermediate"),
    ("vocab_size", "vocab"),
    ("max_position_embeddings", "max_positions"),
    ("rms_norm_eps", "norm_eps"),
    ("tie_word_embeddings", "tied_embeddings"),
    ("attention_bias", "qkv_bias"),
    ("lr", "learning_rate"),
    ("batch_size", "micro_batch_size"),
    ("epochs", "num_epochs"),
    ("steps", "max_steps"),
    ("gpu", "accelerator"),
    ("gpus", "accelerator"),
    ("accelerators", "accelerator"),
    ("spot", "capacityType"),
    ("maxPrice", "maxHourlyPrice"),
    ("budget", "budgetRef"),
    ("image", "container"),
];

/// Fields that axolotl knows and petaflop has not built.
const AXOLOTL: &[&str] = &[
    "adam_beta3",
    "auto_resume_from_checkpoints",
    "bf16",
    "chat_template",
    "cosine_constant_lr_ratio",
    "curriculum_sampling",
    "dataset_prepared_path",
    "dataset_processes",
    "deepspeed",
    "device_map",
    "early_stopping_patience",
    "embedding_lr",
    "eval_batch_size",
    "eval_sample_packing",
    "eval_steps",
    "evals_per_epoch",
    "eval_strategy",
    "evaluation_strategy",
    "excess_length_strategy",
    "flash_attention",
    "float16",
    "fp16",
    "fsdp",
    "fsdp_config",
    "group_by_length",
    "hub_model_id",
    "is_falcon_derived_model",
    "is_llama_derived_model",
    "is_mistral_derived_model",
    "kd_alpha",
    "load_in_4bit",
    "load_in_8bit",
    "logging_steps",
    "lora_fan_in_fan_out",
    "lora_mlp_kernel",
    "lora_model_dir",
    "lora_modules_to_save",
    "lora_target_linear",
    "loraplus_lr_ratio",
    "loss_watchdog_patience",
    "loss_watchdog_threshold",
    "lr_quadratic_warmup",
    "mlflow_tracking_uri",
    "model_type",
    "multipack_real_batches",
    "neftune_noise_alpha",
    "optim_args",
    "optim_target_modules",
    "output_dir",
    "pad_to_sequence_len",
    "peft",
    "plugins",
    "pretraining_dataset",
    "push_dataset_to_hub",
    "relora_steps",
    "resume_from_checkpoint",
    "rl",
    "s2_attention",
    "sample_packing",
    "save_only_model",
    "save_safetensors",
    "save_steps",
    "save_strategy",
    "save_total_limit",
    "sdp_attention",
    "shuffle_merged_datasets",
    "special_tokens",
    "strict",
    "test_datasets",
    "tf32",
    "tokenizer_config",
    "tokenizer_type",
    "tokens",
    "torch_compile",
    "train_on_inputs",
    "trust_remote_code",
    "unfrozen_parameters",
    "wandb_entity",
    "wandb_log_model",
    "wandb_name",
    "wandb_project",
    "wandb_watch",
    "xformers_attention",
    "zero3",
];

/// The field that a name was most likely meant to be.
pub(super) fn meant<'a>(key: &str, names: &[&'a str]) -> Option<&'a str> {
    let other = OTHER_NAMES.iter().find(|(other, ours)| *other == key && names.contains(ours));
    match other {
        Some((_, ours)) => names.iter().find(|name| *name == ours).copied(),
        None => crate::nearest(key, names),
    }
}

/// What to do about a field that does not exist.
pub(super) fn unknown_help(key: &str, meant: Option<&str>, names: &[&str]) -> String {
    match meant {
        Some(name) => format!("did you mean {name}?"),
        None if names.contains(&"micro_batch_size") && AXOLOTL.contains(&key) => {
            format!("axolotl has {key}; petaflop has not built it: leave it out")
        }
        None => format!("known here: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_of_ours_is_called_unbuilt() {
        let mut fields = Vec::new();
        for kind in crate::crds::all() {
            let schema = serde_json::to_value(kind).unwrap();
            if let Some(recipe) = schema.pointer("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/recipe/properties") {
                fields.extend(recipe.as_object().unwrap().keys().cloned());
            }
        }
        assert!(fields.iter().any(|field| field == "learning_rate"));
        for field in AXOLOTL {
            assert!(!fields.iter().any(|ours| ours == field), "{field}");
        }
    }
}
