//! J while a machine runs: each field of a service, a budget and a provider, and what is within those of a
//! job, is changed and changed back, and leaves no trace. Tables over the CRDs' own schemas: a new field
//! without a row is an error.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use kube::Api;
use kube::api::{ApiResource, DynamicObject};
use petaflop_crds::{ComputeProvider, InferenceService, SpendBudget, TrainingJob};
use petaflop_fake_provider::Manners;
use serde_json::{Value, json};

use crate::world::{World, alone};

/// What a field is changed to.
enum Other {
    /// This.
    Is(Value),
    /// This, which the API server refuses in these words.
    Never(Value, &'static str),
}

use Other::{Is, Never};

/// A field, by the way to it, and what it is changed to. The row of a field is that of all within it.
type Rows = Vec<(&'static str, Other)>;

/// For a service of a model.
fn of_services(model: &str) -> Rows {
    let within = |seconds: u32| json!({ "path": "/", "periodSeconds": seconds });
    let volume = json!([{ "name": "another", "mountPath": "/data", "emptyDir": {} }]);
    let container = "exactly one of model";
    let source = "exactly one of artifact, trainingJob and uri";
    vec![
        ("budgetRef", Is(json!({ "name": "another" }))),
        ("container", Never(json!({ "image": "i", "command": ["c"] }), container)),
        ("idle.scaleToZeroAfterSeconds", Is(json!(100_000))),
        ("imagePullSecrets", Is(json!([{ "name": "another" }]))),
        ("latencyTarget.tpotMs", Is(json!(100_000))),
        ("latencyTarget.ttftMs", Never(json!(1_000), "is not built yet")),
        ("maxReplicas", Is(json!(5))),
        ("minReplicas", Is(json!(1))),
        ("model.artifact", Is(json!(model))),
        ("model.format", Never(json!("gguf"), "format belongs to uri")),
        ("model.revision", Never(json!("main"), "revision is not built yet")),
        ("model.trainingJob", Never(json!("another"), source)),
        ("model.uri", Never(json!("file:///another"), source)),
        ("placement.allowUntrustedHosts", Is(json!(true))),
        ("placement.allowUnverified", Is(json!(true))),
        ("placement.capacityType", Is(json!("Spot"))),
        ("placement.excludeRegions", Is(json!(["r"]))),
        ("placement.interruption.maxInterruptions", Never(json!(3), "are for TrainingJobs")),
        ("placement.interruption.minHoldSeconds", Is(json!(5))),
        ("placement.interruption.policy", Never(json!("Fail"), "are for TrainingJobs")),
        ("placement.interruption.switchIfSavingsPercent", Is(json!(50))),
        ("placement.maxHourlyPrice", Is(json!("0.01"))),
        ("placement.providers", Is(json!(["nobody"]))),
        ("placement.regions", Is(json!(["nowhere"]))),
        ("placement.zones", Is(json!(["nowhere"]))),
        ("port", Is(json!(9_000))),
        ("probes", Never(json!({ "readiness": within(10) }), "probes are for container")),
        ("replicas", Is(json!(2))),
        ("resources.accelerator", Is(json!({ "vendor": "NVIDIA" }))),
        ("resources.anyOf", Is(json!([{ "vendor": "AMD" }]))),
        ("resources.cpu", Is(json!("64"))),
        ("resources.ephemeralStorage", Is(json!("9Ti"))),
        ("resources.memory", Is(json!("9Ti"))),
        ("rollout.maxSurge", Is(json!(2))),
        ("rollout.maxUnavailable", Is(json!(1))),
        ("route.host", Is(json!("another.example"))),
        ("route.ingressClassName", Never(json!("another"), "host must be given")),
        ("route.tlsSecretName", Never(json!("another"), "host must be given")),
        ("secrets", Never(json!([{ "name": "s", "env": true }]), "secrets are for container")),
        ("serviceAccountName", Is(json!("another"))),
        ("suspend", Is(json!(true))),
        ("volumes", Never(volume, "volumes are for container")),
    ]
}

/// For a job: what is within other fields. Its own are changed on the way to its end, beside this.
fn of_jobs() -> Rows {
    vec![
        ("budgetRef", Is(json!({ "name": "another" }))),
        ("checkpoint.graceSeconds", Is(json!(60))),
        ("checkpoint.intervalSeconds", Is(json!(60))),
        ("checkpoint.uri", Never(json!("s3://bucket/another"), "is not built yet")),
        ("deadline.finishBy", Is(json!("2100-01-01T00:00:00Z"))),
        ("deadline.within", Is(json!("9h"))),
        ("output.keepCheckpoints", Is(json!(5))),
        (
            "output.secretRef",
            Never(json!({ "name": "another" }), "secretRef opens the store of uri"),
        ),
        ("output.uri", Is(json!("s3://bucket/another"))),
        ("placement.allowUntrustedHosts", Is(json!(true))),
        ("placement.allowUnverified", Is(json!(true))),
        ("placement.capacityType", Is(json!("Spot"))),
        ("placement.excludeRegions", Is(json!(["r"]))),
        ("placement.interruption.maxInterruptions", Is(json!(3))),
        ("placement.interruption.minHoldSeconds", Is(json!(5))),
        ("placement.interruption.policy", Is(json!("Fail"))),
        ("placement.interruption.switchIfSavingsPercent", Is(json!(50))),
        ("placement.maxHourlyPrice", Is(json!("0.01"))),
        ("placement.providers", Is(json!(["nobody"]))),
        ("placement.regions", Is(json!(["nowhere"]))),
        ("placement.zones", Is(json!(["nowhere"]))),
        ("resources.accelerator", Is(json!({ "vendor": "NVIDIA" }))),
        ("resources.anyOf", Is(json!([{ "vendor": "AMD" }]))),
        ("resources.cpu", Is(json!("64"))),
        ("resources.ephemeralStorage", Is(json!("9Ti"))),
        ("resources.memory", Is(json!("9Ti"))),
    ]
}

/// For a budget that is not reached.
fn of_budgets() -> Rows {
    vec![
        ("limit", Is(json!("0.000001"))),
        ("onExceeded", Is(json!("Terminate"))),
        ("period", Is(json!("Hourly"))),
        ("selector.matchLabels", Is(json!({ "team": "another" }))),
        ("warnAtPercent", Is(json!([1]))),
    ]
}

/// For a provider of nodes, whose name stands for whatever sells.
fn of_providers() -> Rows {
    let another = "a provider's type is immutable";
    let runpod = json!({ "apiBaseUrl": "http://another" });
    let aws = json!({ "regions": [{ "name": "eu-central-1" }] });
    vec![
        ("accelerators.allow", Is(json!(["H100"]))),
        ("accelerators.deny", Is(json!(["H100"]))),
        ("allowedNamespaces", Is(json!(["another"]))),
        ("aws", Never(aws, another)),
        ("credentialsSecretRef", Never(json!({ "name": "s" }), "belongs to runpod and aws")),
        ("host", Never(json!({}), another)),
        ("limits.hourly", Is(json!("0.01"))),
        ("limits.machines", Is(json!(1))),
        ("limits.monthly", Is(json!("0.000001"))),
        ("nodes.selector", Is(json!({ "another": "label" }))),
        ("nodes.tolerations", Is(json!([{ "operator": "Exists" }]))),
        ("power", Is(json!({ "usdPerKwh": "0.50" }))),
        ("priceAdjustmentPercent", Is(json!(50))),
        ("runpod", Never(runpod, another)),
        ("state", Is(json!("Disabled"))),
    ]
}

/// The fields of a kind's spec that may be changed, by the ways to them. What says that it is immutable is
/// tried where it is refused.
fn mutable(kind: &str) -> Result<Vec<String>> {
    fn within(field: &JSONSchemaProps, at: &str, found: &mut Vec<String>) {
        let Some(inner) = field.properties.as_ref().filter(|inner| !inner.is_empty()) else {
            found.push(at.to_owned());
            return;
        };
        for (name, field) in inner {
            if !field.description.as_deref().unwrap_or("").contains("Immutable.") {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                within(field, &at, found);
            }
        }
    }
    let all = petaflop_crds::crds::all();
    let crd = all.iter().find(|crd| crd.spec.names.kind == kind).context("the kind")?;
    let schema = crd.spec.versions[0].schema.as_ref().and_then(|s| s.open_api_v3_schema.as_ref());
    let spec = schema.and_then(|schema| schema.properties.as_ref()?.get("spec"));
    let mut found = Vec::new();
    within(spec.context("a spec")?, "", &mut found);
    Ok(found)
}

#[test]
fn j_every_field_of_every_kind_is_tried() -> Result<()> {
    for (kind, rows) in [
        ("TrainingJob", of_jobs()),
        ("InferenceService", of_services("model")),
        ("SpendBudget", of_budgets()),
        ("ComputeProvider", of_providers()),
    ] {
        let mut fields = mutable(kind)?;
        fields.retain(|at| kind != "TrainingJob" || at.contains('.'));
        for (row, _) in &rows {
            let all = fields.len();
            fields.retain(|at| at != row && !at.starts_with(&format!("{row}.")));
            ensure!(fields.len() < all, "{kind}: {row} is no field, or has two rows");
        }
        ensure!(fields.is_empty(), "{kind}: no row for {fields:?}");
    }
    Ok(())
}

/// Objects of a kind, of a namespace or of the cluster.
fn objects(world: &World<'_>, kind: &ApiResource, namespace: Option<&str>) -> Api<DynamicObject> {
    let client = world.lane.client.clone();
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, kind),
        None => Api::all_with(client, kind),
    }
}

