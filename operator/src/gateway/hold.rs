//! Requests that wait for a replica, and what is told of them: somebody waits ([`Wish`]),
//! and nobody has asked for so long ([`Activity`]).

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::watch;

/// What the waiting requests ask of whoever starts replicas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Requests that wait for a replica.
    pub waiting: usize,
    /// Replicas that are ready, failing ones included.
    pub ready: usize,
}

impl Wish {
    /// Whether somebody waits while there is no replica at all: a service scaled to zero is to wake.
    pub fn wake(self) -> bool {
        self.waiting > 0 && self.ready == 0
    }
}

/// Room for a bounded number of waiting requests.
#[derive(Debug)]
pub(super) struct Hold {
    limit: usize,
    wish: watch::Sender<Wish>,
    gauge: Gauge,
}

impl Hold {
    /// Room for `limit`; `gauge` shows how many there are.
    pub(super) fn new(limit: usize, gauge: Gauge) -> Self {
        Self { limit, wish: watch::Sender::default(), gauge }
    }

    /// A place to wait in, until it is dropped; `None` when all are taken.
    pub(super) fn enter(&self) -> Option<Held<'_>> {
        let entered = self.wish.send_if_modified(|wish| {
            let room = wish.waiting < self.limit;
            wish.waiting += usize::from(room);
            room
        });
        entered.then(|| {
            self.gauge.inc();
            Held(self)
        })
    }

    /// So many replicas are ready now. Returns how many were before.
    pub(super) fn ready(&self, ready: usize) -> usize {
        let mut before = ready;
        self.wish.send_if_modified(|wish| {
            before = std::mem::replace(&mut wish.ready, ready);
            before != ready
        });
        before
    }

    /// What is wished, now and from now on.
    pub(super) fn wish(&self) -> watch::Receiver<Wish> {
        self.wish.subscribe()
    }
}

/// One request's place.
#[derive(Debug)]
pub(super) struct Held<'a>(&'a Hold);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.wish.send_modify(|wish| wish.waiting -= 1);
        self.0.gauge.dec();
    }
}

/// When the service was last of use.
#[derive(Debug)]
pub(super) struct Activity {
    clock: Clock,
    busy: AtomicUsize,
    /// Milliseconds since boot.
    last: AtomicU64,
}

impl Activity {
    /// Counts from now: a gateway that just started has not been idle.
    pub(super) fn new(clock: Clock) -> Self {
        let activity = Self { clock, busy: AtomicUsize::new(0), last: AtomicU64::new(0) };
        activity.touch();
        activity
    }

    /// A request arrived.
    pub(super) fn begin(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is over, however it ended.
    pub(super) fn end(&self) {
        // First the time: `idle_for` must not see "not busy" beside an old one.
        self.touch();
        self.busy.fetch_sub(1, Ordering::Release);
    }

    /// How long there has been no request; zero while there is one.
    pub(super) fn idle_for(&self) -> Duration {
        if self.busy.load(Ordering::Acquire) > 0 {
            return Duration::ZERO;
        }
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.clock.boottime().saturating_sub(last)
    }

    /// From now on it could be of use.
    pub(super) fn touch(&self) {
        let now = u64::try_from(self.clock.boottime().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_room_is_bounded_and_the_wish_says_who_waits() {
        let hold = Hold::new(2, Gauge::default());
        let wish = hold.wish();
        let first = hold.enter().unwrap();
        let second = hold.enter().unwrap();
        assert!(hold.enter().is_none());
        assert_eq!(*wish.borrow(), Wish { waiting: 2, ready: 0 });
        assert!(wish.borrow().wake());
        hold.ready(1);
        assert!(!wish.borrow().wake(), "they wait for room, not for a replica");
        drop(first);
        assert!(hold.enter().is_some());
        drop(second);
        assert_eq!(wish.borrow().waiting, 0);
    }

    #[test]
    fn idle_counts_from_the_end_of_the_last_request() {
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        let activity = Activity::new(clock.clone());
        let minute = Duration::from_secs(60);
        clock.advance(minute);
        assert_eq!(activity.idle_for(), minute);
        activity.begin();
        clock.advance(minute);
        assert_eq!(activity.idle_for(), Duration::ZERO, "a long answer is no idleness");
        activity.end();
        assert_eq!(activity.idle_for(), Duration::ZERO);
        clock.advance(minute);
        assert_eq!(activity.idle_for(), minute);
    }
}
