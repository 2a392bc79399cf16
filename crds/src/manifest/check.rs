//! Checks a located tree against a kind's OpenAPI schema: the same schema that
//! the API server is given, with messages for people.

use regex::Regex;
use serde_json::Value as Json;

use super::tree::{Node, Place, Value};
use crate::scalar::{MONEY_PATTERN, QUANTITY_PATTERN, SPAN_PATTERN};

/// What is wrong, where, and how to mend it.
pub(super) struct Finding {
    pub(super) at: Place,
    pub(super) path: String,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

/// What each pattern of the schemas means, in words.
const PATTERNS: &[(&str, &str)] = &[
    (
        MONEY_PATTERN,
        "dollars as a decimal string such as \"2.50\" (at most 9 digits before the point and 6 after)",
    ),
    (QUANTITY_PATTERN, "a quantity such as 8, 500m, 0.5 or 64Gi"),
    (
        SPAN_PATTERN,
        "a span of time such as 90s, 45m, 52h or 2d12h",
    ),
    (
        crate::shared::ACCELERATOR_PATTERN,
        "an accelerator's name such as H100 or A100-SXM-80",
    ),
    (
        crate::shared::CAPABILITY_PATTERN,
        "a compute capability such as \"8.0\"",
    ),
    (
        crate::shared::ENV_PATTERN,
        "a name of letters, digits and '_' that does not start with a digit",
    ),
    (crate::shared::ABSOLUTE_PATTERN, "an absolute path"),
    (
        crate::shared::LABEL_PATTERN,
        "lower-case letters, digits and '-', with a letter or digit at both ends",
    ),
    (crate::shared::HOST_PATTERN, "a host name in lower case"),
    (crate::shared::HASH_PATTERN, "64 lower-case hex digits"),
    (
        crate::shared::DIGEST_PATTERN,
        "blake3: and 64 lower-case hex digits",
    ),
    (crate::shared::STORE_PATTERN, "an s3:// or file:// URI"),
    (
        crate::shared::INPUT_PATTERN,
        "a URI of s3://, https://, file://, configmap://, artifact:<64 hex digits> or builtin:petaflop",
    ),
];

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

/// Checks `node` against `schema`; findings are added in the order of the source.
pub(super) fn check(
    node: &Node,
    at: Place,
    schema: &Json,
    path: &str,
    findings: &mut Vec<Finding>,
) {
    let mut report = |message: String, help: Option<String>| {
        findings.push(Finding {
            at,
            path: path.to_owned(),
            message,
            help,
        });
    };
    let value = &node.value;
    if schema.get("x-kubernetes-int-or-string").is_some() {
        match value {
            Value::Text(text) => check_pattern(text, schema, &mut report),
            Value::Integer(number) => check_pattern(&number.to_string(), schema, &mut report),
            Value::Number(number) => report(
                format!(
                    "expected a quantity such as 8, 500m, 0.5 or 64Gi, found the number {number}"
                ),
                Some(format!("put it in quotes: \"{number}\"")),
            ),
            other => report(
                format!("expected a quantity such as 8, 500m, 0.5 or 64Gi, found {other}"),
                None,
            ),
        }
        return;
    }
    let kind = schema
        .get("type")
        .and_then(Json::as_str)
        .unwrap_or_default();
    match (kind, value) {
        ("object", Value::Map(_)) => check_map(node, at, schema, path, findings),
        ("array", Value::List(items)) => check_list(items, at, schema, path, findings),
        ("string", Value::Text(text)) => check_text(text, schema, &mut report),
        ("string", Value::Bool(_) | Value::Integer(_) | Value::Number(_)) => report(
            format!(
                "expected {}, found {value} without quotes",
                expected(schema)
            ),
            Some(format!("put it in quotes: \"{value}\"")),
        ),
        ("boolean", Value::Bool(_)) => {}
        ("integer", Value::Integer(number)) => check_range(*number as f64, schema, &mut report),
        ("number", Value::Integer(number)) => check_range(*number as f64, schema, &mut report),
        ("number", Value::Number(number)) => check_range(*number, schema, &mut report),
        ("number" | "integer" | "boolean", Value::Text(text)) if reads_as(kind, text) => report(
            format!("expected {}, found the text {value}", expected(schema)),
            Some(format!("take the quotes away: {text}")),
        ),
        ("object" | "array" | "string" | "boolean" | "integer" | "number", _) => {
            report(
                format!("expected {}, found {value}", expected(schema)),
                None,
            );
        }
        // A schema without a type takes anything.
        _ => {}
    }
}

/// Whether the text would be a value of this type without its quotes.
fn reads_as(kind: &str, text: &str) -> bool {
    match kind {
        "integer" => text.parse::<i64>().is_ok(),
        "number" => text.parse::<f64>().is_ok(),
        _ => matches!(text, "true" | "false"),
    }
}

/// What a schema wants, in words.
fn expected(schema: &Json) -> String {
    if let Some(words) = pattern_words(schema) {
        return words.to_owned();
    }
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        let values: Vec<&str> = values.iter().filter_map(Json::as_str).collect();
        return format!("one of {}", values.join(", "));
    }
    match schema.get("type").and_then(Json::as_str) {
        Some("object") => "a map".to_owned(),
        Some("array") => "a list".to_owned(),
        Some("string") => "text".to_owned(),
        Some("boolean") => "true or false".to_owned(),
        Some("integer") => "a whole number".to_owned(),
        Some("number") => "a number".to_owned(),
        _ => "a value".to_owned(),
    }
}

