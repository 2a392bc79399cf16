//! An agent that nobody can call, calls.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use petaflop_agent_api::message::{Answer, Ask, State};
use petaflop_agent_api::poll::PollBody;
use petaflop_agent_api::session::Call;

use crate::operator::{IDENTITY, Operator, script};

/// One request as the operator's endpoint sees it.
fn request(listener: &TcpListener) -> (TcpStream, String, Vec<u8>) {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).unwrap();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    (stream, first, body)
}

fn respond(mut stream: TcpStream, body: &[u8]) {
    let head =
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
}

#[test]
fn enrolment_requests_and_responses_travel_the_other_way_round() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut operator = Operator::new();
    let work = tempfile::tempdir().unwrap();
    let mut agent = Command::new(crate::program::BUILT)
        .arg("supervise")
        .env("PETAFLOP_IDENTITY", IDENTITY)
        .env("PETAFLOP_OPERATOR_KEY", operator.root.noise().public().to_string())
        .env("PETAFLOP_TOKEN", operator.root.token("uid-1", 1).expose().as_str())
        .env("PETAFLOP_ENDPOINT", format!("http://{}", listener.local_addr().unwrap()))
        .env("PETAFLOP_WORK", work.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    // A failed call is tried again.
    let (stream, _, _) = request(&listener);
    drop(stream);
    let (stream, first, hello) = request(&listener);
    assert!(first.starts_with("POST /v1/hello "), "{first}");
    respond(stream, &operator.welcome(&hello, Some(script("sleep 1; exit 5"))));

    let noise = operator.root.noise();
    let mut counter = 0;
    let mut asked: Option<Call> = None;
    let exit = loop {
        let (stream, first, body) = request(&listener);
        assert!(first.starts_with("POST /v1/rpc "), "{first}");
        let poll = PollBody::parse(&body).unwrap();
        assert_eq!(poll.claim_uid, "uid-1");
        let (poll, response) = poll.open(&noise, &operator.agent.unwrap()).unwrap();
        assert!(poll.counter > counter && Some(poll.start) == operator.start);
        counter = poll.counter;
        if let Some(call) = asked.take() {
            let Answer::Report(report) = Operator::answer(call, response) else { panic!() };
            if let State::Exited(exit) = report.state {
                respond(stream, operator.request(Ask::Terminate).message());
                break exit;
            }
        }
        let call = operator.request(Ask::Watch { after: 0, wait_seconds: 0 });
        respond(stream, call.message());
        asked = Some(call);
    };
    assert_eq!(exit.code, Some(5));
    assert_eq!(agent.wait().unwrap().code(), Some(5));
}
