//! Folders that a task is to have in memory.

use std::fs;
use std::path::Path;

use petaflop_agent_api::message::{Exit, State, Why};
use petaflop_agent_api::task::{Folder, Task, TaskFile};

use crate::operator::{CANARY, Operator, script, until};
use crate::program::Program;

fn file(path: &str, bytes: &[u8]) -> TaskFile {
    TaskFile { path: path.to_owned(), bytes: bytes.to_vec() }
}

fn exit_of(operator: &mut Operator, program: &Program) -> Exit {
    let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
    let State::Exited(exit) = report.state else { unreachable!() };
    exit
}

#[test]
fn a_folder_in_memory_is_its_owners_alone_and_gone_with_the_task() {
    let machine = tempfile::tempdir().unwrap();
    let path = machine.path().join("deep/keys");
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    let mut task: Task = script(
        r#"test "$(cat "$KEYS/token")" = canary-7c1d && stat -L -c '%a %F' "$KEYS/token" && stat -f -L -c %T "$KEYS"
           readlink "$KEYS"; read -r line < go"#,
    );
    task.env = [("KEYS".to_owned(), path.display().to_string())].into();
    task.folders = vec![Folder {
        path: path.display().to_string(),
        files: vec![file("token", CANARY.as_bytes())],
    }];
    let go = program.work.path().join("go");
    assert!(std::process::Command::new("mkfifo").arg(&go).status().unwrap().success());
    operator.enrol(program.address, Some(task));
    until("it has looked", || operator.output(program.address).lines().count() == 3);
    let said = operator.output(program.address);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["400 regular file", "tmpfs"]);
    assert!(Path::new(lines[2]).is_dir());
    fs::write(&go, "on\n").unwrap();
    let exit = exit_of(&mut operator, &program);
    assert_eq!(exit.code, Some(0), "{exit:?}");
    assert!(!Path::new(lines[2]).exists() && path.symlink_metadata().is_err());

    // Nothing that is there already is written over, and what is secret is not put on a disk.
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    let mut task = script("echo began");
    let path = machine.path().display().to_string();
    task.folders = vec![Folder { path, files: vec![file("token", CANARY.as_bytes())] }];
    operator.enrol(program.address, Some(task));
    let exit = exit_of(&mut operator, &program);
    assert_eq!(exit.why, Why::NotStarted);
    assert!(exit.message.contains("name another folder"), "{exit:?}");
    assert!(!machine.path().join("token").exists());
}
