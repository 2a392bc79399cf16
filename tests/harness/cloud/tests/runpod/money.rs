//! Billing, balance, limits.

use petaflop_cloud_box::faults::{Fault, Operation};
use serde_json::{Value, json};

use crate::fixture::{Fixture, HOUR, RTX_4090, SECOND, wish, wish_with};

#[tokio::test]
async fn a_pod_bills_by_the_second_from_its_create_to_its_delete() {
    let fixture = Fixture::new();
    let id = fixture.create(&wish_with(&json!({ "disk": 73 }))).await.id();
    fixture.clock.advance(SECOND * 3601);
    fixture.delete(&id).await;
    fixture.clock.advance(HOUR);
    // 0.34 dollars an hour, and 73 GB at 0.10 dollars a month of 730 hours.
    let compute = (340_000.0_f64 * 3601.0 / 3600.0).round() as i64;
    let disk = (10_000.0_f64 * 3601.0 / 3600.0).round() as i64;
    assert_eq!(fixture.billed(), compute + disk);
    assert!(fixture.cloud.engine(|engine| engine.invoice().open().is_empty()));
}

#[tokio::test]
async fn a_stopped_pod_pays_nothing_for_its_gpu_and_its_container_disk_but_twice_for_its_volume() {
    let fixture = Fixture::new();
    let mounts = json!({ "persistent": { "size": 73, "path": "/data" } });
    let id = fixture.create(&wish_with(&json!({ "disk": 73, "mounts": mounts }))).await.id();
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(), 340_000 + 10_000 + 10_000);
    fixture.act(&id, "stop").await;
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(), 360_000 + 20_000);
    fixture.act(&id, "start").await;
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed(), 380_000 + 360_000);
}

#[tokio::test]
async fn deploying_needs_money_for_an_hour_else_402() {
    let fixture = Fixture::with(|setup| setup.deposit = 339_999);
    assert_eq!(fixture.create(&wish()).await.status, 402);
    let cheap = json!({ "gpu": { "id": "NVIDIA GeForce RTX 3070" } });
    assert_eq!(fixture.create(&wish_with(&cheap)).await.status, 201);
}

#[tokio::test]
async fn an_account_spends_eighty_dollars_an_hour_at_most() {
    let fixture = Fixture::new();
    let h200 = |count: u32| {
        wish_with(&json!({ "cloud": "SECURE", "gpu": { "id": "NVIDIA H200", "count": count } }))
    };
    assert_eq!(fixture.create(&h200(8)).await.status, 201);
    assert_eq!(fixture.create(&h200(8)).await.status, 201, "73.44 dollars an hour");
    assert_eq!(fixture.create(&h200(2)).await.status, 402);
    assert_eq!(fixture.create(&h200(1)).await.status, 201);
}

#[tokio::test]
async fn at_zero_balance_everything_is_ended_at_the_next_settlement() {
    let fixture = Fixture::with(|setup| setup.deposit = 350_000);
    let id = fixture.create(&wish_with(&json!({ "disk": 1 }))).await.id();
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.pod(&id).await["status"], "RUNNING");
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.get(&format!("/v2/pods/{id}")).await.status, 404);
    let spent = fixture.billed();
    assert!((350_000..350_000 + 340_000 / 12 + 1000).contains(&spent), "5 minutes late: {spent}");
}

#[tokio::test]
async fn the_cost_that_create_answers_is_what_is_paid_whatever_was_quoted() {
    let fixture = Fixture::new();
    fixture.fault(Fault::PriceChanged(1500), Operation::Create);
    let pod = fixture.create(&wish()).await;
    assert_eq!(pod.body["cost"], 0.51);
    fixture.clock.advance(HOUR);
    let compute = fixture.cloud.engine(|engine| engine.invoice().lines()[0].micros(engine.now()));
    assert_eq!(compute, 510_000);
    for id in fixture.products(RTX_4090, "COMMUNITY") {
        fixture.cloud.engine(|engine| engine.product_mut(id).on_demand = 9_000_000);
    }
    assert_eq!(fixture.pod(&pod.id()).await["cost"], 0.51, "what was bought stays bought");
}

#[tokio::test]
async fn billing_has_buckets_whose_sum_is_the_invoice() {
    let fixture = Fixture::new();
    let id = fixture.create(&wish()).await.id();
    fixture.clock.advance(HOUR * 2 + SECOND * 1801);
    fixture.delete(&id).await;
    fixture.create(&wish()).await;
    fixture.clock.advance(HOUR * 20);
    let sum = |seen: &Value| {
        let records = seen["records"].as_array().unwrap();
        let micros =
            records.iter().map(|r| (r["totalAmount"].as_f64().unwrap() * 1e6).round() as i64);
        micros.sum::<i64>()
    };
    let days = fixture.get("/v2/billing/pods").await.body;
    assert_eq!(sum(&days), fixture.billed());
    assert_eq!(days["records"][0]["startTime"], "2026-11-20T00:00:00Z", "widened to its edge");
    let path =
        format!("/v2/billing/pods?bucketSize=hour&podId={id}&startTime=2026-11-20T10:30:00Z");
    let hours = fixture.get(&path).await.body;
    assert_eq!(hours["records"].as_array().unwrap().len(), 3);
    assert_eq!(hours["records"][0]["gpuAmount"], 0.34);
    let of_pod = fixture.cloud.engine(|engine| engine.invoice().by_machine()[&id]);
    assert_eq!(sum(&hours), of_pod);
    assert_eq!(fixture.get("/v2/billing/pods?startTime=yesterday").await.status, 400);
    let ages = "bucketSize=hour&startTime=-009000-01-01T00:00:00Z&endTime=9000-01-01T00:00:00Z";
    let ages = fixture.get(&format!("/v2/billing/pods?{ages}")).await.body;
    assert_eq!(sum(&ages), fixture.billed());
}
