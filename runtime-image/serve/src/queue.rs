//! Between the HTTP handlers and the engine thread: the one queue of requests
//! that wait for admission, and what the server is doing at the moment.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use crate::error::ApiError;
use crate::sample::Sampling;

/// A request that is ready for the engine.
#[derive(Debug)]
pub(crate) struct Job {
    /// Never empty. With `max_tokens` it fits into the context.
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the answer at most; at least 1.
    pub(crate) max_tokens: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) arrived: Instant,
    /// Where the answer goes. Its other end is dropped when the client goes away.
    /// It holds no more than `max_tokens` events.
    pub(crate) events: UnboundedSender<Event>,
    /// The request's place among those that the server has memory for; shared
    /// with the handler, so it is free again when both are done with the request.
    #[expect(dead_code, reason = "it is held, not looked at")]
    pub(crate) ticket: Arc<OwnedSemaphorePermit>,
}

impl Job {
    /// Nobody is there to read the answer any more.
    pub(crate) fn abandoned(&self) -> bool {
        self.events.is_closed()
    }

    /// Sends to the handler. That it may have gone is noticed by [`Job::abandoned`].
    pub(crate) fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    /// More text; never empty.
    Text(String),
    /// The answer is complete. Nothing follows.
    Done {
        reason: FinishReason,
        prompt_tokens: usize,
        /// Generated tokens, an end-of-text token included.
        completion_tokens: usize,
    },
    /// There will be no (further) answer. Nothing follows.
    Failed(ApiError),
}

/// Why an answer ended, in OpenAI's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum FinishReason {
    /// The model ended it, or a stop sequence was reached.
    Stop,
    /// `max_tokens` were generated.
    Length,
}

/// What the server is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Taking requests.
    Serving,
    /// Finishing what it has; new requests are refused.
    Draining,
    /// The grace period is over: whatever still runs is cut off.
    Stopping,
    /// The engine failed, and why. Nothing can be answered any more.
    Dead(String),
}

/// The queue. How many may wait is bounded by the tickets that jobs hold.
#[derive(Debug)]
pub(crate) struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    waiting: VecDeque<Job>,
}

/// What left the queue.
#[derive(Debug)]
pub(crate) struct Admission<T> {
    /// Join the batch now, in this order.
    pub(crate) admitted: Vec<T>,
    /// How many left because their clients went away.
    pub(crate) abandoned: usize,
}

impl Queue {
    /// Empty, and taking requests.
    pub(crate) fn new() -> Self {
        Queue {
            state: Mutex::new(State { phase: Phase::Serving, waiting: VecDeque::new() }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What the server is doing.
    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase.clone()
    }

    /// Requests that wait.
    pub(crate) fn waiting(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether a new request would be taken.
    pub(crate) fn open(&self) -> Result<(), ApiError> {
        refusal(&self.lock().phase)
    }

    /// Appends a request; refused unless the server is taking them.
    pub(crate) fn push(&self, job: Job) -> Result<(), ApiError> {
        let mut state = self.lock();
        refusal(&state.phase)?;
        state.waiting.push_back(job);
        self.changed.notify_one();
        Ok(())
    }

    /// From now on nothing new is taken.
    pub(crate) fn drain(&self) {
        self.advance(Phase::Draining);
    }

    /// From now on running requests are cut off.
    pub(crate) fn stop(&self) {
        self.advance(Phase::Stopping);
    }

    fn advance(&self, phase: Phase) {
        let mut state = self.lock();
        if !matches!(state.phase, Phase::Dead(_)) {
            state.phase = phase;
        }
        self.changed.notify_one();
    }

    /// The engine failed: everything that waits is told so, and all that comes later.
    pub(crate) fn die(&self, why: &str) {
        let mut state = self.lock();
        state.phase = Phase::Dead(why.to_owned());
        for job in state.waiting.drain(..) {
            job.send(Event::Failed(ApiError::engine_failed(why)));
        }
    }

    /// Takes requests from the front as long as `admit` accepts them; one that
    /// it hands back keeps its place, and none behind it overtakes. Waits for work
    /// where `idle`. `None`: the engine is to end.
    pub(crate) fn next<T>(
        &self,
        idle: bool,
        mut admit: impl FnMut(Job) -> Result<T, Job>,
    ) -> Option<Admission<T>> {
        let mut state = self.lock();
        let mut abandoned = 0;
        loop {
            if state.phase == Phase::Stopping {
                for job in state.waiting.drain(..) {
                    job.send(Event::Failed(ApiError::cut_off()));
                }
                return None;
            }
            let before = state.waiting.len();
            state.waiting.retain(|job| !job.abandoned());
            abandoned += before - state.waiting.len();
            let mut admitted = Vec::new();
            while let Some(job) = state.waiting.pop_front() {
                match admit(job) {
                    Ok(sequence) => admitted.push(sequence),
                    Err(job) => {
                        state.waiting.push_front(job);
                        break;
                    }
                }
            }
            if !idle || !admitted.is_empty() {
                return Some(Admission { admitted, abandoned });
            }
            if state.phase == Phase::Draining && state.waiting.is_empty() {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }
}

fn refusal(phase: &Phase) -> Result<(), ApiError> {
    match phase {
        Phase::Serving => Ok(()),
        Phase::Draining | Phase::Stopping => Err(ApiError::draining()),
        Phase::Dead(why) => Err(ApiError::engine_dead(why)),
    }
}
