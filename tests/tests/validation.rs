//! A real API server judges objects as we judge them without one: every row of the CRDs' tables
//! is refused or accepted alike, in the same words where the CRD carries them.

mod support;

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{self, StreamExt};
use http::Method;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use petaflop_crds::{InferenceService, crds, manifest};
use petaflop_harness::{ControlPlane, Namespace};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use support::{typed, with_spec};
use tokio::sync::OnceCell;

/// One row of the tables.
#[derive(Debug, Deserialize)]
struct Row {
    kind: String,
    set: Map<String, Value>,
    was: Option<Map<String, Value>>,
    #[serde(default)]
    expect: String,
    by: Option<String>,
}

fn rows(table: &str) -> Vec<Row> {
    serde_saphyr::from_str(table).expect("the table can be read")
}

fn invalid() -> Vec<Row> {
    rows(include_str!("../../crds/tests/invalid.yaml"))
}

/// A valid object of the kind, patched.
fn patched(kind: &str, patches: &Map<String, Value>) -> Value {
    let mut object = with_spec(kind, &Map::new());
    for (path, value) in patches {
        let mut at = &mut object;
        for step in path.split('.') {
            at = &mut at[step];
        }
        *at = value.clone();
    }
    object
}

/// A server that has our CRDs.
struct Server {
    client: Client,
    namespace: Namespace,
}

/// What the server made of an object.
enum Answer {
    Taken(Value),
    Refused(String),
}

impl Server {
    /// One for all tests, with a namespace of one's own.
    async fn with_crds() -> Result<Server> {
        static INSTALLED: OnceCell<()> = OnceCell::const_new();
        let plane = ControlPlane::shared().await;
        let client = plane.client().await?;
        INSTALLED.get_or_try_init(|| install(&client)).await?;
        Ok(Server { client, namespace: plane.namespace("validation").await? })
    }

