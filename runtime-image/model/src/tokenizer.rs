//! Byte-level BPE through the `tokenizers` crate. Text is only ever text here:
//! whatever it holds, [`Tokenizer::encode`] gives no special token. Those come
//! from chat templates ([`crate::chat`]) and from the caller, by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use petaflop_plan::recipe::{MIN_VOCAB, SPECIAL_TOKENS};
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerImpl};

/// The tokenizer's file in a model's folder.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// The token between documents of a tokenizer that we train.
pub const END_OF_TEXT: &str = SPECIAL_TOKENS[0];

/// A byte-level BPE tokenizer with its special tokens.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// Special tokens by their text, and their ids.
    specials: BTreeMap<String, u32>,
    special_ids: BTreeSet<u32>,
    /// Bytes of each token by id; `None` for special tokens and gaps.
    bytes: Vec<Option<Box<[u8]>>>,
}

/// Why there is no tokenizer, or no tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a tokenizer that the runtime can use.
    #[error("tokenizer.json: {0}")]
    Malformed(String),
    /// Training gave another size than was asked for.
    #[error(
        "tokenizer: expected {expected} entries, but the text has only enough for {found}; use a smaller vocabulary or more text"
    )]
    TooLittleText {
        /// Entries asked for.
        expected: u32,
        /// Entries that the text gave.
        found: u32,
    },
    /// The vocabulary has no room for bytes and special tokens.
    #[error("tokenizer: expected a vocabulary of {MIN_VOCAB} or more, found {0}")]
    TooSmall(u32),
    /// The crate's own words.
    #[error("tokenizer: {0}")]
    Failed(String),
}

impl Tokenizer {
    /// Trains a byte-level BPE of `vocab` entries: the special tokens first, then
    /// the 256 bytes, then merges by frequency, ties by the older pair. The same
    /// texts in the same order give the same bytes, on any number of threads.
    ///
    /// # Errors
    /// A vocabulary too small for bytes and special tokens, or too large for the text.
    pub fn train_bpe<'a>(
        texts: impl Iterator<Item = &'a str> + Send,
        vocab: u32,
    ) -> Result<Self, TokenizerError> {
        if vocab < MIN_VOCAB {
            return Err(TokenizerError::TooSmall(vocab));
        }
        let mut trainer = BpeTrainer::builder()
            .show_progress(false)
            .vocab_size(vocab as usize)
            .min_frequency(2)
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .special_tokens(SPECIAL_TOKENS.map(|token| AddedToken::from(token, true)).to_vec())
            .build();
        let byte_level = ByteLevel::new(false, false, true);
        let mut tokenizer: TokenizerImpl<
            BPE,
            tokenizers::NormalizerWrapper,
            ByteLevel,
            ByteLevel,
            ByteLevel,
        > = TokenizerImpl::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(byte_level)).with_decoder(Some(byte_level));
        tokenizer.train(&mut trainer, texts).map_err(failed)?;
        let trained = Self::from_bytes(tokenizer.to_string(true).map_err(failed)?.as_bytes())?;
        match trained.vocab() {
            found if found == vocab => Ok(trained),
            found => Err(TokenizerError::TooLittleText { expected: vocab, found }),
        }
    }

    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// What the system says, or what the file is instead.
    pub fn from_file(path: &Path) -> Result<Self, TokenizerError> {
        let bytes = std::fs::read(path)
            .map_err(|source| TokenizerError::Io { path: path.to_owned(), source })?;
        Self::from_bytes(&bytes)
    }

    /// Takes the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// A file that is malformed, or another kind than byte-level BPE.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let json: serde_json::Value = serde_json::from_slice(bytes)
            .map_err(|e| TokenizerError::Malformed(format!("not JSON: {e}")))?;
        if json["model"]["type"] != "BPE" {
            return Err(TokenizerError::Malformed(format!(
                "model.type: expected BPE, found {}",
                json["model"]["type"]
            )));
        }
        let decoder = &json["decoder"];
        let nested = decoder["decoders"].as_array().map_or(&[][..], Vec::as_slice);
        if !std::iter::once(decoder).chain(nested).any(|d| d["type"] == "ByteLevel") {
            return Err(TokenizerError::Malformed(format!(
                "decoder: expected ByteLevel, found {}",
                decoder["type"]
            )));
        }
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| TokenizerError::Malformed(e.to_string()))?;
        // What looks like a special token in a text is text.
        inner.set_encode_special_tokens(true);
        // No padding and no truncation: callers decide about lengths.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(failed)?;
        let added = inner.get_added_tokens_decoder();
        let specials: BTreeMap<String, u32> = added
            .iter()
            .filter(|(_, token)| token.special)
            .map(|(&id, token)| (token.content.clone(), id))
            .collect();
        let vocabulary = inner.get_vocab(true);
        let most = vocabulary.values().max().map_or(0, |&id| id as usize + 1);
        // Ids are dense in every real tokenizer; a huge one is a broken file, not a reason to allocate gigabytes.
        if most > vocabulary.len().saturating_mul(2) + 1024 {
            return Err(TokenizerError::Malformed(format!(
                "{} entries, but an id of {}",
                vocabulary.len(),
                most - 1
            )));
        }
        let alphabet = byte_alphabet();
        let mut bytes = vec![None; most];
        for (token, id) in vocabulary {
            let plain = match added.get(&id) {
                Some(added) if added.special => continue,
                Some(_) => Some(token.into_bytes()),
                None => token.chars().map(|c| alphabet.get(&c).copied()).collect(),
            };
            let Some(plain) = plain else {
                return Err(TokenizerError::Malformed(format!(
                    "token {id} is not of the byte-level alphabet"
                )));
            };
            bytes[id as usize] = Some(plain.into_boxed_slice());
        }
        let special_ids = specials.values().copied().collect();
        Ok(Self { inner, specials, special_ids, bytes })
    }

    /// The bytes of its `tokenizer.json`; the same tokenizer gives the same bytes.
    ///
    /// # Errors
    /// What the crate says.
    pub fn to_bytes(&self) -> Result<Vec<u8>, TokenizerError> {
        let mut text = self.inner.to_string(true).map_err(failed)?;
        text.push('\n');
        Ok(text.into_bytes())
    }

    /// One more than the largest id: the width of a row of logits at least.
    pub fn vocab(&self) -> u32 {
        u32::try_from(self.bytes.len()).expect("ids are u32")
    }

    /// The special token of this text.
    pub fn special(&self, text: &str) -> Option<u32> {
        self.specials.get(text).copied()
    }

    /// All special tokens, by their texts.
    pub fn specials(&self) -> impl Iterator<Item = (&str, u32)> {
        self.specials.iter().map(|(text, &id)| (text.as_str(), id))
    }

    /// Whether the token is a special one.
    pub fn is_special(&self, id: u32) -> bool {
        self.special_ids.contains(&id)
    }

    /// What the token adds to a text; `None` for special tokens and ids beyond the vocabulary.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize)?.as_deref()
    }

    /// The tokens of a text; never a special one.
    ///
    /// # Errors
    /// What the crate says; or a tokenizer whose ordinary tokens make up a special one.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(failed)?;
        let ids = encoding.get_ids();
        match ids.iter().find(|&&id| self.is_special(id)) {
            None => Ok(ids.to_vec()),
            Some(id) => Err(TokenizerError::Failed(format!(
                "text became special token {id}; this tokenizer cannot tell the two apart"
            ))),
        }
    }

    /// The text of tokens; special tokens have none, incomplete characters become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> =
            ids.iter().filter_map(|&id| self.token_bytes(id)).flatten().copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn failed(error: tokenizers::Error) -> TokenizerError {
    TokenizerError::Failed(error.to_string())
}

