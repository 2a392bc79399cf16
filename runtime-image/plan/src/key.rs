//! A job's key: one hash that says which result it will have.
//!
//! `blake3` of the UTF-8 bytes of this canonical JSON, with nothing before or after it:
//!
//! ```json
//! {"digests":{"<input>":"<64 hex digits>",…},"numerics_version":1,"recipe":{…}}
//! ```
//!
//! Canonical: no white space; the members of every object sorted by the bytes of
//! their names; strings and integers as `serde_json` writes them; floats as the
//! shortest decimal that reads back to the same bits, always with a point or an
//! exponent. Digests are the content digests of the recipe's inputs by name, in
//! lower-case hex. Nothing outside the recipe has a place in it.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::recipe::ResolvedRecipe;
use crate::{NUMERICS_VERSION, Numerics};

/// What a job will result in, before it has run. Shown as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Key([u8; 32]);

/// Why text is no [`Key`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("key {0:?}: expected 64 hexadecimal digits")]
pub struct ParseKeyError(String);

/// Why a recipe has no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// An input that the recipe names has no digest.
    #[error("input {0:?}: the recipe names it, but no digest of its content was given")]
    MissingDigest(String),
    /// A digest of something that the recipe does not name.
    #[error("input {0:?}: a digest was given, but the recipe does not name it")]
    UnusedDigest(String),
    /// A number of the recipe is not finite.
    #[error("recipe: every number must be finite")]
    NotFinite,
}

impl Key {
    /// The hash itself.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<[u8; 32]> for Key {
    fn from(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({self})")
    }
}

impl FromStr for Key {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        blake3::Hash::from_hex(text)
            .map(|hash| Self(hash.into()))
            .map_err(|_| ParseKeyError(text.to_owned()))
    }
}