fn pattern_words(schema: &Json) -> Option<&'static str> {
    let pattern = schema.get("pattern").and_then(Json::as_str)?;
    PATTERNS
        .iter()
        .find(|(known, _)| *known == pattern)
        .map(|(_, words)| *words)
}

fn check_map(node: &Node, at: Place, schema: &Json, path: &str, findings: &mut Vec<Finding>) {
    let Value::Map(entries) = &node.value else {
        return;
    };
    let join = |key: &str| {
        if path.is_empty() {
            key.to_owned()
        } else {
            format!("{path}.{key}")
        }
    };
    if let Some(most) = schema.get("maxProperties").and_then(Json::as_u64)
        && entries.len() as u64 > most
    {
        findings.push(Finding {
            at,
            path: path.to_owned(),
            message: format!("expected at most {most} entries, found {}", entries.len()),
            help: None,
        });
    }
    let known = schema.get("properties").and_then(Json::as_object);
    let values = schema
        .get("additionalProperties")
        .filter(|values| values.is_object());
    let open = schema.get("x-kubernetes-preserve-unknown-fields").is_some()
        || (known.is_none() && values.is_none());
    for entry in entries {
        let path = join(&entry.key);
        let Some(inner) = known.and_then(|known| known.get(&entry.key)).or(values) else {
            if !open {
                let names: Vec<&str> = known
                    .into_iter()
                    .flat_map(|known| known.keys())
                    .map(String::as_str)
                    .collect();
                findings.push(Finding {
                    at: entry.key_at,
                    help: Some(unknown_help(&entry.key, &names)),
                    message: "unknown field".to_owned(),
                    path,
                });
            }
            continue;
        };
        let at = match entry.node.value {
            Value::Map(_) | Value::List(_) => entry.key_at,
            _ => entry.node.at,
        };
        // A null is a field that was left out: what is required is missed below.
        if !matches!(entry.node.value, Value::Null) {
            check(&entry.node, at, inner, &path, findings);
        }
    }
    for name in schema
        .get("required")
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
        .filter_map(Json::as_str)
    {
        let entry = node.get(name);
        if entry.is_none_or(|entry| matches!(entry.node.value, Value::Null)) {
            let inner = known.and_then(|known| known.get(name));
            findings.push(Finding {
                at: entry.map_or(at, |entry| entry.key_at),
                path: join(name),
                message: format!(
                    "required field is missing: expected {}",
                    inner.map_or("a value".to_owned(), expected)
                ),
                help: inner
                    .and_then(|inner| inner.get("description"))
                    .and_then(Json::as_str)
                    .map(first_sentence),
            });
        }
    }
}

/// What to do about a field that does not exist.
fn unknown_help(key: &str, names: &[&str]) -> String {
    let meant = OTHER_NAMES
        .iter()
        .find(|(other, ours)| *other == key && names.contains(ours))
        .map(|(_, ours)| *ours)
        .or_else(|| crate::nearest(key, names));
    if let Some(name) = meant {
        return format!("did you mean {name}?");
    }
    if names.contains(&"micro_batch_size") && AXOLOTL.contains(&key) {
        return format!("axolotl has {key}; petaflop has not built it: leave it out");
    }
    format!("known here: {}", names.join(", "))
}

/// A description's first line, for a help.
fn first_sentence(text: &str) -> String {
    text.lines()
        .next()
        .unwrap_or_default()
        .trim_end_matches('.')
        .to_owned()
}

