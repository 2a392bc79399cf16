//! The host provider with real processes: what is started survives, is found by
//! its identity whoever forgot it, ends when told, and no stranger is ever hit.

use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Arch, Capacity, HostOwner, Offer, Sale};
use petaflop_providers::host::price::PowerPrice;
use petaflop_providers::host::{Host, HostConfig, NAME};
use petaflop_providers::{
    Command, EnrolmentToken, InstanceState, LaunchError, Order, Provider, Work,
};

fn host(folder: &Path) -> Host {
    Host::new(HostConfig {
        runtime: "/nonexistent/petaflop-runtime".into(),
        folder: folder.join("host"),
        power: PowerPrice::default(),
    })
    .expect("a host provider")
}

fn identity(folder: &Path, uid: &str) -> Identity {
    Identity {
        // A home of its own, so that parallel tests never see each other's processes.
        installation: folder.display().to_string().replace('/', "_"),
        namespace: "default".into(),
        claim: format!("trj-t-00000000-1-{uid}"),
        claim_uid: uid.into(),
        attempt: 1,
    }
}

fn offer() -> Offer {
    Offer {
        id: Offer::id_of(NAME, "", "", "cpu", Capacity::Owned),
        provider: NAME.into(),
        region: String::new(),
        zone: String::new(),
        instance_type: "cpu".into(),
        accelerators: None,
        arch: Arch::X86_64,
        vcpu_milli: Some(1000),
        memory: None,
        capacity: Capacity::Owned,
        price: UsdPerHour::ZERO,
        quoted_at: Timestamp::now(),
        ttl_seconds: 60,
        owner: HostOwner::Known,
        sale: Sale::Buyable,
        measured: None,
        slots: None,
        shares: Vec::new(),
        interruptions_per_hour: None,
    }
}

async fn prepared(
    host: &Host,
    folder: &Path,
    uid: &str,
    script: &str,
    grace: u64,
) -> FrozenRequest {
    let command = Command {
        argv: vec!["/bin/sh".into(), "-c".into(), script.into()],
        env: [("GREETING".to_owned(), "hello".to_owned())].into(),
        dir: folder.display().to_string(),
        log: folder.join("log").display().to_string(),
        memory: 1 << 20,
        grace_seconds: grace,
    };
    let identity = identity(folder, uid);
    host.prepare(Order { identity: &identity, offer: &offer(), work: Work::Process(&command) })
        .await
        .expect("prepared")
}

async fn state(host: &Host, folder: &Path, uid: &str) -> Option<InstanceState> {
    let listing = host.find(&identity(folder, uid)).await.expect("looked");
    assert!(listing.complete);
    assert!(listing.instances.len() <= 1, "{listing:?}");
    listing.instances.first().map(|instance| instance.state)
}

async fn until(host: &Host, folder: &Path, uid: &str, wanted: Option<InstanceState>) {
    let limit = Instant::now() + Duration::from_secs(20);
    while state(host, folder, uid).await != wanted {
        assert!(Instant::now() < limit, "not {wanted:?} in time");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_runs_is_found_by_another_process_of_the_same_home_and_ends_when_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let first = host(folder);
    let request = prepared(&first, folder, "a", "echo $GREETING; exec sleep 600", 5).await;
    assert_eq!(state(&first, folder, "a").await, None);
    let id = first.launch(&request, &EnrolmentToken::unused()).await.expect("launched");
    drop(first);

    let second = host(folder);
    until(&second, folder, "a", Some(InstanceState::Running)).await;
    let all = second.list(&identity(folder, "a").installation).await.expect("listed");
    assert_eq!(all.instances.len(), 1);
    assert!(second.list("another").await.expect("listed").instances.is_empty());

    second.terminate(&id).await.expect("told");
    until(&second, folder, "a", Some(InstanceState::Terminated)).await;
    second.terminate(&id).await.expect("ending what is gone succeeds");
    let ended = second.get(&id).await.expect("asked").expect("remembered");
    assert!(ended.ended >= ended.started, "{ended:?}");
    let log = std::fs::read_to_string(folder.join("log")).expect("a log");
    assert_eq!(log.trim(), "hello");
}

#[tokio::test]
async fn the_same_request_twice_is_one_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let host = host(folder);
    let request = prepared(&host, folder, "a", "echo started >> starts; exec sleep 600", 5).await;
    let (first, second) = (
        host.launch(&request, &EnrolmentToken::unused()).await,
        host.launch(&request, &EnrolmentToken::unused()).await,
    );
    assert_eq!(first, second);
    let id = first.expect("launched");
    // Neither is it started again after it has ended.
    host.terminate(&id).await.expect("told");
    until(&host, folder, "a", Some(InstanceState::Terminated)).await;
    assert_eq!(host.launch(&request, &EnrolmentToken::unused()).await, Ok(id));
    assert_eq!(state(&host, folder, "a").await, Some(InstanceState::Terminated));
}

