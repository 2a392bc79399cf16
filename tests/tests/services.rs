//! InferenceServices on a real API server: machines bought from a cloud in a box, real agents, the real
//! runtime on them, and real gateways in front of them. There is no kubelet: the gateways' Pods, which
//! the real controller-manager makes from our Deployments, are started by [`serving::Kubelet`] as
//! processes with what the Pod says, each on a loopback address of its own.

#[cfg(feature = "aws")]
#[path = "serving/containers.rs"]
mod containers;
mod market;
mod operator;
#[cfg(feature = "aws")]
#[path = "serving/places.rs"]
mod places;
#[path = "faults/rights.rs"]
mod rights;
#[path = "serving/route.rs"]
mod route;
mod serving;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::Cluster;
use petaflop_agent_api::task::Secret;
use petaflop_crds::inference_service::InferenceServicePhase as Phase;
use petaflop_crds::{InferenceService, InferenceServiceStatus};
use petaflop_harness::{Access, eventually};
use petaflop_operator::cluster::settings::Settings;
use petaflop_operator::installation::Installation;
use serde_json::json;
use serving::{Chat, Kubelet, Says, models};

const SOON: Duration = Duration::from_secs(240);

/// An account with the rights that the chart gives, of which each refusal is recorded: who it is, and its
/// way in.
async fn by_the_chart(cluster: &Cluster) -> Result<(String, Access)> {
    let account = ServiceAccount {
        metadata: ObjectMeta { name: Some("operator".into()), ..ObjectMeta::default() },
        ..ServiceAccount::default()
    };
    let accounts: Api<ServiceAccount> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    accounts.create(&PostParams::default(), &account).await?;
    let user = format!("system:serviceaccount:{}:operator", cluster.namespace);
    rights::give(&cluster.client, &user, &cluster.namespace).await?;
    Ok((user, cluster.plane.service_account(&cluster.namespace, "operator").await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_becomes_ready_and_answers_and_leaves_nothing() -> Result<()> {
    let cluster = Cluster::start("serves").await?;
    let [model, _] = models(&cluster).await?;
    let kubelet = Kubelet::start(&cluster).await?;
    let (user, access) = by_the_chart(&cluster).await?;
    let writes = cluster.plane.writes().await?;
    let running = cluster.operator_as(&access).await?;
    cluster.serve("chat", json!({ "model": { "artifact": model } })).await?;
    let service = cluster.until_service("chat", "Ready", SOON, |s| s.is("Ready")).await?;
    ensure!(service.available_replicas == 1 && service.updated_replicas == 1, "{service:#?}");
    ensure!(service.phase == Some(Phase::Available), "{service:#?}");
    ensure!(service.artifact.as_deref() == Some(model.as_str()), "{service:#?}");
    ensure!(service.url.as_deref().is_some_and(|url| url.ends_with(".svc:8080")), "{service:#?}");
    for type_ in ["Available", "ModelLoaded", "RouteReady"] {
        ensure!(service.is(type_), "{type_}: {service:#?}");
    }
    let gateway = kubelet.gateway("chat").await?;
    let said = Chat::ask(&gateway).await?;
    ensure!(said.code == 200 && said.body.contains("\"choices\""), "{said:?}");
    cluster.scale("chat", 2).await?;
    cluster.until_service("chat", "two replicas", SOON, |s| s.available_replicas == 2).await?;

    cluster.delete_service("chat").await?;
    cluster.until_service_gone("chat").await?;
    cluster.quiet(&running).await?;
    let mut refused = writes.refused().await?;
    refused.retain(|request| request.user == user);
    ensure!(refused.is_empty(), "{refused:#?}");
    // It would have been seen: this account may not read Secrets.
    let secrets: Api<k8s_openapi::api::core::v1::Secret> =
        Api::namespaced(access.client().await?, &cluster.namespace);
    ensure!(secrets.list(&Default::default()).await.is_err());
    let refused = writes.refused().await?;
    ensure!(refused.iter().any(|request| request.user == user), "{refused:#?}");
    ensure!(cluster.claims().await?.is_empty());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    ensure!(cluster.booked().await? > 0);
    kubelet.until_nothing_is_left("chat").await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_waited_for_and_what_cannot_work_says_how_to_mend_it() -> Result<()> {
    let cluster = Cluster::start("waits").await?;
    let [_, _] = models(&cluster).await?;
    let _running = cluster.operator().await?;
    let unknown = "0".repeat(64);
    cluster.serve("waits", json!({ "model": { "trainingJob": "later" } })).await?;
    cluster.serve("unknown", json!({ "model": { "artifact": unknown } })).await?;
    cluster.serve("remote", json!({ "model": { "uri": "s3://models/llama" } })).await?;
    let table = [
        ("waits", "Reconciling", "MinimumReplicasUnavailable", "TrainingJob later, which does not"),
        ("unknown", "Stalled", "BlockedByFailedLoad", unknown.as_str()),
        ("remote", "Stalled", "InvalidSpec", "or spec.model.artifact"),
    ];
    for (name, condition, reason, message) in table {
        let status = cluster.until_service(name, condition, SOON, |s| s.is(condition)).await?;
        let said = status.conditions.iter().find(|c| c.type_ == condition).context("it")?;
        ensure!(said.reason == reason && said.message.contains(message), "{name}: {said:?}");
        ensure!(!status.is("Ready"), "{name}: {status:#?}");
    }
    ensure!(cluster.claims().await?.is_empty() && cluster.cloud.created() == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_another_manages_is_left_alone() -> Result<()> {
    let cluster = Cluster::start("managed").await?;
    let _running = cluster.operator().await?;
    let model = json!({ "artifact": "0".repeat(64) });
    cluster.serve("theirs", json!({ "model": model, "managedBy": "example.com/queue" })).await?;
    // One that came later has had its turn.
    cluster.serve("ours", json!({ "model": model })).await?;
    cluster.until_service("ours", "Stalled", SOON, |s| s.is("Stalled")).await?;
    let services: Api<InferenceService> =
        Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let theirs = services.get("theirs").await?;
    ensure!(theirs.status.is_none() && theirs.finalizers().is_empty(), "{theirs:#?}");
    let fronts: Api<Service> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    ensure!(fronts.get_opt("theirs").await?.is_none());
    ensure!(cluster.claims().await?.is_empty() && cluster.cloud.created() == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_scaled_by_the_scale_subresource_and_replaced_when_lost() -> Result<()> {
    let cluster = Cluster::start("scales").await?;
    let [model, _] = models(&cluster).await?;
    let kubelet = Kubelet::start(&cluster).await?;
    let running = cluster.operator().await?;
    cluster.serve("chat", json!({ "model": { "artifact": model }, "replicas": 0 })).await?;
    let status = cluster.until_service("chat", "Ready at zero", SOON, |s| s.is("Ready")).await?;
    ensure!(!status.is("Available") && status.replicas == 0, "{status:#?}");
    ensure!(cluster.cloud.created() == 0);
    let gateway = kubelet.gateway("chat").await?;
    let refused = Chat::ask(&gateway).await?;
    ensure!(refused.code == 503 && refused.body.contains("scaled to zero"), "{refused:?}");

    cluster.scale("chat", 3).await?;
    let all = |n: u32| move |s: &InferenceServiceStatus| s.is("Ready") && s.available_replicas == n;
    cluster.until_service("chat", "three", SOON, all(3)).await?;
    ensure!(cluster.cloud.created() == 3, "{} machines", cluster.cloud.created());
    let (spec, status, selector) = cluster.scale_of("chat").await?;
    ensure!((spec, status) == (3, 3), "{spec} {status}");
    ensure!(selector.contains("petaflop.dev/owner=chat"), "{selector}");

    // One machine is taken away: somebody else answers at once, and another comes.
    let load = Chat::keep_asking(&gateway);
    let lost = cluster.cloud.billed_now().first().context("a machine")?.id.clone();
    cluster.cloud.interrupt(&lost, None);
    cluster
        .until_service("chat", "whole again", SOON, |s| {
            s.interruptions + s.restarts == 1 && s.is("Ready") && s.available_replicas == 3
        })
        .await?;
    let asked = load.stop().await?;
    ensure!(asked.failed.is_empty() && asked.answered > 0, "{asked:?}");
    ensure!(cluster.cloud.created() == 4, "{} machines", cluster.cloud.created());

    cluster.scale("chat", 1).await?;
    cluster.until_service("chat", "one", SOON, all(1)).await?;
    cluster.scale("chat", 0).await?;
    cluster.until_service("chat", "none", SOON, |s| s.is("Ready") && s.replicas == 0).await?;
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    ensure!(cluster.cloud.created() == 4, "{} machines", cluster.cloud.created());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_is_rolled_out_without_a_failed_request() -> Result<()> {
    let cluster = Cluster::start("rolls").await?;
    let [old, new] = models(&cluster).await?;
    let kubelet = Kubelet::start(&cluster).await?;
    let _running = cluster.operator().await?;
    cluster.serve("chat", json!({ "model": { "artifact": old }, "replicas": 2 })).await?;
    cluster.until_service("chat", "Ready", SOON, |s| s.is("Ready")).await?;
    let gateway = kubelet.gateway("chat").await?;
    let load = Chat::keep_asking(&gateway);
    let before = cluster.claims().await?;
    cluster.change("chat", json!({ "spec": { "model": { "artifact": new } } })).await?;
    let mut fewest = u32::MAX;
    let status = cluster
        .until_service("chat", "rolled out", SOON, |s| {
            fewest = fewest.min(s.available_replicas);
            s.is("Ready") && s.artifact.as_deref() == Some(new.as_str()) && s.updated_replicas == 2
        })
        .await?;
    let asked = load.stop().await?;
    ensure!(asked.failed.is_empty() && asked.answered > 10, "{asked:?}");
    ensure!(fewest >= 2, "maxUnavailable is 0, and there were {fewest}");
    ensure!(status.replicas == 2, "{status:#?}");
    cluster.until_claims(2).await?;
    let names: Vec<String> = before.iter().map(|claim| claim.name_any()).collect();
    let after = cluster.claims().await?;
    ensure!(after.iter().all(|claim| !names.contains(&claim.name_any())));
    // maxSurge is 1.
    ensure!(cluster.cloud.created() == 4, "{} machines", cluster.cloud.created());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn other_resources_and_another_image_are_rolled_out_without_a_failed_request() -> Result<()> {
    let cluster = Cluster::start("remakes").await?;
    let [model, _] = models(&cluster).await?;
    let kubelet = Kubelet::start(&cluster).await?;
    let running = cluster.operator().await?;
    cluster.serve("chat", json!({ "model": { "artifact": model }, "replicas": 2 })).await?;
    let first = cluster.until_service("chat", "Ready", SOON, |s| s.is("Ready")).await?;
    let gateway = kubelet.gateway("chat").await?;
    let load = Chat::keep_asking(&gateway);
    let names = async || {
        anyhow::Ok(cluster.claims().await?.iter().map(ResourceExt::name_any).collect::<Vec<_>>())
    };
    let rolled = async |what: &str, before: &InferenceServiceStatus, old: Vec<String>| {
        let mut fewest = u32::MAX;
        let status = cluster
            .until_service("chat", what, SOON, |s| {
                fewest = fewest.min(s.available_replicas);
                s.is("Ready") && s.revision != before.revision && s.updated_replicas == 2
            })
            .await?;
        ensure!(fewest >= 2, "{what}: maxUnavailable is 0, and there were {fewest}");
        cluster.until_claims(2).await?;
        for claim in cluster.claims().await? {
            ensure!(!old.contains(&claim.name_any()), "{what}: {} is an old one", claim.name_any());
            ensure!(claim.spec.revision == status.revision, "{what}: {claim:#?}");
        }
        anyhow::Ok(status)
    };
    let old = names().await?;
    let resources = json!({ "spec": { "resources": { "cpu": "2", "memory": "1Gi" } } });
    cluster.change("chat", resources).await?;
    let second = rolled("on other machines", &first, old).await?;
    // maxSurge is 1.
    ensure!(cluster.cloud.created() == 4, "{} machines", cluster.cloud.created());

    // What their machines still meet changes nothing but the status.
    let price = json!({ "spec": { "placement": { "maxHourlyPrice": "1" } } });
    cluster.change("chat", price).await?;
    let same = |s: &InferenceServiceStatus| s.is("Ready") && s.revision != second.revision;
    let third = cluster.until_service("chat", "as it was", SOON, same).await?;
    ensure!(third.updated_replicas == 2, "{third:#?}");
    cluster.quiet(&running).await?;
    ensure!(cluster.cloud.created() == 4, "{} machines", cluster.cloud.created());

    // A newer operator brings a newer image.
    drop(running);
    let newer = |settings: &mut Settings| settings.runtime_image = "localhost/runtime:2".to_owned();
    let old = names().await?;
    let running = cluster.operator_with(newer).await?;
    rolled("of another image", &third, old).await?;
    let asked = load.stop().await?;
    ensure!(asked.failed.is_empty() && asked.answered > 10, "{asked:?}");
    ensure!(cluster.cloud.created() == 6, "{} machines", cluster.cloud.created());

    // And then nothing is written any more.
    cluster.quiet(&running).await?;
    let version = cluster.version_of("chat").await?;
    cluster.clock.sleep(Duration::from_secs(3)).await;
    ensure!(cluster.version_of("chat").await? == version, "an idle service was written");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_answers_its_own_service_s_gateways_and_nobody_else() -> Result<()> {
    let cluster = Cluster::start("locked").await?;
    let [model, _] = models(&cluster).await?;
    let kubelet = Kubelet::start(&cluster).await?;
    let running = cluster.operator().await?;
    cluster.serve("chat", json!({ "model": { "artifact": model } })).await?;
    cluster.until_service("chat", "Ready", SOON, |s| s.is("Ready")).await?;
    let [replica] = <[String; 1]>::try_from(cluster.replicas()?)
        .map_err(|all| anyhow::anyhow!("one replica was started, and there are {all:?}"))?;

    // Straight to its port: refused, and told nothing.
    let stranger = Chat::ask(&replica).await?;
    ensure!(stranger.code == 401 && stranger.body.contains("no_replica_key"), "{stranger:?}");
    let gateway = kubelet.gateway("chat").await?;
    ensure!(Chat::ask(&gateway).await?.code == 200, "through the gateway");

    // The key of another service's replica opens nothing here; its own does, for whoever has it.
    let installation = Installation::read(&cluster.client, &cluster.namespace).await?;
    let root = installation.context("the operator made one")?.root;
    let claim = cluster.claims().await?.into_iter().next().context("its claim")?;
    let key = root.replica_key(&claim.uid().context("a uid")?);
    let another = root.replica_key("another claim");
    let with = |key: &Secret| format!("Petaflop-Replica-Key: {}\r\n", key.expose());
    ensure!(Chat::ask_with(&replica, &with(&another)).await?.code == 401, "another's key");
    ensure!(Chat::ask_with(&replica, &with(&key)).await?.code == 200, "its own key");
    // What a client adds does not reach it, and does no harm.
    ensure!(Chat::ask_with(&gateway, &with(&another)).await?.code == 200, "a client's header");

    // It stands in no object, no event, no command line, and in nothing that was written down.
    cluster.quiet(&running).await?;
    let found = cluster.where_stands(key.expose()).await?;
    ensure!(found.is_empty(), "the key stands in {found:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_service_sleeps_and_the_next_request_wakes_it() -> Result<()> {
    let cluster = Cluster::start("sleeps").await?;
    let [model, _] = models(&cluster).await?;
    let kubelet = Kubelet::start(&cluster).await?;
    let running = cluster.operator().await?;
    let idle = json!({ "model": { "artifact": model }, "idle": { "scaleToZeroAfterSeconds": 3 } });
    cluster.serve("chat", idle).await?;
    cluster.until_service("chat", "available", SOON, |s| s.is("Available")).await?;
    let status = cluster
        .until_service("chat", "asleep", SOON, |s| {
            s.phase == Some(Phase::Idle) && s.replicas == 0 && s.is("Ready")
        })
        .await?;
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").context("Ready")?;
    ensure!(ready.reason == "ScaledToZero" && !status.is("Available"), "{ready:?}");
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    let (wanted, ..) = cluster.scale_of("chat").await?;
    ensure!(wanted == 1, "spec.replicas is whoever's who scales");

    // Another operator finds it asleep, and leaves it so.
    drop(running);
    let _running = cluster.operator().await?;
    let gateway = kubelet.gateway("chat").await?;
    let answer = Chat::ask(&gateway).await?;
    ensure!(answer.code == 200, "{answer:?}");
    ensure!(cluster.cloud.created() == 2, "{} machines", cluster.cloud.created());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn neither_a_new_operator_nor_a_new_gateway_is_noticed_by_clients() -> Result<()> {
    let cluster = Cluster::start("restarts").await?;
    let [model, _] = models(&cluster).await?;
    let kubelet = Kubelet::start(&cluster).await?;
    let running = cluster.operator().await?;
    cluster.serve("chat", json!({ "model": { "artifact": model } })).await?;
    cluster.until_service("chat", "Ready", SOON, |s| s.is("Ready")).await?;
    let gateway = kubelet.gateway("chat").await?;
    drop(running);
    ensure!(Chat::ask(&gateway).await?.code == 200, "without an operator");
    let _running = cluster.operator().await?;
    kubelet.restart("chat").await?;
    // It knows no replica; its operator tells it again, while the request waits.
    let answer = Chat::ask(&gateway).await?;
    ensure!(answer.code == 200, "{answer:?}");
    let suspend = json!({ "spec": { "suspend": true } });
    cluster.change("chat", suspend).await?;
    cluster.until_service("chat", "Suspended", SOON, |s| s.is("Suspended")).await?;
    cluster.until_no_claims().await?;
    ensure!(cluster.cloud.created() == 1, "{} machines", cluster.cloud.created());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_horizontal_pod_autoscaler_reads_and_writes_the_scale_subresource() -> Result<()> {
    let cluster = Cluster::start("autoscaled").await?;
    let [model, _] = models(&cluster).await?;
    let _running = cluster.operator().await?;
    cluster.serve("chat", json!({ "model": { "artifact": model }, "replicas": 1 })).await?;
    let scalers: Api<HorizontalPodAutoscaler> =
        Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let scaler = json!({
        "metadata": { "name": "chat" },
        "spec": {
            "scaleTargetRef": { "apiVersion": "petaflop.dev/v1alpha1", "kind": "InferenceService", "name": "chat" },
            "minReplicas": 2, "maxReplicas": 3,
        },
    });
    scalers.create(&PostParams::default(), &serde_json::from_value(scaler)?).await?;

    // No metric is served here: it keeps to its bounds, for which it reads and writes what is wanted.
    let scaled = async |wanted: i32| {
        eventually(&format!("{wanted} replicas by the autoscaler"), SOON, || async {
            let (spec, status, _) = cluster.scale_of("chat").await.map_err(|e| e.to_string())?;
            let scaler = scalers.get("chat").await.map_err(|e| e.to_string())?;
            let seen = scaler.status.unwrap_or_default();
            let able = seen
                .conditions
                .iter()
                .flatten()
                .any(|c| c.type_ == "AbleToScale" && c.status == "True");
            let as_wanted = (spec, status, seen.current_replicas) == (wanted, wanted, Some(wanted));
            if able && as_wanted { Ok(()) } else { Err(format!("{spec} {status} {seen:#?}")) }
        })
        .await
    };
    scaled(2).await?;
    ensure!(cluster.cloud.created() == 2, "{} machines", cluster.cloud.created());
    let bounds = json!({ "spec": { "minReplicas": 1, "maxReplicas": 1 } });
    scalers.patch("chat", &PatchParams::default(), &Patch::Merge(bounds)).await?;
    scaled(1).await?;
    scalers.delete("chat", &DeleteParams::default()).await?;
    cluster.scale("chat", 0).await?;
    cluster.until_no_claims().await
}
