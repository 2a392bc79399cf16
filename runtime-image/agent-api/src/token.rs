//! The one-time proof that an agent was started by our purchase.

use std::fmt;
use std::str::FromStr;

use zeroize::Zeroizing;

/// The proof, 32 bytes derived by [`OperatorRoot::token`](crate::keys::OperatorRoot::token).
/// Compared in constant time, never printed, wiped from memory when dropped.
#[derive(Clone)]
pub struct EnrolmentToken(Zeroizing<[u8; 32]>);

/// The text is no token. The text itself is not repeated here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an enrolment token is base64 of 32 bytes (44 characters)")]
pub struct BadToken;

impl EnrolmentToken {
    pub(crate) fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// For the machine's bootstrap, and for nothing that is logged or kept.
    pub fn expose(&self) -> Zeroizing<String> {
        Zeroizing::new(crate::text::encode(&*self.0))
    }
}

impl PartialEq for EnrolmentToken {
    fn eq(&self, other: &Self) -> bool {
        // blake3's hashes compare in constant time.
        blake3::Hash::from(*self.0) == blake3::Hash::from(*other.0)
    }
}

impl Eq for EnrolmentToken {}

impl FromStr for EnrolmentToken {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        crate::text::decode_array(text).map(Self::from_bytes).ok_or(BadToken)
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolmentToken(…)")
    }
}

impl serde::Serialize for EnrolmentToken {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.expose())
    }
}

impl<'de> serde::Deserialize<'de> for EnrolmentToken {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        text.parse().map_err(serde::de::Error::custom)
    }
}
