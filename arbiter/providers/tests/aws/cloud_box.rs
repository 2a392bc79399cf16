//! The buying protocol over the client, against the cloud in a box, which verifies the whole
//! signature and was written from AWS's descriptions by itself: what bills in there agrees that one
//! instance was bought and none is left.

use jiff::SignedDuration;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Phase;
use petaflop_arbiter::launch::Wanted;
use petaflop_arbiter::offer::{Capacity, Offer};
use petaflop_arbiter::reason::Reason;
use petaflop_cloud_box::ec2::{Ec2, Setup};
use petaflop_cloud_box::engine::bill::Rules;
use petaflop_cloud_box::faults::{Fault, Operation};
use petaflop_cloud_box::host::StateOnly;
use petaflop_providers::aws::{Access, Aws, AwsConfig, AwsKeys, AwsRegion};
use petaflop_providers::{InstanceId, InstanceState, Provider, Used};

use super::drive::Buyer;
use super::{Hands, config};

const KEY: &str = "AKIDEXAMPLE";
const SECRET: &str = "the secret";

struct Shop {
    cloud: Ec2,
    provider: Aws,
    hands: Hands,
}

fn open(change: impl FnOnce(&mut Setup)) -> Shop {
    open_with(change, |settings| settings)
}

fn open_with(change: impl FnOnce(&mut Setup), adjust: impl FnOnce(AwsConfig) -> AwsConfig) -> Shop {
    let clock = Clock::manual("2026-11-20T10:00:00Z".parse().expect("a time"));
    let mut setup = Setup::new(clock.clone(), KEY, SECRET, Box::new(StateOnly::default()));
    change(&mut setup);
    let cloud = Ec2::start(setup).expect("a cloud");
    let region = |name: &str| AwsRegion {
        name: name.to_owned(),
        subnets: Vec::new(),
        security_groups: Vec::new(),
    };
    let settings = AwsConfig {
        access: Access::Keys(AwsKeys::new(KEY, SECRET, None)),
        regions: vec![region("us-east-1"), region("us-east-2")],
        types: vec!["c7i".into(), "g6".into()],
        ..config(&cloud.url())
    };
    let hands = Hands(clock);
    let by = hands.clone();
    let provider = Aws::new(adjust(settings)).expect("settings").by_clock(move || by.now());
    Shop { cloud, provider, hands }
}

impl Shop {
    async fn offers(&self) -> Vec<Offer> {
        self.provider.quote().await.expect("offers")
    }

    async fn buyer(self, instance_type: &str, capacity: Capacity) -> (Ec2, Buyer) {
        let offers = self.offers().await;
        let wanted =
            |offer: &&Offer| offer.instance_type == instance_type && offer.capacity == capacity;
        let offer = offers.iter().find(wanted).expect("the offer").clone();
        (self.cloud, Buyer::new(self.provider, self.hands, offer))
    }
}

fn billed(cloud: &Ec2) -> usize {
    cloud.engine(|engine| engine.invoice().open().len())
}

fn made(cloud: &Ec2) -> usize {
    cloud.engine(|engine| engine.machines().len())
}

#[tokio::test]
async fn its_offers_are_of_all_zones_and_both_markets_and_of_processors_alone_too() {
    let shop = open(|_| {});
    let offers = shop.offers().await;
    for (region, capacity) in [
        ("us-east-1", Capacity::Spot),
        ("us-east-1", Capacity::OnDemand),
        ("us-east-2", Capacity::Spot),
        ("us-east-2", Capacity::OnDemand),
    ] {
        let of = |offer: &&Offer| offer.region == region && offer.capacity == capacity;
        assert!(
            offers.iter().filter(of).any(|it| it.accelerators.is_none()),
            "{region} {capacity}"
        );
        assert!(
            offers.iter().filter(of).any(|it| it.accelerators.is_some()),
            "{region} {capacity}"
        );
    }
    assert!(offers.iter().all(|offer| !offer.zone.contains("atl")));
    let refused = shop.cloud.calls().iter().filter(|call| call.status != Some(200)).count();
    assert_eq!(refused, 0, "every call was understood");
}

