//! Where the store has STS, a rented machine never sees the store's keys: it gets a pass for its own
//! job's folders, which ends soon and is replaced as long as the machine is wanted. The access control is
//! the box's, the store a real S3 server, the machines real processes with the real agent and runtime.

mod market;
mod operator;
#[path = "narrowed/replica.rs"]
mod replica;
mod serving;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::StreamExt;
use market::account::{self, Account};
use market::time::Ticking;
use market::{Market, RUNTIME, narrow};
use object_store::ObjectStoreExt;
use operator::{Cluster, is, tiny};
use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::task;
use petaflop_cloud_box::engine::machine::Machine;
use petaflop_cloud_box::runpod::PACE;
use petaflop_cloud_box::s3::{Gate, Given};
use petaflop_crds::TrainingJob;
use petaflop_harness::eventually;
use petaflop_operator::cluster::settings::Settings;
use petaflop_operator::narrow::{Narrow, Rights, Sts};
use petaflop_operator::store_at::StoreAt;
use petaflop_store::place;
use serde_json::json;

/// What opens the store, as the server has it.
const CANARY: &str = "secret-canary";
/// The key of the account at RunPod.
const KEY: &str = "rpa_of_the_account";
/// A pass is good for so long, of our time.
const LIFE: Duration = Duration::from_secs(3);
const SOON: Duration = Duration::from_secs(240);

fn opened(gate: &Gate, given: &Given) -> Result<std::sync::Arc<dyn object_store::ObjectStore>> {
    let url = gate.url();
    let credentials = [
        ("AWS_ACCESS_KEY_ID", given.id.as_str()),
        ("AWS_SECRET_ACCESS_KEY", &given.secret),
        ("AWS_SESSION_TOKEN", &given.token),
        ("AWS_ENDPOINT_URL", &url),
        ("AWS_REGION", "us-east-1"),
    ];
    Ok(place::objects("s3://bucket/store", Some(&credentials.into()))?)
}

/// All processes that share a network with the machine of this identity, as their folders in /proc.
fn processes(identity: &str) -> Result<Vec<PathBuf>> {
    let all: Vec<PathBuf> = fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.join("ns/net").symlink_metadata().is_ok())
        .collect();
    let network = |process: &Path| fs::read_link(process.join("ns/net")).ok();
    let ours = |process: &&PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.windows(identity.len()).any(|part| part == identity.as_bytes())
    };
    let here = all.iter().find(ours).and_then(|process| network(process)).context("no agent")?;
    ensure!(Some(&here) != network(Path::new("/proc/self")).as_ref(), "no network of its own");
    Ok(all.into_iter().filter(|process| network(process).as_ref() == Some(&here)).collect())
}

/// Files below a folder of a machine, but for those of the image.
fn files(folder: &Path, seen: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => files(&path, seen),
            // The image's own program: the text in it, on which it trains, is this source too.
            Ok(_) if path.ends_with("petaflop-runtime") => {}
            Ok(meta) if meta.is_file() && meta.len() < 64 << 20 => {
                seen.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
            }
            _ => {}
        }
    }
}

fn holds(content: &[u8], text: &str) -> bool {
    content.windows(text.len()).any(|part| part == text.as_bytes())
}

/// What lies on a machine where others could read it: what it is booted with, the environment and command
/// line of each of its processes, and its files; by place.
fn what_is_there(machine: &Machine) -> Result<Vec<(String, Vec<u8>)>> {
    let identity = machine.order.boot.environment.get("PETAFLOP_IDENTITY").context("whose")?;
    let told = format!("{:?}", machine.order.boot);
    let mut seen = vec![("what it is booted with".to_owned(), told.into_bytes())];
    let there = processes(identity)?;
    for process in &there {
        for part in ["environ", "cmdline"] {
            let path = process.join(part);
            seen.push((path.display().to_string(), fs::read(&path).unwrap_or_default()));
        }
    }
    // The machine's own root: there are processes of the box in its network, too.
    let variable = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
    let task = there.iter().find(|process| {
        fs::read(process.join("environ")).is_ok_and(|environment| holds(&environment, variable))
    });
    let root = task.with_context(|| format!("no task among {} processes", there.len()))?;
    let root = root.join("root");
    for folder in ["work", "petaflop", "tmp", "root", "run", "var/tmp", "home", "etc"] {
        files(&root.join(folder), &mut seen);
    }
    Ok(seen)
}

