//! What can be had, for how much, and how often that is asked.

use std::time::Duration;

use petaflop_arbiter::offer::{Capacity, HostOwner};
use petaflop_providers::runpod::{RunPod, RunPodConfig};
use petaflop_providers::{InstanceId, Order, Provider, ProviderError, Work};
use serde_json::{Value, json};

use super::server::{Call, Reply, Server, problem};
use super::{KEY, client, config, identity, machine, offer};

fn gpus() -> Value {
    json!({ "gpus": [{
        "id": "NVIDIA L40S", "name": "L40S", "manufacturer": "NVIDIA", "memory": 48,
        "secure": true, "community": true, "price": { "secure": 0.99, "community": 0.79 },
        "maxCount": { "secure": 8, "community": 8 }, "availability": "LOW",
        "dataCenters": [{ "id": "EU-RO-1", "name": "EU-RO-1", "availability": "LOW" }],
    }] })
}

fn cpus() -> Value {
    json!({ "cpus": [{ "id": "cpu5g", "name": "General", "group": "General",
        "vcpu": { "min": 2, "max": 32 }, "ramGbPerVcpu": 4,
        "price": { "securePerVcpu": 0.046 }, "availability": "HIGH" }] })
}

/// Spot prices: cheaper in Secure, the same in Community.
fn spot() -> Value {
    json!({ "data": { "gpuTypes": [{ "id": "NVIDIA L40S", "secureCloud": true,
        "communityCloud": true, "secureSpotPrice": 0.99, "communitySpotPrice": 0.79,
        "s1": { "minimumBidPrice": 0.5 }, "c1": { "minimumBidPrice": null } }] } })
}

fn catalogue(call: &Call) -> Reply {
    match call.path.split('?').next() {
        Some("/v2/catalog/gpus") => Reply::Json(200, gpus()),
        Some("/v2/catalog/cpus") => Reply::Json(200, cpus()),
        Some("/graphql") => Reply::Json(200, spot()),
        _ => problem(404, "no such path"),
    }
}

#[tokio::test]
async fn one_pass_is_one_request_for_each_cloud_and_size() {
    let server = Server::start(catalogue).await;
    let all = RunPodConfig {
        counts: vec![1, 2],
        vcpu_counts: vec![4],
        spot: true,
        ..config(&server.base)
    };
    let (provider, hands) = client(all);
    let offers = provider.quote().await.expect("offers");
    let of = |cloud: &str, count: u32| {
        format!("GET /v2/catalog/gpus?include=AVAILABILITY&product=POD&count={count}&cloud={cloud}")
    };
    assert_eq!(
        server.lines(),
        [
            of("SECURE", 1),
            of("SECURE", 2),
            of("COMMUNITY", 1),
            of("COMMUNITY", 2),
            "GET /v2/catalog/cpus?include=AVAILABILITY&product=POD&vcpuCount=4".to_owned(),
            "POST /graphql".to_owned(),
        ]
    );
    assert!(server.calls().iter().all(|call| call.authorization == format!("Bearer {KEY}")));
    assert!(offers.iter().all(|offer| offer.quoted_at == hands.now()));

    // Whoever asks sooner than a minute later hears the same; the time is that of the pass.
    hands.forward(59);
    assert_eq!(provider.quote().await.expect("offers"), offers);
    assert_eq!(server.calls().len(), 6);
    hands.forward(1);
    let again = provider.quote().await.expect("offers");
    assert_eq!(server.calls().len(), 12);
    assert!(again.iter().all(|offer| offer.quoted_at == hands.now()));
}

#[tokio::test]
async fn where_several_data_centers_are_named_no_spot_is_offered() {
    for (places, spot) in [(&["EU-RO-1"][..], true), (&["EU-RO-1", "US-TX-3"], false)] {
        let server = Server::start(catalogue).await;
        let data_centers = places.iter().map(|place| (*place).to_owned()).collect();
        let all = RunPodConfig { spot: true, data_centers, ..config(&server.base) };
        let offers = client(all).0.quote().await.expect("offers");
        assert_eq!(offers.iter().any(|offer| offer.capacity == Capacity::Spot), spot, "{places:?}");
        assert!(offers.iter().any(|offer| offer.capacity == Capacity::OnDemand));
        assert_eq!(server.count("POST /graphql"), usize::from(spot));
    }
}

