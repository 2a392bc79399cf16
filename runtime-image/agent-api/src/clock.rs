//! One clock for everything that waits or looks at the time, so that tests can
//! move it: the wall and the time since boot, which may drift apart.
//!
//! Deadlines are kept in [`Clock::boottime`]: it never steps, and goes on while
//! the machine is suspended. [`Clock::now`] is for records and prices.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::sync::oneshot;

/// The system's timers stand still while it is suspended; a long sleep looks at the
/// time since boot this often, and so ends at most this much late after a resume.
const SLICE: Duration = Duration::from_secs(30);

/// Tells the time and waits for it. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<Mutex<Hands>>),
}

/// What a manual clock shows.
#[derive(Debug)]
struct Hands {
    wall: Timestamp,
    boottime: Duration,
    /// By deadline, then by who began to wait first.
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
    /// Sleeps begun so far.
    begun: u64,
}

impl Clock {
    /// The machine's own clocks.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// One that moves only by [`Clock::advance`] and [`Clock::step_wall`]. Its time
    /// since boot begins at zero.
    pub fn manual(start: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(Mutex::new(Hands {
            wall: start,
            boottime: Duration::ZERO,
            sleepers: BTreeMap::new(),
            begun: 0,
        }))))
    }

    /// Wall time. May step in either direction.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Manual(hands) => lock(hands).wall,
        }
    }

    /// Time since the machine started, suspension included. Never steps back; comparable
    /// only on the machine, and within the boot, that it was read in.
    pub fn boottime(&self) -> Duration {
        match &self.0 {
            Source::System => system_boottime(),
            Source::Manual(hands) => lock(hands).boottime,
        }
    }

    /// Waits for this long by [`Clock::boottime`]. Dropping the future ends the wait.
    pub fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + use<> {
        self.sleep_until(self.boottime().saturating_add(duration))
    }

    /// Waits until [`Clock::boottime`] is at least `deadline`. The wait counts from
    /// this call, not from the first poll.
    pub fn sleep_until(&self, deadline: Duration) -> impl Future<Output = ()> + Send + use<> {
        let sleeper = match &self.0 {
            Source::System => None,
            Source::Manual(hands) => Some(Sleeper::new(hands, deadline)),
        };
        async move {
            match sleeper {
                Some(mut sleeper) => sleeper.woken().await,
                None => system_sleep_until(deadline).await,
            }
        }
    }

    /// What the future gives, or `None` where it has not ended within `limit`.
    pub async fn timeout<T>(&self, limit: Duration, future: impl Future<Output = T>) -> Option<T> {
        let expired = self.sleep(limit);
        tokio::select! {
            biased;
            output = future => Some(output),
            () = expired => None,
        }
    }

    /// Moves a manual clock, both wall and time since boot. Sleepers whose time has come
    /// are woken in the order of their deadlines; all of them then see the new time. To have
    /// each see its own, step by [`Clock::next_wake`].
    ///
    /// # Panics
    /// On the system's clock, which nobody here moves.
    pub fn advance(&self, duration: Duration) {
        let mut hands = self.hands();
        hands.boottime += duration;
        let step = SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        hands.wall = stepped(hands.wall, step);
        let now = hands.boottime;
        while let Some(due) = hands.sleepers.first_entry().filter(|s| s.key().0 <= now) {
            // One that stopped waiting meanwhile is not missed.
            let _ = due.remove().send(());
        }
    }

    /// Steps the wall of a manual clock, as an administrator or NTP would. Wakes nobody.
    ///
    /// # Panics
    /// On the system's clock.
    pub fn step_wall(&self, step: SignedDuration) {
        let mut hands = self.hands();
        hands.wall = stepped(hands.wall, step);
    }

    /// How far a manual clock must advance to wake the next sleeper; `None` where nobody sleeps.
    ///
    /// # Panics
    /// On the system's clock.
    pub fn next_wake(&self) -> Option<Duration> {
        let hands = self.hands();
        let ((deadline, _), _) = hands.sleepers.first_key_value()?;
        Some(deadline.saturating_sub(hands.boottime))
    }

    fn hands(&self) -> MutexGuard<'_, Hands> {
        match &self.0 {
            Source::System => panic!("the system's clock cannot be moved by hand"),
            Source::Manual(hands) => lock(hands),
        }
    }
}

