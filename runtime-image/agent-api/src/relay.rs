//! What passes between a service's gateway and the agent of one of its replicas: a stream of bytes,
//! encrypted end to end, which the agent passes on to the port that its command serves.
//!
//! ```text
//! gateway → agent   GET /v1/relay, Upgrade: petaflop-relay, petaflop-relay: <first message>
//! agent → gateway   101, petaflop-relay: <second message>
//! both ways         frames: length (u16, big endian), Noise transport message
//! ```
//!
//! The handshake is `NKpsk0`: the agent proves itself by the key that the operator has pinned, the
//! gateway by the replica's key; both are told inside sessions with the operator. Who repeats a first
//! message that he has recorded gets an answer that he cannot go on from. An empty message ends a
//! direction, so that a stream which was cut off on its way is not taken for one that ended.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use snow::{Builder, HandshakeState, TransportState};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroizing;

use crate::keys::{NoisePublic, NoiseSecret};
use crate::session::SessionError;
use crate::task::Secret;
use crate::text;

/// On an agent's port.
pub const PATH: &str = "/v1/relay";
/// The protocol that is upgraded to, and the header that carries the handshake's messages (base64).
pub const PROTOCOL: &str = "petaflop-relay";

const PATTERN: &str = "Noise_NKpsk0_25519_ChaChaPoly_SHA256";
const PURPOSE: &[u8] = b"petaflop relay 1";

/// Bytes of either message of the handshake: an ephemeral key and a tag.
const HANDSHAKE: usize = 32 + 16;
/// Bytes that go into a frame at most. Small, for each stream keeps a frame of each direction.
const CONTENT: usize = 16 << 10;
/// Bytes of a frame at most: length, content, tag.
const FRAME: usize = 2 + CONTENT + 16;

/// A gateway's side of the handshake.
#[derive(Debug)]
pub struct Knock {
    state: HandshakeState,
    message: String,
}

impl Knock {
    /// At the agent of this key, with this replica's key.
    ///
    /// # Errors
    /// [`SessionError::Over`]: the machine has no randomness.
    pub fn begin(agent: &NoisePublic, key: &Secret) -> Result<Self, SessionError> {
        let mut state =
            handshake(key, |builder| builder.remote_public_key(&agent.0)?.build_initiator());
        let message = write(&mut state)?;
        Ok(Self { state, message })
    }

    /// For the request's header [`PROTOCOL`].
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The same header of the answer.
    ///
    /// # Errors
    /// Who answered is not that agent.
    pub fn finish(mut self, answer: &str) -> Result<Sealing, SessionError> {
        read(&mut self.state, answer)?;
        Sealing::of(self.state)
    }
}

/// An agent's side: its answer to a gateway's [`Knock`].
///
/// # Errors
/// Who knocks does not have this replica's key, or means another agent.
pub fn answer(
    agent: &NoiseSecret,
    key: &Secret,
    knock: &str,
) -> Result<(String, Sealing), SessionError> {
    let mut state =
        handshake(key, |builder| builder.local_private_key(agent.bytes())?.build_responder());
    read(&mut state, knock)?;
    let answer = write(&mut state)?;
    Ok((answer, Sealing::of(state)?))
}

