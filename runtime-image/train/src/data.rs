//! From a job's inputs to token streams: documents without duplicates → split →
//! tokenizer → one stream of samples for each split.

use std::{path::Path, thread};

use petaflop_model::{
    chat::{ChatTemplate, DEFAULT_TEMPLATE, TEMPLATE_FILE},
    tokenizer::{END_OF_TEXT, TOKENIZER_FILE, Tokenizer},
};
use petaflop_plan::recipe::{ResolvedRecipe, TokenizerSource};

use crate::{
    artifact::Documents,
    document::{self, Body, Document},
    error::Error,
    input::Source,
    pack::Stream,
    split::{self, Split},
    xz::Measurement,
};

/// Everything a run reads.
pub(crate) struct Data {
    /// The tokenizer's file.
    pub(crate) tokenizer: Vec<u8>,
    /// The chat template's text.
    pub(crate) chat_template: String,
    /// Trained on.
    pub(crate) train: Stream,
    /// Measured; none where nothing is held out.
    pub(crate) validation: Option<Stream>,
    /// What became of the documents.
    pub(crate) documents: Documents,
    /// What xz makes of the same split; on its way.
    pub(crate) xz: Option<Measurement>,
}

impl Data {
    /// `base`: the base model's folder; `tokenizer`: the one of a checkpoint, which
    /// is the one that would be trained again.
    pub(crate) fn prepare(
        recipe: &ResolvedRecipe,
        sources: &[Source],
        base: Option<&Path>,
        tokenizer: Option<&[u8]>,
    ) -> Result<Self, Error> {
        let mut documents = Vec::new();
        for dataset in &recipe.datasets {
            let source = sources.iter().find(|source| source.name == dataset.input);
            let source = source.ok_or_else(|| {
                Error::Internal(format!("input '{}' was not read", dataset.input))
            })?;
            documents.extend(document::read(source, dataset.kind)?);
        }
        let duplicates_removed = document::remove_duplicates(&mut documents);
        let split = split::split(documents, recipe.val_set_size, recipe.seed);
        let xz = Measurement::start(&split);

        let tokenizer = match (tokenizer, &recipe.tokenizer, base) {
            (Some(bytes), _, _) => Tokenizer::from_bytes(bytes),
            (None, TokenizerSource::TrainBpe { vocab }, _) => {
                Tokenizer::train_bpe(split.train.iter().flat_map(Document::texts), *vocab)
            }
            (None, TokenizerSource::Base, Some(folder)) => {
                Tokenizer::from_file(&folder.join(TOKENIZER_FILE))
            }
            (None, TokenizerSource::Base, None) => {
                return Err(Error::BadInput(
                    "recipe: tokenizer: there is no base model to take it from".into(),
                ));
            }
        };
        let tokenizer = tokenizer.map_err(bad_input)?;
        let template = template(base)?;
        let encoder = Encoder {
            tokenizer: &tokenizer,
            template: &template,
            separator: separator(&tokenizer)?,
        };
        let train = encoder.stream(&split.train, recipe.sequence_len)?;
        let validation = encoder.stream(&split.validation, recipe.sequence_len)?;
        let Split { train: train_documents, validation: validation_documents } = &split;
        let documents = Documents {
            train: train_documents.len() as u64,
            validation: validation_documents.len() as u64,
            duplicates_removed,
            train_bytes: train_documents.iter().map(Document::bytes).sum(),
            train_tokens: train.tokens(),
            validation_targets: validation.targets(),
            validation_bytes: validation_documents.iter().map(Document::target_bytes).sum(),
        };
        Ok(Self {
            tokenizer: tokenizer.to_bytes().map_err(bad_input)?,
            chat_template: template.source().to_owned(),
            validation: (documents.validation_bytes > 0).then_some(validation),
            train,
            documents,
            xz: Some(xz),
        })
    }
}

/// The base model's, where it brings one; else ChatML.
fn template(base: Option<&Path>) -> Result<ChatTemplate, Error> {
    let path = base.map(|folder| folder.join(TEMPLATE_FILE)).filter(|path| path.exists());
    let Some(path) = path else {
        return ChatTemplate::new(DEFAULT_TEMPLATE).map_err(bad_input);
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| bad_input(format!("{}: {error}", path.display())))?;
    ChatTemplate::new(&text).map_err(|error| bad_input(format!("{}: {error}", path.display())))
}

/// The token between documents, by the names that base models give it.
fn separator(tokenizer: &Tokenizer) -> Result<u32, Error> {
    const NAMES: [&str; 4] = [END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>"];
    NAMES.iter().find_map(|name| tokenizer.special(name)).ok_or_else(|| {
        bad_input(format!(
            "tokenizer.json: there is no token to end a document: expected one of {}",
            NAMES.join(", ")
        ))
    })
}

fn bad_input(error: impl std::fmt::Display) -> Error {
    Error::BadInput(error.to_string())
}

/// From documents to tokens.
struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    template: &'a ChatTemplate,
    separator: u32,
}

/// Tokens, each with whether it is a target.
type Tokens = Vec<(u32, bool)>;

impl Encoder<'_> {
    fn stream(&self, documents: &[Document], sequence_len: u32) -> Result<Stream, Error> {
        let mut stream = Stream::new(self.separator, sequence_len as usize);
        for tokens in self.encode_all(documents)? {
            stream.push(tokens);
        }
        Ok(stream)
    }

    /// In the documents' order, on all threads there are.
    fn encode_all(&self, documents: &[Document]) -> Result<Vec<Tokens>, Error> {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let share = documents.len().div_ceil(threads).max(1);
        let encode = |part: &[Document]| {
            part.iter().map(|document| self.encode(document)).collect::<Result<Vec<_>, _>>()
        };
        thread::scope(|scope| {
            let parts: Vec<_> =
                documents.chunks(share).map(|part| scope.spawn(move || encode(part))).collect();
            let mut all = Vec::with_capacity(documents.len());
            for part in parts {
                all.extend(part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
            }
            Ok(all)
        })
    }

    fn encode(&self, document: &Document) -> Result<Tokens, Error> {
        match &document.body {
            Body::Text(text) => {
                let tokens = self.tokenizer.encode(text).map_err(bad_input)?;
                Ok(tokens.into_iter().map(|token| (token, true)).collect())
            }
            Body::Chat(messages) => {
                self.template.encode_for_training(self.tokenizer, messages).map_err(bad_input)
            }
        }
    }
}
