//! Pods that were bought for their GPU and have none that works, as every machine of the box; unless
//! a file of the test's stands where the driver's device would.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use serde_json::json;

use crate::market::PLAIN;
use crate::operator::is;
use crate::{CANARY, World};

const FAILED: &str = "AcceleratorProbeFailed";

/// A command in an image of a user's, on accelerators of these models.
fn wants(world: &World, name: &str, models: &[&str]) -> Result<TrainingJob> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": { "name": name },
        "spec": {
            "container": { "image": PLAIN, "command": ["/bin/sh", "-c", "test -w /dev/nvidia0"] },
            "resources": { "cpu": "1", "accelerator": { "vendor": "NVIDIA", "models": models } },
            "placement": { "providers": [world.account.name] },
            "backoffLimit": 0,
        },
    }))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_its_gpu_is_ended_before_anything_runs_and_the_next_is_of_another_class()
-> Result<()> {
    let Some(world) = World::start("runpod-unfit").await? else { return Ok(()) };
    let cluster = &world.cluster;
    let device = tempfile::NamedTempFile::new()?;
    world.market.machines.equip(1, device.path(), "/dev/nvidia0");
    world.key(CANARY).await?;
    let running = world.operator(true).await?;
    world.account.until("Ready", "True", "Ok").await?;
    // The cheaper of the two is bought first, and is the one without.
    cluster.create(&wants(&world, "gpu", &["RTX4090", "L40S"])?).await?;
    let over = |job: &TrainingJob| {
        let conditions = job.status.as_ref().map(|status| &status.conditions[..]);
        conditions.is_some_and(|all| is(all, "Complete") || is(all, "Failed"))
    };
    let job = cluster.until("gpu", "over", Duration::from_secs(240), over).await?;
    let status = job.status.context("a status")?;
    ensure!(is(&status.conditions, "Complete"), "{status:#?}");
    ensure!((status.failures, status.interruptions) == (0, 0), "{status:#?}");
    cluster.until_no_claims().await?;
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    let [unfit, fit] = &pods[..] else { anyhow::bail!("{pods:#?}") };
    let kind = |pod: &Machine| world.runpod.engine(|e| e.product(pod.order.product).kind.clone());
    let kinds = [kind(unfit), kind(fit)];
    ensure!(kinds == ["NVIDIA GeForce RTX 4090", "NVIDIA L40S"], "{kinds:?}");

    // Said in the same word by the job, its claim and the metric; and booked.
    let told = cluster.events("gpu").await?;
    let why = told.iter().find(|(reason, _)| reason == FAILED).context("no event of the job")?;
    ensure!(
        why.1.contains("bought for 1 × RTX4090") && why.1.contains("no device is there"),
        "{why:?}"
    );
    let rows = cluster.rows().await?;
    let claim = &rows.first().context("a row")?.claim;
    let told = cluster.events(claim).await?;
    ensure!(told.iter().any(|(reason, _)| reason == FAILED), "{claim}: {told:?}");
    let client = reqwest::Client::builder().no_proxy().build()?;
    let metrics = client.get(format!("http://{}/metrics", running.http)).send().await?;
    let metrics = metrics.text().await?;
    let line = format!(
        "petaflop_instances_unfit_total{{provider=\"{}\",reason=\"{FAILED}\"}} 1",
        world.account.name
    );
    ensure!(metrics.contains(&line), "{line} is not in {metrics}");
    let (booked, invoiced) = (cluster.booked().await?, world.invoiced());
    eprintln!("booked {booked}, invoiced {invoiced} micro-dollars");
    // Each of its four lines is rounded by itself.
    ensure!(booked > 0 && (booked - invoiced).abs() <= 2, "booked {booked}, invoiced {invoiced}");

    // Whoever comes after a restart knows it too.
    eventually("the class in the provider's status", Duration::from_secs(60), || async {
        let object = world.account.object().await.map_err(|error| error.to_string())?;
        let broken = object.status.unwrap_or_default().broken;
        let types: Vec<&str> = broken.iter().map(|class| class.instance_type.as_str()).collect();
        (types.len() == 1).then_some(()).ok_or(format!("{types:?}"))
    })
    .await?;
    drop(running);
    let _next = world.operator(true).await?;

    // Who will have nothing else waits, and is told why.
    cluster.create(&wants(&world, "only", &["RTX4090"])?).await?;
    cluster
        .until("only", "told why it waits", Duration::from_secs(60), |job| {
            format!("{:?}", job.status).contains(FAILED)
        })
        .await?;
    ensure!(cluster.claims().await?.is_empty(), "a claim is made");
    ensure!(world.runpod.engine(|engine| engine.machines().len()) == 2, "a pod is bought");
    Ok(())
}
