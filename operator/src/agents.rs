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
use petaflop_agent_api::message::{Hello, from_bytes};
use petaflop_agent_api::poll::PollBody;
use petaflop_agent_api::session::Candidate;
use petaflop_agent_api::task::Task;
use petaflop_arbiter::workload::WorkloadId;
use petaflop_providers::provider::identity_text;
use petaflop_store::report::Progress;
use tokio::sync::watch;

use crate::claims::{Claims, StoredClaim};
use crate::installation::Installation;
use crate::narrow::{Narrow, Rights};
use crate::run::Run;

mod door;
mod link;
pub(crate) mod listen;
mod talk;
#[cfg(test)]
mod tests;

use door::{Answer, Door, Turned};
use link::{Caller, Link, PATIENCE};
use talk::Talk;

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

/// What an agent is told.
#[derive(Clone, Debug)]
pub struct Told {
    /// What it runs.
    pub task: Task,
    /// What its machine may touch of the store, for passes; `None` where it got the keys.
    pub rights: Option<(Narrow, Rights)>,
}

/// How an agent is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// It listens at this `host:port`.
    Dial(String),
    /// Nobody can call it: it calls us, at [`listen`].
    Called,
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
    /// Where its agent calls, if it does.
    door: Option<Arc<Door>>,
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
        // A command of the user's says nothing of itself: that it is up is all there is to know.
        let runs = session.run.started || session.run.up;
        if !runs || session.run.end.is_some() {
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
        way: Way,
        told: impl FnOnce() -> Option<Told>,
    ) -> bool {
        let mut sessions = self.lock();
        let claim_uid = stored.claim.uid.clone();
        if sessions.get(name).is_some_and(|known| {
            // One that has an address after all was bought to be dialled.
            known.claim_uid == claim_uid && (known.door.is_none() || way == Way::Called)
        }) {
            return true;
        }
        let Some(told) = told() else { return false };
        let run = match &way {
            Way::Dial(address) => Run::called_at(address.clone()),
            Way::Called => Run::default(),
        };
        let (link, door) = self.link(stored, way);
        let (drain, asked) = watch::channel(None);
        let talk = Talk {
            link,
            clock: self.clock.clone(),
            installation: self.installation.clone(),
            claims: self.claims.clone(),
            name: name.clone(),
            owner: stored.claim.spec.owner.clone(),
            told,
            asked,
            listener: self.listener.clone(),
            lease: self.lease,
            sessions: Arc::downgrade(&self.sessions),
        };
        let task = tokio::spawn(talk.go_on()).abort_handle();
        let lines = Vec::new();
        let (heard, drain_until) = (None, None);
        let session = Session { claim_uid, run, heard, lines, drain, drain_until, door, task };
        sessions.insert(name.clone(), session);
        true
    }

    fn link(&self, stored: &StoredClaim, way: Way) -> (Link, Option<Arc<Door>>) {
        match way {
            Way::Dial(endpoint) => (Link::Dial { http: self.http.clone(), endpoint }, None),
            Way::Called => {
                let identity = stored.claim.identity(&self.installation.uid);
                let pinned = stored.agent_key.as_deref().and_then(|key| key.parse().ok());
                let uid = stored.claim.uid.clone();
                let (door, visits) =
                    Door::new(identity_text(&identity), uid, identity.attempt, pinned);
                let door = Arc::new(door);
                (Link::Called(Caller::new(door.clone(), visits)), Some(door))
            }
        }
    }

    /// A hello from whoever it may be; what comes of it, where it is of an agent that is waited for.
    fn hello(&self, message: Vec<u8>) -> Option<Answer> {
        let root = &self.installation.root;
        let candidate = Candidate::read(&root.noise(), &message).ok()?;
        let hello: Hello = from_bytes(candidate.hello()).ok()?;
        let door = self.door(|_, door| door.is_of(&hello.identity))?;
        door.hello(root, message).inspect_err(turned).ok()
    }

    /// A poll from whoever it may be; what comes of it, where it is of an agent that was let in.
    fn poll(&self, body: &[u8]) -> Option<Answer> {
        let body = PollBody::parse(body).ok()?;
        let door = self.door(|claim_uid, _| claim_uid == body.claim_uid)?;
        door.poll(&self.installation.root, body).inspect_err(turned).ok()
    }

    fn door(&self, is_it: impl Fn(&str, &Door) -> bool) -> Option<Arc<Door>> {
        let sessions = self.lock();
        let mut doors = sessions.values().filter_map(|s| Some((&s.claim_uid, s.door.as_ref()?)));
        doors.find(|(claim_uid, door)| is_it(claim_uid, door)).map(|(_, door)| door.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Name, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn turned(why: &Turned) {
    tracing::debug!(%why, "a call is turned away");
}