/// What an object says of itself: conditions, phase and counters. One that became false again is no trace.
fn says(
    object: &DynamicObject,
    known: Option<&BTreeMap<String, String>>,
) -> BTreeMap<String, String> {
    let status = &object.data["status"];
    let mut says = BTreeMap::new();
    for condition in status["conditions"].as_array().into_iter().flatten() {
        let text = |field: &str| condition[field].as_str().unwrap_or_default();
        let is_new = known.is_some_and(|known| !known.contains_key(text("type")));
        if !is_new || text("status") != "False" {
            let said = format!("{} {}", text("status"), text("reason"));
            says.insert(text("type").to_owned(), said);
        }
    }
    for counter in ["phase", "replicas", "availableReplicas", "updatedReplicas", "machines"] {
        says.insert(counter.to_owned(), status[counter].to_string());
    }
    says
}

/// Changes each field, and changes it back. Each must be seen, and forgotten.
async fn there_and_back(
    world: &mut World<'_>,
    api: &Api<DynamicObject>,
    name: &str,
    rows: Rows,
) -> Result<()> {
    let before = api.get(name).await?;
    let usual = says(&before, None);
    for (at, other) in rows {
        let written = |at: &str, value: &Value| {
            at.rsplit('.').fold(value.clone(), |inner, name| json!({ (name): inner }))
        };
        // What is left out is what it was: the field, or all that it is in.
        let spec = &before.data["spec"];
        let ends = at.match_indices('.').map(|(end, _)| end).chain([at.len()]);
        let mut way = ends.map(|end| &at[..end]);
        let at_hand = |at: &str| spec.pointer(&format!("/{}", at.replace('.', "/")));
        let left_out = way.find(|at| at_hand(at).is_none());
        let back = written(left_out.unwrap_or(at), at_hand(at).unwrap_or(&Value::Null));
        match other {
            Never(value, words) => match world.change(api, name, &written(at, &value)).await {
                Ok(_) => bail!("{at}: {value} is taken"),
                Err(error) => {
                    let error = format!("{error:#}");
                    ensure!(error.contains(words), "{at}: {error}");
                }
            },
            Is(value) => {
                ensure!(at_hand(at) != Some(&value), "{at} is {value} already");
                world.change(api, name, &written(at, &value)).await.context(at)?;
                world.pass(Duration::from_secs(15)).await?;
                let mut found =
                    says(&world.change(api, name, &back).await.context(at)?, Some(&usual));
                for _ in 0..60 {
                    if found == usual {
                        break;
                    }
                    world.pass(Duration::from_secs(10)).await?;
                    found = says(&api.get(name).await?, Some(&usual));
                }
                ensure!(found == usual, "{at}: {found:#?}\ninstead of\n{usual:#?}");
                let after = api.get(name).await?;
                ensure!(
                    after.data["spec"] == before.data["spec"],
                    "{at}: {:#}",
                    after.data["spec"]
                );
            }
        }
    }
    Ok(())
}

