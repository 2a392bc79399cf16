//! The client against the cloud in a box, which was written from RunPod's description by itself:
//! both have read it alike, and what bills in there agrees that no pod is left.

use std::collections::BTreeMap;

use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::reason::Reason;
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::series::{Series, Source};
use petaflop_cloud_box::faults::{Fault, Operation};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{self, PACE, Setup};
use petaflop_providers::runpod::{RunPod, RunPodConfig};
use petaflop_providers::{InstanceId, InstanceState, Provider};

use super::drive::Buyer;
use super::{Hands, KEY, client_by, config};

struct Shop {
    cloud: runpod::RunPod,
    provider: RunPod,
    hands: Hands,
}

fn open(pace: Pace, page: Option<usize>) -> Shop {
    let clock = Clock::manual("2026-11-20T10:00:00Z".parse().expect("a time"));
    let cloud = runpod::RunPod::start(Setup {
        clock: clock.clone(),
        seed: 1,
        keys: BTreeMap::from([(KEY.to_owned(), Scope::All)]),
        pace,
        deposit: 1_000_000_000,
        limits: Limits::new(1000, 10_000, 100_000),
        page,
        host: Box::new(StateOnly::ending(&[])),
    })
    .expect("a cloud");
    let settings = RunPodConfig {
        counts: vec![1, 8],
        vcpu_counts: vec![4],
        spot: true,
        ..config(&cloud.url())
    };
    let (provider, hands) = client_by(settings, Hands(clock));
    Shop { cloud, provider, hands }
}

impl Shop {
    async fn offers(&self) -> Vec<Offer> {
        self.provider.quote().await.expect("offers")
    }

    async fn buyer(self, instance_type: &str, capacity: Capacity) -> (runpod::RunPod, Buyer) {
        let offers = self.offers().await;
        let wanted =
            |offer: &&Offer| offer.instance_type == instance_type && offer.capacity == capacity;
        let offer = offers.iter().find(wanted).expect("the offer").clone();
        (self.cloud, Buyer::new(self.provider, self.hands, offer))
    }
}

fn billed(cloud: &runpod::RunPod) -> usize {
    cloud.engine(|engine| engine.invoice().open().len())
}

fn made(cloud: &runpod::RunPod) -> usize {
    cloud.engine(|engine| engine.machines().len())
}

#[tokio::test]
async fn its_catalogue_is_read_and_no_spot_offer_comes_of_it() {
    let offers = open(PACE, None).offers().await;
    assert!(offers.iter().all(|offer| offer.capacity == Capacity::OnDemand), "spot saves nothing");
    let price = |name: &str| {
        let found = offers.iter().find(|offer| offer.instance_type == name);
        found.map(|offer| offer.price.micros() - 5_480)
    };
    assert_eq!(price("1x NVIDIA GeForce RTX 4090 COMMUNITY"), Some(340_000));
    assert_eq!(price("8x NVIDIA H200 SECURE"), Some(8 * 4_590_000));
    assert_eq!(price("4 vCPU cpu5g SECURE"), Some(4 * 46_000));
    // Without stock, without the cloud, with a price of 0.
    assert_eq!(price("8x NVIDIA L40S SECURE"), None);
    assert_eq!(price("1x AMD Instinct MI300X OAM COMMUNITY"), None);
    assert_eq!(price("1x NVIDIA A100-SXM4-40GB SECURE"), None);
}

