//! `petaflop operator`: works in a cluster until it is told to end. The chart's values become
//! these flags and this environment.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use petaflop_agent_api::task::Secret;
use petaflop_providers::runpod::AgentDownload;
use tokio::signal::unix::{SignalKind, signal};

use super::{Code, Failure, Outcome, waiting};
use crate::agents::LEASE;
use crate::cluster::begin::begin;
use crate::cluster::settings::{AgentCalls, Settings, StoreAt};
use crate::narrow::Sts;
use crate::store_at::HANDED_ON;

/// Of [`HANDED_ON`] the ledger's credentials are named after this.
const LEDGER: &str = "PETAFLOP_LEDGER_";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where artifacts, checkpoints and logs go: s3://bucket/prefix, or a folder
    #[arg(long, value_name = "URI", default_value = "", hide_default_value = true)]
    store_uri: String,
    /// Where passes for machines come from, which open a job's own folders for an hour: auto (Amazon's, if
    /// the store is), a URL, or off: then every machine gets the store's keys
    #[arg(long, value_name = "auto|URL|off", env = "PETAFLOP_STORE_STS", default_value = "auto")]
    store_sts: String,
    /// Role to take for such a pass; without it the store's own long-lived keys are narrowed
    #[arg(
        long,
        value_name = "ARN",
        env = "PETAFLOP_STORE_ROLE_ARN",
        default_value = "",
        hide_default_value = true
    )]
    store_role_arn: String,
    /// Where the record of what every claim cost goes [default: <store-uri>/ledger]
    #[arg(long, value_name = "URI", default_value = "", hide_default_value = true)]
    ledger_uri: String,
    /// Image that carries /petaflop-agent
    #[arg(long, value_name = "IMAGE", default_value = "petaflop-agent")]
    agent_image: String,
    /// Where rented machines fetch the agent, over HTTP or HTTPS: the static binary for x86_64
    #[arg(long, value_name = "URL", requires = "agent_sha256")]
    agent_url: Option<String>,
    /// Its SHA-256; whatever else comes from there is not run
    #[arg(long, value_name = "HEX", requires = "agent_url")]
    agent_sha256: Option<String>,
    /// The same for machines with Arm processors
    #[arg(long, value_name = "URL", requires = "agent_arm_sha256")]
    agent_arm_url: Option<String>,
    /// Its SHA-256
    #[arg(long, value_name = "HEX", requires = "agent_arm_url")]
    agent_arm_sha256: Option<String>,
    /// Where it listens for agents of rented machines, which then call it instead of being dialled
    #[arg(long, value_name = "ADDRESS", requires = "agent_endpoint")]
    agent_listen: Option<SocketAddr>,
    /// The same place as those machines reach it: http(s)://host[:port][/path]
    #[arg(long, value_name = "URL", requires = "agent_listen", value_parser = endpoint)]
    agent_endpoint: Option<String>,
    /// Image of the runtime
    #[arg(long, value_name = "IMAGE", default_value = "petaflop-runtime")]
    runtime_image: String,
    /// The runtime's program in its image
    #[arg(long, value_name = "PATH", default_value = "/petaflop-runtime")]
    runtime: String,
    /// Where health, metrics and the API are served
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    http_address: SocketAddr,
    /// Hold a Lease while at work, so that two operators never buy side by side
    #[arg(long)]
    leader_elect: bool,
    /// Labels of the ComputeProviders to work with [default: all]
    #[arg(long, env = "PETAFLOP_PROVIDER_LABELS", value_name = "KEY=VALUE,…")]
    provider_labels: Option<String>,
    #[command(flatten)]
    watched: Watched,
    /// Its own namespace [default: that of its Pod or kubeconfig]
    #[arg(long, env = "POD_NAMESPACE", default_value = "", hide_default_value = true)]
    namespace: String,
    /// Name of this replica
    #[arg(long, env = "POD_NAME", default_value = "operator")]
    replica: String,
    /// Let everybody read /metrics
    #[arg(long, env = "PETAFLOP_PUBLIC_METRICS", action = clap::ArgAction::Set, num_args = 0..=1,
          default_value_t = false, default_missing_value = "true")]
    public_metrics: bool,
    /// Image of the operator itself, which the gateways of InferenceServices run
    #[arg(long, value_name = "IMAGE", env = "PETAFLOP_GATEWAY_IMAGE", default_value = "petaflop")]
    gateway_image: String,
    /// Its ServiceAccount, for messages
    #[arg(long, value_name = "NAME", env = "PETAFLOP_SERVICE_ACCOUNT", default_value = "petaflop")]
    service_account: String,
    /// The ClusterRole that would let it read Secrets, for messages
    #[arg(
        long,
        value_name = "NAME",
        env = "PETAFLOP_SECRET_READER",
        default_value = "petaflop-secret-reader"
    )]
    secret_reader: String,
    /// Folder for what was known when something was decided, the newest hundred: `petaflop explain --world` replays them
    #[arg(long, value_name = "FOLDER")]
    record_worlds: Option<std::path::PathBuf>,
}

