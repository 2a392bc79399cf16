//! What opens the store, on its way from the operator to the task; and who may hold up whom at the door.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use petaflop_agent_api::message::{Answer, Ask, State};
use petaflop_agent_api::task::{Pass, Secret};
use serde_json::Value;

use crate::operator::{CANARY, Operator, script, until};
use crate::program::Program;

fn pass(id: &str) -> Pass {
    Pass {
        id: id.into(),
        key: Secret::new(format!("{CANARY}-of-{id}")),
        token: Secret::new("token"),
        expires: jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1),
        told: true,
    }
}

/// As an S3 client asks: status and body.
fn ask(at: SocketAddr, path: &str, word: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(at).unwrap();
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: agent\r\nAuthorization: {word}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head[9..12].parse().unwrap(), body.to_owned())
}

#[test]
fn a_pass_is_for_the_task_alone_and_the_newest_one_counts() {
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    let mut task = script("env; sleep 600");
    task.pass = Some(pass("first"));
    operator.enrol(program.address, Some(task));
    operator.until(program.address, |state| *state == State::Running);
    let mut environment = String::new();
    until("the environment", || {
        environment = operator.output(program.address);
        environment.contains("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE=")
            && environment.contains("AWS_CONTAINER_CREDENTIALS_FULL_URI=")
    });
    let variable = |name: &str| {
        let line = environment.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.unwrap().to_owned()
    };
    let uri = variable("AWS_CONTAINER_CREDENTIALS_FULL_URI");
    let (at, path) = uri.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (at, path): (SocketAddr, _) = (at.parse().unwrap(), format!("/{path}"));
    assert!(at.ip().is_loopback());
    let file = variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
    let word = fs::read_to_string(&file).unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&file).unwrap());
    assert_eq!(mode & 0o777, 0o600, "others may read the word");

    let id = |answer: &str| serde_json::from_str::<Value>(answer).unwrap()["AccessKeyId"].clone();
    let (status, first) = ask(at, &path, &word);
    assert_eq!((status, id(&first)), (200, "first".into()), "{first}");
    assert!(first.contains(CANARY));
    for (path, word, wanted) in [(&*path, "", 401), (&path, "Bearer", 401), ("/", &word, 404)] {
        let (status, said) = ask(at, path, word);
        assert!(status == wanted && !said.contains(CANARY), "{status} {said}");
    }
    let opened = operator.ask(program.address, Ask::Open { pass: pass("second") });
    assert!(matches!(opened, Answer::Report(_)), "{opened:?}");
    assert_eq!(id(&ask(at, &path, &word).1), "second");
    // Neither is in the task's environment, nor in a file.
    assert!(!environment.contains(CANARY));
    for entry in fs::read_dir(program.work.path()).unwrap().flatten() {
        let content = fs::read(entry.path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&content).contains(CANARY), "{:?}", entry.path());
    }
}

#[test]
fn whoever_says_nothing_is_sent_away_before_whoever_began_to_speak() {
    let operator = Operator::new();
    let program = Program::start(&operator);
    // It came first, and may take its time over what it began.
    let mut slow = TcpStream::connect(program.address).unwrap();
    slow.write_all(b"GET /v1/hello HTTP/1.1\r\nHost:").unwrap();
    let silent: Vec<TcpStream> =
        (0..100).map(|_| TcpStream::connect(program.address).unwrap()).collect();
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0, "it was told something");
    }
    slow.set_nonblocking(true).unwrap();
    let waits = slow.read(&mut [0]).unwrap_err();
    assert_eq!(waits.kind(), ErrorKind::WouldBlock, "it was sent away too");
    slow.set_nonblocking(false).unwrap();
    slow.write_all(b" agent\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    slow.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}
