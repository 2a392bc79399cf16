//! How long an agent may keep its machine without hearing from us.
//!
//! The agent issues a nonce and notes when; a lease that answers it runs from then,
//! by the agent's own time since boot. So no clock is compared with another, a wall
//! that steps changes nothing, and a lease that was held back on the way is worth
//! less by just as much.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::keys::{LeasePublic, LeaseSecret, NoisePublic, random};
use crate::text::base64_bytes;

/// Leases are no longer than this: what bounds a mistake bounds its cost.
pub const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// Nonces that an agent remembers: several questions may be under way at once.
const OUTSTANDING: usize = 8;

/// Issued by an agent, answered by one lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nonce(#[serde(with = "base64_bytes")] pub [u8; 16]);

impl Nonce {
    /// A fresh one.
    pub fn generate() -> Self {
        Self(random())
    }
}

/// What is granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lease {
    /// The claim that the machine belongs to.
    pub claim_uid: String,
    /// The agent that it is granted to.
    pub agent: NoisePublic,
    /// The nonce that it answers.
    pub nonce: Nonce,
    /// Higher than that of every lease before it.
    pub sequence: u64,
    /// Seconds from the moment the nonce was issued.
    pub duration_seconds: u64,
}

/// A lease with its signature (Ed25519).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedLease {
    /// What is granted.
    pub lease: Lease,
    /// Over every field of it.
    #[serde(with = "base64_bytes")]
    pub signature: Vec<u8>,
}

/// Why a lease was refused; the one before it goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum LeaseError {
    /// No key that the agent trusts made the signature.
    #[error("lease: signed by no key that this agent trusts, or altered")]
    Signature,
    /// It is another claim's.
    #[error("lease: belongs to another claim")]
    WrongClaim,
    /// It is another agent's.
    #[error("lease: belongs to another agent")]
    WrongAgent,
    /// Its nonce was not issued here, was answered already, or was forgotten.
    #[error("lease: its nonce is none that this agent waits for")]
    ForeignNonce,
    /// A lease of this sequence or a higher one is held already.
    #[error("lease: a newer one is held already")]
    OldSequence,
    /// Its duration is zero, or longer than [`LONGEST`].
    #[error("lease: its duration is not between a second and a day")]
    Duration,
}

impl Lease {
    /// Signs it.
    pub fn sign(self, key: &LeaseSecret) -> SignedLease {
        let signature = key.sign(&self.bytes()).to_vec();
        SignedLease { lease: self, signature }
    }

    /// Every field in one unambiguous form, and what it is for.
    fn bytes(&self) -> Vec<u8> {
        let Self { claim_uid, agent, nonce, sequence, duration_seconds } = self;
        let mut bytes = b"petaflop lease 1\0".to_vec();
        bytes.extend_from_slice(&agent.0);
        bytes.extend_from_slice(&nonce.0);
        bytes.extend_from_slice(&sequence.to_be_bytes());
        bytes.extend_from_slice(&duration_seconds.to_be_bytes());
        // The only field of variable length comes last.
        bytes.extend_from_slice(claim_uid.as_bytes());
        bytes
    }
}

/// The agent's end of it: which nonces are out, and until when the machine is ours.
#[derive(Debug)]
pub struct Tenure {
    claim_uid: String,
    agent: NoisePublic,
    /// At most two while keys are changed.
    trusted: Vec<LeasePublic>,
    outstanding: VecDeque<(Nonce, Duration)>,
    sequence: u64,
    deadline: Duration,
}

impl Tenure {
    /// Before the first lease: it must be there by `deadline` (time since boot).
    pub fn new(claim_uid: impl Into<String>, agent: NoisePublic, deadline: Duration) -> Self {
        Self {
            claim_uid: claim_uid.into(),
            agent,
            trusted: Vec::new(),
            outstanding: VecDeque::new(),
            sequence: 0,
            deadline,
        }
    }

    /// Whose signatures count from now on.
    pub fn trust(&mut self, keys: impl IntoIterator<Item = LeasePublic>) {
        self.trusted = keys.into_iter().take(2).collect();
    }

    /// A nonce for the operator to answer, issued at `now` (time since boot).
    pub fn issue(&mut self, now: Duration) -> Nonce {
        let nonce = Nonce::generate();
        if self.outstanding.len() == OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back((nonce, now));
        nonce
    }

    /// Takes a lease.
    ///
    /// # Errors
    /// Why not; nothing has changed then.
    pub fn accept(&mut self, signed: &SignedLease) -> Result<(), LeaseError> {
        let SignedLease { lease, signature } = signed;
        let bytes = lease.bytes();
        if !self.trusted.iter().any(|key| key.verifies(&bytes, signature)) {
            return Err(LeaseError::Signature);
        }
        if lease.claim_uid != self.claim_uid {
            return Err(LeaseError::WrongClaim);
        }
        if lease.agent != self.agent {
            return Err(LeaseError::WrongAgent);
        }
        if lease.sequence <= self.sequence {
            return Err(LeaseError::OldSequence);
        }
        let duration = Duration::from_secs(lease.duration_seconds);
        if duration.is_zero() || duration > LONGEST {
            return Err(LeaseError::Duration);
        }
        let position = self
            .outstanding
            .iter()
            .position(|(nonce, _)| *nonce == lease.nonce)
            .ok_or(LeaseError::ForeignNonce)?;
        let (_, issued) = self.outstanding.remove(position).ok_or(LeaseError::ForeignNonce)?;
        self.sequence = lease.sequence;
        self.deadline = issued + duration;
        Ok(())
    }

    /// Time since boot at which the machine is no longer ours.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Of the newest lease; the next must be higher.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }
}
