//! Where a task's result goes, beside the installation's own store.

use std::collections::BTreeMap;
use std::fs;

use petaflop_agent_api::message::{State, Why};
use petaflop_agent_api::task::{Delivery, LogSink, Secret};

use crate::operator::{Operator, script};
use crate::program::Program;
use crate::s3;

#[test]
fn a_result_is_delivered_before_the_task_is_said_to_be_done() {
    let bucket = s3::Server::start();
    let machine = tempfile::tempdir().unwrap();
    let source = machine.path().join("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a.txt"), "one").unwrap();
    let from = machine.path().join("store").display().to_string();
    let own = petaflop_store::blocking::Store::open(&from).unwrap();
    let artifact = own.put_artifact(&source).unwrap().hash;
    let key = "7".repeat(64);
    let credentials: BTreeMap<String, Secret> = bucket
        .credentials()
        .into_iter()
        .map(|(name, value)| (name.to_owned(), Secret::new(value)))
        .collect();
    let end = |to: &str| {
        let mut operator = Operator::new();
        let program = Program::start(&operator);
        let line = format!(
            r#"{{"event":"finished","key":"{key}","artifact":"{artifact}","cached":false,"summary":{{}}}}"#
        );
        let mut task = script(&format!("echo '{line}' > progress.jsonl"));
        let prefix = "logs/a".to_owned();
        task.log_sink = Some(LogSink { uri: from.clone(), prefix, credentials: BTreeMap::new() });
        task.delivery = Some(Delivery {
            to: to.to_owned(),
            credentials: credentials.clone(),
            from: vec![machine.path().join("empty").display().to_string(), from.clone()],
        });
        operator.enrol(program.address, Some(task));
        let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
        let State::Exited(exit) = report.state else { unreachable!() };
        exit
    };
    let exit = end("s3://bucket/results");
    assert_eq!(exit.why, Why::Finished, "{exit:?}");
    assert_eq!(exit.report.unwrap()["artifact"], artifact.to_string());
    let credentials = bucket.credentials();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let there = petaflop_store::Store::open_with(
            "s3://bucket/results",
            Some(&s3::borrowed(&credentials)),
        );
        let there = there.unwrap();
        assert_eq!(there.read_file(artifact, "a.txt").await.unwrap(), b"one");
        assert_eq!(there.find_key(None, &key).await.unwrap(), Some(artifact));
    });

    let exit = end("s3://nowhere/results");
    assert_eq!((exit.why, exit.report), (Why::NotDelivered, None), "{}", exit.message);
    assert!(exit.message.contains(&artifact.to_string()), "{}", exit.message);
    assert!(exit.message.contains("s3://nowhere/results"), "{}", exit.message);
}
