//! H. Many objects, and one among them that nobody can read.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceValidation, JSONSchemaProps,
};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::TrainingJob;
use petaflop_crds::scalar::Money;
use petaflop_fake_provider::Manners;
use petaflop_harness::eventually;
use petaflop_operator::cluster::guard::Guard;
use serde_json::{Value, json};

use crate::world::{Lane, Twist, by_hand};

/// A kind's objects, whatever is in them.
fn objects(client: &Client, crd: &CustomResourceDefinition, namespace: &str) -> Api<DynamicObject> {
    let names = &crd.spec.names;
    let kind = GroupVersionKind::gvk(&crd.spec.group, &crd.spec.versions[0].name, &names.kind);
    let kind = ApiResource::from_gvk_with_plural(&kind, &names.plural);
    match crd.spec.scope.as_str() {
        "Namespaced" => Api::namespaced_with(client.clone(), namespace, &kind),
        _ => Api::all_with(client.clone(), &kind),
    }
}

/// The kind as an older release might have had it: everything passes.
fn lax(crd: &CustomResourceDefinition) -> CustomResourceDefinition {
    let mut lax = crd.clone();
    let version = &mut lax.spec.versions[0];
    version.selectable_fields = None;
    version.schema = Some(CustomResourceValidation {
        open_api_v3_schema: Some(JSONSchemaProps {
            type_: Some("object".into()),
            x_kubernetes_preserve_unknown_fields: Some(true),
            ..JSONSchemaProps::default()
        }),
    });
    lax
}

/// While a kind is lax, something is written; then it is as strict as it was.
async fn while_lax<T>(
    client: &Client,
    crd: &CustomResourceDefinition,
    namespace: &str,
    write: impl AsyncFn() -> Result<T, kube::Error>,
) -> Result<T> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let put = async |wanted: &CustomResourceDefinition| {
        let name = wanted.name_any();
        let mut now = definitions.get(&name).await?;
        now.spec = wanted.spec.clone();
        definitions.replace(&name, &PostParams::default(), &now).await
    };
    put(&lax(crd)).await?;
    let written = eventually("it is taken", Duration::from_secs(30), || async {
        write().await.map_err(|error| error.to_string())
    })
    .await?;
    put(crd).await?;
    let kind = &crd.spec.names.kind;
    let refused: DynamicObject = serde_json::from_value(poisoned(kind, "refused", namespace))?;
    let objects = objects(client, crd, namespace);
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually("it is as strict as it was", Duration::from_secs(30), || async {
        match objects.create(&dry, &refused).await {
            Err(kube::Error::Api(status)) if status.code == 422 => {}
            other => return Err(format!("{other:?}")),
        }
        objects.list(&ListParams::default()).await.map(drop).map_err(|e| e.to_string())
    })
    .await?;
    Ok(written)
}

/// What no type of ours can be read from.
fn poisoned(kind: &str, name: &str, namespace: &str) -> Value {
    let spec = match kind {
        "TrainingJob" => json!({ "recipe": 7, "resources": "many" }),
        "InferenceService" => json!({ "model": "llama", "port": "http" }),
        "ComputeClaim" => json!({ "provider": 5, "offer": [] }),
        "ComputeProvider" => json!({ "nodes": "yes" }),
        _ => json!({ "limit": { "amount": 12 } }),
    };
    json!({
        "apiVersion": "petaflop.dev/v1alpha1", "kind": kind,
        "metadata": { "name": name, "labels": { "test": namespace } },
        "spec": spec,
    })
}

