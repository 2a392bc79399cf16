//! The agent's half of the protocol, without sockets: bodies in, bodies out.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::keys::{NoisePublic, NoiseSecret};
use petaflop_agent_api::lease::{LeaseError, Nonce, Tenure};
use petaflop_agent_api::message::{
    self, Answer, Ask, Hello, LONGEST_WAIT, MessageError, Refusal, Report, Request, Response,
    State, VERSION, Welcome, Why,
};
use petaflop_agent_api::relay::{self, Sealing};
use petaflop_agent_api::session::{Enrolment, Incoming, SessionError};
use petaflop_agent_api::task::{Pass, Secret, Task};
use petaflop_agent_api::token::EnrolmentToken;
use tokio::sync::{oneshot, watch};

use crate::config::{Config, claim_uid};
use crate::output::Output;

/// A hello is made anew after this long: the lease that answers it runs from when it was made.
const HELLO_FRESH: Duration = Duration::from_secs(300);

/// The event that says that a server takes requests, and where.
pub(crate) const SERVING: &str = "serving";

/// Why a body was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Rejected {
    /// There is an operator already.
    #[error("this agent is enrolled already")]
    Enrolled,
    /// There is none yet.
    #[error("this agent is not enrolled yet")]
    NotEnrolled,
    /// It was none of our operator's.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// It cannot be read.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Its first lease does not count.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// Its task cannot be run.
    #[error("task: {0}")]
    BadTask(String),
    /// A gateway's stream, while nobody takes it.
    #[error("nothing is served here now")]
    NotServing,
    /// A gateway's stream that is one too many.
    #[error("there are as many streams as there may be")]
    Full,
}

/// A request to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stop {
    pub(crate) why: Why,
    /// When it is forced (time since boot).
    pub(crate) force_at: Duration,
}

/// One start of an agent, as its operator sees it.
#[derive(Debug)]
pub(crate) struct Session {
    identity: String,
    secret: NoiseSecret,
    operator: NoisePublic,
    token: EnrolmentToken,
    facts: serde_json::Value,
    boot_id: String,
    start: Nonce,
    clock: Clock,
    output: Output,
    inner: Mutex<Inner>,
    /// Sequence of the report; waits hang on it.
    sequence: watch::Sender<u64>,
    /// When the lease runs out (time since boot).
    deadline: watch::Sender<Duration>,
    stop: watch::Sender<Option<Stop>>,
    /// What opens the store, the newest of them.
    pass: watch::Sender<Option<Pass>>,
}

#[derive(Debug)]
struct Inner {
    enrolment: Option<(Enrolment, Duration)>,
    enrolled: bool,
    tenure: Tenure,
    /// Highest sequence of a request.
    last_request: u64,
    state: State,
    progress: BTreeMap<String, serde_json::Value>,
    /// Taken with the task.
    task: Option<oneshot::Sender<Task>>,
    grace: Duration,
    /// Opens streams to what the task serves.
    relay: Option<Secret>,
    /// The operator was told how the task ended.
    exit_told: bool,
}

impl Session {
    /// Also gives the place where the task will be.
    pub(crate) fn new(config: &Config, output: Output) -> (Self, oneshot::Receiver<Task>) {
        let secret = NoiseSecret::generate();
        let (task, taken) = oneshot::channel();
        let deadline = config.clock.boottime() + config.enrol_within;
        let claim = claim_uid(&config.identity).unwrap_or_default();
        let inner = Inner {
            enrolment: None,
            enrolled: false,
            tenure: Tenure::new(claim, secret.public(), deadline),
            last_request: 0,
            state: State::Preparing,
            progress: BTreeMap::new(),
            task: Some(task),
            grace: Duration::ZERO,
            relay: None,
            exit_told: false,
        };
        let session = Self {
            identity: config.identity.clone(),
            secret,
            operator: config.operator,
            token: config.token.clone(),
            facts: config.facts.clone(),
            boot_id: std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
                .map(|id| id.trim_end().to_owned())
                .unwrap_or_default(),
            start: Nonce::generate(),
            clock: config.clock.clone(),
            output,
            inner: Mutex::new(inner),
            sequence: watch::Sender::new(1),
            deadline: watch::Sender::new(deadline),
            stop: watch::Sender::new(None),
            pass: watch::Sender::new(None),
        };
        (session, taken)
    }

    /// What an operator that does not know this agent yet is told.
    pub(crate) fn hello(&self) -> Result<Vec<u8>, Rejected> {
        let now = self.clock.boottime();
        let mut inner = self.inner();
        if inner.enrolled {
            return Err(Rejected::Enrolled);
        }
        if let Some((enrolment, made)) = &inner.enrolment
            && now < *made + HELLO_FRESH
        {
            return Ok(enrolment.message().to_vec());
        }
        let hello = Hello {
            version: VERSION,
            identity: self.identity.clone(),
            token: self.token.clone(),
            facts: self.facts.clone(),
            boot_id: self.boot_id.clone(),
            start: self.start,
            lease_nonce: inner.tenure.issue(now),
        };
        let enrolment = Enrolment::begin(&self.secret, &self.operator, &message::to_bytes(&hello))?;
        let bytes = enrolment.message().to_vec();
        inner.enrolment = Some((enrolment, now));
        Ok(bytes)
    }

