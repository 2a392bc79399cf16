//! A replica of a service on a rented machine: its pass reads the one model that it serves, and is
//! replaced as long as it serves it.

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use jiff::Timestamp;
use object_store::ObjectStoreExt;
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::runpod::PACE;
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use petaflop_operator::cluster::settings::Settings;
use serde_json::json;

use crate::market::account::{self, Account};
use crate::market::time::Ticking;
use crate::market::{Market, RUNTIME, narrow};
use crate::operator::{Cluster, is, tiny};
use crate::serving::{Chat, Kubelet, Says};
use crate::{CANARY, KEY, LIFE, SOON, forbidden, holds, opened, what_is_there};

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_has_a_pass_for_its_own_model_and_its_log_that_is_replaced_while_it_serves()
-> Result<()> {
    let Some(market) = Market::open().await? else { return Ok(()) };
    let clock = Clock::manual(Timestamp::now());
    let cluster = Cluster::start_with("narrowed-replica", clock.clone(), None).await?;
    let runpod = market.runpod(clock.clone(), KEY, PACE)?;
    let ticking = Ticking::start(clock);
    let account = Account::open(&cluster, "runpod", &account::runpod(&runpod.url())).await?;
    account.keys(json!({ "RUNPOD_API_KEY": KEY })).await?;
    let gate = market.gate()?;
    let make = ticking.make(&cluster, &[account.name.as_str()], &market.agent).await?;
    let store = narrow(&market, &gate, LIFE)?;
    let change = |settings: &mut Settings| {
        settings.runtime = RUNTIME.to_owned();
        settings.store = store.clone();
    };
    let _running = cluster.operator_making(make, change).await?;
    let mut job = tiny("train")?;
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = "builtin:petaflop".to_owned();
    job.spec.placement.providers = vec![account.name.clone()];
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    cluster.create(&job).await?;
    let complete = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
    };
    let job = cluster.until("train", "Complete", SOON, complete).await?;
    let artifact = job.status.and_then(|status| status.artifact).context("an artifact")?;
    cluster.until_no_claims().await?;
    let of_the_job = gate.given().len();

    let kubelet = Kubelet::start(&cluster).await?;
    let spec = json!({
        "model": { "artifact": artifact },
        "placement": { "providers": [account.name] },
    });
    cluster.serve("chat", spec).await?;
    cluster.until_service("chat", "Ready", SOON, |s| s.is("Ready")).await?;
    let said = Chat::ask(&kubelet.gateway("chat").await?).await?;
    ensure!(said.code == 200 && said.body.contains("\"choices\""), "{said:?}");
    // It read its model with a pass of its own, and was given another since.
    let model = format!("GET /bucket/store/artifacts/{artifact}.json");
    eventually("the model was read, and its pass replaced", SOON, || async {
        let given = gate.given().split_off(of_the_job);
        let seen = gate.seen();
        let read = seen.iter().find(|seen| {
            let own = given.iter().any(|pass| pass.id == seen.key);
            own && seen.line.starts_with(&model) && seen.status == 200
        });
        let read = read.ok_or_else(|| format!("{given:?} read no model"))?;
        let last = given.last().ok_or("no pass")?;
        (last.id != read.key).then_some(()).ok_or(format!("one pass: {}", read.key))
    })
    .await?;

    // Neither the keys nor a pass are where others could read them.
    let held = |machine: &&Machine| machine.holds_units();
    let pods: Vec<Machine> =
        runpod.engine(|engine| engine.machines().iter().filter(held).cloned().collect());
    ensure!(pods.len() == 1, "{pods:#?}");
    for (place, content) in &what_is_there(&pods[0])? {
        ensure!(!holds(content, CANARY), "the store's key is in {place}");
        for pass in gate.given() {
            ensure!(!holds(content, &pass.secret), "a pass is in {place}");
        }
    }

    // It opens that model, and nothing else.
    let owner = store.objects()?;
    let others =
        ["artifacts/other.json", "checkpoints/another/steps/s", "ledger/2026/r", "keys/-/k"];
    for other in others {
        owner.put(&other.into(), "theirs".into()).await?;
    }
    let last = gate.given().into_iter().last().context("a pass")?;
    let machine = opened(&gate, &last)?;
    let own = format!("artifacts/{artifact}.json");
    machine.get(&own.as_str().into()).await?;
    for other in others {
        forbidden(other, machine.get(&other.into()).await.err())?;
    }
    for place in others.into_iter().chain([own.as_str(), "chunks/aa/aa", "logs/ns/another/c/0"]) {
        forbidden(place, machine.put(&place.into(), "mine".into()).await.err())?;
    }
    let everything: Vec<_> = machine.list(None).collect().await;
    ensure!(everything.iter().all(Result::is_err), "{everything:?}");

    cluster.delete_service("chat").await?;
    cluster.until_service_gone("chat").await?;
    cluster.until_no_claims().await
}
