//! For tests of services: models to serve, gateways in Pods without a kubelet, and clients.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use petaflop_crds::{InferenceService, InferenceServiceStatus};
use petaflop_harness::eventually;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;
use tokio::task::JoinHandle;

use crate::operator::{Cluster, is};

const LABEL: &str = "petaflop.dev/gateway";
const GENEROUS: Duration = Duration::from_secs(120);

/// Whether conditions of a status are true.
pub(crate) trait Says {
    /// Whether this one is.
    fn is(&self, type_: &str) -> bool;
}

impl Says for InferenceServiceStatus {
    fn is(&self, type_: &str) -> bool {
        is(&self.conditions, type_)
    }
}

/// What a cluster's users do with services.
impl Cluster {
    fn services(&self) -> Api<InferenceService> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a service.
    pub(crate) async fn serve(&self, name: &str, spec: Value) -> Result<()> {
        let object = serde_json::from_value(json!({
            "apiVersion": "petaflop.dev/v1alpha1",
            "kind": "InferenceService",
            "metadata": { "name": name },
            "spec": spec,
        }))?;
        self.services().create(&PostParams::default(), &object).await?;
        Ok(())
    }

    /// Changes it.
    pub(crate) async fn change(&self, name: &str, change: Value) -> Result<()> {
        self.services().patch(name, &PatchParams::default(), &Patch::Merge(change)).await?;
        Ok(())
    }

    /// Asks for its removal.
    pub(crate) async fn delete_service(&self, name: &str) -> Result<()> {
        self.services().delete(name, &DeleteParams::background()).await?;
        Ok(())
    }

    /// As `kubectl scale` does.
    pub(crate) async fn scale(&self, name: &str, replicas: u32) -> Result<()> {
        let change = json!({ "spec": { "replicas": replicas } });
        let params = PatchParams::default();
        self.services().patch_scale(name, &params, &Patch::Merge(change)).await?;
        Ok(())
    }

    /// What a scaler sees: wanted, there, selector.
    pub(crate) async fn scale_of(&self, name: &str) -> Result<(i32, i32, String)> {
        let scale: Scale =
            serde_json::from_value(serde_json::to_value(self.services().get_scale(name).await?)?)?;
        let wanted = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        let status = scale.status.context("a status")?;
        Ok((wanted, status.replicas, status.selector.unwrap_or_default()))
    }

    /// Waits until its status is so.
    pub(crate) async fn until_service(
        &self,
        name: &str,
        what: &str,
        within: Duration,
        mut is: impl FnMut(&InferenceServiceStatus) -> bool,
    ) -> Result<InferenceServiceStatus> {
        let start = std::time::Instant::now();
        loop {
            let service = self.services().get(name).await?;
            let current = service.status.as_ref().map(|s| s.observed_generation);
            let status = service.status.clone().unwrap_or_default();
            if current == Some(service.metadata.generation) && is(&status) {
                return Ok(status);
            }
            ensure!(start.elapsed() < within, "{name} is not {what}: {status:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Where the replicas of all services of this cluster listen, by the names of their machines'
    /// folders, which are not known to users: as who stands on the same network may find out.
    pub(crate) fn replicas(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![self.machines()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.ends_with("progress.jsonl") {
                    let said = std::fs::read_to_string(path)?;
                    let lines = said.lines().filter_map(|line| serde_json::from_str(line).ok());
                    let ports = lines.filter_map(|line: Value| line["port"].as_u64());
                    found.extend(ports.map(|port| format!("127.0.0.1:{port}")));
                }
            }
        }
        Ok(found)
    }

    /// The version of the object: another with every write.
    pub(crate) async fn version_of(&self, name: &str) -> Result<String> {
        self.services().get(name).await?.resource_version().context("a version")
    }

    /// Where a text stands: in objects of this namespace, on command lines, in the store and in what
    /// machines wrote down. What only root and the machine's own processes may read is left out.
    pub(crate) async fn where_stands(&self, text: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for path in [
            "apis/petaflop.dev/v1alpha1/namespaces/{}/inferenceservices",
            "apis/petaflop.dev/v1alpha1/namespaces/{}/computeclaims",
            "apis/events.k8s.io/v1/namespaces/{}/events",
            "apis/apps/v1/namespaces/{}/deployments",
            "api/v1/namespaces/{}/pods",
            "api/v1/namespaces/{}/secrets",
            "api/v1/namespaces/{}/configmaps",
        ] {
            let uri = format!("/{}", path.replace("{}", &self.namespace));
            let request = http::Request::get(&uri).body(Vec::new())?;
            if self.client.request_text(request).await?.contains(text) {
                found.push(uri);
            }
        }
        for process in std::fs::read_dir("/proc")? {
            let line = process?.path().join("cmdline");
            if std::fs::read(&line).is_ok_and(|line| String::from_utf8_lossy(&line).contains(text))
            {
                found.push(line.display().to_string());
            }
        }
        let mut folders = vec![self.machines(), self.store().into()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    folders.push(path);
                } else if String::from_utf8_lossy(&std::fs::read(&path)?).contains(text) {
                    found.push(path.display().to_string());
                }
            }
        }
        Ok(found)
    }

