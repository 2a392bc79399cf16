//! Pods that nobody can dial: their agents call the operator, here through somebody who hears and keeps
//! everything.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_agent_api::keys::{NoiseSecret, OperatorRoot};
use petaflop_agent_api::lease::Nonce;
use petaflop_agent_api::message::{Hello, VERSION, to_bytes};
use petaflop_agent_api::poll::Poll;
use petaflop_agent_api::session::Enrolment;
use petaflop_crds::TrainingJob;
use petaflop_crds::training_job::Cache;
use petaflop_harness::eventually;
use petaflop_operator::cluster::operate::Running;
use petaflop_operator::cluster::settings::{AgentCalls, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::market::{RUNTIME, account};
use crate::operator::is;
use crate::{CANARY, World, job};

/// Where an agent listens that is dialled.
const AGENT_PORT: u16 = 7443;

/// What agents said, a connection each.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// The way from machines to the operator, on which everything is heard.
struct Eavesdropper {
    /// Where machines call.
    endpoint: String,
    /// Where the operator listens.
    operator: SocketAddr,
    heard: Heard,
}

impl Eavesdropper {
    async fn start(world: &World) -> Result<Self> {
        let at = world.market.machines.operator();
        let listener = TcpListener::bind((at, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        // The address is this test's own.
        let operator = SocketAddr::from((at, AGENT_PORT));
        let heard = Heard::default();
        let kept = heard.clone();
        tokio::spawn(async move {
            while let Ok((agent, _)) = listener.accept().await {
                tokio::spawn(pass_on(agent, operator, kept.clone()));
            }
        });
        Ok(Self { endpoint, operator, heard })
    }

    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests were heard.
    fn requests(&self) -> usize {
        self.heard().iter().map(|said| times(said, b"POST /v1/")).sum()
    }

    /// The operator of a world, which agents call.
    async fn operator(&self, world: &World) -> Result<Running> {
        let name = world.account.name.as_str();
        let make = world.ticking.make(&world.cluster, &[name], &world.market.agent).await?;
        let with_bucket = account::with_bucket(&world.market, "s3://bucket/store");
        let calls = AgentCalls { listen: self.operator, endpoint: self.endpoint.clone() };
        let change = |settings: &mut Settings| {
            settings.runtime = RUNTIME.to_owned();
            settings.agent_calls = Some(calls);
            with_bucket(settings);
        };
        world.cluster.operator_making(make, change).await
    }

    /// What the operator answers to these bytes, to its end.
    async fn say(&self, bytes: &[u8]) -> Result<String> {
        let mut stream = TcpStream::connect(self.operator).await?;
        // It may close before it has heard everything.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }

    async fn post(&self, path: &str, body: &[u8]) -> Result<String> {
        let head =
            format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
        self.say(&[head.as_bytes(), body].concat()).await
    }
}

async fn pass_on(agent: TcpStream, operator: SocketAddr, heard: Heard) -> Option<()> {
    let operator = TcpStream::connect(operator).await.ok()?;
    let (mut from_agent, mut to_agent) = agent.into_split();
    let (mut from_operator, mut to_operator) = operator.into_split();
    let back = async move { tokio::io::copy(&mut from_operator, &mut to_agent).await.ok() };
    let there = async move {
        let at = {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.push(Vec::new());
            heard.len() - 1
        };
        let mut piece = vec![0; 16 << 10];
        loop {
            let length = from_agent.read(&mut piece).await.ok().filter(|length| *length > 0)?;
            heard.lock().unwrap_or_else(PoisonError::into_inner)[at]
                .extend_from_slice(&piece[..length]);
            to_operator.write_all(&piece[..length]).await.ok()?;
        }
    };
    tokio::select! {
        () = async { let _: Option<()> = there.await; } => {}
        _ = back => {}
    }
    Some(())
}

fn times(text: &[u8], part: &[u8]) -> usize {
    text.windows(part.len()).filter(|window| *window == part).count()
}

/// The first request of a connection, if all of it was said.
fn first_request(said: &[u8]) -> Option<&[u8]> {
    let head = said.windows(4).position(|end| end == b"\r\n\r\n")? + 4;
    let lines = std::str::from_utf8(&said[..head]).ok()?.to_ascii_lowercase();
    let length = lines.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    said.get(..head + length.trim().parse::<usize>().ok()?)
}

async fn complete(world: &World, name: &str) -> Result<String> {
    let done = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Complete"))
    };
    let job = world.cluster.until(name, "Complete", Duration::from_secs(240), done).await?;
    let status = job.status.context("a status")?;
    ensure!((status.failures, status.interruptions) == (0, 0), "{status:#?}");
    world.cluster.until_no_claims().await?;
    status.artifact.context("an artifact")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_a_port_calls_and_trains_to_the_same_hash_as_one_that_is_dialled()
-> Result<()> {
    let Some(world) = World::start("runpod-calls").await? else { return Ok(()) };
    world.key(CANARY).await?;
    let way = Eavesdropper::start(&world).await?;
    let running = way.operator(&world).await?;
    world.account.until("Ready", "True", "Ok").await?;
    world.cluster.create(&job(&world, "calls")?).await?;
    let called = complete(&world, "calls").await?;
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    let [pod] = &pods[..] else { anyhow::bail!("{pods:#?}") };
    let told = pod.order.boot.environment.get("PETAFLOP_ENDPOINT");
    ensure!(told == Some(&way.endpoint), "{pod:#?}");
    let heard = way.heard().concat();
    ensure!(times(&heard, b"POST /v1/rpc") > 1, "it did not call");
    ensure!(times(&heard, CANARY.as_bytes()) == 0, "the account's key went that way");
    ensure!(times(&heard, b"trj-calls") == 0, "what it says can be read");
    let (booked, invoiced) = (world.cluster.booked().await?, world.invoiced());
    ensure!(booked > 0 && (booked - invoiced).abs() <= 1, "booked {booked}, invoiced {invoiced}");
    drop(running);

    let _dialling = world.operator(true).await?;
    let mut again = job(&world, "dialled")?;
    again.spec.cache = Cache::Never;
    world.cluster.create(&again).await?;
    let dialled = complete(&world, "dialled").await?;
    ensure!(called == dialled, "{called} and {dialled}");
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    let [_, pod] = &pods[..] else { anyhow::bail!("{pods:#?}") };
    ensure!(!pod.order.boot.environment.contains_key("PETAFLOP_ENDPOINT"), "{pod:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_learn_nothing_and_a_restart_and_a_stop_reach_the_agent_that_calls() -> Result<()>
{
    let Some(world) = World::start("runpod-strangers").await? else { return Ok(()) };
    world.key(CANARY).await?;
    let way = Eavesdropper::start(&world).await?;
    let running = way.operator(&world).await?;
    world.account.until("Ready", "True", "Ok").await?;
    let mut long = job(&world, "long")?;
    long.spec.recipe.as_mut().context("a recipe")?.max_steps = Some(1_000_000);
    long.spec.checkpoint.grace_seconds = 600;
    world.cluster.create(&long).await?;
    let runs = |job: &TrainingJob| {
        job.status.as_ref().is_some_and(|status| is(&status.conditions, "Running"))
    };
    world.cluster.until("long", "Running", Duration::from_secs(120), runs).await?;

    // Another process of the operator knows the agent by its pinned key, and goes on with it.
    drop(running);
    let before = way.requests();
    let running = way.operator(&world).await?;
    eventually("it calls the new operator", Duration::from_secs(120), || async {
        let calls = way.requests() - before;
        // The first may be of before, the second was answered, or there were no third.
        if calls > 2 { Ok(()) } else { Err(format!("{calls} calls")) }
    })
    .await?;

    strangers(&world, &way).await?;

    // Time nearly stands still: its pod ends only if the agent hears of it and says that it has ended.
    world.ticking.every(1000);
    world.cluster.delete("long").await?;
    world.cluster.until_gone("long").await?;
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    ensure!(pods.len() == 1 && world.billing() == 0, "{pods:#?}");
    world.cluster.quiet(&running).await?;
    Ok(())
}

/// Whoever is not the agent is told the same nothing.
async fn strangers(world: &World, way: &Eavesdropper) -> Result<()> {
    let claims = world.cluster.claims().await?;
    let [claim] = &claims[..] else { anyhow::bail!("{claims:#?}") };
    let uid = claim.metadata.uid.clone().context("a uid")?;
    let pods = world.runpod.engine(|engine| engine.machines().to_vec());
    let boot = &pods.first().context("a pod")?.order.boot.environment;
    let operator = boot.get("PETAFLOP_OPERATOR_KEY").context("a key")?.parse()?;
    let identity = boot.get("PETAFLOP_IDENTITY").context("an identity")?;
    let (other, stranger) = (OperatorRoot::generate(), NoiseSecret::generate());
    let start = Nonce([7; 16]);
    let hello = to_bytes(&Hello {
        version: VERSION,
        identity: identity.clone(),
        // Of another installation.
        token: other.token(&uid, 1),
        facts: serde_json::Value::Null,
        boot_id: "b".into(),
        start,
        lease_nonce: start,
    });
    let to_us = Enrolment::begin(&stranger, &operator, &hello)?;
    let to_others = Enrolment::begin(&stranger, &other.noise().public(), &hello)?;
    let poll = Poll::body(&stranger, &operator, &uid, start, u64::MAX, b"")?;
    let mut said = vec![
        way.say(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await?,
        way.say(b"GET /v1/hello HTTP/1.1\r\nHost: a\r\n\r\n").await?,
        way.post("/v1/hello", b"").await?,
        way.post("/v1/hello", &[255; 60_000]).await?,
        way.post("/v1/hello", to_us.message()).await?,
        way.post("/v1/hello", to_others.message()).await?,
        way.post("/v1/rpc", b"\xff\xff").await?,
        way.post("/v1/rpc", &poll).await?,
    ];
    // What was heard of the agent itself, its hello among it, is no use to whoever says it again.
    let heard = way.heard();
    ensure!(heard.iter().any(|said| times(said, b"POST /v1/hello") > 0), "no hello was heard");
    for request in heard.iter().filter_map(|said| first_request(said)) {
        said.push(way.say(request).await?);
    }
    for answer in said {
        ensure!(answer.starts_with("HTTP/1.1 404 "), "{answer:?}");
        ensure!(answer.contains("connection: close") && answer.ends_with("\r\n\r\n"), "{answer:?}");
    }
    Ok(())
}
