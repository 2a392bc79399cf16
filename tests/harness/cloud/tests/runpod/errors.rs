//! Errors and quotas of REST v2.

use std::time::Duration;

use petaflop_cloud_box::faults::{Fault, Operation, When};
use petaflop_cloud_box::runpod::limits::Limits;
use serde_json::{Value, json};

use crate::fixture::{Fixture, wish};

#[tokio::test]
async fn an_error_is_problem_json() {
    let fixture = Fixture::new();
    let seen = fixture.get("/v2/pods/never").await;
    assert_eq!(seen.header("content-type"), "application/problem+json");
    assert_eq!((&seen.body["status"], &seen.body["title"]), (&json!(404), &json!("Not Found")));
    assert!(!seen.detail().is_empty());
    assert_eq!(fixture.get("/v2/pods").await.header("content-type"), "application/json");
}

#[tokio::test]
async fn an_unknown_key_is_401_and_none_too() {
    let fixture = Fixture::new();
    for key in [None, Some("other")] {
        let seen = fixture.ask_as(key, "GET", "/v2/pods", String::new()).await.unwrap();
        assert_eq!(seen.status, 401);
        assert_eq!(seen.header("ratelimit"), "", "only who is known has quotas");
    }
}

#[tokio::test]
async fn a_key_that_may_only_look_is_403_where_it_would_change() {
    let fixture = Fixture::new();
    let as_looker = |method: &'static str, body: Value| {
        fixture.ask_as(Some("look"), method, "/v2/pods", body.to_string())
    };
    assert_eq!(as_looker("GET", Value::Null).await.unwrap().status, 200);
    assert_eq!(as_looker("POST", wish()).await.unwrap().status, 403);
    fixture.fault(Fault::Forbidden, Operation::Create);
    assert_eq!(fixture.create(&wish()).await.status, 403);
}

#[tokio::test]
async fn a_pods_own_key_ends_that_pod_and_no_other() {
    let fixture = Fixture::new();
    let (own, other) = (fixture.create(&wish()).await.id(), fixture.create(&wish()).await.id());
    let key = fixture.cloud.pod_key(&own).unwrap();
    let end = |id: &str| {
        let path = format!("/v2/pods/{id}/action");
        let (fixture, key) = (&fixture, key.clone());
        async move {
            let body = r#"{"action":"terminate"}"#.to_owned();
            fixture.ask_as(Some(&key), "POST", &path, body).await.unwrap().status
        }
    };
    assert_eq!(end(&other).await, 403);
    assert_eq!(end(&own).await, 204);
}

#[tokio::test]
async fn another_method_is_405_and_a_long_body_413() {
    let fixture = Fixture::new();
    assert_eq!(fixture.ask("PUT", "/v2/pods", &Value::Null).await.status, 405);
    assert_eq!(fixture.ask("POST", "/v2/catalog/gpus", &Value::Null).await.status, 405);
    let body = |length: usize| " ".repeat(length);
    let ask = |length| fixture.ask_as(Some("key"), "POST", "/v2/pods", body(length));
    assert_eq!(ask(102_401).await.unwrap().status, 413);
    assert_eq!(ask(102_400).await.unwrap().status, 422);
}

#[tokio::test]
async fn quotas_stand_in_the_headers_and_beyond_them_is_429_until_they_are_renewed() {
    let fixture = Fixture::with(|setup| setup.limits = Limits::new(2, 100, 1000));
    fixture.clock.advance(Duration::from_secs(53));
    let seen = fixture.get("/v2/pods").await;
    let left = "minute;r=1;t=7, hour;r=99;t=3547, day;r=999;t=50347";
    assert_eq!(seen.header("ratelimit"), left);
    let policy = "minute;q=2;w=60, hour;q=100;w=3600, day;q=1000;w=86400";
    assert_eq!(seen.header("ratelimit-policy"), policy);
    fixture.get("/v2/pods").await;
    let refused = fixture.create(&wish()).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "7"));
    assert!(refused.header("ratelimit").starts_with("minute;r=0;t=7, "));
    assert!(fixture.machines().is_empty());
    fixture.clock.advance(Duration::from_secs(7));
    assert_eq!(fixture.create(&wish()).await.status, 201);
}

#[tokio::test]
async fn an_api_that_was_retired_answers_410_to_everything() {
    let fixture = Fixture::new();
    fixture.cloud.faults(|faults| {
        faults.on(Fault::Retired, None, When::Always);
    });
    assert_eq!(fixture.get("/v2/pods").await.status, 410);
    assert_eq!(fixture.graphql("{myself{id}}", &Value::Null).await.status, 410);
    fixture.cloud.faults(|faults| faults.off("retired"));
    assert_eq!(fixture.get("/v2/pods").await.status, 200);
}

#[tokio::test]
async fn rest_v1_is_gone_and_graphql_may_go_alone() {
    let fixture = Fixture::new();
    assert_eq!(fixture.get("/v1/pods").await.status, 410);
    fixture.cloud.faults(|faults| {
        faults.on(Fault::GraphQlRetired, None, When::Always);
    });
    assert_eq!(fixture.graphql("{myself{id}}", &Value::Null).await.status, 410);
    assert_eq!(fixture.get("/v2/pods").await.status, 200);
}

#[tokio::test]
async fn what_the_box_does_not_serve_says_so() {
    let fixture = Fixture::new();
    for path in ["/v2/network-volumes", "/v2/templates", "/v2/serverless", "/v2/pods/x/logs"] {
        assert_eq!(fixture.get(path).await.status, 501, "{path}");
    }
    assert_eq!(fixture.get("/v2/nothing").await.status, 404);
}
