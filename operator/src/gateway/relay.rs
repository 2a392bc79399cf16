//! An answer on its way to the client: each piece as it comes, nothing gathered. Its end,
//! whichever it is, frees what the request held.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

use super::BoxError;
use super::proxy::Visit;
use super::replicas::Lease;
use super::upstream::Sender;

/// The body of what a client gets.
pub(super) enum Answer {
    /// The gateway's own.
    Own(Full<Bytes>),
    /// A replica's.
    Relayed(Box<Relay>),
}

/// A replica's answer.
pub(super) struct Relay {
    body: Incoming,
    /// Given back when the answer is complete. Otherwise dropping `body` closes the
    /// connection, which is how the replica learns that nobody listens.
    sender: Option<Sender>,
    lease: Lease,
    visit: Visit,
    silence: Duration,
    last: Instant,
    /// Made at the first wait; most short answers never wait.
    patience: Option<Pin<Box<Sleep>>>,
    end: End,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    NotYet,
    Complete,
    Broken,
}

impl Relay {
    pub(super) fn new(
        body: Incoming,
        sender: Sender,
        lease: Lease,
        visit: Visit,
        silence: Duration,
    ) -> Self {
        let last = Instant::now();
        let sender = Some(sender);
        Self { body, sender, lease, visit, silence, last, patience: None, end: End::NotYet }
    }

    fn broken(&mut self, why: BoxError) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.end = End::Broken;
        self.visit.cut();
        self.lease.failed(&why);
        Poll::Ready(Some(Err(why)))
    }

    /// Whether the replica has been silent for too long.
    fn silent(&mut self, context: &mut Context<'_>) -> bool {
        loop {
            let due = self.last + self.silence;
            let patience = self.patience.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if patience.as_mut().poll(context).is_pending() {
                return false;
            }
            if Instant::now() >= due {
                return true;
            }
            // Pieces came meanwhile; setting the timer for each of them would cost more.
            patience.as_mut().reset(due);
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let relay = match self.get_mut() {
            Self::Own(body) => {
                return Pin::new(body).poll_frame(context).map_err(|never| match never {});
            }
            Self::Relayed(relay) => relay,
        };
        match Pin::new(&mut relay.body).poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                relay.last = Instant::now();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => relay.broken(error.into()),
            Poll::Ready(None) => {
                relay.end = End::Complete;
                Poll::Ready(None)
            }
            Poll::Pending if relay.silent(context) => relay.broken("the replica is silent".into()),
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(body) => body.is_end_stream(),
            Self::Relayed(relay) => relay.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(body) => body.size_hint(),
            Self::Relayed(relay) => relay.body.size_hint(),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // hyper does not ask again after the last byte of an announced length.
        let complete = self.end == End::Complete || self.body.is_end_stream();
        match self.end {
            End::Broken => {}
            End::NotYet | End::Complete if complete => {
                if let Some(sender) = self.sender.take() {
                    self.lease.give_back(sender);
                }
            }
            End::NotYet | End::Complete => self.visit.abandoned(),
        }
    }
}