    /// Sends an object to where its kind lives.
    async fn send(
        &self,
        method: Method,
        kind: &str,
        name: &str,
        query: &str,
        object: &Value,
    ) -> Result<Answer> {
        let plural = format!("{}s", kind.to_lowercase());
        let place = match kind {
            "ComputeProvider" => plural,
            _ => format!("namespaces/{}/{plural}", self.namespace.name()),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(format!("/apis/petaflop.dev/v1alpha1/{place}{name}?{query}"))
            .header("content-type", "application/json")
            .body(serde_json::to_vec(object)?)?;
        match self.client.request::<Value>(request).await {
            Ok(taken) => Ok(Answer::Taken(taken)),
            Err(kube::Error::Api(status)) if matches!(status.code, 400 | 422) => {
                Ok(Answer::Refused(status.message.clone()))
            }
            Err(error) => Err(error).with_context(|| object.to_string()),
        }
    }

    async fn create(&self, kind: &str, query: &str, object: &Value) -> Result<Answer> {
        self.send(Method::POST, kind, "", query, object).await
    }

    /// What the server says to a row. Nothing of it stays.
    async fn judge(&self, index: usize, row: &Row) -> Result<Answer> {
        let mut object = patched(&row.kind, &row.set);
        let Some(was) = &row.was else {
            return self.create(&row.kind, "dryRun=All&fieldValidation=Strict", &object).await;
        };
        let mut old = patched(&row.kind, was);
        // Providers have no namespace of their own.
        let name = format!("{}-{index}", self.namespace.name());
        old["metadata"]["name"] = json!(name);
        let status = old.as_object_mut().and_then(|old| old.remove("status"));
        let path = format!("/{name}");
        let mut stored = match self.create(&row.kind, "fieldValidation=Strict", &old).await? {
            Answer::Taken(stored) => stored,
            Answer::Refused(why) => bail!("the old object of {row:?} is refused: {why}"),
        };
        let part = if row.set.contains_key("status") { "/status" } else { "" };
        if let Some(status) = status {
            stored["status"] = status;
            let query = "fieldValidation=Strict";
            let place = format!("{path}/status");
            stored = match self.send(Method::PUT, &row.kind, &place, query, &stored).await? {
                Answer::Taken(stored) => stored,
                Answer::Refused(why) => bail!("the old status of {row:?} is refused: {why}"),
            };
        }
        object["metadata"]["name"] = json!(name);
        object["metadata"]["resourceVersion"] = stored["metadata"]["resourceVersion"].clone();
        let query = "dryRun=All&fieldValidation=Strict";
        let answer =
            self.send(Method::PUT, &row.kind, &format!("{path}{part}"), query, &object).await?;
        self.send(Method::DELETE, &row.kind, &path, "", &json!({})).await?;
        Ok(answer)
    }

    /// What the server says to all rows, some at a time.
    async fn judge_all(&self, rows: &[Row]) -> Result<Vec<Answer>> {
        stream::iter(rows.iter().enumerate())
            .map(|(index, row)| self.judge(index, row))
            .buffered(8)
            .collect::<Vec<_>>()
            .await
            .into_iter()
            .collect()
    }
}

/// Installs the CRDs and waits until the server serves them. A rule that could be too dear, or a schema
/// that is not structural, fails here.
async fn install(client: &Client) -> Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in crds::all() {
        let name = crd.name_any();
        api.create(&PostParams::default(), &crd).await.with_context(|| name.clone())?;
        for attempt in 0.. {
            let conditions: BTreeMap<String, (String, String)> = api
                .get(&name)
                .await?
                .status
                .unwrap_or_default()
                .conditions
                .unwrap_or_default()
                .into_iter()
                .map(|c| (c.type_, (c.status, c.message.unwrap_or_default())))
                .collect();
            ensure!(!conditions.contains_key("NonStructuralSchema"), "{name}: {conditions:?}");
            if conditions.get("Established").is_some_and(|(status, _)| status == "True") {
                break;
            }
            ensure!(attempt < 300, "{name} is not served: {conditions:?}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
    // Established a moment before it is served.
    for kind in crds::KINDS {
        let uri = format!("/apis/petaflop.dev/v1alpha1/{}s?limit=1", kind.to_lowercase());
        for attempt in 0.. {
            let request = http::Request::get(&uri).body(Vec::new())?;
            match client.request::<Value>(request).await {
                Ok(_) => break,
                Err(error) if attempt >= 300 => bail!("{kind} is not served: {error}"),
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(100)).await,
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_server_refuses_what_we_refuse() -> Result<()> {
    let server = Server::with_crds().await?;
    let rows = invalid();
    let created = rows.iter().filter(|row| row.was.is_none()).count();
    ensure!(created >= 120, "only {created} specs that must be refused");
    let mut wrong = Vec::new();
    for (row, answer) in rows.iter().zip(server.judge_all(&rows).await?) {
        match answer {
            Answer::Taken(_) if row.by.as_deref() == Some("us") => {}
            Answer::Taken(_) => wrong.push(format!("taken: {row:?}")),
            Answer::Refused(why)
                if row.by.as_deref() == Some("rule") && !why.contains(&row.expect) =>
            {
                wrong.push(format!("in other words: {row:?}: {why}"));
            }
            Answer::Refused(_) => {}
        }
    }
    ensure!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), rows.len(), wrong.join("\n"));
    eprintln!("{} objects refused alike, {created} of them at creation", rows.len());
    Ok(())
}

#[tokio::test]
async fn a_server_takes_what_we_take() -> Result<()> {
    let server = Server::with_crds().await?;
    let rows = rows(include_str!("../../crds/tests/valid.yaml"));
    for (row, answer) in rows.iter().zip(server.judge_all(&rows).await?) {
        if let Answer::Refused(why) = answer {
            bail!("refused: {row:?}: {why}");
        }
    }
    eprintln!("{} objects accepted alike", rows.len());
    Ok(())
}

#[tokio::test]
async fn a_server_fills_in_the_defaults_that_we_fill_in() -> Result<()> {
    let server = Server::with_crds().await?;
    for kind in crds::KINDS {
        let sent = patched(kind, &Map::new());
        let theirs = match server.create(kind, "dryRun=All", &sent).await? {
            Answer::Taken(theirs) => theirs["spec"].clone(),
            Answer::Refused(why) => bail!("{kind}: {why}"),
        };
        let ours = typed(kind, sent)?["spec"].take();
        ensure!(
            as_floats(theirs.clone()) == as_floats(ours.clone()),
            "{kind}\nserver {theirs:#}\nours {ours:#}"
        );
    }
    Ok(())
}

/// A server writes 1.0 as 1.
fn as_floats(value: Value) -> Value {
    match value {
        Value::Number(number) => json!(number.as_f64()),
        Value::Array(items) => items.into_iter().map(as_floats).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, as_floats(value))).collect(),
        other => other,
    }
}

#[tokio::test]
async fn an_unknown_field_is_refused_strictly_and_pruned_otherwise() -> Result<()> {
    let server = Server::with_crds().await?;
    for kind in crds::KINDS {
        let mut object = patched(kind, &Map::new());
        object["spec"]["surprise"] = json!(1);
        let strict = server.create(kind, "dryRun=All&fieldValidation=Strict", &object).await?;
        match strict {
            Answer::Refused(why) => {
                ensure!(why.contains("unknown field \"spec.surprise\""), "{kind}: {why}");
            }
            Answer::Taken(_) => bail!("{kind}: taken"),
        }
        match server.create(kind, "dryRun=All&fieldValidation=Ignore", &object).await? {
            Answer::Taken(pruned) => ensure!(pruned["spec"].get("surprise").is_none(), "{kind}"),
            Answer::Refused(why) => bail!("{kind}: {why}"),
        }
        let errors = manifest::judge(object.to_string().as_bytes(), "case").expect_err(kind);
        ensure!(errors.0.iter().any(|e| e.path == "spec.surprise"), "{kind}: {errors}");
    }
    Ok(())
}

#[tokio::test]
async fn kubectl_shows_what_a_person_looks_for() -> Result<()> {
    let server = Server::with_crds().await?;
    for (kind, narrow, wide) in [
        (
            "TrainingJob",
            "Name Phase Provider Instance GPU $/h Cost Restarts Age",
            "Region Spot Claim Reason",
        ),
        ("InferenceService", "Name URL Ready Desired Available Provider $/h Age", ""),
        (
            "ComputeClaim",
            "Name Owner Provider Instance-ID Type Zone Capacity $/h Ready Age",
            "Phase Cost Reason",
        ),
        ("ComputeProvider", "Name Type State Ready Offers Machines $/h Month Age", "Reason"),
        (
            "SpendBudget",
            "Name Period Limit Spent Reserved $/h Projected Within Age",
            "On-Exceeded Ends",
        ),
    ] {
        let uri = format!("/apis/petaflop.dev/v1alpha1/{}s", kind.to_lowercase());
        let request = http::Request::get(&uri)
            .header("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
            .body(Vec::new())?;
        let table: Value = server.client.request(request).await?;
        let columns = |priority: i64| -> Vec<&str> {
            let all = table["columnDefinitions"].as_array().into_iter().flatten();
            all.filter(|c| c["priority"] == priority).filter_map(|c| c["name"].as_str()).collect()
        };
        ensure!(columns(0).join(" ") == narrow, "{kind}: {:?}", columns(0));
        ensure!(columns(1).join(" ") == wide, "{kind}: {:?}", columns(1));
    }
    Ok(())
}

#[tokio::test]
async fn every_selectable_field_selects() -> Result<()> {
    let server = Server::with_crds().await?;
    for crd in crds::all() {
        for field in crd.spec.versions[0].selectable_fields.iter().flatten() {
            let uri = format!(
                "/apis/petaflop.dev/v1alpha1/{}?fieldSelector={}%3Dx",
                crd.spec.names.plural,
                field.json_path.trim_start_matches('.')
            );
            let request = http::Request::get(&uri).body(Vec::new())?;
            server.client.request::<Value>(request).await.context(uri)?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_scaler_owns_the_replicas_within_their_bounds() -> Result<()> {
    let server = Server::with_crds().await?;
    let services: Api<InferenceService> =
        Api::namespaced(server.client.clone(), server.namespace.name());
    // What lies in Git does not say how many.
    let mut wanted = patched("InferenceService", &Map::new());
    wanted["spec"]["maxReplicas"] = json!(3);
    let apply = async || {
        let by = PatchParams::apply("git");
        services.patch("case", &by, &Patch::Apply(&wanted)).await
    };
    ensure!(apply().await?.spec.replicas == 1);

    let scale = async |replicas: u32| {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        services.patch_scale("case", &PatchParams::default(), &patch).await
    };
    let scaled = scale(3).await?;
    ensure!(scaled.spec.and_then(|spec| spec.replicas) == Some(3));
    ensure!(
        apply().await?.spec.replicas == 3,
        "applying what lies in Git takes nothing from the scaler"
    );

    let refused = scale(4).await.err().context("scaled beyond its bound")?.to_string();
    ensure!(refused.contains("replicas must be at most maxReplicas"), "{refused}");
    services.delete("case", &DeleteParams::default()).await?;
    Ok(())
}
