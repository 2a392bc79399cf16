//! What is asked for prices, and what becomes of the answers.

use petaflop_arbiter::offer::Capacity;
use petaflop_providers::aws::{AwsConfig, AwsRegion};
use petaflop_providers::{Provider, ProviderError, Retry};

use super::account::{Account, State};
use super::{client, config};

async fn lines(provider: &dyn Provider) -> Vec<String> {
    let offers = provider.quote().await.expect("offers");
    offers.iter().map(|offer| format!("{} {}", offer.id, offer.price)).collect()
}

#[tokio::test]
async fn an_offer_is_a_type_in_a_zone_of_a_configured_region() {
    let account = Account::open(State::default()).await;
    let (provider, hands) = client(config(&account.server.base));
    assert_eq!(
        lines(&provider).await,
        [
            "aws/us-east-1/use1-az1/g6.xlarge/on-demand 0.8048",
            "aws/us-east-1/use1-az1/g6.xlarge/spot 0.4",
            "aws/us-east-1/use1-az2/g6.xlarge/on-demand 0.8048",
            "aws/us-east-1/use1-az2/g6.xlarge/spot 0.5",
        ],
        "the local zone has no subnet and was not named"
    );
    let offers = provider.quote().await.expect("offers");
    let devices = offers[0].accelerators.as_ref().expect("accelerators");
    assert_eq!((devices.model.as_str(), devices.count), ("L4", 1));
    assert!(offers.iter().all(|offer| offer.quoted_at == hands.now() && offer.ttl_seconds == 660));
    let history = &account.asked("DescribeSpotPriceHistory")[0];
    assert_eq!(history["StartTime"], "2026-11-20T10:00:00Z");
    assert_eq!(history["EndTime"], history["StartTime"], "now, and nothing before");
    assert_eq!(history["ProductDescription.1"], "Linux/UNIX");
    assert_eq!(history["Filter.1.Value.1"], "g6.*");
    let signed = |call: &super::server::Call| call.authorization.contains("/us-east-1/");
    assert!(account.server.calls().iter().all(signed), "no other region was asked");
}

#[tokio::test]
async fn a_pool_without_a_price_in_the_history_sells_no_spot() {
    let one = vec![("use1-az2", "g6.xlarge", "0.5"), ("use1-az2", "g6.4xlarge", "0.9")];
    let account = Account::open(State { spot: one, ..State::default() }).await;
    let (provider, _) = client(config(&account.server.base));
    let spot: Vec<String> =
        lines(&provider).await.into_iter().filter(|line| line.contains("/spot ")).collect();
    // A row of a type that the region does not describe is none either.
    assert_eq!(spot, ["aws/us-east-1/use1-az2/g6.xlarge/spot 0.5"]);
}

#[tokio::test]
async fn prices_are_asked_for_once_in_a_while_and_the_rest_seldom() {
    let account = Account::open(State::default()).await;
    let (provider, hands) = client(config(&account.server.base));
    lines(&provider).await;
    hands.forward(299);
    lines(&provider).await;
    assert_eq!(account.asked("DescribeSpotPriceHistory").len(), 1);
    account.state().spot = vec![("use1-az1", "g6.xlarge", "0.3")];
    hands.forward(1);
    assert_eq!(lines(&provider).await.iter().filter(|line| line.ends_with("spot 0.3")).count(), 1);
    assert_eq!(account.asked("DescribeSpotPriceHistory").len(), 2);
    assert_eq!(account.asked("DescribeInstanceTypes").len(), 1);
    hands.forward(3600);
    lines(&provider).await;
    assert_eq!(account.asked("DescribeInstanceTypes").len(), 2);
}

#[tokio::test]
async fn the_history_goes_on_over_its_pages() {
    let account = Account::open(State { page: 1, ..State::default() }).await;
    let (provider, _) = client(config(&account.server.base));
    let spot = lines(&provider).await.into_iter().filter(|line| line.contains("/spot ")).count();
    assert_eq!((spot, account.asked("DescribeSpotPriceHistory").len()), (2, 2));
}

