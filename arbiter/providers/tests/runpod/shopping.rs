//! The client alone, in the cloud in a box: what it makes of RunPod's ways, and what it costs.

use std::net::SocketAddr;
use std::time::Duration;

use petaflop_arbiter::claim::{Identity, LaunchAnswer, Refusal};
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_cloud_box::engine::series::{Series, Source};
use petaflop_cloud_box::faults::{Fault, Operation, When};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::Setup;
use petaflop_providers::provider::InstanceState;
use petaflop_providers::runpod::RunPodConfig;
use petaflop_providers::{
    EnrolmentToken, InstanceId, LaunchError, Order, Provider, ProviderError, Work,
};

use super::cloud_box::Shop;
use super::{TOKEN, machine};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const COMMUNITY: &str = "1x NVIDIA GeForce RTX 4090 COMMUNITY";

impl Shop {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Setup)) -> Self {
        let agent: SocketAddr = "127.0.0.1:10341".parse().expect("an address");
        let setup = |setup: &mut Setup| {
            setup.host = Box::new(StateOnly::default().listening(7443, agent));
            change(setup);
        };
        let config = |config| RunPodConfig { vcpu_counts: vec![2], disk_gb: 73, ..config };
        Self::open(setup, config)
    }

    async fn offer(&self, kind: &str, capacity: Capacity) -> Offer {
        let offers = self.provider.quote().await.expect("offers");
        let found = offers.iter().find(|o| o.instance_type == kind && o.capacity == capacity);
        found.unwrap_or_else(|| panic!("{kind} in {offers:?}")).clone()
    }

    async fn buy(&self, claim: u32, offer: &Offer) -> Result<InstanceId, LaunchError> {
        let machine = machine();
        let order = Order { identity: &identity(claim), offer, work: Work::Machine(&machine) };
        let request = self.provider.prepare(order).await?;
        self.provider.launch(&request, &EnrolmentToken::new(TOKEN)).await
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
        let listing = self.provider.find(&identity(claim)).await.expect("a list");
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
    let claim_uid = format!("11111111-0000-4000-8000-{claim:012}");
    Identity { claim: format!("trj-a-12345678-1-{claim}"), claim_uid, ..super::identity() }
}

fn refusal(answer: &Result<InstanceId, LaunchError>) -> Option<Refusal> {
    match answer.as_ref().err()?.answer() {
        LaunchAnswer::Refused(kind) => Some(kind),
        LaunchAnswer::Accepted { .. } | LaunchAnswer::Unclear => None,
    }
}

#[tokio::test]
async fn what_hosts_drivers_do_not_know_is_not_for_sale() {
    let needing = |version: &str| {
        let version = Some(version.to_owned());
        Shop::open(|_| {}, |config| RunPodConfig { min_cuda: version, ..config })
    };
    let with_devices =
        |offers: &[Offer]| offers.iter().filter(|o| o.accelerators.is_some()).count();
    let [any, old, new] = [Shop::new(), needing("12.8"), needing("13.0")];
    let offers = any.provider.quote().await.expect("offers");
    let here = old.provider.quote().await.expect("offers");
    assert!(with_devices(&offers) > 0);
    assert_eq!(with_devices(&here), with_devices(&offers), "all know it");
    let none = new.provider.quote().await.expect("offers");
    assert_eq!(with_devices(&none), 0, "{none:?}");
    assert!(!none.is_empty(), "processors need no driver");
    // Who has seen the offer elsewhere is refused at the purchase.
    let offer = old.offer(COMMUNITY, Capacity::OnDemand).await;
    old.buy(1, &offer).await.expect("bought");
    let refused = new.buy(1, &offer).await.expect_err("no such host").answer();
    assert_eq!(refused, LaunchAnswer::Refused(Refusal::NoCapacity));
}

