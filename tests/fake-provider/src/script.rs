//! Machines with a scripted agent on them: it speaks the agent's protocol, keeps its lease on the
//! cloud's clock, and what its command does is written down in advance. Nothing runs on this host.
//! One that is told to serve a model says at once that it does, and goes on until it is stopped.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State as Of;
use axum::http::StatusCode;
use axum::routing::{get, post};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::keys::{NoisePublic, NoiseSecret};
use petaflop_agent_api::lease::{Nonce, Tenure};
use petaflop_agent_api::message::{
    Answer, Ask, Exit, Hello, LONGEST_WAIT, Refusal, Report, Request, Response, State, VERSION,
    Welcome, Why, from_bytes, to_bytes,
};
use petaflop_agent_api::session::{Enrolment, Incoming};
use petaflop_agent_api::task::Task;
use petaflop_agent_api::token::EnrolmentToken;
use petaflop_providers::machine::env;
use petaflop_providers::provider::parse_identity;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::agent::{AgentEnd, AgentRunner, Boot};

/// An operator must let the agent in within this time.
const ENROL_WITHIN: Duration = Duration::from_secs(600);

/// Port on which a server is said to answer. Nobody does.
const SERVED: u16 = 8000;

/// A command saves for so long once its machine is to be taken away.
const SAVES: Duration = Duration::from_secs(2);

/// A machine that was asked to end is kept this long: longer than the real agent keeps it, so that an
/// operator which relies on that is found out.
const LINGER: Duration = Duration::from_secs(60);

/// What the command on a machine does, by the cloud's clock. A server knows no end.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// How long it takes.
    pub lasts: Duration,
    /// The key that it reports.
    pub key: String,
    /// How it ends: the artifact's hash, or what went wrong.
    pub end: Result<String, String>,
}

/// A scripted agent on each machine. As the real one it gives its machine back after it was asked
/// to end, and when its lease runs out.
pub fn script(script: Script) -> AgentRunner {
    Arc::new(move |boot| Box::pin(run(boot, script.clone())))
}

struct Agent {
    identity: String,
    token: EnrolmentToken,
    secret: NoiseSecret,
    operator: NoisePublic,
    start: Nonce,
    clock: Clock,
    inner: Mutex<Inner>,
    /// Sequence of the report; waits hang on it.
    sequence: watch::Sender<u64>,
    enrolled: watch::Sender<bool>,
    deadline: watch::Sender<Duration>,
    stop: watch::Sender<Option<Why>>,
}

struct Inner {
    enrolment: Option<Enrolment>,
    tenure: Tenure,
    last_request: u64,
    state: State,
    progress: BTreeMap<String, Value>,
    /// The model that it was told to serve.
    serves: Option<String>,
}

async fn run(boot: Boot, script: Script) -> AgentEnd {
    let Some(agent) = Agent::of(&boot).map(Arc::new) else {
        return AgentEnd::Exited { code: 78 };
    };
    let Ok(listener) = tokio::net::TcpListener::bind("127.0.0.1:0").await else {
        return AgentEnd::Exited { code: 70 };
    };
    if let Ok(address) = listener.local_addr() {
        boot.reachable_at(address);
    }
    let routes = Router::new()
        .route("/v1/hello", get(hello).post(welcome))
        .route("/v1/rpc", post(rpc))
        .with_state(agent.clone());
    let mut notice = boot.notice.clone();
    let told = async {
        let _ = notice.wait_for(Option::is_some).await;
        agent.stop.send_if_modified(|stop| stop.replace(Why::Notice).is_none());
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = axum::serve(listener, routes).into_future() => AgentEnd::Exited { code: 70 },
        () = told => AgentEnd::Exited { code: 70 },
        () = agent.live(&script) => AgentEnd::MachineEnded { code: 0 },
        () = agent.orphaned() => AgentEnd::MachineEnded { code: 75 },
    }
}

