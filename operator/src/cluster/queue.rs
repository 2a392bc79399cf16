//! Keys that wait for their turn: each at most once, never two at a time for the same key, the
//! failing ones later and later, all of it on the [`Clock`].

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use tokio::sync::Notify;

/// First wait after a failure; doubled with each.
const FIRST_BACKOFF: Duration = Duration::from_millis(500);
/// First wait where somebody wrote first. Mostly their writing has come by then; where the watch
/// says nothing, asking on at this pace would be a storm.
const FIRST_LOST_RACE: Duration = Duration::from_millis(20);
/// Longest wait after a failure.
const LONGEST_BACKOFF: Duration = Duration::from_secs(120);

/// Keys for which room is kept when none wait.
const FEW: usize = 256;

/// What becomes of a key that was worked on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// It comes back when something changes.
    OnChange,
    /// Also after this long.
    After(Duration),
    /// It failed: later, each time in a row twice as late, with jitter.
    Backoff,
    /// The same, and whoever refused said that it is not worth to ask before this long.
    NotBefore(Duration),
    /// Somebody wrote first: the same, from a much shorter wait.
    LostRace,
}

/// A queue of keys. Clones are the same queue.
#[derive(Debug)]
pub struct Queue<K> {
    inner: Arc<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    clock: Clock,
    state: Mutex<State<K>>,
    changed: Notify,
}

