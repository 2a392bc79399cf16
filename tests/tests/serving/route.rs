//! Ways in from outside of the cluster: an Ingress before a service's own Service.

use anyhow::{Result, ensure};
use k8s_openapi::api::networking::v1::Ingress;
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use petaflop_harness::eventually;
use serde_json::{Value, json};

use crate::operator::Cluster;
use crate::serving::Says;
use crate::{SOON, by_the_chart};

#[tokio::test(flavor = "multi_thread")]
async fn a_host_gets_an_ingress_that_follows_the_spec_and_goes_with_it() -> Result<()> {
    let cluster = Cluster::start("routes").await?;
    let (user, access) = by_the_chart(&cluster).await?;
    let writes = cluster.plane.writes().await?;
    let _running = cluster.operator_as(&access).await?;
    let ingresses: Api<Ingress> = Api::namespaced(cluster.client.clone(), &cluster.namespace);

    let spec = json!({ "model": { "artifact": "0".repeat(64) }, "replicas": 0 });
    let routed = |host: &str| {
        let mut spec = spec.clone();
        spec["route"] = json!({ "host": host });
        spec
    };
    cluster.serve("chat", routed("chat.example.com")).await?;
    let to = |host: &str, class: Value, tls: Value| json!({ "host": host, "to": "chat", "port": "http", "class": class, "tls": tls });
    let first = to("chat.example.com", Value::Null, Value::Null);
    until(&ingresses, "chat", Some(&first)).await?;
    let at = |url: &'static str| {
        move |s: &petaflop_crds::InferenceServiceStatus| s.url.as_deref() == Some(url)
    };
    cluster.until_service("chat", "an address", SOON, at("http://chat.example.com")).await?;

    let change = json!({ "host": "a.example.com", "ingressClassName": "nginx", "tlsSecretName": "chat-tls" });
    cluster.change("chat", json!({ "spec": { "route": change } })).await?;
    let second = to("a.example.com", json!("nginx"), json!("chat-tls"));
    until(&ingresses, "chat", Some(&second)).await?;
    cluster.until_service("chat", "an address", SOON, at("https://a.example.com")).await?;
    // What somebody takes away comes back.
    ingresses.delete("chat", &DeleteParams::default()).await?;
    until(&ingresses, "chat", Some(&second)).await?;

    cluster.change("chat", json!({ "spec": { "route": null } })).await?;
    until(&ingresses, "chat", None).await?;
    let inside = |s: &petaflop_crds::InferenceServiceStatus| {
        s.url.as_deref().is_some_and(|url| url.ends_with(".svc:8080"))
    };
    cluster.until_service("chat", "an address", SOON, inside).await?;

    // One of this name that is not ours is left alone, and said.
    let other: Ingress = serde_json::from_value(json!({
        "metadata": { "name": "taken" },
        "spec": { "rules": [{ "host": "other.example.com" }] },
    }))?;
    ingresses.create(&PostParams::default(), &other).await?;
    cluster.serve("taken", routed("taken.example.com")).await?;
    let status = cluster.until_service("taken", "Stalled", SOON, |s| s.is("Stalled")).await?;
    let why = status.conditions.iter().find(|c| c.type_ == "Stalled").map(|c| c.message.as_str());
    ensure!(why.is_some_and(|why| why.contains("Ingress taken is somebody else's")), "{why:?}");
    cluster.change("taken", json!({ "spec": { "route": null } })).await?;
    cluster.until_service("taken", "Ready", SOON, |s| s.is("Ready")).await?;
    ensure!(ingresses.get_opt("taken").await?.is_some(), "it was not ours to take");

    let mut refused = writes.refused().await?;
    refused.retain(|request| request.user == user);
    ensure!(refused.is_empty(), "{refused:#?}");
    Ok(())
}

/// Waits until the Ingress of a name says this; `None`: until there is none.
async fn until(ingresses: &Api<Ingress>, name: &str, wanted: Option<&Value>) -> Result<()> {
    let so = eventually("the Ingress", SOON, || async {
        let found = ingresses.get_opt(name).await.map_err(|error| error.to_string())?;
        let found = found.map(|ingress| in_short(&ingress));
        match found.as_ref() == wanted {
            true => Ok(()),
            false => Err(format!("{found:?} instead of {wanted:?}")),
        }
    });
    Ok(so.await?)
}

fn in_short(ingress: &Ingress) -> Value {
    let spec = serde_json::to_value(&ingress.spec).unwrap_or_default();
    let rule = &spec["rules"][0];
    let to = &rule["http"]["paths"][0]["backend"]["service"];
    json!({
        "host": rule["host"], "to": to["name"], "port": to["port"]["name"],
        "class": spec["ingressClassName"], "tls": spec["tls"][0]["secretName"],
    })
}
