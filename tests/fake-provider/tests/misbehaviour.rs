//! The cloud itself is tested: that it keeps its manners, that every way to
//! misbehave does what its name says, and that the provider that buys in it
//! reads each answer right.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::{FrozenRequest, Identity, LaunchAnswer, Refusal};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, Sale};
use petaflop_fake_provider::cloud::Setup;
use petaflop_fake_provider::{
    AgentEnd, AgentRunner, Boot, Cloud, FakeProvider, Fault, Foreign, Kind, Manners, agent,
};
use petaflop_providers::machine::{AgentSource, Bootstrap};
use petaflop_providers::{
    EnrolmentToken, Instance, InstanceId, InstanceState, LaunchError, Listing, Machine, Order,
    Provider, ProviderError, Work,
};

/// A cloud, the clock it runs on, and a provider that buys there.
struct World {
    cloud: Cloud,
    clock: Clock,
    provider: FakeProvider,
    offer: Offer,
    _folder: tempfile::TempDir,
}

impl World {
    fn new(manners: Manners) -> Self {
        Self::with(manners, agent::silent())
    }

    fn with(manners: Manners, agent: AgentRunner) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let clock = Clock::manual(Timestamp::from_second(1_800_000_000).expect("in range"));
        let offer = offer("3.6");
        let setup = Setup {
            manners,
            clock: clock.clone(),
            offers: vec![offer.clone()],
            agent,
            bill: folder.path().join("bill"),
        };
        let cloud = Cloud::start(setup).expect("a cloud");
        let provider = cloud.provider("fake");
        Self { cloud, clock, provider, offer, _folder: folder }
    }

    async fn prepared(&self, identity: &Identity) -> FrozenRequest {
        let machine = machine();
        let order = Order { identity, offer: &self.offer, work: Work::Machine(&machine) };
        self.provider.prepare(order).await.expect("prepared")
    }

    async fn launch(&self, identity: &Identity) -> Result<InstanceId, LaunchError> {
        self.provider.launch(&self.prepared(identity).await, &token()).await
    }

    async fn find(&self, identity: &Identity) -> Listing {
        self.provider.find(identity).await.expect("a listing")
    }

    async fn state(&self, id: &InstanceId) -> Option<InstanceState> {
        self.provider.get(id).await.expect("an answer").map(|instance| instance.state)
    }

    /// Moves the clock, and lets what wakes run.
    async fn pass(&self, duration: Duration) {
        // First what is on its way: a sleep counts from when it begins.
        self.cloud.settle().await;
        self.clock.advance(duration);
        self.cloud.settle().await;
    }
}

fn token() -> EnrolmentToken {
    EnrolmentToken::new("token")
}

fn identity(uid: &str) -> Identity {
    Identity {
        installation: "0c0ffee0-0000-4000-8000-000000000001".into(),
        namespace: "default".into(),
        claim: format!("trj-a-12345678-1-{uid}"),
        claim_uid: uid.into(),
        attempt: 1,
    }
}