#[test]
fn h7_an_object_that_cannot_be_read_blocks_no_other() -> Result<()> {
    by_hand(async |errors| {
        let plane = crate::own_plane().await?;
        let mut lane = Lane::new(&plane, errors).await?;
        let (client, namespace) = (lane.client.clone(), lane.namespace.name().to_owned());
        for crd in petaflop_crds::crds::all() {
            let kind = &crd.spec.names.kind;
            let object = serde_json::from_value(poisoned(kind, "poisoned", &namespace))?;
            let api = objects(&client, &crd, &namespace);
            let create = async || api.create(&PostParams::default(), &object).await;
            while_lax(&client, &crd, &namespace, create).await?;
        }
        lane.run("h7", Manners::aws(), &[], Twist::default(), async |world| {
            world.create(json!({})).await?;
            // What a budget allows that nobody can read, nobody knows.
            let stalled = world.until("stalled", |seen| seen.is("Stalled")).await?;
            let status = json!(stalled.job.context("the job")?.status);
            ensure!(
                status.to_string().contains("SpendBudget poisoned cannot be read"),
                "{status:#}"
            );
            let made = world.pass(Duration::from_secs(300)).await?;
            ensure!(made.len() < 60, "{} calls in five minutes", made.len());
            ensure!(world.cloud.created() == 0, "bought under a budget that nobody can read");
            let said = world.errors();
            for crd in petaflop_crds::crds::all() {
                let kind = &crd.spec.names.kind;
                let about = said.iter().any(|line| line.contains(kind.as_str()));
                ensure!(about, "nobody is told of the {kind}: {said:#?}");
                if kind == "SpendBudget" {
                    let api = objects(&client, &crd, &namespace);
                    api.delete("poisoned", &DeleteParams::default()).await?;
                }
            }
            ensure!(said.len() < 20, "{said:#?}");
            let seen = world.until("running", |seen| seen.is("Running")).await?;

            // Its claim becomes unreadable while it runs, and a new operator meets it.
            let claim = seen.claims.first().context("a claim")?.name_any();
            let all = petaflop_crds::crds::all();
            let crd = all.iter().find(|crd| crd.spec.names.kind == "ComputeClaim");
            let crd = crd.context("ComputeClaim")?;
            let claims = objects(&client, crd, &namespace);
            let good = claims.get(&claim).await?.data["spec"]["offer"]["price"].clone();
            let priced = async |price: &Value| {
                let patch = Patch::Merge(json!({ "spec": { "offer": { "price": price } } }));
                let patch = async || claims.patch(&claim, &PatchParams::default(), &patch).await;
                while_lax(&client, crd, &namespace, patch).await
            };
            let machine = world.cloud.billed_now().first().context("a machine")?.id.clone();
            priced(&json!([1])).await?;
            world.live().await?;
            world.pass(Duration::from_secs(300)).await?;
            // Whoever would take the operator away hears of it.
            let namespaces = vec![namespace.clone()];
            let guard = Guard { client: client.clone(), clock: Clock::system(), namespaces };
            let open = guard.open().await?;
            let named = format!("{namespace}/{claim}");
            ensure!(open.iter().any(|one| one.claim == named), "{named} is not in {open:?}");
            let stays = world.cloud.billed_now().iter().any(|billed| billed.id == machine);
            ensure!(stays, "a machine was ended whose claim stands");
            // Others go on meanwhile.
            world.job = "h7-other".to_owned();
            world.create(json!({})).await?;
            world.until("complete", |seen| seen.is("Complete")).await?;
            priced(&good).await?;
            world.job = "h7".to_owned();
            world.until_complete().await?;
            world.leaks.clear();
            // A second one may have been bought: nobody could say that the first was there.
            eprintln!("h7: {} machines for two jobs", world.cloud.created());
            ensure!(world.cloud.created() <= 3, "{} machines", world.cloud.created());
            for crd in petaflop_crds::crds::all() {
                let api = objects(&client, &crd, &namespace);
                let _ = api.delete("poisoned", &DeleteParams::default()).await;
            }
            Ok(())
        })
        .await
    })
}

/// Jobs that only stand there: 10,000 of them in `make faults`.
fn idle() -> usize {
    match std::env::var_os("PETAFLOP_FAULTS") {
        Some(_) => 10_000,
        None => 500,
    }
}

#[test]
fn h5_jobs_that_only_stand_there_cost_no_call() -> Result<()> {
    by_hand(async |errors| {
        let plane = crate::own_plane().await?;
        let mut lane = Lane::new(&plane, errors).await?;
        lane.run("h5", Manners::runpod(), &[], Twist::default(), async |world| {
            // It may take long until all of them have their first status.
            world.began = Instant::now() + Duration::from_secs(1200);
            let jobs = world.lane.jobs();
            world.create(json!({})).await?;
            let pattern = jobs.get(&world.job).await?.spec;
            let made = futures::stream::iter(0..idle()).map(|number| {
                let mut spec = pattern.clone();
                match number % 3 {
                    0 => spec.suspend = true,
                    1 => spec.placement.max_hourly_price = Some(Money("0.01".into())),
                    _ => spec.placement.providers = vec!["elsewhere".into()],
                }
                let job = TrainingJob::new(&format!("idle-{number}"), spec);
                let jobs = jobs.clone();
                async move { jobs.create(&PostParams::default(), &job).await }
            });
            made.buffer_unordered(8).try_collect::<Vec<_>>().await?;
            world.until_complete().await?;
            let fresh = ListParams::default();
            let unseen = jobs.list(&fresh).await?.iter().filter(|j| j.status.is_none()).count();
            ensure!(unseen == 0, "{unseen} have no status");
            // What is said is brought up to the numbers of now once in a while at most.
            world.pass(Duration::from_secs(900)).await?;
            let writes = plane.writes().await?;
            let made = world.pass(Duration::from_secs(300)).await?;
            let by_us = format!("operator-{}", world.lane.namespace.name());
            let tally = writes.tally(Some(&by_us)).await?;
            ensure!(tally.total() + tally.events == 0, "{tally}");
            let asked: Vec<_> = made
                .iter()
                .filter(|point| {
                    point.class.starts_with("k8s.") && !point.class.starts_with("k8s.watch.")
                })
                .collect();
            ensure!(asked.is_empty(), "{asked:?}");
            world.began = Instant::now();
            Ok(())
        })
        .await
    })
}
