//! An agent inside this process, on a clock that is moved by hand, with a real command.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use petaflop_agent::{Agent, Config};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::lease::LeaseError;
use petaflop_agent_api::message::{Answer, Ask, Exit, Refusal, State, Why};
use tokio::task::JoinHandle;

use crate::accelerators::with_accelerators;
use crate::operator::{IDENTITY, Operator, script, until};

const MINUTE: Duration = Duration::from_secs(60);

struct Inside {
    clock: Clock,
    address: SocketAddr,
    run: JoinHandle<Exit>,
    operator: Operator,
}

async fn start(work: &Path) -> Inside {
    start_at(work, Path::new("/")).await
}

async fn start_at(work: &Path, root: &Path) -> Inside {
    let clock = Clock::manual("2026-01-01T00:00:00Z".parse().unwrap());
    let operator = Operator::new();
    let config = Config {
        identity: IDENTITY.into(),
        operator: operator.root.noise().public(),
        token: operator.root.token("uid-1", 1),
        listen: Some(([127, 0, 0, 1], 0).into()),
        endpoint: None,
        work: work.to_owned(),
        inputs: work.join("inputs"),
        notice: None,
        metadata: None,
        lease: Some(work.join("deadline")),
        facts: serde_json::Value::Null,
        root: root.to_owned(),
        clock: clock.clone(),
        enrol_within: MINUTE * 30,
        program: None,
        alone: false,
    };
    let agent = Agent::start(config).await.unwrap();
    let address = agent.address().unwrap();
    Inside { clock, address, run: tokio::spawn(agent.run()), operator }
}