/// What an installation works for.
#[derive(clap::Args)]
pub(super) struct Watched {
    /// Namespaces with jobs and services [default: all]
    #[arg(long, value_name = "NAME,…", env = "PETAFLOP_WATCH_NAMESPACES", value_delimiter = ',')]
    watch_namespaces: Vec<String>,
}

impl Watched {
    /// Their names; none: all.
    pub(super) fn namespaces(&self) -> Vec<String> {
        // An empty variable is one empty name.
        self.watch_namespaces.iter().filter(|name| !name.is_empty()).cloned().collect()
    }
}

pub(crate) fn run(args: Args) -> Outcome {
    let sts = sts(&args.store_sts, &args.store_role_arn);
    let settings = settings(args, &std::env::vars().collect());
    waiting()?.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut told = async || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        let mut running = tokio::select! {
            running = begin(settings, sts) => running?,
            () = told() => return Ok(Code::Done),
        };
        tokio::select! {
            () = told() => tracing::info!("told to end"),
            () = running.wait() => return Err(Failure::failed("a part of the operator ended; the log says which and why: mend that, and start it again")),
        }
        running.stop().await;
        Ok(Code::Done)
    })
}

fn settings(args: Args, environment: &BTreeMap<String, String>) -> Settings {
    let Args {
        store_uri,
        store_sts: _, // of its own
        store_role_arn: _,
        ledger_uri,
        agent_image,
        agent_url,
        agent_sha256,
        agent_arm_url,
        agent_arm_sha256,
        agent_listen,
        agent_endpoint,
        runtime_image,
        runtime,
        http_address,
        leader_elect,
        provider_labels,
        watched,
        namespace,
        replica,
        public_metrics,
        gateway_image,
        service_account,
        secret_reader,
        record_worlds,
    } = args;
    let (store, ledger) = credentials(environment);
    Settings {
        namespace,
        replica,
        watch_namespaces: watched.namespaces(),
        provider_labels,
        store: StoreAt {
            uri: store_uri.trim_end_matches('/').to_owned(),
            credentials: store,
            narrow: None,
        },
        ledger: StoreAt { uri: ledger_uri, credentials: ledger, narrow: None },
        agent_image,
        agent_download: download(agent_url, agent_sha256),
        agent_arm_download: download(agent_arm_url, agent_arm_sha256),
        agent_calls: agent_listen
            .zip(agent_endpoint)
            .map(|(listen, endpoint)| AgentCalls { listen, endpoint }),
        runtime_image,
        runtime,
        lease: LEASE,
        http_address,
        public_metrics,
        gateway_image,
        service_account,
        secret_reader,
        record_worlds,
        leader_elect,
    }
}

