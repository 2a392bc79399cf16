//! What bad input gets: objects that pass the schema but cannot work say so once, with what to
//! change, and are left in peace; mended, they go on. On a real API server.

mod operator;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::{Cluster, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::offer::{Accelerators, Offer};
use petaflop_crds::{ComputeClaim, ComputeProvider, SpendBudget, TrainingJob};
use petaflop_fake_provider::Fault;
use petaflop_fake_provider::agent::silent;
use petaflop_fake_provider::cloud::small_offer;
use petaflop_harness::eventually;
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(120);

/// A cluster on a clock that moves on by a second with each look.
struct Bench {
    cluster: Cluster,
    jobs: Api<TrainingJob>,
}

impl Bench {
    async fn start(name: &str) -> Result<Self> {
        let clock = Clock::manual("2026-11-21T12:10:00Z".parse()?);
        let cluster = Cluster::start_with(name, clock, Some(silent())).await?;
        let jobs = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        Ok(Self { cluster, jobs })
    }

    async fn until<T>(&self, what: &str, check: impl AsyncFn() -> Result<T, String>) -> Result<T> {
        let found = eventually(what, LIMIT, || async {
            self.cluster.clock.advance(Duration::from_secs(1));
            check().await
        });
        Ok(found.await?)
    }

    /// Waits until a job stalls, and returns what it says.
    async fn until_stalled(&self, name: &str) -> Result<Condition> {
        self.until(&format!("{name} is stalled"), async || {
            let job = self.jobs.get(name).await.map_err(|error| error.to_string())?;
            let conditions = job.status.unwrap_or_default().conditions;
            let found = conditions.iter().find(|c| c.type_ == "Stalled" && c.status == "True");
            found.cloned().ok_or_else(|| format!("{conditions:#?}"))
        })
        .await
    }

    async fn until_claim_of(&self, job: &str) -> Result<ComputeClaim> {
        self.until(&format!("{job} has a machine"), async || {
            let claims = self.cluster.claims().await.map_err(|error| error.to_string())?;
            let launched = |claim: &&ComputeClaim| {
                claim.spec.owner.name == job
                    && claim.status.as_ref().is_some_and(|status| status.launched_at.is_some())
            };
            claims.iter().find(launched).cloned().ok_or_else(|| format!("{} claims", claims.len()))
        })
        .await
    }

    async fn create_budget(&self, name: &str, spec: Value) -> Result<()> {
        let api: Api<SpendBudget> =
            Api::namespaced(self.cluster.client.clone(), &self.cluster.namespace);
        let object = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "SpendBudget",
            "metadata": { "name": name }, "spec": spec,
        }))?;
        api.create(&PostParams::default(), &object).await?;
        Ok(())
    }
}

/// A job whose spec is `tiny`'s with this merged into it.
fn job(name: &str, change: &Value) -> Result<TrainingJob> {
    let mut plain = tiny(name)?;
    (plain.spec.deadline, plain.spec.max_total_cost) = (None, None);
    let mut value = serde_json::to_value(&plain)?;
    for (key, change) in change.as_object().into_iter().flatten() {
        value["spec"][key] = change.clone();
    }
    Ok(serde_json::from_value(value)?)
}

/// What a job asks for that cannot be, what it gets for that, and what mends it.
struct Row {
    name: &'static str,
    spec: Value,
    reason: &'static str,
    /// Part of the message.
    says: &'static str,
    mend: Value,
}

