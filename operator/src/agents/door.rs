//! Who may call us about a claim. A stranger on the internet can knock, so a call is let in only once it
//! is known to be of the claim's agent: by its token the first time, by its pinned key afterwards, each
//! time with a higher counter. Nobody else learns anything, not even whether there is such a claim.

use std::sync::{Mutex, MutexGuard, PoisonError};

use petaflop_agent_api::enrol::{EnrolError, Enrolment, Expected, judge};
use petaflop_agent_api::keys::{NoisePublic, OperatorRoot};
use petaflop_agent_api::poll::{PollBody, PollError};
use tokio::sync::{mpsc, oneshot};

/// Calls that wait for the conversation. An agent makes one at a time; more are of calls that broke.
const WAITING: usize = 4;

/// Why a call is not let in. For our log alone.
#[derive(Debug, thiserror::Error)]
pub(super) enum Turned {
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    #[error(transparent)]
    Poll(#[from] PollError),
    #[error("poll: nobody is enrolled")]
    NotEnrolled,
    #[error("poll: it was sent before")]
    Replayed,
    #[error("nobody talks to it now, or it calls too often")]
    Busy,
}

/// A call that was let in, and where what we say to it goes.
pub(super) enum Call {
    /// For its welcome.
    Hello { message: Vec<u8>, answer: oneshot::Sender<Vec<u8>> },
    /// With the response to the last request, or nothing; for the next request.
    Poll { response: Vec<u8>, answer: oneshot::Sender<Vec<u8>> },
}

impl Call {
    /// Whether somebody still waits.
    pub(super) fn is_open(&self) -> bool {
        match self {
            Self::Hello { answer, .. } | Self::Poll { answer, .. } => !answer.is_closed(),
        }
    }
}

/// The calls of one claim's agent.
pub(super) type Visits = mpsc::Receiver<Call>;

/// What comes for a call that was let in.
pub(super) type Answer = oneshot::Receiver<Vec<u8>>;

/// The door to one claim's conversation.
pub(super) struct Door {
    identity: String,
    claim_uid: String,
    attempt: u32,
    known: Mutex<Known>,
    calls: mpsc::Sender<Call>,
}

struct Known {
    enrolment: Enrolment,
    /// Of the newest poll. A new process learns it from the first one.
    counter: u64,
}

impl Door {
    /// Of the claim with this identity, whose agent is pinned or still to come.
    pub(super) fn new(
        identity: String,
        claim_uid: String,
        attempt: u32,
        pinned: Option<NoisePublic>,
    ) -> (Self, Visits) {
        let enrolment = pinned.map_or(Enrolment::Open, Enrolment::Pinned);
        let (calls, visits) = mpsc::channel(WAITING);
        let known = Mutex::new(Known { enrolment, counter: 0 });
        (Self { identity, claim_uid, attempt, known, calls }, visits)
    }

    /// Whether it is of a claim by its identity.
    pub(super) fn is_of(&self, identity: &str) -> bool {
        self.identity == identity
    }

    /// The agent of this key was let in.
    pub(super) fn pin(&self, agent: NoisePublic) {
        self.known().enrolment = Enrolment::Pinned(agent);
    }

    /// Lets a hello in.
    pub(super) fn hello(&self, root: &OperatorRoot, message: Vec<u8>) -> Result<Answer, Turned> {
        let Self { identity, claim_uid, attempt, .. } = self;
        let enrolment = self.known().enrolment;
        judge(root, Expected { identity, claim_uid, attempt: *attempt, enrolment }, &message)?;
        self.enter(|answer| Call::Hello { message, answer })
    }

    /// Lets a poll in.
    pub(super) fn poll(&self, root: &OperatorRoot, body: PollBody<'_>) -> Result<Answer, Turned> {
        let agent = match self.known().enrolment {
            Enrolment::Open => return Err(Turned::NotEnrolled),
            Enrolment::Pinned(agent) | Enrolment::Done(agent) => agent,
        };
        let (poll, response) = body.open(&root.noise(), &agent)?;
        {
            let mut known = self.known();
            if poll.counter <= known.counter {
                return Err(Turned::Replayed);
            }
            *known = Known { enrolment: Enrolment::Done(agent), counter: poll.counter };
        }
        self.enter(|answer| Call::Poll { response: response.to_vec(), answer })
    }

    fn enter(&self, call: impl FnOnce(oneshot::Sender<Vec<u8>>) -> Call) -> Result<Answer, Turned> {
        let (sender, answer) = oneshot::channel();
        self.calls.try_send(call(sender)).map_err(|_| Turned::Busy)?;
        Ok(answer)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
