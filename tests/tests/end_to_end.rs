//! A user's day with petaflop, on a real node with real containers, by helm and kubectl alone: install,
//! train, serve, ask, scale, upgrade, lose a Pod, leave. What is trained in a Pod is what `petaflop run` gives.

mod node;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use node::{SECRET_KEY, Site, at_root};
use petaflop_tests::binary;
use serde_json::Value;

/// The quickstart takes minutes; this much of it takes seconds.
const STEPS: u32 = 60;
/// Long enough to be killed in the middle.
const LONG_STEPS: u32 = 240;

const LONG: Duration = Duration::from_secs(300);

/// The example, as it is but for its length.
fn quickstart() -> Result<String> {
    let text = std::fs::read_to_string(at_root("examples/quickstart.yaml"))?;
    let short = text.replace("max_steps: 2000 ", &format!("max_steps: {STEPS} "));
    ensure!(short != text, "examples/quickstart.yaml has another length");
    Ok(short)
}

/// Its job alone, longer, with checkpoints as often as they can be had.
fn interrupted(quickstart: &str) -> Result<String> {
    let (job, _) = quickstart.split_once("\n---\n").context("two objects")?;
    ensure!(job.contains("intervalSeconds: 30"), "the example asks for other checkpoints");
    Ok(job
        .replace("name: quickstart", "name: interrupted")
        .replace(&format!("max_steps: {STEPS} "), &format!("max_steps: {LONG_STEPS} "))
        .replace("intervalSeconds: 30", "intervalSeconds: 1"))
}

/// A job that trains for as long as anybody looks: nothing bounds it in dollars.
fn endless(interrupted: &str) -> Result<String> {
    let mut endless = interrupted.to_owned();
    for (one, other) in [
        ("name: interrupted", "name: endless"),
        (&format!("max_steps: {LONG_STEPS} "), "max_steps: 1000000 "),
        ("  maxTotalCost: \"0.50\"\n", ""),
    ] {
        ensure!(endless.contains(one), "the example has no {one}");
        endless = endless.replace(one, other);
    }
    Ok(endless)
}