#[tokio::test]
async fn one_instance_is_bought_and_ended_whatever_the_box_does() {
    for fault in [
        None,
        Some((Fault::LostAnswer, Operation::Create)),
        Some((Fault::ErrorButDone, Operation::Create)),
        Some((Fault::LostRequest, Operation::Create)),
        Some((Fault::ErrorNotDone, Operation::Create)),
        Some((Fault::LostAnswer, Operation::End)),
        Some((Fault::ErrorButDone, Operation::End)),
        Some((Fault::ErrorNotDone, Operation::End)),
        Some((Fault::LostAnswer, Operation::List)),
        Some((Fault::Unavailable, Operation::List)),
    ] {
        let told = format!("{fault:?}");
        let (cloud, mut buyer) = open(|_| {}).buyer("c7i.large", Capacity::Spot).await;
        if let Some((fault, operation)) = fault {
            cloud.faults(|faults| faults.next(fault, operation));
        }
        buyer.drive(Wanted::Yes, None).await;
        assert!(matches!(buyer.claim.phase, Phase::Launched { .. }), "{told}");
        assert_eq!(made(&cloud), 1, "{told}");
        buyer.hands.forward(60);
        buyer.drive(Wanted::Yes, None).await;
        assert!(matches!(buyer.claim.phase, Phase::Launched { .. }), "{told}");

        for _ in 0..10 {
            buyer.drive(Wanted::No(Reason::Suspended), None).await;
            if matches!(buyer.claim.phase, Phase::Ended { .. }) {
                break;
            }
            buyer.hands.forward(60);
        }
        assert!(
            matches!(buyer.claim.phase, Phase::Ended { .. }),
            "{told}: {:?}",
            buyer.claim.phase
        );
        assert_eq!((made(&cloud), billed(&cloud)), (1, 0), "{told}");
    }
}

#[tokio::test]
async fn each_no_of_the_box_has_its_reason_and_leaves_nothing() {
    for (fault, reason) in [
        (Fault::CapacityGone, Reason::InsufficientCapacity),
        (Fault::PriceChanged(1500), Reason::PriceChanged),
        (Fault::Forbidden, Reason::Unauthorized),
    ] {
        let (cloud, mut buyer) = open(|_| {}).buyer("c7i.large", Capacity::Spot).await;
        cloud.faults(|faults| faults.next(fault, Operation::Create));
        buyer.drive(Wanted::Yes, None).await;
        assert_eq!(buyer.claim.phase, Phase::Ended { reason }, "{fault:?}");
        assert_eq!(billed(&cloud), 0, "{fault:?}");
    }
}

#[tokio::test]
async fn its_lists_come_in_pages() {
    let all = open(|_| {}).offers().await.len();
    // The page is the longest that is given; what needs more calls than the pace allows is no offer.
    assert_eq!(open(|setup| setup.page = Some(200)).offers().await.len(), all);
}

#[tokio::test]
async fn a_new_account_has_no_quota_and_says_so() {
    let new =
        |setup: &mut Setup| setup.quotas = petaflop_cloud_box::ec2::quota::Quotas::new_account();
    let (cloud, mut buyer) = open(new).buyer("g6.xlarge", Capacity::Spot).await;
    buyer.drive(Wanted::Yes, None).await;
    assert_eq!(buyer.claim.phase, Phase::Ended { reason: Reason::QuotaExceeded });
    assert_eq!(billed(&cloud), 0);
}

#[tokio::test]
async fn a_price_that_moves_is_quoted_at_the_next_look() {
    let shop = open(|_| {});
    let spot = |offers: &[Offer]| {
        let of = |offer: &&Offer| {
            (offer.instance_type.as_str(), offer.zone.as_str(), offer.capacity)
                == ("c7i.large", "use2-az1", Capacity::Spot)
        };
        offers.iter().find(of).expect("the offer").price.micros()
    };
    let product = shop.cloud.product("c7i.large", "use2-az1", true).expect("it is sold");
    shop.cloud.engine(|engine| engine.set_spot(product, 41_000));
    shop.hands.forward(1);
    assert_eq!(spot(&shop.offers().await), 41_000);
    shop.cloud.engine(|engine| engine.set_spot(product, 42_000));
    shop.hands.forward(300);
    assert_eq!(spot(&shop.offers().await), 42_000);
}