fn check_list(items: &[Node], at: Place, schema: &Json, path: &str, findings: &mut Vec<Finding>) {
    let count = items.len() as u64;
    let bound = |name: &str| schema.get(name).and_then(Json::as_u64);
    let message = match (bound("minItems"), bound("maxItems")) {
        (Some(least), _) if count < least => Some(format!(
            "expected at least {least} in the list, found {count}"
        )),
        (_, Some(most)) if count > most => Some(format!(
            "expected at most {most} in the list, found {count}"
        )),
        _ => None,
    };
    if let Some(message) = message {
        findings.push(Finding {
            at,
            path: path.to_owned(),
            message,
            help: None,
        });
        return;
    }
    let inner = schema.get("items").unwrap_or(&Json::Null);
    for (index, item) in items.iter().enumerate() {
        check(item, item.at, inner, &format!("{path}[{index}]"), findings);
    }
    // Sets and maps by key, as Kubernetes merges them: nothing twice.
    let identity = |item: &Node| match schema.get("x-kubernetes-list-type").and_then(Json::as_str) {
        Some("set") => Some(item.json().to_string()),
        Some("map") => {
            let keys = schema
                .get("x-kubernetes-list-map-keys")
                .and_then(Json::as_array)?;
            keys.iter()
                .filter_map(Json::as_str)
                .map(|key| item.text(key))
                .collect::<Option<Vec<_>>>()
                .map(|keys| keys.join("/"))
        }
        _ => None,
    };
    let mut seen = std::collections::HashMap::new();
    for (index, item) in items.iter().enumerate() {
        let Some(identity) = identity(item) else {
            continue;
        };
        if let Some(first) = seen.get(&identity) {
            findings.push(Finding {
                at: item.at,
                path: format!("{path}[{index}]"),
                message: format!(
                    "{} stands here twice: it is {path}[{first}] already",
                    identity.trim_matches('"')
                ),
                help: None,
            });
        } else {
            seen.insert(identity, index);
        }
    }
}

fn check_text(text: &str, schema: &Json, report: &mut impl FnMut(String, Option<String>)) {
    if let Some(values) = schema.get("enum").and_then(Json::as_array) {
        let values: Vec<&str> = values.iter().filter_map(Json::as_str).collect();
        if !values.contains(&text) {
            let help = crate::nearest(text, &values).map(|near| format!("did you mean {near}?"));
            report(
                format!("expected one of {}, found {text:?}", values.join(", ")),
                help,
            );
        }
        return;
    }
    let length = text.chars().count() as u64;
    let bound = |name: &str| schema.get(name).and_then(Json::as_u64);
    match (bound("minLength"), bound("maxLength")) {
        (Some(least), _) if length < least && pattern_words(schema).is_none() => {
            let wanted = if least == 1 {
                "text".to_owned()
            } else {
                format!("at least {least} characters")
            };
            report(format!("expected {wanted}, found {text:?}"), None);
        }
        (_, Some(most)) if length > most => {
            report(
                format!("expected at most {most} characters, found {length}"),
                None,
            );
        }
        _ => {
            if schema.get("format").and_then(Json::as_str) == Some("date-time")
                && text.parse::<jiff::Timestamp>().is_err()
            {
                report(
                    format!(
                        "expected a point in time such as 2027-01-31T18:00:00Z (RFC 3339), found {text:?}"
                    ),
                    None,
                );
            }
            check_pattern(text, schema, report);
        }
    }
}

fn check_pattern(text: &str, schema: &Json, report: &mut impl FnMut(String, Option<String>)) {
    let Some(pattern) = schema.get("pattern").and_then(Json::as_str) else {
        return;
    };
    let matches = Regex::new(pattern).is_ok_and(|regex| regex.is_match(text));
    if !matches {
        let wanted = match pattern_words(schema) {
            Some(words) => words.to_owned(),
            None => format!("text that matches {pattern}"),
        };
        report(
            format!("expected {wanted}, found {}", Value::Text(text.to_owned())),
            None,
        );
    }
}

fn check_range(number: f64, schema: &Json, report: &mut impl FnMut(String, Option<String>)) {
    let bound = |name: &str| schema.get(name).and_then(Json::as_f64);
    match (bound("minimum"), bound("maximum")) {
        (Some(least), _) if number < least => {
            report(format!("expected at least {least}, found {number}"), None)
        }
        (_, Some(most)) if number > most => {
            report(format!("expected at most {most}, found {number}"), None)
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pattern in a schema.
    fn patterns(schema: &Json, found: &mut Vec<String>) {
        match schema {
            Json::Object(map) => {
                for (key, value) in map {
                    match value {
                        Json::String(pattern) if key == "pattern" => found.push(pattern.clone()),
                        _ => patterns(value, found),
                    }
                }
            }
            Json::Array(items) => items.iter().for_each(|item| patterns(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_pattern_of_the_schemas_has_words() {
        let mut found = Vec::new();
        for kind in crate::crds::all() {
            patterns(&serde_json::to_value(kind).unwrap(), &mut found);
        }
        assert!(found.len() > 20);
        for pattern in found {
            assert!(
                PATTERNS.iter().any(|(known, _)| *known == pattern),
                "{pattern} has no words"
            );
            assert!(Regex::new(&pattern).is_ok(), "{pattern}");
            assert!(
                !pattern.contains(r"\d"),
                "{pattern}: means ASCII digits to Go and any digit to us"
            );
        }
    }

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
