//! A machine that lacks the accelerators it was bought for.

use std::path::Path;
use std::time::Duration;

use petaflop_agent_api::message::{Ask, Exit, State, Why};
use petaflop_agent_api::task::{Accelerators, LogSink, Task};
use petaflop_store::{logs::LogReader, place};

use crate::operator::{Operator, script};
use crate::program::{BUILT, Program};

/// A task on a machine that was bought for so many of NVIDIA's.
pub fn with_accelerators(count: u32, task: Task) -> Task {
    let (vendor, model) = (Some("nvidia".to_owned()), "H100-SXM".to_owned());
    let accelerators = Some(Accelerators { vendor, model, count, memory: None });
    Task { accelerators, ..task }
}

#[test]
fn a_machine_without_its_accelerators_starts_nothing_and_its_exit_report_says_so() {
    let mut operator = Operator::new();
    let store = tempfile::tempdir().unwrap();
    let mut program = Program::start_with(Path::new(BUILT), &operator, |_| ());
    // No machine has so many, so that this holds where the tests have one, too.
    let mut task = with_accelerators(4096, script("touch started"));
    let uri = format!("file://{}", store.path().display());
    let prefix = petaflop_store::logs::prefix("default", "a", "trj-a");
    let credentials = Default::default();
    task.log_sink = Some(LogSink { uri: uri.clone(), prefix: prefix.clone(), credentials });
    operator.enrol(program.address, Some(task));
    let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
    let State::Exited(exit) = report.state else { unreachable!() };
    assert_eq!((exit.why, exit.code, exit.started_at), (Why::NoAccelerator, None, None));
    assert!(exit.message.contains("4096 × H100-SXM"), "{exit:?}");
    assert!(!program.work.path().join("started").exists());
    // It is there until it is asked to go, and what it said outlives it.
    assert_eq!(program.child.try_wait().unwrap(), None);
    operator.ask(program.address, Ask::Terminate);
    assert_eq!(program.wait(Duration::from_secs(20)).code(), Some(98));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let kept = runtime.block_on(async {
        LogReader::new(place::objects(&uri, None).unwrap(), &prefix).exit().await.unwrap()
    });
    assert_eq!(serde_json::from_slice::<Exit>(&kept.unwrap()).unwrap(), exit);
}
