//! A service of an image of a user's, on pods of RunPod in a box: real machines, each with a network of its own,
//! reached by their agents.

use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::PostParams;
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::runpod;
use petaflop_crds::InferenceServiceStatus;
use serde_json::{Value, json};

use crate::market::account::{self, Account};
use crate::market::time::Ticking;
use crate::market::{Market, PLAIN};
use crate::operator::Cluster;
use crate::serving::{Chat, Kubelet, Says};

const KEY: &str = "rpa_of_the_account";
const SOON: Duration = Duration::from_secs(240);

/// It is ready two seconds after its start, and refuses who comes before. `POST /break` is its end.
const SERVER: &str = r#"
use IO::Socket::INET;
my $listener = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 64, ReuseAddr => 1) or die $!;
my ($since, $ready, $broken) = (time, 0, 0);
while (1) {
    my $client = $listener->accept or next;
    my ($head, $length) = ("", 0);
    while (my $line = <$client>) {
        last if $line eq "\r\n";
        $length = $1 if $line =~ /^content-length: *(\d+)/i;
        $head .= $line;
    }
    read($client, my $body, $length) if $length;
    my ($path) = $head =~ /^\S+ (\S+)/;
    $ready = 1 if $path eq "/ready" && time - $since >= 2;
    $broken = 1 if $path eq "/break";
    my $status = $path eq "/live" ? ($broken ? 500 : 200) : ($ready ? 200 : 503);
    my $key = $head =~ /petaflop-replica-key/i ? "a key" : "no key";
    my $answer = "$ENV{ANSWER}, $ENV{WORD}, $key";
    print $client "HTTP/1.1 $status So\r\nConnection: close\r\nContent-Length: " . length($answer) . "\r\n\r\n$answer";
    close $client;
}
"#;

fn container(answer: &str) -> Value {
    json!({
        "image": PLAIN,
        "command": ["perl", "-e", SERVER],
        "env": [{ "name": "ANSWER", "value": answer }],
        "envFrom": [{ "secretRef": { "name": "words" } }],
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_serves_once_it_is_ready_is_rolled_out_and_replaced_without_a_failed_request()
-> Result<()> {
    let Some(market) = Market::open().await? else { return Ok(()) };
    let clock = Clock::manual(jiff::Timestamp::now());
    let cluster = Cluster::start_with("serves-any", clock.clone(), None).await?;
    let runpod = market.runpod(clock.clone(), KEY, runpod::PACE)?;
    let ticking = Ticking::start(clock);
    let pods = Account::open(&cluster, "runpod", &account::runpod(&runpod.url())).await?;
    pods.keys(json!({ "RUNPOD_API_KEY": KEY })).await?;
    let make = ticking.make(&cluster, &[&pods.name], &market.agent).await?;
    let change = account::with_bucket(&market, "s3://bucket/store");
    let running = cluster.operator_making(make, change).await?;
    let kubelet = Kubelet::start(&cluster).await?;

    // Nothing is bought before its Secret is there.
    let spec = json!({
        "container": container("one"),
        "port": 8000,
        "replicas": 2,
        "resources": { "cpu": "1", "memory": "1Gi" },
        "placement": { "providers": [pods.name] },
        "probes": {
            "startup": { "path": "/live", "periodSeconds": 1, "failureThreshold": 60 },
            "readiness": { "path": "/ready", "periodSeconds": 1 },
            "liveness": { "path": "/live", "periodSeconds": 1, "failureThreshold": 2 },
        },
    });
    cluster.serve("any", spec).await?;
    let lacks = |status: &InferenceServiceStatus| {
        let stalled = status.conditions.iter().find(|c| c.type_ == "Stalled");
        stalled.is_some_and(|c| c.status == "True" && c.message.contains("no Secret words"))
    };
    cluster.until_service("any", "Stalled", SOON, lacks).await?;
    ensure!(cluster.claims().await?.is_empty());
    let secret = json!({ "metadata": { "name": "words" }, "stringData": { "WORD": "hush" } });
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;

    // Who asks before it is ready waits.
    let gateway = kubelet.gateway("any").await?;
    let load = Chat::keep_asking(&gateway);
    let whole = |status: &InferenceServiceStatus| {
        status.is("Ready") && status.available_replicas == 2 && status.updated_replicas == 2
    };
    let first = cluster.until_service("any", "Ready", SOON, whole).await?;
    ensure!(first.artifact.is_none() && first.restarts == 0, "{first:#?}");
    let said = Chat::ask(&gateway).await?;
    ensure!((said.code, said.body.as_str()) == (200, "one, hush, no key"), "{said:?}");

    cluster.change("any", json!({ "spec": { "container": container("two") } })).await?;
    let rolled = |status: &InferenceServiceStatus| {
        whole(status) && status.replicas == 2 && status.revision != first.revision
    };
    cluster.until_service("any", "rolled out", SOON, rolled).await?;
    let said = Chat::ask(&gateway).await?;
    ensure!((said.code, said.body.as_str()) == (200, "two, hush, no key"), "{said:?}");

    // One says no more that it lives: it is ended, counted, and replaced.
    let client = reqwest::Client::builder().no_proxy().build()?;
    client.post(format!("http://{gateway}/break")).send().await?.error_for_status()?;
    let replaced = |status: &InferenceServiceStatus| whole(status) && status.restarts == 1;
    cluster.until_service("any", "whole again", SOON, replaced).await?;
    let asked = load.stop().await?;
    ensure!(asked.failed.is_empty() && asked.answered > 10, "{asked:?}");

    cluster.delete_service("any").await?;
    cluster.until_service_gone("any").await?;
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    let invoice = runpod.engine(|engine| engine.invoice());
    ensure!(invoice.open().is_empty(), "{invoice:?}");
    Ok(())
}
