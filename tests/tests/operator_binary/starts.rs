//! What is missing or wrong at the start: one clear line, and an end that is no success.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client};
use petaflop_harness::{ControlPlane, Launch, Link, Options, eventually, tools};
use serde_json::{Value, json};

use crate::operator::install;
use crate::world::{SOON, said};

struct Attempt {
    kubeconfig: String,
    store: String,
}

impl Attempt {
    fn run(&self) -> Result<Output> {
        Command::new(petaflop_tests::binary("petaflop")?)
            .args(["operator", "--leader-elect", "--store-uri", &self.store])
            .env("KUBECONFIG", &self.kubeconfig)
            .env("POD_NAMESPACE", "default")
            .env_remove("PETAFLOP_LOG")
            .output()
            .context("starting petaflop")
    }

    /// It fails, and its error is one line with these words.
    fn fails(&self, words: &[&str]) -> Result<()> {
        let output = self.run()?;
        let text = said(&output);
        ensure!(!output.status.success() && output.stdout.is_empty(), "{text}");
        let errors = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = errors.lines().collect();
        ensure!(lines.len() == 1 && lines[0].starts_with("error: "), "{text}");
        for word in words {
            ensure!(lines[0].contains(word), "no {word:?} in {text}");
        }
        Ok(())
    }

    fn with_store(&self, uri: &str) -> Self {
        Self { kubeconfig: self.kubeconfig.clone(), store: uri.to_owned() }
    }

