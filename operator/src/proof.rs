//! Whether a result has the key that its machine says. A key stands for a recipe and the contents of its
//! inputs, and is bound for everybody: whoever can run code on one job's machine must not bind that of
//! another. So it is reckoned here anew, of the recipe that was admitted, and of the digests that the
//! artifact's own record tells.
//!
//! That data which only the machine has read had those digests remains its word. Where the job names a
//! digest, or starts from an artifact, it is known here.

use std::collections::BTreeMap;

use petaflop_plan::NUMERICS_VERSION;
use petaflop_plan::recipe::{Input, ResolvedRecipe};
use petaflop_store::{ArtifactHash, Digest, Store, StoreError};
use serde::Deserialize;

/// The record in an artifact.
const RECORD: &str = "training.json";

/// A result, as its machine tells of it, and what it was asked for.
#[derive(Clone, Copy, Debug)]
pub struct Told<'a> {
    /// Hash of the artifact.
    pub artifact: &'a str,
    /// The key that it is said to have.
    pub key: &'a str,
    /// The recipe that was admitted.
    pub recipe: &'a ResolvedRecipe,
    /// Its inputs, with the digests that are known.
    pub inputs: &'a [Input],
}

/// Why a result is not taken over.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It cannot be read, or is not what it is called.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is another's, or of something else.
    #[error(
        "the machine's result {artifact} is refused: {why}; if it is so again, look at who can run code there, and at the \
         runtime's image"
    )]
    Wrong {
        /// Hash of the artifact.
        artifact: String,
        /// What does not agree.
        why: String,
    },
}

/// What the record says of it.
#[derive(Deserialize)]
struct Record {
    key: String,
    numerics_version: u32,
    digests: BTreeMap<String, String>,
}

impl Told<'_> {
    /// Holds the artifact in a store against what was asked for.
    ///
    /// # Errors
    /// It does not agree, or cannot be read.
    pub async fn prove(&self, store: &Store, artifact: ArtifactHash) -> Result<(), Refused> {
        let record = store.read_file(artifact, RECORD).await?;
        self.agrees(&record)
            .map_err(|why| Refused::Wrong { artifact: self.artifact.to_owned(), why })
    }

    fn agrees(&self, record: &[u8]) -> Result<(), String> {
        let record: Record =
            serde_json::from_slice(record).map_err(|error| format!("its {RECORD}: {error}"))?;
        let Record { key, numerics_version, digests } = record;
        if key != self.key {
            return Err(format!("it was trained as {key}, and is said to be {}", self.key));
        }
        if numerics_version != NUMERICS_VERSION {
            return Err(format!(
                "its arithmetic is version {numerics_version}, and ours {NUMERICS_VERSION}: take \
                 runtime and operator of one release"
            ));
        }
        for Input { name, uri, digest } in self.inputs {
            let hash = uri.strip_prefix("artifact:").filter(|hash| hash.parse::<Digest>().is_ok());
            let known = digest.clone().or_else(|| hash.map(|hash| format!("blake3:{hash}")));
            if let (Some(known), Some(read)) = (known, digests.get(name))
                && known != *read
            {
                return Err(format!("input {name} was {read}, and is {known}"));
            }
        }
        let read = digests.into_iter().map(|(name, text)| {
            let hex = text.strip_prefix("blake3:").unwrap_or(&text);
            let digest: Digest = hex.parse().map_err(|error| format!("its {RECORD}: {error}"))?;
            Ok((name, *digest.as_bytes()))
        });
        let read: BTreeMap<String, [u8; 32]> = read.collect::<Result<_, String>>()?;
        let expected = self.recipe.key(&read).map_err(|error| error.to_string())?.to_string();
        match expected == key {
            true => Ok(()),
            false => Err(format!("its key is {key}, and that of what was asked for {expected}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use petaflop_crds::TrainingJob;
    use serde_json::{Value, json};

    use super::*;

    fn asked() -> (ResolvedRecipe, Vec<Input>) {
        let text =
            include_str!("../../examples/tiny.yaml").replace("../LICENSE", "builtin:petaflop");
        let job: TrainingJob = serde_saphyr::from_str(&text).expect("an example");
        let recipe = job.spec.recipe.expect("a recipe");
        recipe.resolve(&job.spec.inputs, &job.spec.output, None).expect("it can be resolved")
    }

    fn digest(of: &str) -> String {
        format!("blake3:{}", Digest::of(of.as_bytes()))
    }

    #[test]
    fn a_key_that_is_not_that_of_what_was_asked_for_is_refused() {
        let (recipe, mut inputs) = asked();
        let name = inputs[0].name.clone();
        let read = [(name.clone(), *Digest::of(b"text").as_bytes())].into();
        let key = recipe.key(&read).expect("a key").to_string();
        let record = |key: &str, text: &str, version: u32| -> Value {
            json!({
                "key": key, "numerics_version": version, "digests": { name.clone(): digest(text) },
                "steps": 9,
            })
        };
        let said = |key: &str, inputs: &[Input], record: Value| {
            let told = Told { artifact: "a", key, recipe: &recipe, inputs };
            told.agrees(record.to_string().as_bytes())
        };
        let ours = NUMERICS_VERSION;
        assert_eq!(said(&key, &inputs, record(&key, "text", ours)), Ok(()));
        let another = Digest::of(b"another").to_string();
        for (told, record, words) in [
            (&another, record(&key, "text", ours), "is said to be"),
            (&another, record(&another, "text", ours), "that of what was asked for"),
            (&key, record(&key, "other text", ours), "that of what was asked for"),
            (&key, record(&key, "text", ours + 1), "of one release"),
            (&key, json!({ "key": key }), "training.json"),
        ] {
            let error = said(told, &inputs, record).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
        // What is known of an input is not the machine's to say.
        inputs[0].digest = Some(digest("the text"));
        let error = said(&key, &inputs, record(&key, "text", ours)).expect_err("another text");
        assert!(error.contains("was blake3:"), "{error}");
        inputs[0].digest = None;
        inputs[0].uri = format!("artifact:{}", Digest::of(b"the text"));
        assert!(said(&key, &inputs, record(&key, "text", ours)).is_err());
        inputs[0].uri = format!("artifact:{}", Digest::of(b"text"));
        assert_eq!(said(&key, &inputs, record(&key, "text", ours)), Ok(()));
    }
}
