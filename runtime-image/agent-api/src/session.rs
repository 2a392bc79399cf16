//! Noise sessions: what travels between operator and agent, encrypted end to end
//! and bound to both keys, whoever dialled and whatever proxy lies between.
//!
//! ```text
//! enrolment    IK   agent → operator  hello      operator → agent  welcome
//! afterwards   KK   operator → agent  request    agent → operator  response
//! poll         K    agent → operator  "I am here", with the last response behind it
//! gateway      IK   gateway → operator  what it knows   operator → gateway  its replicas
//! ```
//!
//! Streams between a gateway and a replica have a session of their own: [`relay`](crate::relay).
//!
//! The second message of a round trip may be long: what does not fit into it (65,535
//! bytes with its overhead) follows in transport messages of the same session. A body
//! is a row of frames, each its length (u16, big endian) and a Noise message.

use snow::{Builder, HandshakeState};

use crate::keys::{NoisePublic, NoiseSecret};

const IK: &str = "Noise_IK_25519_ChaChaPoly_SHA256";
const KK: &str = "Noise_KK_25519_ChaChaPoly_SHA256";
const K: &str = "Noise_K_25519_ChaChaPoly_SHA256";

/// Mixed into every handshake: what was made for one purpose is void for another.
const ENROL: &[u8] = b"petaflop agent 1 enrol";
const CALL: &[u8] = b"petaflop agent 1 call";
const POLL: &[u8] = b"petaflop agent 1 poll";
const GATEWAY: &[u8] = b"petaflop gateway 1";

/// Bytes of a Noise message at most.
const MESSAGE: usize = 65_535;
/// Bytes of a transport message beside its payload.
const TAG: usize = 16;
/// Bytes of a handshake message beside its payload: an ephemeral key and a tag.
const HANDSHAKE: usize = 32 + TAG;
/// As [`HANDSHAKE`], and the encrypted static key.
const HANDSHAKE_WITH_STATIC: usize = HANDSHAKE + 32 + TAG;

/// Bytes of a request, or of a hello, at most: it is the first message, which has no continuation.
pub const REQUEST_LIMIT: usize = MESSAGE - HANDSHAKE_WITH_STATIC;

/// Bytes of a body at most; longer ones are refused unread.
pub const BODY_LIMIT: usize = 32 << 20;

/// Why a message was refused, or could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Altered on the way, made with other keys or for another purpose, or an answer to something else.
    #[error("the message is not authentic: it was altered, or made with other keys")]
    NotAuthentic,
    /// Cut off, or not a message of ours.
    #[error("the message is malformed: it was cut off, or is none of ours")]
    Malformed,
    /// A request of more than [`REQUEST_LIMIT`], or a body of more than [`BODY_LIMIT`].
    #[error("the message has {bytes} bytes, at most {limit} are possible")]
    TooLong {
        /// What it has.
        bytes: usize,
        /// What is possible.
        limit: usize,
    },
    /// The session was used up already.
    #[error("the session has ended already")]
    Over,
}

/// A gateway's side of a round trip with the operator, of whom it knows the public key alone.
#[derive(Debug)]
pub struct Opening {
    state: Option<HandshakeState>,
    message: Vec<u8>,
}

impl Opening {
    /// Begins one: `known` is for the operator's eyes.
    ///
    /// # Errors
    /// [`SessionError::TooLong`].
    pub fn begin(
        gateway: &NoiseSecret,
        operator: &NoisePublic,
        known: &[u8],
    ) -> Result<Self, SessionError> {
        let mut state = handshake(IK, GATEWAY, gateway, Some(operator), true);
        let message = first(&mut state, known)?;
        Ok(Self { state: Some(state), message })
    }

    /// What the operator is sent.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// What the operator told in answer to this very message. What is not that is refused, and the
    /// right answer can still come.
    ///
    /// # Errors
    /// Why the answer was refused.
    pub fn finish(&mut self, answer: &[u8]) -> Result<Vec<u8>, SessionError> {
        read_second(&mut self.state, answer)
    }
}

/// The operator's side of a round trip that a gateway opened.
#[derive(Debug)]
pub struct Opened {
    state: HandshakeState,
    known: Vec<u8>,
}

impl Opened {
    /// Reads a gateway's message.
    ///
    /// # Errors
    /// [`SessionError::NotAuthentic`] where it was made for another operator, or was altered.
    pub fn read(operator: &NoiseSecret, message: &[u8]) -> Result<Self, SessionError> {
        let mut state = handshake(IK, GATEWAY, operator, None, false);
        let known = read_first(&mut state, message)?;
        Ok(Self { state, known })
    }

    /// What it knows.
    pub fn known(&self) -> &[u8] {
        &self.known
    }

    /// The answer, which only that gateway can read.
    ///
    /// # Errors
    /// [`SessionError::TooLong`].
    pub fn tell(self, told: &[u8]) -> Result<Vec<u8>, SessionError> {
        second(self.state, told)
    }
}