fn offer(price: &str) -> Offer {
    Offer {
        id: Offer::id_of("fake", "r", "z", "big", Capacity::OnDemand),
        provider: "fake".into(),
        region: "r".into(),
        zone: "z".into(),
        instance_type: "big".into(),
        accelerators: None,
        arch: Arch::X86_64,
        vcpu_milli: Some(8000),
        memory: Some(32 << 30),
        capacity: Capacity::OnDemand,
        price: price.parse().expect("a price"),
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

fn machine() -> Machine {
    Machine {
        image: "example.org/job:1".into(),
        agent: AgentSource::Image("example.org/agent:1".into()),
        bootstrap: Bootstrap { operator_key: "key".into(), endpoint: None, port: 7443 },
        cpu_millis: 1000,
        memory: 1 << 30,
        ephemeral: None,
        ports: Vec::new(),
        service_account: None,
        image_pull_secrets: Vec::new(),
        volumes: Vec::new(),
        grace_seconds: 5,
        labels: Default::default(),
    }
}

fn refusal(answer: Result<InstanceId, LaunchError>) -> Refusal {
    let told = answer.as_ref().err().map(LaunchError::answer);
    let Some(LaunchAnswer::Refused(kind)) = told else { panic!("not a refusal: {answer:?}") };
    kind
}

fn is_ambiguous(answer: &Result<InstanceId, LaunchError>) -> bool {
    matches!(answer, Err(LaunchError::Ambiguous { .. }))
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_machine_lives_and_bills_from_creating_to_being_really_gone() {
    let world = World::new(Manners::aws());
    let quoted = world.provider.quote().await.expect("offers");
    assert_eq!(quoted[0].quoted_at, world.cloud.now());
    let id = world.launch(&identity("a")).await.expect("launched");
    assert_eq!(world.state(&id).await, Some(InstanceState::Pending));
    world.pass(Duration::from_secs(20)).await;
    assert_eq!(world.state(&id).await, Some(InstanceState::Running));
    world.pass(Duration::from_secs(80)).await;
    world.provider.terminate(&id).await.expect("told to end");
    assert_eq!(world.state(&id).await, Some(InstanceState::Terminating));
    assert_eq!(world.cloud.billed_now().len(), 1);
    world.pass(Duration::from_secs(5)).await;
    assert_eq!(world.state(&id).await, Some(InstanceState::Terminated));
    assert_eq!(world.cloud.billed_now(), []);
    world.provider.terminate(&id).await.expect("ending what is gone succeeds");
    // 105 s at 3.6 $ an hour, a tenth of a cent a second.
    let identity_text = petaflop_providers::provider::identity_text(&identity("a"));
    world.pass(Duration::from_secs(1000)).await;
    assert_eq!(world.cloud.micros_by_identity()[&identity_text], 105_000);
}

#[tokio::test]
async fn the_wall_clock_of_others_does_not_move_the_bill() {
    let world = World::new(Manners::runpod());
    world.launch(&identity("a")).await.expect("launched");
    world.clock.step_wall(jiff::SignedDuration::from_hours(5));
    world.pass(SECOND * 2).await;
    assert_eq!(world.cloud.micros_by_identity().into_values().collect::<Vec<_>>(), [2_000]);
}

#[tokio::test]
async fn the_same_token_is_the_same_machine_where_the_cloud_has_manners_for_it() {
    let world = World::new(Manners::aws());
    let first = world.launch(&identity("a")).await.expect("launched");
    assert_eq!(world.launch(&identity("a")).await, Ok(first.clone()));
    assert_eq!(world.cloud.created(), 1);
    // The same token with other bytes: it exists, and must be found.
    let other = world
        .provider
        .launch(&world.prepared(&identity("a")).await, &EnrolmentToken::new("other"))
        .await;
    assert!(is_ambiguous(&other), "{other:?}");
    assert_eq!(world.find(&identity("a")).await.instances[0].id, first);
    assert_eq!(world.cloud.created(), 1);
}

#[tokio::test]
async fn without_such_manners_creating_twice_makes_two() {
    let world = World::new(Manners::runpod());
    let first = world.launch(&identity("a")).await.expect("launched");
    let second = world.launch(&identity("a")).await.expect("launched");
    assert_ne!(first, second);
    assert_eq!(world.find(&identity("a")).await.instances.len(), 2);
    assert_eq!(world.cloud.machines_of("a"), [first.0, second.0]);
}

#[tokio::test]
async fn a_lost_answer_is_never_taken_for_a_no() {
    for fault in [Fault::CreatedBut500, Fault::LostAnswer] {
        let world = World::new(Manners::runpod());
        world.cloud.misbehave_after(Kind::Create, 0, fault);
        let answer = world.launch(&identity("a")).await;
        assert!(is_ambiguous(&answer), "{}: {answer:?}", fault.name());
        assert_eq!(world.find(&identity("a")).await.instances.len(), 1, "{}", fault.name());
    }
    for fault in [Fault::LostRequest, Fault::ServerError] {
        let world = World::new(Manners::runpod());
        world.cloud.misbehave_after(Kind::Create, 0, fault);
        let answer = world.launch(&identity("a")).await;
        assert!(is_ambiguous(&answer), "{}: {answer:?}", fault.name());
        assert_eq!(world.cloud.created(), 0, "{}", fault.name());
    }
}

#[tokio::test]
async fn an_answer_that_comes_too_late_is_a_doubt() {
    let world = World::new(Manners::runpod());
    world.cloud.misbehave_after(Kind::Create, 0, Fault::SlowAnswer(Duration::from_secs(20)));
    let identity = identity("a");
    let launch = world.launch(&identity);
    let time = async {
        while world.cloud.created() == 0 {
            tokio::task::yield_now().await;
        }
        world.pass(Duration::from_secs(11)).await;
    };
    let (answer, ()) = futures::future::join(launch, time).await;
    assert!(is_ambiguous(&answer), "{answer:?}");
    assert_eq!(world.cloud.created(), 1);
}

#[tokio::test]
async fn each_no_is_told_in_the_style_of_the_cloud_and_understood() {
    use Refusal::{
        BalanceTooLow, Invalid, NoCapacity, PriceChanged, Quota, RateLimited, Retired, Unauthorized,
    };
    for manners in [Manners::aws(), Manners::runpod()] {
        let world = World::new(manners);
        for (fault, kind) in [
            (Fault::NoCapacity, NoCapacity),
            (Fault::RuleBroken, Invalid),
            (Fault::Quota, Quota),
            (Fault::BalanceTooLow, BalanceTooLow),
            (Fault::Unauthorized, Unauthorized),
            (Fault::RateLimited(7), RateLimited),
            (Fault::Retired, Retired),
            (Fault::PriceChangedAtLaunch(50), PriceChanged),
        ] {
            world.cloud.misbehave_after(Kind::Create, 0, fault);
            assert_eq!(refusal(world.launch(&identity("a")).await), kind, "{fault:?} {manners:?}");
        }
        world.pass(Duration::from_secs(10)).await;
        assert_eq!(world.cloud.billed_now(), [], "a machine that cost too much was kept");
    }
}

#[tokio::test]
async fn other_calls_say_when_to_try_again() {
    let world = World::new(Manners::runpod());
    let list = || world.provider.list("0c0ffee0-0000-4000-8000-000000000001");
    world.cloud.misbehave(Fault::RateLimited(7));
    let answer = list().await.expect_err("refused");
    assert!(matches!(answer, ProviderError::RateLimited { wait, .. } if wait == SECOND * 7));
    world.cloud.behave("rate-limited");
    world.cloud.misbehave(Fault::Retired);
    assert!(matches!(list().await, Err(ProviderError::Retired { .. })));
    let gone = world.provider.get(&InstanceId("i-00000001".into())).await;
    assert!(matches!(gone, Err(ProviderError::Retired { .. })), "410 is not 'no such machine'");
    world.cloud.behave_entirely();
    world.cloud.misbehave(Fault::Unauthorized);
    assert!(matches!(list().await, Err(ProviderError::Unauthorized { .. })));
    world.cloud.behave_entirely();
    world.cloud.misbehave(Fault::LostAnswer);
    assert!(matches!(list().await, Err(ProviderError::Unreachable { .. })));
}

#[tokio::test]
async fn a_newborn_is_in_no_list_for_a_while() {
    let world = World::new(Manners::aws());
    world.cloud.misbehave(Fault::ListingLag(Duration::from_secs(10)));
    let id = world.launch(&identity("a")).await.expect("launched");
    assert_eq!(world.state(&id).await, None);
    let young = world.find(&identity("a")).await;
    assert_eq!((young.instances.len(), young.complete), (0, true), "it lies, and says it is all");
    world.pass(Duration::from_secs(10)).await;
    assert_eq!(world.find(&identity("a")).await.instances.len(), 1);
}

#[tokio::test]
async fn a_stale_list_shows_what_was() {
    let world = World::new(Manners::runpod());
    let first = world.launch(&identity("a")).await.expect("launched");
    world.cloud.misbehave(Fault::StaleListing);
    world.provider.terminate(&first).await.expect("ended");
    world.launch(&identity("b")).await.expect("launched");
    assert_eq!(world.find(&identity("a")).await.instances.len(), 1);
    assert_eq!(world.find(&identity("b")).await.instances.len(), 0);
    world.cloud.behave("stale-listing");
    assert_eq!(world.find(&identity("a")).await.instances.len(), 0);
}

#[tokio::test]
async fn a_list_that_breaks_off_is_never_complete() {
    let mut manners = Manners::aws();
    manners.page = 2;
    let world = World::new(manners);
    let installation = identity("").installation;
    for uid in ["a", "b", "c", "d", "e"] {
        world.launch(&identity(uid)).await.expect("launched");
    }
    let whole = world.provider.list(&installation).await.expect("a listing");
    assert_eq!((whole.instances.len(), whole.complete), (5, true));
    for fault in [Fault::PartialPage, Fault::ErrorMidList, Fault::RepeatedCursor] {
        world.cloud.misbehave_after(Kind::List, 0, fault);
        let listing = world.provider.list(&installation).await.expect("a listing");
        assert!(!listing.complete, "{}", fault.name());
        assert!(listing.instances.len() < 5, "{}", fault.name());
    }
    // A list of nothing can break off too.
    let empty = World::new(manners);
    for fault in [Fault::PartialPage, Fault::ErrorMidList, Fault::RepeatedCursor] {
        empty.cloud.misbehave_after(Kind::List, 0, fault);
        let listing = empty.provider.list(&installation).await.expect("a listing");
        assert!(!listing.complete, "{}", fault.name());
    }
}

#[tokio::test]
async fn an_end_that_did_not_happen_shows_in_the_next_look() {
    let world = World::new(Manners::runpod());
    let id = world.launch(&identity("a")).await.expect("launched");
    world.pass(Duration::from_secs(10)).await;
    for fault in [Fault::TerminateIgnored, Fault::TerminateNotFound] {
        world.cloud.misbehave(fault);
        world.provider.terminate(&id).await.expect("the cloud says that it is done");
        assert_eq!(world.state(&id).await, Some(InstanceState::Running), "{}", fault.name());
        world.cloud.behave_entirely();
    }
    world.cloud.misbehave(Fault::TerminateForbidden);
    let forbidden = world.provider.terminate(&id).await;
    assert!(matches!(forbidden, Err(ProviderError::Unauthorized { .. })), "{forbidden:?}");
    world.cloud.behave_entirely();
    world.provider.terminate(&id).await.expect("ended");
    assert_eq!(world.state(&id).await, None);
}

#[tokio::test]
async fn what_stays_behind_bills_until_it_is_ended_too() {
    let world = World::new(Manners::runpod());
    world.cloud.misbehave_after(Kind::Create, 0, Fault::VolumeLeftBehind);
    let id = world.launch(&identity("a")).await.expect("launched");
    world.cloud.interrupt(&id.0, None);
    let left = world.find(&identity("a")).await;
    assert_eq!(left.instances[0].state, InstanceState::Terminating, "it is not gone");
    assert_eq!(world.cloud.billed_now()[0].id, format!("{id}/volume"));
    world.provider.terminate(&id).await.expect("ended");
    assert_eq!(world.cloud.billed_now(), []);
    assert_eq!(world.find(&identity("a")).await.instances, []);
}

#[tokio::test]
async fn an_open_spot_request_makes_another_machine() {
    let world = World::new(Manners::aws());
    world.cloud.misbehave_after(Kind::Create, 0, Fault::SpotRequestLeftBehind);
    let id = world.launch(&identity("a")).await.expect("launched");
    world.provider.terminate(&id).await.expect("the request is cancelled with it");
    world.pass(Duration::from_secs(100)).await;
    world.pass(Duration::from_secs(100)).await;
    assert_eq!(world.cloud.created(), 1);

    world.cloud.misbehave_after(Kind::Create, 0, Fault::SpotRequestLeftBehind);
    let id = world.launch(&identity("b")).await.expect("launched");
    world.cloud.interrupt(&id.0, Some(SECOND));
    world.cloud.settle().await;
    world.pass(SECOND).await;
    world.pass(Duration::from_secs(60)).await;
    assert_eq!(world.cloud.machines_of("b").len(), 2, "taken away, and made again by itself");
}

#[tokio::test]
async fn strangers_are_in_the_account_and_in_no_list_of_ours() {
    let world = World::new(Manners::aws());
    world.cloud.plant(Foreign::Untagged);
    let theirs = Identity { installation: "another".into(), ..identity("x") };
    let id = world.cloud.plant(Foreign::Tagged(theirs));
    let ours = world.provider.list(&identity("").installation).await.expect("a listing");
    assert_eq!((ours.instances.len(), ours.complete), (0, true));
    assert!(world.provider.get(&InstanceId(id)).await.expect("an answer").is_some());
    assert_eq!(world.cloud.billed_now().len(), 2);
}

#[tokio::test]
async fn prices_walk_alike_for_the_same_seed() {
    let walk = async |seed| {
        let world = World::new(Manners::aws());
        world.cloud.walk_prices(seed, 10);
        let mut prices = Vec::new();
        for _ in 0..5 {
            prices.push(world.provider.quote().await.expect("offers")[0].price);
        }
        prices
    };
    let first = walk(7).await;
    assert_eq!(walk(7).await, first);
    assert_ne!(walk(8).await, first);
    assert!(first.windows(2).any(|pair| pair[0] != pair[1]), "{first:?}");
    let world = World::new(Manners::aws());
    world.cloud.set_price(&world.offer.id, UsdPerHour::from_micros(9_000_000).expect("a price"));
    assert_eq!(refusal(world.launch(&identity("a")).await), Refusal::PriceChanged);
    world.cloud.withdraw(&world.offer.id);
    assert_eq!(refusal(world.launch(&identity("a")).await), Refusal::NoCapacity);
}

/// An agent that says where it is, and ends its machine when told that it is taken away.
fn scripted() -> AgentRunner {
    Arc::new(|boot: Boot| {
        Box::pin(async move {
            assert_eq!(boot.env["PETAFLOP_TOKEN"], "token");
            boot.reachable_at("127.0.0.1:7443".parse().expect("an address"));
            let mut notice = boot.notice.clone();
            let told = notice.wait_for(Option::is_some).await.is_ok();
            if !told {
                std::future::pending::<()>().await;
            }
            AgentEnd::MachineEnded { code: 143 }
        })
    })
}

async fn seen(world: &World, id: &InstanceId) -> Instance {
    world.provider.get(id).await.expect("an answer").expect("it is there")
}

#[tokio::test]
async fn an_agent_runs_on_the_machine_and_hears_of_the_notice() {
    let world = World::with(Manners::aws(), scripted());
    let id = world.launch(&identity("a")).await.expect("launched");
    assert_eq!(seen(&world, &id).await.endpoint, None);
    world.pass(Duration::from_secs(20)).await;
    assert_eq!(seen(&world, &id).await.endpoint.as_deref(), Some("127.0.0.1:7443"));
    world.cloud.interrupt(&id.0, Some(Duration::from_secs(120)));
    world.cloud.settle().await;
    let ended = seen(&world, &id).await;
    assert_eq!(ended.state, InstanceState::Terminated, "the agent ended it before the time");
    assert_eq!(ended.exit.map(|exit| exit.code), Some(143));
    assert_eq!(ended.trouble, None);
}

#[tokio::test]
async fn a_machine_is_taken_away_after_the_notice_or_without_one() {
    let world = World::new(Manners::aws());
    let (told, untold) = (world.launch(&identity("a")).await, world.launch(&identity("b")).await);
    let (told, untold) = (told.expect("launched"), untold.expect("launched"));
    world.pass(Duration::from_secs(20)).await;
    world.cloud.interrupt(&told.0, Some(Duration::from_secs(120)));
    world.cloud.interrupt(&untold.0, None);
    world.cloud.settle().await;
    assert_eq!(world.state(&told).await, Some(InstanceState::Running));
    let lost = seen(&world, &untold).await;
    assert_eq!(lost.state, InstanceState::Terminated);
    assert!(lost.trouble.is_some_and(|t| t.message.contains("SpotInstanceTermination")));
    world.pass(Duration::from_secs(120)).await;
    assert_eq!(world.state(&told).await, Some(InstanceState::Terminated));
}

#[tokio::test]
async fn a_machine_on_which_nothing_starts_bills_all_the_same() {
    let world = World::with(Manners::runpod(), scripted());
    world.cloud.misbehave_after(Kind::Create, 0, Fault::NeverStarts);
    let id = world.launch(&identity("a")).await.expect("launched");
    world.pass(Duration::from_secs(600)).await;
    let silent = seen(&world, &id).await;
    assert_eq!((silent.state, silent.endpoint), (InstanceState::Running, None));
    assert_eq!(world.cloud.billed_now().len(), 1);
}

#[tokio::test]
async fn work_that_just_ends_leaves_its_machine_billing() {
    let exits: AgentRunner =
        Arc::new(|_| Box::pin(std::future::ready(AgentEnd::Exited { code: 3 })));
    let world = World::with(Manners::runpod(), exits);
    let id = world.launch(&identity("a")).await.expect("launched");
    world.pass(Duration::from_secs(10)).await;
    let ended = seen(&world, &id).await;
    assert!(ended.state.may_bill());
    assert_eq!(ended.exit, None, "this cloud does not tell");
    assert!(ended.trouble.is_some_and(|t| t.message.contains("EXITED")));
}

#[tokio::test]
async fn every_call_is_counted_and_faults_hit_the_call_they_name() {
    let world = World::new(Manners::runpod());
    world.cloud.misbehave_in_call(2, Fault::ServerError);
    world.provider.quote().await.expect("offers");
    assert!(is_ambiguous(&world.launch(&identity("a")).await));
    world.launch(&identity("a")).await.expect("launched");
    let calls = world.cloud.calls();
    let kinds: Vec<_> = calls.iter().map(|call| (call.sequence, call.kind, call.status)).collect();
    assert_eq!(
        kinds,
        [(1, Kind::Quote, Some(200)), (2, Kind::Create, Some(500)), (3, Kind::Create, Some(201))]
    );
    assert_eq!(calls[1].faults, ["server-error"]);
    assert!(calls[2].subject.ends_with("/a/1"), "{}", calls[2].subject);
}

#[tokio::test]
async fn machines_outlive_whoever_bought_them() {
    let world = World::new(Manners::aws());
    let provider = world.provider.clone();
    let request = world.prepared(&identity("a")).await;
    // A buyer that dies with its whole runtime, right after the call.
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async { provider.launch(&request, &token()).await })
    })
    .join()
    .expect("it ran")
    .expect("launched");
    world.pass(Duration::from_secs(20)).await;
    let found = world.find(&identity("a")).await;
    assert_eq!(found.instances[0].state, InstanceState::Running);
}
