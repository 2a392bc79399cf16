//! Misbehaviour on request.

use petaflop_cloud_box::faults::{Fault, Operation, When};
use serde_json::{Value, json};

use crate::fixture::{Fixture, HOUR, RTX_4090, SECOND, wish};

#[tokio::test]
async fn a_create_whose_answer_is_lost_made_a_pod() {
    let fixture = Fixture::new();
    fixture.fault(Fault::LostAnswer, Operation::Create);
    let lost = fixture.ask_as(Some("key"), "POST", "/v2/pods", wish().to_string()).await;
    assert!(lost.is_err(), "{lost:?}");
    assert_eq!(fixture.pods().await[0]["name"], "one");
    let call = fixture.cloud.calls().remove(0);
    assert_eq!((call.status, call.faults.as_slice()), (None, ["lost-answer"].as_slice()));
}

#[tokio::test]
async fn a_create_that_never_came_made_none() {
    let fixture = Fixture::new();
    fixture.fault(Fault::LostRequest, Operation::Create);
    assert!(fixture.ask_as(Some("key"), "POST", "/v2/pods", wish().to_string()).await.is_err());
    assert!(fixture.pods().await.is_empty());
}

#[tokio::test]
async fn a_500_may_have_made_a_pod_or_not_in_the_same_words() {
    let fixture = Fixture::new();
    let mut words = Vec::new();
    for fault in [Fault::ErrorNotDone, Fault::ErrorButDone] {
        fixture.fault(fault, Operation::Create);
        let seen = fixture.create(&wish()).await;
        assert_eq!(seen.status, 500);
        words.push(seen.body);
    }
    assert_eq!(words[0], words[1]);
    assert_eq!(fixture.pods().await.len(), 1);
    fixture.fault(Fault::ErrorButDone, Operation::Create);
    let rent = "mutation($i:X){podRentInterruptable(input:$i){id}}";
    let input = json!({ "imageName": "x", "gpuTypeId": RTX_4090, "bidPerGpu": 0.34 });
    let seen = fixture.graphql(rent, &input).await;
    assert_eq!(seen.status, 200);
    assert!(seen.error().contains("Something went wrong"));
    assert_eq!(fixture.pods().await.len(), 2);
}

#[tokio::test]
async fn a_slow_answer_comes_when_its_time_has_come_and_was_done_before() {
    let fixture = Fixture::new();
    fixture.fault(Fault::SlowAnswer(HOUR), Operation::Create);
    let body = wish();
    let create = fixture.create(&body);
    let meanwhile = async {
        while fixture.pods().await.is_empty() {
            tokio::task::yield_now().await;
        }
        // The answer sleeps by the clock: it is woken as often as it takes, since whether it sleeps
        // already cannot be seen from here.
        loop {
            fixture.clock.advance(HOUR);
            tokio::task::yield_now().await;
            if fixture.cloud.calls()[0].status.is_some() {
                return;
            }
        }
    };
    let (seen, ()) = tokio::join!(create, meanwhile);
    assert_eq!(seen.status, 201);
    assert_eq!(seen.body["status"], "PROVISIONING", "as it was then");
}

#[tokio::test]
async fn capacity_that_was_quoted_is_gone_when_it_is_bought() {
    let fixture = Fixture::new();
    fixture.fault(Fault::CapacityGone, Operation::Create);
    let quote = "/v2/catalog/gpus?include=AVAILABILITY&product=POD&cloud=COMMUNITY";
    assert!(fixture.get(quote).await.body.to_string().contains("MEDIUM"));
    let seen = fixture.create(&wish()).await;
    assert_eq!(seen.status, 400);
    assert!(seen.detail().contains("no longer any instances available"));
    assert_eq!(fixture.create(&wish()).await.status, 201);
}

#[tokio::test]
async fn an_outage_begins_and_ends_at_its_hour() {
    let fixture = Fixture::new();
    let hour = |text: &str| format!("2026-11-20T{text}:00Z").parse().unwrap();
    fixture.cloud.faults(|faults| {
        faults.on(Fault::Unavailable, None, When::During(hour("11:00")..hour("13:00")));
    });
    let mut seen = Vec::new();
    for _ in 0..5 {
        seen.push(fixture.get("/v2/pods").await.status);
        fixture.clock.advance(HOUR);
    }
    assert_eq!(seen, [200, 503, 503, 200, 200]);
}

#[tokio::test]
async fn a_429_carries_the_real_headers() {
    let fixture = Fixture::new();
    fixture.fault(Fault::RateLimited(7), Operation::List);
    let seen = fixture.get("/v2/pods").await;
    assert_eq!((seen.status, seen.header("retry-after")), (429, "7"));
    assert!(seen.header("ratelimit").starts_with("minute;r="));
    assert!(seen.header("ratelimit-policy").starts_with("minute;q="));
}

#[tokio::test]
async fn a_partial_page_leaves_pods_out_without_a_word() {
    let fixture = Fixture::new();
    for _ in 0..4 {
        fixture.create(&wish()).await;
    }
    fixture.fault(Fault::PartialPage, Operation::List);
    assert_eq!(fixture.pods().await.len(), 2);
    assert_eq!(fixture.pods().await.len(), 4);
}

#[tokio::test]
async fn a_cursor_may_point_to_its_own_page() {
    let fixture = Fixture::with(|setup| setup.page = Some(1));
    fixture.create(&wish()).await;
    fixture.create(&wish()).await;
    fixture.fault(Fault::RepeatedCursor, Operation::List);
    let seen = fixture.get("/v2/pods?cursor=0").await.body;
    assert_eq!(seen["pagination"], json!({ "hasNextPage": true, "nextCursor": "0" }));
}

#[tokio::test]
async fn faults_by_seed_are_the_same_for_the_same_seed() {
    let run = async |seed| {
        let fixture = Fixture::new();
        fixture.cloud.faults(|faults| {
            let when = When::Chance { seed, permille: 400 };
            faults.on(Fault::ErrorNotDone, Some(Operation::List), when);
        });
        let mut seen = Vec::new();
        for _ in 0..40 {
            seen.push(fixture.ask("GET", "/v2/pods", &Value::Null).await.status);
            fixture.clock.advance(SECOND);
        }
        seen
    };
    let one = run(3).await;
    assert_eq!(one, run(3).await);
    assert_ne!(one, run(4).await);
}
