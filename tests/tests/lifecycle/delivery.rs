//! Where the result of a recipe goes, beside the installation's own store.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use petaflop_crds::TrainingJob;
use petaflop_crds::shared::NameRef;
use serde_json::json;

use crate::operator::{self, Cluster, tiny};
use crate::s3;

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
async fn a_result_is_where_the_job_wants_it_before_it_is_complete() -> Result<()> {
    let cluster = Cluster::start("delivered").await?;
    let bucket = tokio::task::spawn_blocking(s3::Server::start).await?;
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let secret = json!({ "metadata": { "name": "bucket" }, "stringData": bucket.credentials() });
    secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    let _running = cluster.operator().await?;
    let to = |name: &str, uri: &str| -> Result<TrainingJob> {
        let mut job = tiny(name)?;
        job.spec.backoff_limit = 0;
        job.spec.output.uri = Some(uri.to_owned());
        job.spec.output.secret_ref = Some(NameRef { name: "bucket".to_owned() });
        Ok(job)
    };
    cluster.create(&to("wanted", "s3://bucket/results")?).await?;
    let over = |job: &TrainingJob| holds("Complete")(job) || holds("Failed")(job);
    let job = cluster.until("wanted", "over", Duration::from_secs(240), over).await?;
    let (_, message) = why(&job, "Complete")?;
    ensure!(message.contains("s3://bucket/results"), "{message}");
    let artifact = job.status.and_then(|status| status.artifact).context("an artifact")?.parse()?;
    let credentials = bucket.credentials();
    let there =
        petaflop_store::Store::open_with("s3://bucket/results", Some(&s3::borrowed(&credentials)))?;
    ensure!(there.read_file(artifact, "config.json").await?.starts_with(b"{"));

    // The same again, which is known already: it is where it cannot be brought that this one ends.
    cluster.create(&to("unwanted", "s3://nowhere/results")?).await?;
    let job = cluster.until("unwanted", "over", Duration::from_secs(240), over).await?;
    let (reason, message) = why(&job, "Failed")?;
    ensure!(reason == "BackoffLimitExceeded", "{reason}: {message}");
    ensure!(message.contains(&artifact.to_string()), "{message}");
    cluster.until_no_claims().await
}
