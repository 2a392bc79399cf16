//! From settings to a working operator: the API server, the store and the ledger are opened and
//! looked at, and what is wrong with them is said in one line before anything else happens.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::{Client, Config};
use object_store::ObjectStore;
use petaflop_agent_api::clock::Clock;
use petaflop_store::StoreError;
use petaflop_store::place::{self, Credentials};

use crate::cluster::error::chain;
use crate::cluster::installation::InstallationError;
use crate::cluster::make::Make;
use crate::cluster::operate::{Parts, Running, StartError, start};
use crate::cluster::patience;
use crate::cluster::probe::{ProbeError, probe};
use crate::cluster::settings::{Settings, StoreAt};
use crate::installation::Installation;
use crate::ledger::Ledger;
use crate::narrow::{Narrow, NarrowError, Sts};

/// How long a store may take to answer the first question.
const STORE_PATIENCE: Duration = Duration::from_secs(30);
/// Silence of a server, watches included: they bring a bookmark each minute.
const SILENCE: Duration = Duration::from_secs(120);

/// Why the operator cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// Not said where things are kept.
    #[error(
        "--store-uri is missing: say where artifacts, checkpoints and logs go, such as s3://bucket/prefix (store.uri in the chart)"
    )]
    NoStore,
    /// Neither a kubeconfig nor a Pod's files.
    #[error("no way to the API server: {0}; run in a Pod with a ServiceAccount, or set KUBECONFIG")]
    Config(String),
    /// The cluster is not fit.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The store or the ledger cannot be opened.
    #[error("{flag}: {source}")]
    Open {
        /// Who named it.
        flag: &'static str,
        /// What is wrong.
        source: StoreError,
    },
    /// The store or the ledger cannot be read.
    #[error(
        "{flag}: {uri} cannot be read: {said}; see that it exists, and the credentials, region and endpoint in the environment (AWS_…)"
    )]
    Read {
        /// Who named it.
        flag: &'static str,
        /// What was named.
        uri: String,
        /// What it said.
        said: String,
    },
    /// Machines are to have passes for the store, and there are none.
    #[error("--store-sts: {0}")]
    Narrow(#[from] NarrowError),
    /// Who we are cannot be told.
    #[error(transparent)]
    Installation(#[from] InstallationError),
    /// The operator itself.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// Begins.
///
/// # Errors
/// What is missing or wrong, in one line.
pub async fn begin(mut settings: Settings, sts: Option<Sts>) -> Result<Running, BeginError> {
    if settings.store.uri.is_empty() {
        return Err(BeginError::NoStore);
    }
    if settings.ledger.uri.is_empty() {
        settings.ledger.uri = format!("{}/ledger", settings.store.uri.trim_end_matches('/'));
    }
    let clock = Clock::system();
    let config = config().await?;
    if settings.namespace.is_empty() {
        settings.namespace.clone_from(&config.default_namespace);
    }
    let url = config.cluster_url.to_string();
    let client = patience::client(config).map_err(|error| BeginError::Config(chain(&error)))?;
    probe(&client, &url, &clock, &settings).await?;
    // Ours by the environment, so that a Pod's own identity counts too.
    open("--store-uri", &StoreAt { uri: settings.store.uri.clone(), ..StoreAt::default() }, &clock)
        .await?;
    let ledger = ledger(&settings.ledger, &clock).await?;
    settings.store.narrow = narrow(&settings.store, sts).await?;
    let uid = Installation::of(&client, &settings.namespace).await?.uid;
    let make = Make::new(client.clone(), clock.clone(), &uid, &settings.watch_namespaces)
        .secrets_of(&settings.namespace)
        .agent_from(settings.agent_download.clone())
        .agent_arm_from(settings.agent_arm_download.clone());
    Ok(start(settings, Parts { client, clock, ledger, make: Arc::new(make) }).await?)
}

/// What makes passes for machines. Where it was asked for, there must be some; else a store that gives
/// none is told of, for then every machine gets its keys.
async fn narrow(store: &StoreAt, sts: Option<Sts>) -> Result<Option<Narrow>, BeginError> {
    let asked = sts.as_ref().is_some_and(|sts| *sts != Sts::default());
    let why = match sts {
        None => "--store-sts=off".to_owned(),
        Some(sts) => match Narrow::of(store, &sts)? {
            Some(narrow) => match narrow.probe().await {
                Ok(()) => return Ok(Some(narrow)),
                Err(error) if asked => return Err(error.into()),
                Err(error) => error.to_string(),
            },
            None => "no STS is known for it; where it has one, say --store-sts=URL".to_owned(),
        },
    };
    if store.credentials.contains_key("AWS_SECRET_ACCESS_KEY") {
        tracing::warn!(why, "every rented machine gets the store's own keys, all of them");
    }
    Ok(None)
}

/// The way to the API server: `KUBECONFIG`, else what a Pod finds in its files. No call is
/// repeated by the client itself: a POST sent twice can be two purchases.
///
/// # Errors
/// There is none.
pub async fn config() -> Result<Config, BeginError> {
    let mut config = Config::infer().await.map_err(|error| BeginError::Config(chain(&error)))?;
    config.default_retry = false;
    config.read_timeout = Some(SILENCE);
    config.reset_reader_on_write = true;
    Ok(config)
}

/// A client for a command that is not the operator, and the namespace that is meant: the named
/// one, else that of the Pod or the kubeconfig.
///
/// # Errors
/// As [`config`].
pub async fn client(namespace: &str) -> Result<(Client, String), BeginError> {
    let config = config().await?;
    let namespace = match namespace {
        "" => config.default_namespace.clone(),
        named => named.to_owned(),
    };
    let client = patience::client(config).map_err(|error| BeginError::Config(chain(&error)))?;
    Ok((client, namespace))
}

/// Opens a ledger and reads the first name in it.
///
/// # Errors
/// It cannot be opened or read.
pub async fn ledger(at: &StoreAt, clock: &Clock) -> Result<Ledger, BeginError> {
    Ok(Ledger::over(open("--ledger-uri", at, clock).await?, &at.uri))
}

/// Opens a place and reads the first name in it.
async fn open(
    flag: &'static str,
    at: &StoreAt,
    clock: &Clock,
) -> Result<Arc<dyn ObjectStore>, BeginError> {
    let given: Credentials<'_> =
        at.credentials.iter().map(|(name, value)| (name.as_str(), value.expose())).collect();
    let given = (!given.is_empty()).then_some(&given);
    let objects =
        place::objects(&at.uri, given).map_err(|source| BeginError::Open { flag, source })?;
    let said = match clock.timeout(STORE_PATIENCE, objects.list(None).next()).await {
        Some(None | Some(Ok(_))) => return Ok(objects),
        Some(Some(Err(error))) => chain(&error),
        None => format!("no answer within {} s", STORE_PATIENCE.as_secs()),
    };
    Err(BeginError::Read { flag, uri: at.uri.clone(), said })
}