/// What the first job of a manifest gives without a cluster.
fn artifact_on_this_host(manifest: &str) -> Result<String> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("job.yaml");
    let job = manifest.split("\n---\n").next().context("a job")?;
    std::fs::write(&file, job)?;
    let output = Command::new(binary("petaflop")?)
        .env("PETAFLOP_HOME", folder.path().join("home"))
        .args(["run", "--json", "-f"])
        .arg(&file)
        .output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout)?;
    Ok(report["jobs"][0]["artifact"].as_str().context("an artifact")?.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_trained_served_moved_and_paid_for_and_helm_takes_it_all_away() -> Result<()> {
    let quickstart = quickstart()?;
    let interrupted = interrupted(&quickstart)?;
    let Some(site) = node::start().await? else { return Ok(()) };
    install(&site).await?;
    let outcome = async {
        train(&site, &quickstart).await?;
        serve(&site).await?;
        bring_an_image(&site).await?;
        serve_an_image(&site).await?;
        upgrade(&site, &endless(&interrupted)?).await?;
        lose_a_pod(&site, &interrupted).await?;
        leave(&site).await
    }
    .await;
    if outcome.is_err() {
        tell(&site);
    }
    outcome
}

async fn install(site: &Site) -> Result<()> {
    let endpoint = site.bucket().await?;
    site.restricted_namespace("petaflop-system")?;
    site.kubectl(&format!(
        "create secret generic petaflop-store --namespace petaflop-system \
         --from-literal=AWS_ACCESS_KEY_ID=access --from-literal=AWS_SECRET_ACCESS_KEY={SECRET_KEY}"
    ))?;
    site.helm("dependency build charts/petaflop")?;
    site.helm("install petaflop-crds charts/petaflop-crds --wait")?;
    let installed = site.helm(&format!(
        "install petaflop charts/petaflop --namespace petaflop-system --wait --timeout 120s \
         --set store.uri=s3://petaflop/store --set store.endpoint={endpoint} \
         --set store.region=us-east-1 --set store.credentialsSecret=petaflop-store"
    ));
    if installed.is_err() {
        tell(site);
    }
    installed?;
    site.helm("test petaflop --namespace petaflop-system --timeout 60s")?;
    Ok(())
}

async fn train(site: &Site, manifest: &str) -> Result<()> {
    site.restricted_namespace("team")?;
    site.apply("team", manifest)?;
    site.kubectl(
        "wait --namespace team trainingjobs.petaflop.dev/quickstart --for=condition=Complete --timeout=300s",
    )?;
    let status = status(site, "trainingjobs.petaflop.dev/quickstart")?;
    let expected = artifact_on_this_host(manifest)?;
    ensure!(status["artifact"] == expected.as_str(), "{expected} on this host, in a Pod {status}");
    let cost = "get --namespace team trainingjobs.petaflop.dev/quickstart --output jsonpath={.status.cost.total}";
    let dollars = |text: &str| text.parse::<f64>().unwrap_or_default();
    site.until("a cost", LONG, cost, |said| dollars(said) > 0.0).await?;
    Ok(())
}

/// A job whose image has never heard of us, and that works on a volume.
async fn bring_an_image(site: &Site) -> Result<()> {
    let example = std::fs::read_to_string(at_root("examples/container.yaml"))?;
    let manifest =
        example.replace("docker.io/library/busybox:1.37", petaflop_harness::node::BUSYBOX);
    ensure!(manifest != example, "examples/container.yaml has another image");
    let greeting = "echo \"$PETAFLOP_NAMESPACE";
    ensure!(manifest.contains(greeting), "examples/container.yaml has another command");
    let reads = format!("test \"$(cat /text/it)\" = here && touch /scratch/it && {greeting}");
    let manifest = manifest.replace(greeting, &reads).replace(
        "\n  resources:",
        "\n  volumes:\n  - {name: text, mountPath: /text, readOnly: true, configMap: {name: text}}\n  \
         - {name: scratch, mountPath: /scratch, emptyDir: {sizeLimit: 1Mi}}\n  \
         ports: [{name: http, port: 8000}]\n  resources:",
    );
    site.kubectl("create configmap text --namespace team --from-literal=it=here")?;
    site.apply("team", &manifest)?;
    site.kubectl(
        "wait --namespace team trainingjobs.petaflop.dev/container --for=condition=Complete --timeout=120s",
    )?;
    let status = status(site, "trainingjobs.petaflop.dev/container")?;
    ensure!(
        status["artifact"].is_null() && status["failures"].as_u64().unwrap_or(0) == 0,
        "{status}"
    );
    Ok(())
}

/// A server whose image has never heard of us, either: found by its Service once its probe says so.
async fn serve_an_image(site: &Site) -> Result<()> {
    let spec = serde_json::json!({
        "apiVersion": "petaflop.dev/v1alpha1",
        "kind": "InferenceService",
        "metadata": { "name": "pages" },
        "spec": {
            "container": {
                "image": petaflop_harness::node::BUSYBOX,
                "command": ["sh", "-c", "exec httpd -f -p $PORT -h /text"],
            },
            "port": 8000,
            "resources": { "cpu": "100m", "memory": "32Mi" },
            "probes": { "readiness": { "path": "/it" } },
            "volumes": [{ "name": "text", "mountPath": "/text", "configMap": { "name": "text" } }],
        },
    });
    site.apply("team", &spec.to_string())?;
    site.kubectl(
        "wait --namespace team inferenceservices.petaflop.dev/pages --for=condition=Ready --timeout=120s",
    )?;
    let answer =
        exchange(address(site, "pages")?, "GET /it HTTP/1.1\r\nConnection: close\r\n", "")?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.contains("here"), "{answer}");
    Ok(())
}

/// While a service answers and a job trains, another operator takes over, and the first form of the
/// release comes back: neither is touched.
async fn upgrade(site: &Site, manifest: &str) -> Result<()> {
    site.apply("team", manifest)?;
    let trains = "get pods --namespace team --selector petaflop.dev/owner=endless --output name";
    site.until("a Pod of the job", LONG, trains, |said| said.lines().count() == 1).await?;
    let log = format!("logs --namespace team {}", site.kubectl(trains)?.trim());
    let checkpoints = |log: &str| log.matches("checkpoint of step").count();
    site.until("a checkpoint", LONG, &log, |said| checkpoints(said) > 0).await?;

    let workers = || Ok::<_, anyhow::Error>([pods_of(site, "endless")?, pods_of(site, "pages")?]);
    let before = workers()?;
    let asker = Asker::start(address(site, "pages")?);
    let change = "upgrade petaflop charts/petaflop --reuse-values --set log.level=debug";
    for change in [change, "rollback petaflop 1"] {
        says_no_secret(site)?;
        let first = site.kubectl(OPERATORS)?;
        site.helm(&format!("{change} --namespace petaflop-system --wait --timeout 120s"))?;
        let second = site.kubectl(OPERATORS)?;
        ensure!(second != first && second.ends_with(",true"), "{change}: {first}, then {second}");
        // The job trains on, on the machine it has.
        let written = checkpoints(&site.kubectl(&log)?);
        site.until("more checkpoints", LONG, &log, |said| checkpoints(said) > written).await?;
        let after = workers()?;
        ensure!(after == before, "{change}: {before:?}, then {after:?}");
    }
    let (answered, failed) = asker.stop()?;
    ensure!(answered > 0 && failed.is_empty(), "{answered} answers, and {failed:?}");
    site.kubectl("delete --namespace team trainingjobs.petaflop.dev/endless --timeout=120s")?;
    Ok(())
}