    fn with(&self, kubeconfig: &std::path::Path) -> Self {
        Self { kubeconfig: kubeconfig.display().to_string(), store: self.store.clone() }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_at_the_start_is_one_line_and_a_failure() -> Result<()> {
    let plane = ControlPlane::start(Options::default().only_api()).await?;
    let client = plane.client().await?;
    let folder = tempfile::tempdir()?;
    let store = format!("file://{}", folder.path().join("store").display());
    let attempt = Attempt { kubeconfig: plane.admin().kubeconfig().display().to_string(), store };

    attempt.with_store("").fails(&["--store-uri is missing", "s3://bucket/prefix"])?;
    attempt.fails(&["CRDs are not installed", "petaflop-crds"])?;

    // A release that this one does not know.
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let all = petaflop_crds::crds::all();
    let mut later = all.first().context("a kind")?.clone();
    let name = later.metadata.name.clone().context("a name")?;
    later.spec.versions[0].name = "v2".to_owned();
    definitions.create(&PostParams::default(), &later).await?;
    eventually("v2 is served", SOON, || async {
        let output = attempt.run().map_err(|error| error.to_string())?;
        let text = said(&output);
        if text.contains("v2") && text.contains("v1alpha1") { Ok(()) } else { Err(text) }
    })
    .await?;
    attempt.fails(&["serves petaflop.dev as v2", "of one release"])?;
    definitions.delete(&name, &DeleteParams::default()).await?;
    eventually("it is gone", SOON, || async {
        match definitions.get_opt(&name).await.map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(_) => Err("still there".to_owned()),
        }
    })
    .await?;

    // Some of our kinds, but not all.
    for (at, definition) in all.iter().enumerate() {
        if at + 1 == all.len() {
            let kind = &definition.spec.names.kind;
            eventually("all but one are served", SOON, || async {
                let output = attempt.run().map_err(|error| error.to_string())?;
                let text = said(&output);
                match text.contains(&format!("the cluster has no {kind}:")) {
                    true => Ok(()),
                    false => Err(text),
                }
            })
            .await?;
        }
        definitions.create(&PostParams::default(), definition).await?;
    }
    eventually("all are served", SOON, || async {
        let bare = attempt.with_store("/proc/no/such").run().map_err(|error| error.to_string())?;
        let text = said(&bare);
        if text.contains("--store-uri") { Ok(()) } else { Err(text) }
    })
    .await?;

    // One of them is older than the operator.
    let known = definitions.get("trainingjobs.petaflop.dev").await?;
    let mut older = serde_json::to_value(&known)?;
    let status =
        &mut older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"];
    status["properties"].as_object_mut().context("a status")?.remove("artifact");
    let older = serde_json::from_value(older)?;
    definitions.replace("trainingjobs.petaflop.dev", &PostParams::default(), &older).await?;
    eventually("the older schema is published", SOON, || async {
        let text = said(&attempt.with_store("/proc/no/such").run().map_err(|e| e.to_string())?);
        if text.contains("TrainingJob.status.artifact") { Ok(()) } else { Err(text) }
    })
    .await?;
    attempt.fails(&["do not know TrainingJob.status.artifact", "helm upgrade petaflop-crds"])?;
    let current = all.iter().find(|definition| definition.metadata.name == known.metadata.name);
    let mut current = current.context("the kind")?.clone();
    let now = definitions.get("trainingjobs.petaflop.dev").await?;
    current.metadata.resource_version = now.metadata.resource_version;
    definitions.replace("trainingjobs.petaflop.dev", &PostParams::default(), &current).await?;
    eventually("the newer schema is published", SOON, || async {
        let text = said(&attempt.with_store("/proc/no/such").run().map_err(|e| e.to_string())?);
        if text.contains("--store-uri") { Ok(()) } else { Err(text) }
    })
    .await?;

    // Somebody without rights, and somebody whom the server does not know.
    let nobody = plane.user("nobody", &[])?;
    attempt.with(nobody.kubeconfig()).fails(&[
        "forbids",
        "User \"nobody\" cannot list resource \"trainingjobs\"",
        "rbac.create=true",
    ])?;
    // One who may read our kinds, but not who this installation is.
    let half = plane.user("half", &[])?;
    grant(&client, "half").await?;
    attempt.with(half.kubeconfig()).fails(&["forbids", "secrets \"petaflop-installation\""])?;
    let mut config: Value = serde_json::from_slice(&std::fs::read(&attempt.kubeconfig)?)?;
    config["users"][0]["user"] = json!({ "token": "not-a-token" });
    let stranger = folder.path().join("stranger.kubeconfig");
    std::fs::write(&stranger, config.to_string())?;
    attempt.with(&stranger).fails(&["does not accept our credentials"])?;
    attempt.with(&folder.path().join("none")).fails(&["no way to the API server", "KUBECONFIG"])?;

    // A store that cannot be had.
    let file = folder.path().join("file");
    std::fs::write(&file, "")?;
    attempt.with_store(&format!("file://{}/store", file.display())).fails(&["--store-uri"])?;
    attempt.with_store("ftp://host/x").fails(&["--store-uri", "ftp", "s3://bucket/prefix"])?;
    Ok(())
}

/// Lets somebody read our kinds everywhere.
async fn grant(client: &Client, user: &str) -> Result<()> {
    let role = json!({
        "metadata": { "name": user },
        "rules": [{ "apiGroups": ["petaflop.dev"], "resources": ["*"], "verbs": ["get", "list"] }],
    });
    let roles: Api<ClusterRole> = Api::all(client.clone());
    roles.create(&PostParams::default(), &serde_json::from_value(role)?).await?;
    let binding = json!({
        "metadata": { "name": user },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user },
        "subjects": [{ "kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user }],
    });
    let bindings: Api<ClusterRoleBinding> = Api::all(client.clone());
    bindings.create(&PostParams::default(), &serde_json::from_value(binding)?).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_refuses_is_said_and_one_that_opens_is_used() -> Result<()> {
    let plane = ControlPlane::shared().await;
    install(&plane.client().await?).await?;
    let namespace = plane.namespace("bucket").await?;
    let folder = tempfile::tempdir()?;
    for bucket in ["models", "ledger"] {
        std::fs::create_dir(folder.path().join(bucket))?;
    }
    let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let server = Launch::new(tools::versitygw()?)
        .arguments(["--access", "access", "--secret", "secret-canary", "--port"])
        .arguments([address.to_string(), "posix".to_owned()])
        .argument(folder.path().display().to_string());
    let server = plane.run("versitygw", server)?;
    eventually("the bucket answers", SOON, || async {
        server.must_be_up().map_err(|error| error.to_string())?;
        std::net::TcpStream::connect(address).map(drop).map_err(|error| error.to_string())
    })
    .await?;
    let launch = |secret: &str, ledger: &str| -> Result<Launch> {
        Ok(Launch::new(petaflop_tests::binary("petaflop")?)
            .arguments(["operator", "--leader-elect", "--http-address=127.0.0.1:0"])
            .arguments(["--store-uri=s3://models/here", "--ledger-uri=s3://ledger"])
            .environment("KUBECONFIG", plane.admin().kubeconfig().display().to_string())
            .environment("POD_NAMESPACE", namespace.name())
            .environment("PETAFLOP_WATCH_NAMESPACES", namespace.name())
            .environment("PETAFLOP_LOG", "info")
            .environment("AWS_ENDPOINT_URL", format!("http://{address}"))
            .environment("AWS_REGION", "us-east-1")
            .environment("AWS_ACCESS_KEY_ID", "access")
            .environment("AWS_SECRET_ACCESS_KEY", secret)
            .environment("PETAFLOP_LEDGER_AWS_ACCESS_KEY_ID", "access")
            .environment("PETAFLOP_LEDGER_AWS_SECRET_ACCESS_KEY", ledger))
    };
    for (name, store, ledger, flag) in [
        ("store-refuses", "wrong-canary", "secret-canary", "--store-uri: s3://models/here"),
        ("ledger-refuses", "secret-canary", "wrong-canary", "--ledger-uri: s3://ledger"),
    ] {
        let program = plane.run(name, launch(store, ledger)?)?;
        let log = eventually("it ends", SOON, || async {
            match program.is_up() {
                false => Ok(program.log_tail()),
                true => Err(program.log_tail()),
            }
        })
        .await?;
        let errors: Vec<&str> = log.lines().filter(|line| line.starts_with("error:")).collect();
        ensure!(errors.len() == 1 && log.lines().count() == 1, "{log}");
        ensure!(errors[0].contains(flag) && errors[0].contains("AWS_"), "{log}");
        ensure!(!log.contains("canary"), "a secret is in the log: {log}");
    }
    let program = plane.run("bucket-opens", launch("secret-canary", "secret-canary")?)?;
    eventually("it leads", SOON, || async {
        program.must_be_up().map_err(|error| error.to_string())?;
        let log = program.log_tail();
        if log.contains("\"leading\"") { Ok(()) } else { Err(log) }
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_only_away_is_waited_for() -> Result<()> {
    let plane = ControlPlane::start(Options::default().only_api()).await?;
    let client = plane.client().await?;
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in petaflop_crds::crds::all() {
        definitions.create(&PostParams::default(), &definition).await?;
    }
    let proxy = plane.proxy()?;
    proxy.set(Link::Refused);
    let access = plane.admin().through(&proxy)?;
    let folder = tempfile::tempdir()?;
    let launch = Launch::new(petaflop_tests::binary("petaflop")?)
        .arguments(["operator", "--leader-elect", "--http-address=127.0.0.1:0"])
        .argument(format!("--store-uri=file://{}", folder.path().display()))
        .environment("KUBECONFIG", access.kubeconfig().display().to_string())
        .environment("POD_NAMESPACE", "default")
        .environment("PETAFLOP_LOG", "info");
    let program = plane.run("away", launch)?;
    eventually("it waits", SOON, || async {
        program.must_be_up().map_err(|error| error.to_string())?;
        let log = program.log_tail();
        if log.contains("waiting for the API server") { Ok(()) } else { Err(log) }
    })
    .await?;
    proxy.set(Link::Open);
    eventually("it leads", SOON, || async {
        program.must_be_up().map_err(|error| error.to_string())?;
        let log = program.log_tail();
        if log.contains("\"leading\"") { Ok(()) } else { Err(log) }
    })
    .await?;
    Ok(())
}
