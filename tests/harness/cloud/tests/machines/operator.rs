//! An operator as these tests need it: enrols an agent, asks it things.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use petaflop_agent_api::enrol::{Enrolment, Expected, judge};
use petaflop_agent_api::keys::{NoisePublic, OperatorRoot};
use petaflop_agent_api::lease::{Lease, Nonce};
use petaflop_agent_api::message::{
    Answer, Ask, Report, Request, Response, State, VERSION, Welcome, from_bytes, to_bytes,
};
use petaflop_agent_api::session::Call;
use petaflop_agent_api::task::Task;

use crate::fixture::until;

pub(crate) struct Operator {
    pub(crate) root: OperatorRoot,
    identity: String,
    claim: String,
    enrolled: Option<(NoisePublic, Nonce)>,
    sequence: u64,
}

impl Operator {
    /// Of one claim, in its first attempt.
    pub(crate) fn new(identity: &str, claim: &str) -> Self {
        let root = OperatorRoot::generate();
        Self { root, identity: identity.into(), claim: claim.into(), enrolled: None, sequence: 0 }
    }

    pub(crate) fn token(&self) -> String {
        self.root.token(&self.claim, 1).expose().to_string()
    }

    /// Lets the agent in, as soon as it listens, with a task and a lease of so many seconds.
    pub(crate) fn enrol(&mut self, at: SocketAddr, task: Task, lease_seconds: u64) {
        let hello = until("a hello", || http(at, "GET", "/v1/hello", b""));
        let expected = Expected {
            identity: &self.identity,
            claim_uid: &self.claim,
            attempt: 1,
            enrolment: Enrolment::Open,
        };
        let admitted = judge(&self.root, expected, &hello).unwrap();
        let agent = admitted.candidate.agent();
        let lease = Lease {
            claim_uid: self.claim.clone(),
            agent,
            nonce: admitted.hello.lease_nonce,
            sequence: 1,
            duration_seconds: lease_seconds,
        };
        let welcome = Welcome {
            version: VERSION,
            lease_keys: vec![self.root.lease().public()],
            lease: lease.sign(&self.root.lease()),
            task: Some(task),
        };
        self.enrolled = Some((agent, admitted.hello.start));
        let welcome = admitted.candidate.welcome(&to_bytes(&welcome)).unwrap();
        assert!(http(at, "POST", "/v1/hello", &welcome).is_some(), "the agent takes the welcome");
    }

    /// `None` where it does not answer.
    pub(crate) fn ask(&mut self, at: SocketAddr, ask: Ask) -> Option<Answer> {
        self.sequence += 1;
        let (agent, start) = self.enrolled.unwrap();
        let request = Request { version: VERSION, start, sequence: self.sequence, ask };
        let call = Call::begin(&self.root.noise(), &agent, &to_bytes(&request)).unwrap();
        let answer = http(at, "POST", "/v1/rpc", call.message())?;
        Some(from_bytes::<Response>(&call.finish(&answer).unwrap()).unwrap().answer)
    }

    /// Asks until the task is as wanted.
    pub(crate) fn until(&mut self, at: SocketAddr, wanted: impl Fn(&State) -> bool) -> Report {
        until("the task's state", || {
            match self.ask(at, Ask::Watch { after: 0, wait_seconds: 0 })? {
                Answer::Report(report) => Some(report).filter(|report| wanted(&report.state)),
                other => panic!("{other:?}"),
            }
        })
    }

    pub(crate) fn output(&mut self, at: SocketAddr) -> String {
        match self.ask(at, Ask::Logs { offset: 0, limit: 1 << 20 }) {
            Some(Answer::Logs { bytes, .. }) => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

/// A shell script as a task.
pub(crate) fn script(script: &str) -> Task {
    Task {
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: [].into(),
        secrets: [].into(),
        files: vec![],
        folders: vec![],
        inputs: vec![],
        delivery: None,
        dir: None,
        progress: "progress.jsonl".into(),
        log_sink: None,
        grace_seconds: 5,
        server: None,
        relay: None,
        pass: None,
        accelerators: None,
    }
}

/// One request over a connection of its own; `None` without an answer, or with a bad one.
fn http(to: SocketAddr, method: &str, path: &str, body: &[u8]) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(to).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(20))).ok()?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).ok()?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")?;
    answer.starts_with(b"HTTP/1.1 200 ").then(|| answer.split_off(end + 4))
}
