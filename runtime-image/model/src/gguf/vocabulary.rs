//! A byte-level BPE tokenizer and a chat template as metadata, and back.
//!
//! llama.cpp reads tokens, their kinds and merges, and knows by name (`tokenizer.ggml.pre`) how a
//! text is cut before they are merged. The whole `tokenizer.json` stands beside them
//! (`tokenizer.huggingface.json`), and is what we read where it is there.

use petaflop_plan::recipe::SPECIAL_TOKENS;
use serde_json::{Map, Value as Json, json};

use super::read::Contents;
use super::value::{Array, Value};
use crate::tokenizer::{Tokenizer, TokenizerError};

const WHOLE: &str = "tokenizer.huggingface.json";
const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const KINDS: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
const TEMPLATE: &str = "tokenizer.chat_template";

// Kinds of tokens (`enum llama_token_type`).
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// Ways of cutting a text that llama.cpp knows by name and that we can rebuild.
const CUTS: [&str; 4] = ["gpt-2", "llama-bpe", "qwen2", "smollm"];

/// The entries for a model whose rows of logits are `vocab` wide.
///
/// # Errors
/// A tokenizer that llama.cpp has no name for.
pub fn entries(
    tokenizer: &Tokenizer,
    template: &str,
    vocab: u32,
) -> Result<Vec<(String, Value)>, TokenizerError> {
    let bytes = tokenizer.to_bytes()?;
    let whole: Json = serde_json::from_slice(&bytes).map_err(|e| failed(e.to_string()))?;
    let cut = CUTS.iter().find(|cut| plain(&whole["pre_tokenizer"]) == plain(&pre_tokenizer(cut)));
    let cut = cut.ok_or_else(|| {
        failed(format!(
            "its pre_tokenizer is none that GGUF has a name for (known are those of {}); use \
             safetensors",
            CUTS.join(", ")
        ))
    })?;
    let (tokens, kinds) = tokens(&whole, vocab);
    let merges = whole["model"]["merges"].as_array().into_iter().flatten();
    let merges = merges.filter_map(|merge| match merge {
        Json::String(pair) => Some(pair.clone()),
        pair => Some(format!("{} {}", pair[0].as_str()?, pair[1].as_str()?)),
    });
    let mut entries = vec![
        (MODEL, "gpt2".into()),
        (PRE, (*cut).into()),
        (TOKENS, Value::Array(Array::String(tokens))),
        (KINDS, Value::Array(Array::I32(kinds))),
        (MERGES, Value::Array(Array::String(merges.collect()))),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ];
    // Those that we train with; others' ends are found by their names, as everywhere.
    let [end_of_text, _, end_of_turn] = SPECIAL_TOKENS.map(|token| tokenizer.special(token));
    let end = [("bos", end_of_text), ("eos", end_of_text), ("eot", end_of_turn)];
    let keys = end.map(|(name, _)| format!("tokenizer.ggml.{name}_token_id"));
    for (key, (_, id)) in keys.iter().zip(end) {
        entries.extend(id.map(|id| (key.as_str(), Value::U32(id))));
    }
    entries.push((TEMPLATE, template.into()));
    entries.push((WHOLE, Value::String(String::from_utf8_lossy(&bytes).into_owned())));
    Ok(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
}

/// Every token's text and kind, by id; what the tokenizer does not have is unused.
fn tokens(whole: &Json, vocab: u32) -> (Vec<String>, Vec<i32>) {
    let mut tokens: Vec<(String, i32)> =
        (0..vocab).map(|id| (format!("[PAD{id}]"), UNUSED)).collect();
    let mut set = |id: Option<u64>, text: &str, kind| {
        let slot = id.and_then(|id| tokens.get_mut(usize::try_from(id).ok()?));
        if let Some(slot) = slot {
            *slot = (text.to_owned(), kind);
        }
    };
    for (text, id) in whole["model"]["vocab"].as_object().into_iter().flatten() {
        set(id.as_u64(), text, NORMAL);
    }
    for added in whole["added_tokens"].as_array().into_iter().flatten() {
        let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
        set(added["id"].as_u64(), added["content"].as_str().unwrap_or_default(), kind);
    }
    tokens.into_iter().unzip()
}

/// The tokenizer of a file.
///
/// # Errors
/// An entry that is missing or that we cannot rebuild a tokenizer of, by key.
pub fn tokenizer(contents: &Contents) -> Result<Tokenizer, TokenizerError> {
    let entry = |key: &str| contents.metadata.get(key);
    if let Some(whole) = entry(WHOLE) {
        let text = whole.as_str().ok_or_else(|| failed(format!("{WHOLE}: expected text")))?;
        return Tokenizer::from_bytes(text.as_bytes());
    }
    let text = |key: &str, known: &[&str]| {
        let found = entry(key).and_then(Value::as_str);
        found.filter(|found| known.contains(found)).ok_or_else(|| {
            let found = entry(key).map_or("none".to_owned(), Value::shown);
            failed(format!("{key}: expected {}, found {found}", known.join(", ")))
        })
    };
    text(MODEL, &["gpt2"])?;
    let cut = text(PRE, &CUTS)?;
    let strings = |key: &str| {
        let found = entry(key).and_then(Value::as_strings);
        found.ok_or_else(|| failed(format!("{key}: expected an array of texts")))
    };
    let (tokens, merges) = (strings(TOKENS)?, strings(MERGES)?);
    let kinds: &[i32] = match entry(KINDS) {
        Some(Value::Array(Array::I32(kinds))) if kinds.len() == tokens.len() => kinds,
        _ => {
            let count = tokens.len();
            return Err(failed(format!("{KINDS}: expected {count} numbers of 32 bits")));
        }
    };
    let (mut vocab, mut added) = (Map::new(), Vec::new());
    for (id, (text, &kind)) in tokens.iter().zip(kinds).enumerate() {
        if kind == UNUSED {
            continue;
        }
        if vocab.insert(text.clone(), id.into()).is_some() {
            return Err(failed(format!("{TOKENS}: {text:?} is there twice")));
        }
        if kind != NORMAL {
            added.push(json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED,
            }));
        }
    }
    let whole = json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": pre_tokenizer(cut),
        "decoder": byte_level(true),
        // What is a token is one, whatever the merges would make of it.
        "model": {"type": "BPE", "ignore_merges": cut == "llama-bpe", "vocab": vocab, "merges": merges},
    });
    Tokenizer::from_bytes(whole.to_string().as_bytes())
}