/// An owner's Pods: which they are, and how often each began anew.
fn pods_of(site: &Site, owner: &str) -> Result<String> {
    site.kubectl(&format!(
        "get pods --namespace team --selector petaflop.dev/owner={owner} \
         --output jsonpath={{.items[*].metadata.uid}},{{.items[*].status.containerStatuses[*].restartCount}}"
    ))
}

/// The operator's Pods: which they are, and whether each is ready.
const OPERATORS: &str = "get pods --namespace petaflop-system --selector app.kubernetes.io/component=operator \
                         --output jsonpath={.items[*].metadata.uid},{.items[*].status.containerStatuses[*].ready}";

/// Asks a server for its page, one time after the other.
struct Asker {
    enough: Arc<AtomicBool>,
    thread: JoinHandle<(usize, Vec<String>)>,
}

impl Asker {
    fn start(address: SocketAddr) -> Self {
        let enough = Arc::new(AtomicBool::new(false));
        let told = enough.clone();
        let thread = std::thread::spawn(move || {
            let (mut answered, mut failed) = (0, Vec::new());
            while !told.load(Ordering::Relaxed) {
                match exchange(address, "GET /it HTTP/1.1\r\nConnection: close\r\n", "") {
                    Ok(answer) if answer.starts_with("HTTP/1.1 200") => answered += 1,
                    Ok(answer) => failed.push(answer),
                    Err(error) => failed.push(format!("{error:#}")),
                }
                // A connection each: the ports of a minute are not endless.
                std::thread::sleep(Duration::from_millis(20));
            }
            (answered, failed)
        });
        Self { enough, thread }
    }

    /// How many answers came, and what came instead of others.
    fn stop(self) -> Result<(usize, Vec<String>)> {
        self.enough.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("who asks panicked"))
    }
}

async fn serve(site: &Site) -> Result<()> {
    site.kubectl(
        "wait --namespace team inferenceservices.petaflop.dev/quickstart --for=condition=Ready --timeout=300s",
    )?;
    let address = address(site, "quickstart")?;
    ask(address)?;

    let available = "get --namespace team inferenceservices.petaflop.dev/quickstart \
                     --output jsonpath={.status.replicas},{.status.availableReplicas}";
    for replicas in ["2", "0"] {
        site.kubectl(&format!(
            "scale --namespace team inferenceservices.petaflop.dev/quickstart --replicas={replicas}"
        ))?;
        let both = format!("{replicas},{replicas}");
        site.until(&format!("{replicas} replicas"), LONG, available, |said| said == both).await?;
        if replicas != "0" {
            ask(address)?;
        }
    }
    Ok(())
}

/// A Service's address.
fn address(site: &Site, service: &str) -> Result<SocketAddr> {
    let said = site.kubectl(&format!(
        "get --namespace team service/{service} \
         --output jsonpath={{.spec.clusterIP}}:{{.spec.ports[0].port}}"
    ))?;
    Ok(said.parse()?)
}

/// One request, and the whole answer.
fn exchange(address: SocketAddr, head: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(120)))?;
    write!(stream, "{head}Host: {address}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// One chat request by the Service's address.
fn ask(address: SocketAddr) -> Result<()> {
    let body = r#"{"model": "quickstart", "messages": [{"role": "user", "content": "pub fn"}], "max_tokens": 8}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n",
        body.len()
    );
    let answer = exchange(address, &head, body)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| answer.clone())?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{answer}");
    // The body may come in chunks; what is JSON begins and ends with a brace.
    let json = body.find('{').zip(body.rfind('}')).map(|(first, last)| &body[first..=last]);
    let completion: Value = serde_json::from_str(json.with_context(|| answer.clone())?)
        .with_context(|| answer.clone())?;
    ensure!(completion["choices"][0]["message"]["content"].is_string(), "{answer}");
    ensure!(completion["usage"]["completion_tokens"].as_u64() > Some(0), "{answer}");
    Ok(())
}

