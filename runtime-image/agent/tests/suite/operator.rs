//! An operator as the tests need it: enrols an agent, asks it things.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use petaflop_agent_api::enrol::{Enrolment, Expected, judge};
use petaflop_agent_api::keys::{NoisePublic, OperatorRoot};
use petaflop_agent_api::lease::{Lease, Nonce, SignedLease};
use petaflop_agent_api::message::{
    Answer, Ask, Hello, Report, Request, Response, State, VERSION, Welcome, from_bytes, to_bytes,
};
use petaflop_agent_api::session::Call;
use petaflop_agent_api::task::Task;

pub const IDENTITY: &str = "installation/default/trj-a-12345678-1-0/uid-1/1";
pub const CANARY: &str = "canary-7c1d";

/// A shell script as a task.
pub fn script(script: &str) -> Task {
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
        grace_seconds: 30,
        server: None,
        relay: None,
        pass: None,
        accelerators: None,
    }
}

/// One request over a connection of its own.
pub fn http(to: SocketAddr, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(to).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: agent\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that has seen enough may close before it has read everything.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").expect("an answer");
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer[end + 4..].to_vec())
}

pub struct Operator {
    pub root: OperatorRoot,
    pub agent: Option<NoisePublic>,
    pub start: Option<Nonce>,
    pub sequence: u64,
    pub leases: u64,
    pub duration: u64,
}

impl Operator {
    pub fn new() -> Self {
        let root = OperatorRoot::generate();
        Self { root, agent: None, start: None, sequence: 0, leases: 0, duration: 1800 }
    }

    pub fn lease(&mut self, agent: NoisePublic, nonce: Nonce) -> SignedLease {
        self.leases += 1;
        let lease = Lease {
            claim_uid: "uid-1".into(),
            agent,
            nonce,
            sequence: self.leases,
            duration_seconds: self.duration,
        };
        lease.sign(&self.root.lease())
    }

    /// The answer to a hello, sealed.
    pub fn welcome(&mut self, hello: &[u8], task: Option<Task>) -> Vec<u8> {
        let expected = Expected {
            identity: IDENTITY,
            claim_uid: "uid-1",
            attempt: 1,
            enrolment: Enrolment::Open,
        };
        let admitted = judge(&self.root, expected, hello).unwrap();
        let agent = admitted.candidate.agent();
        let Hello { start, lease_nonce, .. } = admitted.hello;
        (self.agent, self.start) = (Some(agent), Some(start));
        let welcome = Welcome {
            version: VERSION,
            lease_keys: vec![self.root.lease().public()],
            lease: self.lease(agent, lease_nonce),
            task,
        };
        admitted.candidate.welcome(&to_bytes(&welcome)).unwrap()
    }

    pub fn enrol(&mut self, address: SocketAddr, task: Option<Task>) {
        let (status, hello) = http(address, "GET", "/v1/hello", b"");
        assert_eq!(status, 200);
        let welcome = self.welcome(&hello, task);
        let (status, text) = http(address, "POST", "/v1/hello", &welcome);
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&text));
    }

    pub fn request(&mut self, ask: Ask) -> Call {
        self.sequence += 1;
        let request =
            Request { version: VERSION, start: self.start.unwrap(), sequence: self.sequence, ask };
        Call::begin(&self.root.noise(), &self.agent.unwrap(), &to_bytes(&request)).unwrap()
    }

    pub fn answer(call: Call, body: &[u8]) -> Answer {
        from_bytes::<Response>(&call.finish(body).unwrap()).unwrap().answer
    }

    pub fn ask(&mut self, address: SocketAddr, ask: Ask) -> Answer {
        let call = self.request(ask);
        let (status, body) = http(address, "POST", "/v1/rpc", call.message());
        assert_eq!(status, 200, "{}", String::from_utf8_lossy(&body));
        Self::answer(call, &body)
    }

    pub fn report(&mut self, address: SocketAddr) -> Report {
        match self.ask(address, Ask::Watch { after: 0, wait_seconds: 0 }) {
            Answer::Report(report) => report,
            other => panic!("{other:?}"),
        }
    }

    /// Asks until the state is as wanted.
    pub fn until(&mut self, address: SocketAddr, wanted: impl Fn(&State) -> bool) -> Report {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let report = self.report(address);
            if wanted(&report.state) {
                return report;
            }
            assert!(Instant::now() < deadline, "{report:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn renew(&mut self, address: SocketAddr) -> Answer {
        let nonce = self.report(address).lease_nonce;
        let lease = self.lease(self.agent.unwrap(), nonce);
        self.ask(address, Ask::Renew { lease })
    }

    pub fn output(&mut self, address: SocketAddr) -> String {
        match self.ask(address, Ask::Logs { offset: 0, limit: 1 << 20 }) {
            Answer::Logs { bytes, .. } => String::from_utf8(bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
