//! What an agent is started with.

use std::env::VarError;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use petaflop_agent_api::clock::Clock;
use petaflop_agent_api::keys::NoisePublic;
use petaflop_agent_api::token::EnrolmentToken;

/// `installation/namespace/claim/claim uid/attempt`.
pub const IDENTITY: &str = "PETAFLOP_IDENTITY";
/// The operator's public key, base64.
pub const OPERATOR_KEY: &str = "PETAFLOP_OPERATOR_KEY";
/// The one-time token, base64. In no environment but the agent's first.
pub const TOKEN: &str = "PETAFLOP_TOKEN";
/// Port to listen on.
pub const PORT: &str = "PETAFLOP_PORT";
/// Where to dial instead: the operator's `https://host[:port]`.
pub const ENDPOINT: &str = "PETAFLOP_ENDPOINT";
/// Folder for the task's files; must be writable.
pub const WORK: &str = "PETAFLOP_WORK";
/// Folder in which the task finds its inputs, by name.
pub const INPUTS: &str = "PETAFLOP_INPUTS";
/// File whose appearance is the provider's notice; it may hold the seconds that are left.
pub const NOTICE: &str = "PETAFLOP_NOTICE_FILE";
/// Address of the machine's own metadata service (EC2's), which gives notice.
pub const METADATA: &str = "PETAFLOP_METADATA";
/// File in which the host's timer finds until when the lease reaches.
pub const LEASE: &str = "PETAFLOP_LEASE_FILE";

/// [`WORK`] where nothing else is said: beside the agent itself, as `install` puts it.
pub const DEFAULT_WORK: &str = "/petaflop/work";

/// [`INPUTS`] where nothing else is said.
pub const DEFAULT_INPUTS: &str = "/inputs";

/// How long an agent that nobody enrols keeps its machine.
pub const ENROL_WITHIN: Duration = Duration::from_secs(30 * 60);

/// What an agent is started with.
#[derive(Debug)]
pub struct Config {
    /// The claim's identity: `installation/namespace/claim/claim uid/attempt`.
    pub identity: String,
    /// Whom to obey.
    pub operator: NoisePublic,
    /// Proof that the operator started it.
    pub token: EnrolmentToken,
    /// Where to listen; port 0 takes any free one.
    pub listen: Option<SocketAddr>,
    /// Where to dial.
    pub endpoint: Option<String>,
    /// Folder for the task's files, made where it is missing.
    pub work: PathBuf,
    /// Folder for the task's inputs, made where there are some.
    pub inputs: PathBuf,
    /// File whose appearance is the provider's notice.
    pub notice: Option<PathBuf>,
    /// Address of EC2's metadata service, where the machine has one.
    pub metadata: Option<String>,
    /// File in which the deadline of each new lease is written for the host's timer: whole seconds
    /// since boot.
    pub lease: Option<PathBuf>,
    /// What the machine is, for the operator; null where that is not known.
    pub facts: serde_json::Value,
    /// Where the system's files are; `/`, but for tests.
    pub root: PathBuf,
    /// Leases, graces and waits go by it.
    pub clock: Clock,
    /// Without a lease after this long, the machine is given back.
    pub enrol_within: Duration,
    /// This program, to start the task through: then the task dies with the agent, however
    /// that dies. Without it (the agent is part of another program) it does not.
    pub program: Option<PathBuf>,
    /// Whether the agent is its process's only business: then it reaps every process that is
    /// left to it, and repeats the task's output on its own.
    pub alone: bool,
}

/// Why the environment is not enough to start an agent. Values are not repeated.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It has to be there.
    #[error("the environment variable {0} is missing")]
    Missing(&'static str),
    /// It makes no sense.
    #[error("the environment variable {name}: expected {expected}")]
    Bad {
        /// Which.
        name: &'static str,
        /// What would do.
        expected: &'static str,
    },
}

impl Config {
    /// From the environment; the token comes by another way.
    ///
    /// # Errors
    /// What is missing or makes no sense.
    pub fn from_env(token: &str) -> Result<Self, ConfigError> {
        let identity = required(IDENTITY)?;
        if claim_uid(&identity).is_none() {
            return Err(ConfigError::Bad {
                name: IDENTITY,
                expected: "installation/namespace/claim/claim uid/attempt",
            });
        }
        let operator = required(OPERATOR_KEY)?
            .parse()
            .map_err(|_| ConfigError::Bad { name: OPERATOR_KEY, expected: "base64 of 32 bytes" })?;
        let token = token
            .trim_end()
            .parse()
            .map_err(|_| ConfigError::Bad { name: TOKEN, expected: "base64 of 32 bytes" })?;
        let endpoint = optional(ENDPOINT)?;
        if endpoint
            .as_ref()
            .is_some_and(|e| !e.starts_with("https://") && !e.starts_with("http://"))
        {
            return Err(ConfigError::Bad { name: ENDPOINT, expected: "http(s)://host[:port]" });
        }
        let listen = match (optional(PORT)?, &endpoint) {
            (Some(port), _) => {
                let port: u16 = port
                    .parse()
                    .map_err(|_| ConfigError::Bad { name: PORT, expected: "a port, 0 to 65535" })?;
                Some(SocketAddr::from(([0, 0, 0, 0], port)))
            }
            (None, Some(_)) => None,
            (None, None) => return Err(ConfigError::Missing(PORT)),
        };
        Ok(Self {
            identity,
            operator,
            token,
            listen,
            endpoint,
            work: optional(WORK)?.unwrap_or_else(|| DEFAULT_WORK.into()).into(),
            inputs: optional(INPUTS)?.unwrap_or_else(|| DEFAULT_INPUTS.into()).into(),
            notice: optional(NOTICE)?.map(PathBuf::from),
            metadata: optional(METADATA)?,
            lease: optional(LEASE)?.map(PathBuf::from),
            facts: serde_json::Value::Null,
            root: PathBuf::from("/"),
            clock: Clock::system(),
            enrol_within: ENROL_WITHIN,
            program: None,
            alone: false,
        })
    }
}

/// The fourth part of an identity.
pub(crate) fn claim_uid(identity: &str) -> Option<&str> {
    let mut parts = identity.split('/');
    let uid = parts.nth(3).filter(|uid| !uid.is_empty())?;
    let _attempt: u32 = parts.next()?.parse().ok()?;
    parts.next().is_none().then_some(uid)
}

fn required(name: &'static str) -> Result<String, ConfigError> {
    optional(name)?.ok_or(ConfigError::Missing(name))
}

fn optional(name: &'static str) -> Result<Option<String>, ConfigError> {
    match std::env::var(name) {
        Ok(value) if value.is_empty() => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(VarError::NotPresent) => Ok(None),
        Err(VarError::NotUnicode(_)) => Err(ConfigError::Bad { name, expected: "UTF-8" }),
    }
}