/// Killed in the middle, a job goes on from its checkpoint in another Pod, to the same result.
async fn lose_a_pod(site: &Site, manifest: &str) -> Result<()> {
    site.apply("team", manifest)?;
    let claims = "get computeclaims --all-namespaces --output name";
    site.until("a Pod of the job", LONG, PODS, |said| said.lines().count() == 1).await?;
    let first = site.kubectl(PODS)?;
    // What is said in its Pod: the job's status is refreshed less often.
    let log = |pod: &str| format!("logs --namespace team {}", pod.trim());
    site.until("a checkpoint", LONG, &log(&first), |said| said.contains("checkpoint of step"))
        .await?;

    // Who leaves while machines are paid for is told so.
    ensure!(!site.kubectl(claims)?.is_empty());
    let refused = site.helm("uninstall petaflop --namespace petaflop-system --timeout 60s");
    ensure!(refused.is_err(), "uninstalled under a running job");
    let why = site.kubectl("logs --namespace petaflop-system job/petaflop-guard")?;
    ensure!(why.contains("trainingjob/interrupted"), "{why}");

    site.kubectl(&format!("delete --namespace team {} --grace-period=0 --force", first.trim()))?;
    let another = |said: &str| said.lines().count() == 1 && said.trim() != first.trim();
    let second = site.until("another Pod", LONG, PODS, another).await?;
    let goes_on = |said: &str| said.contains("going on after step");
    site.until("a Pod that goes on", LONG, &log(&second), goes_on).await?;
    site.kubectl(
        "wait --namespace team trainingjobs.petaflop.dev/interrupted --for=condition=Complete --timeout=300s",
    )?;
    let status = status(site, "trainingjobs.petaflop.dev/interrupted")?;
    let expected = artifact_on_this_host(manifest)?;
    ensure!(status["artifact"] == expected.as_str(), "{expected} on this host, in Pods {status}");
    ensure!(status["interruptions"] == 1, "{status}");
    Ok(())
}

/// Pods of the second job, by name.
const PODS: &str =
    "get pods --namespace team --selector petaflop.dev/owner=interrupted --output name";

async fn leave(site: &Site) -> Result<()> {
    says_no_secret(site)?;
    let everything = site.kubectl(
        "get pods,services,deployments,jobs,events,trainingjobs.petaflop.dev,inferenceservices.petaflop.dev,\
         computeclaims --namespace team --output yaml",
    )?;
    ensure!(!everything.contains(SECRET_KEY), "a secret is shown");

    site.kubectl(
        "delete --namespace team trainingjobs.petaflop.dev,inferenceservices.petaflop.dev --all --timeout=120s",
    )?;
    // The namespace controller comes back to Pods that end after half of their grace, and a gateway's is
    // minutes: it is left to end first.
    let none = |said: &str| said.trim().is_empty();
    site.until("no Pods", LONG, "get pods --namespace team --output name", none).await?;
    site.kubectl("delete namespace team --timeout=120s")?;
    let claims = site.kubectl("get computeclaims --all-namespaces --output name")?;
    ensure!(claims.is_empty(), "{claims}");
    site.helm("uninstall petaflop --namespace petaflop-system --wait --timeout 120s")?;
    let left = site
        .kubectl("get computeproviders,deployments,jobs,cronjobs --all-namespaces --output name")?;
    ensure!(left.is_empty(), "{left}");
    let crds = site.kubectl("get customresourcedefinitions --output name")?;
    ensure!(crds.contains("trainingjobs.petaflop.dev"), "what people wrote is gone: {crds}");
    Ok(())
}

/// What was seen of this operator so far holds no secret, and no right was missing.
fn says_no_secret(site: &Site) -> Result<()> {
    let log = site.kubectl("logs --namespace petaflop-system deployment/petaflop")?;
    ensure!(!log.contains("forbidden"), "{log}");
    ensure!(!log.contains(SECRET_KEY), "a secret is shown");
    Ok(())
}

fn status(site: &Site, object: &str) -> Result<Value> {
    let text = site.kubectl(&format!("get --namespace team {object} --output json"))?;
    let object: Value = serde_json::from_str(&text)?;
    Ok(object["status"].clone())
}

/// Everything that helps whoever reads a failure.
fn tell(site: &Site) {
    for arguments in [
        "get pods,jobs,computeclaims,computeproviders,trainingjobs.petaflop.dev,inferenceservices.petaflop.dev -A -o wide",
        "get events -A",
        "describe pods -A",
        "logs --namespace petaflop-system deployment/petaflop --tail 200",
        "get computeclaims,trainingjobs.petaflop.dev,inferenceservices.petaflop.dev -A -o yaml",
    ] {
        match site.kubectl(arguments) {
            Ok(said) => eprintln!("$ kubectl {arguments}\n{said}"),
            Err(error) => eprintln!("$ kubectl {arguments}\n{error:#}"),
        }
    }
}
