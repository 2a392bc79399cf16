//! One conversation with an agent: enrolled once, asked how it goes, granted its lease, told to end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::enrol::{EnrolError, Enrolment, Expected, judge};
use petaflop_agent_api::keys::NoisePublic;
use petaflop_agent_api::lease::{Lease, Nonce};
use petaflop_agent_api::message::{
    Answer, Ask, Hello, MessageError, Refusal, Report, Request, Response, State, VERSION, Welcome,
    from_bytes, to_bytes,
};
use petaflop_agent_api::session::{Call, SessionError};
use petaflop_agent_api::task::Pass;
use petaflop_arbiter::workload::WorkloadId;
use petaflop_providers::provider::identity_text;
use petaflop_store::report::Progress;
use tokio::sync::watch;

use super::link::{Link, LinkError};
use super::{Listener, Name, Session, Told};
use crate::claims::{Claims, ClaimsError, StoredClaim};
use crate::installation::Installation;
use crate::narrow::NarrowError;

/// A lease is renewed this often.
const RENEW: Duration = Duration::from_secs(60);
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
    #[error(transparent)]
    Link(#[from] LinkError),
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

/// One conversation.
pub(super) struct Talk {
    pub(super) link: Link,
    pub(super) clock: Clock,
    pub(super) installation: Arc<Installation>,
    pub(super) claims: Arc<dyn Claims>,
    pub(super) name: Name,
    pub(super) owner: WorkloadId,
    pub(super) told: Told,
    pub(super) asked: watch::Receiver<Option<Duration>>,
    pub(super) listener: Arc<dyn Listener>,
    pub(super) lease: Duration,
    pub(super) sessions: std::sync::Weak<Mutex<HashMap<Name, Session>>>,
}

/// An agent that is enrolled.
pub(super) struct Enrolled {
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
    pub(super) async fn go_on(mut self) {
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
        let longest = self.link.watch().as_secs();
        let every = self.told.rights.as_ref().map(|(narrow, _)| narrow.renew_every().as_secs());
        every.map_or(longest, |every| every.clamp(1, longest))
    }

    /// A pass for the store, where there are any, and when it is to be replaced (time since boot).
    async fn pass(&self) -> Result<Option<(Pass, Duration)>, NarrowError> {
        let Some((narrow, rights)) = &self.told.rights else { return Ok(None) };
        let due = self.clock.boottime().saturating_add(narrow.renew_every());
        Ok(Some((narrow.pass(&self.name.1, rights).await?, due)))
    }

    /// Replaces the pass in good time. While there is none to be had, the old one is still good for long.
    async fn reopen(&mut self, enrolled: &mut Enrolled) -> Result<(), TalkError> {
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
    async fn enrol(&mut self) -> Result<Enrolled, TalkError> {
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
                Err(TalkError::Link(LinkError::NotEnrolled)) => sequence = known.sequence,
                Err(error) => return Err(error),
                Ok(_) => return Err(TalkError::OtherAnswer),
            }
        }
        self.let_in(stored, pinned, sequence).await
    }

    async fn let_in(
        &mut self,
        stored: StoredClaim,
        pinned: Option<NoisePublic>,
        sequence: u64,
    ) -> Result<Enrolled, TalkError> {
        let message = self.link.hello().await?;
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
            new.endpoint = self.link.endpoint().map(str::to_owned);
            new.agent_key = Some(agent.to_string());
            self.claims.replace(&stored, new).await?.ok_or(TalkError::Changed)?;
        }
        self.link.pinned(agent);
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
        self.link.welcome(answer).await?;
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
    async fn ask(&mut self, enrolled: &mut Enrolled, ask: Ask) -> Result<Answer, TalkError> {
        enrolled.sequence += 1;
        let request =
            Request { version: VERSION, start: enrolled.start, sequence: enrolled.sequence, ask };
        let secret = self.installation.root.noise();
        let call = Call::begin(&secret, &enrolled.agent, &to_bytes(&request))?;
        let answer = self.link.request(call.message()).await?;
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
}
