//! Machines that do not do what one hopes, and listings that are late.

use std::net::SocketAddr;
use std::time::Duration;

use petaflop_cloud_box::faults::{Fault, Operation};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::PACE;
use serde_json::json;

use crate::fixture::{ENDS, Fixture, HOUR, SECOND, wish, wish_with};

#[tokio::test]
async fn a_pod_on_a_bad_host_never_runs_and_bills() {
    let fixture = Fixture::new();
    fixture.fault(Fault::NeverStarts, Operation::Create);
    let id = fixture.create(&wish_with(&json!({ "disk": 1 }))).await.id();
    fixture.clock.advance(HOUR);
    let pod = fixture.pod(&id).await;
    assert_eq!((&pod["status"], &pod["cost"]), (&json!("STARTING"), &json!(0.34)));
    assert!(pod["runtime"].is_null() && fixture.billed() >= 340_000);
}

#[tokio::test]
async fn a_program_that_ends_leaves_an_exited_pod_that_is_still_there() {
    let fixture = Fixture::new();
    let fields =
        json!({ "image": ENDS, "mounts": { "persistent": { "size": 73, "path": "/data" } } });
    let id = fixture.create(&wish_with(&fields)).await.id();
    fixture.clock.advance(HOUR);
    let ended = fixture.machines()[0].stopped.map(|(at, _)| at.to_string());
    assert_eq!(ended.as_deref(), Some("2026-11-20T10:00:25Z"), "whenever one looks");
    assert_eq!(fixture.pod(&id).await["status"], "EXITED");
    let before = fixture.billed();
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.billed() - before, 20_000, "0.20 dollars a GB-month for what it keeps");
}

#[tokio::test]
async fn a_tcp_port_is_mapped_to_one_of_the_hosts_once_the_pod_runs() {
    let at: SocketAddr = "127.0.0.1:10341".parse().unwrap();
    let fixture =
        Fixture::with(|setup| setup.host = Box::new(StateOnly::default().listening(7443, at)));
    let id = fixture.create(&wish_with(&json!({ "ports": ["7443/tcp", "8080/http"] }))).await.id();
    assert!(fixture.pod(&id).await["runtime"].is_null());
    fixture.clock.advance(SECOND * 25);
    let ports = fixture.pod(&id).await["runtime"]["ports"].clone();
    let mapped = json!({ "private": 7443, "public": 10341, "type": "tcp", "ip": "127.0.0.1" });
    let proxied = json!({ "private": 8080, "public": null, "type": "http", "ip": null });
    assert_eq!(ports, json!([mapped, proxied]));
}

#[tokio::test]
async fn an_eviction_may_give_notice_and_comes_when_it_said() {
    let fixture = Fixture::new();
    let id = fixture.running(&wish()).await;
    fixture.cloud.engine(|engine| engine.evict(&id, Some(SECOND * 120))).unwrap();
    fixture.clock.advance(SECOND * 119);
    assert_eq!(fixture.pod(&id).await["status"], "RUNNING");
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.pod(&id).await["status"], "EXITED");
}

#[tokio::test]
async fn a_pod_may_appear_in_the_listing_a_minute_after_its_create() {
    let appear = Duration::from_secs(60);
    let fixture = Fixture::with(|setup| {
        setup.pace = petaflop_cloud_box::engine::Pace { appear, vanish: appear, ..PACE };
    });
    let id = fixture.create(&wish()).await.id();
    fixture.clock.advance(SECOND * 59);
    assert!(fixture.pods().await.is_empty());
    assert_eq!(fixture.get(&format!("/v2/pods/{id}")).await.status, 404);
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.pods().await.len(), 1);
    assert_eq!(fixture.delete(&id).await.status, 204);
    assert_eq!(fixture.pods().await[0]["status"], "TERMINATED", "and it goes as late as it came");
    assert_eq!(fixture.pods().await[0]["cost"], 0.0);
    fixture.clock.advance(appear);
    assert!(fixture.pods().await.is_empty());
}

#[tokio::test]
async fn the_same_calls_with_the_same_seed_give_the_same_ids_and_the_same_invoice() {
    let run = async |seed| {
        let fixture = Fixture::with(|setup| setup.seed = seed);
        let first = fixture.create(&wish()).await.id();
        fixture.clock.advance(SECOND * 77);
        let second = fixture.create(&wish()).await.id();
        fixture.clock.advance(HOUR);
        fixture.delete(&first).await;
        fixture.clock.advance(HOUR);
        (first, second, fixture.cloud.engine(|engine| engine.invoice().by_machine()))
    };
    let one = run(1).await;
    assert_eq!(one, run(1).await);
    assert_ne!(one.0, run(2).await.0);
}
