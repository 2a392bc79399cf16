//! One purchase: what is sent, once, and what each answer means.

use petaflop_arbiter::claim::{Identity, LaunchAnswer, Refusal};
use petaflop_arbiter::offer::Capacity;
use petaflop_providers::aws::AwsConfig;
use petaflop_providers::{EnrolmentToken, LaunchError, Order, Provider, Work};

use super::account::{Account, Create, State, user_data};
use super::{SECRET, SESSION, TOKEN, client, config, identity, machine, offer};

async fn buy(provider: &dyn Provider, capacity: Capacity) -> Result<String, LaunchError> {
    let (identity, machine) = (identity(), machine());
    let offer = offer(provider, capacity).await;
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = provider.prepare(order).await?;
    assert!(!request.body.contains("canary"), "{}", request.body);
    provider.launch(&request, &EnrolmentToken::new(TOKEN)).await.map(|id| id.0)
}

#[tokio::test]
async fn a_spot_instance_is_asked_for_with_all_that_keeps_it_from_leaking() {
    let account = Account::open(State::default()).await;
    let settings = AwsConfig {
        instance_profile: Some("petaflop-work".into()),
        ..config(&account.server.base)
    };
    let (provider, _) = client(settings);
    assert_eq!(buy(&provider, Capacity::Spot).await.expect("bought"), "us-east-1/i-0001");
    let form = account.asked("RunInstances").remove(0);
    let text = |key: &str| form.get(key).map_or("", String::as_str).to_owned();
    for (key, value) in [
        ("ImageId", "ami-0123"),
        ("InstanceType", "g6.xlarge"),
        ("MinCount", "1"),
        ("MaxCount", "1"),
        ("SubnetId", "subnet-1"),
        ("InstanceMarketOptions.MarketType", "spot"),
        ("InstanceMarketOptions.SpotOptions.SpotInstanceType", "one-time"),
        ("InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior", "terminate"),
        ("InstanceMarketOptions.SpotOptions.MaxPrice", "0.48"),
        ("InstanceInitiatedShutdownBehavior", "terminate"),
        ("MetadataOptions.HttpTokens", "required"),
        ("MetadataOptions.HttpPutResponseHopLimit", "2"),
        ("BlockDeviceMapping.1.DeviceName", "/dev/xvda"),
        ("BlockDeviceMapping.1.Ebs.DeleteOnTermination", "true"),
        ("BlockDeviceMapping.1.Ebs.VolumeSize", "100"),
        ("IamInstanceProfile.Name", "petaflop-work"),
        ("TagSpecification.1.ResourceType", "instance"),
        ("TagSpecification.2.ResourceType", "volume"),
        ("TagSpecification.3.ResourceType", "spot-instances-request"),
        ("ClientToken", identity().token().as_str()),
    ] {
        assert_eq!(text(key), value, "{key}");
    }
    let script = user_data(&form);
    assert!(script.starts_with("#!/bin/sh"));
    assert!(script.contains(&format!("PETAFLOP_TOKEN={TOKEN}\n")));
    // But for the token, which is good for one use, no secret goes there.
    assert!(!script.contains(SECRET) && !script.contains(SESSION));
    let all = account.server.calls();
    assert!(all.iter().all(|call| !call.body.contains(SECRET)), "a key was sent");
}

#[tokio::test]
async fn token_tags_and_user_data_stay_within_what_aws_takes() {
    let account = Account::open(State::default()).await;
    let (provider, _) = client(config(&account.server.base));
    // As long as the API lets anything be called.
    let identity = Identity {
        namespace: "n".repeat(63),
        claim: format!("trj-{}", "c".repeat(249)),
        attempt: u32::MAX,
        ..identity()
    };
    let (offer, machine) = (offer(&provider, Capacity::Spot).await, machine());
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = provider.prepare(order).await.expect("a request");
    provider.launch(&request, &EnrolmentToken::new(TOKEN)).await.expect("bought");
    let form = account.asked("RunInstances").remove(0);
    let token = &form["ClientToken"];
    assert!(token.is_ascii() && (1..=64).contains(&token.len()), "{token}");
    let tags = |end: &'static str| {
        form.iter().filter(move |(key, _)| key.contains(".Tag.") && key.ends_with(end))
    };
    assert!(tags(".Key").all(|(_, key)| key.len() <= 128 && !key.starts_with("aws:")));
    assert!(tags(".Value").all(|(_, value)| value.len() <= 256));
    assert!(tags(".Key").count() <= 50 * 3);
    assert!(user_data(&form).len() <= 16 << 10);
    assert_eq!(account.asked("CreateTags").len(), 0, "never after");
}

