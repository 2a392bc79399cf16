//! A machine with an agent on it: what is asked for wherever work is more than a
//! child process. All of it is fixed before the purchase, but for the one secret
//! that is added when the request is sent.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// Environment by which a fresh machine's agent learns whose it is and whom to trust. Nothing
/// else that is secret is in there but [`env::TOKEN`], which is good for one use.
pub mod env {
    /// The identity in its text form: [`crate::provider::identity_text`].
    pub const IDENTITY: &str = "PETAFLOP_IDENTITY";
    /// The operator's public key, in base64.
    pub const OPERATOR_KEY: &str = "PETAFLOP_OPERATOR_KEY";
    /// The one-time token with which the agent proves its fresh key.
    pub const TOKEN: &str = "PETAFLOP_TOKEN";
    /// Where the agent dials, if it dials.
    pub const ENDPOINT: &str = "PETAFLOP_ENDPOINT";
    /// Port on which the agent listens, if it is dialled.
    pub const PORT: &str = "PETAFLOP_PORT";
    /// Folder for the work's files: [`super::WORK_FOLDER`].
    pub const WORK: &str = "PETAFLOP_WORK";
}

/// Folder into which the agent is brought; the work may not write to it.
pub const AGENT_FOLDER: &str = "/petaflop";
/// The agent on the machine.
pub const AGENT: &str = "/petaflop/petaflop-agent";
/// Folder in which the work finds its inputs, by name.
pub const INPUTS: &str = "/inputs";
/// The folder on every machine that the work may write to, beside `/tmp`. Gone with the machine.
pub const WORK_FOLDER: &str = "/work";

/// A machine that runs our agent, which runs what it is told over the enrolled channel. What a
/// provider cannot honour it refuses in [`crate::Provider::prepare`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// The image in which the work runs.
    pub image: String,
    /// How the agent gets in there.
    pub agent: AgentSource,
    /// Whom the agent trusts, and how the two meet.
    pub bootstrap: Bootstrap,
    /// Processors in thousandths, guaranteed; more may be used where it is idle.
    pub cpu_millis: u32,
    /// Bytes of memory: guaranteed, and the most.
    pub memory: u64,
    /// Bytes of disk that are gone with the machine: guaranteed, and the most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ephemeral: Option<u64>,
    /// Ports on which the work listens, beside the agent's own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
    /// Account of the cluster whose rights the work has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_account: Option<String>,
    /// Secrets in the claim's namespace with which the image is fetched.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<String>,
    /// Volumes of the cluster.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Seconds from the request to end until it is forced.
    pub grace_seconds: u64,
    /// Labels of the instance, beside those that make it findable; for people and selectors.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// Where the agent comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum AgentSource {
    /// An image that carries `/petaflop-agent`.
    Image(String),
}

/// Where a rented machine fetches the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentDownload {
    /// The static binary, over HTTP or HTTPS; not secret.
    pub url: String,
    /// Its SHA-256 in hex. Whatever else comes from there is not run.
    pub sha256: String,
}

impl AgentDownload {
    /// What is wrong with it, in words.
    #[cfg(any(feature = "aws", feature = "runpod"))]
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self { url, sha256 } = self;
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\'' | '"' | '\\' | '$' | '`');
        if !(url.starts_with("https://") || url.starts_with("http://")) || !url.chars().all(plain) {
            return Err(format!("the agent's url {url:?} is no plain http(s) address"));
        }
        if sha256.len() != 64 || !sha256.chars().all(|c| c.is_ascii_hexdigit()) {
            return Err(format!("the agent's sha256 {sha256:?} is not 64 hex digits"));
        }
        Ok(())
    }
}

/// Whom a fresh agent trusts, and how the two meet. Nothing here is secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bootstrap {
    /// The operator's public key, in base64.
    pub operator_key: String,
    /// Where the agent dials; `None`: it is dialled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// Where it listens, if it is dialled.
    pub port: u16,
}

impl Bootstrap {
    /// The environment that says so, [`env::TOKEN`] and [`env::IDENTITY`] aside.
    pub fn environment(&self) -> BTreeMap<String, String> {
        let Self { operator_key, endpoint, port } = self;
        let meets = match endpoint {
            Some(endpoint) => (env::ENDPOINT, endpoint.clone()),
            None => (env::PORT, port.to_string()),
        };
        let all =
            [(env::OPERATOR_KEY, operator_key.clone()), (env::WORK, WORK_FOLDER.to_owned()), meets];
        all.map(|(name, value)| (name.to_owned(), value)).into()
    }
}

/// A volume of the cluster, for machines that are its nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Volume {
    /// Its name, unique on the machine.
    pub name: String,
    /// Folder at which it is mounted.
    pub mount_path: String,
    /// Whether it may not be written to.
    #[serde(default)]
    pub read_only: bool,
    /// What it is.
    pub source: VolumeSource,
}

/// What a volume is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub enum VolumeSource {
    /// A PersistentVolumeClaim in the claim's namespace.
    PersistentVolumeClaim(String),
    /// A ConfigMap in the claim's namespace.
    ConfigMap(String),
    /// An empty folder that lives as long as the machine.
    EmptyDir {
        /// Most bytes it may hold.
        size_limit: Option<u64>,
    },
    /// An empty folder in memory, of which no disk knows.
    Memory,
}

/// With this, once, the agent of a fresh machine proves its key. It is in no frozen request and
/// no status: the operator derives the same token again from claim and attempt.
#[derive(Clone, PartialEq, Eq)]
pub struct EnrolmentToken(String);

impl EnrolmentToken {
    /// A token.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// For work that nobody enrols for: a process of this host.
    pub fn unused() -> Self {
        Self(String::new())
    }

    /// The secret. For requests to providers and for comparison, never for a log.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for EnrolmentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EnrolmentToken(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_not_printed() {
        let token = EnrolmentToken::new("canary");
        assert!(!format!("{token:?}").contains("canary"));
        assert_eq!(token.expose(), "canary");
    }

    #[test]
    fn the_bootstrap_names_the_endpoint_only_where_there_is_one() {
        let mut bootstrap = Bootstrap { operator_key: "key".into(), endpoint: None, port: 7443 };
        let listening = bootstrap.environment();
        assert_eq!(listening.get(env::PORT).map(String::as_str), Some("7443"));
        assert!(!listening.contains_key(env::ENDPOINT));
        bootstrap.endpoint = Some("https://petaflop.example".into());
        let calling = bootstrap.environment();
        assert!(calling.contains_key(env::ENDPOINT));
        assert!(!calling.contains_key(env::PORT), "nobody looks for its address: it has none");
    }
}
