//! However a task is ended, it is over when the agent is.

use std::fs;
use std::time::{Duration, Instant};

use petaflop_agent_api::message::{Ask, State, Why};
use petaflop_agent_api::task::{Secret, Task};
use rustix::process::Signal;

use crate::operator::{Operator, script, until};
use crate::program::Program;

const LIMIT: Duration = Duration::from_secs(20);

/// A task that says when it runs, and how it ends.
const POLITE: &str = "trap 'echo saved; exit 75' TERM; echo up; while :; do sleep 0.05; done";
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.05; done";

fn running(script_text: &str, grace_seconds: u64) -> (Operator, Program) {
    running_task(Task { grace_seconds, ..script(script_text) })
}

fn running_task(task: Task) -> (Operator, Program) {
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    operator.enrol(program.address, Some(task));
    until("the task runs", || operator.output(program.address).contains("up"));
    (operator, program)
}

fn exit(operator: &mut Operator, program: &Program) -> petaflop_agent_api::message::Exit {
    let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
    match report.state {
        State::Exited(exit) => exit,
        _ => unreachable!(),
    }
}

/// Processes whose command line holds this.
fn processes(mark: &str) -> Vec<u32> {
    let running = |pid: u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(mark) && !stat.contains(") Z ")
    };
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| running(*pid))
        .collect()
}

#[test]
fn sigterm_lets_the_task_save_and_passes_its_code_on() {
    let (mut operator, mut program) = running(POLITE, 30);
    program.signal(Signal::TERM);
    let exit = exit(&mut operator, &program);
    assert_eq!((exit.why, exit.code), (Why::Drained, Some(75)));
    assert!(operator.output(program.address).contains("saved"));
    assert_eq!(program.wait(LIMIT).code(), Some(75));
}

#[test]
fn a_task_that_ignores_sigterm_is_killed_after_its_grace() {
    let (mut operator, mut program) = running(STUBBORN, 1);
    let asked = Instant::now();
    program.signal(Signal::TERM);
    let exit = exit(&mut operator, &program);
    assert!(asked.elapsed() >= Duration::from_millis(900), "{:?}", asked.elapsed());
    assert_eq!((exit.why, exit.signal), (Why::Drained, Some(9)));
    assert_eq!(program.wait(LIMIT).code(), Some(137));
}

#[test]
fn a_later_request_can_only_hasten_the_end() {
    let (mut operator, mut program) = running(STUBBORN, 600);
    operator.ask(program.address, Ask::Drain { grace_seconds: 600 });
    assert_eq!(operator.report(program.address).state, State::Draining);
    operator.ask(program.address, Ask::Terminate);
    let exit = exit(&mut operator, &program);
    assert_eq!((exit.why, exit.signal), (Why::Terminated, Some(9)));
    assert_eq!(program.wait(LIMIT).code(), Some(137));
}

#[test]
fn the_machine_is_kept_after_the_task_until_somebody_asks_for_its_end() {
    type End = fn(&mut Operator, &Program);
    let ends: [End; 3] = [
        |operator, program| drop(operator.ask(program.address, Ask::Terminate)),
        |_, program| program.signal(Signal::TERM),
        |_, program| fs::write(program.work.path().join("notice"), "5").unwrap(),
    ];
    for end in ends {
        let (mut operator, mut program) = running("echo up; sleep 0.2; exit 5", 600);
        let told = exit(&mut operator, &program);
        assert_eq!((told.why, told.code), (Why::Finished, Some(5)));
        // Longer than it stays for its last word.
        std::thread::sleep(Duration::from_secs(5));
        assert!(program.child.try_wait().unwrap().is_none(), "it was not asked to end");
        // An operator that has forgotten everything hears the same.
        assert_eq!(exit(&mut operator, &program), told);
        end(&mut operator, &program);
        assert_eq!(program.wait(LIMIT).code(), Some(5), "the task's own code");
    }
}

#[test]
fn the_providers_notice_drains_within_what_it_leaves() {
    let (mut operator, mut program) = running(POLITE, 600);
    fs::write(program.work.path().join("notice"), "5\n").unwrap();
    let saved = exit(&mut operator, &program);
    assert_eq!((saved.why, saved.code), (Why::Notice, Some(75)));
    program.wait(LIMIT);
    let (mut operator, mut program) = running(STUBBORN, 600);
    fs::write(program.work.path().join("notice"), "1").unwrap();
    let exit = exit(&mut operator, &program);
    assert_eq!((exit.why, exit.signal), (Why::Notice, Some(9)));
    program.wait(LIMIT);
}