#[tokio::test]
async fn an_on_demand_instance_has_no_market_and_ends_the_same_way() {
    let account = Account::open(State::default()).await;
    let (provider, _) = client(config(&account.server.base));
    buy(&provider, Capacity::OnDemand).await.expect("bought");
    let form = account.asked("RunInstances").remove(0);
    assert!(form.keys().all(|key| !key.starts_with("InstanceMarketOptions")));
    assert_eq!(form["InstanceInitiatedShutdownBehavior"], "terminate");
}

#[tokio::test]
async fn each_answer_to_a_purchase_is_a_no_or_a_doubt_and_is_asked_for_once() {
    for (create, kind) in [
        (Create::Refused(500, "InsufficientInstanceCapacity"), Some(Refusal::NoCapacity)),
        (Create::Refused(400, "Unsupported"), Some(Refusal::NoCapacity)),
        (Create::Refused(400, "SpotMaxPriceTooLow"), Some(Refusal::PriceChanged)),
        (Create::Refused(400, "MaxSpotInstanceCountExceeded"), Some(Refusal::Quota)),
        (Create::Refused(400, "VcpuLimitExceeded"), Some(Refusal::Quota)),
        (Create::Refused(503, "RequestLimitExceeded"), Some(Refusal::RateLimited)),
        (Create::Refused(400, "InsufficientFreeAddressesInSubnet"), Some(Refusal::Transient)),
        (Create::Refused(403, "UnauthorizedOperation"), Some(Refusal::Unauthorized)),
        (Create::Refused(400, "ExpiredToken"), Some(Refusal::Unauthorized)),
        (Create::Refused(400, "InvalidAMIID.NotFound"), Some(Refusal::Invalid)),
        (Create::Refused(500, "InternalError"), None),
        (Create::MadeBut(500, "InternalError"), None),
        (Create::MadeBut(503, "Unavailable"), None),
        (Create::Lost, None),
        (Create::MadeButLost, None),
    ] {
        let account = Account::open(State { creates: vec![create], ..State::default() }).await;
        let (provider, _) = client(config(&account.server.base));
        let error = buy(&provider, Capacity::Spot).await.expect_err("refused");
        let expected = kind.map_or(LaunchAnswer::Unclear, LaunchAnswer::Refused);
        assert_eq!(error.answer(), expected, "{create:?}");
        assert_eq!(account.asked("RunInstances").len(), 1, "{create:?}: repeated");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn the_same_request_again_is_the_same_instance() {
    let account = Account::open(State::default()).await;
    let (provider, _) = client(config(&account.server.base));
    let (identity, machine) = (identity(), machine());
    let offer = offer(&provider, Capacity::Spot).await;
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = provider.prepare(order).await.expect("a request");
    let token = EnrolmentToken::new(TOKEN);
    let first = provider.launch(&request, &token).await.expect("bought");
    // Another program, with the same frozen bytes.
    let (again, _) = client(config(&account.server.base));
    assert_eq!(again.launch(&request, &token).await.expect("the same"), first);
    assert_eq!(account.state().made.len(), 1);
    // The same token with other bytes: it exists, find it.
    let other = EnrolmentToken::new("other");
    let error = again.launch(&request, &other).await.expect_err("a mismatch");
    assert!(matches!(error, LaunchError::Ambiguous { .. }), "{error:?}");
    assert!(provider.capabilities().launch_safety.idempotent);
}

#[tokio::test]
async fn what_was_refused_is_not_offered_for_a_while() {
    let zones = |offers: &[petaflop_arbiter::offer::Offer]| -> Vec<String> {
        let spot = offers.iter().filter(|offer| offer.capacity == Capacity::Spot);
        spot.map(|offer| offer.zone.clone()).collect()
    };
    for (code, left, long) in [
        ("InsufficientInstanceCapacity", vec!["use1-az2"], 180),
        ("Unsupported", vec!["use1-az2"], 6 * 3600),
        ("MaxSpotInstanceCountExceeded", vec![], 900),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", vec![], 900),
    ] {
        let creates = vec![Create::Refused(400, code)];
        let account = Account::open(State { creates, ..State::default() }).await;
        let (provider, hands) = client(config(&account.server.base));
        assert!(buy(&provider, Capacity::Spot).await.is_err());
        let offers = provider.quote().await.expect("offers");
        assert_eq!(zones(&offers), left, "{code}");
        assert!(offers.iter().any(|offer| offer.capacity == Capacity::OnDemand), "{code}");
        hands.forward(long - 1);
        assert_eq!(zones(&provider.quote().await.expect("offers")), left, "{code}");
        hands.forward(1);
        assert_eq!(zones(&provider.quote().await.expect("offers")).len(), 2, "{code}");
    }
}

#[tokio::test]
async fn a_full_subnet_sends_the_next_attempt_to_another_of_its_zone() {
    let subnets = vec![("subnet-1", "use1-az1", 10), ("subnet-9", "use1-az1", 3)];
    let full = Create::Refused(400, "InsufficientFreeAddressesInSubnet");
    let account =
        Account::open(State { subnets, creates: vec![full, full], ..State::default() }).await;
    let (provider, hands) = client(config(&account.server.base));
    assert!(buy(&provider, Capacity::Spot).await.is_err());
    assert!(buy(&provider, Capacity::Spot).await.is_err());
    let asked: Vec<_> =
        account.asked("RunInstances").into_iter().map(|form| form["SubnetId"].clone()).collect();
    assert_eq!(asked, ["subnet-1", "subnet-9"]);
    let none = buy(&provider, Capacity::Spot).await.expect_err("all are full");
    assert!(matches!(none, LaunchError::Refused { kind: Refusal::NoCapacity, .. }), "{none:?}");
    hands.forward(600);
    buy(&provider, Capacity::Spot).await.expect("bought");
}

#[tokio::test]
async fn the_image_is_resolved_before_the_purchase_and_frozen() {
    let account = Account::open(State::default()).await;
    let (provider, _) = client(config(&account.server.base));
    for (code, kind) in [
        ("ParameterNotFound", Refusal::Invalid),
        ("ThrottlingException", Refusal::RateLimited),
        ("AccessDeniedException", Refusal::Unauthorized),
    ] {
        let account = Account::open(State::default()).await;
        account.state().fails.insert("GetParameter", vec![(400, code)]);
        let (provider, _) = client(config(&account.server.base));
        let error = buy(&provider, Capacity::Spot).await.expect_err("no image");
        assert_eq!(error.answer(), LaunchAnswer::Refused(kind), "{code}: {error:?}");
        assert!(account.asked("RunInstances").is_empty(), "{code}: nothing was bought");
    }
    buy(&provider, Capacity::Spot).await.expect("bought");
    let calls = account.server.calls();
    let asked = calls.iter().find(|call| call.authorization.contains("/ssm/")).expect("asked");
    assert!(asked.body.contains("base-oss-nvidia-driver-gpu-amazon-linux-2023"), "{}", asked.body);
}

#[tokio::test]
async fn no_secret_is_printed() {
    let (provider, _) = client(config("http://127.0.0.1:1"));
    assert!(!format!("{provider:?}").contains("canary"));
    let error = provider.quote().await.expect_err("nobody listens");
    assert!(!format!("{error:?} {error}").contains("canary"), "{error:?}");
}
