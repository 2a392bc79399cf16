//! A task from enrolment to its exit report.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use petaflop_agent_api::message::{Answer, Ask, Exit, Refusal, State, Why};
use petaflop_agent_api::task::{LogSink, Secret, TaskFile};
use petaflop_store::{logs::LogReader, place};

use crate::operator::{CANARY, Operator, http, script, until};
use crate::program::{BUILT, Program, command};

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn a_task_runs_and_what_it_said_outlives_the_machine() {
    let mut operator = Operator::new();
    let store = tempfile::tempdir().unwrap();
    let mut program = Program::start_with(Path::new(BUILT), &operator, |c| {
        c.env("PETAFLOP_LOG", "debug").stderr(Stdio::piped());
    });
    let mut task = script(
        r#"cat job.json; echo "$A $(env | grep -c PETAFLOP_TOKEN)"; test "$KEY" = canary-7c1d && echo key ok
           echo '{"event":"stopped","step":7}' > progress.jsonl; sleep 2; echo said >&2; exit 9"#,
    );
    task.env = [("A".to_owned(), "value".to_owned())].into();
    task.secrets = [("KEY".to_owned(), Secret::new(CANARY))].into();
    task.files = vec![TaskFile { path: "job.json".into(), bytes: b"the job\n".to_vec() }];
    let uri = format!("file://{}", store.path().display());
    let prefix = petaflop_store::logs::prefix("default", "a", "trj-a");
    task.log_sink = Some(LogSink {
        uri: uri.clone(),
        prefix: prefix.clone(),
        credentials: [("AWS_SECRET_ACCESS_KEY".to_owned(), Secret::new(CANARY))].into(),
    });
    operator.enrol(program.address, Some(task));
    let report = operator.until(program.address, |state| *state == State::Running);
    assert!((1798..=1800).contains(&report.lease_seconds_left), "{report:?}");
    until("its progress is reported", || {
        operator.report(program.address).progress.contains_key("stopped")
    });
    // Nobody who can look at the machine's processes finds the token.
    let environment = fs::read(format!("/proc/{}/environ", program.child.id())).unwrap();
    let token = operator.root.token("uid-1", 1).expose();
    let holds = |bytes: &[u8], text: &str| bytes.windows(text.len()).any(|w| w == text.as_bytes());
    assert!(holds(&environment, "PETAFLOP_IDENTITY") && !holds(&environment, &token));
    let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
    let State::Exited(exit) = report.state.clone() else { unreachable!() };
    assert_eq!((exit.why, exit.code, exit.signal), (Why::Finished, Some(9), None));
    assert_eq!(exit.report.as_ref().unwrap()["step"], 7);
    operator.ask(program.address, Ask::Terminate);
    assert_eq!(program.wait(LIMIT).code(), Some(9));

    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (said, kept) = runtime.block_on(async {
        let mut reader = LogReader::new(place::objects(&uri, None).unwrap(), &prefix);
        let mut said = Vec::new();
        while let Some(piece) = reader.next().await.unwrap() {
            said.extend_from_slice(&piece);
        }
        (String::from_utf8(said).unwrap(), reader.exit().await.unwrap().unwrap())
    });
    assert_eq!(said, "the job\nvalue 0\nkey ok\nsaid\n");
    assert_eq!(serde_json::from_slice::<Exit>(&kept).unwrap(), exit);
    // What the task was trusted with is nowhere in what is said about it.
    let mut own = String::new();
    std::io::Read::read_to_string(&mut program.child.stderr.take().unwrap(), &mut own).unwrap();
    let all = format!("{own}{said}{report:?}{}", String::from_utf8_lossy(&kept));
    assert!(!all.contains(CANARY) && !all.contains(token.as_str()), "{all}");
}

#[test]
fn only_its_own_operator_can_enrol_it_and_only_once() {
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    let (_, hello) = http(program.address, "GET", "/v1/hello", b"");
    // It says the same as often as it is asked: an operator that lost the answer asks again.
    assert_eq!(http(program.address, "GET", "/v1/hello", b"").1, hello);
    let forged = vec![7; hello.len()];
    assert_eq!(http(program.address, "POST", "/v1/hello", &forged).0, 403);
    assert_eq!(http(program.address, "POST", "/v1/rpc", &forged).0, 409);
    operator.enrol(program.address, None);
    assert_eq!(http(program.address, "GET", "/v1/hello", b"").0, 409);
    assert_eq!(http(program.address, "POST", "/v1/hello", &forged).0, 409);
    assert_eq!(http(program.address, "POST", "/v1/rpc", &forged).0, 403);
    assert_eq!(http(program.address, "GET", "/v1/rpc", b"").0, 405);
    assert_eq!(http(program.address, "GET", "/", b"").0, 404);
    assert_eq!(http(program.address, "POST", "/v1/rpc", &vec![0; 1 << 20]).0, 413);
    // An operator of another root knows the agent's key and start, and still is nobody.
    let mut other = Operator::new();
    (other.agent, other.start) = (operator.agent, operator.start);
    let call = other.request(Ask::Terminate);
    assert_eq!(http(program.address, "POST", "/v1/rpc", call.message()).0, 403);
    assert_eq!(operator.report(program.address).state, State::Preparing);
}

