//! From what was asked to the tokens that the model continues.

use petaflop_model::chat::{ChatError, ChatTemplate};
use petaflop_model::tokenizer::{END_OF_TEXT, Tokenizer};

use crate::api::Prompt;
use crate::error::ApiError;

/// What turns prompts into tokens.
pub(crate) struct Prompts {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    /// Token ids the model knows; the tokenizer may have fewer.
    vocab: u32,
}

impl Prompts {
    pub(crate) fn new(tokenizer: Tokenizer, template: ChatTemplate, vocab: u32) -> Self {
        Prompts { tokenizer, template, vocab }
    }

    /// The prompt's tokens; never none. Text gives no special token, whatever it
    /// holds: those come from the template, or from the client as ids.
    pub(crate) fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, ApiError> {
        let tokens = match prompt {
            Prompt::Text(text) => self
                .tokenizer
                .encode(text)
                .map_err(|e| ApiError::invalid("prompt", format!("prompt: {e}")))?,
            Prompt::Tokens(ids) => {
                if let Some(bad) = ids.iter().find(|&&id| id >= self.vocab) {
                    return Err(ApiError::invalid(
                        "prompt",
                        format!("prompt: expected token ids below {}, found {bad}", self.vocab),
                    ));
                }
                ids.clone()
            }
            Prompt::Chat(messages) => self
                .template
                .encode(&self.tokenizer, messages, true)
                .map_err(|e: ChatError| ApiError::invalid("messages", e.to_string()))?,
        };
        if !tokens.is_empty() {
            return Ok(tokens);
        }
        // Nothing to continue: the model writes what it likes.
        self.tokenizer
            .special(END_OF_TEXT)
            .map(|id| vec![id])
            .ok_or_else(|| ApiError::invalid("prompt", "prompt: expected some text, found none"))
    }
}
