//! The life of an instance: how it ends, and what is said of it afterwards.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use petaflop_cloud_box::ec2::keys::Policy;
use petaflop_cloud_box::host::{Boot, Host, StateOnly};

use crate::fixture::{Fixture, HOUR, SECOND};
use crate::xml::Node;

/// A host that writes down what it is told, and whose machines end when a test says so.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    lines: Vec<String>,
    boots: Vec<Boot>,
    ended: Vec<String>,
}

impl Recorder {
    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap().lines.clone()
    }
}

impl Host for Recorder {
    fn start(&mut self, machine: &str, boot: &Boot) {
        let mut told = self.0.lock().unwrap();
        told.lines.push(format!("start {machine}"));
        told.boots.push(boot.clone());
    }

    fn notice(&mut self, machine: &str, left: Duration) {
        self.0.lock().unwrap().lines.push(format!("notice {machine} {}", left.as_secs()));
    }

    fn recommend(&mut self, machine: &str) {
        self.0.lock().unwrap().lines.push(format!("recommend {machine}"));
    }

    fn end(&mut self, machine: &str, _grace: Duration) {
        self.0.lock().unwrap().lines.push(format!("end {machine}"));
    }

    fn alive(&mut self, machine: &str) -> bool {
        !self.0.lock().unwrap().ended.iter().any(|ended| ended == machine)
    }

    fn address(&self, _machine: &str, _port: u16) -> Option<SocketAddr> {
        None
    }
}

fn recorded() -> (Fixture, Recorder) {
    let host = Recorder::default();
    let own = host.clone();
    let fixture = Fixture::with(|setup| {
        setup.host = Box::new(own);
        setup.roles.insert("agent".to_owned(), Policy::only(&["ssm:GetParameter"]));
    });
    (fixture, host)
}

/// Code of the reason of its state.
async fn reason(fixture: &Fixture, id: &str) -> String {
    fixture.instance(id).await.at("stateReason/code").to_owned()
}

async fn request(fixture: &Fixture, id: &str) -> Node {
    let fields = [("Filter.1.Name", "instance-id"), ("Filter.1.Value.1", id)];
    let seen = fixture.ask("DescribeSpotInstanceRequests", &fields).await;
    seen.body.all("spotInstanceRequestSet/item").remove(0).clone()
}

#[tokio::test]
async fn what_is_terminated_shuts_down_and_is_seen_for_an_hour() {
    let fixture = Fixture::new();
    let id = fixture.running(false, &[]).await;
    let seen = fixture.terminate(&id).await;
    let item = seen.body.all("instancesSet/item").remove(0);
    assert_eq!(
        (item.at("currentState/code"), item.at("currentState/name")),
        ("32", "shutting-down")
    );
    assert_eq!((item.at("previousState/code"), item.at("previousState/name")), ("16", "running"));
    assert_eq!(reason(&fixture, &id).await, "Client.UserInitiatedShutdown");
    assert_eq!(
        fixture.instance(&id).await.at("reason"),
        "User initiated (2026-11-20 10:00:10 GMT)"
    );
    fixture.clock.advance(SECOND * 40);
    let gone = fixture.instance(&id).await;
    assert_eq!(
        (gone.at("instanceState/code"), gone.at("instanceState/name")),
        ("48", "terminated")
    );
    assert!(!gone.has("privateIpAddress") && !gone.has("subnetId"));
    fixture.clock.advance(HOUR - SECOND);
    assert_eq!(fixture.state(&id).await, "terminated");
    fixture.clock.advance(SECOND);
    assert!(fixture.listed(&[]).await.is_empty());
    assert_eq!(fixture.terminate(&id).await.code(), "InvalidInstanceID.NotFound");
}

#[tokio::test]
async fn terminating_again_is_no_error() {
    let fixture = Fixture::new();
    let id = fixture.running(false, &[]).await;
    fixture.terminate(&id).await;
    let seen = fixture.terminate(&id).await;
    assert_eq!(seen.body.at("instancesSet/item/previousState/name"), "shutting-down");
    fixture.clock.advance(SECOND * 40);
    let seen = fixture.terminate(&id).await;
    assert_eq!(
        (seen.status, seen.body.at("instancesSet/item/currentState/name")),
        (200, "terminated")
    );
}