#[derive(Debug)]
struct State<K> {
    /// In turn.
    ready: VecDeque<K>,
    /// What is in `ready`, or came while it was worked on.
    dirty: HashSet<K>,
    /// What is worked on.
    busy: HashSet<K>,
    /// By time since boot.
    later: BTreeSet<(Duration, Arc<K>)>,
    due: HashMap<Arc<K>, Duration>,
    failures: HashMap<K, u32>,
    closed: bool,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Clone + Eq + Ord + Hash + Send + 'static> Queue<K> {
    /// An empty one.
    pub fn new(clock: Clock) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            busy: HashSet::new(),
            later: BTreeSet::new(),
            due: HashMap::new(),
            failures: HashMap::new(),
            closed: false,
        };
        Self { inner: Arc::new(Inner { clock, state: Mutex::new(state), changed: Notify::new() }) }
    }

    /// Asks for a key's turn.
    pub fn add(&self, key: K) {
        let mut state = self.lock();
        state.make_ready(key);
        drop(state);
        self.inner.changed.notify_one();
    }

    /// Asks for a key's turn after a while. Of two such wishes the earlier one counts.
    pub fn add_after(&self, key: K, wait: Duration) {
        let at = self.inner.clock.boottime().saturating_add(wait);
        let key = Arc::new(key);
        let mut state = self.lock();
        if let Some(known) = state.due.get(&key).copied() {
            if known <= at {
                return;
            }
            // Both, for the two share one key.
            state.due.remove(&key);
            state.later.remove(&(known, key.clone()));
        }
        state.due.insert(key.clone(), at);
        state.later.insert((at, key));
        drop(state);
        self.inner.changed.notify_one();
    }

    /// The next key. It is not given to anybody else before [`Queue::done`].
    pub async fn next(&self) -> K {
        loop {
            if self.lock().closed {
                return std::future::pending().await;
            }
            let wait = {
                let mut state = self.lock();
                let now = self.inner.clock.boottime();
                state.wake(now);
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.busy.insert(key.clone());
                    if state.ready.is_empty() {
                        // After thousands at once, the room for them.
                        state.ready.shrink_to(FEW);
                        state.dirty.shrink_to(FEW);
                    } else {
                        // Somebody else may take what is left.
                        self.inner.changed.notify_one();
                    }
                    return key;
                }
                state.later.first().map(|(at, _)| *at)
            };
            let changed = self.inner.changed.notified();
            match wait {
                None => changed.await,
                Some(at) => tokio::select! {
                    () = changed => {}
                    () = self.inner.clock.sleep_until(at) => {}
                },
            }
        }
    }

    /// The turn is over. A key that was asked for meanwhile has another at once.
    pub fn done(&self, key: &K, again: Again) {
        let mut state = self.lock();
        state.busy.remove(key);
        let wait = match again {
            Again::OnChange => {
                state.failures.remove(key);
                None
            }
            Again::After(wait) => {
                state.failures.remove(key);
                Some(wait)
            }
            Again::Backoff => Some(state.failed(key, FIRST_BACKOFF)),
            Again::NotBefore(wait) => Some(state.failed(key, FIRST_BACKOFF).max(wait)),
            Again::LostRace => Some(state.failed(key, FIRST_LOST_RACE)),
        };
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
        }
        drop(state);
        self.inner.changed.notify_one();
        if let Some(wait) = wait {
            self.add_after(key.clone(), wait);
        }
    }

    /// The turn was given up before its end: the key has another.
    pub fn abandoned(&self, key: &K) {
        let mut state = self.lock();
        if state.busy.remove(key) {
            state.dirty.insert(key.clone());
            state.ready.push_back(key.clone());
        }
        drop(state);
        self.inner.changed.notify_one();
    }

    /// No key has a turn any more; those that have one may end it.
    pub fn close(&self) {
        self.lock().closed = true;
        self.inner.changed.notify_waiters();
    }

    /// Whether some key has its turn.
    pub fn is_busy(&self) -> bool {
        !self.lock().busy.is_empty()
    }

    /// Keys that wait for their turn now.
    pub fn depth(&self) -> usize {
        self.lock().ready.len()
    }

    /// Whether nothing waits, nothing is worked on, and nothing comes back before `horizon` from now.
    pub fn is_quiet(&self, horizon: Duration) -> bool {
        let state = self.lock();
        let until = self.inner.clock.boottime().saturating_add(horizon);
        state.ready.is_empty()
            && state.busy.is_empty()
            && state.later.first().is_none_or(|(at, _)| *at > until)
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Ord + Hash> State<K> {
    /// How long to wait after one more failure.
    fn failed(&mut self, key: &K, first: Duration) -> Duration {
        let failures = self.failures.entry(key.clone()).or_insert(0);
        *failures = failures.saturating_add(1);
        backoff(first, *failures, jitter(key, *failures))
    }

    fn make_ready(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.busy.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn wake(&mut self, now: Duration) {
        while let Some((at, _)) = self.later.first() {
            if *at > now {
                return;
            }
            if let Some((_, key)) = self.later.pop_first() {
                self.due.remove(&key);
                self.make_ready(Arc::unwrap_or_clone(key));
            }
        }
    }
}

/// 1, 2, 4, … times the first wait, each shortened by up to a half, so that what failed together is
/// not tried again together.
fn backoff(first: Duration, failures: u32, jitter: f64) -> Duration {
    let doubled = first.saturating_mul(1 << failures.saturating_sub(1).min(16));
    doubled.min(LONGEST_BACKOFF).mul_f64(1.0 - jitter / 2.0)
}

/// Between 0 and 1, the same for the same key and failure.
fn jitter<K: Hash>(key: &K, failures: u32) -> f64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one((key, failures));
    (hash >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manual() -> (Clock, Queue<&'static str>) {
        let clock = Clock::manual(jiff::Timestamp::UNIX_EPOCH);
        (clock.clone(), Queue::new(clock))
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_worked_on_by_one_at_a_time() {
        let (_, queue) = manual();
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        assert_eq!(queue.depth(), 0);
        queue.done(&"a", Again::OnChange);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", Again::OnChange);
        queue.done(&"b", Again::OnChange);
        assert!(queue.is_quiet(Duration::from_secs(3600)));
    }

    #[tokio::test]
    async fn a_turn_that_was_given_up_is_had_again_once() {
        let (_, queue) = manual();
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        queue.abandoned(&"a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", Again::OnChange);
        assert!(queue.is_quiet(Duration::from_secs(3600)));
    }

    #[tokio::test]
    async fn waiting_goes_by_the_clock_and_the_earlier_wish_counts() {
        let (clock, queue) = manual();
        queue.add_after("a", Duration::from_secs(60));
        queue.add_after("a", Duration::from_secs(300));
        queue.add_after("b", Duration::from_secs(90));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { queue.next().await }
        });
        tokio::task::yield_now().await;
        clock.advance(Duration::from_secs(59));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        clock.advance(Duration::from_secs(1));
        assert_eq!(waiting.await.expect("not cancelled"), "a");
    }

    #[tokio::test]
    async fn who_was_asked_to_wait_comes_back_no_sooner() {
        let (clock, queue) = manual();
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", Again::NotBefore(Duration::from_secs(30)));
        clock.advance(Duration::from_secs(29));
        assert!(futures::poll!(std::pin::pin!(queue.next())).is_pending(), "too soon");
        clock.advance(Duration::from_secs(1));
        assert_eq!(queue.next().await, "a");
    }

    #[tokio::test]
    async fn a_closed_queue_gives_no_turn_and_knows_when_the_last_one_is_over() {
        let (_, queue) = manual();
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.close();
        assert!(queue.is_busy());
        queue.done(&"a", Again::Backoff);
        assert!(!queue.is_busy());
        assert!(futures::poll!(std::pin::pin!(queue.next())).is_pending(), "b had a turn");
    }

    #[test]
    fn failures_wait_longer_and_longer_but_not_for_ever() {
        let mut last = Duration::ZERO;
        for failures in 1..9 {
            let wait = backoff(FIRST_BACKOFF, failures, 0.0);
            assert!(wait > last, "{failures}: {wait:?}");
            last = wait;
        }
        assert_eq!(backoff(FIRST_BACKOFF, 40, 0.0), LONGEST_BACKOFF);
        assert_eq!(backoff(FIRST_BACKOFF, 40, 1.0), LONGEST_BACKOFF / 2);
        assert_eq!(backoff(FIRST_LOST_RACE, 1, 0.0), FIRST_LOST_RACE);
        assert_eq!(
            backoff(FIRST_LOST_RACE, 40, 0.0),
            LONGEST_BACKOFF,
            "no storm while nothing is heard"
        );
        assert_ne!(jitter(&"a", 1), jitter(&"b", 1));
    }
}
