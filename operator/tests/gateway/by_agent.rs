//! Replicas behind real agents, as the operator enrols them: what passes between, and what does not.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use petaflop_agent::config::ENROL_WITHIN;
use petaflop_agent::{Agent, Config as AgentConfig};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::enrol::{Enrolment, Expected, judge};
use petaflop_agent_api::keys::OperatorRoot;
use petaflop_agent_api::lease::Lease;
use petaflop_agent_api::message::{VERSION, Welcome, to_bytes};
use petaflop_agent_api::task::{PROGRESS_FILE, Secret, Task};
use petaflop_operator::gateway::{ByAgent, Config, Connect, Replica, State};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use crate::support::{Backend, Service, address, ask, post, read_until, socket, streaming, until};

/// A server behind its agent.
struct Machine {
    replica: Replica,
    agent: JoinHandle<()>,
    _work: tempfile::TempDir,
}

impl Drop for Machine {
    /// As when the machine is taken away.
    fn drop(&mut self) {
        self.agent.abort();
    }
}

impl Machine {
    /// Waits until it lets gateways in.
    async fn new(backend: &Backend) -> Self {
        let root = OperatorRoot::generate();
        let identity = "installation/ns/claim/uid/1";
        let work = tempfile::tempdir().unwrap();
        let agent = Agent::start(AgentConfig {
            identity: identity.to_owned(),
            operator: root.noise().public(),
            token: root.token("uid", 1),
            listen: Some(([127, 0, 0, 1], 0).into()),
            endpoint: None,
            work: work.path().to_owned(),
            inputs: work.path().join("inputs"),
            notice: None,
            metadata: None,
            lease: None,
            facts: serde_json::Value::Null,
            root: "/".into(),
            clock: Clock::system(),
            enrol_within: ENROL_WITHIN,
            program: None,
            alone: false,
        });
        let agent = agent.await.unwrap();
        let at = agent.address().unwrap().to_string();
        let agent = tokio::spawn(async move { drop(agent.run().await) });

        let url = format!("http://{at}/v1/hello");
        // Whoever was first has decided.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let hello = http.get(&url).send().await.unwrap().bytes().await.unwrap();
        let expected =
            Expected { identity, claim_uid: "uid", attempt: 1, enrolment: Enrolment::Open };
        let admitted = judge(&root, expected, &hello).unwrap();
        let key = admitted.candidate.agent();
        let port = backend.address.rsplit_once(':').unwrap().1;
        let line = format!(r#"{{"event":"serving","port":{port},"model":"m"}}"#);
        let lease = Lease {
            claim_uid: "uid".to_owned(),
            agent: key,
            nonce: admitted.hello.lease_nonce,
            sequence: 1,
            duration_seconds: 600,
        };
        let welcome = Welcome {
            version: VERSION,
            lease_keys: vec![root.lease().public()],
            lease: lease.sign(&root.lease()),
            task: Some(Task {
                // The agent outlasts it, and the server is ours.
                argv: ["/bin/sh", "-c", &format!("echo '{line}' > {PROGRESS_FILE}")]
                    .map(str::to_owned)
                    .into(),
                env: [].into(),
                secrets: [].into(),
                files: Vec::new(),
                folders: Vec::new(),
                inputs: Vec::new(),
                delivery: None,
                dir: None,
                progress: PROGRESS_FILE.to_owned(),
                log_sink: None,
                grace_seconds: 1,
                server: None,
                relay: Some(root.replica_key("uid")),
                pass: None,
                accelerators: None,
            }),
        };
        let welcome = admitted.candidate.welcome(&to_bytes(&welcome)).unwrap();
        let answer = http.post(&url).body(welcome).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let replica = Replica {
            address: at,
            agent: Some(key),
            key: Some(root.replica_key("uid")),
            ..backend.replica(State::Ready)
        };
        while ByAgent.connect(&replica).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        Self { replica, agent, _work: work }
    }
}

async fn service(replicas: Vec<Replica>) -> Service {
    Service::start_by(Config::default(), Arc::new(ByAgent), replicas).await
}

/// Somebody on the way who keeps all that passes, and may change it.
struct Tap {
    address: String,
    kept: Arc<Mutex<Vec<u8>>>,
    /// From now on a bit of each piece of what comes back is another.
    spoils: Arc<AtomicBool>,
}

impl Tap {
    fn before(to: &str) -> Self {
        let (listener, to) = (socket(), to.to_owned());
        let tap =
            Self { address: address(&listener), kept: Arc::default(), spoils: Arc::default() };
        let (kept, spoils) = (tap.kept.clone(), tap.spoils.clone());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(&to).await.unwrap();
                let ((near, near_back), (far_back, far)) = (near.into_split(), far.into_split());
                let never = Arc::default();
                tokio::spawn(Self::pass(near, far, kept.clone(), never));
                tokio::spawn(Self::pass(far_back, near_back, kept.clone(), spoils.clone()));
            }
        });
        tap
    }

    async fn pass(
        mut from: tokio::net::tcp::OwnedReadHalf,
        mut to: tokio::net::tcp::OwnedWriteHalf,
        kept: Arc<Mutex<Vec<u8>>>,
        spoils: Arc<AtomicBool>,
    ) {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = from.read(&mut piece).await {
            let piece = &mut piece[..length];
            kept.lock().unwrap().extend_from_slice(piece);
            if spoils.load(SeqCst) {
                *piece.last_mut().unwrap() ^= 1;
            }
            if to.write_all(piece).await.is_err() {
                return;
            }
        }
    }

    fn saw(&self, text: &str) -> bool {
        self.kept.lock().unwrap().windows(text.len()).any(|bytes| bytes == text.as_bytes())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_pass_one_by_one_and_who_listens_on_the_way_reads_nothing() {
    let (backend, say, _left) = streaming("far").await;
    let machine = Machine::new(&backend).await;
    let tap = Tap::before(&machine.replica.address);
    let replica = Replica { address: tap.address.clone(), ..machine.replica.clone() };
    let key = replica.key.clone().unwrap();
    let service = service(vec![replica]).await;
    let mut client = TcpStream::connect(&service.at).await.unwrap();
    client.write_all(post("tell me the secret of the sphinx").as_bytes()).await.unwrap();
    for event in ["data: it is a riddle\n\n", "data: and man is the answer\n\n"] {
        // The next is said only when this one has arrived.
        say.send(event.to_owned()).unwrap();
        read_until(&mut client, event).await;
    }
    drop(say);
    read_until(&mut client, "0\r\n\r\n").await;
    assert_eq!(backend.asked(), 1);
    assert!(tap.saw("petaflop-relay"), "nothing went this way");
    for text in ["sphinx", "riddle", "answer", "/v1/completions", "replica-key", key.expose()] {
        assert!(!tap.saw(text), "{text:?} was read on the way");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_changed_on_the_way_or_comes_from_somebody_else_costs_no_request() {
    let (spoilt, stranger) = (
        Backend::good("spoilt", Duration::ZERO).await,
        Backend::good("stranger", Duration::ZERO).await,
    );
    let good = Backend::good("good", Duration::ZERO).await;
    let machines =
        [Machine::new(&spoilt).await, Machine::new(&stranger).await, Machine::new(&good).await];
    let [behind_tap, somebody, third] = machines.each_ref().map(|m| m.replica.clone());
    let tap = Tap::before(&behind_tap.address);
    let changed = Replica { address: tap.address.clone(), ..behind_tap };
    let service = service(vec![changed.clone()]).await;
    assert!(service.post("a prompt").await.body.starts_with("spoilt|8|"));
    tap.spoils.store(true, SeqCst);
    // One whose address is another's by now, and one whose key is not known.
    let moved =
        Replica { name: "moved".into(), address: somebody.address.clone(), ..third.clone() };
    let wrong_key =
        Replica { name: "wrong".into(), key: Some(Secret::new("another's")), ..somebody.clone() };
    let no_key = Replica { name: "none".into(), key: None, ..somebody };
    service.replicas.send_replace(vec![changed, moved, wrong_key, no_key, third]);
    for _ in 0..10 {
        let answer = service.post("a prompt").await;
        assert!(answer.code == 200 && answer.body.starts_with("good|8|"), "{answer:?}");
    }
    assert_eq!((good.asked(), stranger.asked()), (10, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_lost_costs_no_request_that_had_not_begun_to_answer() {
    let (lost, stays) = (
        Backend::good("lost", Duration::from_millis(5)).await,
        Backend::good("stays", Duration::from_millis(5)).await,
    );
    let machines = [Machine::new(&lost).await, Machine::new(&stays).await];
    let service = service(machines.each_ref().map(|m| m.replica.clone()).into()).await;
    let [first, second] = machines;
    let mut asking = JoinSet::new();
    for _ in 0..8 {
        let at = service.at.clone();
        asking.spawn(async move {
            let mut wrong = Vec::new();
            for _ in 0..50 {
                let answer = ask(&at, &post("a prompt")).await;
                if answer.code != 200 {
                    wrong.push(answer);
                }
            }
            wrong
        });
    }
    until("both are asked", || lost.asked() > 20 && stays.asked() > 20).await;
    drop(first);
    drop(lost);
    let wrong: Vec<_> = asking.join_all().await.into_iter().flatten().collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    assert_eq!(service.post("a prompt").await.body.split('|').next(), Some("stays"));
    drop(second);
}