#[tokio::test]
async fn one_unknown_id_ends_none_of_them() {
    let fixture = Fixture::new();
    let id = fixture.running(false, &[]).await;
    let unknown = "i-0123456789abcdef0";
    let both = [("InstanceId.1", id.as_str()), ("InstanceId.2", unknown)];
    let seen = fixture.ask("TerminateInstances", &both).await;
    assert_eq!((seen.status, seen.code()), (400, "InvalidInstanceID.NotFound"));
    assert!(seen.message().contains(unknown) && !seen.message().contains(&id));
    assert_eq!(fixture.state(&id).await, "running");
    assert_eq!(fixture.terminate("what").await.code(), "InvalidInstanceID.Malformed");
    let elsewhere =
        fixture.ask_in("us-east-1", "TerminateInstances", &[("InstanceId.1", &id)]).await;
    assert_eq!(elsewhere.code(), "InvalidInstanceID.NotFound");
}

#[tokio::test]
async fn a_protected_instance_is_not_terminated() {
    let fixture = Fixture::new();
    let id = fixture.running(false, &[("DisableApiTermination", "true")]).await;
    assert_eq!(fixture.terminate(&id).await.code(), "OperationNotPermitted");
    assert_eq!(fixture.state(&id).await, "running");
}

#[tokio::test]
async fn a_shutdown_from_within_stops_unless_it_shall_terminate() {
    let (fixture, host) = recorded();
    let stops = fixture.running(false, &[]).await;
    let ends = [("InstanceInitiatedShutdownBehavior", "terminate")];
    let ends = fixture.running(false, &ends).await;
    let spot = fixture.running(true, &[]).await;
    host.0.lock().unwrap().ended.extend([stops.clone(), ends.clone(), spot.clone()]);
    fixture.clock.advance(HOUR);
    for (id, state) in [(&stops, "stopped"), (&ends, "terminated"), (&spot, "terminated")] {
        // Whether it shut down was looked at a moment ago at the latest.
        let _ = fixture.state(id).await;
        fixture.clock.advance(SECOND * 40);
        assert_eq!(fixture.state(id).await, state);
        assert_eq!(reason(&fixture, id).await, "Client.InstanceInitiatedShutdown");
    }
    let open = fixture.cloud.engine(|engine| {
        engine.invoice().open().iter().map(|id| (*id).to_owned()).collect::<Vec<_>>()
    });
    assert!(open.len() == 1 && open[0].starts_with("vol-"), "its disk alone bills: {open:?}");
    assert_eq!(fixture.terminate(&stops).await.status, 200);
    fixture.clock.advance(SECOND * 40);
    assert_eq!(reason(&fixture, &stops).await, "Client.UserInitiatedShutdown");
}

#[tokio::test]
async fn an_interruption_gives_two_minutes_notice_and_is_told_apart_from_all_else() {
    let (fixture, host) = recorded();
    let id = fixture.running(true, &[]).await;
    assert_eq!(request(&fixture, &id).await.at("status/code"), "fulfilled");
    fixture.cloud.engine(|engine| engine.evict(&id, Some(SECOND * 120))).unwrap();
    let marked = request(&fixture, &id).await;
    assert_eq!(
        (marked.at("state"), marked.at("status/code")),
        ("active", "marked-for-termination")
    );
    fixture.clock.advance(SECOND * 119);
    assert_eq!(fixture.state(&id).await, "running");
    fixture.clock.advance(SECOND);
    assert_eq!(fixture.state(&id).await, "shutting-down");
    let told = [format!("start {id}"), format!("notice {id} 120"), format!("end {id}")];
    assert_eq!(host.lines(), told);
    assert_eq!(reason(&fixture, &id).await, "Server.SpotInstanceTermination");
    let closed = request(&fixture, &id).await;
    assert_eq!(
        (closed.at("state"), closed.at("status/code")),
        ("closed", "instance-terminated-no-capacity")
    );
    assert_eq!(closed.at("status/updateTime"), "2026-11-20T10:02:10.000Z");
    fixture.clock.advance(SECOND * 40);
    assert_eq!(fixture.state(&id).await, "terminated");
}

#[tokio::test]
async fn an_interruption_may_come_without_notice() {
    let (fixture, host) = recorded();
    let id = fixture.running(true, &[]).await;
    fixture.cloud.engine(|engine| engine.evict(&id, None)).unwrap();
    assert_eq!(fixture.state(&id).await, "shutting-down");
    assert_eq!(host.lines(), [format!("start {id}"), format!("end {id}")]);
    assert_eq!(reason(&fixture, &id).await, "Server.SpotInstanceTermination");
}

