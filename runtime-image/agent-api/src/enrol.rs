//! The operator's judgement of a hello: is this the agent that our purchase started?

use crate::keys::{NoisePublic, OperatorRoot};
use crate::message::{Hello, MessageError, from_bytes};
use crate::session::{Candidate, SessionError};

/// What the operator knows of the claim that an agent speaks for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The identity that the machine was given: `installation/namespace/claim/claim uid/attempt`.
    pub identity: &'a str,
    /// The claim's uid.
    pub claim_uid: &'a str,
    /// The launch attempt that it was given for.
    pub attempt: u32,
    /// How far its enrolment is.
    pub enrolment: Enrolment,
}

/// How far a claim's enrolment is. Kept with the claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// Nobody was let in.
    Open,
    /// This agent was, but has not spoken since: our answer may have been lost on its way,
    /// so the same agent may ask again. Nobody else may: the token is burned.
    Pinned(NoisePublic),
    /// This agent was, and has answered a request.
    Done(NoisePublic),
}

/// Why an agent was not let in.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// Its message was none for this operator.
    #[error("enrolment: {0}")]
    Session(#[from] SessionError),
    /// Its hello cannot be read.
    #[error("enrolment: {0}")]
    Message(#[from] MessageError),
    /// It speaks for another claim, attempt or installation.
    #[error("enrolment: the agent speaks for another claim or attempt")]
    WrongClaim,
    /// Its token is not the one that the claim's machine was given.
    #[error("enrolment: the token is not the one that the claim's machine was given")]
    WrongToken,
    /// Another agent has used the token.
    #[error("enrolment: the token was used already")]
    TokenBurned,
}

/// An agent that may be let in. Pin its key with the claim first, then answer.
#[derive(Debug)]
pub struct Admitted {
    /// For the answer.
    pub candidate: Candidate,
    /// What it said.
    pub hello: Hello,
}

/// Reads a hello's message and judges it. Changes nothing.
///
/// # Errors
/// Why the agent is not let in.
pub fn judge(
    root: &OperatorRoot,
    expected: Expected<'_>,
    message: &[u8],
) -> Result<Admitted, EnrolError> {
    let candidate = Candidate::read(&root.noise(), message)?;
    let hello: Hello = from_bytes(candidate.hello())?;
    let Expected { identity, claim_uid, attempt, enrolment } = expected;
    if hello.identity != identity {
        return Err(EnrolError::WrongClaim);
    }
    if hello.token != root.token(claim_uid, attempt) {
        return Err(EnrolError::WrongToken);
    }
    match enrolment {
        Enrolment::Open => {}
        Enrolment::Pinned(agent) if agent == candidate.agent() => {}
        Enrolment::Pinned(_) | Enrolment::Done(_) => return Err(EnrolError::TokenBurned),
    }
    Ok(Admitted { candidate, hello })
}