#[tokio::test]
async fn one_pod_is_bought_and_ended_whatever_the_box_does() {
    let late = Pace { appear: std::time::Duration::from_secs(50), ..PACE };
    for (pace, page, fault) in [
        (PACE, None, None),
        (PACE, Some(1), None),
        (late, None, Some((Fault::LostAnswer, Operation::Create))),
        (late, Some(1), Some((Fault::ErrorButDone, Operation::Create))),
        (PACE, None, Some((Fault::LostRequest, Operation::Create))),
        (PACE, None, Some((Fault::ErrorNotDone, Operation::Create))),
        (PACE, None, Some((Fault::LostAnswer, Operation::End))),
        (PACE, None, Some((Fault::ErrorButDone, Operation::End))),
        (PACE, None, Some((Fault::ErrorNotDone, Operation::End))),
        (PACE, None, Some((Fault::LostAnswer, Operation::List))),
        (PACE, None, Some((Fault::Unavailable, Operation::List))),
    ] {
        let told = format!("{pace:?} {page:?} {fault:?}");
        let name = "1x NVIDIA GeForce RTX 4090 COMMUNITY";
        let (cloud, mut buyer) = open(pace, page).buyer(name, Capacity::OnDemand).await;
        if let Some((fault, operation)) = fault {
            cloud.faults(|faults| faults.next(fault, operation));
        }
        buyer.drive(Wanted::Yes, None).await;
        assert!(matches!(buyer.claim.phase, Phase::Launched { .. }), "{told}");
        assert_eq!(made(&cloud), 1, "{told}");
        buyer.hands.forward(60);
        buyer.drive(Wanted::Yes, None).await;
        assert!(matches!(buyer.claim.phase, Phase::Launched { .. }), "{told}");

        buyer.drive(Wanted::No(Reason::Suspended), None).await;
        assert!(matches!(buyer.claim.phase, Phase::Ended { .. }), "{told}");
        assert_eq!((made(&cloud), billed(&cloud)), (1, 0), "{told}");
    }
}

#[tokio::test]
async fn each_no_of_the_box_has_its_reason_and_leaves_nothing() {
    for (fault, reason) in [
        (Fault::CapacityGone, Reason::InsufficientCapacity),
        (Fault::PriceChanged(1500), Reason::PriceChanged),
        (Fault::Forbidden, Reason::QuotaExceeded),
        (Fault::Retired, Reason::ApiRetired),
    ] {
        let name = "1x NVIDIA L40S SECURE";
        let (cloud, mut buyer) = open(PACE, None).buyer(name, Capacity::OnDemand).await;
        cloud.faults(|faults| faults.next(fault, Operation::Create));
        buyer.drive(Wanted::Yes, None).await;
        assert_eq!(buyer.claim.phase, Phase::Ended { reason }, "{fault:?}");
        assert_eq!(billed(&cloud), 0, "{fault:?}");
    }
}

#[tokio::test]
async fn a_spot_pod_costs_its_bid_and_an_eviction_is_seen() {
    let open = open(PACE, None);
    // A made series: half of what on demand costs.
    open.cloud.engine(|engine| {
        let ids: Vec<_> = engine
            .products()
            .filter(|(_, product)| product.kind == "NVIDIA H200" && product.pool == "SECURE")
            .map(|(id, _)| id)
            .collect();
        for id in ids {
            let half = Series::constant(Source::Recorded("made".to_owned()), 2_295_000);
            engine.product_mut(id).spot = Some(half);
        }
    });
    let (cloud, mut buyer) = open.buyer("8x NVIDIA H200 SECURE", Capacity::Spot).await;
    buyer.drive(Wanted::Yes, None).await;
    let Phase::Launched { instance, .. } = buyer.claim.phase.clone() else {
        panic!("{:?}", buyer.claim.phase)
    };
    let rate = cloud.engine(|engine| engine.machine(&instance).map(|machine| machine.rate));
    assert_eq!(rate, Some(8 * 2_295_000), "the bid is for each");

    buyer.hands.forward(60);
    let id = InstanceId(instance.clone());
    let seen = buyer.provider.get(&id).await.expect("an answer").expect("a pod");
    assert_eq!(seen.state, InstanceState::Running);
    assert_eq!(seen.identity, Some(buyer.identity()));
    assert_eq!(seen.offer.as_ref(), Some(&buyer.claim.spec.offer));

    cloud.engine(|engine| engine.evict(&instance, None)).expect("evicted");
    let seen = buyer.provider.get(&id).await.expect("an answer").expect("still listed");
    assert!(seen.state.may_bill() && seen.trouble.is_some());
    buyer.drive(Wanted::No(Reason::SpotInterrupted), None).await;
    assert_eq!(billed(&cloud), 0);
    assert_eq!(buyer.provider.get(&id).await, Ok(None));
}

#[tokio::test]
async fn its_quotas_are_kept() {
    let open = open(PACE, None);
    // 4 + 1 + 1 calls a pass.
    for _ in 0..50 {
        open.offers().await;
        open.hands.forward(60);
    }
    let refused = open.cloud.calls().iter().filter(|call| call.status == Some(429)).count();
    assert_eq!(refused, 0);
}
