//! The agents of claimed machines: met as soon as they are there, enrolled once, asked how it goes
//! ever after, and granted their leases. One task a machine; what it learns is in memory only, for
//! a new leader asks again.
//!
//! Heartbeats never touch the API server. Two things do: the key of an agent, pinned with the
//! claim **before** the agent is answered, and what the owners' controllers make of its reports.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::enrol::{EnrolError, Enrolment, Expected, judge};
use petaflop_agent_api::keys::NoisePublic;
use petaflop_agent_api::lease::{Lease, Nonce};
use petaflop_agent_api::message::{
    Answer, Ask, Hello, MessageError, Refusal, Report, Request, Response, State, VERSION, Welcome,
    from_bytes, to_bytes,
};
use petaflop_agent_api::session::{Call, SessionError};
use petaflop_agent_api::task::{Pass, Task};
use petaflop_arbiter::workload::WorkloadId;
use petaflop_providers::provider::identity_text;
use petaflop_store::report::Progress;
use tokio::sync::watch;

use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::installation::Installation;
use crate::narrow::{Narrow, NarrowError, Rights};
use crate::run::Run;

/// Namespace and name of a claim.
pub type Name = (String, String);

/// Who wants to know what agents say.
pub trait Listener: Send + Sync {
    /// Something that matters is new of the command of this claim, which is this owner's.
    fn heard(&self, claim: &Name, owner: &WorkloadId);

    /// The agent was not heard from for long: the machine may be gone.
    fn silent(&self, claim: &Name);
}

/// How long an agent may keep its machine without hearing from us.
pub const LEASE: Duration = Duration::from_mins(30);

/// A lease is renewed this often.
const RENEW: Duration = Duration::from_secs(60);
/// How long an agent waits for something new before it answers.
const WATCH_SECONDS: u64 = 30;
/// A call that has not ended after this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two tries to reach an agent.
const AGAIN: Duration = Duration::from_secs(2);
/// Between two tries to replace a pass.
const PASS_AGAIN: Duration = Duration::from_secs(15);
/// An agent that was not heard from this long makes us look whether its machine is there.
const SILENCE: Duration = Duration::from_secs(90);

/// What a run says, in its order.
const EVENTS: [&str; 9] = [
    "started",
    "serving",
    "checkpoint",
    "step",
    "validation",
    "skipped",
    "stopped",
    "failed",
    "finished",
];