/// That a pass does not open something.
fn forbidden(what: &str, error: Option<object_store::Error>) -> Result<()> {
    match error {
        Some(object_store::Error::PermissionDenied { .. }) => Ok(()),
        // Lists say it in their own way.
        Some(other) if format!("{other:?}").contains("AccessDenied") => Ok(()),
        Some(other) => bail!("{what}: {other:?}"),
        None => bail!("{what}: allowed"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_has_a_pass_for_its_own_job_that_ends_soon_and_is_replaced_until_the_job_is_done()
-> Result<()> {
    let Some(market) = Market::open().await? else { return Ok(()) };
    let clock = Clock::manual(jiff::Timestamp::now());
    let cluster = Cluster::start_with("narrowed", clock.clone(), None).await?;
    let runpod = market.runpod(clock.clone(), KEY, PACE)?;
    let ticking = Ticking::start(clock);
    let account = Account::open(&cluster, "runpod", &account::runpod(&runpod.url())).await?;
    account.keys(json!({ "RUNPOD_API_KEY": KEY })).await?;
    let gate = market.gate()?;
    let make = ticking.make(&cluster, &[account.name.as_str()], &market.agent).await?;
    let store = narrow(&market, &gate, LIFE)?;
    let change = |settings: &mut Settings| {
        settings.runtime = RUNTIME.to_owned();
        settings.store = store.clone();
    };
    let running = cluster.operator_making(make, change).await?;

    let mut job = tiny("away")?;
    let recipe = job.spec.recipe.as_mut().context("a recipe")?;
    recipe.datasets[0].path = "builtin:petaflop".to_owned();
    recipe.max_steps = Some(80);
    job.spec.checkpoint.interval_seconds = Some(1);
    job.spec.placement.providers = vec![account.name.clone()];
    (job.spec.deadline, job.spec.max_total_cost) = (None, None);
    cluster.create(&job).await?;
    cluster
        .until("away", "Running", SOON, |job| {
            job.status.as_ref().is_some_and(|status| is(&status.conditions, "Running"))
        })
        .await?;
    let uid = cluster.job("away").await?.metadata.uid.context("a uid")?;

    // A checkpoint is in the bucket: the machine uses its pass.
    let own = format!("/bucket/store/checkpoints/{uid}/steps/");
    let wrote = |key: &str, what: &str| {
        gate.seen().iter().any(|seen| {
            let put = seen.line.starts_with(&format!("PUT {what}"));
            put && seen.status < 300 && (key.is_empty() || seen.key == key)
        })
    };
    eventually("a checkpoint", SOON, || async {
        wrote("", &own).then_some(()).ok_or(format!("{:?}", gate.seen().last()))
    })
    .await?;
    let pods = runpod.engine(|engine| engine.machines().to_vec());
    ensure!(pods.len() == 1, "{pods:#?}");

    // Neither the keys nor the pass are in what the machine is booted with, in any process's environment
    // or command line, or in any file.
    let given = gate.given();
    let seen = what_is_there(&pods[0])?;
    ensure!(seen.iter().any(|(path, _)| path.ends_with("/job.json")), "no file was looked at");
    for (place, content) in &seen {
        ensure!(!holds(content, CANARY), "the store's key is in {place}");
        for pass in &given {
            ensure!(!holds(content, &pass.secret), "a pass is in {place}");
        }
    }

    // What it has opens its own folder, and nothing else. What lies elsewhere was put there by the owner.
    let owner = store.objects()?;
    let others = ["checkpoints/another/steps/s", "logs/ns/another/claim/00000000", "ledger/2026/r"];
    for other in others {
        owner.put(&other.into(), "theirs".into()).await?;
    }
    let last = gate.given().into_iter().last().context("a pass")?;
    let machine = opened(&gate, &last)?;
    for other in others {
        forbidden(other, machine.get(&other.into()).await.err())?;
        forbidden(other, machine.put(&other.into(), "mine".into()).await.err())?;
        let listed = machine.list(Some(&other.rsplit_once('/').context("a folder")?.0.into()));
        forbidden(other, listed.collect::<Vec<_>>().await.pop().and_then(Result::err))?;
    }
    for shared in ["chunks/aa/aa", "artifacts/a.json", "keys/-/k", "gc/g"] {
        forbidden(shared, machine.put(&shared.into(), "mine".into()).await.err())?;
    }
    let everything: Vec<_> = machine.list(None).collect().await;
    ensure!(everything.iter().all(Result::is_err), "{everything:?}");
    let folder = format!("checkpoints/{uid}");
    let listed: Vec<_> = machine.list(Some(&folder.as_str().into())).collect().await;
    let listed: Vec<_> = listed.into_iter().collect::<Result<_, _>>()?;
    machine.get(&listed.first().context("its own folder is empty")?.location).await?;

    let complete = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
    };
    let done = cluster.until("away", "Complete", SOON, complete).await?;
    // It ran longer than a pass lives, with several of them, on one machine.
    let put = format!("PUT {own}");
    let wrote = gate.seen().into_iter().filter(|seen| seen.line.starts_with(&put));
    let wrote: Vec<_> = wrote.filter(|seen| seen.status < 300).collect();
    let keys: BTreeSet<&str> = wrote.iter().map(|seen| seen.key.as_str()).collect();
    let (first, last_write) = wrote.first().zip(wrote.last()).context("no checkpoint")?;
    let first = gate.given().into_iter().find(|given| given.id == first.key).context("a pass")?;
    eprintln!(
        "{} passes, {} of them wrote {} checkpoints; the last {} s after the first pass was over",
        gate.given().len(),
        keys.len(),
        wrote.len(),
        last_write.at.duration_since(first.expires).as_secs()
    );
    ensure!(last_write.at > first.expires && keys.len() > 1, "{wrote:?} {first:?}");
    ensure!(runpod.engine(|engine| engine.machines().len()) == 1, "another machine");
    // The result is where everybody looks for it, and the same job is a hit.
    let artifact = done.status.and_then(|status| status.artifact).context("an artifact")?;
    owner.head(&format!("artifacts/{artifact}.json").into()).await?;
    let left: Vec<_> = owner.list(Some(&format!("{folder}/result/chunks").into())).collect().await;
    ensure!(left.is_empty(), "{left:?}");

    // A pass that is over opens nothing, whoever kept it.
    cluster.until_no_claims().await?;
    eventually("the pass is over", SOON, || async {
        match last.expires < jiff::Timestamp::now() {
            true => Ok(()),
            false => Err(format!("until {}", last.expires)),
        }
    })
    .await?;
    let machine = opened(&gate, &last)?;
    let refused = machine.get(&format!("checkpoints/{uid}/steps/s").into()).await;
    let refused = format!("{:?}", refused.err());
    ensure!(refused.contains("ExpiredToken"), "{refused}");

    // The same again, under another name: its machine finds the result without training.
    job.metadata.name = Some("again".to_owned());
    cluster.create(&job).await?;
    let again = cluster.until("again", "Complete", SOON, complete).await?;
    let status = again.status.context("a status")?;
    ensure!(status.cached == Some(true) && status.artifact == Some(artifact), "{status:#?}");
    cluster.until_no_claims().await?;
    drop(running);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_taken_where_one_is_named_and_a_refusal_says_how_to_mend_it() -> Result<()> {
    let server = tokio::task::spawn_blocking(market::s3::Server::start).await?;
    let gate = market::gate(&server, [127, 0, 0, 1].into())?;
    let mut store = market::store(&server, &gate);
    let sts = Sts {
        url: Some(gate.url()),
        role: Some("arn:aws:iam::123456789012:role/petaflop-machines".to_owned()),
        life: Some(LIFE),
    };
    let narrow = Narrow::of(&store, &sts)?.context("passes")?;
    narrow.probe().await?;
    let rights = Rights { log: "logs/a".to_owned(), ..Rights::default() };
    let pass = narrow.pass("trj-a", &rights).await?;
    ensure!(pass.expires > jiff::Timestamp::now(), "{pass:?}");
    ensure!(!format!("{pass:?}").contains(pass.key.expose()), "it is printed");

    // The keys may not ask: said with what to do, and without the keys.
    gate.has_sts(false);
    let refused = narrow.probe().await.err().context("no error")?.to_string();
    ensure!(refused.contains("refuses AssumeRole: AccessDenied"), "{refused}");
    ensure!(refused.contains("--store-sts=off") && !refused.contains(CANARY), "{refused}");

    // More inputs than a policy can name.
    let input = |number: u32| format!("s3://bucket/data/{number:0>64}");
    let many = Rights { inputs: (0..40).map(input).collect(), ..rights };
    let refused = narrow.pass("trj-a", &many).await.err().context("no error")?.to_string();
    ensure!(refused.contains("under one prefix"), "{refused}");

    // Without a word about STS, a server that is not Amazon's has none; nor have keys that are a session's.
    ensure!(Narrow::of(&store, &Sts::default())?.is_none(), "it was asked");
    store.credentials.remove("AWS_ENDPOINT_URL");
    ensure!(Narrow::of(&store, &Sts::default())?.is_some(), "Amazon's was not found");
    store.credentials.insert("AWS_SESSION_TOKEN".to_owned(), task::Secret::new("t"));
    ensure!(Narrow::of(&store, &Sts::default())?.is_none(), "a session cannot be narrowed");
    ensure!(store.handed_on().contains_key("AWS_SECRET_ACCESS_KEY"), "then machines get the keys");
    let folder = StoreAt { uri: "/folder".to_owned(), ..StoreAt::default() };
    ensure!(Narrow::of(&folder, &sts)?.is_none(), "a folder has no passes");
    Ok(())
}