/// The chat template of a file, if it has one.
pub fn template(contents: &Contents) -> Option<&str> {
    contents.metadata.get(TEMPLATE).and_then(Value::as_str)
}

/// The tokens that end a text, a turn or a message.
pub fn ends(contents: &Contents) -> Vec<u32> {
    let id = |end: &str| {
        let key = format!("tokenizer.ggml.{end}_token_id");
        contents.metadata.get(&key)?.as_u64()?.try_into().ok()
    };
    ["eos", "eot", "eom"].into_iter().filter_map(id).collect()
}

/// How a text is cut, as `tokenizer.json` says it. Sources: llama.cpp's `unicode.cpp` and
/// `llama-vocab.cpp`, and the `tokenizer.json` of GPT-2, Llama 3, Qwen2 and SmolLM2.
fn pre_tokenizer(cut: &str) -> Json {
    let split = |digits: &str| {
        let pattern = format!(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        );
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false})
    };
    let both = |first: Json, regex| json!({"type": "Sequence", "pretokenizers": [first, byte_level(regex)]});
    match cut {
        "llama-bpe" => both(split(r"\p{N}{1,3}"), false),
        "qwen2" => both(split(r"\p{N}"), false),
        "smollm" => both(json!({"type": "Digits", "individual_digits": true}), true),
        _ => byte_level(true),
    }
}

fn byte_level(regex: bool) -> Json {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex})
}

/// Without what says nothing of tokens, and with what may be left out.
fn plain(pre_tokenizer: &Json) -> Json {
    let mut plain = pre_tokenizer.clone();
    if let Some(members) = plain.as_object_mut() {
        if members.get("type") == Some(&"ByteLevel".into()) {
            members.remove("trim_offsets");
            members.entry("use_regex").or_insert(true.into());
        }
        if let Some(parts) = members.get_mut("pretokenizers").and_then(Json::as_array_mut) {
            parts.iter_mut().for_each(|part| *part = self::plain(part));
        }
    }
    plain
}

fn failed(what: String) -> TokenizerError {
    TokenizerError::Failed(what)
}
