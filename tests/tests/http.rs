//! What the operator answers by HTTP, on a real API server: to whom, what it counts, and that it
//! shows no secret anywhere.

mod operator;
mod serving;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Pod, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Resource, ResourceExt};
use operator::{Cluster, is, tiny};
use petaflop_agent_api::task::Secret;
use petaflop_crds::{ComputeClaim, ComputeProvider, SpendBudget, TrainingJob};
use petaflop_harness::{Access, Launch, eventually, tools};
use petaflop_operator::cluster::operate::Running;
use petaflop_operator::cluster::settings::Settings;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use serving::{Says, models};

/// Stands for every secret that passes through the operator.
const CANARY: &str = "canary-5f1d9c2e7b";

/// Who asks.
struct Asker {
    http: reqwest::Client,
    token: Option<String>,
    base: String,
}

impl Asker {
    fn new(running: &Running, token: Option<&str>) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            token: token.map(str::to_owned),
            base: format!("http://127.0.0.1:{}", running.http.port()),
        })
    }

    /// Status and text.
    async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    async fn text(&self, path: &str) -> Result<String> {
        let (status, text) = self.get(path).await?;
        ensure!(status == 200, "{path}: {status}: {text}");
        Ok(text)
    }

    async fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path).await?)?)
    }
}

/// Creates an object from its JSON.
async fn create<K>(api: Api<K>, object: Value) -> Result<K>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// The token of a new service account of the cluster's namespace.
async fn account(cluster: &Cluster, name: &str) -> Result<String> {
    let (client, namespace) = (cluster.client.clone(), cluster.namespace.as_str());
    let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
    create(accounts.clone(), json!({ "metadata": { "name": name } })).await?;
    let wish = serde_json::from_value(json!({ "spec": { "audiences": [] }, "metadata": {} }))?;
    let granted = accounts.create_token_request(name, &PostParams::default(), &wish).await?;
    Ok(granted.status.context("a token")?.token)
}

/// Lets a service account do what the chart's viewers may, in its own namespace.
async fn let_view(cluster: &Cluster, name: &str) -> Result<()> {
    let (client, namespace) = (&cluster.client, cluster.namespace.as_str());
    let rules: Vec<Value> = viewer_rules()?;
    let role = json!({ "metadata": { "name": name }, "rules": rules });
    create(Api::<Role>::namespaced(client.clone(), namespace), role).await?;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": namespace }],
    });
    create(Api::<RoleBinding>::namespaced(client.clone(), namespace), binding).await?;
    Ok(())
}

/// Lets a service account do what one of the chart's cluster roles says, everywhere.
async fn let_everywhere(cluster: &Cluster, account: &str, role: &str) -> Result<String> {
    let name = format!("{}-{account}-{role}", cluster.namespace);
    let rules = roles()?.remove(role).context("the chart's role")?;
    let object = json!({ "metadata": { "name": name }, "rules": rules });
    create(Api::<ClusterRole>::all(cluster.client.clone()), object).await?;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": cluster.namespace }],
    });
    create(Api::<ClusterRoleBinding>::all(cluster.client.clone()), binding).await?;
    Ok(name)
}

/// Rules of the chart's cluster roles, as rendered, by what follows the release's name.
fn roles() -> Result<BTreeMap<String, Vec<Value>>> {
    let mut roles = BTreeMap::new();
    for document in include_str!("../golden/charts/default.yaml").split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document)?;
        if object["kind"] == "ClusterRole"
            && let Some(name) = object["metadata"]["name"].as_str()
        {
            let rules = object["rules"].as_array().cloned().unwrap_or_default();
            roles.insert(name.trim_start_matches("petaflop-").to_owned(), rules);
        }
    }
    Ok(roles)
}

fn viewer_rules() -> Result<Vec<Value>> {
    let viewers = roles()?.into_iter().filter(|(name, _)| name.ends_with("-viewer"));
    Ok(viewers.flat_map(|(_, rules)| rules).collect())
}

/// Everything that this process logs, from now on.
fn captured() -> Arc<Mutex<Vec<u8>>> {
    static BUFFER: Mutex<Option<Arc<Mutex<Vec<u8>>>>> = Mutex::new(None);
    static ONCE: Once = Once::new();
    let buffer = BUFFER.lock().expect("no panic").get_or_insert_with(Arc::default).clone();
    let writer = buffer.clone();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter("debug")
            .with_ansi(false)
            .with_writer(Mutex::new(Captured(writer)))
            .init();
    });
    buffer
}

struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Names of metrics, with their labels, without values.
fn shape(text: &str) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    for line in text.lines() {
        if line.starts_with('#') {
            lines.insert(line.to_owned());
            continue;
        }
        let (name, rest) = match line.split_once('{') {
            Some((name, rest)) => (name, rest),
            None => (line.split(' ').next().unwrap_or(line), ""),
        };
        let labels = rest.rsplit_once('}').map_or("", |(labels, _)| labels);
        let keys: Vec<&str> =
            labels.split("\",").filter_map(|pair| pair.split_once('=')).map(|(k, _)| k).collect();
        lines.insert(format!("{name}{{{}}}", keys.join(",")));
    }
    lines
}

/// Metrics that a text asks for.
fn asked_for(text: &str) -> BTreeSet<String> {
    let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
    text.split(word).filter(|w| w.starts_with("petaflop_")).map(str::to_owned).collect()
}

fn promtool_checks(text: &str) -> Result<()> {
    let mut tool = Command::new(tools::promtool()?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    tool.stdin.take().context("stdin")?.write_all(text.as_bytes())?;
    let output = tool.wait_with_output()?;
    let words = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    // It lints too, and says so without failing.
    ensure!(output.status.success() && words.trim().is_empty(), "{words}\n{text}");
    Ok(())
}

/// Every object of a kind, as text.
async fn dump<K>(api: Api<K>) -> Result<String>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    Ok(serde_json::to_string(&api.list(&ListParams::default()).await?.items)?)
}

/// All that people may look at in the cluster's namespace. Not Secrets: those are where secrets are.
async fn dump_all(cluster: &Cluster) -> Result<Vec<(&'static str, String)>> {
    let (client, namespace) = (&cluster.client, cluster.namespace.as_str());
    let events = kube::discovery::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(
        "events.k8s.io",
        "v1",
        "Event",
    ));
    let events: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &events);
    Ok(vec![
        ("jobs", dump(Api::<TrainingJob>::namespaced(client.clone(), namespace)).await?),
        ("claims", dump(Api::<ComputeClaim>::namespaced(client.clone(), namespace)).await?),
        ("budgets", dump(Api::<SpendBudget>::namespaced(client.clone(), namespace)).await?),
        ("providers", dump(Api::<ComputeProvider>::all(client.clone())).await?),
        ("config maps", dump(Api::<ConfigMap>::namespaced(client.clone(), namespace)).await?),
        ("leases", dump(Api::<Lease>::namespaced(client.clone(), namespace)).await?),
        ("events", dump(Api::<Event>::namespaced(client.clone(), namespace)).await?),
        ("events.k8s.io", dump(events).await?),
    ])
}

