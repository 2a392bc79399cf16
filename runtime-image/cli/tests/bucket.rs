//! A job whose machine is lost goes on from its bucket on another one, to the same artifact.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../store/tests/common/s3.rs"]
mod s3;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Command, Stdio},
};

use common::{Bench, runtime};
use petaflop_store::report::Progress;
use s3::Server;

/// With the server's address and credentials in the environment, as a machine is given them.
fn on_a_machine(mut command: Command, server: &Server, scratch: &std::path::Path) -> Command {
    fs::create_dir_all(scratch).unwrap();
    command.envs(server.credentials()).env("TMPDIR", scratch);
    command
}

#[test]
fn a_lost_machine_costs_steps_and_not_a_bit() {
    let server = Server::start();
    let mut bench = Bench::slow(30);
    let (expected, _) = bench.train(&[]).artifact();

    // Its data lies in the bucket, too.
    let data = server.root.path().join("bucket/data");
    fs::create_dir(&data).unwrap();
    for file in fs::read_dir(bench.path("data")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), data.join(file.file_name())).unwrap();
    }
    bench.job.inputs[0].uri = "s3://bucket/data".into();
    bench.job.store = "s3://bucket/store".into();
    bench.job.checkpoints = "s3://bucket/checkpoints/job".into();
    bench.job.checkpoint_interval_seconds = 0;

    let first = bench.path("first-machine");
    let mut started = bench.start_command(on_a_machine(bench.command(&[]), &server, &first));
    started.wait_for_checkpoint(6);
    started.signal("-KILL");
    let killed = started.end();
    assert_eq!(killed.signal, Some(9), "{killed:?}");
    fs::remove_dir_all(&first).unwrap();

    let second = bench.path("second-machine");
    let started = bench.start_command(on_a_machine(bench.command(&[]), &server, &second));
    let ended = started.end();
    assert!(ended.began_at() >= 6, "{ended:?}");
    assert_eq!(ended.artifact(), (expected.clone(), false));
    let text = format!("{ended:?}");
    assert!(!text.contains("secret-canary"), "{text}");
    // Nothing of it is left on the machine.
    assert_eq!(fs::read_dir(&second).unwrap().count(), 0);

    // A third machine need not do anything.
    let again = bench.start_command(on_a_machine(bench.command(&[]), &server, &second)).end();
    assert_eq!(again.artifact(), (expected.clone(), true));

    // And a fourth serves it.
    let serve = ["serve", "--artifact", &expected, "--store", "s3://bucket/store", "--port", "0"];
    let mut serving =
        on_a_machine(runtime(&serve), &server, &second).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(serving.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = line["listening"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let mut stream = TcpStream::connect(&address).unwrap();
        let body = r#"{"model":"default","prompt":"1 plus 1 is","max_tokens":3}"#;
        write!(
            stream,
            "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        if answer.starts_with("HTTP/1.1 200") {
            break;
        }
        // The model may still be loading.
        assert!(std::time::Instant::now() < deadline, "{answer}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    serving.kill().unwrap();
    serving.wait().unwrap();
}

#[test]
fn checkpoints_in_a_bucket_that_is_not_there_are_an_error_that_another_try_may_mend() {
    let server = Server::start();
    let mut bench = Bench::new(3);
    bench.job.checkpoints = "s3://absent/checkpoints".into();
    let scratch = bench.path("machine");
    let ended = bench.start_command(on_a_machine(bench.command(&[]), &server, &scratch)).end();
    let message = ended.failure(1);
    assert!(message.contains("checkpoints: s3://absent/checkpoints"), "{message}");
    assert!(!ended.progress.iter().any(|line| matches!(line, Progress::Started { .. })));
}
