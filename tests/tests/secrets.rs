//! What opens an account and a store is where it was given, and nowhere else: a job without a cluster,
//! on RunPod in a box, of which every file, word and process is looked through for it; and the operator
//! that ships, with keys of AWS in a Secret, or with none but its own role.
//! docs/secrets.md says which test looks where else.

mod operator;
mod rented;
#[path = "../../runtime-image/store/tests/common/s3.rs"]
mod s3;

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::events::v1::Event;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_cloud_box::ec2;
use petaflop_cloud_box::engine::Pace;
use petaflop_cloud_box::engine::machine::{Life, Machine};
use petaflop_cloud_box::host::StateOnly;
use petaflop_cloud_box::runpod::keys::Scope;
use petaflop_cloud_box::runpod::limits::Limits;
use petaflop_cloud_box::runpod::{PACE, RunPod, Setup};
use petaflop_harness::eventually;
use petaflop_tests::binary;
use rented::World;
use serde_json::{Value, json};
use tokio::process::Command;

/// The account's key.
const KEY: &str = "rpa_canary_9a3e_of_the_account";
/// What opens the store, as [`s3::Server`] has it.
const STORE: &str = "secret-canary";
const SOON: Duration = Duration::from_secs(120);

/// What opens an account at AWS, beside the key's name.
const AWS: &str = "aws-canary-of-the-account";
const SESSION: &str = "aws-canary-of-its-session";
/// A region of it.
const REGION: &str = "us-east-2";

/// What was seen, and where.
type Seen = Vec<(String, Vec<u8>)>;

fn petaflop(home: &Path, runpod: &RunPod, store: &s3::Server) -> Result<Command> {
    let mut command = Command::new(binary("petaflop")?);
    command
        .env("PETAFLOP_HOME", home)
        .env("PETAFLOP_LOG", "debug")
        .env("RUNPOD_API_KEY", KEY)
        .env("RUNPOD_API_BASE_URL", runpod.url())
        .envs(store.credentials())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command)
}

