//! The keys by which operator and agent know each other.
//!
//! An operator keeps one secret, [`OperatorRoot`]; all else is derived from it. An
//! agent makes a [`NoiseSecret`] at each start and keeps it in memory only.

use std::fmt;

use ring::rand::SystemRandom;
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use snow::params::DHChoice;
use snow::resolvers::{CryptoResolver, DefaultResolver};
use zeroize::Zeroizing;

use crate::task::Secret;
use crate::token::EnrolmentToken;

/// A public key's text is not base64 of 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a public key is base64 of 32 bytes (44 characters)")]
pub struct BadKey;

macro_rules! public_key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        ///
        /// As text, base64.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 32]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&crate::text::encode(&self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl std::str::FromStr for $name {
            type Err = BadKey;
            fn from_str(text: &str) -> Result<Self, BadKey> {
                crate::text::decode_array(text).map(Self).ok_or(BadKey)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <String as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

public_key! {
    /// Whom a Noise session is with (X25519).
    NoisePublic
}
public_key! {
    /// Verifies leases (Ed25519).
    LeasePublic
}

/// One side's secret of a Noise session (X25519). Wiped from memory when dropped.
pub struct NoiseSecret(Zeroizing<[u8; 32]>);

impl NoiseSecret {
    /// A fresh one.
    pub fn generate() -> Self {
        Self(Zeroizing::new(random()))
    }

    /// The public half.
    pub fn public(&self) -> NoisePublic {
        let mut dh = DefaultResolver
            .resolve_dh(&DHChoice::Curve25519)
            .expect("built with the feature use-curve25519");
        dh.set(self.bytes());
        NoisePublic(dh.pubkey().try_into().expect("X25519 keys have 32 bytes"))
    }

    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for NoiseSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NoiseSecret(…)")
    }
}

/// Signs leases (Ed25519).
pub struct LeaseSecret(Ed25519KeyPair);

impl LeaseSecret {
    /// The public half.
    pub fn public(&self) -> LeasePublic {
        LeasePublic(self.0.public_key().as_ref().try_into().expect("Ed25519 keys have 32 bytes"))
    }

    pub(crate) fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).as_ref().try_into().expect("Ed25519 signatures have 64 bytes")
    }
}

impl fmt::Debug for LeaseSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LeaseSecret(…)")
    }
}

impl LeasePublic {
    pub(crate) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.0).verify(message, signature).is_ok()
    }
}

/// What an operator keeps: 32 random bytes, from which its keys and all enrolment
/// tokens are derived. To change it, keep the old one beside the new one until no
/// machine is left that was enrolled under it.
pub struct OperatorRoot(Zeroizing<[u8; 32]>);

impl OperatorRoot {
    /// A fresh one.
    pub fn generate() -> Self {
        Self(Zeroizing::new(random()))
    }

    /// From its kept bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// What to keep, in a place that only the operator reads.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.clone()
    }

    /// The key that agents are given as their operator's.
    pub fn noise(&self) -> NoiseSecret {
        NoiseSecret(self.derive("petaflop 2026-11-21 operator noise key"))
    }

    /// The key that signs leases.
    pub fn lease(&self) -> LeaseSecret {
        let seed = self.derive("petaflop 2026-11-21 operator lease key");
        LeaseSecret(
            Ed25519KeyPair::from_seed_unchecked(&*seed).expect("any 32 bytes are an Ed25519 seed"),
        )
    }

    /// The token of one launch attempt of one claim: always the same for the same
    /// pair, so that a repeated launch sends the same bytes.
    pub fn token(&self, claim_uid: &str, attempt: u32) -> EnrolmentToken {
        let key = self.derive("petaflop 2026-11-21 enrolment tokens");
        let mut hasher = blake3::Hasher::new_keyed(&key);
        hasher.update(&attempt.to_be_bytes());
        hasher.update(claim_uid.as_bytes());
        EnrolmentToken::from_bytes(*hasher.finalize().as_bytes())
    }

    /// What a replica's server asks of whoever sends it requests, always the same for the same claim.
    /// Its machine is told it, and the gateways of its service.
    pub fn replica_key(&self, claim_uid: &str) -> Secret {
        let key = self.derive("petaflop 2026-11-21 replica keys");
        let hash = blake3::keyed_hash(&key, claim_uid.as_bytes());
        Secret::new(crate::text::encode(hash.as_bytes()))
    }

    fn derive(&self, context: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, &*self.0))
    }
}

impl fmt::Debug for OperatorRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OperatorRoot(…)")
    }
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> [u8; N]
where
    [u8; N]: ring::rand::RandomlyConstructable,
{
    ring::rand::generate(&SystemRandom::new()).expect("the system has randomness").expose()
}