#[test]
fn what_serves_goes_on_through_the_providers_notice_up_to_its_own_grace() {
    const SERVER: &str = "trap 'exit 75' TERM; echo up; while :; do echo on; sleep 0.05; done";
    let serving = |grace_seconds| {
        let relay = Some(Secret::new("key".to_owned()));
        running_task(Task { relay, grace_seconds, ..script(SERVER) })
    };
    // A notice that outlasts any test: it is not asked to end until the operator asks.
    let (mut operator, mut program) = serving(2);
    fs::write(program.work.path().join("notice"), "3600").unwrap();
    operator.until(program.address, |state| matches!(state, State::Draining));
    let lines = operator.output(program.address).lines().count();
    until("it goes on", || operator.output(program.address).lines().count() > lines + 3);
    assert_eq!(operator.report(program.address).state, State::Draining);
    operator.ask(program.address, Ask::Drain { grace_seconds: 30 });
    let drained = exit(&mut operator, &program);
    assert_eq!((drained.why, drained.code), (Why::Drained, Some(75)));
    program.wait(LIMIT);
    // One that leaves no more than its grace: at once, as anything else.
    let (mut operator, mut program) = serving(600);
    fs::write(program.work.path().join("notice"), "60").unwrap();
    let noticed = exit(&mut operator, &program);
    assert_eq!((noticed.why, noticed.code), (Why::Notice, Some(75)));
    program.wait(LIMIT);
}

#[test]
fn nothing_of_the_tasks_group_outlives_it() {
    let mark = format!("mark-group-{}", std::process::id());
    let (mut operator, mut program) =
        running(&format!("sh -c 'while :; do sleep 0.05; done' {mark} & echo up; sleep 1"), 5);
    assert!(!processes(&mark).is_empty());
    let exit = exit(&mut operator, &program);
    assert_eq!((exit.why, exit.code), (Why::Finished, Some(0)));
    operator.ask(program.address, Ask::Terminate);
    program.wait(LIMIT);
    until("the helper is gone", || processes(&mark).is_empty());
}

#[test]
fn an_agent_that_is_killed_takes_the_command_with_it() {
    let mark = format!("mark-killed-{}", std::process::id());
    let (_, mut program) = running(&format!("echo up {mark}; while :; do sleep 0.05; done"), 5);
    assert!(!processes(&mark).is_empty());
    program.signal(Signal::KILL);
    program.wait(LIMIT);
    until("the command is gone", || processes(&mark).is_empty());
}

#[test]
fn processes_that_the_task_left_behind_are_reaped() {
    let (_, program) = running("(setsid sh -c 'sleep 0.3' &) ; echo up; sleep 60", 5);
    let agent = program.child.id();
    let zombies = || {
        fs::read_dir("/proc")
            .unwrap()
            .filter_map(|e| fs::read_to_string(e.ok()?.path().join("stat")).ok())
            .filter(|stat| stat.contains(&format!(") Z {agent} ")))
            .count()
    };
    std::thread::sleep(Duration::from_secs(1));
    until("no zombie is left", || zombies() == 0);
}

#[test]
fn a_flood_of_output_grows_neither_memory_nor_disk() {
    let (mut operator, program) =
        running("echo up; sleep 1; yes flood | head -c 300000000; echo; echo done; sleep 60", 5);
    let before = program.memory();
    until("the flood is over", || operator.report(program.address).log_bytes > 300_000_000);
    let after = program.memory();
    assert!(after < before + (6 << 20), "{before} {after}");
    let disk: u64 = fs::read_dir(program.work.path())
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().len())
        .sum();
    assert!(disk <= 33 << 20, "{disk}");
}

#[test]
fn an_idle_agent_costs_next_to_nothing() {
    let (mut operator, program) = running("echo up; sleep 60", 5);
    let before = program.processor();
    // As an operator does: a renewal, and one question that waits.
    operator.renew(program.address);
    std::thread::sleep(Duration::from_secs(10));
    let used = program.processor() - before;
    let memory = program.memory();
    eprintln!("idle: {memory} bytes resident, {used:?} of processor time in 10 s");
    assert!(memory <= 25 << 20, "{memory}");
    assert!(used <= Duration::from_millis(50), "{used:?}");
}