    /// Waits until it is gone.
    pub(crate) async fn until_service_gone(&self, name: &str) -> Result<()> {
        let what = format!("{name} is gone");
        let gone = eventually(&what, GENEROUS, || async {
            match self.services().get_opt(name).await.map_err(|error| error.to_string())? {
                None => Ok(()),
                Some(service) => Err(format!("{:?}", service.status)),
            }
        });
        Ok(gone.await?)
    }

    /// Waits until there are so many claims.
    pub(crate) async fn until_claims(&self, count: usize) -> Result<()> {
        let what = format!("{count} claims");
        let there = eventually(&what, GENEROUS, || async {
            let claims = self.claims().await.map_err(|error| error.to_string())?;
            match claims.len() == count {
                true => Ok(()),
                false => Err(format!("{} claims", claims.len())),
            }
        });
        Ok(there.await?)
    }
}

/// Two models in the cluster's store: hashes of their artifacts. Trained once for all tests.
pub(crate) async fn models(cluster: &Cluster) -> Result<[String; 2]> {
    static TRAINED: OnceCell<(tempfile::TempDir, [String; 2])> = OnceCell::const_new();
    let (folder, hashes) = TRAINED.get_or_try_init(train).await?;
    let copied = Command::new("cp")
        .args(["-r", "--"])
        .arg(folder.path().join("store"))
        .arg(cluster.store())
        .status()
        .await?;
    ensure!(copied.success(), "cp: {copied}");
    Ok(hashes.clone())
}

async fn train() -> Result<(tempfile::TempDir, [String; 2])> {
    let folder = tempfile::tempdir()?;
    let runtime = petaflop_tests::binary("petaflop-runtime")?;
    let mut hashes = Vec::new();
    for seed in [1, 2] {
        let job = job(folder.path(), seed);
        let file = folder.path().join(format!("job-{seed}.json"));
        std::fs::write(&file, job.to_string())?;
        let trained = Command::new(&runtime).args(["train", "--job"]).arg(&file).output().await?;
        ensure!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        let key = Command::new(&runtime).args(["key", "--job"]).arg(&file).output().await?;
        let key: Value = serde_json::from_slice(&key.stdout)?;
        hashes.push(key["cached"].as_str().context("an artifact")?.to_owned());
    }
    Ok((folder, [hashes[0].clone(), hashes[1].clone()]))
}

/// A model of 320 words, trained for a few steps on the text of the licence.
fn job(folder: &Path, seed: u32) -> Value {
    json!({
        "recipe": {
            "model": {"scratch": {
                "layers": 2, "hidden": 32, "heads": 4, "kv_heads": 2, "head_dim": 8,
                "intermediate": 64, "vocab": 320, "max_positions": 256, "norm_eps": 1e-5,
                "rope": {"theta": 10000.0, "scaling": {"type": "none"}},
                "tied_embeddings": true, "qkv_bias": false, "qk_norm": false,
            }},
            "tokenizer": {"train_bpe": {"vocab": 320}},
            "datasets": [{"input": "text", "kind": "completion"}],
            "val_set_size": 0.0,
            "sequence_len": 64,
            "micro_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "length": {"steps": 10},
            "optimizer": {"adamw": {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}},
            "learning_rate": 0.003,
            "schedule": {"warmup_steps": 2, "decay": "cosine", "min_ratio": 0.1},
            "max_grad_norm": 1.0,
            "seed": seed,
            "precision": "f32",
        },
        "inputs": [{"name": "text", "uri": concat!(env!("CARGO_MANIFEST_DIR"), "/../LICENSE")}],
        "store": folder.join("store"),
        "checkpoints": folder.join("checkpoints"),
        "checkpoint_interval_seconds": 600,
        "keep_checkpoints": 2,
    })
}