#[tokio::test]
async fn an_instance_that_is_taken_away_says_so_and_its_volume_goes_with_it() {
    let (cloud, mut buyer) = open(|_| {}).buyer("c7i.large", Capacity::Spot).await;
    buyer.drive(Wanted::Yes, None).await;
    let Phase::Launched { instance, .. } = buyer.claim.phase.clone() else {
        panic!("{:?}", buyer.claim.phase);
    };
    let name = InstanceId(instance.clone());
    buyer.hands.forward(60);
    let seen = buyer.provider.get(&name).await.expect("an answer").expect("it is there");
    assert_eq!((seen.state, seen.trouble), (InstanceState::Running, None));
    let (_, own) = instance.split_once('/').expect("region and id");
    cloud.engine(|engine| engine.evict(own, None)).expect("taken away");
    buyer.hands.forward(300);
    let seen = buyer.provider.get(&name).await.expect("an answer").expect("for an hour");
    assert_eq!(seen.state, InstanceState::Terminated);
    assert_eq!(seen.trouble.map(|it| it.reason), Some(Reason::SpotInterrupted));
    let left = buyer.provider.list(&buyer.identity().installation).await.expect("a list");
    assert!(left.complete && left.instances.iter().all(|one| !one.state.may_bill()));
    assert_eq!(billed(&cloud), 0);
}

#[tokio::test]
async fn a_spot_instance_that_runs_costs_what_the_market_asks_now() {
    let (cloud, mut buyer) = open(|_| {}).buyer("c7i.large", Capacity::Spot).await;
    buyer.drive(Wanted::Yes, None).await;
    let offer = buyer.claim.spec.offer.clone();
    let (provider, installation) = (&buyer.provider, buyer.identity().installation);
    let hourly = async || {
        let quoted = provider.quote().await.expect("offers");
        let now = quoted.into_iter().find(|one| one.id == offer.id).expect("the offer").price;
        let listed = provider.list(&installation).await.expect("a list").instances;
        assert_eq!(listed.iter().map(|one| one.hourly).collect::<Vec<_>>(), [Some(now)]);
        now
    };
    buyer.hands.forward(60);
    assert_eq!(hourly().await, offer.price);
    let product = cloud.product("c7i.large", &offer.zone, true).expect("it is sold");
    cloud.engine(|engine| {
        let price = engine.spot_price(product).expect("a price");
        engine.set_spot(product, price / 2);
    });
    buyer.hands.forward(300);
    assert!(hourly().await < offer.price);
}

