//! How an agent that dials asks for its next request.
//!
//! `POST /v1/rpc` to the operator's endpoint: `<length, u16> <claim uid> <sealed poll> <response>`,
//! each poll frame as in [`session`](crate::session); the response to the last request follows, or
//! nothing. The answer is the next request, or nothing after at most a minute.

use serde::{Deserialize, Serialize};

use crate::keys::{NoisePublic, NoiseSecret};
use crate::lease::Nonce;
use crate::message::{self, MessageError};
use crate::session::{self, SessionError};

/// Says that an agent is there. Its `counter` only rises, so that a replayed one is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Poll {
    /// [`message::VERSION`].
    pub version: u16,
    /// Of this start of the agent.
    pub start: Nonce,
    /// Higher than that of every poll before it.
    pub counter: u64,
    /// blake3 of the response behind it, so that neither travels without the other.
    pub response: String,
}

/// Why a poll was refused.
#[derive(Debug, thiserror::Error)]
pub enum PollError {
    /// Not sealed by that agent.
    #[error("poll: {0}")]
    Session(#[from] SessionError),
    /// Not a poll.
    #[error("poll: {0}")]
    Message(#[from] MessageError),
    /// The response is not the one it was sealed with.
    #[error("poll: the response behind it is another one")]
    OtherResponse,
}

/// A poll's body, taken apart but not judged: the claim says whose key to open it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PollBody<'a> {
    /// The claim it is about.
    pub claim_uid: &'a str,
    sealed: &'a [u8],
    response: &'a [u8],
}

impl Poll {
    /// The body of a poll, with the response to the last request (or nothing).
    ///
    /// # Errors
    /// [`SessionError::TooLong`].
    pub fn body(
        agent: &NoiseSecret,
        operator: &NoisePublic,
        claim_uid: &str,
        start: Nonce,
        counter: u64,
        response: &[u8],
    ) -> Result<Vec<u8>, SessionError> {
        let poll = Self {
            version: message::VERSION,
            start,
            counter,
            response: blake3::hash(response).to_hex().to_string(),
        };
        let sealed = session::seal_poll(agent, operator, &message::to_bytes(&poll))?;
        let length = u16::try_from(claim_uid.len())
            .map_err(|_| SessionError::TooLong { bytes: claim_uid.len(), limit: 65_535 })?;
        Ok([&length.to_be_bytes()[..], claim_uid.as_bytes(), &sealed, response].concat())
    }
}

impl<'a> PollBody<'a> {
    /// Takes a body apart.
    ///
    /// # Errors
    /// [`SessionError::Malformed`].
    pub fn parse(body: &'a [u8]) -> Result<Self, SessionError> {
        let cut = |bytes: &'a [u8]| {
            let (length, rest) = bytes.split_first_chunk()?;
            rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))
        };
        let (claim_uid, after) = cut(body).ok_or(SessionError::Malformed)?;
        let (_, response) = cut(after).ok_or(SessionError::Malformed)?;
        let sealed = &after[..after.len() - response.len()];
        let claim_uid = std::str::from_utf8(claim_uid).map_err(|_| SessionError::Malformed)?;
        Ok(Self { claim_uid, sealed, response })
    }

    /// The poll and the response behind it.
    ///
    /// # Errors
    /// Why it is not that agent's.
    pub fn open(
        &self,
        operator: &NoiseSecret,
        agent: &NoisePublic,
    ) -> Result<(Poll, &'a [u8]), PollError> {
        let poll: Poll = message::from_bytes(&session::open_poll(operator, agent, self.sealed)?)?;
        if blake3::hash(self.response).to_hex().as_str() != poll.response {
            return Err(PollError::OtherResponse);
        }
        Ok((poll, self.response))
    }
}
