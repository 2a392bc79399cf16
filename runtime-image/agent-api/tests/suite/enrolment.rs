//! Who is let in: the one agent that our purchase started, once.

use petaflop_agent_api::enrol::{EnrolError, Enrolment as Progress, Expected, judge};
use petaflop_agent_api::keys::{NoiseSecret, OperatorRoot};
use petaflop_agent_api::lease::{Lease, Nonce};
use petaflop_agent_api::message::{Hello, MessageError, VERSION, Welcome, from_bytes, to_bytes};
use petaflop_agent_api::session::{Enrolment, SessionError};
use petaflop_agent_api::task::{LogSink, Secret, Task, TaskFile};
use petaflop_agent_api::token::EnrolmentToken;

const IDENTITY: &str = "installation/default/trj-a-12345678-1-0/uid-1/2";
const CANARY: &str = "canary-0f6e";

fn expected(enrolment: Progress) -> Expected<'static> {
    Expected { identity: IDENTITY, claim_uid: "uid-1", attempt: 2, enrolment }
}

fn hello(token: EnrolmentToken) -> Hello {
    Hello {
        version: VERSION,
        identity: IDENTITY.into(),
        token,
        facts: serde_json::Value::Null,
        boot_id: "boot".into(),
        start: Nonce::generate(),
        lease_nonce: Nonce::generate(),
    }
}

fn begin(agent: &NoiseSecret, root: &OperatorRoot, hello: &Hello) -> Enrolment {
    Enrolment::begin(agent, &root.noise().public(), &to_bytes(hello)).unwrap()
}

fn task() -> Task {
    Task {
        argv: vec!["/bin/true".into()],
        env: [("A".to_owned(), "b".to_owned())].into(),
        secrets: [("KEY".to_owned(), Secret::new(CANARY))].into(),
        files: vec![TaskFile { path: "job.json".into(), bytes: CANARY.into() }],
        folders: vec![],
        inputs: vec![],
        delivery: None,
        dir: None,
        progress: "progress.jsonl".into(),
        log_sink: Some(LogSink {
            uri: "s3://b/p".into(),
            prefix: "logs/a/b/c".into(),
            credentials: [("AWS_SECRET_ACCESS_KEY".to_owned(), Secret::new(CANARY))].into(),
        }),
        grace_seconds: 5,
        server: None,
        relay: None,
        pass: None,
        accelerators: None,
    }
}

#[test]
fn the_agent_that_was_bought_is_let_in_and_told_what_to_do() {
    let root = OperatorRoot::generate();
    let agent = NoiseSecret::generate();
    let hello = hello(root.token("uid-1", 2));
    let mut enrolment = begin(&agent, &root, &hello);
    let admitted = judge(&root, expected(Progress::Open), enrolment.message()).unwrap();
    assert_eq!(admitted.candidate.agent(), agent.public());
    assert_eq!(admitted.hello, hello);
    let lease = Lease {
        claim_uid: "uid-1".into(),
        agent: agent.public(),
        nonce: hello.lease_nonce,
        sequence: 1,
        duration_seconds: 1800,
    };
    let welcome = Welcome {
        version: VERSION,
        lease_keys: vec![root.lease().public()],
        lease: lease.sign(&root.lease()),
        task: Some(task()),
    };
    let answer = admitted.candidate.welcome(&to_bytes(&welcome)).unwrap();
    // A forged answer does not spoil the true one.
    assert_eq!(enrolment.finish(&[0, 48, 1]).unwrap_err(), SessionError::Malformed);
    assert_eq!(
        enrolment.finish(&[&[0, 48][..], &[7; 48]].concat()).unwrap_err(),
        SessionError::NotAuthentic
    );
    let read: Welcome = from_bytes(&enrolment.finish(&answer).unwrap()).unwrap();
    assert_eq!(read, welcome);
    assert_eq!(enrolment.finish(&answer).unwrap_err(), SessionError::Over);
}