/// A case in which the ledger is not what the box bills by these rules, or is told of an end so many
/// seconds too late. The two share no code.
async fn difference(rules: Rules, late: i64) -> Option<String> {
    use Capacity::{OnDemand, Spot};
    // Market, seconds since it was seen to run, whether AWS takes it then, and what is free of it.
    for (capacity, seconds, taken, free) in [
        (Spot, None, false, true),
        (Spot, Some(20), false, false),
        (Spot, Some(61), false, false),
        (Spot, Some(3_599), true, true),
        (Spot, Some(3_600), true, false),
        (Spot, Some(3_601), false, false),
        (Spot, Some(9_999), true, false),
        (OnDemand, None, false, true),
        (OnDemand, Some(20), false, false),
        (OnDemand, Some(7_201), false, false),
    ] {
        let told = format!("{capacity} {seconds:?} {taken}");
        let at_once = |setup: &mut Setup| {
            setup.pace.wind_down = std::time::Duration::ZERO;
            setup.rules = rules;
        };
        let with_disk =
            |config| AwsConfig { disk_gb: 77, disk_micros_per_gb_month: 80_000, ..config };
        let (cloud, mut buyer) = open_with(at_once, with_disk).buyer("c7i.large", capacity).await;
        let offer = buyer.claim.spec.offer.clone();
        let from = buyer.hands.now();
        buyer.drive(Wanted::Yes, None).await;
        let Phase::Launched { instance, .. } = buyer.claim.phase.clone() else {
            panic!("{told}: {:?}", buyer.claim.phase);
        };
        let (_, own) = instance.split_once('/').expect("region and id");
        let name = InstanceId(instance.clone());
        // It can be seen, and still comes up.
        buyer.hands.forward(3);
        let look = || async { buyer.provider.get(&name).await.expect("an answer").expect("it") };
        while look().await.state == InstanceState::Pending && seconds.is_some() {
            buyer.hands.forward(1);
        }
        // The market moves in between, but not beyond what is paid at most.
        let price = cloud.product("c7i.large", &offer.zone, true).map(|product| {
            (product, cloud.engine(|engine| engine.spot_price(product)).expect("a price"))
        });
        for part in 1..=3 {
            buyer.hands.forward(seconds.unwrap_or(0) / 3);
            if let Some((product, price)) = price {
                cloud.engine(|engine| engine.set_spot(product, price - part * price / 10));
            }
        }
        buyer.hands.forward(seconds.unwrap_or(0) % 3);
        match taken {
            true => cloud.engine(|engine| engine.evict(own, None)).expect("taken away"),
            false => buyer.provider.terminate(&name).await.expect("ended"),
        }
        // Whenever somebody looks.
        buyer.hands.forward(400);
        let seen = look().await;
        let until = seen.ended.unwrap_or_else(|| panic!("{told}: when? {seen:?}"));
        let until = until + SignedDuration::from_secs(late);
        let (running, over) = (None, true);
        let used = Used { instance: &name, offer: &offer, from, running, until, taken, over };
        let booked = buyer.provider.billed(used).await.expect("an amount").micros();
        let (billed, of_it) = cloud.engine(|engine| {
            let invoice = engine.invoice();
            (invoice.total(), invoice.by_machine().get(own).copied().unwrap_or_default())
        });
        if (booked, of_it == 0) != (billed, free) {
            return Some(format!("{told}: booked {booked}, billed {billed}, {of_it} for itself"));
        }
    }
    None
}

#[tokio::test]
async fn what_is_booked_is_what_the_box_bills_by_each_of_its_rules() {
    assert_eq!(difference(Rules::EC2_LINUX, 0).await, None);
}

/// What either of them changes by itself is red above.
#[tokio::test]
async fn a_bill_by_another_rule_or_a_ledger_that_is_a_second_off_is_seen() {
    let rules = Rules::EC2_LINUX;
    for other in [
        Rules { minimum_seconds: rules.minimum_seconds + 1, ..rules },
        Rules { spot_costs_the_bid: true, ..rules },
        Rules { billed_once_it_runs: false, ..rules },
        Rules { first_hour_free_if_evicted: false, ..rules },
        Rules { volume_running: rules.volume_running + 1_000, ..rules },
    ] {
        assert!(difference(other, 0).await.is_some(), "nobody sees {other:?}");
    }
    for late in [-1, 1] {
        assert!(difference(rules, late).await.is_some(), "nobody sees {late} s");
    }
}