/// Why an agent was not understood.
#[derive(Debug, thiserror::Error)]
enum TalkError {
    #[error("agent: {0}")]
    Http(#[from] reqwest::Error),
    #[error("agent: HTTP {0}")]
    Status(u16),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Message(#[from] MessageError),
    #[error(transparent)]
    Enrol(#[from] EnrolError),
    #[error(transparent)]
    Claims(#[from] ClaimsError),
    #[error(transparent)]
    Narrow(#[from] NarrowError),
    #[error("agent: {0}")]
    Refused(#[from] Refusal),
    #[error("agent: answers another question")]
    OtherAnswer,
    #[error("the claim was changed meanwhile")]
    Changed,
}

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Told {
    /// What it runs.
    pub task: Task,
    /// What its machine may touch of the store, for passes; `None` where it got the keys.
    pub rights: Option<(Narrow, Rights)>,
}

/// The sessions with all agents. Clones are the same.
#[derive(Clone)]
pub struct Agents {
    http: reqwest::Client,
    clock: Clock,
    installation: Arc<Installation>,
    claims: Arc<dyn Claims>,
    listener: Arc<dyn Listener>,
    lease: Duration,
    sessions: Arc<Mutex<HashMap<Name, Session>>>,
}

struct Session {
    claim_uid: String,
    run: Run,
    /// Time since boot when the agent was heard last.
    heard: Option<Duration>,
    /// The newest line of each kind, in the order in which a run says them.
    lines: Vec<Progress>,
    drain: watch::Sender<Option<Duration>>,
    /// Time since boot after which draining is given up.
    drain_until: Option<Duration>,
    task: tokio::task::AbortHandle,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agents {
    /// None yet. Their keys are pinned in these claims; each lease is so long.
    ///
    /// # Errors
    /// There is no TLS on this machine.
    pub fn new(
        clock: Clock,
        installation: Arc<Installation>,
        claims: Arc<dyn Claims>,
        listener: Arc<dyn Listener>,
        lease: Duration,
    ) -> Result<Self, reqwest::Error> {
        // Sessions are encrypted and authentic by themselves; proxies of the environment are for the
        // world outside, not for machines.
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build()?;
        Ok(Self { http, clock, installation, claims, listener, lease, sessions: Arc::default() })
    }

    /// What an agent said last of its command.
    pub fn run(&self, name: &Name) -> Option<Run> {
        self.lock().get(name).map(|session| session.run.clone())
    }

    /// Claims whose machine lacks what it was bought for.
    pub fn unfit(&self) -> Vec<Name> {
        let sessions = self.lock();
        let unfit = sessions.iter().filter(|(_, session)| session.run.lacks().is_some());
        unfit.map(|(name, _)| name.clone()).collect()
    }

    /// The newest line of each kind that its command wrote, in the order in which a run says them.
    pub fn lines(&self, name: &Name) -> Vec<Progress> {
        self.lock().get(name).map(|session| session.lines.clone()).unwrap_or_default()
    }

    /// A claim is over, or gone.
    pub fn forget(&self, name: &Name) {
        self.lock().remove(name);
    }

    /// Forgets all: another process leads.
    pub fn forget_all(&self) {
        self.lock().clear();
    }

    /// Asks for the end of a command that runs. Returns whether it still saves what it has.
    pub fn drains(&self, name: &Name, grace: Duration) -> bool {
        let now = self.clock.boottime();
        let mut sessions = self.lock();
        let Some(session) = sessions.get_mut(name) else { return false };
        if !session.run.started || session.run.end.is_some() {
            return false;
        }
        let until = *session.drain_until.get_or_insert(now.saturating_add(grace));
        session.drain.send_if_modified(|asked| asked.replace(grace).is_none());
        now < until
    }

    /// When a claim's agent was heard last, as far as this process knows. Its lease goes by no later
    /// word of ours.
    pub fn heard(&self, name: &Name) -> Option<Timestamp> {
        let heard = self.lock().get(name)?.heard?;
        let ago = self.clock.boottime().saturating_sub(heard);
        self.clock.now().checked_sub(SignedDuration::try_from(ago).ok()?).ok()
    }

    /// Begins a session with a claim's agent, unless there is one. `false` where nobody can say yet
    /// what it is to do.
    pub fn meet(
        &self,
        name: &Name,
        stored: &StoredClaim,
        endpoint: String,
        told: impl FnOnce() -> Option<Told>,
    ) -> bool {
        let mut sessions = self.lock();
        if sessions.get(name).is_some_and(|known| known.claim_uid == stored.claim.uid) {
            return true;
        }
        let Some(told) = told() else { return false };
        let (drain, asked) = watch::channel(None);
        let talk = Talk {
            http: self.http.clone(),
            clock: self.clock.clone(),
            installation: self.installation.clone(),
            claims: self.claims.clone(),
            name: name.clone(),
            owner: stored.claim.spec.owner.clone(),
            endpoint,
            told,
            asked,
            listener: self.listener.clone(),
            lease: self.lease,
            sessions: Arc::downgrade(&self.sessions),
        };
        let task = tokio::spawn(talk.go_on()).abort_handle();
        let claim_uid = stored.claim.uid.clone();
        let (run, lines) = Default::default();
        let (heard, drain_until) = (None, None);
        let session = Session { claim_uid, run, heard, lines, drain, drain_until, task };
        sessions.insert(name.clone(), session);
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One conversation.
struct Talk {
    http: reqwest::Client,
    clock: Clock,
    installation: Arc<Installation>,
    claims: Arc<dyn Claims>,
    name: Name,
    owner: WorkloadId,
    endpoint: String,
    told: Told,
    asked: watch::Receiver<Option<Duration>>,
    listener: Arc<dyn Listener>,
    lease: Duration,
    sessions: std::sync::Weak<Mutex<HashMap<Name, Session>>>,
}

/// An agent that is enrolled.
struct Enrolled {
    agent: NoisePublic,
    start: Nonce,
    claim_uid: String,
    /// Of the last request.
    sequence: u64,
    /// When its pass is to be replaced (time since boot).
    pass_due: Duration,
}

impl Talk {
    /// Until the session is dropped.
    async fn go_on(mut self) {
        let mut heard = self.clock.boottime();
        loop {
            match self.converse(&mut heard).await {
                Ok(()) => return,
                Err(error @ TalkError::Narrow(_)) => {
                    tracing::warn!(claim = %self.name.1, %error, "no pass for the store");
                }
                Err(error) => tracing::debug!(claim = %self.name.1, %error, "agent"),
            }
            if self.clock.boottime().saturating_sub(heard) > SILENCE {
                heard = self.clock.boottime();
                self.listener.silent(&self.name);
            }
            self.clock.sleep(AGAIN).await;
        }
    }

    /// Enrols, and then listens until the command has ended.
    async fn converse(&mut self, heard: &mut Duration) -> Result<(), TalkError> {
        let mut enrolled = self.enrol().await?;
        *heard = self.clock.boottime();
        let mut renewed = self.clock.boottime();
        let mut after = 0;
        let mut drained = false;
        loop {
            let asked = *self.asked.borrow_and_update();
            if let (false, Some(grace)) = (drained, asked) {
                drained = true;
                let ask = Ask::Drain { grace_seconds: grace.as_secs() };
                self.ask(&mut enrolled, ask).await?;
            }
            self.reopen(&mut enrolled).await?;
            let ask = Ask::Watch { after, wait_seconds: if after == 0 { 0 } else { self.wait() } };
            let report = {
                let mut asked = self.asked.clone();
                tokio::select! {
                    answer = self.ask(&mut enrolled, ask) => match answer? {
                        Answer::Report(report) => report,
                        Answer::Renewed { .. } | Answer::Logs { .. } | Answer::Refused(_) => {
                            return Err(TalkError::OtherAnswer);
                        }
                    },
                    // Draining does not wait for something new.
                    changed = asked.changed(), if !drained => {
                        if changed.is_err() { return Ok(()); }
                        continue;
                    }
                }
            };
            *heard = self.clock.boottime();
            after = report.sequence;
            let over = self.take(&report);
            if over {
                return Ok(());
            }
            if self.clock.boottime().saturating_sub(renewed) >= RENEW {
                let lease = self.lease(&enrolled, report.lease_nonce, report.lease_sequence + 1);
                self.ask(&mut enrolled, Ask::Renew { lease }).await?;
                renewed = self.clock.boottime();
            }
        }
    }

    /// How many seconds an agent may wait before its pass must be looked at.
    fn wait(&self) -> u64 {
        let every = self.told.rights.as_ref().map(|(narrow, _)| narrow.renew_every().as_secs());
        every.map_or(WATCH_SECONDS, |every| every.clamp(1, WATCH_SECONDS))
    }

    /// A pass for the store, where there are any, and when it is to be replaced (time since boot).
    async fn pass(&self) -> Result<Option<(Pass, Duration)>, NarrowError> {
        let Some((narrow, rights)) = &self.told.rights else { return Ok(None) };
        let due = self.clock.boottime().saturating_add(narrow.renew_every());
        Ok(Some((narrow.pass(&self.name.1, rights).await?, due)))
    }

    /// Replaces the pass in good time. While there is none to be had, the old one is still good for long.
    async fn reopen(&self, enrolled: &mut Enrolled) -> Result<(), TalkError> {
        if self.clock.boottime() < enrolled.pass_due {
            return Ok(());
        }
        match self.pass().await {
            Ok(None) => enrolled.pass_due = Duration::MAX,
            Ok(Some((pass, due))) => {
                self.ask(enrolled, Ask::Open { pass }).await?;
                enrolled.pass_due = due;
            }
            Err(error) => {
                tracing::warn!(claim = %self.name.1, %error, "the pass for the store is not replaced");
                enrolled.pass_due = self.clock.boottime().saturating_add(PASS_AGAIN);
            }
        }
        Ok(())
    }

    /// Takes a report over, and wakes the owner if it matters. Returns whether the command is over.
    fn take(&self, report: &Report) -> bool {
        let Some(sessions) = self.sessions.upgrade() else { return true };
        let mut sessions = sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(session) = sessions.get_mut(&self.name) else { return true };
        let before = session.run.clone();
        let run = &mut session.run;
        // A recipe has begun when the runtime says what it is.
        run.started |= ["started", "serving"].iter().any(|e| report.progress.contains_key(*e));
        run.up |= !matches!(report.state, State::Preparing);
        run.heard = true;
        session.heard = Some(self.clock.boottime());
        run.ready = matches!(report.state, State::Ready);
        run.taken |= matches!(report.state, State::Draining) && session.drain_until.is_none();
        let lines = EVENTS.iter().filter_map(|event| report.progress.get(*event));
        let lines = lines.filter_map(|line| serde_json::from_value::<Progress>(line.clone()).ok());
        session.lines = lines.collect();
        // It stands in a report as long as it holds.
        run.serving = None;
        session.lines.iter().for_each(|line| run.take_over(line));
        if let State::Exited(exit) = &report.state {
            run.exited(exit);
        }
        let over = run.end.is_some();
        let matters = (before.started, before.up, before.ready, &before.key, before.end.is_some())
            != (run.started, run.up, run.ready, &run.key, over)
            || (before.heard, before.taken, &before.serving)
                != (run.heard, run.taken, &run.serving);
        drop(sessions);
        if matters {
            self.listener.heard(&self.name, &self.owner);
        }
        over
    }

    /// Lets the agent in, or goes on with the one that was let in before.
    async fn enrol(&self) -> Result<Enrolled, TalkError> {
        let (namespace, name) = &self.name;
        let stored = self.claims.get(namespace, name).await?.ok_or(TalkError::Changed)?;
        let pinned = stored.agent_key.as_deref().and_then(|key| key.parse::<NoisePublic>().ok());
        let claim_uid = stored.claim.uid.clone();
        let mut sequence = self.first_sequence();
        if let Some(agent) = pinned {
            let unknown = Nonce([0; 16]);
            // What pass it has, the process knew that gave it.
            let pass_due = Duration::ZERO;
            let mut known = Enrolled { agent, start: unknown, claim_uid, sequence, pass_due };
            match self.ask(&mut known, Ask::Watch { after: 0, wait_seconds: 0 }).await {
                Err(TalkError::Refused(Refusal::OtherStart { start })) => {
                    return Ok(Enrolled { start, ..known });
                }
                // Our answer to its hello was lost: it still waits for it.
                Err(TalkError::Status(409)) => sequence = known.sequence,
                Err(error) => return Err(error),
                Ok(_) => return Err(TalkError::OtherAnswer),
            }
        }
        self.let_in(stored, pinned, sequence).await
    }

    async fn let_in(
        &self,
        stored: StoredClaim,
        pinned: Option<NoisePublic>,
        sequence: u64,
    ) -> Result<Enrolled, TalkError> {
        let url = format!("http://{}/v1/hello", self.endpoint);
        let message = self.body(self.http.get(&url)).await?;
        let identity = stored.claim.identity(&self.installation.uid);
        let expected = Expected {
            identity: &identity_text(&identity),
            claim_uid: &stored.claim.uid,
            attempt: identity.attempt,
            enrolment: pinned.map_or(Enrolment::Open, Enrolment::Pinned),
        };
        let admitted = judge(&self.installation.root, expected, &message)?;
        let agent = admitted.candidate.agent();
        let claim_uid = stored.claim.uid.clone();
        if pinned.is_none() {
            let mut new = stored.clone();
            new.endpoint = Some(self.endpoint.clone());
            new.agent_key = Some(agent.to_string());
            self.claims.replace(&stored, new).await?.ok_or(TalkError::Changed)?;
        }
        let Hello { start, lease_nonce, .. } = admitted.hello;
        let mut task = self.told.task.clone();
        let mut pass_due = Duration::MAX;
        if let Some((pass, due)) = self.pass().await? {
            (task.pass, pass_due) = (Some(pass), due);
        }
        let enrolled = Enrolled { agent, start, claim_uid, sequence, pass_due };
        let welcome = Welcome {
            version: VERSION,
            lease_keys: vec![self.installation.root.lease().public()],
            lease: self.lease(&enrolled, lease_nonce, 1),
            task: Some(task),
        };
        let answer = admitted.candidate.welcome(&to_bytes(&welcome))?;
        self.body(self.http.post(&url).body(answer)).await?;
        Ok(enrolled)
    }

    /// Above every sequence of an earlier process, as long as the wall does not go far back; where it
    /// does, the agent says which was the last.
    fn first_sequence(&self) -> u64 {
        u64::try_from(self.clock.now().as_millisecond()).unwrap_or(1)
    }

    fn lease(
        &self,
        enrolled: &Enrolled,
        nonce: Nonce,
        sequence: u64,
    ) -> petaflop_agent_api::lease::SignedLease {
        Lease {
            claim_uid: enrolled.claim_uid.clone(),
            agent: enrolled.agent,
            nonce,
            sequence,
            duration_seconds: self.lease.as_secs(),
        }
        .sign(&self.installation.root.lease())
    }

    /// One round trip.
    async fn ask(&self, enrolled: &mut Enrolled, ask: Ask) -> Result<Answer, TalkError> {
        enrolled.sequence += 1;
        let request =
            Request { version: VERSION, start: enrolled.start, sequence: enrolled.sequence, ask };
        let secret = self.installation.root.noise();
        let call = Call::begin(&secret, &enrolled.agent, &to_bytes(&request))?;
        let url = format!("http://{}/v1/rpc", self.endpoint);
        let answer = self.body(self.http.post(&url).body(call.message().to_vec())).await?;
        let response: Response = from_bytes(&call.finish(&answer)?)?;
        match response.answer {
            Answer::Refused(Refusal::OldSequence { last }) => {
                enrolled.sequence = last;
                Err(Refusal::OldSequence { last }.into())
            }
            Answer::Refused(refusal) => Err(refusal.into()),
            answer => Ok(answer),
        }
    }

    async fn body(&self, request: reqwest::RequestBuilder) -> Result<Vec<u8>, TalkError> {
        let answer = request.send().await?;
        match answer.status().as_u16() {
            200..=299 => Ok(answer.bytes().await?.to_vec()),
            status => Err(TalkError::Status(status)),
        }
    }
}
