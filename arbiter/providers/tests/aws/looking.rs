//! Finding, watching and ending what is ours.

use petaflop_arbiter::claim::Identity;
use petaflop_arbiter::offer::Capacity;
use petaflop_arbiter::reason::Reason;
use petaflop_providers::aws::{Aws, AwsConfig, AwsRegion};
use petaflop_providers::{
    EnrolmentToken, InstanceId, InstanceState, Order, Provider, ProviderError, Work,
};

use super::account::{Account, State};
use super::{Hands, TOKEN, client, config, identity, machine, offer};

struct Bought {
    account: Account,
    provider: Aws,
    hands: Hands,
    id: InstanceId,
}

async fn bought(state: State) -> Bought {
    let account = Account::open(state).await;
    let (provider, hands) = client(config(&account.server.base));
    let (identity, machine) = (identity(), machine());
    let offer = offer(&provider, Capacity::Spot).await;
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = provider.prepare(order).await.expect("a request");
    let id = provider.launch(&request, &EnrolmentToken::new(TOKEN)).await.expect("bought");
    Bought { account, provider, hands, id }
}

#[tokio::test]
async fn an_instance_is_found_by_what_it_carries_and_others_are_left_alone() {
    let Bought { provider, id, account: _account, .. } = bought(State::default()).await;
    let later = Identity { attempt: 4, ..identity() };
    let found = provider.find(&later).await.expect("a listing");
    assert!(found.complete);
    assert_eq!(found.instances.len(), 1);
    assert_eq!((&found.instances[0].id, &found.instances[0].identity), (&id, &Some(identity())));
    let offer = found.instances[0].offer.as_ref().expect("what it costs");
    assert_eq!((offer.price.to_string().as_str(), offer.capacity), ("0.4", Capacity::Spot));
    assert_eq!(found.instances[0].endpoint.as_deref(), Some("203.0.113.7:7443"));
    let other = Identity { claim_uid: "another".into(), ..identity() };
    assert!(provider.find(&other).await.expect("a listing").instances.is_empty());
    assert_eq!(provider.list(&identity().installation).await.expect("all").instances.len(), 1);
    assert!(provider.list("another").await.expect("none").instances.is_empty());
}

#[tokio::test]
async fn what_our_token_made_is_ours_whatever_its_tags_say() {
    let Bought { account, provider, id, .. } = bought(State::default()).await;
    account.state().untagged = true;
    let found = provider.find(&identity()).await.expect("a listing");
    assert_eq!(found.instances.iter().map(|one| &one.id).collect::<Vec<_>>(), [&id]);
    assert_eq!(found.instances[0].identity, Some(identity()));
}

#[tokio::test]
async fn an_instance_that_is_not_visible_yet_is_not_gone() {
    let Bought { account, provider, hands, id } =
        bought(State { lag: 2, ..State::default() }).await;
    let seen = provider.get(&id).await.expect("an answer").expect("it comes");
    assert_eq!(seen.state, InstanceState::Pending);
    // Nor is it ended by not being found.
    assert!(provider.terminate(&id).await.is_err());
    let seen = provider.get(&id).await.expect("an answer").expect("it comes");
    assert_eq!(seen.state, InstanceState::Pending);
    let seen = provider.get(&id).await.expect("an answer").expect("it is there");
    assert_eq!(seen.identity, Some(identity()));
    hands.forward(121);
    account.state().made.clear();
    assert_eq!(provider.get(&id).await.expect("an answer"), None);
    provider.terminate(&id).await.expect("what is gone has ended");
    assert!(provider.capabilities().launch_safety.settle_seconds >= 120);
}

#[tokio::test]
async fn the_reason_of_an_end_is_told() {
    let Bought { account, provider, id, .. } = bought(State::default()).await;
    for (state, reason, expected, trouble) in [
        ("running", "", InstanceState::Running, None),
        (
            "shutting-down",
            "Server.SpotInstanceTermination",
            InstanceState::Terminating,
            Some(Reason::SpotInterrupted),
        ),
        (
            "terminated",
            "Server.InsufficientInstanceCapacity",
            InstanceState::Terminated,
            Some(Reason::InsufficientCapacity),
        ),
        (
            "terminated",
            "Client.InstanceInitiatedShutdown",
            InstanceState::Terminated,
            Some(Reason::HeartbeatLost),
        ),
        ("terminated", "Client.UserInitiatedShutdown", InstanceState::Terminated, None),
    ] {
        {
            let mut account = account.state();
            (account.made[0].state, account.made[0].reason) = (state, reason);
        }
        let seen = provider.get(&id).await.expect("an answer").expect("an hour long");
        assert_eq!(seen.state, expected, "{state}");
        assert_eq!(seen.trouble.map(|it| it.reason), trouble, "{reason}");
    }
}

#[tokio::test]
async fn ending_is_one_id_a_call_and_can_be_repeated() {
    let Bought { account, provider, id, .. } = bought(State::default()).await;
    provider.terminate(&id).await.expect("ended");
    provider.terminate(&id).await.expect("ended again");
    let asked = account.asked("TerminateInstances");
    assert!(asked.iter().all(|form| !form.contains_key("InstanceId.2")));
    assert_eq!(asked.len(), 2);
    assert!(account.billed().is_empty());
    let unknown = InstanceId("us-east-1/i-9999".into());
    provider.terminate(&unknown).await.expect("what is gone has ended");
    assert_eq!(provider.get(&unknown).await.expect("an answer"), None);
    for odd in ["i-9999", "", "evil.example/i-1"] {
        let asked = account.server.calls().len();
        assert!(provider.terminate(&InstanceId(odd.into())).await.is_err(), "{odd}");
        assert_eq!(account.server.calls().len(), asked, "{odd}: nobody was asked");
    }
}

