//! From the texts of an input to documents: the units that are told apart, that
//! are held out for validation, and that are separated in the token stream.
//!
//! | kind | a document is | targets |
//! |---|---|---|
//! | `completion` | a file | every token |
//! | `chat_template` | a line of JSON with `messages` | what the assistant says |
//! | `alpaca` | a line of JSON with `instruction`, `input`, `output` | the output |
//!
//! An alpaca line becomes a conversation of one question (instruction, then input
//! after an empty line) and one answer, so that what is trained is what the chat
//! template asks for when the model is served.

use std::collections::HashSet;

use petaflop_model::chat::{Message, Role};
use petaflop_plan::recipe::DatasetKind;
use serde::Deserialize;

use crate::{error::Error, input::Source};

/// One unit of training text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// blake3 of its content: what it is told apart by.
    pub id: [u8; 32],
    /// The content.
    pub body: Body,
}

/// A document's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Plain text.
    Text(String),
    /// A conversation, to be rendered with the chat template.
    Chat(Vec<Message>),
}

#[derive(Deserialize)]
struct ChatLine {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct AlpacaLine {
    instruction: String,
    #[serde(default)]
    input: String,
    output: String,
}

impl Document {
    pub(crate) fn text(text: String) -> Self {
        Self { id: *blake3::hash(text.as_bytes()).as_bytes(), body: Body::Text(text) }
    }

    fn chat(turns: Vec<Message>) -> Self {
        let mut hasher = blake3::Hasher::new();
        for Message { role, content } in &turns {
            hasher.update(&[*role as u8]);
            hasher.update(&(content.len() as u64).to_le_bytes()).update(content.as_bytes());
        }
        Self { id: *hasher.finalize().as_bytes(), body: Body::Chat(turns) }
    }

    /// Every text in it, in order: what a tokenizer is trained on.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let (text, turns) = match &self.body {
            Body::Text(text) => (Some(text.as_str()), [].as_slice()),
            Body::Chat(turns) => (None, turns.as_slice()),
        };
        text.into_iter().chain(turns.iter().map(|turn| turn.content.as_str()))
    }

    /// Bytes of all its texts.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.texts().map(|text| text.len() as u64).sum()
    }

    /// Bytes of the texts that are targets.
    #[must_use]
    pub fn target_bytes(&self) -> u64 {
        match &self.body {
            Body::Text(text) => text.len() as u64,
            Body::Chat(turns) => turns
                .iter()
                .filter(|turn| turn.role == Role::Assistant)
                .map(|turn| turn.content.len() as u64)
                .sum(),
        }
    }
}

/// The source's documents, in order.
///
/// # Errors
/// A line that is not what `kind` asks for, by file and line.
pub fn read(source: &Source, kind: DatasetKind) -> Result<Vec<Document>, Error> {
    let mut documents = Vec::new();
    for file in &source.texts {
        if kind == DatasetKind::Completion {
            documents.push(Document::text(file.text.clone()));
            continue;
        }
        for (number, line) in (1..).zip(file.text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let document = match kind {
                DatasetKind::ChatTemplate => chat(line),
                _ => alpaca(line),
            };
            documents.push(document.map_err(|problem| {
                let slash = if file.path.is_empty() { "" } else { "/" };
                Error::BadInput(format!(
                    "input '{}': {}{slash}{}:{number}: {problem}",
                    source.name, source.uri, file.path
                ))
            })?);
        }
    }
    if documents.is_empty() {
        return Err(Error::BadInput(format!(
            "input '{}': {}: there is no document in it",
            source.name, source.uri
        )));
    }
    Ok(documents)
}

fn chat(line: &str) -> Result<Document, String> {
    const EXPECTED: &str = r#"expected {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}"#;
    let ChatLine { messages } =
        serde_json::from_str(line).map_err(|error| format!("{error}; {EXPECTED}"))?;
    if !messages.iter().any(|turn| turn.role == Role::Assistant && !turn.content.is_empty()) {
        return Err(format!(
            "no message of the assistant, so there is nothing to learn; {EXPECTED}"
        ));
    }
    Ok(Document::chat(messages))
}

fn alpaca(line: &str) -> Result<Document, String> {
    const EXPECTED: &str = r#"expected {"instruction": "…", "input": "…", "output": "…"}"#;
    let AlpacaLine { instruction, input, output } =
        serde_json::from_str(line).map_err(|error| format!("{error}; {EXPECTED}"))?;
    if output.is_empty() {
        return Err(format!("'output' is empty, so there is nothing to learn; {EXPECTED}"));
    }
    let question = if input.is_empty() { instruction } else { format!("{instruction}\n\n{input}") };
    Ok(Document::chat(vec![
        Message { role: Role::User, content: question },
        Message { role: Role::Assistant, content: output },
    ]))
}

/// Drops every document whose content came before; returns how many.
pub fn remove_duplicates(documents: &mut Vec<Document>) -> u64 {
    let before = documents.len();
    let mut seen = HashSet::with_capacity(before);
    documents.retain(|document| seen.insert(document.id));
    (before - documents.len()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chat_line_keeps_its_turns() {
        let document =
            chat(r#"{"messages":[{"role":"user","content":"1+1?"},{"role":"assistant","content":"2"}],"id":7}"#)
                .unwrap();
        assert_eq!(document.texts().collect::<Vec<_>>(), ["1+1?", "2"]);
        assert_eq!((document.bytes(), document.target_bytes()), (5, 1));
    }

    #[test]
    fn an_alpaca_line_becomes_a_question_and_an_answer() {
        let document = alpaca(r#"{"instruction":"Add.","input":"1 1","output":"2"}"#).unwrap();
        assert_eq!(document.texts().collect::<Vec<_>>(), ["Add.\n\n1 1", "2"]);
    }

    #[test]
    fn a_line_with_nothing_to_learn_is_refused() {
        for (result, problem) in [
            (chat(r#"{"messages":[{"role":"user","content":"hm"}]}"#), "nothing to learn"),
            (chat(r#"{"messages":[{"role":"robot","content":"hm"}]}"#), "unknown variant `robot`"),
            (chat("{"), "EOF"),
            (alpaca(r#"{"instruction":"x","output":""}"#), "nothing to learn"),
            (alpaca(r#"{"instruction":"x"}"#), "missing field `output`"),
        ] {
            let error = result.unwrap_err();
            assert!(error.contains(problem) && error.contains("expected {"), "{error}");
        }
    }

    #[test]
    fn conversations_that_differ_only_in_where_a_turn_ends_are_told_apart() {
        let turn = |content: &str| Message { role: Role::User, content: content.into() };
        assert_ne!(
            Document::chat(vec![turn("ab"), turn("c")]).id,
            Document::chat(vec![turn("a"), turn("bc")]).id
        );
    }

    #[test]
    fn duplicates_are_removed_and_counted() {
        let mut documents: Vec<_> = ["a", "b", "a", "a"].map(|t| Document::text(t.into())).into();
        assert_eq!(remove_duplicates(&mut documents), 2);
        assert_eq!(documents.iter().flat_map(Document::texts).collect::<Vec<_>>(), ["a", "b"]);
    }
}