#[tokio::test]
async fn an_instance_without_a_record_is_still_found_and_ended() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let host = host(folder);
    let request = prepared(&host, folder, "a", "exec sleep 600", 5).await;
    let id = host.launch(&request, &EnrolmentToken::unused()).await.expect("launched");
    for record in std::fs::read_dir(folder.join("host/instances")).expect("records") {
        std::fs::remove_file(record.expect("a record").path()).expect("forgotten");
    }
    until(&host, folder, "a", Some(InstanceState::Running)).await;
    host.terminate(&id).await.expect("told");
    until(&host, folder, "a", Some(InstanceState::Terminated)).await;
}

#[tokio::test]
async fn what_ignores_the_request_to_end_is_killed_after_its_grace() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let host = host(folder);
    let script = "trap '' TERM; touch armed; while true; do sleep 0.1; done";
    let request = prepared(&host, folder, "a", script, 1).await;
    let id = host.launch(&request, &EnrolmentToken::unused()).await.expect("launched");
    while !folder.join("armed").exists() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    host.terminate(&id).await.expect("told");
    assert_eq!(state(&host, folder, "a").await, Some(InstanceState::Terminating));
    let limit = Instant::now() + Duration::from_secs(20);
    while state(&host, folder, "a").await != Some(InstanceState::Terminated) {
        assert!(Instant::now() < limit, "not ended in time");
        host.terminate(&id).await.expect("told again");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test]
async fn a_child_sees_only_the_environment_that_was_frozen() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let host = host(folder);
    let request = prepared(&host, folder, "a", "env", 5).await;
    host.launch(&request, &EnrolmentToken::unused()).await.expect("launched");
    until(&host, folder, "a", Some(InstanceState::Terminated)).await;
    let log = std::fs::read_to_string(folder.join("log")).expect("a log");
    assert!(log.contains("GREETING=hello"), "{log}");
    let passed_on = [
        "PATH",
        "HOME",
        "LANG",
        "TMPDIR",
        "LD_LIBRARY_PATH",
        "CUDA_VISIBLE_DEVICES",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "GREETING",
        "PETAFLOP_IDENTITY",
        // Set by the shell itself.
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    for line in log.lines() {
        let name = line.split('=').next().expect("a name");
        assert!(passed_on.contains(&name), "{name} reached the child");
    }
}

#[tokio::test]
async fn a_command_that_cannot_start_is_a_definite_refusal() {
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path();
    let host = host(folder);
    let command = Command {
        argv: vec!["/nonexistent/program".into()],
        env: Default::default(),
        dir: folder.display().to_string(),
        log: folder.join("log").display().to_string(),
        memory: 0,
        grace_seconds: 1,
    };
    let identity = identity(folder, "a");
    let request = host
        .prepare(Order { identity: &identity, offer: &offer(), work: Work::Process(&command) })
        .await
        .expect("prepared");
    let refused = host.launch(&request, &EnrolmentToken::unused()).await.expect_err("refused");
    assert!(matches!(refused, LaunchError::Refused { .. }), "{refused}");
    assert_eq!(state(&host, folder, "a").await, None);
}
