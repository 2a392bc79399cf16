//! The same from the command line, through the API server.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::rbac::v1::Role;
use kube::Api;
use kube::api::{Patch, PatchParams};
use petaflop_harness::{Access, eventually};
use petaflop_operator::cluster::operate::Running;
use serde_json::{Value, json};

use crate::asker::{account, create, let_view, viewer_rules};
use crate::operator::Cluster;

/// What a user sees and does with a kubeconfig, through the API server: one whose kubeconfig holds a
/// token, and an administrator, whose holds a certificate.
pub(crate) async fn from_the_command_line(
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
        let folder = tempfile::tempdir()?;
        let picture = folder.path().join("job.svg").display().to_string();
        ask(&["explain", "job/job", "--svg", &picture]).await?;
        let drawn = std::fs::read_to_string(&picture)?;
        ensure!(drawn.starts_with("<svg") && drawn.contains(&format!("{here}/job")), "{drawn}");
        ensure!(drawn.contains(&cluster.provider), "the place of its machine: {drawn}");
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
pub(crate) async fn stands_as_in_the_chart(cluster: &Cluster, running: &Running) -> Result<String> {
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
