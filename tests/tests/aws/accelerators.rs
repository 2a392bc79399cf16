//! An instance that was bought for its GPU and has none that works, as every machine of the box.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use serde_json::{Value, json};

use crate::market::PLAIN;
use crate::{CANARY, KEY, World};

const FAILED: &str = "AcceleratorProbeFailed";
const SOON: Duration = Duration::from_secs(240);

/// A command in an image of a user's, on one L4.
fn wants(world: &World, name: &str) -> Result<TrainingJob> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": { "name": name },
        "spec": {
            "container": { "image": PLAIN, "command": ["/bin/true"] },
            "resources": { "cpu": "1", "accelerator": { "vendor": "NVIDIA", "models": ["L4"] } },
            "placement": { "providers": [world.account.name] },
        },
    }))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_without_its_gpu_is_ended_and_its_type_left_alone_in_all_zones_after_a_restart_too()
-> Result<()> {
    // The image of hosts with accelerators is larger; nothing to round: 0.016 $ an hour.
    let large = |aws: &mut Value| {
        (aws["instanceTypes"], aws["diskGb"]) = (json!(["g6.4xlarge"]), json!(146));
    };
    let Some(world) = World::selling("aws-unfit", large).await? else { return Ok(()) };
    let cluster = &world.cluster;
    let keys = json!({ "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": CANARY });
    world.account.keys(keys).await?;
    let first = world.operator().await?;
    world.account.until("Ready", "True", "Ok").await?;
    cluster.create(&wants(&world, "gpu")?).await?;
    let waits = |job: &TrainingJob| format!("{:?}", job.status).contains(FAILED);
    let made = || world.cloud.engine(|engine| engine.machines().len());
    cluster
        .until("gpu", "told why it waits", SOON, |job| made() == 1 && waits(job))
        .await
        .with_context(|| world.consoles())?;
    cluster.until_no_claims().await?;
    let told = cluster.events("gpu").await?;
    let why = told.iter().find(|(reason, _)| reason == FAILED).context("no event of the job")?;
    ensure!(why.1.contains("bought for 1 × L4"), "{why:?}");
    let (booked, invoiced) = (
        cluster.booked().await?,
        world.cloud.engine(|engine| (engine.invoice().total(), engine.invoice().open().len())),
    );
    ensure!(booked > 0 && (booked, 0) == invoiced, "booked {booked}, invoiced {invoiced:?}");

    // Whoever comes after a restart buys none either: in no zone, neither spot nor on demand.
    eventually("its class is in the provider's status", SOON, || async {
        let object = world.account.object().await.map_err(|error| error.to_string())?;
        let broken = object.status.unwrap_or_default().broken;
        let types: Vec<&str> = broken.iter().map(|class| class.instance_type.as_str()).collect();
        (types == ["g6.4xlarge"]).then_some(()).ok_or(format!("{broken:?}"))
    })
    .await?;
    drop(first);
    let _second = world.operator().await?;
    cluster.create(&wants(&world, "another")?).await?;
    cluster.until("another", "told why it waits", SOON, waits).await?;
    ensure!(made() == 1 && cluster.claims().await?.is_empty(), "{} were bought", made());
    Ok(())
}
