//! What a job's own command finds in its environment.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use petaflop_crds::TrainingJob;
use serde_json::json;

use crate::command;
use crate::operator::{self, Cluster};

#[tokio::test(flavor = "multi_thread")]
async fn a_commands_environment_comes_from_secrets_and_config_maps_as_a_pods_does() -> Result<()> {
    const CANARY: &str = "canary-7dB1f0-of-a-container";
    let cluster = Cluster::start("environment").await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let secret = json!({
        "metadata": { "name": "keys" }, "stringData": { "TOKEN": CANARY, "SHARED": "secret" },
    });
    secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let map = json!({
        "metadata": { "name": "settings" }, "data": { "SHARED": "map", "RATE": "3", "PLAIN": "lost" },
    });
    maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
    let _running = cluster.operator().await?;

    let env = json!([
        { "name": "PLAIN", "value": "outright" },
        { "name": "WORD", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "TOKEN" } } },
        { "name": "SPEED", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "RATE" } } },
        { "name": "NONE", "valueFrom": { "secretKeyRef": { "name": "no", "key": "K", "optional": true } } },
        { "name": "NOR", "valueFrom": { "configMapKeyRef": { "name": "settings", "key": "K", "optional": true } } },
    ]);
    let from = json!([
        { "secretRef": { "name": "keys" } },
        { "configMapRef": { "name": "settings" } },
        { "prefix": "MY_", "configMapRef": { "name": "settings" } },
        { "secretRef": { "name": "no", "optional": true } },
    ]);
    // It is checked where it arrives, and never printed.
    let script = format!(
        r#"test "$WORD/$TOKEN/$SHARED/$SPEED/$MY_RATE/$PLAIN/${{NONE-unset}}/${{NOR-unset}}" = \
           {CANARY}/{CANARY}/map/3/3/outright/unset/unset"#
    );
    let mut job = command("reads", "", &json!({ "backoffLimit": 0 }))?;
    let container = job.spec.container.as_mut().context("a container")?;
    container.env = serde_json::from_value(env)?;
    container.env_from = serde_json::from_value(from)?;
    // The canary is in a file that this test alone writes: not in the job, which everybody reads.
    let folder = tempfile::tempdir()?;
    let check = folder.path().join("check");
    std::fs::write(&check, script)?;
    container.args = vec![format!(". {}", check.display())];
    cluster.create(&job).await?;
    let lacks = |name: &str, from: serde_json::Value| -> Result<TrainingJob> {
        let mut job = command(name, "true", &json!({}))?;
        job.spec.container.as_mut().context("a container")?.env_from =
            serde_json::from_value(from)?;
        Ok(job)
    };
    cluster.create(&lacks("lacks-secret", json!([{ "secretRef": { "name": "absent" } }]))?).await?;
    cluster.create(&lacks("lacks-map", json!([{ "configMapRef": { "name": "absent" } }]))?).await?;

    let holds = |condition: &'static str| {
        move |job: &TrainingJob| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, condition))
        }
    };
    let patience = Duration::from_secs(180);
    for (name, reason, kind) in [
        ("lacks-secret", "CredentialsMissing", "Secret"),
        ("lacks-map", "InvalidSpec", "ConfigMap"),
    ] {
        let job = cluster.until(name, "Stalled", patience, holds("Stalled")).await?;
        let status = job.status.context("a status")?;
        let why = status.conditions.iter().find(|c| c.type_ == "Stalled").context("why")?;
        let what = format!(
            "spec.container.envFrom[0]: there is no {kind} absent in namespace {}; create it",
            cluster.namespace
        );
        ensure!((why.reason.as_str(), &why.message) == (reason, &what), "{why:#?}");
    }
    let job = cluster
        .until("reads", "over", patience, |job| holds("Complete")(job) || holds("Failed")(job))
        .await?;
    ensure!(holds("Complete")(&job), "{:#?}", job.status);
    ensure!(cluster.cloud.created() == 1, "{} machines", cluster.cloud.created());
    let said = json!([cluster.claims().await?, job, cluster.events("reads").await?]).to_string();
    ensure!(said.contains("keys") && !said.contains(CANARY), "it is where everybody looks: {said}");
    Ok(())
}