/// One wait on a manual clock; leaves the clock's list when dropped.
struct Sleeper {
    hands: Arc<Mutex<Hands>>,
    at: (Duration, u64),
    /// `None` where the time had come already.
    wake: Option<oneshot::Receiver<()>>,
}

impl Sleeper {
    fn new(hands: &Arc<Mutex<Hands>>, deadline: Duration) -> Self {
        let mut inner = lock(hands);
        inner.begun += 1;
        let at = (deadline, inner.begun);
        let wake = (deadline > inner.boottime).then(|| {
            let (sender, receiver) = oneshot::channel();
            inner.sleepers.insert(at, sender);
            receiver
        });
        drop(inner);
        Self { hands: hands.clone(), at, wake }
    }

    async fn woken(&mut self) {
        if let Some(wake) = &mut self.wake {
            // The sender goes only by sending.
            let _ = wake.await;
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        lock(&self.hands).sleepers.remove(&self.at);
    }
}

fn lock(hands: &Mutex<Hands>) -> MutexGuard<'_, Hands> {
    hands.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Stops at the ends of jiff's ten thousand years.
fn stepped(wall: Timestamp, step: SignedDuration) -> Timestamp {
    wall.saturating_add(step).unwrap_or(wall)
}

async fn system_sleep_until(deadline: Duration) {
    loop {
        let left = deadline.saturating_sub(system_boottime());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(SLICE)).await;
    }
}

#[cfg(target_os = "linux")]
fn system_boottime() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Darwin's monotonic clock goes on while the machine sleeps.
#[cfg(not(target_os = "linux"))]
fn system_boottime() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    let time = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn manual() -> Clock {
        Clock::manual("2026-01-01T00:00:00Z".parse().unwrap())
    }

    #[tokio::test]
    async fn sleepers_wake_in_the_order_of_their_deadlines() {
        let clock = manual();
        let (woken, mut order) = tokio::sync::mpsc::unbounded_channel();
        for seconds in [3, 1, 2, 5] {
            let sleep = clock.sleep(SECOND * seconds);
            let woken = woken.clone();
            tokio::spawn(async move {
                sleep.await;
                woken.send(seconds).unwrap();
            });
        }
        tokio::task::yield_now().await; // they wait now
        clock.advance(SECOND * 4);
        let seen = [order.recv().await, order.recv().await, order.recv().await];
        assert_eq!(seen, [Some(1), Some(2), Some(3)]);
        assert_eq!(clock.next_wake(), Some(SECOND));
    }

    #[tokio::test]
    async fn the_wall_steps_apart_from_the_time_since_boot_and_wakes_nobody() {
        let clock = manual();
        let start = clock.now();
        let mut sleep = std::pin::pin!(clock.sleep(SECOND * 10));
        clock.step_wall(SignedDuration::from_hours(-2));
        assert_eq!(clock.now() - start, jiff::Span::new().seconds(-7200).into());
        assert_eq!(clock.boottime(), Duration::ZERO);
        let pending = tokio::time::timeout(Duration::from_millis(20), &mut sleep).await;
        assert!(pending.is_err());
        clock.advance(SECOND * 10);
        sleep.await;
        assert_eq!(clock.now() - start, jiff::Span::new().seconds(-7190).into());
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_is_not_waited_for() {
        let clock = manual();
        drop(clock.sleep(SECOND));
        assert_eq!(clock.next_wake(), None);
        let limited = clock.timeout(SECOND, std::future::pending::<()>());
        let (outcome, ()) = tokio::join!(limited, async { clock.advance(SECOND) });
        assert_eq!(outcome, None);
        assert_eq!(clock.timeout(SECOND, async { 7 }).await, Some(7));
        clock.sleep(Duration::ZERO).await;
    }

    #[tokio::test]
    async fn the_systems_clock_sleeps_at_least_as_long_as_asked() {
        let clock = Clock::system();
        let before = clock.boottime();
        clock.sleep(Duration::from_millis(30)).await;
        assert!(clock.boottime() - before >= Duration::from_millis(30));
        let drift = clock.now().duration_since(Timestamp::now());
        assert!(drift.abs() < SignedDuration::from_secs(5));
    }
}