/// What stands for a node's kubelet, for gateways: it starts what their Pods say, gives each an
/// address of its own, and ends it when the Pod goes.
pub(crate) struct Kubelet {
    client: Client,
    namespace: String,
    running: Arc<Mutex<BTreeMap<String, Started>>>,
    task: JoinHandle<()>,
}

struct Started {
    address: String,
    /// None while another takes its place.
    process: Option<Child>,
}

impl Kubelet {
    /// For the Pods of a cluster's namespace.
    pub(crate) async fn start(cluster: &Cluster) -> Result<Self> {
        let program = petaflop_tests::binary("petaflop")?;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
        let running: Arc<Mutex<BTreeMap<String, Started>>> = Arc::default();
        let seen = running.clone();
        let task = tokio::spawn(async move {
            loop {
                if let Err(error) = sync(&pods, &program, &seen).await {
                    eprintln!("kubelet: {error:#}");
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        let (client, namespace) = (cluster.client.clone(), cluster.namespace.clone());
        Ok(Self { client, namespace, running, task })
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn of(&self, service: &str) -> Result<Vec<Pod>, String> {
        let params = ListParams::default().labels(&format!("{LABEL}={service}"));
        Ok(self.pods().list(&params).await.map_err(|error| error.to_string())?.items)
    }

    /// Where the gateway of a service takes requests, once its Pod runs.
    pub(crate) async fn gateway(&self, service: &str) -> Result<String> {
        let found = eventually("a gateway", GENEROUS, || async {
            let pods = self.of(service).await?;
            let mut ips = pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.clone());
            let ip = ips.next().ok_or("no Pod of it has an address")?;
            Ok(format!("{ip}:8080"))
        });
        Ok(found.await?)
    }

    /// Ends a gateway's process without a word and starts another in its place.
    pub(crate) async fn restart(&self, service: &str) -> Result<()> {
        let pods = self.of(service).await.map_err(anyhow::Error::msg)?;
        let pod = pods.first().context("its Pod")?;
        let uid = pod.uid().context("a uid")?;
        // It stays in the table, so that nothing else is started for its Pod meanwhile.
        let (address, process) = {
            let mut running = self.lock();
            let started = running.get_mut(&uid).context("it runs")?;
            (started.address.clone(), started.process.take())
        };
        process.context("one restart at a time")?.kill().await?;
        let process = launch(&petaflop_tests::binary("petaflop")?, pod, &address)?;
        self.lock().get_mut(&uid).context("its Pod is there")?.process = Some(process);
        Ok(())
    }

    /// Waits until the garbage collector has taken all that a service left.
    pub(crate) async fn until_nothing_is_left(&self, service: &str) -> Result<()> {
        let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let services: Api<Service> = Api::namespaced(self.client.clone(), &self.namespace);
        let params = ListParams::default().labels(&format!("{LABEL}={service}"));
        let gone = eventually("nothing is left", GENEROUS, || async {
            let text = |error: kube::Error| error.to_string();
            let left = (
                deployments.list(&params).await.map_err(text)?.items.len(),
                services.list(&params).await.map_err(text)?.items.len(),
                self.of(service).await?.len(),
            );
            match left {
                (0, 0, 0) => Ok(()),
                left => Err(format!("Deployments, Services, Pods: {left:?}")),
            }
        });
        Ok(gone.await?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Started>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn sync(
    pods: &Api<Pod>,
    program: &Path,
    running: &Mutex<BTreeMap<String, Started>>,
) -> Result<()> {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    let list = pods.list(&ListParams::default().labels(LABEL)).await?;
    let there: Vec<String> = list.items.iter().filter_map(|pod| pod.uid()).collect();
    // Those whose Pod is gone die with it.
    running.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| there.contains(uid));
    for pod in list.items {
        let uid = pod.uid().context("a uid")?;
        if running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&uid) {
            continue;
        }
        // Loopback is large; each process that tests has a part of it.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let process = std::process::id();
        let address = format!("127.{}.{}.{}", 64 + number / 200, process % 251, 1 + number % 200);
        let started = Started { process: Some(launch(program, &pod, &address)?), address };
        let status = json!({ "status": {
            "phase": "Running",
            "podIP": started.address,
            "podIPs": [{ "ip": started.address }],
        }});
        let params = PatchParams::default();
        pods.patch_status(&pod.name_any(), &params, &Patch::Merge(status)).await?;
        running.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, started);
    }
    Ok(())
}

/// What the Pod's container says, on this address.
fn launch(program: &Path, pod: &Pod, address: &str) -> Result<Child> {
    let spec = pod.spec.as_ref().context("a spec")?;
    let container = spec.containers.first().context("a container")?;
    let command = container.command.clone().unwrap_or_default();
    ensure!(command.first().is_some_and(|word| word == "petaflop"), "{command:?}");
    let mut process = Command::new(program);
    process.args(&command[1..]).args(container.args.iter().flatten());
    for variable in container.env.iter().flatten() {
        let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
        match (field.map(|field| field.field_path.as_str()), &variable.value) {
            (Some("status.podIP"), _) => process.env(&variable.name, address),
            (None, Some(value)) => process.env(&variable.name, value),
            (other, _) => anyhow::bail!("{}: {other:?}", variable.name),
        };
    }
    Ok(process.stdin(Stdio::null()).kill_on_drop(true).spawn()?)
}

/// A client of a service.
pub(crate) struct Chat;

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) body: String,
}

/// What many requests came to.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) answered: usize,
    pub(crate) failed: Vec<String>,
}

/// Requests without a pause.
pub(crate) struct Load {
    stop: tokio::sync::watch::Sender<bool>,
    tasks: Vec<JoinHandle<Asked>>,
}

impl Load {
    /// Lets the last ones end, and says what came of all.
    pub(crate) async fn stop(self) -> Result<Asked> {
        self.stop.send_replace(true);
        let mut all = Asked::default();
        for task in self.tasks {
            let Asked { answered, failed } = task.await?;
            all.answered += answered;
            all.failed.extend(failed);
        }
        Ok(all)
    }
}

impl Chat {
    /// One chat completion.
    pub(crate) async fn ask(gateway: &str) -> Result<Answer> {
        Self::ask_with(gateway, "").await
    }