/// The agent's side of an enrolment.
#[derive(Debug)]
pub struct Enrolment {
    state: Option<HandshakeState>,
    message: Vec<u8>,
}

impl Enrolment {
    /// Begins one with the operator of this key.
    ///
    /// # Errors
    /// [`SessionError::TooLong`].
    pub fn begin(
        agent: &NoiseSecret,
        operator: &NoisePublic,
        hello: &[u8],
    ) -> Result<Self, SessionError> {
        let mut state = handshake(IK, ENROL, agent, Some(operator), true);
        let message = first(&mut state, hello)?;
        Ok(Self { state: Some(state), message })
    }

    /// What the operator is sent; the same bytes as often as it asks.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// The welcome, once the operator's answer is there. What is not the operator's answer to
    /// this very message is refused, and the right one can still come.
    ///
    /// # Errors
    /// Why the answer was refused.
    pub fn finish(&mut self, answer: &[u8]) -> Result<Vec<u8>, SessionError> {
        read_second(&mut self.state, answer)
    }
}

/// The operator's side of an enrolment, between reading the hello and answering it.
#[derive(Debug)]
pub struct Candidate {
    state: HandshakeState,
    agent: NoisePublic,
    hello: Vec<u8>,
}

impl Candidate {
    /// Reads an agent's first message.
    ///
    /// # Errors
    /// [`SessionError::NotAuthentic`] where it was made for another operator, or was altered.
    pub fn read(operator: &NoiseSecret, message: &[u8]) -> Result<Self, SessionError> {
        let mut state = handshake(IK, ENROL, operator, None, false);
        let hello = read_first(&mut state, message)?;
        let agent = state
            .get_remote_static()
            .and_then(|key| key.try_into().ok())
            .map(NoisePublic)
            .ok_or(SessionError::Malformed)?;
        Ok(Self { state, agent, hello })
    }

    /// The key that the agent proved to hold.
    pub fn agent(&self) -> NoisePublic {
        self.agent
    }

    /// What it said; to be judged by [`enrol`](crate::enrol) before anything is answered.
    pub fn hello(&self) -> &[u8] {
        &self.hello
    }

    /// The answer, which only that agent can read.
    ///
    /// # Errors
    /// [`SessionError::TooLong`].
    pub fn welcome(self, welcome: &[u8]) -> Result<Vec<u8>, SessionError> {
        second(self.state, welcome)
    }
}

/// The operator's side of a round trip.
#[derive(Debug)]
pub struct Call {
    state: Option<HandshakeState>,
    message: Vec<u8>,
}

impl Call {
    /// Begins one with an enrolled agent.
    ///
    /// # Errors
    /// [`SessionError::TooLong`].
    pub fn begin(
        operator: &NoiseSecret,
        agent: &NoisePublic,
        request: &[u8],
    ) -> Result<Self, SessionError> {
        let mut state = handshake(KK, CALL, operator, Some(agent), true);
        let message = first(&mut state, request)?;
        Ok(Self { state: Some(state), message })
    }

    /// What the agent is sent.
    pub fn message(&self) -> &[u8] {
        &self.message
    }

    /// The agent's response to it.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn finish(mut self, answer: &[u8]) -> Result<Vec<u8>, SessionError> {
        read_second(&mut self.state, answer)
    }
}

/// The agent's side of a round trip.
#[derive(Debug)]
pub struct Incoming {
    state: HandshakeState,
    request: Vec<u8>,
}

impl Incoming {
    /// Reads the operator's request.
    ///
    /// # Errors
    /// Why it was refused.
    pub fn read(
        agent: &NoiseSecret,
        operator: &NoisePublic,
        message: &[u8],
    ) -> Result<Self, SessionError> {
        let mut state = handshake(KK, CALL, agent, Some(operator), false);
        let request = read_first(&mut state, message)?;
        Ok(Self { state, request })
    }

    /// What is asked.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// The response.
    ///
    /// # Errors
    /// [`SessionError::TooLong`].
    pub fn respond(self, response: &[u8]) -> Result<Vec<u8>, SessionError> {
        second(self.state, response)
    }
}

/// An agent that dials says that it is there and asks for the next request.
///
/// # Errors
/// [`SessionError::TooLong`].
pub fn seal_poll(
    agent: &NoiseSecret,
    operator: &NoisePublic,
    poll: &[u8],
) -> Result<Vec<u8>, SessionError> {
    first(&mut handshake(K, POLL, agent, Some(operator), true), poll)
}

/// What [`seal_poll`] sealed.
///
/// # Errors
/// Why it was refused.
pub fn open_poll(
    operator: &NoiseSecret,
    agent: &NoisePublic,
    message: &[u8],
) -> Result<Vec<u8>, SessionError> {
    read_first(&mut handshake(K, POLL, operator, Some(agent), false), message)
}

