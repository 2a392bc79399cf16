//! The operator on a real API server, machines bought from a cloud in a box, real agents and the
//! real runtime on them: a TrainingJob from `create` to `Complete`, and what it leaves behind.

#[path = "lifecycle/checkpoints.rs"]
mod checkpoints;
#[path = "lifecycle/delivery.rs"]
mod delivery;
#[path = "lifecycle/environment.rs"]
mod environment;
#[path = "lifecycle/files.rs"]
mod files;
#[path = "lifecycle/inputs.rs"]
mod inputs;
mod operator;
#[path = "lifecycle/repeat.rs"]
mod repeat;
#[path = "../../runtime-image/store/tests/common/s3.rs"]
mod s3;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{ResourceQuota, Secret};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use operator::{Cluster, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::offer::{Accelerators, OfferId};
use petaflop_crds::{ComputeClaim, TrainingJob};
use petaflop_fake_provider::agent::{AgentRunner, Boot};
use petaflop_fake_provider::cloud::small_offer;
use petaflop_fake_provider::real::real;
use petaflop_harness::{Link, eventually};
use petaflop_plan::recipe::JobSpec;
use serde_json::json;

/// What `examples/tiny.yaml` must give wherever it is trained.
fn golden() -> Result<serde_json::Value> {
    Ok(serde_json::from_str(include_str!("../golden/tiny.json"))?)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offer_that_no_claim_can_name_keeps_nobody_from_being_placed() -> Result<()> {
    let cluster = Cluster::start("nameless").await?;
    let mut cheaper = small_offer(&cluster.provider, "0.10".parse()?);
    cheaper.id = OfferId(format!("{}/r/nameless", cluster.provider));
    let model = "A model with blanks".to_owned();
    cheaper.accelerators = Some(Accelerators { model, count: 1, memory: None });
    cluster.cloud.sell(cheaper.clone());
    let _running = cluster.operator().await?;
    cluster.create(&tiny("tiny")?).await?;
    let placed = |job: &TrainingJob| job.status.as_ref().is_some_and(|s| s.placement.is_some());
    cluster.until("tiny", "placed", Duration::from_secs(60), placed).await?;
    let claims = cluster.claims().await?;
    ensure!(claims.iter().all(|claim| claim.spec.offer.id != cheaper.id.0), "{claims:#?}");
    cluster.delete("tiny").await?;
    cluster.until_gone("tiny").await?;
    cluster.until_no_claims().await
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_have_no_claim_is_told_so_and_holds_up_nobody() -> Result<()> {
    let cluster = Cluster::start("quota").await?;
    let counted = "count/computeclaims.petaflop.dev";
    let quotas: Api<ResourceQuota> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let quota = serde_json::from_value(json!({
        "metadata": { "name": "claims" }, "spec": { "hard": { counted: "1" } },
    }))?;
    quotas.create(&PostParams::default(), &quota).await?;
    // What the controller would write that counts what was there before; it does not run here.
    let none = json!({ "status": { "hard": { counted: "1" }, "used": { counted: "0" } } });
    quotas.patch_status("claims", &PatchParams::default(), &Patch::Merge(none)).await?;
    for name in ["one", "two"] {
        cluster.create(&tiny(name)?).await?;
    }
    let _running = cluster.operator().await?;
    let told = |job: &TrainingJob| {
        let conditions = job.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|condition| {
            condition.reason == "QuotaExceeded" && condition.message.contains(counted)
        })
    };
    let placed =
        |job: &TrainingJob| job.status.as_ref().is_some_and(|status| status.placement.is_some());
    eventually("one is placed, and the other is told", Duration::from_secs(60), || async {
        let jobs = [cluster.job("one").await, cluster.job("two").await];
        let [one, two] = jobs.map(|job| job.map_err(|error| error.to_string()));
        let (one, two) = (one?, two?);
        match (placed(&one) && told(&two)) || (placed(&two) && told(&one)) {
            true => Ok(()),
            false => Err(format!("{:?} {:?}", one.status, two.status)),
        }
    })
    .await?;
    quotas.delete("claims", &DeleteParams::default()).await?;
    for name in ["one", "two"] {
        cluster.until(name, "placed", Duration::from_secs(120), placed).await?;
        cluster.delete(name).await?;
        cluster.until_gone(name).await?;
    }
    cluster.until_no_claims().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_is_trained_to_the_same_hash_and_nothing_is_left() -> Result<()> {
    let cluster = Cluster::start("lifecycle").await?;
    let running = cluster.operator().await?;
    let writes = cluster.plane.writes().await?;
    cluster.create(&tiny("tiny")?).await?;
    let job = cluster
        .until("tiny", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        })
        .await?;
    let status = job.status.clone().context("a status")?;
    ensure!(status.artifact.as_deref() == golden()?["artifact"].as_str(), "{status:#?}");
    ensure!(status.key.as_deref() == golden()?["key"].as_str(), "{status:#?}");

    // The machine goes, its claim after it, and the last sum is written.
    cluster.until_no_claims().await?;
    cluster.quiet(&running).await?;
    let job = cluster.job("tiny").await?;
    let cost = job.status.and_then(|s| s.cost).and_then(|c| c.total).context("a cost")?;
    ensure!(cluster.cloud.created() == 1, "{} machines", cluster.cloud.created());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    let booked = cluster.booked().await?;
    ensure!(booked > 0 && cost.micro_dollars()? == booked, "{cost:?} {booked}");

    // Custom objects and status: at most twelve writes from create to complete.
    let all = writes.all().await?;
    let ours: Vec<String> = all
        .iter()
        .filter(|w| w.was_taken() && !w.is_event() && w.object.namespace == cluster.namespace)
        .filter(|w| ["trainingjobs", "computeclaims"].contains(&w.object.resource.as_str()))
        .map(|w| format!("{} {}", w.verb, w.object))
        .collect();
    eprintln!("{} writes:\n{}", ours.len(), ours.join("\n"));
    // One of them is the user's own `create`.
    ensure!(ours.len() <= 12 + 1, "{} writes:\n{}", ours.len(), ours.join("\n"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_starts_from_what_another_has_made() -> Result<()> {
    let cluster = Cluster::start("continued").await?;
    let _running = cluster.operator().await?;
    let complete = async |name: &str| {
        let complete = |job: &TrainingJob| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        };
        let job = cluster.until(name, "Complete", Duration::from_secs(240), complete).await?;
        job.status.and_then(|status| status.artifact).context("an artifact")
    };
    cluster.create(&tiny("first")?).await?;
    let first = complete("first").await?;
    let mut second = tiny("second")?;
    let recipe = second.spec.recipe.as_mut().context("a recipe")?;
    (recipe.model, recipe.base_model) = (None, Some(format!("artifact:{first}")));
    cluster.create(&second).await?;
    let of_cluster = complete("second").await?;
    ensure!(of_cluster != first, "{first}");

    // The same from the same start by the runtime alone.
    let home = tempfile::tempdir()?;
    let resolved = cluster.job("second").await?.status.and_then(|s| s.resolved_recipe);
    let recipe = second.spec.recipe.context("a recipe")?;
    let (_, inputs) = recipe
        .resolve(&[], &second.spec.output, None)
        .map_err(|errors| anyhow::anyhow!("{errors:?}"))?;
    let job = JobSpec {
        recipe: serde_json::from_str(&resolved.context("its recipe")?)?,
        inputs,
        store: cluster.store(),
        checkpoints: home.path().join("checkpoints").display().to_string(),
        checkpoint_interval_seconds: 600,
        keep_checkpoints: 1,
        result: None,
    };
    let own = home.path().join("job.json");
    std::fs::write(&own, serde_json::to_vec(&job)?)?;
    let progress = home.path().join("progress");
    let runtime = petaflop_tests::binary("petaflop-runtime")?;
    let status = tokio::process::Command::new(runtime)
        .args(["train", "--fresh", "--job"])
        .arg(&own)
        .arg("--progress")
        .arg(&progress)
        .status()
        .await?;
    ensure!(status.success(), "{status}");
    let said = std::fs::read_to_string(&progress)?;
    ensure!(said.contains(&of_cluster), "{of_cluster}: {said}");
    Ok(())
}

/// A job that brings its own image; machines of these tests have none, and run its command.
fn command(name: &str, script: &str, more: &serde_json::Value) -> Result<TrainingJob> {
    let mut spec = json!({
        "container": {
            "image": "docker.io/library/busybox:1.37",
            "command": ["/bin/sh", "-c"],
            "args": [script],
            "workingDir": "/usr",
            "env": [{ "name": "GREETING", "value": "hello from" }],
        },
        "resources": { "cpu": "1", "memory": "64Mi" },
    });
    let fields = more.as_object().context("fields")?.clone();
    spec.as_object_mut().context("a spec")?.extend(fields);
    Ok(TrainingJob::new(name, serde_json::from_value(spec)?))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_of_the_users_runs_to_its_end_and_fails_when_it_fails() -> Result<()> {
    let cluster = Cluster::start("commands").await?;
    let _running = cluster.operator().await?;
    let says =
        "echo $GREETING $PETAFLOP_NAMESPACE/$PETAFLOP_JOB, machine $PETAFLOP_PLACEMENT in $PWD";
    cluster.create(&command("greets", says, &json!({}))?).await?;
    let fails = format!("{says}; exit 3");
    cluster.create(&command("fails", &fails, &json!({ "backoffLimit": 1 }))?).await?;
    let saves = "trap 'sleep 2; echo saved in time; exit 0' TERM; while :; do sleep 0.1; done";
    cluster.create(&command("saves", saves, &json!({}))?).await?;

    let holds = |condition: &'static str| {
        move |job: &TrainingJob| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, condition))
        }
    };
    let patience = Duration::from_secs(180);
    let greets = cluster.until("greets", "Complete", patience, holds("Complete")).await?;
    let status = greets.status.context("a status")?;
    ensure!(status.artifact.is_none() && status.resolved_recipe.is_none(), "{status:#?}");
    let fails = cluster.until("fails", "Failed", patience, holds("Failed")).await?;
    let failed = fails.status.context("a status")?;
    let why = failed.conditions.iter().find(|c| c.type_ == "Failed").context("why")?;
    ensure!(why.reason == "BackoffLimitExceeded" && why.message.contains('3'), "{why:#?}");
    ensure!((failed.failures, failed.restarts) == (2, 1), "{failed:#?}");

    // One that is asked to make room may end what it does.
    cluster.until("saves", "Running", patience, holds("Running")).await?;
    let jobs: Api<TrainingJob> = Api::namespaced(cluster.plane.client().await?, &cluster.namespace);
    let suspend = Patch::Merge(json!({ "spec": { "suspend": true } }));
    jobs.patch("saves", &PatchParams::default(), &suspend).await?;

    cluster.until_no_claims().await?;
    ensure!(cluster.cloud.created() == 4, "{} machines", cluster.cloud.created());
    let logs = Path::new(&cluster.store()).join("logs").join(&cluster.namespace);
    let mut said = Vec::new();
    for job in ["greets", "fails", "saves"] {
        for claim in std::fs::read_dir(logs.join(job))? {
            for file in std::fs::read_dir(claim?.path())? {
                said.push(String::from_utf8_lossy(&std::fs::read(file?.path())?).into_owned());
            }
        }
    }
    for (job, machine) in [("greets", 1), ("fails", 1), ("fails", 2)] {
        let line = format!("hello from {}/{job}, machine {machine} in /usr", cluster.namespace);
        ensure!(said.iter().any(|text| text.contains(&line)), "{line}: {said:#?}");
    }
    ensure!(said.iter().any(|text| text.contains("saved in time")), "{said:#?}");
    Ok(())
}

/// A job that is trained to its end under an operator that hears so, cannot write it down, and dies.
async fn unwritten(name: &str) -> Result<Cluster> {
    let cluster = Cluster::start(name).await?;
    let proxy = cluster.plane.proxy()?;
    let first = cluster.operator_as(&cluster.plane.admin().through(&proxy)?).await?;
    cluster.create(&tiny(name)?).await?;
    cluster.until(name, "Running", Duration::from_secs(120), runs).await?;
    let claims = cluster.claims().await?;
    let claim = (cluster.namespace.clone(), claims.first().context("a claim")?.name_any());
    // From here on it hears its agent, and can write nothing.
    proxy.set(Link::Refused);
    ensure!(runs(&cluster.job(name).await?), "too late: it was over already");
    eventually("the operator has heard the end", Duration::from_secs(240), || async {
        match first.operator.agents.run(&claim).and_then(|run| run.end) {
            Some(_) => Ok(()),
            None => Err("not yet".to_owned()),
        }
    })
    .await?;
    drop(first);
    ensure!(runs(&cluster.job(name).await?), "the end was written down");
    ensure!(cluster.cloud.billed_now().len() == 1, "{:?}", cluster.cloud.billed_now());
    Ok(cluster)
}

fn runs(job: &TrainingJob) -> bool {
    job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Running"))
}

/// The next operator finds out, and has no reason to buy.
async fn completes_on_its_one_machine(cluster: &Cluster, name: &str) -> Result<()> {
    let _second = cluster.operator().await?;
    let job = cluster
        .until(name, "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        })
        .await?;
    let status = job.status.context("a status")?;
    ensure!(status.artifact.as_deref() == golden()?["artifact"].as_str(), "{status:#?}");
    ensure!(status.interruptions == 0 && status.cached == Some(false), "{status:#?}");
    cluster.until_no_claims().await?;
    ensure!(cluster.cloud.created() == 1, "{} machines", cluster.cloud.created());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_that_dies_before_it_wrote_down_the_end_buys_no_second_machine() -> Result<()> {
    let cluster = unwritten("unwritten").await?;
    // Longer than an agent stays that was asked to end.
    tokio::time::sleep(Duration::from_secs(5)).await;
    completes_on_its_one_machine(&cluster, "unwritten").await
}

#[tokio::test(flavor = "multi_thread")]
async fn how_a_command_ended_is_known_though_its_machine_and_its_agent_are_gone() -> Result<()> {
    let cluster = unwritten("forsaken").await?;
    let logs = Path::new(&cluster.store()).join("logs").join(&cluster.namespace).join("forsaken");
    eventually("the exit report is in the store", Duration::from_secs(60), || async {
        let claims = std::fs::read_dir(&logs).map_err(|error| error.to_string())?;
        let mut reports = claims.flatten().map(|claim| claim.path().join("exit.json"));
        reports.any(|report| report.exists()).then_some(()).ok_or_else(|| "not yet".to_owned())
    })
    .await?;
    for machine in cluster.cloud.billed_now() {
        cluster.cloud.interrupt(&machine.id, None);
    }
    completes_on_its_one_machine(&cluster, "forsaken").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_reaches_the_commands_environment_and_nothing_else() -> Result<()> {
    const CANARY: &str = "canary-5eC2e7-of-a-job";
    let folder = tempfile::tempdir()?;
    // The command says what it was given where only this test looks, and then is the runtime.
    let (arrived, command) = (folder.path().join("arrived"), folder.path().join("command"));
    let runtime = petaflop_tests::binary("petaflop-runtime")?;
    let script = format!(
        "#!/bin/sh\nprintf %s \"$API_KEY\" > '{}'\nexec '{}' \"$@\"\n",
        arrived.display(),
        runtime.display()
    );
    std::fs::write(&command, script)?;
    std::fs::set_permissions(&command, std::fs::Permissions::from_mode(0o755))?;
    let machines = folder.path().join("machines");
    let real = real(&machines);
    let booted = Arc::new(Mutex::new(Vec::new()));
    let notes = booted.clone();
    let agent: AgentRunner = Arc::new(move |boot: Boot| {
        notes.lock().expect("notes").push(format!("{:?}", boot.env));
        real(boot)
    });
    let cluster = Cluster::start_with("secret", Clock::system(), Some(agent)).await?;
    let _running =
        cluster.operator_with(|settings| settings.runtime = command.display().to_string()).await?;

    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let secret = json!({
        "metadata": { "name": "keys" }, "stringData": { "API_KEY": CANARY },
    });
    secrets.create(&PostParams::default(), &serde_json::from_value(secret)?).await?;
    let mut job = tiny("secretive")?;
    job.spec.secrets = serde_json::from_value(json!([{ "name": "keys", "env": true }]))?;
    cluster.create(&job).await?;
    let claims = cluster
        .until("secretive", "Running", Duration::from_secs(120), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Running"))
        })
        .await
        .map(|_| cluster.claims())?
        .await?;
    ensure!(std::fs::read_to_string(&arrived)? == CANARY, "it did not arrive");
    let job = cluster
        .until("secretive", "Complete", Duration::from_secs(240), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Complete"))
        })
        .await?;
    // What is trained does not depend on it.
    let status = job.status.as_ref().context("a status")?;
    ensure!(status.artifact.as_deref() == golden()?["artifact"].as_str(), "{status:#?}");

    let events = cluster.events("secretive").await?;
    let said = serde_json::to_string(&json!([claims, job, events]))?;
    let booted = booted.lock().expect("notes").join("\n");
    ensure!(
        said.contains("keys") && booted.contains("PETAFLOP_TOKEN"),
        "looked at the wrong things"
    );
    for text in [said, booted] {
        ensure!(!text.contains(CANARY), "it is where everybody looks: {text}");
    }
    std::fs::remove_file(&arrived)?;
    let own = Path::new(&cluster.store()).parent().context("a folder")?.to_owned();
    let mut files = 0;
    let mut folders = vec![own, machines];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            files += 1;
            let holds = std::fs::read(&path)?.windows(CANARY.len()).any(|w| w == CANARY.as_bytes());
            ensure!(!holds, "it is in {}", path.display());
        }
    }
    ensure!(files > 10, "logs, ledger, artifact and the machine's files: {files}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_deleted_while_it_runs_leaves_no_machine() -> Result<()> {
    let cluster = Cluster::start("deleted").await?;
    let running = cluster.operator().await?;
    cluster.create(&tiny("gone")?).await?;
    cluster
        .until("gone", "Running", Duration::from_secs(120), |job| {
            job.status.as_ref().is_some_and(|s| operator::is(&s.conditions, "Running"))
        })
        .await?;
    let claims = cluster.claims().await?;
    ensure!(
        claims.len() == 1,
        "{:?}",
        claims.iter().map(ComputeClaim::name_any).collect::<Vec<_>>()
    );
    cluster.delete("gone").await?;
    cluster.until_gone("gone").await?;
    cluster.quiet(&running).await?;
    ensure!(cluster.claims().await?.is_empty());
    ensure!(cluster.cloud.billed_now().is_empty(), "{:?}", cluster.cloud.billed_now());
    ensure!(cluster.booked().await? > 0);
    Ok(())
}
