//! The names of things: blake3 digests in lower-case hex, and the one hash that
//! names an artifact.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A blake3 digest of 32 bytes; in text, 64 lower-case hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl From<blake3::Hash> for Digest {
    fn from(hash: blake3::Hash) -> Self {
        Self(*hash.as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(blake3::Hash::from_bytes(self.0).to_hex().as_str())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not 64 lower-case hex digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no digest: expected 64 lower-case hex digits")]
pub struct NotADigest(pub String);

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(NotADigest(text.into()));
        }
        blake3::Hash::from_hex(text).map(Self::from).map_err(|_| NotADigest(text.into()))
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// The hash that names an artifact: see [`artifact_hash`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ArtifactHash(pub Digest);

impl fmt::Display for ArtifactHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ArtifactHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for ArtifactHash {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        text.parse().map(Self)
    }
}

/// What the artifact hash says of one file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HashedFile<'a> {
    /// Path inside the artifact, `/` between its parts.
    pub path: &'a str,
    /// Length in bytes.
    pub length: u64,
    /// blake3 of the whole content.
    pub content: Digest,
}

/// blake3 over the files in the byte order of their paths. Each file adds
///
/// ```text
/// u64 LE  length of the path in bytes
/// bytes   the path, UTF-8
/// u64 LE  length of the content in bytes
/// 32 B    blake3 of the content
/// ```
///
/// and nothing else goes in: no time, cost, host, permission or chunk size, so
/// the same files have the same name wherever and whenever they were made.
/// Lengths come before what they measure, so no two lists of files encode alike.
pub fn artifact_hash<'a>(files: impl IntoIterator<Item = HashedFile<'a>>) -> ArtifactHash {
    let mut files: Vec<HashedFile<'a>> = files.into_iter().collect();
    files.sort();
    let mut hasher = blake3::Hasher::new();
    for HashedFile { path, length, content } in files {
        hasher.update(&(path.len() as u64).to_le_bytes());
        hasher.update(path.as_bytes());
        hasher.update(&length.to_le_bytes());
        hasher.update(content.as_bytes());
    }
    ArtifactHash(hasher.finalize().into())
}