#[tokio::test]
async fn hosts_with_an_older_cuda_than_is_needed_are_neither_offered_nor_bought() {
    let server = Server::start(catalogue).await;
    let needs = |version: &str| RunPodConfig {
        counts: vec![1],
        spot: true,
        min_cuda: Some(version.to_owned()),
        ..config(&server.base)
    };
    let (provider, _) = client(needs("12.8"));
    provider.quote().await.expect("offers");
    let calls = server.calls();
    let about = |call: &&Call| call.path.starts_with("/v2/catalog/gpus");
    let stock: Vec<_> = calls.iter().filter(about).collect();
    assert_eq!(stock.len(), 2, "each cloud");
    assert!(stock.iter().all(|call| call.path.ends_with("&minCudaVersion=12.8")), "{stock:?}");
    let prices = calls.iter().find(|call| call.path == "/graphql").expect("spot prices").json();
    let text = prices["query"].as_str().expect("text");
    assert!(text.contains("secureCloud:true,minCudaVersion:\"12.8\"})"), "{text}");

    for (capacity, place) in [
        (Capacity::OnDemand, "/call/Rest/gpu/minCudaVersion"),
        (Capacity::Spot, "/call/Spot/minCudaVersion"),
    ] {
        let offer = offer("1x NVIDIA L40S SECURE", capacity, "1.0");
        let machine = machine();
        let order = Order { identity: &identity(), offer: &offer, work: Work::Machine(&machine) };
        let request = provider.prepare(order).await.expect("a request");
        let body: Value = serde_json::from_str(&request.body).expect("JSON");
        assert_eq!(body.pointer(place), Some(&json!("12.8")), "{body}");
    }
    for odd in ["", "12", "12.", ".8", "12.8.1", "12.8\"", "twelve.8"] {
        let refused = RunPod::new(needs(odd)).expect_err("no version");
        assert!(refused.to_string().contains("minCudaVersion"), "{refused}");
    }
}

#[tokio::test]
async fn processors_come_in_powers_of_two_from_two_on() {
    for counts in [vec![1], vec![3], vec![2, 6], vec![0]] {
        let settings = RunPodConfig { vcpu_counts: counts, ..config("http://127.0.0.1:9") };
        let refused = RunPod::new(settings).expect_err("no such pod");
        assert!(refused.to_string().contains("2, 4, 8"), "{refused}");
    }
    let settings = RunPodConfig { vcpu_counts: vec![2, 4, 32], ..config("http://127.0.0.1:9") };
    RunPod::new(settings).expect("as they are sold");
}

#[tokio::test]
async fn clouds_are_different_offers_and_spot_must_be_cheaper() {
    let server = Server::start(catalogue).await;
    let (provider, _) =
        client(RunPodConfig { spot: true, vcpu_counts: vec![4], ..config(&server.base) });
    let offers = provider.quote().await.expect("offers");
    let lines: Vec<_> = offers
        .iter()
        .map(|offer| {
            let untrusted = offer.owner == HostOwner::Unknown;
            (offer.instance_type.as_str(), offer.capacity, offer.price.to_string(), untrusted)
        })
        .collect();
    // 40 GB of disk are 0.00548 $ an hour.
    assert_eq!(
        lines,
        [
            ("1x NVIDIA L40S COMMUNITY", Capacity::OnDemand, "0.79548".to_owned(), true),
            ("1x NVIDIA L40S SECURE", Capacity::OnDemand, "0.99548".to_owned(), false),
            ("1x NVIDIA L40S SECURE", Capacity::Spot, "0.50548".to_owned(), false),
            ("4 vCPU cpu5g SECURE", Capacity::OnDemand, "0.18948".to_owned(), false),
        ]
    );
}

