//! The buying protocol over the client, against the cloud in a box: what bills in there agrees that
//! one pod was bought and none is left. What the client alone makes of the box's ways, `shopping`
//! shows.

use std::collections::BTreeMap;

use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::reason::Reason;
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::faults::{Fault, Operation};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{self, PACE, Setup};
use petaflop_providers::runpod::{RunPod, RunPodConfig};
use petaflop_providers::{InstanceId, Provider, Used};

use super::drive::Buyer;
use super::{Hands, KEY, client_by, config};

/// The cloud in a box, and the client in front of it.
pub(crate) struct Shop {
    pub(crate) cloud: runpod::RunPod,
    pub(crate) provider: RunPod,
    pub(crate) hands: Hands,
}

fn open(pace: Pace, page: Option<usize>) -> Shop {
    Shop::open(|setup| (setup.pace, setup.page) = (pace, page), |config| config)
}

impl Shop {
    pub(crate) fn open(
        change: impl FnOnce(&mut Setup),
        settings: impl FnOnce(RunPodConfig) -> RunPodConfig,
    ) -> Self {
        let clock = Clock::manual("2026-11-20T10:00:00Z".parse().expect("a time"));
        let mut setup = Setup {
            clock: clock.clone(),
            seed: 1,
            keys: BTreeMap::from([(KEY.to_owned(), Scope::All)]),
            pace: PACE,
            deposit: 1_000_000_000,
            limits: Limits::new(1000, 10_000, 100_000),
            page: None,
            host: Box::new(StateOnly::default()),
        };
        change(&mut setup);
        let cloud = runpod::RunPod::start(setup).expect("a cloud");
        let usual = RunPodConfig {
            counts: vec![1, 8],
            vcpu_counts: vec![4],
            spot: true,
            ..config(&cloud.url())
        };
        let (provider, hands) = client_by(settings(usual), Hands(clock));
        Self { cloud, provider, hands }
    }

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
        (Fault::Forbidden, Reason::Unauthorized),
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

/// The two share no code: what one of them changes by itself is red here.
#[tokio::test]
async fn what_is_booked_is_what_the_box_bills_by_each_of_its_rules() {
    let cases = [(1, 1000, false), (59, 1000, false), (3_601, 900, false), (7_777, 1000, true)];
    for (seconds, permille, stopped) in cases {
        let name = "1x NVIDIA L40S SECURE";
        let (cloud, mut buyer) = open(PACE, None).buyer(name, Capacity::OnDemand).await;
        // It may have become cheaper since it was quoted.
        cloud.faults(|faults| faults.next(Fault::PriceChanged(permille), Operation::Create));
        let (offer, from) = (buyer.claim.spec.offer.clone(), buyer.hands.now());
        buyer.drive(Wanted::Yes, None).await;
        let Phase::Launched { instance, .. } = buyer.claim.phase.clone() else {
            panic!("{:?}", buyer.claim.phase);
        };
        buyer.hands.forward(seconds);
        let id = InstanceId(instance);
        if stopped {
            // Taken away; what is stopped keeps nothing that bills.
            cloud.engine(|engine| engine.evict(&id.0, None)).expect("taken away");
            buyer.hands.forward(500);
        }
        buyer.provider.terminate(&id).await.expect("ended");
        buyer.hands.forward(500);
        let seen = buyer.provider.get(&id).await.expect("an answer").expect("remembered");
        let until = seen.ended.expect("when");
        let (running, taken, over) = (None, stopped, true);
        let used = Used { instance: &id, offer: &offer, from, running, until, taken, over };
        let booked = buyer.provider.billed(used).await.expect("an amount").micros();
        let billed = cloud.engine(|engine| engine.invoice().total());
        assert!(booked == billed && billed > 0, "{seconds}: {booked} booked, {billed} billed");
    }
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