/// What must be seen nowhere while a job's machine runs, as it would be written: what opens the store,
/// the machine's one-time token, burned by now, and whatever the operator's keys come from. The token is
/// in what the machine was started with, and nothing else of these is.
async fn secrets(cluster: &Cluster, running: &Running) -> Result<Vec<(&'static str, String)>> {
    let claims = cluster.claims().await?;
    let claim = claims.iter().find(|claim| claim.spec.owner.name == "job").context("a claim")?;
    let uid = claim.uid().context("a uid")?;
    let started = cluster.cloud.environments_of(&uid);
    let mut environment = started.first().context("a machine")?.clone();
    let token = environment.remove("PETAFLOP_TOKEN").context("a token")?;
    ensure!(token.len() >= 32, "that is no token: {token:?}");
    let pinned = claim.status.as_ref().and_then(|status| status.agent.as_ref());
    ensure!(pinned.is_some(), "no agent was let in: {claim:?}");
    let root = &running.operator.installation.root;
    let mut secrets = vec![
        ("what opens the store", CANARY.to_owned()),
        ("the machine's one-time token", token),
        ("the key of a replica", root.replica_key(&uid).expose().to_owned()),
    ];
    let of_root = root.to_bytes();
    let hex: String = of_root.iter().map(|byte| format!("{byte:02x}")).collect();
    secrets.push(("the operator's root", hex));
    secrets.push(("the operator's root", json!(ByteString(of_root.to_vec())).to_string()));
    let told = format!("{environment:?}");
    for (whose, secret) in &secrets {
        ensure!(!told.contains(secret.trim_matches('"')), "the machine was started with {whose}");
    }
    let bare =
        |(whose, secret): (&'static str, String)| (whose, secret.trim_matches('"').to_owned());
    Ok(secrets.into_iter().map(bare).collect())
}

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

/// Removes a cluster role and its binding.
async fn remove(cluster: &Cluster, name: &str) -> Result<()> {
    let client = &cluster.client;
    let gone = DeleteParams::default();
    Api::<ClusterRoleBinding>::all(client.clone()).delete(name, &gone).await?;
    Api::<ClusterRole>::all(client.clone()).delete(name, &gone).await?;
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

/// What a user sees and does with a kubeconfig, through the API server: one whose kubeconfig holds a
/// token, and an administrator, whose holds a certificate.
async fn from_the_command_line(
    cluster: &Cluster,
    running: &Running,
    log: &str,
    booked: i64,
) -> Result<()> {
    let (here, client) = (cluster.namespace.as_str(), cluster.client.clone());
    let operator = stands_as_in_the_chart(cluster, running).await?;
    let user = cluster.plane.service_account(here, "viewer").await?;
    let petaflop = async |who: &Access, arguments: &[&str]| -> Result<(bool, String, String)> {
        let mut command = Command::new(petaflop_tests::binary("petaflop")?);
        command.args(arguments).args(["--namespace", here, "--operator", &operator]);
        command.arg("--kubeconfig").arg(who.kubeconfig());
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((output.status.success(), text(output.stdout), text(output.stderr)))
    };
    let (done, _, said) = petaflop(&user, &["offers"]).await?;
    ensure!(!done && said.contains("petaflop-api"), "{said}");
    let mut rules = viewer_rules()?;
    rules.push(json!({
        "apiGroups": [""], "resources": ["services/proxy"], "resourceNames": ["petaflop:http"], "verbs": ["get"],
    }));
    let roles = Api::<Role>::namespaced(client.clone(), here);
    let role =
        json!({ "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": rules });
    roles.patch("viewer", &PatchParams::default(), &Patch::Merge(role)).await?;
    // The account that people with a certificate ask as.
    account(cluster, "petaflop-viewer").await?;
    let_view(cluster, "petaflop-viewer").await?;

    for who in [&user, cluster.plane.admin()] {
        // Rights that were just given need a moment.
        let offers = eventually("offers", Duration::from_secs(30), || async {
            match petaflop(who, &["offers", "--json"]).await.map_err(|error| error.to_string())? {
                (true, offers, _) => Ok(offers),
                (false, _, said) => Err(said),
            }
        });
        ensure!(offers.await?.contains(&cluster.provider));
        let ask = async |arguments: &[&str]| -> Result<String> {
            let (done, shown, said) = petaflop(who, arguments).await?;
            ensure!(done, "{arguments:?}: {said}");
            Ok(shown)
        };
        ensure!(ask(&["logs", "--follow", "job/job"]).await? == log);
        let costs: Value =
            serde_json::from_str(&ask(&["costs", "--by", "budget", "--json"]).await?)?;
        let total: petaflop_arbiter::money::Usd = serde_json::from_value(costs["total"].clone())?;
        ensure!(total.micros() == booked, "{costs}");
        ensure!(costs["groups"][format!("{here}/all")] == costs["total"], "{costs}");
        let explained = ask(&["explain", "job/waits"]).await?;
        ensure!(explained.contains(&cluster.provider), "{explained}");
        let listed = ask(&["ps", "--all"]).await?;
        ensure!(listed.contains("Complete") && listed.contains("waits"), "{listed}");
    }
    let stop = ["stop", "job/waits"];
    let (done, _, said) = petaflop(&user, &stop).await?;
    ensure!(!done && said.contains("forbidden"), "a viewer stops: {said}");
    let (done, _, said) = petaflop(cluster.plane.admin(), &stop).await?;
    ensure!(done && cluster.job("waits").await?.spec.suspend, "{said}");
    Ok(())
}

/// The chart's Service, whose Pod is this process. Returns how the command line is told of it.
async fn stands_as_in_the_chart(cluster: &Cluster, running: &Running) -> Result<String> {
    let (here, client) = (cluster.namespace.as_str(), cluster.client.clone());
    let outwards = std::net::UdpSocket::bind("0.0.0.0:0")?;
    outwards.connect("192.0.2.1:9")?;
    let address = outwards.local_addr()?.ip();
    let service = json!({
        "metadata": { "name": "petaflop" },
        "spec": { "ports": [{ "name": "http", "port": 8080 }] },
    });
    create(Api::<Service>::namespaced(client.clone(), here), service).await?;
    // The API server proxies to Pods only, and looks at what they say of themselves.
    let pods = Api::<Pod>::namespaced(client.clone(), here);
    let pod = json!({
        "metadata": { "name": "petaflop" },
        "spec": { "containers": [{ "name": "operator", "image": "localhost/none" }] },
    });
    create(pods.clone(), pod).await?;
    let status = json!({ "status": { "podIP": address, "podIPs": [{ "ip": address }] } });
    pods.patch_status("petaflop", &PatchParams::default(), &Patch::Merge(status)).await?;
    let endpoints = json!({
        "metadata": { "name": "petaflop" },
        "subsets": [{
            "addresses": [{
                "ip": address,
                "targetRef": { "kind": "Pod", "namespace": here, "name": "petaflop" },
            }],
            "ports": [{ "name": "http", "port": running.http.port() }],
        }],
    });
    create(Api::<Endpoints>::namespaced(client.clone(), here), endpoints).await?;

    Ok(format!("{here}/petaflop"))
}

/// Names, kinds, words and labels of all metrics, and that whatever the chart asks for exists.
fn metrics_are_as_committed(while_running: &str, after: &str) -> Result<()> {
    let mut all = shape(while_running);
    all.extend(shape(after));
    let text = all.into_iter().collect::<Vec<_>>().join("\n") + "\n";
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let path = root.join("tests/golden/metrics.txt");
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &text)?;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    ensure!(committed == text, "not as committed (UPDATE=1 writes it anew):\n{text}");
    for file in ["alerts.yaml", "dashboard.json"] {
        let path = root.join("charts/petaflop/files").join(file);
        for name in asked_for(&std::fs::read_to_string(&path)?) {
            let sample = format!("\n{name}{{");
            ensure!(text.contains(&sample), "{file} asks for {name}, which nobody tells");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_prometheus_scrapes_the_operator() -> Result<()> {
    let cluster = Cluster::start("http-prometheus").await?;
    let running = cluster.operator().await?;
    let token = account(&cluster, "prometheus").await?;
    let scrapes = let_everywhere(&cluster, "prometheus", "metrics-reader").await?;
    let folder = tempfile::tempdir()?;
    let config = json!({
        "global": { "scrape_interval": "1s", "evaluation_interval": "1s" },
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{
            "job_name": "petaflop",
            "authorization": { "credentials_file": "token" },
            "static_configs": [{ "targets": [running.http.to_string()] }],
        }],
    });
    std::fs::write(folder.path().join("prometheus.yaml"), config.to_string())?;
    std::fs::write(folder.path().join("token"), token)?;
    let rules = include_str!("../../charts/petaflop/files/alerts.yaml");
    let rules = rules.replace("__HOURLY_SPEND_LIMIT__", "100");
    std::fs::write(folder.path().join("rules.yaml"), rules)?;
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let file = |name: &str| folder.path().join(name).display().to_string();
    let prometheus = cluster.plane.run(
        &format!("prometheus-{port}"),
        Launch::new(tools::prometheus()?).arguments([
            format!("--config.file={}", file("prometheus.yaml")),
            format!("--storage.tsdb.path={}", file("data")),
            format!("--web.listen-address=127.0.0.1:{port}"),
        ]),
    )?;
    let asker = Asker {
        http: reqwest::Client::builder().no_proxy().build()?,
        token: None,
        base: format!("http://127.0.0.1:{port}"),
    };
    let query =
        "/api/v1/query?query=sum(petaflop_leader)%20*%20on()%20count(petaflop_offer_price_usd)";
    let answered = eventually("an answer by Prometheus", Duration::from_secs(120), || async {
        prometheus.must_be_up().map_err(|error| error.to_string())?;
        let answer = asker.json(query).await.map_err(|error| error.to_string())?;
        match answer["data"]["result"][0]["value"][1].as_str() {
            Some("1") => Ok(()),
            _ => Err(answer.to_string()),
        }
    });
    answered.await?;
    let rules = asker.json("/api/v1/rules").await?;
    for rule in rules["data"]["groups"][0]["rules"].as_array().context("rules")? {
        ensure!(rule["health"] != "err", "{rule}");
    }
    prometheus.kill();
    remove(&cluster, &scrapes).await
}
