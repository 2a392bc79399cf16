//! What the engine needs to know of each token.

use std::path::Path;

use petaflop_model::tokenizer::Tokenizer;
use serde_json::Value;

use crate::load::{LoadError, read_if_there};

/// Files of a model's folder that may name the tokens which end an answer.
const CONFIGS: [&str; 2] = ["generation_config.json", "config.json"];
/// Special tokens that end a text or a turn by their very names.
const ENDS: [&str; 7] = [
    "<|endoftext|>",
    "<|im_end|>",
    "</s>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|end|>",
    "<end_of_turn>",
];

/// The bytes of each token, and which tokens end an answer.
#[derive(Debug)]
pub(crate) struct Vocabulary {
    bytes: Vec<Box<[u8]>>,
    ends: Vec<u32>,
}

impl Vocabulary {
    /// `bytes` by token id; control tokens have none. `ends` are the tokens after
    /// which an answer is complete.
    pub(crate) fn new(bytes: Vec<Box<[u8]>>, ends: Vec<u32>) -> Self {
        Vocabulary { bytes, ends }
    }

    /// The vocabulary of a model `vocab` wide, in which these tokens end an answer, and those
    /// that do by their names. Ids that the tokenizer does not have (some models' embeddings are
    /// padded) add nothing to a text.
    pub(crate) fn of_model(tokenizer: &Tokenizer, vocab: u32, mut ends: Vec<u32>) -> Self {
        let bytes =
            (0..vocab).map(|id| tokenizer.token_bytes(id).unwrap_or_default().into()).collect();
        ends.extend(ENDS.iter().filter_map(|e| tokenizer.special(e)));
        ends.sort_unstable();
        ends.dedup();
        Vocabulary::new(bytes, ends)
    }

    /// Tokens in all; the width of a row of logits.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// What the token adds to the text.
    pub(crate) fn bytes(&self, token: u32) -> &[u8] {
        &self.bytes[token as usize]
    }

    /// Whether the token ends an answer.
    pub(crate) fn ends(&self, token: u32) -> bool {
        self.ends.contains(&token)
    }
}

/// The tokens that a model's folder says to end an answer.
pub(crate) fn configured_ends(folder: &Path) -> Result<Vec<u32>, LoadError> {
    let ends: Result<Vec<_>, _> = CONFIGS.iter().map(|name| ends_in(&folder.join(name))).collect();
    Ok(ends?.concat())
}

/// `eos_token_id` of a Hugging Face file: one id, or a list; none where the file
/// or the field is absent.
fn ends_in(path: &Path) -> Result<Vec<u32>, LoadError> {
    let Some(text) = read_if_there(path)? else {
        return Ok(Vec::new());
    };
    let config: Value = serde_json::from_str(&text).map_err(|e| LoadError::text(path, e))?;
    let ids = match &config["eos_token_id"] {
        Value::Null => return Ok(Vec::new()),
        Value::Array(ids) => ids.iter().collect(),
        one => vec![one],
    };
    ids.into_iter()
        .map(|id| {
            id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| {
                LoadError::text(path, format!("eos_token_id: expected token ids, found {id}"))
            })
        })
        .collect()
}