    /// The operator's answer to the hello.
    pub(crate) fn welcome(&self, body: &[u8]) -> Result<(), Rejected> {
        let mut inner = self.inner();
        if inner.enrolled {
            return Err(Rejected::Enrolled);
        }
        let (enrolment, _) = inner.enrolment.as_mut().ok_or(Rejected::NotEnrolled)?;
        let finished = enrolment.finish(body);
        if !matches!(finished, Err(SessionError::NotAuthentic | SessionError::Malformed)) {
            // Used up; whatever comes of it, another needs a new one.
            inner.enrolment = None;
        }
        let Welcome { version: _, lease_keys, lease, task } = message::from_bytes(&finished?)?;
        if let Some(problem) = task.as_ref().and_then(Task::problem) {
            return Err(Rejected::BadTask(problem));
        }
        inner.tenure.trust(lease_keys);
        inner.tenure.accept(&lease)?;
        inner.enrolled = true;
        self.deadline.send_replace(inner.tenure.deadline());
        if let Some(task) = task {
            self.hand_over(&mut inner, task);
        }
        Ok(())
    }

    /// A request of the enrolled operator, and the response to it.
    pub(crate) async fn call(&self, body: &[u8]) -> Result<Vec<u8>, Rejected> {
        if !self.inner().enrolled {
            return Err(Rejected::NotEnrolled);
        }
        let incoming = Incoming::read(&self.secret, &self.operator, body)?;
        let answer = match message::from_bytes::<Request>(incoming.request()) {
            Ok(request) => self.answer(request).await,
            Err(error) => Answer::Refused(Refusal::BadRequest { problem: error.to_string() }),
        };
        let told = matches!(&answer, Answer::Report(Report { state: State::Exited(_), .. }));
        let response = message::to_bytes(&Response { version: VERSION, answer });
        let body = incoming.respond(&response)?;
        if told {
            self.inner().exit_told = true;
            self.sequence.send_modify(|_| ());
        }
        Ok(body)
    }

    async fn answer(&self, request: Request) -> Answer {
        let Request { version: _, start, sequence, ask } = request;
        if start != self.start {
            return Answer::Refused(Refusal::OtherStart { start: self.start });
        }
        {
            let mut inner = self.inner();
            if sequence <= inner.last_request {
                return Answer::Refused(Refusal::OldSequence { last: inner.last_request });
            }
            inner.last_request = sequence;
        }
        match ask {
            Ask::Renew { lease } => {
                let now = self.clock.boottime();
                let mut inner = self.inner();
                let taken = inner.tenure.accept(&lease);
                let next_nonce = inner.tenure.issue(now);
                match taken {
                    Ok(()) => {
                        self.deadline.send_replace(inner.tenure.deadline());
                        Answer::Renewed { next_nonce }
                    }
                    Err(why) => Answer::Refused(Refusal::Lease {
                        why,
                        next_nonce,
                        sequence: inner.tenure.sequence(),
                    }),
                }
            }
            Ask::Watch { after, wait_seconds } => {
                let wait = Duration::from_secs(wait_seconds).min(LONGEST_WAIT);
                let mut sequence = self.sequence.subscribe();
                self.clock.timeout(wait, sequence.wait_for(|now| *now > after)).await;
                self.report()
            }
            Ask::Drain { grace_seconds } => {
                self.stop(Why::Drained, Some(Duration::from_secs(grace_seconds)));
                self.report()
            }
            Ask::Terminate => {
                self.stop(Why::Terminated, Some(Duration::ZERO));
                self.report()
            }
            Ask::Logs { offset, limit } => match self.output.read(offset, limit) {
                Ok(piece) => Answer::Logs {
                    offset: piece.offset,
                    bytes: piece.bytes,
                    total: self.output.total(),
                },
                Err(error) => Answer::Refused(Refusal::BadRequest {
                    problem: format!("the output cannot be read: {error}"),
                }),
            },
            Ask::Run { task } => {
                if let Some(problem) = task.problem() {
                    return Answer::Refused(Refusal::BadTask { problem });
                }
                if !self.hand_over(&mut self.inner(), task) {
                    return Answer::Refused(Refusal::Busy);
                }
                self.report()
            }
            Ask::Open { pass } => {
                self.pass.send_replace(Some(pass));
                self.report()
            }
        }
    }