/// An address that agents can be told: it stands in what a machine is started with.
fn endpoint(text: &str) -> Result<String, String> {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._~:/[]%".contains(c);
    match host {
        Some(host) if host.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '[') => {}
        _ => return Err("say http:// or https:// and a host".to_owned()),
    }
    match text.chars().all(plain) {
        true => Ok(text.to_owned()),
        false => Err("say an address without user, query or spaces".to_owned()),
    }
}

fn sts(url: &str, role: &str) -> Option<Sts> {
    let role = Some(role).filter(|role| !role.is_empty()).map(str::to_owned);
    match url {
        "off" => None,
        "" | "auto" => Some(Sts { role, ..Sts::default() }),
        url => Some(Sts { url: Some(url.to_owned()), role, life: None }),
    }
}

fn download(url: Option<String>, sha256: Option<String>) -> Option<AgentDownload> {
    url.zip(sha256).map(|(url, sha256)| AgentDownload { url, sha256 })
}

/// A ledger by its URI, opened as the environment says.
pub(super) fn ledger_at(uri: &str) -> StoreAt {
    let (_, credentials) = credentials(&std::env::vars().collect());
    StoreAt { uri: uri.to_owned(), credentials, narrow: None }
}

type Credentials = BTreeMap<String, Secret>;

/// What opens the store for jobs, and the ledger, where that has something of its own; then region
/// and endpoint are the store's unless it says otherwise.
fn credentials(environment: &BTreeMap<String, String>) -> (Credentials, Credentials) {
    let named = |prefix: &str| -> Credentials {
        let of = |name: &&str| {
            let value = environment.get(&format!("{prefix}{name}"))?;
            Some(((*name).to_owned(), Secret::new(value)))
        };
        HANDED_ON.iter().filter_map(of).collect()
    };
    let (store, own) = (named(""), named(LEDGER));
    if own.is_empty() {
        return (store, own);
    }
    let of_place = |name: &str| name.contains("REGION") || name.contains("ENDPOINT");
    let mut ledger: Credentials = store
        .iter()
        .filter(|(name, _)| of_place(name))
        .map(|(n, v)| (n.clone(), v.clone()))
        .collect();
    ledger.extend(own);
    (store, ledger)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_agents_call_is_an_address_and_nothing_else() {
        for good in ["https://a.example", "http://10.0.0.1:7443", "https://[fd00::1]:7443/agents"] {
            assert_eq!(endpoint(good).as_deref(), Ok(good));
        }
        for bad in
            ["", "a.example:7443", "ftp://a", "https://", "https:///x", "http://a b", "http://a'$b"]
        {
            assert!(endpoint(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_ledger_with_credentials_of_its_own_never_uses_the_stores_and_jobs_never_see_them() {
        let environment = BTreeMap::from(
            [
                ("AWS_ACCESS_KEY_ID", "store"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
                ("AWS_ENDPOINT_URL", "http://s3"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
                ("PETAFLOP_LEDGER_AWS_ACCESS_KEY_ID", "ledger"),
                ("PETAFLOP_LEDGER_AWS_REGION", "eu"),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned())),
        );
        let (store, ledger) = credentials(&environment);
        let shown = |map: &Credentials| -> Vec<(String, String)> {
            map.iter().map(|(name, value)| (name.clone(), value.expose().to_owned())).collect()
        };
        let pairs = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        assert_eq!(
            shown(&store),
            pairs(&[
                ("AWS_ACCESS_KEY_ID", "store"),
                ("AWS_ENDPOINT_URL", "http://s3"),
                ("AWS_SECRET_ACCESS_KEY", "s"),
            ])
        );
        assert_eq!(
            shown(&ledger),
            pairs(&[
                ("AWS_ACCESS_KEY_ID", "ledger"),
                ("AWS_ENDPOINT_URL", "http://s3"),
                ("AWS_REGION", "eu"),
            ])
        );
        let plain = credentials(&BTreeMap::from([("AWS_REGION".to_owned(), "eu".to_owned())]));
        assert!(plain.1.is_empty(), "then the environment counts as it is");
    }
}