#[tokio::test]
async fn whoever_comes_after_a_restart_books_from_when_it_was_written_down_that_it_runs() {
    let at_once = |setup: &mut Setup| setup.pace.wind_down = std::time::Duration::ZERO;
    let with_disk = |config| AwsConfig { disk_gb: 77, disk_micros_per_gb_month: 80_000, ..config };
    for capacity in [Capacity::Spot, Capacity::OnDemand] {
        let (cloud, mut buyer) = open_with(at_once, with_disk).buyer("c7i.large", capacity).await;
        let (offer, from) = (buyer.claim.spec.offer.clone(), buyer.hands.now());
        buyer.drive(Wanted::Yes, None).await;
        let Phase::Launched { instance, .. } = buyer.claim.phase.clone() else {
            panic!("{:?}", buyer.claim.phase);
        };
        let name = InstanceId(instance);
        let seen_by = async |by: &dyn Provider| by.get(&name).await.expect("seen").expect("it");
        buyer.hands.forward(3);
        let mut seen = seen_by(buyer.provider.as_ref()).await;
        while seen.state == InstanceState::Pending {
            assert_eq!(seen.running, None);
            buyer.hands.forward(1);
            seen = seen_by(buyer.provider.as_ref()).await;
        }
        let running = seen.running;
        assert!(running.is_some_and(|since| since > from), "{running:?}");

        // Another process: it finds an instance that has been running for long.
        buyer.hands.forward(5_000);
        let access = Access::Keys(AwsKeys::new(KEY, SECRET, None));
        let by = buyer.hands.clone();
        let settings = with_disk(AwsConfig { access, ..config(&cloud.url()) });
        let later = Aws::new(settings).expect("settings").by_clock(move || by.now());
        seen_by(&later).await;
        later.terminate(&name).await.expect("ended");
        buyer.hands.forward(400);
        let until = seen_by(&later).await.ended.expect("when it ended");
        let booked = async |running| {
            let (taken, over) = (false, true);
            let used = Used { instance: &name, offer: &offer, from, running, until, taken, over };
            later.billed(used).await.expect("an amount").micros()
        };
        let billed = cloud.engine(|engine| engine.invoice().total());
        assert_eq!(booked(running).await, billed, "{capacity}");
        assert!(booked(None).await > billed, "{capacity}: what nobody has seen is booked in full");
    }
}

#[tokio::test]
async fn a_region_in_which_nothing_is_bought_any_more_is_looked_through_all_the_same() {
    let (cloud, mut buyer) = open(|_| {}).buyer("c7i.large", Capacity::Spot).await;
    buyer.drive(Wanted::Yes, None).await;
    let Phase::Launched { instance, .. } = buyer.claim.phase.clone() else {
        panic!("{:?}", buyer.claim.phase);
    };
    let (there, _) = instance.split_once('/').expect("region and id");
    let here = if there == "us-east-1" { "us-east-2" } else { "us-east-1" };
    let anew = |former: &[&str]| {
        let regions = AwsConfig::new("aws", Access::Role, &[here]).regions;
        let former = former.iter().map(|name| (*name).to_owned()).collect();
        let access = Access::Keys(AwsKeys::new(KEY, SECRET, None));
        let types = vec!["c7i".into()];
        let by = buyer.hands.clone();
        let settings = AwsConfig { access, regions, former, types, ..config(&cloud.url()) };
        Aws::new(settings).expect("settings").by_clock(move || by.now())
    };
    let identity = buyer.identity();
    let seen = |provider: Aws| {
        let (identity, installation) = (identity.clone(), identity.installation.clone());
        async move {
            let listed = provider.list(&installation).await.expect("a list");
            let found = provider.find(&identity).await.expect("a list");
            let quoted = provider.quote().await.expect("offers");
            assert!(quoted.iter().all(|offer| offer.region == here), "bought elsewhere");
            assert!(listed.complete && found.complete);
            let ids = [listed, found].map(|it| it.instances.into_iter().map(|one| one.id.0));
            ids.map(Iterator::collect::<Vec<_>>)
        }
    };
    buyer.hands.forward(30);
    assert_eq!(seen(anew(&[])).await, [const { Vec::<String>::new() }; 2], "nobody looks there");
    // Named twice it is looked at once.
    assert_eq!(seen(anew(&[there, here])).await, [vec![instance.clone()], vec![instance.clone()]]);
    anew(&[there]).terminate(&InstanceId(instance)).await.expect("ended");
    buyer.hands.forward(600);
    assert_eq!(billed(&cloud), 0);
}

#[tokio::test]
async fn a_key_that_signs_wrongly_is_refused_and_not_told() {
    let shop = open(|_| {});
    let access = Access::Keys(AwsKeys::new(KEY, "another canary", None));
    let settings = AwsConfig { access, ..config(&shop.cloud.url()) };
    let error = Aws::new(settings).expect("settings").quote().await.expect_err("refused");
    assert_eq!(error.reason(), Reason::Unauthorized, "{error}");
    assert!(!format!("{error:?}").contains("canary"), "{error:?}");
}