#[tokio::test]
async fn a_market_that_passes_the_bid_takes_the_instance_after_notice() {
    let (fixture, host) = recorded();
    let product = fixture.product(true);
    let bid = "0.050000";
    let id = fixture.running(true, &[("InstanceMarketOptions.SpotOptions.MaxPrice", bid)]).await;
    let other = fixture.running(true, &[]).await;
    fixture.cloud.engine(|engine| engine.set_spot(product, 50_000));
    fixture.clock.advance(HOUR);
    assert_eq!(fixture.state(&id).await, "running", "a bid may equal the price");
    fixture.cloud.engine(|engine| engine.set_spot(product, 50_001));
    fixture.clock.advance(SECOND);
    assert_eq!(request(&fixture, &id).await.at("status/code"), "marked-for-termination");
    fixture.clock.advance(SECOND * 120);
    assert_eq!(fixture.state(&id).await, "shutting-down");
    assert_eq!(request(&fixture, &id).await.at("status/code"), "instance-terminated-by-price");
    assert_eq!(fixture.state(&other).await, "running", "who bid nothing pays up to the list price");
    assert!(host.lines().contains(&format!("notice {id} 120")));
}

#[tokio::test]
async fn a_recommendation_to_leave_reaches_the_machine() {
    let (fixture, host) = recorded();
    let id = fixture.running(true, &[]).await;
    fixture.cloud.engine(|engine| engine.recommend(&id)).unwrap();
    assert_eq!(host.lines(), [format!("start {id}"), format!("recommend {id}")]);
    assert_eq!(fixture.state(&id).await, "running", "it is no notice");
}

#[tokio::test]
async fn a_machine_gets_its_user_data_and_what_its_metadata_service_tells() {
    let (fixture, host) = recorded();
    let fields = [
        ("UserData", "IyEvYmluL3NoCg=="),
        ("IamInstanceProfile.Name", "agent"),
        ("MetadataOptions.HttpTokens", "required"),
        ("MetadataOptions.HttpPutResponseHopLimit", "2"),
    ];
    let id = fixture.running(true, &fields).await;
    let boot = host.0.lock().unwrap().boots.remove(0);
    let metadata = boot.metadata.unwrap();
    assert_eq!(metadata.user_data, b"#!/bin/sh\n");
    assert_eq!((metadata.region.as_str(), metadata.zone.as_str()), ("us-east-2", "us-east-2a"));
    assert_eq!((metadata.zone_id.as_str(), metadata.spot), ("use2-az1", true));
    assert_eq!((metadata.instance_type.as_str(), metadata.hop_limit), ("c7i.large", 2));
    let (role, credentials) = metadata.role.unwrap();
    assert!(role == "agent" && credentials.id.starts_with("ASIA"));
    assert_eq!((boot.cpu_millis, boot.memory), (2000, 4 << 30));
    let seen = fixture.instance(&id).await;
    assert_eq!(seen.at("metadataOptions/httpTokens"), "required");
    assert_eq!(seen.at("metadataOptions/httpPutResponseHopLimit"), "2");
    assert!(seen.at("iamInstanceProfile/arn").ends_with("instance-profile/agent"));
    assert!(!format!("{seen:?}").contains("IyEvYmlu"), "user-data is not in a description");
}

#[tokio::test]
async fn a_machine_has_the_address_that_its_host_gives_it() {
    let at = Ipv4Addr::new(10, 77, 0, 12);
    let fixture = Fixture::with(|setup| setup.host = Box::new(StateOnly::default().at(at)));
    let id = fixture.running(false, &[]).await;
    let seen = fixture.instance(&id).await;
    assert_eq!((seen.at("privateIpAddress"), seen.at("ipAddress")), ("10.77.0.12", "10.77.0.12"));
    let fixture = Fixture::new();
    let id = fixture.running(false, &[]).await;
    let seen = fixture.instance(&id).await;
    assert!(seen.at("privateIpAddress").starts_with("172.31."));
    assert!(seen.at("ipAddress").starts_with("203.0.113."));
}

#[tokio::test]
async fn ports_that_its_groups_open_are_told_to_the_host() {
    let (fixture, host) = recorded();
    let groups = fixture.ask("DescribeSecurityGroups", &[("GroupName.1", "petaflop")]).await;
    assert_eq!(groups.body.at("securityGroupInfo/item/ipPermissions/item/fromPort"), "7443");
    let group = groups.body.at("securityGroupInfo/item/groupId").to_owned();
    fixture.running(false, &[("SecurityGroupId.1", &group)]).await;
    fixture.running(false, &[]).await;
    let boots = host.0.lock().unwrap().boots.clone();
    assert_eq!(
        (boots[0].ports.as_slice(), boots[1].ports.as_slice()),
        ([7443].as_slice(), [].as_slice())
    );
}