#[tokio::test]
async fn it_quotes_what_is_in_stock_and_no_spot_that_costs_as_much() {
    let shop = Shop::new();
    let offers = shop.provider.quote().await.expect("offers");
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
    let shop = Shop::new();
    let offer = shop.offer(COMMUNITY, Capacity::OnDemand).await;
    let id = shop.buy(1, &offer).await.expect("a pod");
    assert_eq!(shop.found(1).await, std::slice::from_ref(&id));
    assert!(shop.found(2).await.is_empty());
    shop.hands.0.advance(SECOND * 25);
    let pod = shop.provider.get(&id).await.expect("an answer").expect("a pod");
    assert_eq!(pod.state, InstanceState::Running);
    assert_eq!(pod.endpoint.as_deref(), Some("127.0.0.1:10341"));
    assert_eq!(pod.identity, Some(identity(1)));
    shop.hands.0.advance(HOUR - SECOND * 25);
    shop.provider.terminate(&id).await.expect("an end");
    shop.provider.terminate(&id).await.expect("an end");
    let gone = shop.provider.get(&id).await.expect("an answer").expect("when it ended");
    assert_eq!(gone.state, InstanceState::Terminated);
    assert_eq!(gone.ended, Some(shop.hands.now()), "RunPod does not know it any more");
    shop.hands.0.advance(HOUR * 10);
    let billed = shop.cloud.engine(|engine| engine.invoice().total());
    // The offer's disk is rounded to micro-dollars an hour, up; the bill's line to the nearest.
    assert!((0..=1).contains(&(offer.price.micros() - billed)), "{} {billed}", offer.price);
    assert!(shop.billing().is_empty());
}

#[tokio::test]
async fn what_was_lost_on_the_way_is_found_by_its_identity() {
    for fault in [Fault::LostAnswer, Fault::ErrorButDone, Fault::LostRequest, Fault::ErrorNotDone] {
        let shop = Shop::new();
        shop.fault(fault);
        let answer = shop.buy_community(1).await;
        let ambiguous = matches!(answer, Err(LaunchError::Ambiguous { .. }));
        assert!(ambiguous, "{} {answer:?}", fault.name());
        let found = shop.found(1).await;
        let done = matches!(fault, Fault::LostAnswer | Fault::ErrorButDone);
        assert_eq!(found.len(), usize::from(done), "{}", fault.name());
        for id in &found {
            shop.provider.terminate(id).await.expect("an end");
        }
        assert!(shop.billing().is_empty());
        assert_eq!(shop.cloud.faults(|faults| faults.calls(Operation::Create)), 1, "asked once");
    }
}

#[tokio::test]
async fn each_way_to_be_refused_is_told_by_its_kind() {
    let refused = [
        (Fault::CapacityGone, Refusal::NoCapacity),
        (Fault::Forbidden, Refusal::Unauthorized),
        (Fault::Retired, Refusal::Retired),
        (Fault::RateLimited(7), Refusal::RateLimited),
        (Fault::PriceChanged(1500), Refusal::PriceChanged),
        // By less than its disk costs, which stands in the offer's price and not in what it costs.
        (Fault::PriceChanged(1010), Refusal::PriceChanged),
    ];
    for (fault, kind) in refused {
        let shop = Shop::new();
        shop.fault(fault);
        let answer = shop.buy_community(1).await;
        assert_eq!(refusal(&answer), Some(kind), "{} {answer:?}", fault.name());
        assert!(shop.billing().is_empty(), "{}", fault.name());
    }
    let poor = Shop::with(|setup| setup.deposit = 100_000);
    assert_eq!(refusal(&poor.buy_community(1).await), Some(Refusal::BalanceTooLow));
}

#[tokio::test]
async fn a_pod_that_was_given_back_is_told_with_its_real_price() {
    let shop = Shop::new();
    shop.fault(Fault::PriceChanged(1500));
    let offer = shop.offer(COMMUNITY, Capacity::OnDemand).await;
    shop.cloud.faults(|faults| faults.next(Fault::ErrorNotDone, Operation::End));
    let answer = shop.buy(1, &offer).await;
    let Err(LaunchError::GivenBack { waste, .. }) = answer else { panic!("{answer:?}") };
    assert_eq!(waste.price.micros(), 340_000 * 3 / 2 + 10_000, "{waste:?}");
    assert_eq!((waste.from, waste.to), (shop.hands.now(), shop.hands.now()));
    assert!(shop.billing().is_empty());
}

#[tokio::test]
async fn a_price_that_fell_is_taken() {
    let shop = Shop::new();
    shop.fault(Fault::PriceChanged(900));
    let id = shop.buy_community(1).await.expect("a pod");
    assert_eq!(shop.billing(), [id.0]);
}

