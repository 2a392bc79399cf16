//! Who may ask: whoever knows the key, where the server was given one. Of the key only a hash is kept,
//! and hashes are compared in constant time.

use std::fmt;

use axum::http::{HeaderMap, HeaderName};

/// The header that carries it.
pub(crate) const HEADER: HeaderName = HeaderName::from_static("petaflop-replica-key");

/// What a request must carry to be answered, in the header `petaflop-replica-key`. Printed nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(blake3::Hash);

impl Key {
    /// From its text.
    pub fn new(text: &str) -> Self {
        Self(blake3::hash(text.as_bytes()))
    }

    /// Whether these headers carry it.
    pub(crate) fn is_in(&self, headers: &HeaderMap) -> bool {
        headers.get(HEADER).is_some_and(|shown| blake3::hash(shown.as_bytes()) == self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}