#[tokio::test]
async fn prices_are_not_asked_for_past_the_quota_but_machines_still_end() {
    let mut left = 17;
    let server = Server::start(move |call| {
        left -= 1;
        if call.method == "DELETE" {
            return Reply::Json(204, json!(null));
        }
        let limit = ("ratelimit", format!("minute;r={left};t=30, hour;r=5000;t=900"));
        let policy = ("ratelimit-policy", "minute;q=60;w=60, hour;q=6000;w=3600".to_owned());
        Reply::With(200, vec![limit, policy], gpus())
    })
    .await;
    let (provider, hands) =
        client(RunPodConfig { counts: vec![1, 2, 4, 8], ..config(&server.base) });
    let wait = Duration::from_secs(30);
    // Two calls leave 15: a quarter, which is not for prices.
    for _ in 0..2 {
        let error = provider.quote().await.expect_err("the quota");
        assert_eq!(error, ProviderError::RateLimited { provider: "rp".into(), wait });
        assert_eq!(server.calls().len(), 2);
    }
    provider.terminate(&InstanceId("p".into())).await.expect("ended all the same");
    hands.forward(30);
    provider.quote().await.expect_err("the next quota");
    assert_eq!(server.count("GET /v2/catalog/"), 3);
}

#[tokio::test]
async fn a_429_is_obeyed_for_as_long_as_it_says() {
    let mut first = true;
    let server = Server::start(move |call| {
        if !std::mem::take(&mut first) {
            return catalogue(call);
        }
        let limit = ("ratelimit", "minute;r=0;t=7, hour;r=90;t=900".to_owned());
        let headers = vec![limit, ("retry-after", "7".to_owned())];
        Reply::With(429, headers, json!({ "title": "Too Many Requests", "status": 429 }))
    })
    .await;
    let (provider, hands) = client(config(&server.base));
    let slower = |seconds| ProviderError::RateLimited {
        provider: "rp".into(),
        wait: Duration::from_secs(seconds),
    };
    assert_eq!(provider.quote().await.expect_err("429"), slower(7));
    hands.forward(3);
    assert_eq!(provider.quote().await.expect_err("still"), slower(4));
    assert_eq!(provider.get(&InstanceId("p".into())).await.expect_err("all calls"), slower(4));
    assert_eq!(server.calls().len(), 1);
    hands.forward(4);
    assert_eq!(provider.quote().await.expect("offers").len(), 2);
}

#[tokio::test]
async fn graphql_switched_off_costs_the_spot_offers_alone() {
    for status in [410, 401, 403] {
        let server = Server::start(move |call| match call.path.as_str() {
            "/graphql" => problem(status, "retired"),
            _ => catalogue(call),
        })
        .await;
        let (provider, hands) = client(RunPodConfig { spot: true, ..config(&server.base) });
        for _ in 0..3 {
            assert_eq!(provider.quote().await.expect("offers").len(), 2);
            hands.forward(60);
        }
        assert_eq!(server.count("POST /graphql"), 1, "{status}: it is not asked again");
    }
}

#[tokio::test]
async fn what_is_no_catalogue_is_no_empty_market() {
    for (reply, retired) in [
        ((410, r#"{"title":"Gone","status":410}"#), true),
        ((500, "oops"), false),
        ((200, "<html>"), false),
        ((200, "{}"), false),
        ((302, ""), false),
    ] {
        let server = Server::start(move |_| Reply::Text(reply.0, reply.1.to_owned())).await;
        let error = client(config(&server.base)).0.quote().await.expect_err("no catalogue");
        assert_eq!(matches!(error, ProviderError::Retired { .. }), retired, "{error}");
    }
}

#[tokio::test]
async fn a_wrong_key_is_said() {
    let server = Server::start(|_| problem(401, &format!("key {KEY} is not known"))).await;
    let error = client(config(&server.base)).0.quote().await.expect_err("a wrong key");
    assert!(matches!(error, ProviderError::Unauthorized { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains(KEY), "{error}");
}
