//! A request's body on its way to a replica: kept, so that it can be sent again, or
//! streamed once where it is too large for that.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use super::refusal::Refusal;
use super::{BoxError, Config};

/// How much of a refused body is still read, by time: a client that is cut off while it writes
/// may lose the answer that says why.
const LINGER: Duration = Duration::from_secs(1);

/// A body to send.
#[derive(Debug)]
pub(super) enum Payload {
    /// All of it; holds its share of the memory for kept bodies.
    Kept { bytes: Bytes, _share: Option<OwnedSemaphorePermit> },
    /// To be sent once; `None` when that was done. The rest tells how the upload went.
    Streamed(Option<Upload>, Fate),
}

/// Why an upload failed on the client's side, once it has.
type Fate = Arc<OnceLock<Refusal>>;

impl Payload {
    /// Reads the body if it is to be kept.
    ///
    /// # Errors
    /// It is too large, too slow, or breaks off.
    pub(super) async fn read(
        body: Incoming,
        config: &Config,
        room: &Arc<Semaphore>,
    ) -> Result<Self, Refusal> {
        let announced = body.size_hint().exact();
        if announced == Some(0) {
            return Ok(Self::Kept { bytes: Bytes::new(), _share: None });
        }
        if announced.is_some_and(|bytes| bytes > config.body_bytes) {
            discard(body).await;
            return Err(Refusal::TooLarge(config.body_bytes));
        }
        let keep = u64::from(config.replay_bytes);
        let share = u32::try_from(announced.unwrap_or(keep)).ok().filter(|b| u64::from(*b) <= keep);
        let share = share.and_then(|bytes| room.clone().try_acquire_many_owned(bytes).ok());
        let Some(share) = share else {
            return Ok(Self::streamed(Upload::new(Bytes::new(), body, config)));
        };
        Self::keep(body, config, share).await
    }

    async fn keep(
        mut body: Incoming,
        config: &Config,
        share: OwnedSemaphorePermit,
    ) -> Result<Self, Refusal> {
        let mut read = Bytes::new();
        loop {
            let frame = timeout(config.body_timeout, body.frame()).await;
            let data = match frame.map_err(|_| Refusal::TooSlow)? {
                None => return Ok(Self::Kept { bytes: read, _share: Some(share) }),
                Some(Err(_)) => return Err(Refusal::Incomplete),
                Some(Ok(frame)) => frame.into_data().unwrap_or_default(),
            };
            read = match read.is_empty() {
                true => data,
                false => {
                    let mut both = BytesMut::from(read);
                    both.extend_from_slice(&data);
                    both.freeze()
                }
            };
            let bytes = read.len() as u64;
            if bytes > config.body_bytes {
                discard(body).await;
                return Err(Refusal::TooLarge(config.body_bytes));
            }
            if bytes > u64::from(config.replay_bytes) {
                return Ok(Self::streamed(Upload::new(read, body, config)));
            }
        }
    }

    fn streamed(upload: Upload) -> Self {
        let fate = upload.fate.clone();
        Self::Streamed(Some(upload), fate)
    }

    /// What to send for this try; `None` when there is nothing left to send.
    pub(super) fn take(&mut self) -> Option<Outgoing> {
        match self {
            Self::Kept { bytes, .. } => Some(Outgoing::Kept(Full::new(bytes.clone()))),
            Self::Streamed(upload, _) => upload.take().map(Outgoing::Streamed),
        }
    }

    /// Whether [`Payload::take`] has something once more.
    pub(super) fn again(&self) -> bool {
        match self {
            Self::Kept { .. } => true,
            Self::Streamed(upload, _) => upload.is_some(),
        }
    }

    /// Takes back what was not sent at all.
    pub(super) fn put_back(&mut self, unsent: Outgoing) {
        if let (Self::Streamed(place, _), Outgoing::Streamed(upload)) = (self, unsent) {
            *place = Some(upload);
        }
    }

    /// What the client did wrong while its body was streamed: then no replica failed.
    pub(super) fn fault(&self) -> Option<Refusal> {
        match self {
            Self::Kept { .. } => None,
            Self::Streamed(_, fate) => fate.get().cloned(),
        }
    }

    /// The request is refused: lets the client finish writing, within bounds.
    pub(super) async fn discard(self) {
        if let Self::Streamed(Some(upload), _) = self {
            discard(upload.rest).await;
        }
    }
}

async fn discard(mut body: Incoming) {
    let read = async { while let Some(Ok(_)) = body.frame().await {} };
    // However far it came: the answer follows.
    let _ = timeout(LINGER, read).await;
}

/// The body of a request to a replica.
#[derive(Debug)]
pub(super) enum Outgoing {
    Kept(Full<Bytes>),
    Streamed(Upload),
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match self.get_mut() {
            Self::Kept(body) => Pin::new(body).poll_frame(context).map_err(|never| match never {}),
            Self::Streamed(body) => Pin::new(body).poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Kept(body) => body.is_end_stream(),
            Self::Streamed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Kept(body) => body.size_hint(),
            Self::Streamed(body) => body.size_hint(),
        }
    }
}

/// A body that goes through, piece by piece, within its bounds.
#[derive(Debug)]
pub(super) struct Upload {
    /// What was read before it turned out too large to keep.
    begin: Bytes,
    rest: Incoming,
    left: u64,
    limit: u64,
    pause: Duration,
    patience: Pin<Box<Sleep>>,
    fate: Fate,
}

impl Upload {
    fn new(begin: Bytes, rest: Incoming, config: &Config) -> Self {
        Self {
            left: config.body_bytes.saturating_sub(begin.len() as u64),
            begin,
            rest,
            limit: config.body_bytes,
            pause: config.body_timeout,
            patience: Box::pin(sleep_until(Instant::now() + config.body_timeout)),
            fate: Fate::default(),
        }
    }

    fn failed(&self, why: Refusal) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let error = BoxError::from(why.code());
        // The first cause stays.
        let _ = self.fate.set(why);
        Poll::Ready(Some(Err(error)))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if !this.begin.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.begin)))));
        }
        match Pin::new(&mut this.rest).poll_frame(context) {
            Poll::Pending => match this.patience.as_mut().poll(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(()) => this.failed(Refusal::TooSlow),
            },
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Ready(Some(Err(_))) => this.failed(Refusal::Incomplete),
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
                let Some(left) = this.left.checked_sub(bytes) else {
                    return this.failed(Refusal::TooLarge(this.limit));
                };
                this.left = left;
                this.patience.as_mut().reset(Instant::now() + this.pause);
                Poll::Ready(Some(Ok(frame)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begin.is_empty() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // With a beginning the length was not announced.
        if self.begin.is_empty() { self.rest.size_hint() } else { SizeHint::default() }
    }
}