/// The same while a job runs, which does not come to its end, and buys at most so many machines.
async fn while_a_job_runs(
    world: &mut World<'_>,
    kind: &ApiResource,
    namespace: Option<&str>,
    name: &str,
    (rows, machines): (Rows, usize),
) -> Result<()> {
    world.create(json!({})).await?;
    world.until("running", |seen| seen.is("Running")).await?;
    let api = objects(world, kind, namespace);
    there_and_back(world, &api, name, rows).await?;
    let seen = world.settle().await?;
    let status = seen.job.as_ref().and_then(|job| job.status.clone()).context("a status")?;
    ensure!(seen.is("Running") && status.interruptions == 0, "{status:#?}");
    ensure!(world.cloud.created() == machines, "{} machines", world.cloud.created());
    world.delete().await?;
    world.until("gone", |seen| seen.job.is_none() && seen.claims.is_empty()).await?;
    Ok(())
}

#[test]
fn j_what_is_within_a_field_of_a_job_that_is_changed_and_changed_back_leaves_no_trace() -> Result<()>
{
    alone("j-within", Manners::runpod(), &[], async |world| {
        let (name, namespace) = (world.job.clone(), world.lane.namespace.name());
        let kind = ApiResource::erase::<TrainingJob>(&());
        while_a_job_runs(world, &kind, Some(namespace), &name, (of_jobs(), 1)).await
    })
}