#[tokio::test]
async fn list_prices_are_refreshed_where_the_keys_may_ask() {
    let account = Account::open(State { list: Some("0.9000000000"), ..State::default() }).await;
    let (provider, _) = client(config(&account.server.base));
    assert_eq!(lines(&provider).await[0], "aws/us-east-1/use1-az1/g6.xlarge/on-demand 0.9");
    let (provider, _) = client(AwsConfig { on_demand: false, ..config(&account.server.base) });
    let asked = account.server.calls().len();
    assert!(lines(&provider).await.iter().all(|line| line.contains("/spot ")));
    let later = account.server.calls().split_off(asked);
    assert!(later.iter().all(|call| !call.authorization.contains("/pricing/")));
}

#[tokio::test]
async fn a_region_that_does_not_answer_takes_nothing_from_the_others() {
    let account = Account::open(State { down: vec!["eu-west-1"], ..State::default() }).await;
    let region = |name: &str| AwsRegion {
        name: name.to_owned(),
        subnets: Vec::new(),
        security_groups: Vec::new(),
    };
    let both = vec![region("eu-west-1"), region("us-east-1")];
    let (provider, _) = client(AwsConfig { regions: both, ..config(&account.server.base) });
    assert_eq!(lines(&provider).await.len(), 4);
    account.state().down = vec!["us-east-1"];
    let (provider, _) = client(config(&account.server.base));
    let error = provider.quote().await.expect_err("no region answers");
    assert!(matches!(error, ProviderError::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn each_no_says_when_to_ask_again_and_repeats_no_key() {
    for (status, code, after_change) in [
        (403, "UnauthorizedOperation", true),
        (401, "AuthFailure", true),
        (400, "RequestExpired", true),
        (503, "RequestLimitExceeded", false),
        (500, "InternalError", false),
    ] {
        let account = Account::open(State::default()).await;
        account.state().fails.insert("DescribeSpotPriceHistory", vec![(status, code)]);
        let (provider, _) = client(config(&account.server.base));
        let error = provider.quote().await.expect_err("refused");
        assert_eq!(error.retry() == Retry::AfterChange, after_change, "{code}: {error}");
        assert!(!format!("{error:?}").contains("canary"), "{error:?}");
        assert_eq!(
            account.asked("DescribeSpotPriceHistory").len(),
            1,
            "{code}: nothing is repeated"
        );
    }
}

#[tokio::test]
async fn whoever_asked_too_often_stays_away() {
    let account = Account::open(State::default()).await;
    let (provider, hands) = client(config(&account.server.base));
    let busy = (503, "RequestLimitExceeded");
    account.state().fails.insert("DescribeSpotPriceHistory", vec![busy, busy]);
    assert!(provider.quote().await.is_err());
    let asked = account.server.calls().len();
    let error = provider.quote().await.expect_err("it stays away");
    assert!(matches!(error, ProviderError::RateLimited { .. }), "{error}");
    assert_eq!(account.server.calls().len(), asked, "nothing was sent");
    hands.forward(1);
    assert!(provider.quote().await.is_err());
    hands.forward(2);
    assert_eq!(provider.quote().await.expect("offers").len(), 4);
}

#[tokio::test]
async fn local_zones_are_offered_where_they_are_named() {
    let mut state = State::default();
    state.subnets.push(("subnet-3", "use1-atl2-az1", 10));
    state.spot.push(("use1-atl2-az1", "g6.xlarge", "0.1"));
    let account = Account::open(state).await;
    let (provider, _) = client(config(&account.server.base));
    assert!(lines(&provider).await.iter().all(|line| !line.contains("atl2")));
    let edge_zones = vec!["use1-atl2-az1".to_owned()];
    let (provider, _) = client(AwsConfig { edge_zones, ..config(&account.server.base) });
    let lines = lines(&provider).await;
    assert!(lines.contains(&"aws/us-east-1/use1-atl2-az1/g6.xlarge/spot 0.1".to_owned()));
    let named = super::offer(&provider, Capacity::Spot).await;
    assert_eq!(named.zone, "use1-atl2-az1");
}
