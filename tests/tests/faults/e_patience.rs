//! E5. The API server itself holds the operator back, by its priorities and fairness.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use petaflop_crds::TrainingJob;
use petaflop_operator::cluster::patience;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::world::on_each;

/// Others that ask as the same user.
const CROWD: usize = 6;

/// From now on this user has one call answered at a time, and 429 to all others, until the objects of this
/// name are gone.
async fn hold_back(client: &Client, name: &str, user: &str) -> Result<()> {
    let levels: Api<PriorityLevelConfiguration> = Api::all(client.clone());
    let level = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": { "type": "Limited", "limited": {
            "nominalConcurrencyShares": 0, "lendablePercent": 0, "borrowingLimitPercent": 0,
            "limitResponse": { "type": "Reject" },
        } },
    }))?;
    levels.create(&PostParams::default(), &level).await?;
    let schemas: Api<FlowSchema> = Api::all(client.clone());
    let everything = json!([{
        "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"],
        "clusterScope": true,
    }]);
    let schema = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "matchingPrecedence": 2,
            "priorityLevelConfiguration": { "name": name },
            "rules": [{
                "subjects": [{ "kind": "User", "user": { "name": user } }],
                "resourceRules": everything,
            }],
        },
    }))?;
    schemas.create(&PostParams::default(), &schema).await?;
    Ok(())
}

async fn let_go(client: &Client, name: &str) -> Result<()> {
    let schemas: Api<FlowSchema> = Api::all(client.clone());
    schemas.delete(name, &DeleteParams::default()).await?;
    let levels: Api<PriorityLevelConfiguration> = Api::all(client.clone());
    levels.delete(name, &DeleteParams::default()).await?;
    Ok(())
}

/// Asks on and on, and says of each 429 how long it is to wait.
async fn ask(jobs: Api<TrainingJob>, told: mpsc::UnboundedSender<Option<Duration>>) {
    loop {
        if let Err(error @ kube::Error::Api(_)) = jobs.list(&ListParams::default()).await {
            let _ = told.send(patience::asked_for(&error));
        }
    }
}

#[test]
fn e5_a_server_that_holds_the_operator_back_says_for_how_long_and_then_all_goes_on() -> Result<()> {
    on_each("e5-held", &[], async |world| {
        let namespace = world.lane.namespace.name().to_owned();
        let admin = world.lane.client.clone();
        let user = format!("operator-{namespace}");
        let mut config = crate::plane().await?.user(&user, &[])?.config().await?;
        config.default_retry = false;
        let jobs: Api<TrainingJob> = Api::namespaced(patience::client(config)?, &namespace);
        world.create(json!({})).await?;
        world.until("running", |seen| seen.is("Running")).await?;
        hold_back(&admin, &namespace, &user).await?;
        // There is always one.
        let (told, mut waits) = mpsc::unbounded_channel();
        let crowd: Vec<_> =
            (0..CROWD).map(|_| tokio::spawn(ask(jobs.clone(), told.clone()))).collect();
        let wait =
            timeout(Duration::from_secs(60), waits.recv()).await.context("never held back")?;
        // By the real server's own header, which no body of its repeats.
        ensure!(wait.flatten().is_some_and(|wait| !wait.is_zero()), "{wait:?}");
        // Its task ends meanwhile.
        world.pass(Duration::from_secs(600)).await?;
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        crowd.iter().for_each(JoinHandle::abort);
        let_go(&admin, &namespace).await?;
        let seen = world.until_complete().await?;
        let status = seen.job.and_then(|job| job.status).unwrap_or_default();
        ensure!((status.interruptions, status.failures) == (0, 0), "{status:#?}");
        ensure!(world.cloud.created() == 1, "{} machines", world.cloud.created());
        Ok(())
    })
}
