//! The metadata service of EC2's instances, as the agent asks it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use petaflop_agent_api::message::{State, Why};

use crate::operator::{Operator, script, until};
use crate::program::{BUILT, Program};

/// What the service has to say now.
#[derive(Default)]
struct Says {
    rebalance: Option<&'static str>,
    action: Option<String>,
    /// Tokens that were given out; all but the latest are over.
    tokens: u32,
    /// Requests without a token that is good.
    refused: u32,
    looks: u32,
}

/// IMDSv2: a token by PUT, then everything else with it.
fn service() -> (SocketAddr, Arc<Mutex<Says>>) {
    let says = Arc::new(Mutex::new(Says::default()));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let shared = says.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"\r\n\r\n") {
                let mut one = [0];
                if stream.read(&mut one).unwrap_or(0) == 0 {
                    break;
                }
                bytes.push(one[0]);
            }
            let request = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
            let (status, body) = answer(&mut shared.lock().unwrap(), &request);
            let head = format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\n", body.len());
            let _ = write!(stream, "{head}Connection: close\r\n\r\n{body}");
        }
    });
    (address, says)
}

fn answer(says: &mut Says, request: &str) -> (u16, String) {
    if request.starts_with("put /latest/api/token ") {
        if !request.contains("x-aws-ec2-metadata-token-ttl-seconds: ") {
            return (400, String::new());
        }
        says.tokens += 1;
        return (200, format!("token-{}", says.tokens));
    }
    if !request.contains(&format!("x-aws-ec2-metadata-token: token-{}\r\n", says.tokens)) {
        says.refused += 1;
        return (401, String::new());
    }
    says.looks += 1;
    let found = if request.starts_with("get /latest/meta-data/spot/instance-action ") {
        says.action.clone()
    } else if request.starts_with("get /latest/meta-data/events/recommendations/rebalance ") {
        says.rebalance.map(str::to_owned)
    } else {
        None
    };
    found.map_or((404, "404 - Not Found".to_owned()), |text| (200, text))
}

#[test]
fn a_spot_notice_of_the_metadata_service_drains_and_a_recommendation_is_told() {
    let (address, says) = service();
    let mut operator = Operator::new();
    let mut program = Program::start_with(Path::new(BUILT), &operator, |command| {
        command.env("PETAFLOP_METADATA", format!("http://{address}/"));
    });
    let task = script("trap 'exit 75' TERM; echo up; while :; do sleep 0.05; done");
    operator.enrol(program.address, Some(task));
    until("the task runs", || operator.output(program.address).contains("up"));
    until("it is asked", || says.lock().unwrap().looks >= 2);

    says.lock().unwrap().rebalance = Some(r#"{"noticeTime":"2026-11-20T10:00:00Z"}"#);
    until("it is told", || operator.report(program.address).progress.contains_key("rebalance"));
    let report = operator.report(program.address);
    assert_eq!(report.state, State::Running, "a recommendation alone ends nothing");
    assert_eq!(report.progress["rebalance"]["noticeTime"], "2026-11-20T10:00:00Z");

    // Its token is over, and is asked for anew.
    says.lock().unwrap().tokens += 1;
    until("it is refused", || says.lock().unwrap().refused >= 1);
    let time = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(100);
    says.lock().unwrap().action = Some(format!(r#"{{"action":"terminate","time":"{time}"}}"#));
    let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
    let State::Exited(exit) = report.state else { unreachable!() };
    assert_eq!((exit.why, exit.code), (Why::Notice, Some(75)));
    assert_eq!(program.wait(Duration::from_secs(20)).code(), Some(75));
}