impl Agent {
    fn of(boot: &Boot) -> Option<Self> {
        let text = |name: &str| boot.env.get(name).map(String::as_str);
        let secret = NoiseSecret::generate();
        let claim = parse_identity(&boot.identity)?.claim_uid;
        let deadline = boot.clock.boottime() + ENROL_WITHIN;
        let inner = Inner {
            enrolment: None,
            tenure: Tenure::new(claim, secret.public(), deadline),
            last_request: 0,
            state: State::Preparing,
            progress: BTreeMap::new(),
            serves: None,
        };
        Some(Self {
            identity: boot.identity.clone(),
            token: text(env::TOKEN)?.parse().ok()?,
            operator: text(env::OPERATOR_KEY)?.parse().ok()?,
            secret,
            start: Nonce::generate(),
            clock: boot.clock.clone(),
            inner: Mutex::new(inner),
            sequence: watch::Sender::new(1),
            enrolled: watch::Sender::new(false),
            deadline: watch::Sender::new(deadline),
            stop: watch::Sender::new(None),
        })
    }

    /// From enrolment until it is asked to end, and the command has.
    async fn live(&self, script: &Script) {
        let _ = self.enrolled.subscribe().wait_for(|enrolled| *enrolled).await;
        let started_at = self.clock.now();
        let serves = self.inner().serves.clone();
        let started = match &serves {
            Some(model) => json!({ "event": "serving", "port": SERVED, "model": model }),
            None => json!({
                "event": "started", "key": script.key, "steps": 100, "from_step": 0,
                "tokens_per_step": 1, "backend": "script", "planned_bytes": 1, "arena_bytes": 1,
            }),
        };
        self.say(State::Running, &started);
        let mut stops = self.stop.subscribe();
        let why = tokio::select! {
            () = self.clock.sleep(script.lasts), if serves.is_none() => None,
            stop = stops.wait_for(Option::is_some) => stop.ok().and_then(|why| *why),
        };
        if why == Some(Why::Notice) {
            self.change(State::Draining);
            self.clock.sleep(SAVES).await;
        }
        let (why, code, last) = match (why, &script.end) {
            (Some(why), _) => (why, 0, json!({ "event": "stopped", "step": 50 })),
            (None, Ok(artifact)) => {
                let last = json!({
                    "event": "finished", "key": script.key, "artifact": artifact,
                    "cached": false, "summary": null,
                });
                (Why::Finished, 0, last)
            }
            (None, Err(message)) => {
                let last = json!({ "event": "failed", "message": message, "retry": true });
                (Why::Finished, 1, last)
            }
        };
        let exit = Exit {
            why,
            code: Some(code),
            signal: None,
            message: String::new(),
            started_at: Some(started_at),
            ended_at: self.clock.now(),
            report: Some(last.clone()),
        };
        self.say(State::Exited(exit), &last);
        let _ = self.stop.subscribe().wait_for(Option::is_some).await;
        self.clock.sleep(LINGER).await;
    }

    /// Returns when the lease has run out.
    async fn orphaned(&self) {
        let mut deadlines = self.deadline.subscribe();
        loop {
            let deadline = *deadlines.borrow_and_update();
            tokio::select! {
                () = self.clock.sleep_until(deadline) => if *deadlines.borrow() <= deadline { return },
                _ = deadlines.changed() => {}
            }
        }
    }

    fn say(&self, state: State, line: &Value) {
        let event = line["event"].as_str().unwrap_or_default().to_owned();
        self.inner().progress.insert(event, line.clone());
        self.change(state);
    }

