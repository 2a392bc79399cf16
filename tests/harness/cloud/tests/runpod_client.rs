//! petaflop's client for RunPod buys in the box: what it makes of RunPod's ways, and what it costs.
#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{Identity, Refusal};
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_cloud_box::engine::series::{Series, Source};
use petaflop_cloud_box::faults::{Fault, Operation, When};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{PACE, RunPod as Cloud, Setup};
use petaflop_providers::machine::{AgentSource, Bootstrap};
use petaflop_providers::provider::InstanceState;
use petaflop_providers::runpod::{AgentDownload, ApiKey, RunPod, RunPodConfig};
use petaflop_providers::{
    EnrolmentToken, InstanceId, LaunchError, Machine, Order, Provider, ProviderError, Work,
};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const COMMUNITY: &str = "1x NVIDIA GeForce RTX 4090 COMMUNITY";

struct Deal {
    cloud: Cloud,
    clock: Clock,
    client: RunPod,
}

impl Deal {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let clock = Clock::manual("2026-11-20T10:00:00Z".parse().unwrap());
        let agent: SocketAddr = "127.0.0.1:10341".parse().unwrap();
        let mut setup = Setup {
            clock: clock.clone(),
            seed: 1,
            keys: BTreeMap::from([("key".to_owned(), Scope::All)]),
            pace: PACE,
            deposit: 1_000_000_000,
            limits: Limits::new(1000, 10_000, 100_000),
            page: None,
            host: Box::new(StateOnly::default().listening(7443, agent)),
        };
        change(&mut setup);
        let cloud = Cloud::start(setup).unwrap();
        let url = "https://example.org/agent".to_owned();
        let agent = AgentDownload { url, sha256: "ab".repeat(32) };
        let config = RunPodConfig {
            base: cloud.url(),
            counts: vec![1, 8],
            vcpu_counts: vec![2],
            ..RunPodConfig::new("rp", ApiKey::new("key"), agent)
        };
        let time = clock.clone();
        let client = RunPod::new(config).unwrap().by_clock(move || time.now());
        Self { cloud, clock, client }
    }

    async fn offer(&self, kind: &str, capacity: Capacity) -> Offer {
        let offers = self.client.quote().await.unwrap();
        let found = offers.iter().find(|o| o.instance_type == kind && o.capacity == capacity);
        found.unwrap_or_else(|| panic!("{kind} in {offers:?}")).clone()
    }

    async fn buy(&self, claim: u32, offer: &Offer) -> Result<InstanceId, LaunchError> {
        let machine = machine();
        let order = Order { identity: &identity(claim), offer, work: Work::Machine(&machine) };
        let request = self.client.prepare(order).await?;
        self.client.launch(&request, &EnrolmentToken::new("token")).await
    }

    async fn buy_community(&self, claim: u32) -> Result<InstanceId, LaunchError> {
        let offer = self.offer(COMMUNITY, Capacity::OnDemand).await;
        self.buy(claim, &offer).await
    }

    fn fault(&self, fault: Fault) {
        self.cloud.faults(|faults| faults.next(fault, Operation::Create));
    }

    /// Ids of the machines that bill now.
    fn billing(&self) -> Vec<String> {
        let invoice = self.cloud.engine(|engine| engine.invoice());
        invoice.open().into_iter().map(str::to_owned).collect()
    }

    async fn found(&self, claim: u32) -> Vec<InstanceId> {
        let listing = self.client.find(&identity(claim)).await.unwrap();
        assert!(listing.complete);
        listing.instances.into_iter().map(|instance| instance.id).collect()
    }

    fn discount_spot(&self, price: i64) {
        self.cloud.engine(|engine| {
            let sold = engine.products().filter(|(_, p)| p.kind == "NVIDIA GeForce RTX 4090");
            for id in sold.map(|(id, _)| id).collect::<Vec<_>>() {
                let source = Source::Recorded("by hand, for this test".to_owned());
                engine.product_mut(id).spot = Some(Series::constant(source, price));
            }
        });
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

fn machine() -> Machine {
    Machine {
        image: "ghcr.io/example/job:1".into(),
        agent: AgentSource::Image("example.org/agent:1".into()),
        bootstrap: Bootstrap { operator_key: "a2V5".into(), endpoint: None, port: 7443 },
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

fn refusal(answer: &Result<InstanceId, LaunchError>) -> Option<Refusal> {
    match answer {
        Err(LaunchError::Refused { kind, .. }) => Some(*kind),
        _ => None,
    }
}

#[tokio::test]
async fn it_quotes_what_is_in_stock_and_no_spot_that_costs_as_much() {
    let deal = Deal::new();
    let offers = deal.client.quote().await.unwrap();
    let kinds: Vec<&str> = offers.iter().map(|offer| offer.instance_type.as_str()).collect();
    for kind in [COMMUNITY, "8x NVIDIA H200 SECURE", "2 vCPU cpu5g SECURE"] {
        assert!(kinds.contains(&kind), "{kind} in {kinds:?}");
    }
    assert!(!kinds.iter().any(|kind| kind.contains("MI300X")), "out of stock: {kinds:?}");
    assert!(!kinds.contains(&"8x NVIDIA GeForce RTX 4090 SECURE"), "6 there are: {kinds:?}");
    assert!(offers.iter().all(|offer| offer.capacity == Capacity::OnDemand), "{offers:?}");
}

#[tokio::test]
async fn a_machine_is_bought_found_reached_and_ended_and_the_offer_said_what_it_costs() {
    let deal = Deal::new();
    let offer = deal.offer(COMMUNITY, Capacity::OnDemand).await;
    let id = deal.buy(1, &offer).await.unwrap();
    assert_eq!(deal.found(1).await, std::slice::from_ref(&id));
    assert!(deal.found(2).await.is_empty());
    deal.clock.advance(SECOND * 25);
    let pod = deal.client.get(&id).await.unwrap().unwrap();
    assert_eq!(pod.state, InstanceState::Running);
    assert_eq!(pod.endpoint.as_deref(), Some("127.0.0.1:10341"));
    assert_eq!(pod.identity, Some(identity(1)));
    deal.clock.advance(HOUR - SECOND * 25);
    deal.client.terminate(&id).await.unwrap();
    deal.client.terminate(&id).await.unwrap();
    assert!(deal.client.get(&id).await.unwrap().is_none());
    deal.clock.advance(HOUR * 10);
    let billed = deal.cloud.engine(|engine| engine.invoice().total());
    // The offer's disk is rounded to micro-dollars an hour, up; the bill's line to the nearest.
    assert!((0..=1).contains(&(offer.price.micros() - billed)), "{} {billed}", offer.price);
    assert!(deal.billing().is_empty());
}

#[tokio::test]
async fn what_was_lost_on_the_way_is_found_by_its_identity() {
    for fault in [Fault::LostAnswer, Fault::ErrorButDone, Fault::LostRequest, Fault::ErrorNotDone] {
        let deal = Deal::new();
        deal.fault(fault);
        let answer = deal.buy_community(1).await;
        let ambiguous = matches!(answer, Err(LaunchError::Ambiguous { .. }));
        assert!(ambiguous, "{} {answer:?}", fault.name());
        let found = deal.found(1).await;
        let done = matches!(fault, Fault::LostAnswer | Fault::ErrorButDone);
        assert_eq!(found.len(), usize::from(done), "{}", fault.name());
        for id in &found {
            deal.client.terminate(id).await.unwrap();
        }
        assert!(deal.billing().is_empty());
        assert_eq!(deal.cloud.faults(|faults| faults.calls(Operation::Create)), 1, "asked once");
    }
}

#[tokio::test]
async fn each_way_to_be_refused_is_told_by_its_kind() {
    let refused = [
        (Fault::CapacityGone, Refusal::NoCapacity),
        (Fault::Forbidden, Refusal::Quota),
        (Fault::Retired, Refusal::Retired),
        (Fault::RateLimited(7), Refusal::RateLimited),
        (Fault::PriceChanged(1500), Refusal::PriceChanged),
    ];
    for (fault, kind) in refused {
        let deal = Deal::new();
        deal.fault(fault);
        let answer = deal.buy_community(1).await;
        assert_eq!(refusal(&answer), Some(kind), "{} {answer:?}", fault.name());
        assert!(deal.billing().is_empty(), "{}", fault.name());
    }
    let poor = Deal::with(|setup| setup.deposit = 100_000);
    assert_eq!(refusal(&poor.buy_community(1).await), Some(Refusal::BalanceTooLow));
}

#[tokio::test]
async fn a_price_that_fell_is_taken() {
    let deal = Deal::new();
    deal.fault(Fault::PriceChanged(900));
    let id = deal.buy_community(1).await.unwrap();
    assert_eq!(deal.billing(), [id.0]);
}

#[tokio::test]
async fn spot_that_is_cheaper_is_bought_at_its_price_and_ended_by_the_server_at_the_latest() {
    let deal = Deal::new();
    deal.discount_spot(200_000);
    let offer = deal.offer("1x NVIDIA GeForce RTX 4090 SECURE", Capacity::Spot).await;
    let id = deal.buy(1, &offer).await.unwrap();
    assert_eq!(deal.found(1).await, std::slice::from_ref(&id));
    let machine = deal.cloud.engine(|engine| engine.machine(&id.0).unwrap().clone());
    assert_eq!(machine.rate, 200_000);
    deal.clock.advance(HOUR * 23);
    assert_eq!(deal.billing(), [id.0]);
    deal.clock.advance(HOUR * 100);
    assert!(deal.billing().is_empty(), "nobody ended it");
    let billed = deal.cloud.engine(|engine| engine.invoice().total());
    assert!((0..=24).contains(&(offer.price.micros() * 24 - billed)), "{billed}");
}

#[tokio::test]
async fn spot_whose_answer_is_lost_or_a_lie_is_found_too() {
    for fault in [Fault::LostAnswer, Fault::ErrorButDone] {
        let deal = Deal::new();
        deal.discount_spot(200_000);
        let offer = deal.offer("1x NVIDIA GeForce RTX 4090 SECURE", Capacity::Spot).await;
        deal.fault(fault);
        let answer = deal.buy(1, &offer).await;
        let ambiguous = matches!(answer, Err(LaunchError::Ambiguous { .. }));
        assert!(ambiguous, "{} {answer:?}", fault.name());
        assert_eq!(deal.found(1).await.len(), 1);
    }
}

#[tokio::test]
async fn an_evicted_machine_is_seen_as_such_and_must_be_ended() {
    let deal = Deal::new();
    let id = deal.buy_community(1).await.unwrap();
    deal.clock.advance(HOUR);
    deal.cloud.engine(|engine| engine.evict(&id.0, None)).unwrap();
    let pod = deal.client.get(&id).await.unwrap().unwrap();
    assert!(pod.trouble.is_some(), "{pod:?}");
    deal.client.terminate(&id).await.unwrap();
    assert!(deal.found(1).await.is_empty());
}

#[tokio::test]
async fn a_listing_is_complete_only_when_every_page_was_seen() {
    let deal = Deal::with(|setup| setup.page = Some(2));
    for claim in 0..5 {
        deal.buy_community(claim).await.unwrap();
    }
    let installation = identity(0).installation;
    let all = deal.client.list(&installation).await.unwrap();
    assert_eq!((all.instances.len(), all.complete), (5, true));
    assert!(deal.client.list("another").await.unwrap().instances.is_empty());
    deal.cloud.faults(|faults| {
        let second = faults.calls(Operation::List) + 2;
        faults.on(Fault::RepeatedCursor, Some(Operation::List), When::Call(second));
    });
    let some = deal.client.list(&installation).await.unwrap();
    assert!(!some.complete, "{} of 5", some.instances.len());
}

#[tokio::test]
async fn without_graphql_everything_but_spot_is_still_sold() {
    let deal = Deal::new();
    deal.discount_spot(200_000);
    deal.cloud.faults(|faults| faults.on(Fault::GraphQlRetired, None, When::Always));
    let offers = deal.client.quote().await.unwrap();
    assert!(offers.len() > 10 && offers.iter().all(|o| o.capacity == Capacity::OnDemand));
    deal.buy_community(1).await.unwrap();
}

#[tokio::test]
async fn an_api_that_was_retired_is_no_machine_that_is_gone() {
    let deal = Deal::new();
    let id = deal.buy_community(1).await.unwrap();
    deal.cloud.faults(|faults| faults.on(Fault::Retired, None, When::Always));
    for error in [
        deal.client.get(&id).await.map(drop).unwrap_err(),
        deal.client.terminate(&id).await.unwrap_err(),
        deal.client.find(&identity(1)).await.map(drop).unwrap_err(),
    ] {
        assert!(matches!(error, ProviderError::Retired { .. }), "{error:?}");
    }
    assert_eq!(deal.billing(), [id.0]);
}
