//! What production sends to RunPod, byte for byte, on machines that are real: the start command
//! fetches the static agent, looks at it, and runs it; the pod ends itself with its own key.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::message::{Ask, State};
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Capacity;
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::machine::{Life, Why};
use petaflop_cloud_box::machines::Machines;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{PACE, RunPod as Cloud, Setup};
use petaflop_providers::machine::{AgentSource, Bootstrap};
use petaflop_providers::provider::{InstanceState, identity_text};
use petaflop_providers::runpod::{AgentDownload, ApiKey, RunPod, RunPodConfig};
use petaflop_providers::{EnrolmentToken, InstanceId, Machine, Order, Provider, Work};

use crate::fixture::{ALPINE, DEBIAN, DISTROLESS, SOON, agent, machines, serve, until};
use crate::operator::{Operator, script};

const KIND: &str = "2 vCPU cpu5g SECURE";
const LEASE: u64 = 1800;

/// RunPod in the box on real machines, and our client.
struct Deal {
    machines: Machines,
    cloud: Cloud,
    client: RunPod,
    runtime: tokio::runtime::Runtime,
}

impl Deal {
    /// With another hash than the agent's, if given.
    fn new(sha256: Option<&str>) -> Option<Self> {
        let machines = machines()?;
        let setup = Setup {
            clock: Clock::system(),
            seed: 1,
            keys: BTreeMap::from([("key".to_owned(), Scope::All)]),
            pace: Pace { provision: Duration::ZERO, start: Duration::from_millis(100), ..PACE },
            deposit: 1_000_000_000,
            limits: Limits::new(1000, 10_000, 100_000),
            page: None,
            host: Box::new(machines.clone()),
        };
        let cloud = Cloud::start(setup).unwrap();
        let bytes = std::fs::read(agent()).unwrap();
        let digest = ring::digest::digest(&ring::digest::SHA256, &bytes);
        let own: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        let url = format!("http://{}/agent", serve(&machines, machines.operator(), bytes));
        let download = AgentDownload { url, sha256: sha256.unwrap_or(&own).to_owned() };
        let config = RunPodConfig {
            base: cloud.url(),
            vcpu_counts: vec![2],
            agent: Some(download),
            ..RunPodConfig::new("rp", ApiKey::new("key"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Some(Self { machines, cloud, client: RunPod::new(config).unwrap(), runtime })
    }

    fn buy(&self, claim: u32, image: &str, operator: &Operator) -> InstanceId {
        self.runtime.block_on(async {
            let offers = self.client.quote().await.unwrap();
            let wanted = |offer: &&_| {
                let offer: &petaflop_arbiter::offer::Offer = offer;
                offer.instance_type == KIND && offer.capacity == Capacity::OnDemand
            };
            let offer = offers.iter().find(wanted).unwrap();
            let machine = machine(image, operator);
            let order = Order { identity: &identity(claim), offer, work: Work::Machine(&machine) };
            let request = self.client.prepare(order).await.unwrap();
            self.client.launch(&request, &EnrolmentToken::new(operator.token())).await.unwrap()
        })
    }

    /// Where the client reads that the agent is reached.
    fn endpoint(&self, id: &InstanceId) -> std::net::SocketAddr {
        until("an endpoint", || {
            let pod = self.runtime.block_on(self.client.get(id)).unwrap().unwrap();
            pod.endpoint.map(|endpoint| endpoint.parse().unwrap())
        })
    }

    /// How far in its life a pod is, and why no farther.
    fn life(&self, id: &InstanceId) -> (Life, Option<Why>) {
        self.cloud.engine(|engine| {
            let machine = engine.machine(&id.0).unwrap();
            (machine.life, machine.stopped.map(|(_, why)| why))
        })
    }

    fn ends_itself(&self, id: &InstanceId) {
        let asked = Instant::now();
        while self.life(id) != (Life::Terminated, Some(Why::User)) {
            let log = self.machines.log(&id.0);
            assert!(asked.elapsed() < SOON, "{:?}: {log}", self.life(id));
            std::thread::sleep(Duration::from_millis(50));
        }
        until("nothing runs there", || self.machines.exit(&id.0));
    }
}

fn identity(claim: u32) -> Identity {
    Identity {
        installation: "0a1b2c3d-0000-4000-8000-000000000000".into(),
        namespace: "default".into(),
        claim: format!("trj-a-12345678-1-{claim}"),
        claim_uid: format!("11111111-0000-4000-8000-{claim:012}"),
        attempt: 1,
    }
}

fn operator(claim: u32) -> Operator {
    let identity = identity(claim);
    Operator::new(&identity_text(&identity), &identity.claim_uid)
}

fn machine(image: &str, operator: &Operator) -> Machine {
    Machine {
        image: image.into(),
        agent: AgentSource::Image("example.org/agent:1".into()),
        bootstrap: Bootstrap {
            operator_key: operator.root.noise().public().to_string(),
            endpoint: None,
            port: 7443,
        },
        cpu_millis: 1000,
        memory: 1 << 30,
        ephemeral: None,
        ports: Vec::new(),
        service_account: None,
        image_pull_secrets: Vec::new(),
        volumes: Vec::new(),
        grace_seconds: 30,
        labels: BTreeMap::new(),
    }
}

#[test]
fn the_production_start_command_runs_the_real_agent_and_its_end_is_the_pods() {
    let Some(deal) = Deal::new(None) else { return };
    // Two at once, of two kinds of image.
    let mut pods: Vec<(InstanceId, Operator)> = [(1, ALPINE), (2, DEBIAN)]
        .into_iter()
        .map(|(claim, image)| {
            let operator = operator(claim);
            (deal.buy(claim, image, &operator), operator)
        })
        .collect();
    for (id, operator) in &mut pods {
        let at = deal.endpoint(id);
        operator.enrol(at, script("echo on $RUNPOD_POD_ID; sleep 0.2; exit 5"), LEASE);
        let report = operator.until(at, |state| matches!(state, State::Exited(_)));
        let State::Exited(exit) = report.state else { unreachable!() };
        assert_eq!(exit.code, Some(5));
        assert_eq!(operator.output(at), format!("on {}\n", &id.0));
    }
    for (id, operator) in &mut pods {
        operator.ask(deal.endpoint(id), Ask::Terminate);
    }
    // One by curl; where there is neither that nor a certificate, by wget.
    pods.iter().for_each(|(id, _)| deal.ends_itself(id));
    assert!(deal.cloud.engine(|engine| engine.invoice()).open().is_empty(), "nothing bills");
}

#[test]
fn a_pod_whose_lease_is_over_ends_itself_although_nobody_asks_for_it() {
    let Some(deal) = Deal::new(None) else { return };
    let mut operator = operator(1);
    let id = deal.buy(1, DEBIAN, &operator);
    operator.enrol(deal.endpoint(&id), script("sleep 3600"), 3);
    deal.ends_itself(&id);
}

#[test]
fn an_agent_of_another_hash_never_runs_and_the_pod_ends_itself() {
    let wrong = "00".repeat(32);
    let Some(deal) = Deal::new(Some(&wrong)) else { return };
    let operator = operator(1);
    let id = deal.buy(1, DEBIAN, &operator);
    deal.ends_itself(&id);
    let log = deal.machines.log(&id.0);
    assert!(log.contains("petaflop: the agent cannot be had, or is not the one"), "{log}");
}

#[test]
fn an_image_without_a_shell_stops_and_an_unknown_one_never_starts() {
    let Some(deal) = Deal::new(None) else { return };
    let stops = deal.buy(1, DISTROLESS, &operator(1));
    let never = deal.buy(2, "example.org/unknown:1", &operator(2));
    until("the pod stops", || {
        (deal.life(&stops) == (Life::Exited, Some(Why::Process))).then_some(())
    });
    // It was bought later, and would run by now.
    assert_eq!(deal.life(&never), (Life::Starting, None));
    let pod = deal.runtime.block_on(deal.client.get(&never)).unwrap().unwrap();
    assert_eq!((pod.state, pod.endpoint), (InstanceState::Pending, None));
    for id in [stops, never] {
        deal.runtime.block_on(deal.client.terminate(&id)).unwrap();
    }
}
