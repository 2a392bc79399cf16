//! The real agent on the cloud's machines: nobody has to be alive for a machine to
//! be given back.
#![cfg(feature = "agent")]

use std::time::Duration;

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::keys::OperatorRoot;
use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, Sale};
use petaflop_fake_provider::cloud::Setup;
use petaflop_fake_provider::{Cloud, Manners, real};
use petaflop_providers::machine::{AgentSource, Bootstrap};
use petaflop_providers::{EnrolmentToken, InstanceState, Machine, Order, Provider, Work};

fn offer() -> Offer {
    Offer {
        id: Offer::id_of("fake", "", "", "big", Capacity::OnDemand),
        provider: "fake".into(),
        region: String::new(),
        zone: String::new(),
        instance_type: "big".into(),
        accelerators: None,
        arch: Arch::X86_64,
        vcpu_milli: Some(8000),
        memory: Some(32 << 30),
        capacity: Capacity::OnDemand,
        price: "3.6".parse().expect("a price"),
        quoted_at: Timestamp::UNIX_EPOCH,
        ttl_seconds: 60,
        owner: HostOwner::Known,
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

#[tokio::test]
async fn a_machine_that_nobody_enrols_is_given_back_within_its_bound() {
    let folder = tempfile::tempdir().expect("a folder");
    let clock = Clock::manual(Timestamp::from_second(1_800_000_000).expect("in range"));
    let setup = Setup {
        manners: Manners::runpod(),
        clock: clock.clone(),
        offers: vec![offer()],
        agent: real::real(folder.path()),
        bill: folder.path().join("bill"),
    };
    let cloud = Cloud::start(setup).expect("a cloud");
    let provider = cloud.provider("fake");
    let root = OperatorRoot::generate();
    let identity = Identity {
        installation: "0c0ffee0".into(),
        namespace: "default".into(),
        claim: "trj-a".into(),
        claim_uid: "u".into(),
        attempt: 1,
    };
    let machine = Machine {
        image: "example.org/job:1".into(),
        agent: AgentSource::Image("example.org/agent:1".into()),
        bootstrap: Bootstrap {
            operator_key: root.noise().public().to_string(),
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
        grace_seconds: 5,
        labels: Default::default(),
    };
    let offer = offer();
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = provider.prepare(order).await.expect("prepared");
    let token = EnrolmentToken::new(root.token("u", 1).expose().to_string());
    let id = provider.launch(&request, &token).await.expect("launched");
    cloud.settle().await;
    clock.advance(Duration::from_secs(10));
    cloud.settle().await;
    let running = provider.get(&id).await.expect("an answer").expect("there");
    assert_eq!(running.state, InstanceState::Running);
    assert!(running.endpoint.is_some(), "the agent listens");

    // Everybody else is dead. Half an hour later the agent gives the machine back.
    clock.advance(Duration::from_secs(29 * 60));
    cloud.settle().await;
    assert_eq!(cloud.billed_now().len(), 1, "an outage shorter than the bound harms nothing");
    clock.advance(Duration::from_secs(2 * 60));
    let mut rounds = 0;
    while !cloud.billed_now().is_empty() {
        rounds += 1;
        assert!(rounds < 200, "it bills on");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(provider.get(&id).await.expect("an answer"), None);
    // 31 minutes and 10 seconds at a tenth of a cent a second.
    let micros: i64 = cloud.micros_by_identity().into_values().sum();
    assert_eq!(micros, 1_870_000);
}

#[test]
fn the_bootstrap_has_the_names_that_the_agent_reads() {
    use petaflop_agent::config;
    use petaflop_providers::machine::env;
    assert_eq!(
        [env::IDENTITY, env::OPERATOR_KEY, env::TOKEN, env::ENDPOINT, env::PORT, env::WORK],
        [
            config::IDENTITY,
            config::OPERATOR_KEY,
            config::TOKEN,
            config::ENDPOINT,
            config::PORT,
            config::WORK
        ]
    );
}