#[test]
fn a_request_is_done_once() {
    let mut operator = Operator::new();
    let program = Program::start(&operator);
    operator.enrol(program.address, None);
    let call = operator.request(Ask::Run { task: script("sleep 60") });
    let message = call.message().to_vec();
    let (_, body) = http(program.address, "POST", "/v1/rpc", &message);
    assert!(matches!(Operator::answer(call, &body), Answer::Report(_)));
    // Replayed: the same bytes are read, and refused inside the session.
    assert_eq!(http(program.address, "POST", "/v1/rpc", &message).0, 200);
    let again = operator.ask(program.address, Ask::Run { task: script("true") });
    assert_eq!(again, Answer::Refused(Refusal::Busy));
    operator.sequence -= 1;
    let old = operator.ask(program.address, Ask::Terminate);
    assert_eq!(old, Answer::Refused(Refusal::OldSequence { last: 2 }));
    operator.until(program.address, |state| *state == State::Running);
    let mut bad = script("true");
    bad.argv.clear();
    let refused = operator.ask(program.address, Ask::Run { task: bad });
    assert!(matches!(refused, Answer::Refused(Refusal::BadTask { .. })), "{refused:?}");
}

#[test]
fn a_command_that_cannot_start_is_said_by_name() {
    for (argv, says) in [
        ("no-such-command-here", "not found in PATH"),
        ("./no-such-file", "no such file that can be run"),
        ("/etc/passwd", "no such file that can be run"),
    ] {
        let mut operator = Operator::new();
        let mut program = Program::start(&operator);
        let mut task = script("");
        task.argv = vec![argv.into()];
        operator.enrol(program.address, Some(task));
        let report = operator.until(program.address, |state| matches!(state, State::Exited(_)));
        let State::Exited(exit) = report.state else { unreachable!() };
        assert_eq!(exit.why, Why::NotStarted);
        assert!(exit.message.contains(argv) && exit.message.contains(says), "{}", exit.message);
        operator.ask(program.address, Ask::Terminate);
        assert_eq!(program.wait(LIMIT).code(), Some(127));
    }
}

#[test]
fn a_bootstrap_that_is_not_usable_is_said_without_its_values() {
    let operator = Operator::new();
    let work = tempfile::tempdir().unwrap();
    type Change = fn(&mut Command);
    let cases: [(&str, Change); 5] = [
        ("PETAFLOP_TOKEN is missing", |c| {
            c.env_remove("PETAFLOP_TOKEN").stdin(Stdio::null());
        }),
        ("PETAFLOP_TOKEN: expected", |c| {
            c.env("PETAFLOP_TOKEN", CANARY);
        }),
        ("PETAFLOP_OPERATOR_KEY: expected", |c| {
            c.env("PETAFLOP_OPERATOR_KEY", CANARY);
        }),
        ("PETAFLOP_IDENTITY: expected", |c| {
            c.env("PETAFLOP_IDENTITY", CANARY);
        }),
        ("PETAFLOP_PORT: expected", |c| {
            c.env("PETAFLOP_PORT", CANARY);
        }),
    ];
    for (says, change) in cases {
        let mut command = command(Path::new(BUILT), &operator, work.path(), 0);
        change(&mut command);
        let output = command.stderr(Stdio::piped()).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(says) && !text.contains(CANARY), "{text}");
        assert_eq!(output.status.code(), Some(64));
    }
}

#[test]
fn it_installs_itself_and_runs_as_nobody() {
    let open = |mode| {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(mode)).unwrap();
        folder
    };
    let folder = open(0o755);
    let status = Command::new(BUILT).arg("install").arg(folder.path()).status().unwrap();
    assert!(status.success());
    let program = folder.path().join("petaflop-agent");
    let version = Command::new(&program).arg("--version").output().unwrap();
    assert!(version.stdout.starts_with(b"petaflop-agent "), "{version:?}");
    if !rustix::process::getuid().is_root() {
        eprintln!("not run here: starting the agent as another user needs root");
        return;
    }
    let mut operator = Operator::new();
    let work = open(0o777);
    let mut running = Program::start_with(&program, &operator, |c| {
        c.uid(65534).gid(65534).env("PETAFLOP_WORK", work.path().join("made"));
    });
    operator.enrol(running.address, Some(script("id -u")));
    operator.until(running.address, |state| matches!(state, State::Exited(_)));
    operator.ask(running.address, Ask::Terminate);
    assert!(running.wait(LIMIT).success());
    let said = fs::read_to_string(work.path().join("made/output.log")).unwrap();
    assert_eq!(said, "65534\n");
}