#[test]
fn j_a_field_of_a_budget_that_is_changed_and_changed_back_leaves_no_trace() -> Result<()> {
    alone("j-budget", Manners::runpod(), &[], async |world| {
        world.budget("100").await?;
        let namespace = world.lane.namespace.name();
        let kind = ApiResource::erase::<SpendBudget>(&());
        // Its limit suspends what it counts, and it goes on afterwards.
        while_a_job_runs(world, &kind, Some(namespace), "all", (of_budgets(), 2)).await
    })
}

#[test]
fn j_a_field_of_a_provider_that_is_changed_and_changed_back_leaves_no_trace() -> Result<()> {
    alone("j-provider", Manners::runpod(), &[], async |world| {
        let kind = ApiResource::erase::<ComputeProvider>(&());
        let name = world.lane.provider.clone();
        while_a_job_runs(world, &kind, None, &name, (of_providers(), 1)).await
    })
}

#[test]
fn j_a_field_of_a_service_that_is_changed_and_changed_back_leaves_no_trace() -> Result<()> {
    alone("j-service", Manners::runpod(), &[], async |world| {
        // Its store holds models.
        world.serves = true;
        world.die();
        world.live().await?;
        world.create(json!({ "replicas": 1 })).await?;
        world.until("answers", |seen| seen.answer() == 1 && seen.claims.len() == 1).await?;
        let rows = of_services(&world.lane.model(384).await?);
        let (name, namespace) = (world.job.clone(), world.lane.namespace.name());
        let api = objects(world, &ApiResource::erase::<InferenceService>(&()), Some(namespace));
        there_and_back(world, &api, &name, rows).await?;
        world.scale(0).await?;
        world.until("no machine", |seen| seen.claims.is_empty()).await?;
        Ok(())
    })
}