#[tokio::test]
async fn spot_that_is_cheaper_is_bought_at_its_price_and_ended_by_the_server_at_the_latest() {
    let shop = Shop::new();
    shop.discount_spot(200_000);
    let offer = shop.offer("1x NVIDIA GeForce RTX 4090 SECURE", Capacity::Spot).await;
    let id = shop.buy(1, &offer).await.expect("a pod");
    assert_eq!(shop.found(1).await, std::slice::from_ref(&id));
    let machine = shop.cloud.engine(|engine| engine.machine(&id.0).expect("it is there").clone());
    assert_eq!(machine.rate, 200_000);
    shop.hands.0.advance(HOUR * 23);
    assert_eq!(shop.billing(), [id.0]);
    shop.hands.0.advance(HOUR * 100);
    assert!(shop.billing().is_empty(), "nobody ended it");
    let billed = shop.cloud.engine(|engine| engine.invoice().total());
    assert!((0..=24).contains(&(offer.price.micros() * 24 - billed)), "{billed}");
}

#[tokio::test]
async fn spot_whose_answer_is_lost_or_a_lie_is_found_too() {
    for fault in [Fault::LostAnswer, Fault::ErrorButDone] {
        let shop = Shop::new();
        shop.discount_spot(200_000);
        let offer = shop.offer("1x NVIDIA GeForce RTX 4090 SECURE", Capacity::Spot).await;
        shop.fault(fault);
        let answer = shop.buy(1, &offer).await;
        let ambiguous = matches!(answer, Err(LaunchError::Ambiguous { .. }));
        assert!(ambiguous, "{} {answer:?}", fault.name());
        assert_eq!(shop.found(1).await.len(), 1);
    }
}

#[tokio::test]
async fn an_evicted_machine_is_seen_as_such_and_must_be_ended() {
    let shop = Shop::new();
    let id = shop.buy_community(1).await.expect("a pod");
    shop.hands.0.advance(HOUR);
    shop.cloud.engine(|engine| engine.evict(&id.0, None)).expect("it runs");
    let taken = shop.hands.now();
    shop.hands.0.advance(HOUR);
    let pod = shop.provider.get(&id).await.expect("an answer").expect("a pod");
    assert!(pod.trouble.is_some(), "{pod:?}");
    assert_eq!(pod.ended, Some(taken), "it bills nothing since then");
    shop.provider.terminate(&id).await.expect("an end");
    let gone = shop.provider.get(&id).await.expect("an answer").expect("when it ended");
    assert_eq!(gone.ended, Some(taken));
    assert!(shop.found(1).await.is_empty());
}

#[tokio::test]
async fn a_listing_is_complete_only_when_every_page_was_seen() {
    let shop = Shop::with(|setup| setup.page = Some(2));
    for claim in 0..5 {
        shop.buy_community(claim).await.expect("a pod");
    }
    let installation = identity(0).installation;
    let all = shop.provider.list(&installation).await.expect("a list");
    assert_eq!((all.instances.len(), all.complete), (5, true));
    assert!(shop.provider.list("another").await.expect("a list").instances.is_empty());
    shop.cloud.faults(|faults| {
        let second = faults.calls(Operation::List) + 2;
        faults.on(Fault::RepeatedCursor, Some(Operation::List), When::Call(second));
    });
    let some = shop.provider.list(&installation).await.expect("a list");
    assert!(!some.complete, "{} of 5", some.instances.len());
}

#[tokio::test]
async fn without_graphql_everything_but_spot_is_still_sold() {
    let shop = Shop::new();
    shop.discount_spot(200_000);
    shop.cloud.faults(|faults| faults.on(Fault::GraphQlRetired, None, When::Always));
    let offers = shop.provider.quote().await.expect("offers");
    assert!(offers.len() > 10 && offers.iter().all(|o| o.capacity == Capacity::OnDemand));
    shop.buy_community(1).await.expect("a pod");
}

#[tokio::test]
async fn an_api_that_was_retired_is_no_machine_that_is_gone() {
    let shop = Shop::new();
    let id = shop.buy_community(1).await.expect("a pod");
    shop.cloud.faults(|faults| faults.on(Fault::Retired, None, When::Always));
    for error in [
        shop.provider.get(&id).await.map(drop).expect_err("a refusal"),
        shop.provider.terminate(&id).await.expect_err("a refusal"),
        shop.provider.find(&identity(1)).await.map(drop).expect_err("a refusal"),
    ] {
        assert!(matches!(error, ProviderError::Retired { .. }), "{error:?}");
    }
    assert_eq!(shop.billing(), [id.0]);
}