fn runs(operator: &mut Operator, address: SocketAddr) {
    until("the task runs", || operator.output(address).contains("up"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_the_promised_accelerators_are_the_task_runs() {
    let work = tempfile::tempdir().unwrap();
    // Device files of the test's own: this machine need have none.
    std::fs::create_dir(work.path().join("dev")).unwrap();
    std::fs::write(work.path().join("dev/nvidia0"), "").unwrap();
    let Inside { address, run, mut operator, .. } = start_at(work.path(), work.path()).await;
    operator.enrol(address, Some(with_accelerators(1, script("echo up; exit 3"))));
    operator.until(address, |state| matches!(state, State::Exited(exit) if exit.code == Some(3)));
    operator.ask(address, Ask::Terminate);
    assert_eq!(run.await.unwrap().why, Why::Finished);
}

const TASK: &str = "trap 'exit 75' TERM; echo up; while :; do sleep 0.05; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_that_is_away_shorter_than_the_lease_harms_nothing() {
    let work = tempfile::tempdir().unwrap();
    let Inside { clock, address, run, mut operator } = start(work.path()).await;
    operator.enrol(address, Some(script(TASK)));
    runs(&mut operator, address);
    for _ in 0..3 {
        clock.advance(MINUTE * 29);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(operator.report(address).state, State::Running);
        assert!(matches!(operator.renew(address), Answer::Renewed { .. }));
    }
    // A wall that steps is nobody's business.
    clock.step_wall(jiff::SignedDuration::from_hours(-48));
    clock.step_wall(jiff::SignedDuration::from_hours(96));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(operator.report(address).state, State::Running);
    operator.ask(address, Ask::Terminate);
    assert_eq!(run.await.unwrap().why, Why::Terminated);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_ends_its_task_and_itself() {
    let work = tempfile::tempdir().unwrap();
    let Inside { clock, address, run, mut operator } = start(work.path()).await;
    operator.enrol(address, Some(script(TASK)));
    runs(&mut operator, address);
    clock.advance(MINUTE * 31);
    let exit = run.await.unwrap();
    assert_eq!((exit.why, exit.code), (Why::Orphaned, Some(75)));
    assert_eq!(petaflop_agent::exit::code(&exit), petaflop_agent::exit::ORPHANED);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_machine_whose_task_is_over_is_kept_no_longer_than_its_lease() {
    let work = tempfile::tempdir().unwrap();
    let Inside { clock, address, run, mut operator } = start(work.path()).await;
    operator.enrol(address, Some(script("exit 5")));
    operator.until(address, |state| matches!(state, State::Exited(_)));
    clock.advance(MINUTE * 29);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(matches!(operator.report(address).state, State::Exited(_)));
    clock.advance(MINUTE * 2);
    let exit = run.await.unwrap();
    assert_eq!((exit.why, exit.code), (Why::Finished, Some(5)), "how the task ended");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_that_will_not_end_is_killed_after_its_grace() {
    let work = tempfile::tempdir().unwrap();
    let Inside { clock, address, run, mut operator } = start(work.path()).await;
    operator.enrol(address, Some(script("trap '' TERM; echo up; while :; do sleep 0.05; done")));
    runs(&mut operator, address);
    clock.advance(MINUTE * 31);
    until("it drains", || operator.report(address).state == State::Draining);
    clock.advance(Duration::from_secs(29));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!run.is_finished());
    clock.advance(Duration::from_secs(2));
    let exit = run.await.unwrap();
    assert_eq!((exit.why, exit.signal), (Why::Orphaned, Some(9)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_nobody_enrols_gives_its_machine_back() {
    let work = tempfile::tempdir().unwrap();
    let Inside { clock, run, .. } = start(work.path()).await;
    clock.advance(MINUTE * 29);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!run.is_finished());
    clock.advance(MINUTE * 2);
    let exit = run.await.unwrap();
    assert_eq!((exit.why, exit.code), (Why::Orphaned, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_does_not_count_changes_nothing_and_the_next_one_does() {
    let work = tempfile::tempdir().unwrap();
    let Inside { clock, address, run, mut operator } = start(work.path()).await;
    operator.enrol(address, Some(script(TASK)));
    let used = operator.report(address).lease_nonce;
    let agent = operator.agent.unwrap();
    let first = operator.lease(agent, used);
    assert!(matches!(
        operator.ask(address, Ask::Renew { lease: first.clone() }),
        Answer::Renewed { .. }
    ));
    let Answer::Refused(Refusal::Lease { why, next_nonce, sequence }) =
        operator.ask(address, Ask::Renew { lease: first })
    else {
        panic!("a replayed lease was taken");
    };
    assert_eq!((why, sequence), (LeaseError::OldSequence, operator.leases));
    let next = operator.lease(agent, next_nonce);
    assert!(matches!(operator.ask(address, Ask::Renew { lease: next }), Answer::Renewed { .. }));
    // A lease answers when its nonce was issued, not when it arrives.
    let nonce = operator.report(address).lease_nonce;
    clock.advance(MINUTE * 20);
    let late = operator.lease(agent, nonce);
    assert!(matches!(operator.ask(address, Ask::Renew { lease: late }), Answer::Renewed { .. }));
    assert!(operator.report(address).lease_seconds_left <= 600);
    clock.advance(MINUTE * 11);
    assert_eq!(run.await.unwrap().why, Why::Orphaned);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hosts_timer_is_told_of_every_lease_and_of_nothing_before() {
    let work = tempfile::tempdir().unwrap();
    let Inside { clock, address, run, mut operator } = start(work.path()).await;
    let told = || std::fs::read_to_string(work.path().join("deadline")).ok();
    let tells = |what: &str, deadline: u64| {
        until(what, || told().is_some_and(|text| text == format!("{deadline}\n")));
    };
    clock.advance(MINUTE);
    assert_eq!(told(), None, "what the host armed itself holds until there is a lease");
    operator.enrol(address, Some(script(TASK)));
    let enrolled = clock.boottime().as_secs();
    tells("the first lease", enrolled + 1800);
    clock.advance(MINUTE * 10);
    assert!(matches!(operator.renew(address), Answer::Renewed { .. }));
    tells("the renewal", enrolled + 600 + 1800);
    // A lease that does not count is none.
    let agent = operator.agent.unwrap();
    let foreign = operator.lease(agent, petaflop_agent_api::lease::Nonce::generate());
    let refused = operator.ask(address, Ask::Renew { lease: foreign });
    assert!(matches!(refused, Answer::Refused(Refusal::Lease { .. })));
    assert_eq!(told(), Some(format!("{}\n", enrolled + 600 + 1800)));
    operator.ask(address, Ask::Terminate);
    assert_eq!(run.await.unwrap().why, Why::Terminated);
}