fn handshake(
    key: &Secret,
    build: impl FnOnce(Builder<'_>) -> Result<HandshakeState, snow::Error>,
) -> HandshakeState {
    // Its own, so that what a server is sent in a header opens no stream.
    let psk =
        Zeroizing::new(blake3::derive_key("petaflop 2026-11-22 relay", key.expose().as_bytes()));
    let begin = || build(Builder::new(PATTERN.parse()?).prologue(PURPOSE)?.psk(0, &psk)?);
    begin().expect("a known pattern with the keys that it needs")
}

fn write(state: &mut HandshakeState) -> Result<String, SessionError> {
    let mut message = [0; HANDSHAKE];
    let length = state.write_message(&[], &mut message).map_err(|_| SessionError::Over)?;
    Ok(text::encode(&message[..length]))
}

fn read(state: &mut HandshakeState, message: &str) -> Result<(), SessionError> {
    let message: [u8; HANDSHAKE] = text::decode_array(message).ok_or(SessionError::Malformed)?;
    let read = state.read_message(&message, &mut []);
    read.map(drop).map_err(|_| SessionError::NotAuthentic)
}

/// The keys of one stream, for whoever has the stream.
#[derive(Debug)]
pub struct Sealing(TransportState);

impl Sealing {
    fn of(state: HandshakeState) -> Result<Self, SessionError> {
        state.into_transport_mode().map(Self).map_err(|_| SessionError::Over)
    }

    /// Over this stream, of which `came` was read already.
    ///
    /// # Errors
    /// [`SessionError::TooLong`]: more came than a peer says unasked.
    pub fn over<S>(self, stream: S, came: &[u8]) -> Result<Sealed<S>, SessionError> {
        if came.len() > FRAME {
            return Err(SessionError::TooLong { bytes: came.len(), limit: FRAME });
        }
        let mut raw = vec![0; FRAME].into_boxed_slice();
        raw[..came.len()].copy_from_slice(came);
        Ok(Sealed {
            stream,
            keys: self.0,
            raw,
            filled: came.len(),
            opened: vec![0; CONTENT].into_boxed_slice(),
            unread: 0..0,
            over: false,
            sealed: Vec::new(),
            sent: 0,
            ended: false,
        })
    }
}

/// A stream whose bytes nobody between its ends can read or change.
#[derive(Debug)]
pub struct Sealed<S> {
    stream: S,
    keys: TransportState,
    /// What came and is not opened yet.
    raw: Box<[u8]>,
    filled: usize,
    /// What was opened, and which of it nobody has read yet.
    opened: Box<[u8]>,
    unread: std::ops::Range<usize>,
    /// The peer has said that nothing follows.
    over: bool,
    /// The frame that is being sent, and how much of it is.
    sealed: Vec<u8>,
    sent: usize,
    /// We have said that nothing follows.
    ended: bool,
}

impl<S> Sealed<S> {
    /// Opens the first whole frame of what came. Returns whether there was one.
    fn open(&mut self) -> io::Result<bool> {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let Some(length) = self.raw[..self.filled].first_chunk() else { return Ok(false) };
        let end = 2 + usize::from(u16::from_be_bytes(*length));
        if end > FRAME {
            return Err(invalid("a frame is longer than any of ours"));
        }
        if end > self.filled {
            return Ok(false);
        }
        let opened = self.keys.read_message(&self.raw[2..end], &mut self.opened);
        let opened = opened.map_err(|_| invalid("a frame is not authentic"))?;
        self.raw.copy_within(end..self.filled, 0);
        self.filled -= end;
        self.unread = 0..opened;
        self.over = opened == 0;
        Ok(true)
    }

    /// Makes a frame, once the one before is sent.
    fn seal(&mut self, content: &[u8]) -> io::Result<()> {
        self.sealed.resize(FRAME, 0);
        let length = self.keys.write_message(content, &mut self.sealed[2..]);
        let length = length.map_err(|_| io::Error::other("a stream's keys are used up"))?;
        let prefix = u16::try_from(length).map_err(io::Error::other)?;
        self.sealed[..2].copy_from_slice(&prefix.to_be_bytes());
        self.sealed.truncate(2 + length);
        self.sent = 0;
        Ok(())
    }
}

impl<S: AsyncWrite + Unpin> Sealed<S> {
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.sealed.len() {
            let rest = &self.sealed[self.sent..];
            match ready!(Pin::new(&mut self.stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.sent += sent,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Sealed<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if !this.unread.is_empty() {
                let length = this.unread.len().min(buffer.remaining());
                let end = this.unread.start + length;
                buffer.put_slice(&this.opened[this.unread.start..end]);
                this.unread.start = end;
                return Poll::Ready(Ok(()));
            }
            if this.over {
                return Poll::Ready(Ok(()));
            }
            if this.open()? {
                continue;
            }
            // There is room, or a whole frame would have been there.
            let mut more = ReadBuf::new(&mut this.raw[this.filled..]);
            ready!(Pin::new(&mut this.stream).poll_read(context, &mut more))?;
            match more.filled().len() {
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                came => this.filled += came,
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sealed<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        content: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        ready!(this.poll_send(context))?;
        let length = content.len().min(CONTENT);
        // An empty frame would be the end.
        if length > 0 {
            this.seal(&content[..length])?;
            // What does not go now goes with the next call; the content is taken.
            if let Poll::Ready(sent) = this.poll_send(context) {
                sent?;
            }
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        Pin::new(&mut this.stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send(context))?;
        if !this.ended {
            this.seal(&[])?;
            this.ended = true;
            ready!(this.poll_send(context))?;
        }
        Pin::new(&mut this.stream).poll_shutdown(context)
    }
}