    /// One with further header lines, each with its end.
    pub(crate) async fn ask_with(gateway: &str, headers: &str) -> Result<Answer> {
        let body = json!({
            "model": "chat",
            "messages": [{ "role": "user", "content": "You may" }],
            "max_tokens": 4,
            "temperature": 0,
        })
        .to_string();
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: {gateway}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
            body.len()
        );
        // Its process may have begun a moment ago.
        let mut stream = eventually("a connection", GENEROUS, || async {
            TcpStream::connect(gateway).await.map_err(|error| error.to_string())
        })
        .await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
        let (_, body) = answer.split_once("\r\n\r\n").context("a whole answer")?;
        Ok(Answer { code: code.context("a status")?, body: body.to_owned() })
    }

    /// Two clients that ask, one request after the other, until they are stopped.
    pub(crate) fn keep_asking(gateway: &str) -> Load {
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let client = |_| {
            let (gateway, stopped) = (gateway.to_owned(), stopped.clone());
            tokio::spawn(async move {
                let mut asked = Asked::default();
                while !*stopped.borrow() {
                    match Self::ask(&gateway).await {
                        Ok(answer) if answer.code == 200 => asked.answered += 1,
                        other => asked.failed.push(format!("{other:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                asked
            })
        };
        Load { stop, tasks: (0..2).map(client).collect() }
    }
}