#[tokio::test]
async fn an_instance_that_somebody_has_protected_goes_on_and_is_said_to_until_it_can_be_ended() {
    let Bought { account, provider, id, .. } = bought(State::default()).await;
    // `DisableApiTermination`, which nobody here sets.
    let protected = vec![(400, "OperationNotPermitted"); 2];
    account.state().fails.insert("TerminateInstances", protected);
    for _ in 0..2 {
        let error = provider.terminate(&id).await.expect_err("it is protected").to_string();
        assert!(error.contains("OperationNotPermitted: as planned"), "{error}");
        assert_eq!(account.billed().len(), 1);
        let seen = provider.get(&id).await.expect("an answer").expect("it is there");
        assert!(seen.state.may_bill(), "{seen:?}");
    }
    provider.terminate(&id).await.expect("ended");
    assert!(account.billed().is_empty());
}

#[tokio::test]
async fn a_former_region_that_may_not_be_looked_at_keeps_nobody_from_buying_elsewhere() {
    let Bought { account, .. } = bought(State::default()).await;
    let former = vec!["eu-west-1".to_owned()];
    let (provider, _) = client(AwsConfig { former, ..config(&account.server.base) });
    account.state().closed = vec!["eu-west-1"];
    let found = provider.find(&identity()).await.expect("a listing");
    assert_eq!((found.instances.len(), found.complete), (1, true));
    // A list of all hides nothing, and one that may be read later is waited for.
    assert!(!provider.list(&identity().installation).await.expect("a part").complete);
    (account.state().closed, account.state().down) = (Vec::new(), vec!["eu-west-1"]);
    assert!(!provider.find(&identity()).await.expect("a part").complete);
}

#[tokio::test]
async fn a_region_that_does_not_answer_makes_a_list_incomplete_and_never_empty() {
    let Bought { account, .. } = bought(State::default()).await;
    let region = |name: &str| AwsRegion {
        name: name.to_owned(),
        subnets: Vec::new(),
        security_groups: Vec::new(),
    };
    let regions = vec![region("us-east-1"), region("eu-west-1")];
    account.state().down = vec!["eu-west-1"];
    let (provider, _) = client(AwsConfig { regions, ..config(&account.server.base) });
    let listing = provider.list(&identity().installation).await.expect("a part");
    assert_eq!((listing.instances.len(), listing.complete), (1, false));
    assert!(!provider.find(&identity()).await.expect("a part").complete);
    account.state().down = vec!["us-east-1", "eu-west-1"];
    let error = provider.list(&identity().installation).await.expect_err("nothing");
    assert!(matches!(error, ProviderError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn volumes_and_spot_requests_without_an_instance_are_listed_and_ended() {
    let tag = |key: &str, value: &str| {
        format!("<item><key>petaflop.dev/{key}</key><value>{value}</value></item>")
    };
    let Identity { installation, namespace, claim, claim_uid, attempt } = identity();
    let tags = [
        tag("installation", &installation),
        tag("namespace", &namespace),
        tag("claim", &claim),
        tag("claim-uid", &claim_uid),
        tag("attempt", &attempt.to_string()),
    ]
    .concat();
    let tags = format!("<tagSet>{tags}</tagSet>");
    let volume = |id: &str, status: &str, made: &str| {
        format!(
            "<item><volumeId>{id}</volumeId><status>{status}</status>\
             <createTime>{made}</createTime>{tags}</item>"
        )
    };
    let volumes = [
        volume("vol-1", "available", "2026-11-20T08:00:00.000Z"),
        volume("vol-2", "in-use", "2026-11-20T08:00:00.000Z"),
        // Perhaps its instance is only just coming.
        volume("vol-3", "available", "2026-11-20T09:55:00.000Z"),
    ];
    let spot_requests = format!(
        "<item><spotInstanceRequestId>sir-1</spotInstanceRequestId><state>open</state>{tags}</item>\
         <item><spotInstanceRequestId>sir-2</spotInstanceRequestId><state>active</state>\
         <instanceId>i-1</instanceId>{tags}</item>"
    );
    let state = State { volumes: volumes.concat(), spot_requests, ..State::default() };
    let account = Account::open(state).await;
    let (provider, _) = client(config(&account.server.base));
    let listing = provider.list(&installation).await.expect("all");
    let ids: Vec<_> = listing.instances.iter().map(|one| one.id.0.as_str()).collect();
    assert_eq!(ids, ["us-east-1/vol-1", "us-east-1/sir-1"]);
    assert!(listing.instances.iter().all(|one| one.identity == Some(identity())));
    // They are no machines of the claim.
    assert!(provider.find(&identity()).await.expect("a listing").instances.is_empty());
    for one in &listing.instances {
        assert!(provider.get(&one.id).await.expect("an answer").is_some());
        provider.terminate(&one.id).await.expect("ended");
        assert_eq!(provider.get(&one.id).await.expect("an answer"), None);
    }
    assert_eq!(account.asked("DeleteVolume")[0]["VolumeId"], "vol-1");
    assert_eq!(account.asked("CancelSpotInstanceRequests")[0]["SpotInstanceRequestId.1"], "sir-1");
}