#[test]
fn everybody_else_is_refused_by_name() {
    let root = OperatorRoot::generate();
    let agent = NoiseSecret::generate();
    let good = hello(root.token("uid-1", 2));
    let judged = |hello: &Hello, progress| {
        judge(&root, expected(progress), begin(&agent, &root, hello).message())
            .map(|_| ())
            .unwrap_err()
    };
    let other_identity = Hello { identity: IDENTITY.replace("uid-1", "uid-2"), ..good.clone() };
    assert!(matches!(judged(&other_identity, Progress::Open), EnrolError::WrongClaim));
    for token in
        [root.token("uid-2", 2), root.token("uid-1", 1), OperatorRoot::generate().token("uid-1", 2)]
    {
        assert!(matches!(
            judged(&Hello { token, ..good.clone() }, Progress::Open),
            EnrolError::WrongToken
        ));
    }
    let newer = Hello { version: VERSION + 1, ..good.clone() };
    assert!(matches!(
        judged(&newer, Progress::Open),
        EnrolError::Message(MessageError::Version { found }) if found == VERSION + 1
    ));
    let message = begin(&agent, &root, &good).message().to_vec();
    let other_operator = OperatorRoot::generate();
    let not_authentic = |result: Result<_, EnrolError>| {
        matches!(
            result.map(|_: petaflop_agent_api::enrol::Admitted| ()),
            Err(EnrolError::Session(SessionError::NotAuthentic))
        )
    };
    assert!(not_authentic(judge(&other_operator, expected(Progress::Open), &message)));
    for at in [2, 40, 90, message.len() - 1] {
        let mut altered = message.clone();
        altered[at] ^= 1;
        assert!(not_authentic(judge(&root, expected(Progress::Open), &altered)), "{at}");
    }
}

#[test]
fn a_token_is_good_once_and_a_lost_answer_can_be_asked_for_again() {
    let root = OperatorRoot::generate();
    let (agent, thief) = (NoiseSecret::generate(), NoiseSecret::generate());
    let hello = hello(root.token("uid-1", 2));
    let message = begin(&agent, &root, &hello).message().to_vec();
    let judged = |agent: &[u8], progress| judge(&root, expected(progress), agent).map(|_| ());
    let pinned = Progress::Pinned(agent.public());
    assert!(judged(&message, pinned).is_ok());
    let stolen = begin(&thief, &root, &hello).message().to_vec();
    assert!(matches!(judged(&stolen, pinned), Err(EnrolError::TokenBurned)));
    // Replayed after the agent has spoken.
    let done = Progress::Done(agent.public());
    assert!(matches!(judged(&message, done), Err(EnrolError::TokenBurned)));
}

#[test]
fn tokens_and_keys_are_the_same_for_the_same_root_and_for_nothing_else() {
    let root = OperatorRoot::from_bytes([7; 32]);
    let again = OperatorRoot::from_bytes(*root.to_bytes());
    assert_eq!(root.token("u", 1), again.token("u", 1));
    assert_eq!(root.noise().public(), again.noise().public());
    assert_eq!(root.lease().public(), again.lease().public());
    // Neither part of a pair can stand in for the other.
    let all = [
        root.token("u", 1),
        root.token("u", 2),
        root.token("v", 1),
        root.token("", 1),
        root.token("u1", 1),
    ];
    for (i, a) in all.iter().enumerate() {
        assert!(all[..i].iter().all(|b| a != b));
    }
    let text = root.token("u", 1).expose();
    assert_eq!(text.parse::<EnrolmentToken>().unwrap(), root.token("u", 1));
    assert!("short".parse::<EnrolmentToken>().is_err());
}

#[test]
fn what_is_secret_is_printed_nowhere() {
    let root = OperatorRoot::from_bytes([7; 32]);
    let token = root.token("u", 1);
    let printed = format!("{root:?} {token:?} {:?} {:?} {:?}", root.noise(), root.lease(), task());
    let hello = hello(token.clone());
    let printed = format!("{printed} {hello:?}");
    assert!(!printed.contains(&*token.expose()) && !printed.contains(CANARY), "{printed}");
    // A message that cannot be read is not repeated either.
    let cut = to_bytes(&task());
    let error = from_bytes::<Task>(&cut[..cut.len() - 1]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains(CANARY), "{error:?}");
}

#[test]
fn a_task_that_would_leave_its_folder_is_refused_by_name() {
    assert_eq!(task().problem(), None);
    type Spoil = fn(&mut Task);
    let cases: [(&str, Spoil); 8] = [
        ("argv is empty", |t| t.argv.clear()),
        ("NUL", |t| t.argv.push("a\0b".into())),
        ("leaves the work folder", |t| t.files[0].path = "../x".into()),
        ("leaves the work folder", |t| t.files[0].path = "/etc/passwd".into()),
        ("leaves the work folder", |t| t.progress = "a/../../b".into()),
        ("not a name", |t| drop(t.env.insert("A=B".into(), String::new()))),
        ("KEY holds a NUL", |t| drop(t.secrets.insert("KEY".into(), Secret::new("\0")))),
        ("prefix", |t| t.log_sink.as_mut().unwrap().prefix = "/logs".into()),
    ];
    for (problem, spoil) in cases {
        let mut task = task();
        spoil(&mut task);
        let found = task.problem().unwrap();
        assert!(found.contains(problem), "{found} / {problem}");
        assert!(!found.contains(CANARY));
    }
}