impl TryFrom<String> for Key {
    type Error = ParseKeyError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Key> for String {
    fn from(key: Key) -> Self {
        key.to_string()
    }
}

impl ResolvedRecipe {
    /// Names of all inputs that the recipe reads, sorted, each once.
    pub fn input_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> =
            self.datasets.iter().map(|d| d.input.as_str()).chain(self.model.input()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The key of this recipe over inputs of these contents, in the processor's arithmetic.
    ///
    /// # Errors
    /// An input without a digest, a digest without an input, or a number that is not finite.
    pub fn key(&self, digests: &BTreeMap<String, [u8; 32]>) -> Result<Key, KeyError> {
        self.key_in(digests, Numerics::Exact)
    }

    /// The same in some arithmetic: results of different bits have different keys.
    ///
    /// # Errors
    /// As [`Self::key`].
    pub fn key_in(
        &self,
        digests: &BTreeMap<String, [u8; 32]>,
        numerics: Numerics,
    ) -> Result<Key, KeyError> {
        let names = self.input_names();
        if let Some(missing) = names.iter().find(|name| !digests.contains_key(**name)) {
            return Err(KeyError::MissingDigest((*missing).to_owned()));
        }
        if let Some(unused) = digests.keys().find(|name| !names.contains(&name.as_str())) {
            return Err(KeyError::UnusedDigest(unused.clone()));
        }
        let digests: BTreeMap<&String, String> = digests
            .iter()
            .map(|(name, digest)| (name, blake3::Hash::from(*digest).to_hex().to_string()))
            .collect();
        let recipe = serde_json::to_value(self).map_err(|_| KeyError::NotFinite)?;
        let mut whole = serde_json::json!({
            "digests": digests,
            "numerics_version": NUMERICS_VERSION,
            "recipe": recipe,
        });
        if numerics != Numerics::Exact {
            whole["numerics"] = numerics.to_string().into();
        }
        let mut text = String::new();
        write_canonical(&whole, &mut text)?;
        Ok(Key(blake3::hash(text.as_bytes()).into()))
    }
}

/// Writes the canonical form that the module's first lines define.
fn write_canonical(value: &Value, out: &mut String) -> Result<(), KeyError> {
    match value {
        // serde_json turns NaN and infinities into null; no field of a recipe is optional.
        Value::Null => return Err(KeyError::NotFinite),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => out.push_str(&value.to_string()),
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                out.push(if i == 0 { '[' } else { ',' });
                write_canonical(item, out)?;
            }
            out.push_str(if items.is_empty() { "[]" } else { "]" });
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_unstable_by_key(|(name, _)| name.as_bytes());
            for (i, (name, member)) in members.iter().enumerate() {
                out.push(if i == 0 { '{' } else { ',' });
                out.push_str(&Value::from(name.as_str()).to_string());
                out.push(':');
                write_canonical(member, out)?;
            }
            out.push_str(if members.is_empty() { "{}" } else { "}" });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::{Key, KeyError, write_canonical};
    use crate::recipe::tests::tiny_recipe;

    fn digests() -> BTreeMap<String, [u8; 32]> {
        BTreeMap::from([("corpus".to_owned(), [7; 32])])
    }

    #[test]
    fn members_are_sorted_and_nothing_is_spaced() {
        let value: Value =
            serde_json::from_str(r#"{ "b": [1, 2.0, []], "a": {"é": "x\n", "Z": {}} }"#)
                .expect("it is JSON");
        let mut text = String::new();
        write_canonical(&value, &mut text).expect("nothing in it is null");
        assert_eq!(text, r#"{"a":{"Z":{},"é":"x\n"},"b":[1,2.0,[]]}"#);
    }

    #[test]
    fn the_key_of_a_known_recipe_stays_what_it_is() {
        let key = tiny_recipe().key(&digests()).expect("all inputs have digests");
        assert_eq!(
            key.to_string(),
            "7c8556bba2c66f596fa4dacf025990fab70eee25436b5619e6418fe9c3ef171f"
        );
        assert_eq!(key.to_string().parse(), Ok(key));
        assert!("xyz".parse::<Key>().is_err());
    }

    #[test]
    fn every_input_needs_a_digest_and_every_digest_an_input() {
        let recipe = tiny_recipe();
        assert_eq!(recipe.key(&BTreeMap::new()), Err(KeyError::MissingDigest("corpus".to_owned())));
        let mut more = digests();
        more.insert("other".to_owned(), [0; 32]);
        assert_eq!(recipe.key(&more), Err(KeyError::UnusedDigest("other".to_owned())));
        let mut endless = recipe;
        endless.learning_rate = f64::INFINITY;
        assert_eq!(endless.key(&digests()), Err(KeyError::NotFinite));
    }

    #[test]
    fn any_choice_in_the_recipe_changes_the_key() {
        let base = tiny_recipe();
        let mut seed = base.clone();
        seed.seed += 1;
        let mut rate = base.clone();
        rate.learning_rate = f64::from_bits(rate.learning_rate.to_bits() + 1);
        let mut other = digests();
        other.insert("corpus".to_owned(), [8; 32]);
        let keys =
            [base.key(&digests()), seed.key(&digests()), rate.key(&digests()), base.key(&other)];
        for (i, key) in keys.iter().enumerate() {
            assert!(key.is_ok() && !keys[..i].contains(key));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_recipe_that_was_written_and_read_has_the_same_key(seed: u64, rate in 1e-8f64..1.0, eps in 1e-12f64..1e-3) {
            let mut recipe = tiny_recipe();
            recipe.seed = seed;
            recipe.learning_rate = rate;
            let crate::recipe::Optimizer::Adamw { eps: e, .. } = &mut recipe.optimizer;
            *e = eps;
            let text = serde_json::to_string_pretty(&recipe).expect("recipes are plain data");
            let read: crate::recipe::ResolvedRecipe = serde_json::from_str(&text).expect("it was just written");
            prop_assert_eq!(read.key(&digests()), recipe.key(&digests()));
        }
    }
}