    fn change(&self, state: State) {
        self.inner().state = state;
        self.sequence.send_modify(|sequence| *sequence += 1);
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
                let mut inner = self.inner();
                let taken = inner.tenure.accept(&lease);
                let next_nonce = inner.tenure.issue(self.clock.boottime());
                match taken {
                    Ok(()) => {
                        self.deadline.send_replace(inner.tenure.deadline());
                        Answer::Renewed { next_nonce }
                    }
                    Err(why) => {
                        let sequence = inner.tenure.sequence();
                        Answer::Refused(Refusal::Lease { why, next_nonce, sequence })
                    }
                }
            }
            Ask::Watch { after, wait_seconds } => {
                let wait = Duration::from_secs(wait_seconds).min(LONGEST_WAIT);
                let mut sequence = self.sequence.subscribe();
                let _ = self.clock.timeout(wait, sequence.wait_for(|now| *now > after)).await;
                self.report()
            }
            Ask::Drain { .. } => {
                self.stop.send_if_modified(|stop| stop.replace(Why::Drained).is_none());
                self.report()
            }
            Ask::Terminate => {
                self.stop.send_if_modified(|stop| stop.replace(Why::Terminated).is_none());
                self.report()
            }
            // It opens no store.
            Ask::Open { .. } => self.report(),
            Ask::Logs { .. } | Ask::Run { .. } => Answer::Refused(Refusal::Busy),
        }
    }

    fn report(&self) -> Answer {
        let now = self.clock.boottime();
        let mut inner = self.inner();
        Answer::Report(Report {
            sequence: *self.sequence.borrow(),
            state: inner.state.clone(),
            progress: inner.progress.clone(),
            log_bytes: 0,
            lease_nonce: inner.tenure.issue(now),
            lease_sequence: inner.tenure.sequence(),
            lease_seconds_left: inner.tenure.deadline().saturating_sub(now).as_secs(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Said = Result<Vec<u8>, StatusCode>;

async fn hello(Of(agent): Of<Arc<Agent>>) -> Said {
    if *agent.enrolled.borrow() {
        return Err(StatusCode::CONFLICT);
    }
    let mut inner = agent.inner();
    if let Some(enrolment) = &inner.enrolment {
        return Ok(enrolment.message().to_vec());
    }
    let hello = Hello {
        version: VERSION,
        identity: agent.identity.clone(),
        token: agent.token.clone(),
        facts: Value::Null,
        boot_id: String::new(),
        start: agent.start,
        lease_nonce: inner.tenure.issue(agent.clock.boottime()),
    };
    let enrolment = Enrolment::begin(&agent.secret, &agent.operator, &to_bytes(&hello))
        .map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    let message = enrolment.message().to_vec();
    inner.enrolment = Some(enrolment);
    Ok(message)
}

async fn welcome(Of(agent): Of<Arc<Agent>>, body: Bytes) -> Said {
    if *agent.enrolled.borrow() {
        return Err(StatusCode::CONFLICT);
    }
    let mut inner = agent.inner();
    let enrolment = inner.enrolment.as_mut().ok_or(StatusCode::CONFLICT)?;
    let welcome = enrolment.finish(&body).map_err(|_| StatusCode::FORBIDDEN)?;
    let welcome: Welcome = from_bytes(&welcome).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    inner.tenure.trust(welcome.lease_keys);
    inner.tenure.accept(&welcome.lease).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    inner.serves = welcome.task.as_ref().and_then(served);
    agent.deadline.send_replace(inner.tenure.deadline());
    drop(inner);
    agent.enrolled.send_replace(true);
    Ok(Vec::new())
}

/// The artifact that a task serves, if it does.
fn served(task: &Task) -> Option<String> {
    let mut words = task.argv.iter().skip_while(|word| *word != "serve");
    words.find(|word| *word == "--artifact")?;
    words.next().cloned()
}

async fn rpc(Of(agent): Of<Arc<Agent>>, body: Bytes) -> Said {
    if !*agent.enrolled.borrow() {
        return Err(StatusCode::CONFLICT);
    }
    let incoming =
        Incoming::read(&agent.secret, &agent.operator, &body).map_err(|_| StatusCode::FORBIDDEN)?;
    let request: Request =
        from_bytes(incoming.request()).map_err(|_| StatusCode::UNPROCESSABLE_ENTITY)?;
    let answer = agent.answer(request).await;
    let response = to_bytes(&Response { version: VERSION, answer });
    incoming.respond(&response).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