fn files(folder: &Path, seen: &mut Seen) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        match fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => files(&path, seen)?,
            Ok(meta) if meta.is_file() => {
                // What is gone meanwhile was a lock or a file on its way.
                if let Ok(content) = fs::read(&path) {
                    seen.push((path.display().to_string(), content));
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// The command lines of all processes of this home.
fn command_lines(home: &Path, seen: &mut Seen) -> Result<()> {
    let ours = format!("PETAFLOP_HOME={}", home.display()).into_bytes();
    for entry in fs::read_dir("/proc")? {
        let process = entry?.path();
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|one| one == ours)
            && let Ok(line) = fs::read(process.join("cmdline"))
        {
            seen.push((format!("the command line of {}", process.display()), line));
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_opens_account_and_store_is_in_no_file_no_output_no_command_line_and_no_pod()
-> Result<()> {
    let folder = tempfile::tempdir()?;
    let home = folder.path().join("home");
    let quick = Duration::from_millis(300);
    let runpod = RunPod::start(Setup {
        clock: Clock::system(),
        seed: 1,
        keys: [(KEY.to_owned(), Scope::All)].into(),
        pace: Pace { provision: quick, start: quick, ..PACE },
        deposit: 1_000_000_000,
        limits: Limits::new(1000, 10_000, 100_000),
        page: None,
        host: Box::new(StateOnly::default()),
    })?;
    let store = tokio::task::spawn_blocking(s3::Server::start).await?;
    fs::create_dir_all(&home)?;
    let config = format!(
        "rented:\n  store: s3://bucket/store\n  agent:\n    url: https://example.org/petaflop-agent\n    sha256: {}\n",
        "0".repeat(64)
    );
    fs::write(home.join("config.yaml"), config)?;
    let tiny = include_str!("../../examples/tiny.yaml").replace("../LICENSE", "builtin:petaflop");
    let manifest = folder.path().join("tiny.yaml");
    fs::write(&manifest, format!("{tiny}  placement:\n    providers: [runpod]\n"))?;

    // What it says lies in the folder too, and is looked through with it.
    let said = fs::File::create(folder.path().join("said"))?;
    let mut run = petaflop(&home, &runpod, &store)?
        .args(["run", "-f", &manifest.display().to_string()])
        .stdout(said.try_clone()?)
        .stderr(said)
        .spawn()?;
    let pods = || -> Vec<Machine> { runpod.engine(|engine| engine.machines().to_vec()) };
    let pod = eventually("a pod that runs", SOON, || async {
        let pods = pods();
        let running = pods.iter().find(|pod| pod.life == Life::Running);
        running.cloned().ok_or(format!("{pods:?}"))
    })
    .await?;
    let token = pod.order.boot.environment.get("PETAFLOP_TOKEN").context("a token")?.clone();

    let mut seen = Seen::new();
    command_lines(&home, &mut seen)?;
    ensure!(!seen.is_empty(), "no process of this home was seen");
    files(folder.path(), &mut seen)?;
    for arguments in [
        &["ps", "--json"][..],
        &["explain", "tiny"],
        &["offers", "--live", "--json"],
        &["audit"],
        &["stop", "tiny"],
        &["logs", "tiny"],
        &["costs", "--json"],
    ] {
        let output = petaflop(&home, &runpod, &store)?.args(arguments).output().await?;
        seen.push((format!("petaflop {arguments:?}"), [output.stdout, output.stderr].concat()));
    }
    eventually("no pod is left", SOON, || async {
        let pods = pods();
        let ended = pods.iter().all(|pod| pod.life == Life::Terminated);
        ended.then_some(()).ok_or(format!("{pods:?}"))
    })
    .await?;
    tokio::time::timeout(SOON, run.wait()).await.context("it goes on for ever")??;
    files(folder.path(), &mut seen)?;
    let rows = seen.iter().filter(|(place, _)| place.contains("ledger")).count();
    ensure!(
        rows > 0,
        "there is no ledger: {:?}",
        seen.iter().map(|(place, _)| place).collect::<Vec<_>>()
    );

    for (place, content) in &seen {
        for secret in [KEY, STORE, &token] {
            let there = content.windows(secret.len()).any(|part| part == secret.as_bytes());
            ensure!(!there, "{secret} is in {place}: {}", String::from_utf8_lossy(content));
        }
    }
    // The one-time token is in the pod's environment, once; the rest is not on the pod at all.
    let mut boot = pod.order.boot.clone();
    boot.environment.remove("PETAFLOP_TOKEN");
    let told = format!("{boot:?}");
    ensure!(told.contains("PETAFLOP_IDENTITY"), "{told}");
    for secret in [KEY, STORE, &token] {
        ensure!(!told.contains(secret), "{secret} is in what a pod is started with: {told}");
    }
    Ok(())
}

/// What there is of a world in the API server: objects and events.
async fn objects(world: &World) -> Result<Vec<u8>> {
    let all = Default::default();
    let events: Api<Event> = Api::namespaced(world.client.clone(), &world.namespace);
    let seen = json!([
        world.jobs().list(&all).await?.items,
        world.claims().list(&all).await?.items,
        world.providers().get(&world.provider()).await?,
        events.list(&all).await?.items,
    ]);
    Ok(serde_json::to_vec(&seen)?)
}

async fn metrics(world: &World) -> Result<String> {
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client.get(format!("http://{}/metrics", world.http)).send().await?;
    Ok(answer.error_for_status()?.text().await?)
}

/// A job is given up, and nothing bills any more.
async fn gives_up(world: &World, job: &str) -> Result<()> {
    world.jobs().delete(job, &DeleteParams::background()).await?;
    eventually("no claim, and nothing bills", SOON, || async {
        let claims = world.claims().list(&Default::default()).await;
        let claims = claims.map_err(|error| error.to_string())?.items;
        match (claims.first(), world.bills()) {
            (None, 0) => Ok(()),
            (claim, bills) => Err(format!("{bills} lines, {:?}", claim.map(|c| &c.status))),
        }
    })
    .await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_aws_in_a_secret_are_in_no_log_object_metric_user_data_command_line_or_row()
-> Result<()> {
    let with_session = |setup: &mut ec2::Setup| {
        let key = setup.keys.get_mut(rented::KEY).expect("the account's key");
        key.token = Some(SESSION.to_owned());
    };
    let world = World::start("aws-secret", AWS, with_session).await?;
    let keys = |secret: &str| -> Value {
        json!({
            "AWS_ACCESS_KEY_ID": rented::KEY, "AWS_SECRET_ACCESS_KEY": format!("{secret}\n"),
            "AWS_SESSION_TOKEN": SESSION,
        })
    };
    world.keys(keys(AWS)).await?;
    world.provide(&[REGION], Some("aws")).await?;
    let program = world.operator(&[])?;
    let machine = world.buys(&program, "away").await?;

    let process = format!("/proc/{}", program.pid().context("it runs")?);
    let mut seen = vec![
        ("its command line".to_owned(), fs::read(format!("{process}/cmdline"))?),
        ("what a machine is booted with".to_owned(), format!("{:?}", machine.order).into_bytes()),
        ("objects".to_owned(), objects(&world).await?),
        ("metrics".to_owned(), metrics(&world).await?.into_bytes()),
    ];
    let metadata = machine.order.boot.metadata.context("an instance has metadata")?;
    let script = String::from_utf8_lossy(&metadata.user_data).into_owned();
    ensure!(script.contains("petaflop"), "there is no user-data: {script}");
    let audit = world.command(&["audit", "--json"]).await?;
    seen.push(("an audit".to_owned(), [audit.stdout, audit.stderr].concat()));
    seen.push(("user-data".to_owned(), metadata.user_data));
    gives_up(&world, "away").await?;

    // A key that is refused is not repeated either.
    world.keys(keys("aws-canary-of-nobody")).await?;
    eventually("it is refused", SOON, || async {
        let object = world.providers().get(&world.provider()).await;
        let status = object.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let refused = |c: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition| {
            c.type_ == "CredentialsValid" && c.status == "False"
        };
        match status.conditions.iter().any(refused) {
            true => Ok(()),
            false => Err(format!("{status:?}")),
        }
    })
    .await?;
    let audit = world.command(&["audit"]).await?;
    seen.push(("an audit that is refused".to_owned(), [audit.stdout, audit.stderr].concat()));
    seen.push(("objects at the end".to_owned(), objects(&world).await?));
    seen.push(("metrics at the end".to_owned(), metrics(&world).await?.into_bytes()));
    seen.push(("the log".to_owned(), fs::read(program.log())?));
    files(world.store.root.path(), &mut seen)?;

    let looked =
        |part: &str| seen.iter().any(|(place, text)| place.contains(part) && !text.is_empty());
    for part in ["command line", "ledger", "log", "metrics", "objects", "audit"] {
        ensure!(looked(part), "{part}: looked at nothing");
    }
    for (place, content) in &seen {
        for secret in ["aws-canary", STORE] {
            let there = content.windows(secret.len()).any(|part| part == secret.as_bytes());
            ensure!(!there, "{secret} is in {place}: {}", String::from_utf8_lossy(content));
        }
    }
    Ok(())
}

/// As on EKS: a token of its ServiceAccount in a file, for which STS gives a role's credentials. The keys
/// in its environment, and the address there, are its store's.
#[tokio::test(flavor = "multi_thread")]
async fn an_operator_without_a_secret_buys_and_ends_by_its_own_role_and_not_with_the_stores_keys()
-> Result<()> {
    const TOKEN: &str = "aws-canary-of-the-service-account";
    let page = include_str!("../../docs/providers/aws.md");
    let (_, rest) = page.split_once("```json\n").context("a policy")?;
    let policy: Value = serde_json::from_str(rest.split_once("```").context("its end")?.0)?;
    let statements = policy["Statement"].as_array().context("statements")?;
    let actions: Vec<&str> = statements
        .iter()
        .flat_map(|one| one["Action"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    let with_role = |setup: &mut ec2::Setup| {
        setup.roles.insert("petaflop".to_owned(), ec2::keys::Policy::only(&actions));
        setup.identities.insert(TOKEN.to_owned(), "petaflop".to_owned());
    };
    let world = World::start("aws-role", AWS, with_role).await?;
    let file = world.folder.path().join("token");
    fs::write(&file, TOKEN)?;
    let role = [
        ("AWS_ROLE_ARN", "arn:aws:iam::111122223333:role/petaflop".to_owned()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", file.display().to_string()),
        ("AWS_ENDPOINT_URL_STS", world.cloud.url()),
    ];
    world.provide(&[REGION], None).await?;
    let program = world.operator(&role)?;
    let machine = world.buys(&program, "away").await?;
    gives_up(&world, "away").await?;

    let calls = world.cloud.calls();
    let count = |line: &str| calls.iter().filter(|call| call.line.starts_with(line)).count();
    ensure!(count("AssumeRoleWithWebIdentity") > 0 && count("RunInstances") == 1, "{calls:#?}");
    let refused: Vec<_> =
        calls.iter().filter(|call| matches!(call.status, Some(401 | 403))).collect();
    ensure!(refused.is_empty(), "{refused:#?}");
    let log = fs::read(program.log())?;
    for (place, content) in [
        ("the log", log),
        ("objects", objects(&world).await?),
        ("what a machine is booted with", format!("{:?}", machine.order).into_bytes()),
    ] {
        for secret in [TOKEN, STORE] {
            let there = content.windows(secret.len()).any(|part| part == secret.as_bytes());
            ensure!(!there, "{secret} is in {place}");
        }
    }
    // One whom STS does not trust buys nothing.
    program.kill();
    fs::write(&file, "aws-canary-of-nobody")?;
    program.restart()?;
    eventually("it is said", SOON, || async {
        let object = world.providers().get(&world.provider()).await;
        let object = object.map_err(|error| error.to_string())?;
        let conditions = object.status.clone().unwrap_or_default().conditions;
        match conditions.iter().find(|c| c.type_ == "Stalled" && c.status == "True") {
            Some(condition) if !condition.message.contains("canary") => Ok(()),
            _ => Err(format!("{}: {conditions:?}", object.name_any())),
        }
    })
    .await?;
    Ok(())
}
