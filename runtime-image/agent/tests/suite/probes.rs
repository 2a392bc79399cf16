//! A command that serves and says nothing of it: the agent asks it how it is. The server is the test's own, so that
//! its answers can change.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use petaflop_agent_api::message::{Exit, State, Why};
use petaflop_agent_api::task::{Probe, Server, Task};

use crate::operator::{Operator, script, until};
use crate::program::Program;

/// Answers a GET of each path with the status that stands there, of others with 404.
struct Answers {
    port: u16,
    by_path: Arc<Mutex<BTreeMap<&'static str, u16>>>,
}

impl Answers {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let by_path: Arc<Mutex<BTreeMap<&'static str, u16>>> = Arc::default();
        let answers = by_path.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (mut stream, mut head) = (stream.unwrap(), [0; 1024]);
                let length = stream.read(&mut head).unwrap_or(0);
                let text = String::from_utf8_lossy(&head[..length]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default();
                let status = answers.lock().unwrap().get(path).copied().unwrap_or(404);
                let _ = write!(stream, "HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Self { port, by_path }
    }

    fn say(&self, path: &'static str, status: u16) {
        self.by_path.lock().unwrap().insert(path, status);
    }

    /// Asked each second.
    fn probe(&self, path: Option<&str>, failure_threshold: u32) -> Probe {
        Probe {
            port: self.port,
            path: path.map(str::to_owned),
            initial_delay_seconds: 0,
            period_seconds: 1,
            timeout_seconds: 5,
            failure_threshold,
        }
    }

    fn server(&self) -> Server {
        let readiness = self.probe(None, 1);
        Server { port: self.port, startup: None, readiness, liveness: None }
    }
}

/// A task of which the test answers.
fn serving(server: Server) -> Task {
    let mut task = script("exec sleep 600");
    task.server = Some(server);
    task
}

fn ended(operator: &mut Operator, program: &Program) -> Exit {
    let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
    assert!(!report.progress.contains_key("serving"), "{report:?}");
    let State::Exited(exit) = report.state else { unreachable!() };
    exit
}

#[test]
fn a_server_takes_requests_as_long_as_it_answers_its_readiness_probe() {
    let answers = Answers::start();
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    let mut task = serving(Server {
        startup: Some(answers.probe(Some("/started"), 600)),
        readiness: answers.probe(Some("/ready"), 2),
        ..answers.server()
    });
    // What it says of itself counts for nothing.
    task.argv[2] = r#"echo '{"event":"serving","port":1,"model":"m"}' > progress.jsonl
        echo '{"event":"skipped","message":"read"}' >> progress.jsonl; exec sleep 600"#
        .to_owned();
    answers.say("/ready", 200);
    operator.enrol(program.address, Some(task));
    until("its lines are read", || {
        operator.report(program.address).progress.contains_key("skipped")
    });
    let report = operator.report(program.address);
    assert_eq!(report.state, State::Running, "it has not started");
    assert!(!report.progress.contains_key("serving"), "{report:?}");

    answers.say("/started", 302);
    let report = operator.until(program.address, |state| *state == State::Ready);
    assert_eq!(report.progress["serving"]["port"], answers.port);

    answers.say("/ready", 503);
    let report = operator.until(program.address, |state| *state == State::Running);
    assert!(!report.progress.contains_key("serving"), "{report:?}");
    answers.say("/ready", 204);
    operator.until(program.address, |state| *state == State::Ready);
}

#[test]
fn a_server_without_a_readiness_probe_takes_requests_once_it_takes_connections() {
    let answers = Answers::start();
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    operator.enrol(program.address, Some(serving(answers.server())));
    let report = operator.until(program.address, |state| *state == State::Ready);
    assert_eq!(report.progress["serving"]["port"], answers.port);
}

#[test]
fn a_server_whose_liveness_probe_fails_too_often_is_ended_and_says_which() {
    let answers = Answers::start();
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    answers.say("/live", 200);
    let liveness = Some(answers.probe(Some("/live"), 2));
    operator.enrol(program.address, Some(serving(Server { liveness, ..answers.server() })));
    operator.until(program.address, |state| *state == State::Ready);
    answers.say("/live", 500);
    let exit = ended(&mut operator, &program);
    assert_eq!((exit.why, exit.code, exit.signal), (Why::Unhealthy, None, Some(15)));
    let said =
        format!("probes.liveness (GET :{}/live) failed 2 times in a row: status 500", answers.port);
    assert!(exit.message.starts_with(&said), "{}", exit.message);
}

#[test]
fn a_server_that_does_not_start_in_time_is_ended() {
    let answers = Answers::start();
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    let startup = Some(answers.probe(Some("/started"), 1));
    operator.enrol(program.address, Some(serving(Server { startup, ..answers.server() })));
    let exit = ended(&mut operator, &program);
    assert_eq!(exit.why, Why::Unhealthy);
    assert!(exit.message.starts_with("probes.startup "), "{}", exit.message);
}

#[test]
fn a_probe_that_cannot_be_asked_is_refused_with_its_task() {
    let answers = Answers::start();
    let refused = |readiness: Probe, says: &str| {
        let problem = serving(Server { readiness, ..answers.server() }).problem();
        assert!(problem.as_ref().is_some_and(|problem| problem.contains(says)), "{problem:?}");
    };
    assert_eq!(serving(answers.server()).problem(), None);
    refused(answers.probe(Some("ready"), 1), "is not a URL's path");
    refused(answers.probe(Some("/a\r\nHost: b"), 1), "is not a URL's path");
    refused(answers.probe(None, 0), "zero");
    refused(Probe { port: 0, ..answers.probe(None, 1) }, "zero");
}
