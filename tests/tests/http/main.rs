//! What the operator answers by HTTP, on a real API server: to whom, what it counts, and that it
//! shows no secret anywhere.
//!
//! | module | holds |
//! |---|---|
//! | `asker` | who asks, and what they may |
//! | `command_line` | the same from the command line |
//! | `prometheus` | the metrics |
//! | `shown` | all that people can look at, and what must not be in it |

mod asker;
mod command_line;
#[path = "../operator/mod.rs"]
mod operator;
mod prometheus;
#[path = "../serving/mod.rs"]
mod serving;
mod shown;

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::{Patch, PatchParams};
use operator::{Cluster, is, tiny};
use petaflop_agent_api::task::Secret;
use petaflop_crds::{SpendBudget, TrainingJob};
use petaflop_harness::eventually;
use petaflop_operator::cluster::settings::Settings;
use serde_json::json;
use serving::{Says, models};

use crate::asker::{Asker, account, create, let_everywhere, let_view, remove};
use crate::command_line::{from_the_command_line, stands_as_in_the_chart};
use crate::prometheus::{metrics_are_as_committed, promtool_checks};
use crate::shown::{CANARY, captured, dump_all, secrets};

#[tokio::test(flavor = "multi_thread")]
async fn who_may_see_what_is_asked_of_the_api_server() -> Result<()> {
    let cluster = Cluster::start("http-who").await?;
    let running = cluster.operator().await?;
    let anonymous = Asker::new(&running, None)?;
    let stranger = Asker::new(&running, Some("no.such.token"))?;
    let nobody = Asker::new(&running, Some(&account(&cluster, "nobody").await?))?;
    let viewer = Asker::new(&running, Some(&account(&cluster, "viewer").await?))?;
    let scraper = Asker::new(&running, Some(&account(&cluster, "scraper").await?))?;
    let_view(&cluster, "viewer").await?;
    let scrapes = let_everywhere(&cluster, "scraper", "metrics-reader").await?;

    eventually("a ready operator that leads", Duration::from_secs(60), || async {
        let ready = anonymous.get("/readyz").await.map_err(|error| error.to_string())?;
        let begun = running.operator.health.has_begun();
        if ready.0 == 200 && begun { Ok(()) } else { Err(format!("{ready:?}, begun: {begun}")) }
    })
    .await?;
    ensure!(anonymous.get("/healthz").await?.0 == 200);

    let here = &cluster.namespace;
    let in_namespace = [
        format!("/api/v1/offers?namespace={here}"),
        format!("/api/v1/costs?namespace={here}"),
        format!("/api/v1/explain/{here}/trainingjobs/none"),
        format!("/api/v1/logs/{here}/trainingjobs/none"),
    ];
    let elsewhere = [
        "/metrics".to_owned(),
        "/api/v1/offers".to_owned(),
        "/api/v1/offers?namespace=default".to_owned(),
        "/api/v1/costs".to_owned(),
        "/api/v1/costs?namespace=default".to_owned(),
        "/api/v1/explain/default/trainingjobs/none".to_owned(),
        "/api/v1/logs/default/trainingjobs/none".to_owned(),
    ];
    for path in in_namespace.iter().chain(&elsewhere) {
        for asker in [&anonymous, &stranger] {
            let (status, text) = asker.get(path).await?;
            ensure!(status == 401 && text.contains("\"error\""), "{path}: {status}: {text}");
        }
        let (status, text) = nobody.get(path).await?;
        ensure!(status == 403 && text.contains("needs the right to"), "{path}: {status}: {text}");
    }
    // Of what is not there an allowed one hears that; others hear nothing.
    for (path, expected) in in_namespace.iter().zip([200, 200, 404, 404]) {
        let (status, text) = viewer.get(path).await?;
        ensure!(status == expected, "{path}: {status}: {text}");
    }
    for path in &elsewhere {
        ensure!(viewer.get(path).await?.0 == 403, "{path}");
    }
    ensure!(scraper.get("/metrics").await?.0 == 200);
    ensure!(scraper.get(&in_namespace[1]).await?.0 == 403);
    let (status, text) = viewer.get(&format!("/api/v1/costs?namespace={here}&by=moon")).await?;
    ensure!(status == 400 && text.contains("moon"), "{status}: {text}");
    let (status, text) = viewer.get("/api/v2").await?;
    ensure!(status == 404 && text.contains("/api/v2"), "{status}: {text}");

    // While it drains it is alive, but nobody new should come.
    running.operator.health.drain();
    ensure!(anonymous.get("/readyz").await?.0 == 503);
    ensure!(anonymous.get("/healthz").await?.0 == 200);
    remove(&cluster, &scrapes).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_stands_by_is_ready_and_says_that_another_leads() -> Result<()> {
    let cluster = Cluster::start("http-standby").await?;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let name = petaflop_operator::cluster::leader::LEASE;
    let held = json!({
        "metadata": { "name": name },
        "spec": { "holderIdentity": "another", "leaseDurationSeconds": 15 },
    });
    create(leases.clone(), held).await?;
    // As the one that leads does.
    let renewing = tokio::spawn(async move {
        for transitions in 1.. {
            let renewed = json!({ "spec": { "leaseTransitions": transitions } });
            leases.patch(name, &PatchParams::default(), &Patch::Merge(renewed)).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        anyhow::Ok(())
    });
    let standby = cluster
        .operator_with(|settings| {
            settings.leader_elect = true;
            settings.public_metrics = true;
        })
        .await?;
    let token = account(&cluster, "viewer").await?;
    let_view(&cluster, "viewer").await?;
    let viewer = Asker::new(&standby, Some(&token))?;
    eventually("a ready replica", Duration::from_secs(60), || async {
        let ready = viewer.get("/readyz").await.map_err(|error| error.to_string())?;
        if ready.0 == 200 { Ok(()) } else { Err(ready.1) }
    })
    .await?;
    let metrics = viewer.text("/metrics").await?;
    ensure!(metrics.contains("\npetaflop_leader 0\n"), "{metrics}");
    ensure!(!metrics.contains("petaflop_compute_"), "money is the leader's to tell: {metrics}");
    let here = &cluster.namespace;
    let (status, text) = viewer.get(&format!("/api/v1/offers?namespace={here}")).await?;
    ensure!(status == 503 && text.contains("stands by"), "{status}: {text}");
    // What lies in stores every replica can tell.
    ensure!(viewer.json(&format!("/api/v1/costs?namespace={here}")).await?["total"] == "0");
    renewing.abort();
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_leaves_its_cost_its_log_and_no_secret_behind() -> Result<()> {
    let logged = captured();
    let cluster = Cluster::start("http-job").await?;
    let running = cluster
        .operator_with(|settings| {
            // As a bucket's key would be: it goes to the machine, and nowhere else.
            let secret = ("AWS_SECRET_ACCESS_KEY".to_owned(), Secret::new(CANARY));
            settings.store.credentials = [secret].into();
            settings.public_metrics = true;
            settings.http_address = ([0, 0, 0, 0], 0).into();
        })
        .await?;
    let here = cluster.namespace.clone();
    let viewer = Asker::new(&running, Some(&account(&cluster, "viewer").await?))?;
    let_view(&cluster, "viewer").await?;
    let budgets: Api<SpendBudget> = Api::namespaced(cluster.client.clone(), &here);
    let budget = json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": "SpendBudget", "metadata": { "name": "all" },
        "spec": { "period": "Monthly", "limit": "100" },
    });
    create(budgets.clone(), budget).await?;
    // One that no offer is good enough for.
    let mut waits = tiny("waits")?;
    waits.spec.placement.providers = vec!["elsewhere".into()];
    cluster.create(&waits).await?;
    cluster.create(&tiny("job")?).await?;

    let status_is = |type_: &'static str| {
        move |job: &TrainingJob| job.status.as_ref().is_some_and(|s| is(&s.conditions, type_))
    };
    cluster.until("job", "Running", Duration::from_secs(120), status_is("Running")).await?;
    let while_running = viewer.text("/metrics").await?;
    let secrets = secrets(&cluster, &running).await?;
    // The Secret's own kind is left out: it is where the root is.
    let objects_while_running = dump_all(&cluster).await?;
    let logs = format!("/api/v1/logs/{here}/trainingjobs/job");
    let following = {
        let (path, asker) =
            (format!("{logs}?follow=true"), Asker::new(&running, viewer.token.as_deref())?);
        tokio::spawn(async move { asker.text(&path).await })
    };
    cluster.until("job", "Complete", Duration::from_secs(240), status_is("Complete")).await?;
    cluster.until_no_claims().await?;

    // What was followed is what is there afterwards, when the machine is gone.
    let log = viewer.text(&logs).await?;
    ensure!(!log.trim().is_empty(), "an empty log");
    let followed = tokio::time::timeout(Duration::from_secs(60), following).await???;
    ensure!(followed == log, "{followed:?}\n{log:?}");

    let costs = viewer.json(&format!("/api/v1/costs?namespace={here}&rows=true")).await?;
    let booked = cluster.booked().await?;
    let total: petaflop_arbiter::money::Usd = serde_json::from_value(costs["total"].clone())?;
    ensure!(total.micros() == booked && booked > 0, "{costs} {booked}");
    ensure!(costs["groups"][format!("{here}/job")] == costs["total"], "{costs}");
    ensure!(costs["rows"].as_array().is_some_and(|rows| !rows.is_empty()), "{costs}");
    let none = viewer.json(&format!("/api/v1/costs?namespace={here}&to=2020-01-01")).await?;
    ensure!(none["total"] == "0", "{none}");
    let by = format!("/api/v1/costs?namespace={here}&by=namespace&from");
    let spaces = viewer.json(&format!("{by}=2020-01-01")).await?;
    ensure!(spaces["groups"] == json!({ here.as_str(): costs["total"] }), "{spaces}");
    let none = viewer.json(&format!("{by}=2100-01-01T00:00:00Z")).await?;
    ensure!(none["total"] == "0" && none["groups"] == json!({}), "{none}");

    let offers = viewer.json(&format!("/api/v1/offers?namespace={here}")).await?;
    ensure!(offers["offers"][0]["provider"] == cluster.provider.as_str(), "{offers}");
    let path = format!("/api/v1/explain/{here}/trj/waits");
    let explained = viewer.json(&path).await?;
    let obstacles = &explained["explanation"]["offers"][0]["obstacles"];
    ensure!(obstacles.as_array().is_some_and(|all| !all.is_empty()), "{explained}");

    from_the_command_line(&cluster, &running, &log, booked).await?;

    let after = viewer.text("/metrics").await?;
    promtool_checks(&while_running)?;
    promtool_checks(&after)?;
    let spent: f64 = after
        .lines()
        .filter(|line| line.starts_with("petaflop_compute_cost_usd_total{"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    ensure!((spent * 1e6 - booked as f64).abs() < 1.0, "{spent} {booked}");
    metrics_are_as_committed(&while_running, &after)?;

    // Money does not begin anew with the process.
    drop(running);
    let again = cluster.operator_with(|settings| settings.public_metrics = true).await?;
    let anonymous = Asker::new(&again, None)?;
    let sum = |text: &str| -> Vec<String> {
        let cost = text.lines().filter(|line| line.starts_with("petaflop_compute_cost_usd_total{"));
        cost.map(str::to_owned).collect()
    };
    eventually("the same money after a restart", Duration::from_secs(60), || async {
        let text = anonymous.text("/metrics").await.map_err(|error| error.to_string())?;
        if sum(&text) == sum(&after) { Ok(()) } else { Err(text) }
    })
    .await?;

    // Nobody who looks at all of it finds the secret.
    let operators_log = String::from_utf8_lossy(&logged.lock().expect("no panic")).into_owned();
    let mut shown: Vec<(&str, String)> = vec![
        ("metrics", while_running + &after),
        ("the job's log", log),
        ("costs", costs.to_string()),
        ("offers", offers.to_string()),
        ("explanation", explained.to_string()),
        ("the operator's log", operators_log.clone()),
        ("rows of the ledger", serde_json::to_string(&cluster.rows().await?)?),
    ];
    shown.extend(dump_all(&cluster).await?);
    let running = objects_while_running.iter().map(|(what, text)| (*what, text.clone()));
    shown.extend(running);
    for (what, text) in &shown {
        for (whose, secret) in &secrets {
            ensure!(!text.contains(secret.as_str()), "{what} shows {whose}");
        }
    }
    ensure!(operators_log.contains("petaflop_operator"), "nothing was captured");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_s_log_is_read_while_it_runs_and_when_it_is_gone() -> Result<()> {
    let cluster = Cluster::start("http-service").await?;
    let [model, _] = models(&cluster).await?;
    let everywhere = |settings: &mut Settings| settings.http_address = ([0, 0, 0, 0], 0).into();
    let running = cluster.operator_with(everywhere).await?;
    let here = cluster.namespace.as_str();
    let token = account(&cluster, "viewer").await?;
    let viewer = Asker::new(&running, Some(&token))?;
    let_view(&cluster, "viewer").await?;
    cluster.serve("chat", json!({ "model": { "artifact": model } })).await?;
    let loaded = |s: &petaflop_crds::InferenceServiceStatus| s.is("ModelLoaded");
    cluster.until_service("chat", "loaded", Duration::from_secs(240), loaded).await?;
    let logs = format!("/api/v1/logs/{here}/inferenceservices/chat");
    let log = eventually("its first words", Duration::from_secs(60), || async {
        let text = viewer.text(&logs).await.map_err(|error| error.to_string())?;
        if text.contains("\"listening\"") { Ok(text) } else { Err(text) }
    })
    .await?;

    // The same with a kubeconfig, through the API server.
    let operator = stands_as_in_the_chart(&cluster, &running).await?;
    account(&cluster, "petaflop-viewer").await?;
    let_view(&cluster, "petaflop-viewer").await?;
    let program = petaflop_tests::binary("petaflop")?;
    // Rights that were just given need a moment.
    eventually("the same log", Duration::from_secs(30), || async {
        let mut command = tokio::process::Command::new(&program);
        command.args(["logs", "infs/chat", "--namespace", here, "--operator", &operator]);
        command.arg("--kubeconfig").arg(cluster.plane.admin().kubeconfig());
        let output = command.output().await.map_err(|error| error.to_string())?;
        let shown = String::from_utf8_lossy(&output.stdout);
        match output.status.success() && shown.starts_with(&log) {
            true => Ok(()),
            false => Err(format!("{output:?}")),
        }
    })
    .await?;

    let following = {
        let (path, asker) = (format!("{logs}?follow=true"), Asker::new(&running, Some(&token))?);
        tokio::spawn(async move { asker.text(&path).await })
    };
    cluster.delete_service("chat").await?;
    cluster.until_service_gone("chat").await?;
    cluster.until_no_claims().await?;
    let followed = tokio::time::timeout(Duration::from_secs(60), following).await???;
    ensure!(followed.starts_with(&log), "{followed:?}\n{log:?}");
    ensure!(viewer.text(&logs).await? == followed);
    Ok(())
}