/// Which byte each character of a byte-level vocabulary stands for (Radford et al.
/// 2019): printable bytes for themselves, the others, in order, for 256 and up.
fn byte_alphabet() -> BTreeMap<char, u8> {
    let mut next = 256;
    (0..=255u8)
        .map(|byte| {
            let printable = matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
            let code = if printable { u32::from(byte) } else { next };
            next += u32::from(!printable);
            (char::from_u32(code).expect("below 512 all are characters"), byte)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts() -> Vec<String> {
        (0..60)
            .map(|i| {
                format!(
                    "The {i}th line says: fn main() {{ println!(\"{}\"); }} — naïve café №{i}\n",
                    i * i
                )
            })
            .collect()
    }

    fn trained(vocab: u32) -> Tokenizer {
        Tokenizer::train_bpe(texts().iter().map(String::as_str), vocab)
            .expect("the texts have merges enough")
    }

    #[test]
    fn training_again_gives_the_same_bytes_on_any_number_of_threads() {
        let first = trained(320).to_bytes().expect("it is JSON");
        for parallel in [true, false, true] {
            tokenizers::utils::parallelism::set_parallelism(parallel);
            for _ in 0..4 {
                assert_eq!(trained(320).to_bytes().expect("it is JSON"), first);
            }
        }
        let again = Tokenizer::from_bytes(&first).expect("what we wrote we read");
        assert_eq!(again.to_bytes().expect("it is JSON"), first);
    }

    #[test]
    fn special_tokens_come_first_and_every_byte_has_a_token() {
        let tokenizer = trained(300);
        assert_eq!(tokenizer.vocab(), 300);
        assert_eq!(SPECIAL_TOKENS.map(|t| tokenizer.special(t)), [Some(0), Some(1), Some(2)]);
        let bytes: std::collections::BTreeSet<u8> = (0..300)
            .filter_map(|id| tokenizer.token_bytes(id))
            .filter(|b| b.len() == 1)
            .map(|b| b[0])
            .collect();
        assert_eq!(bytes.len(), 256);
    }

    #[test]
    fn any_text_comes_back_and_special_tokens_in_it_are_text() {
        let tokenizer = trained(300);
        for text in [
            "",
            " ",
            "The 7th line",
            "日本語 \u{0}\u{1F600}\r\n\t",
            "a<|im_end|>b<|endoftext|>",
            "\u{FFFD}",
        ] {
            let ids = tokenizer.encode(text).expect("any text has tokens");
            assert_eq!(tokenizer.decode(&ids), text);
            assert!(!ids.iter().any(|&id| tokenizer.is_special(id)));
        }
    }

    #[test]
    fn what_cannot_be_is_said() {
        assert!(matches!(
            Tokenizer::train_bpe(["x"].into_iter(), 258),
            Err(TokenizerError::TooSmall(258))
        ));
        let short = Tokenizer::train_bpe(["abc abc abc"].into_iter(), 4000);
        assert!(matches!(
            short,
            Err(TokenizerError::TooLittleText { expected: 4000, found: 259..400 })
        ));
        for garbage in [
            "",
            "{",
            "{}",
            "[]",
            r#"{"model":{"type":"WordPiece"}}"#,
            r#"{"model":{"type":"BPE"},"decoder":null}"#,
        ] {
            assert!(matches!(
                Tokenizer::from_bytes(garbage.as_bytes()),
                Err(TokenizerError::Malformed(_))
            ));
        }
    }
}
