//! A Secret that a job wants as files.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use petaflop_crds::TrainingJob;
use serde_json::json;

use crate::command;
use crate::operator::{self, Cluster};

const CANARY: &str = "canary-7dB1f0-of-a-file";
const PATIENCE: Duration = Duration::from_secs(180);

fn holds(condition: &'static str) -> impl Fn(&TrainingJob) -> bool {
    move |job| job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, condition))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_becomes_files_in_memory_before_the_command_starts_and_nothing_else() -> Result<()>
{
    let cluster = Cluster::start("files").await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let secret =
        json!({ "metadata": { "name": "keys" }, "stringData": { "TOKEN": CANARY, ".env": "a" } });
    secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    let _running = cluster.operator().await?;

    // Files of this machine, where the agents run. They are looked at where they arrive, and never printed.
    let folder = tempfile::tempdir()?;
    let keys = folder.path().join("keys");
    let check = folder.path().join("check");
    let script = format!(
        r#"cd {keys} && test "$(cat TOKEN .env)" = {CANARY}a && test -z "$TOKEN" &&
           test "$(stat -L -c %a TOKEN)" = 400 && test "$(stat -f -L -c %T .)" = tmpfs"#,
        keys = keys.display()
    );
    std::fs::write(&check, script)?;
    let secrets =
        |name: &str| json!({ "backoffLimit": 0, "secrets": [{ "name": name, "mountPath": keys }] });
    let looks = format!(". {}", check.display());
    cluster.create(&command("finds", &looks, &secrets("keys"))?).await?;
    cluster.create(&command("lacks", "true", &secrets("absent"))?).await?;

    let job = cluster.until("lacks", "Stalled", PATIENCE, holds("Stalled")).await?;
    let status = job.status.as_ref().context("a status")?;
    let stalled = status.conditions.iter().find(|c| c.type_ == "Stalled").context("a condition")?;
    ensure!(
        stalled.reason == "CredentialsMissing" && stalled.message.contains("absent"),
        "{stalled:?}"
    );

    let over = |job: &TrainingJob| holds("Complete")(job) || holds("Failed")(job);
    let job = cluster.until("finds", "over", PATIENCE, over).await?;
    ensure!(holds("Complete")(&job), "{:#?}", job.status);
    ensure!(cluster.cloud.created() == 1, "{} machines", cluster.cloud.created());
    let said = json!([cluster.claims().await?, job, cluster.events("finds").await?]).to_string();
    ensure!(said.contains("keys") && !said.contains(CANARY), "it is where everybody looks: {said}");
    cluster.until_no_claims().await?;
    ensure!(keys.symlink_metadata().is_err(), "it is there after the task");
    Ok(())
}
