//! `petaflop audit` on a cloud: what it finds, what it ends, and its exit code. What was left in a
//! region that no provider names any more is found all the same, by it and by the sweep.
//!
//! The operator has AWS with `--features petaflop-operator/aws`.

mod operator;
mod rented;
#[path = "../../runtime-image/store/tests/common/s3.rs"]
mod s3;

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{Patch, PatchParams};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::claim::Identity;
use petaflop_harness::{Component, eventually};
use petaflop_operator::cluster::make::Make;
use petaflop_operator::cluster::providers::MakeProvider;
use petaflop_operator::installation::Installation;
use petaflop_providers::machine::{AgentDownload, AgentSource, Bootstrap};
use petaflop_providers::{EnrolmentToken, Machine, Order, Work};
use rented::{KEY, SOON, World, said};
use serde_json::{Value, json};

const SECRET: &str = "the secret";
/// Where machines were had once.
const THERE: &str = "us-east-2";
/// Where they are had now.
const HERE: &str = "us-east-1";

/// A world with an operator that has bought a machine there.
async fn bought(name: &str) -> Result<(World, Component)> {
    let world = World::start(name, SECRET, |_| {}).await?;
    world.keys(json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET })).await?;
    world.provide(&[THERE], Some("aws")).await?;
    let program = world.operator(&[])?;
    world.buys(&program, "away").await?;
    eventually("the region is noted", SOON, || async {
        let object = world.providers().get(&world.provider()).await;
        let status = object.map_err(|error| error.to_string())?.status.unwrap_or_default();
        if status.regions == [THERE] { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await?;
    Ok((world, program))
}

/// What is found, and the exit code.
async fn audit(world: &World, more: &[&str]) -> Result<(Value, i32)> {
    let ours = format!("--provider-labels=test={}", world.namespace);
    let arguments = [&["audit", "--json", ours.as_str()], more].concat();
    let output = world.command(&arguments).await?;
    let code = output.status.code().with_context(|| said(&output))?;
    let found = serde_json::from_slice(&output.stdout).with_context(|| said(&output))?;
    Ok((found, code))
}

fn count(found: &Value, list: &str) -> usize {
    found[list].as_array().map_or(usize::MAX, Vec::len)
}

/// What is found once something is: AWS's lists show what is new, and what ends, when they do.
async fn finds(world: &World, what: &str, is: impl Fn(&Value) -> bool) -> Result<(Value, i32)> {
    let found = eventually(what, SOON, || async {
        match audit(world, &[]).await {
            Ok((found, code)) if is(&found) => Ok((found, code)),
            other => Err(format!("{other:?}")),
        }
    });
    Ok(found.await?)
}

/// One more machine with the identity of the claim's own.
async fn twin(world: &World) -> Result<()> {
    let uid =
        Installation::read(&world.client, &world.namespace).await?.context("no operator")?.uid;
    let agent = AgentDownload {
        url: "https://example.org/petaflop-agent".to_owned(),
        sha256: "0".repeat(64),
    };
    let make = Make::unwatched(world.client.clone(), Clock::system(), &uid, &[])
        .secrets_of(&world.namespace)
        .agent_from(Some(agent));
    let provider = make.make(&world.providers().get(&world.provider()).await?)?;
    let listed = provider.list(&uid).await?.instances;
    let own = listed.iter().find_map(|one| one.identity.clone()).context("no machine")?;
    let identity = Identity { attempt: own.attempt + 1, ..own };
    let machine = Machine {
        image: "localhost/runtime:1".into(),
        agent: AgentSource::Image("localhost/agent:1".into()),
        bootstrap: Bootstrap { operator_key: "a2V5".into(), endpoint: None, port: 7443 },
        cpu_millis: 1000,
        memory: 1 << 30,
        ephemeral: None,
        ports: Vec::new(),
        service_account: None,
        image_pull_secrets: Vec::new(),
        volumes: Vec::new(),
        grace_seconds: 30,
        labels: BTreeMap::new(),
    };
    let offer = provider.quote().await?.into_iter().next().context("no offer")?;
    let order = Order { identity: &identity, offer: &offer, work: Work::Machine(&machine) };
    let request = provider.prepare(order).await?;
    provider.launch(&request, &EnrolmentToken::new("token")).await?;
    Ok(())
}

/// The Lease says that nobody has led for so long.
async fn nobody_led_for(world: &World, long: SignedDuration) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(world.client.clone(), &world.namespace);
    let mut lease = Lease::default();
    lease.metadata.name = Some("petaflop-operator".to_owned());
    let renew_time = Some(MicroTime(Timestamp::now() - long));
    lease.spec = Some(LeaseSpec { renew_time, ..LeaseSpec::default() });
    let by = PatchParams::apply("test").force();
    leases.patch("petaflop-operator", &by, &Patch::Apply(&lease)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn its_exit_code_tells_of_orphans_doubles_and_lapsed_leases_wherever_machines_were_ever_had()
-> Result<()> {
    let (world, program) = bought("audited").await?;
    program.kill();
    let (found, code) = finds(&world, "its machine", |found| found["machines"] == 1).await?;
    ensure!(code == 0, "all is well: {found}");

    twin(&world).await?;
    let (found, code) = finds(&world, "a double", |found| count(found, "surplus") == 1).await?;
    ensure!(code == 1 && count(&found, "unclaimed") + count(&found, "lapsed") == 0, "{found}");

    // Nobody is had there any more: what is there is found all the same.
    world.moves_to(&[HERE]).await?;
    let (found, code) = audit(&world, &[]).await?;
    ensure!((code, count(&found, "surplus")) == (1, 1), "elsewhere: {found}");
    let machine = &found["surplus"][0];
    ensure!(machine["machine"].as_str().is_some_and(|id| id.starts_with(THERE)), "{found}");

    nobody_led_for(&world, SignedDuration::from_mins(41)).await?;
    let (found, code) = audit(&world, &[]).await?;
    ensure!((code, count(&found, "lapsed"), count(&found, "surplus")) == (1, 1, 1), "{found}");

    // They are ended, and what the surplus one cost is in a ledger that is a folder.
    let ledger = world.folder.path().join("ledger");
    std::fs::create_dir_all(&ledger)?;
    let uri = format!("--ledger-uri=file://{}", ledger.display());
    let (found, code) = audit(&world, &["--terminate", &uri]).await?;
    ensure!(code == 0 && found["lapsed"][0]["fate"] == "ended", "{found}");
    ensure!(found["surplus"][0]["fate"] == "ended", "{found}");
    eventually("nothing bills", SOON, || async {
        let bills = world.bills();
        if bills == 0 { Ok(()) } else { Err(format!("{bills} lines")) }
    })
    .await?;
    let folders: Vec<_> = std::fs::read_dir(&ledger)?.collect::<Result<_, _>>()?;
    ensure!(folders.len() == 1, "{folders:?}");
    let (found, code) = finds(&world, "nothing", |found| found["machines"] == 0).await?;
    ensure!(code == 0, "{found}");

    // Whoever cannot be asked is no good news.
    world.keys(json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": "another" })).await?;
    let (found, code) = audit(&world, &[]).await?;
    ensure!((code, count(&found, "unasked")) == (1, 1), "{found}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_left_in_a_region_that_is_not_configured_any_more_is_found_and_ended()
-> Result<()> {
    let (world, program) = bought("left").await?;
    program.kill();
    world.moves_to(&[HERE]).await?;
    world.forget_everything().await?;
    let (found, code) = audit(&world, &[]).await?;
    ensure!((code, count(&found, "unclaimed")) == (1, 1), "an orphan: {found}");
    ensure!(found["unclaimed"][0]["fate"] == "goesOn" && world.bills() > 0, "{found}");

    // The operator that comes back ends it, and goes on buying where it is told to now.
    program.restart()?;
    eventually("the sweep ends it", SOON, || async {
        let bills = world.bills();
        if bills == 0 { Ok(()) } else { Err(program.log_tail()) }
    })
    .await?;
    let machine = world.buys(&program, "again").await?;
    let metadata = machine.order.boot.metadata.context("an instance has metadata")?;
    ensure!(metadata.region == HERE, "{metadata:?}");
    eventually("both regions are noted", SOON, || async {
        let object = world.providers().get(&world.provider()).await;
        let status = object.map_err(|error| error.to_string())?.status.unwrap_or_default();
        if status.regions == [THERE, HERE] { Ok(()) } else { Err(format!("{status:?}")) }
    })
    .await?;
    Ok(())
}
