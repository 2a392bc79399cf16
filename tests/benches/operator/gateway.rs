//! The gateway beside nginx as a proxy to the same replica, which answers at once: what each adds to
//! a request, and how many requests it passes; straight, as on the cluster's own nodes, and encrypted
//! through the replica's agent, as on rented machines. wrk asks; whoever is asked changes from round to round.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use petaflop_agent_api::gateway::{self, PATH, Replica, Told};
use petaflop_agent_api::keys::{NoisePublic, OperatorRoot};
use petaflop_agent_api::message::to_bytes;
use petaflop_agent_api::session::Opened;
use petaflop_harness::eventually;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::Args;
use crate::figures::{Figure, Figures, said};
use crate::process;
use crate::relayed::Agent;

/// Threads of the gateway, and processes of nginx.
const WORKERS: u32 = 2;
/// Connections of the clients where requests are counted.
const CLIENTS: u32 = 32;

/// What wrk says at the end; its times are microseconds.
const SCRIPT: &str = r#"
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{"model":"m","messages":[{"role":"user","content":"Say something short, please."}]}'
function done(summary, latency, requests)
  local bad = summary.errors
  io.write(string.format('{"requests":%d,"micros":%d,"bad":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration,
    bad.connect + bad.read + bad.write + bad.status + bad.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"#;

/// A completion without the model.
const ANSWER: &str = r#"{"id":"chatcmpl-1","object":"chat.completion","created":1,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"Something short."},"finish_reason":"stop"}],"usage":{"prompt_tokens":12,"completion_tokens":4,"total_tokens":16}}"#;

pub(crate) async fn measure(args: &Args, petaflop: &Path, figures: &mut Figures) -> Result<()> {
    let folder = tempfile::tempdir()?;
    println!("  {}; wrk", said(Path::new("nginx"), &["-v"])?);
    let [replica, proxy, ours, own, far, far_own, agent] = ports()?;
    let location = format!("default_type application/json; return 200 '{ANSWER}';");
    let _replica = Nginx::start(folder.path(), "replica", replica, "", &location)?;
    let upstream = format!("upstream replicas {{ server {replica}; keepalive 64; }}");
    let location =
        "proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection \"\";";
    let proxying = Nginx::start(folder.path(), "proxy", proxy, &upstream, location)?;
    let root = OperatorRoot::generate();
    let near = gateway(petaflop, &root, ours, own)?;
    tell(&root, own, replica, None).await?;
    let agent = Agent::start(args, &root, &folder.path().join("work"), agent, replica).await?;
    let distant = gateway(petaflop, &root, far, far_own)?;
    tell(&root, far_own, agent.at, Some(agent.key)).await?;

    let asked = [("direct", replica), ("nginx", proxy), ("gateway", ours), ("by agent", far)];
    for (name, at) in asked {
        eventually(name, Duration::from_secs(30), || async {
            tokio::net::TcpStream::connect(at).await.map(drop).map_err(|error| error.to_string())
        })
        .await?;
    }
    let script = folder.path().join("ask.lua");
    fs::write(&script, SCRIPT)?;
    let empty = || -> [Vec<f64>; 4] { Default::default() };
    let (mut p50, mut p99, mut rates, mut spent) = (empty(), empty(), empty(), empty());
    let pid = |process: &tokio::process::Child| process.id().context("it runs");
    let processes = [
        vec![],
        workers(&proxying)?,
        vec![pid(&near)?],
        vec![pid(&distant)?, pid(&agent.process)?],
    ];
    let mut alone = Vec::new();
    // The first is for the caches of everybody.
    for round in 0..=args.rounds {
        for turn in 0..asked.len() {
            let who = (round + turn) % asked.len();
            let one = ask(&script, asked[who].1, 1, args.seconds).await?;
            let (before, agents) = (used(&processes[who])?, process::processor(processes[3][1])?);
            let many = ask(&script, asked[who].1, CLIENTS, args.seconds).await?;
            let used = used(&processes[who])? - before;
            if round > 0 {
                if who == 3 {
                    let agents = process::processor(processes[3][1])? - agents;
                    alone.push(agents / number(&many["requests"])? * 1e6);
                }
                p50[who].push(number(&one["p50"])?);
                p99[who].push(number(&one["p99"])?);
                spent[who].push(used / number(&many["requests"])? * 1e6);
                rates[who].push(number(&many["requests"])? / number(&many["micros"])? * 1e6);
            }
        }
    }
    let added = |all: &[Vec<f64>; 4], who: usize| -> Vec<f64> {
        all[who].iter().zip(&all[0]).map(|(through, direct)| through - direct).collect()
    };
    for (name, all) in [("p50", &p50), ("p99", &p99)] {
        for (proxy, who) in [("nginx", 1), ("gateway", 2), ("gateway and agent", 3)] {
            let what = format!("{proxy}: added to a request, one client, {name}");
            figures.add(Figure::new(what, "µs", added(all, who)));
        }
    }
    let [direct, nginx, ours, far] = rates;
    let [_, nginx_spent, ours_spent, far_spent] = spent;
    let what = format!("gateway: {CLIENTS} clients");
    figures.add(Figure::new(what, "requests/s", ours.clone()).beside("nginx", nginx));
    let what = "  processor time of a request";
    figures.add(Figure::new(what, "µs", ours_spent.clone()).beside("nginx", nginx_spent));
    figures.add(Figure::new("  the replica itself", "requests/s", direct));
    let what = format!("gateway and agent: {CLIENTS} clients");
    figures.add(Figure::new(what, "requests/s", far).beside("gateway", ours));
    let what = "  processor time of a request, of both";
    figures.add(Figure::new(what, "µs", far_spent).beside("gateway", ours_spent));
    figures.add(Figure::new("  of it the agent's", "µs", alone));
    Ok(())
}

/// A gateway of ours, which ends with this program.
fn gateway(
    petaflop: &Path,
    root: &OperatorRoot,
    at: SocketAddr,
    own: SocketAddr,
) -> Result<tokio::process::Child> {
    let mut command = Command::new(petaflop);
    command
        .args(["gateway", "--address=127.0.0.1"])
        .arg(format!("--port={}", at.port()))
        .arg(format!("--own-port={}", own.port()))
        .arg(format!("--operator-key={}", root.noise().public()))
        .env("PETAFLOP_LOG", "warn")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(command.spawn()?)
}

/// Seconds of processor time that processes have used together.
fn used(pids: &[u32]) -> Result<f64> {
    pids.iter().map(|pid| process::processor(*pid)).sum()
}

/// The processes of an nginx that do its work.
fn workers(nginx: &Nginx) -> Result<Vec<u32>> {
    let master = nginx.master.id();
    let list = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
    list.split_whitespace().map(|pid| Ok(pid.parse()?)).collect()
}

fn ports<const N: usize>() -> Result<[SocketAddr; N]> {
    let open: Vec<_> =
        (0..N).map(|_| std::net::TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let at: Vec<SocketAddr> = open.iter().map(|l| l.local_addr()).collect::<Result<_, _>>()?;
    at.try_into().ok().context("as many as there are")
}

/// An nginx of ours, with its workers.
struct Nginx {
    settings: PathBuf,
    master: Child,
}

impl Nginx {
    fn start(
        folder: &Path,
        name: &str,
        at: SocketAddr,
        upstream: &str,
        location: &str,
    ) -> Result<Self> {
        let home = folder.join(name);
        fs::create_dir(&home)?;
        let workers = if upstream.is_empty() { 1 } else { WORKERS };
        let text = format!(
            "daemon off; pid {home}/pid; error_log {home}/error.log; worker_processes {workers};
             events {{ worker_connections 1024; }}
             http {{
               access_log off; keepalive_requests 1000000000;
               client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;
               fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
               {upstream}
               server {{ listen {at} reuseport; location / {{ {location} }} }}
             }}",
            home = home.display()
        );
        let settings = home.join("nginx.conf");
        fs::write(&settings, text)?;
        let mut command = std::process::Command::new("nginx");
        let command = command.arg("-c").arg(&settings).stdin(Stdio::null());
        let master = command.spawn().context("nginx: apt-get install nginx-light wrk")?;
        Ok(Self { settings, master })
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Killed, it would leave its workers.
        let mut stop = std::process::Command::new("nginx");
        let _ = stop.arg("-c").arg(&self.settings).args(["-s", "stop"]).status();
        let _ = self.master.wait();
    }
}

/// Tells the gateway its one replica, as the operator does.
async fn tell(
    root: &OperatorRoot,
    own: SocketAddr,
    replica: SocketAddr,
    agent: Option<NoisePublic>,
) -> Result<()> {
    let get = format!("GET {PATH}?after=0&wait=0");
    let message = eventually("the gateway's message", Duration::from_secs(30), || async {
        http(own, &get, &[]).await.map_err(|error| error.to_string())
    })
    .await?;
    let replica = Replica {
        name: "replica".into(),
        address: replica.to_string(),
        weight: NonZeroU32::MIN,
        draining: false,
        agent,
        key: root.replica_key("uid"),
        server: gateway::Server::Ours,
    };
    let told: gateway::Told = Told::new(true, vec![replica]);
    let answer = Opened::read(&root.noise(), &message)?.tell(&to_bytes(&told))?;
    http(own, &format!("POST {PATH}"), &answer).await.map(drop)
}

/// The body of an answer that is a success. Gateway and agent speak plain HTTP.
pub(crate) async fn http(at: SocketAddr, request: &str, body: &[u8]) -> Result<Vec<u8>> {
    let mut stream = tokio::net::TcpStream::connect(at).await?;
    let length = body.len();
    let head = format!(
        "{request} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(&[head.as_bytes(), body].concat()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no head")?;
    ensure!(answer.starts_with(b"HTTP/1.1 2"), "{}", String::from_utf8_lossy(&answer[..end]));
    Ok(answer.split_off(end + 4))
}

async fn ask(script: &Path, at: SocketAddr, clients: u32, seconds: u64) -> Result<Value> {
    let output = Command::new("wrk")
        .args(["--threads=1", "--latency"])
        .arg(format!("--connections={clients}"))
        .arg(format!("--duration={seconds}s"))
        .arg("--script")
        .arg(script)
        .arg(format!("http://{at}/"))
        .output()
        .await
        .context("wrk: apt-get install nginx-light wrk")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().rev().find(|line| line.starts_with('{'));
    let line = line.with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let said: Value = serde_json::from_str(line)?;
    ensure!(said["bad"] == 0, "{said}");
    Ok(said)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("{value} is no number"))
}
