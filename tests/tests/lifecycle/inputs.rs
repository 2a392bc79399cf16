//! Data that a job's own command finds on its machine.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::api::PostParams;
use petaflop_crds::TrainingJob;
use serde_json::{Value, json};

use crate::operator::{self, Cluster};
use crate::{command, s3};

const PATIENCE: Duration = Duration::from_secs(180);

fn holds(condition: &'static str) -> impl Fn(&TrainingJob) -> bool {
    move |job| job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, condition))
}

/// Reason and message of a condition.
fn why(job: &TrainingJob, condition: &str) -> Result<(String, String)> {
    let status = job.status.as_ref().context("a status")?;
    let found = status.conditions.iter().find(|c| c.type_ == condition).context("a condition")?;
    Ok((found.reason.clone(), found.message.clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commands_inputs_are_there_before_it_starts_or_it_does_not() -> Result<()> {
    let cluster = Cluster::start("inputs").await?;
    let bucket = tokio::task::spawn_blocking(s3::Server::start).await?;
    let set = bucket.root.path().join("bucket/data/set");
    std::fs::create_dir_all(&set)?;
    std::fs::write(set.join("a.txt"), "one")?;
    let digest = format!("blake3:{}", petaflop_store::folder::hash(&set)?);
    let artifact = petaflop_store::Store::open(&cluster.store())?.put_artifact(&set).await?.hash;

    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    for (name, data) in [("keys", json!({ "TOKEN": "a" })), ("bucket", json!(bucket.credentials()))]
    {
        let secret = json!({ "metadata": { "name": name }, "stringData": data });
        secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    }
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let map = json!({ "metadata": { "name": "settings" }, "data": { "RATE": "3" } });
    maps.create(&PostParams::default(), &serde_json::from_value(map)?).await?;
    let _running = cluster.operator().await?;

    // Nothing that opens the bucket is the command's.
    let script = r#"cd "$PETAFLOP_INPUTS" && test -z "$AWS_ACCESS_KEY_ID" &&
        test "$(cat set/a.txt one model/a.txt settings/RATE)" = oneoneone3"#;
    let given = |name: &str, uri: &str| json!({ "name": name, "uri": uri });
    let ours = |mut input: Value| {
        input["secretRef"] = json!({ "name": "bucket" });
        input
    };
    let mut pinned = ours(given("set", "s3://bucket/data/set"));
    pinned["digest"] = json!(digest);
    let inputs = json!([
        pinned,
        ours(given("one", "s3://bucket/data/set/a.txt")),
        given("model", &format!("artifact:{artifact}")),
        given("settings", "configmap://settings"),
    ]);
    let more = json!({ "backoffLimit": 0, "inputs": inputs });
    cluster.create(&command("finds", script, &more)?).await?;

    let mut other = given("set", "configmap://settings");
    other["digest"] = json!(format!("blake3:{}", "0".repeat(64)));
    let wants = |input: Value| json!({ "inputs": [input] });
    cluster.create(&command("other", "true", &wants(other))?).await?;
    let absent = given("map", "configmap://absent");
    cluster.create(&command("lacks-map", "true", &wants(absent))?).await?;
    let absent = given("model", &format!("artifact:{}", "0".repeat(64)));
    cluster.create(&command("lacks-artifact", "true", &wants(absent))?).await?;

    let mut keyless = given("set", "s3://bucket/data");
    keyless["secretRef"] = json!({ "name": "keys" });
    cluster.create(&command("lacks-keys", "true", &wants(keyless))?).await?;

    for (name, wanted, words) in [
        ("lacks-map", "InvalidSpec", "spec.inputs: map: there is no ConfigMap absent"),
        ("lacks-artifact", "InvalidSpec", "input model, artifact:000"),
        ("lacks-keys", "CredentialsMissing", "Secret keys has no key AWS_ACCESS_KEY_ID"),
    ] {
        let job = cluster.until(name, "Stalled", PATIENCE, holds("Stalled")).await?;
        let (reason, message) = why(&job, "Stalled")?;
        ensure!(reason == wanted && message.contains(words), "{reason}: {message}");
    }
    // Another try would find the same.
    let job = cluster.until("other", "Failed", PATIENCE, holds("Failed")).await?;
    let (reason, message) = why(&job, "Failed")?;
    ensure!(reason == "InvalidSpec" && message.contains("found blake3:"), "{reason}: {message}");
    ensure!(job.status.as_ref().is_some_and(|status| status.restarts == 0), "{:#?}", job.status);

    let over = |job: &TrainingJob| holds("Complete")(job) || holds("Failed")(job);
    let job = cluster.until("finds", "over", PATIENCE, over).await?;
    ensure!(holds("Complete")(&job), "{:#?}", job.status);
    ensure!(cluster.cloud.created() == 2, "{} machines", cluster.cloud.created());
    cluster.until_no_claims().await
}