fn table() -> Vec<Row> {
    let row = |name, spec, reason, says, mend| Row { name, spec, reason, says, mend };
    vec![
        row(
            "no-such-provider",
            json!({ "placement": { "providers": ["moon-base"] } }),
            "ProviderNotFound",
            "placement.providers names moon-base",
            json!({ "placement": { "providers": null } }),
        ),
        row(
            "no-such-budget",
            json!({ "budgetRef": { "name": "nobody" } }),
            "InvalidSpec",
            "there is no SpendBudget nobody",
            json!({ "budgetRef": null }),
        ),
        row(
            "too-large",
            json!({ "resources": { "memory": "64Ti" } }),
            "NoMatchingOffer",
            "of memory",
            json!({ "resources": { "memory": null } }),
        ),
        row(
            "no-such-zone",
            json!({ "placement": { "zones": ["atlantis-1"] } }),
            "NoMatchingOffer",
            "placement.zones",
            json!({ "placement": { "zones": null } }),
        ),
        row(
            "too-cheap",
            json!({ "placement": { "maxHourlyPrice": "0.01" } }),
            "PriceAboveLimit",
            "would do with placement.maxHourlyPrice: 0.4",
            json!({ "placement": { "maxHourlyPrice": null } }),
        ),
        row(
            "no-such-secret",
            json!({ "secrets": [{ "name": "absent", "env": true }] }),
            "CredentialsMissing",
            "there is no Secret absent",
            json!({ "secrets": null }),
        ),
        row(
            "elsewhere",
            json!({ "output": { "uri": "s3://somewhere/else" } }),
            "InvalidSpec",
            "name the Secret that opens it (spec.output.secretRef)",
            json!({ "output": { "uri": null } }),
        ),
        row(
            "too-poor",
            json!({ "maxTotalCost": "0.000001" }),
            "CostLimitExceeded",
            "maxTotalCost",
            json!({ "maxTotalCost": null }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_work_says_what_to_change_once_and_goes_on_when_it_is_mended() -> Result<()> {
    let bench = Bench::start("bad-input").await?;
    let running = bench.cluster.operator().await?;
    for row in table() {
        bench.cluster.create(&job(row.name, &row.spec)?).await?;
    }
    for Row { name, reason, says, .. } in table() {
        let stalled = bench.until_stalled(name).await?;
        ensure!(stalled.reason == reason && stalled.message.contains(says), "{name}: {stalled:#?}");
    }
    // No storm: an hour in which nothing gets better is an hour without a write.
    let told = told(&bench).await?;
    let writes = bench.cluster.plane.writes().await?;
    let passes = running.operator.placement.passed().context("a pass")?;
    for _ in 0..120 {
        bench.cluster.clock.advance(Duration::from_secs(30));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let looked = running.operator.placement.passed().context("a pass")?;
    ensure!(looked.duration_since(passes).as_secs() > 1800, "it has looked again and again");
    let written: Vec<String> = writes
        .all()
        .await?
        .iter()
        .filter(|write| write.object.namespace == bench.cluster.namespace)
        .map(|write| format!("{} {}", write.verb, write.object))
        .collect();
    ensure!(written.is_empty(), "{written:#?}");
    ensure!(self::told(&bench).await? == told, "told anew");
    for Row { name, reason, .. } in table() {
        let reasons: Vec<&str> = told[name].iter().map(|(reason, _)| reason.as_str()).collect();
        ensure!(reasons == [reason], "{name} was told {reasons:?}");
    }

    for Row { name, mend, .. } in table() {
        let patch = Patch::Merge(json!({ "spec": mend }));
        bench.jobs.patch(name, &PatchParams::default(), &patch).await?;
        bench.until_claim_of(name).await?;
    }
    drop(running);
    Ok(())
}

/// Recipe and inputs are immutable: what is wrong in them is mended by another job.
#[tokio::test(flavor = "multi_thread")]
async fn a_recipe_that_cannot_be_had_in_a_cluster_is_refused_and_nothing_is_bought() -> Result<()> {
    let bench = Bench::start("bad-recipe").await?;
    let running = bench.cluster.operator().await?;
    let mut from_base = job("from-base", &json!({}))?;
    let recipe = from_base.spec.recipe.as_mut().context("a recipe")?;
    (recipe.model, recipe.base_model) = (None, Some(format!("artifact:{}", "a".repeat(64))));
    let mut from_folder = from_base.clone();
    from_folder.metadata.name = Some("from-folder".to_owned());
    from_folder.spec.recipe.as_mut().context("a recipe")?.base_model = Some("/models/a".to_owned());
    let by_recipe = |name: &str, path: &str| {
        let mut job = job(name, &json!({}))?;
        let recipe = job.spec.recipe.as_mut().context("a recipe")?;
        path.clone_into(&mut recipe.datasets[0].path);
        anyhow::Ok(job)
    };
    let mut by_input = by_recipe("by-input", "/inputs/text")?;
    by_input.spec.inputs =
        serde_json::from_value(json!([{ "name": "text", "uri": "s3://bucket/a*" }]))?;
    let table = [
        (from_base, "name one that is there: status.artifact of the TrainingJob"),
        (from_folder, "in a cluster a base model is an artifact of the store"),
        (by_recipe("by-dataset", "https://a.example/text")?, "https:// is not built yet; use"),
        (by_recipe("by-bucket", "s3://bucket/text")?, "another bucket than the operator's store"),
        (by_input, "a name may not hold *, ? or $"),
        (by_recipe("beside", "./text")?, "there is none here"),
    ];
    for (job, says) in table {
        bench.cluster.create(&job).await?;
        let stalled = bench.until_stalled(&job.name_any()).await?;
        let right = stalled.reason == "InvalidSpec" && stalled.message.contains(says);
        ensure!(right, "{}: {stalled:#?}", job.name_any());
    }
    ensure!(bench.cluster.cloud.created() == 0 && bench.cluster.claims().await?.is_empty());
    drop(running);
    Ok(())
}

/// Events by the job that they are about.
async fn told(bench: &Bench) -> Result<BTreeMap<&'static str, Vec<(String, String)>>> {
    let mut told = BTreeMap::new();
    for Row { name, .. } in table() {
        let events = bench
            .until(&format!("something is told of {name}"), async || {
                let events = bench.cluster.events(name).await.map_err(|error| error.to_string())?;
                if events.is_empty() { Err("nothing".to_owned()) } else { Ok(events) }
            })
            .await?;
        told.insert(name, events);
    }
    Ok(told)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_no_provider_serves_is_told_so_until_one_does() -> Result<()> {
    let bench = Bench::start("not-allowed").await?;
    let providers: Api<ComputeProvider> = Api::all(bench.cluster.client.clone());
    let allow = async |namespaces: Value| {
        let patch = Patch::Merge(json!({ "spec": { "allowedNamespaces": namespaces } }));
        providers.patch(&bench.cluster.provider, &PatchParams::default(), &patch).await
    };
    allow(json!(["somebody-else"])).await?;
    let running = bench.cluster.operator().await?;
    bench.cluster.create(&job("outside", &json!({}))?).await?;
    let stalled = bench.until_stalled("outside").await?;
    ensure!(stalled.reason == "NamespaceNotAllowed", "{stalled:#?}");
    ensure!(stalled.message.contains("allowedNamespaces"), "{stalled:#?}");
    ensure!(bench.cluster.cloud.created() == 0);
    allow(json!([bench.cluster.namespace])).await?;
    bench.until_claim_of("outside").await?;
    drop(running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn accelerators_that_their_provider_does_not_allow_are_not_had_until_it_does() -> Result<()> {
    let bench = Bench::start("models").await?;
    let (cloud, name) = (&bench.cluster.cloud, &bench.cluster.provider);
    let plain = small_offer(name, "0.40".parse()?);
    cloud.withdraw(&plain.id);
    let l4 = Accelerators { model: "L4".into(), count: 1, memory: None };
    cloud.sell(Offer { accelerators: Some(l4), ..plain });
    let providers: Api<ComputeProvider> = Api::all(bench.cluster.client.clone());
    let deny = async |models: Value| {
        let patch = Patch::Merge(json!({ "spec": { "accelerators": { "deny": models } } }));
        providers.patch(name, &PatchParams::default(), &patch).await
    };
    deny(json!(["H100", "L4"])).await?;
    let running = bench.cluster.operator().await?;
    bench.cluster.create(&job("on-any", &json!({}))?).await?;
    let stalled = bench.until_stalled("on-any").await?;
    ensure!(stalled.reason == "NoMatchingOffer", "{stalled:#?}");
    let mend = format!("accelerators of the ComputeProvider {name}: allow L4");
    ensure!(stalled.message.contains(&mend), "{stalled:#?}");
    // A name that nobody has forbids nothing: nothing is had there until it is mended.
    deny(json!(["L44"])).await?;
    let said = bench
        .until("the provider is stalled", async || {
            let object = providers.get(name).await.map_err(|error| error.to_string())?;
            let status = object.status.unwrap_or_default();
            let found = |c: &&Condition| c.type_ == "Stalled" && c.status == "True";
            let stalled = status.conditions.iter().find(found).cloned();
            stalled.ok_or_else(|| format!("{:#?}", status.conditions))
        })
        .await?;
    ensure!(said.reason == "InvalidSpec", "{said:#?}");
    ensure!(said.message.contains("spec.accelerators.deny[0]: no accelerator"), "{said:#?}");
    ensure!(cloud.created() == 0);
    deny(json!(["H100"])).await?;
    bench.until_claim_of("on-any").await?;
    drop(running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_below_the_cheapest_minute_stalls_and_nothing_is_bought_under_it() -> Result<()> {
    let bench = Bench::start("small-budget").await?;
    let running = bench.cluster.operator().await?;
    bench.create_budget("pennies", json!({ "period": "Daily", "limit": "0.000002" })).await?;
    bench.cluster.create(&job("poor", &json!({}))?).await?;
    let stalled = bench.until_stalled("poor").await?;
    ensure!(stalled.reason == "BudgetExceeded", "{stalled:#?}");
    ensure!(stalled.message.contains("budget pennies"), "{stalled:#?}");
    let budgets: Api<SpendBudget> =
        Api::namespaced(bench.cluster.client.clone(), &bench.cluster.namespace);
    let said = bench
        .until("pennies is stalled", async || {
            let budget = budgets.get("pennies").await.map_err(|error| error.to_string())?;
            let conditions = budget.status.unwrap_or_default().conditions;
            let found = conditions.iter().find(|c| c.type_ == "Stalled" && c.status == "True");
            found.cloned().ok_or_else(|| format!("{conditions:#?}"))
        })
        .await?;
    ensure!(said.reason == "InvalidSpec" && said.message.contains("raise it to"), "{said:#?}");
    ensure!(bench.cluster.cloud.created() == 0);
    let patch = Patch::Merge(json!({ "spec": { "limit": "10" } }));
    budgets.patch("pennies", &PatchParams::default(), &patch).await?;
    bench.until_claim_of("poor").await?;
    drop(running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_abandoned_only_by_its_exact_id() -> Result<()> {
    let bench = Bench::start("abandon").await?;
    let running = bench.cluster.operator().await?;
    bench.cluster.create(&job("stuck", &json!({}))?).await?;
    let claim = bench.until_claim_of("stuck").await?;
    let (name, machine) = (claim.name_any(), claim.status.and_then(|s| s.provider_id));
    let machine = machine.context("a machine")?;
    bench.cluster.cloud.misbehave(Fault::TerminateForbidden);
    bench.cluster.delete("stuck").await?;

    let claims: Api<ComputeClaim> =
        Api::namespaced(bench.cluster.client.clone(), &bench.cluster.namespace);
    let condition = async |type_: &str, reason: &str| {
        bench
            .until(&format!("{name} is {type_} for {reason}"), async || {
                let claim = claims.get(&name).await.map_err(|error| error.to_string())?;
                let conditions = claim.status.unwrap_or_default().conditions;
                let found = conditions.iter().find(|c| c.type_ == type_ && c.reason == reason);
                found.cloned().ok_or_else(|| format!("{conditions:#?}"))
            })
            .await
    };
    let retrying = condition("Terminating", "TerminateRetrying").await?;
    ensure!(retrying.message.contains(&format!("abandon-instance={machine}")), "{retrying:#?}");

    let annotate = async |id: &str| {
        let patch = Patch::Merge(
            json!({ "metadata": { "annotations": { "petaflop.dev/abandon-instance": id } } }),
        );
        claims.patch(&name, &PatchParams::default(), &patch).await
    };
    annotate("i-another").await?;
    let wrong = condition("Stalled", "InvalidSpec").await?;
    ensure!(wrong.message.contains(&machine), "{wrong:#?}");
    ensure!(claims.get(&name).await?.finalizers().len() == 1, "nothing else is done");

    annotate(&machine).await?;
    bench
        .until("claim and job are gone", async || {
            let claim = claims.get_opt(&name).await.map_err(|error| error.to_string())?;
            let job = bench.jobs.get_opt("stuck").await.map_err(|error| error.to_string())?;
            if claim.is_none() && job.is_none() { Ok(()) } else { Err("still there".to_owned()) }
        })
        .await?;
    let rows = bench.cluster.rows().await?;
    let last = rows.last().context("rows")?;
    ensure!(last.kind == petaflop_arbiter::ledger::RowKind::Final, "{last:#?}");
    ensure!(running.operator.metrics.instances_abandoned() == 1);
    let reasons = bench
        .until("it is told", async || {
            let events = bench.cluster.events(&name).await.map_err(|error| error.to_string())?;
            let reasons: Vec<String> = events.into_iter().map(|(reason, _)| reason).collect();
            let told = reasons.iter().any(|reason| reason == "InstanceAbandoned");
            if told { Ok(reasons) } else { Err(format!("{reasons:?}")) }
        })
        .await?;
    let expected = ["InstanceLaunching", "TerminateRetrying", "InvalidSpec", "InstanceAbandoned"];
    ensure!(reasons == expected, "{reasons:?}");

    // The provider is reasonable again: what was given up and is there after all is ended.
    bench.cluster.cloud.behave_entirely();
    bench
        .until("the sweep ends it", async || match bench.cluster.cloud.billed_now() {
            billed if billed.is_empty() => Ok(()),
            billed => Err(format!("{billed:?}")),
        })
        .await?;
    drop(running);
    Ok(())
}