    fn hand_over(&self, inner: &mut Inner, task: Task) -> bool {
        let Some(place) = inner.task.take() else {
            return false;
        };
        inner.grace = Duration::from_secs(task.grace_seconds);
        inner.relay.clone_from(&task.relay);
        self.pass.send_replace(task.pass.clone());
        // Nobody waits for it any more only where the agent is ending already.
        let _ = place.send(task);
        true
    }

    fn report(&self) -> Answer {
        let now = self.clock.boottime();
        let mut inner = self.inner();
        let lease_nonce = inner.tenure.issue(now);
        Answer::Report(Report {
            sequence: *self.sequence.borrow(),
            state: inner.state.clone(),
            progress: inner.progress.clone(),
            log_bytes: self.output.total(),
            lease_nonce,
            lease_sequence: inner.tenure.sequence(),
            lease_seconds_left: inner.tenure.deadline().saturating_sub(now).as_secs(),
        })
    }

    pub(crate) fn set_state(&self, state: State) {
        self.inner().state = state;
        self.sequence.send_modify(|sequence| *sequence += 1);
    }

    pub(crate) fn set_progress(
        &self,
        lines: impl IntoIterator<Item = (String, serde_json::Value)>,
    ) {
        let mut inner = self.inner();
        let mut any = false;
        for (event, line) in lines {
            any = true;
            inner.progress.insert(event, line);
        }
        drop(inner);
        if any {
            self.sequence.send_modify(|sequence| *sequence += 1);
        }
    }

    /// Whether a server takes requests, in the words of its progress file: where it does.
    pub(crate) fn set_serving(&self, line: Option<serde_json::Value>) {
        let mut inner = self.inner();
        if inner.progress.get(SERVING) == line.as_ref() {
            return;
        }
        if matches!(inner.state, State::Running | State::Ready) {
            inner.state = if line.is_some() { State::Ready } else { State::Running };
        }
        match line {
            Some(line) => inner.progress.insert(SERVING.to_owned(), line),
            None => inner.progress.remove(SERVING),
        };
        drop(inner);
        self.sequence.send_modify(|sequence| *sequence += 1);
    }

    /// Asks the task, and then the agent, to end. A later request can only hasten it.
    pub(crate) fn stop(&self, why: Why, grace: Option<Duration>) {
        let grace = grace.unwrap_or(self.inner().grace);
        let force_at = self.clock.boottime().saturating_add(grace);
        self.stop.send_modify(|stop| match stop {
            None => *stop = Some(Stop { why, force_at }),
            Some(earlier) if force_at < earlier.force_at => {
                *earlier = Stop { why, force_at };
            }
            Some(_) => {}
        });
    }

    pub(crate) fn stops(&self) -> watch::Receiver<Option<Stop>> {
        self.stop.subscribe()
    }

    /// What opens the store.
    pub(crate) fn passes(&self) -> watch::Receiver<Option<Pass>> {
        self.pass.subscribe()
    }

    /// When the lease runs out (time since boot), from now on.
    pub(crate) fn deadlines(&self) -> watch::Receiver<Duration> {
        self.deadline.subscribe()
    }

    /// Returns when the lease has run out.
    pub(crate) async fn orphaned(&self) {
        let mut deadlines = self.deadline.subscribe();
        loop {
            let deadline = *deadlines.borrow_and_update();
            tokio::select! {
                () = self.clock.sleep_until(deadline) => {
                    // A lease that came in the same moment counts.
                    if *deadlines.borrow() <= deadline {
                        return;
                    }
                }
                _ = deadlines.changed() => {}
            }
        }
    }

    /// Returns when the operator was told how the task ended.
    pub(crate) async fn exit_told(&self) {
        let mut changes = self.sequence.subscribe();
        while !self.inner().exit_told {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// The answer to a gateway's first words, and the keys of its stream. Whoever does not have the
    /// replica's key, and whoever comes before there is one, is told the same.
    pub(crate) fn let_through(&self, knock: &str) -> Result<(String, Sealing), Rejected> {
        let key = self.inner().relay.clone().ok_or(SessionError::NotAuthentic)?;
        let opened = relay::answer(&self.secret, &key, knock);
        Ok(opened.map_err(|_| SessionError::NotAuthentic)?)
    }

    /// The port on which the task says that it serves.
    pub(crate) fn served(&self) -> Option<u16> {
        self.inner().progress.get(SERVING)?.get("port")?.as_u64()?.try_into().ok()
    }

    pub(crate) fn is_enrolled(&self) -> bool {
        self.inner().enrolled
    }

    pub(crate) fn secret(&self) -> &NoiseSecret {
        &self.secret
    }

    pub(crate) fn operator(&self) -> &NoisePublic {
        &self.operator
    }

    pub(crate) fn claim_uid(&self) -> &str {
        claim_uid(&self.identity).unwrap_or_default()
    }

    pub(crate) fn start(&self) -> Nonce {
        self.start
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