fn handshake(
    pattern: &str,
    purpose: &[u8],
    mine: &NoiseSecret,
    theirs: Option<&NoisePublic>,
    initiator: bool,
) -> HandshakeState {
    let build = || {
        let mut builder =
            Builder::new(pattern.parse()?).prologue(purpose)?.local_private_key(mine.bytes())?;
        if let Some(theirs) = theirs {
            builder = builder.remote_public_key(&theirs.0)?;
        }
        if initiator { builder.build_initiator() } else { builder.build_responder() }
    };
    build().expect("a known pattern with the keys that it needs")
}

/// The first message of a handshake, in its frame.
fn first(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, SessionError> {
    if payload.len() > REQUEST_LIMIT {
        return Err(SessionError::TooLong { bytes: payload.len(), limit: REQUEST_LIMIT });
    }
    let mut buffer = vec![0; payload.len() + HANDSHAKE_WITH_STATIC];
    let length =
        state.write_message(payload, &mut buffer).map_err(|_| SessionError::NotAuthentic)?;
    let mut body = Vec::with_capacity(2 + length);
    frame(&buffer[..length], &mut body);
    Ok(body)
}

fn read_first(state: &mut HandshakeState, body: &[u8]) -> Result<Vec<u8>, SessionError> {
    let mut rest = body;
    let message = next_frame(&mut rest)?.ok_or(SessionError::Malformed)?;
    if !rest.is_empty() {
        return Err(SessionError::Malformed);
    }
    let mut payload = vec![0; message.len()];
    let length =
        state.read_message(message, &mut payload).map_err(|_| SessionError::NotAuthentic)?;
    payload.truncate(length);
    Ok(payload)
}

/// The second message of a handshake and, where the payload is longer, transport messages.
fn second(mut state: HandshakeState, payload: &[u8]) -> Result<Vec<u8>, SessionError> {
    // The whole length goes first, so that a body cut off between two frames is noticed.
    let mut whole = Vec::with_capacity(8 + payload.len());
    whole.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    whole.extend_from_slice(payload);
    let frames = whole.len() / (MESSAGE - TAG) + 1;
    let bytes = whole.len() + frames * (2 + HANDSHAKE);
    if bytes > BODY_LIMIT {
        return Err(SessionError::TooLong { bytes, limit: BODY_LIMIT });
    }
    let mut body = Vec::with_capacity(bytes);
    let mut buffer = vec![0; MESSAGE];
    let (head, tail) = whole.split_at(whole.len().min(MESSAGE - HANDSHAKE));
    let length = state.write_message(head, &mut buffer).map_err(|_| SessionError::Over)?;
    frame(&buffer[..length], &mut body);
    if !tail.is_empty() {
        let mut transport = state.into_transport_mode().map_err(|_| SessionError::Over)?;
        for piece in tail.chunks(MESSAGE - TAG) {
            let length =
                transport.write_message(piece, &mut buffer).map_err(|_| SessionError::Over)?;
            frame(&buffer[..length], &mut body);
        }
    }
    Ok(body)
}

/// Takes the state only when the first frame was authentic: a forged answer does not end the session.
fn read_second(state: &mut Option<HandshakeState>, body: &[u8]) -> Result<Vec<u8>, SessionError> {
    if body.len() > BODY_LIMIT {
        return Err(SessionError::TooLong { bytes: body.len(), limit: BODY_LIMIT });
    }
    let handshake = state.as_mut().ok_or(SessionError::Over)?;
    let mut rest = body;
    let message = next_frame(&mut rest)?.ok_or(SessionError::Malformed)?;
    let mut buffer = vec![0; MESSAGE];
    let length =
        handshake.read_message(message, &mut buffer).map_err(|_| SessionError::NotAuthentic)?;
    let mut transport = state
        .take()
        .ok_or(SessionError::Over)?
        .into_transport_mode()
        .map_err(|_| SessionError::NotAuthentic)?;
    let mut whole = buffer[..length].to_vec();
    while let Some(message) = next_frame(&mut rest)? {
        let length =
            transport.read_message(message, &mut buffer).map_err(|_| SessionError::NotAuthentic)?;
        whole.extend_from_slice(&buffer[..length]);
    }
    let (length, payload) = whole.split_first_chunk().ok_or(SessionError::Malformed)?;
    if u64::from_be_bytes(*length) != payload.len() as u64 {
        return Err(SessionError::Malformed);
    }
    Ok(payload.to_vec())
}

fn frame(message: &[u8], body: &mut Vec<u8>) {
    let length = u16::try_from(message.len()).expect("a Noise message has at most 65,535 bytes");
    body.extend_from_slice(&length.to_be_bytes());
    body.extend_from_slice(message);
}

fn next_frame<'a>(rest: &mut &'a [u8]) -> Result<Option<&'a [u8]>, SessionError> {
    if rest.is_empty() {
        return Ok(None);
    }
    let (length, after) = rest.split_first_chunk().ok_or(SessionError::Malformed)?;
    let length = usize::from(u16::from_be_bytes(*length));
    let (message, after) = after.split_at_checked(length).ok_or(SessionError::Malformed)?;
    *rest = after;
    Ok(Some(message))
}
