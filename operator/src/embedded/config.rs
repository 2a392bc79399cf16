//! `$PETAFLOP_HOME/config.yaml`: what the owner of an installation may set.
//!
//! ```yaml
//! host:                  # what an hour of this machine costs
//!   usdPerKwh: "0.25"
//!   idleWatts: 30
//!   loadWatts: 120       # without accelerators; theirs is read from the driver
//!   pueMilli: 1100       # cooling and losses, in thousandths
//!   marginPercent: 10    # opportunity margin
//! ```
//!
//! Accounts that `petaflop offers --live` asks stand there too: [`RunPodAccount`], [`AwsAccount`]; and
//! what machines need that are rented from them: [`Rented`].

use petaflop_arbiter::money::UsdPerHour;
use petaflop_providers::host::price::PowerPrice;
use petaflop_providers::runpod::AgentDownload;
use serde::{Deserialize, Serialize};

use crate::embedded::home::{Home, HomeError, read_optional};
use crate::embedded::live::{AwsAccount, RunPodAccount};
use crate::narrow::Sts;

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// What an hour of this machine costs.
    pub host: PowerPrice,
    /// An account at RunPod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runpod: Option<RunPodAccount>,
    /// An account at AWS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aws: Option<AwsAccount>,
    /// What machines need that are rented; without it none are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rented: Option<Rented>,
}

/// What machines need that are rented.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rented {
    /// Where they and this machine read and write artifacts, checkpoints and logs, such as
    /// `s3://bucket/prefix`. The environment opens it (`AWS_ACCESS_KEY_ID`, …).
    pub store: String,
    /// Where passes for machines come from, which open a job's own folders for an hour; without it they
    /// get what opens the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sts: Option<StsAt>,
    /// Where they fetch the agent.
    pub agent: AgentDownload,
    /// Where those with Arm processors fetch it; without it none of them are rented.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_arm: Option<AgentDownload>,
    /// Image of our runtime.
    #[serde(default = "runtime_image")]
    pub runtime_image: String,
    /// The runtime's program in it.
    #[serde(default = "runtime")]
    pub runtime: String,
    /// Dollars an hour that all machines of one provider may cost together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_hourly: Option<UsdPerHour>,
}

/// Where passes for machines come from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct StsAt {
    /// URL of the store's STS. Not said: Amazon's, of a store that is Amazon's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// ARN of the role that is taken. Not said: the store's long-lived keys are narrowed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role_arn: Option<String>,
}

impl From<StsAt> for Sts {
    fn from(StsAt { url, role_arn }: StsAt) -> Self {
        Self { url, role: role_arn, life: None }
    }
}

fn runtime_image() -> String {
    concat!("petaflop-runtime:", env!("CARGO_PKG_VERSION")).to_owned()
}

fn runtime() -> String {
    "petaflop-runtime".to_owned()
}

impl Config {
    /// Reads the file; without one everything has its default.
    pub fn read(home: &Home) -> Result<Self, HomeError> {
        let path = home.root().join("config.yaml");
        let Some(bytes) = read_optional(&path)? else {
            return Ok(Self::default());
        };
        let damaged = |what: String| HomeError::Damaged { path: path.clone(), what };
        let text = String::from_utf8(bytes).map_err(|e| damaged(e.to_string()))?;
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text).map_err(|e| damaged(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_rented_machines_need_is_as_documented() {
        let document = include_str!("../../../docs/rented.md");
        let (_, rest) = document.split_once("```yaml\n").expect("an example");
        let (example, _) = rest.split_once("```").expect("its end");
        let config: Config = serde_saphyr::from_str(example).expect("the example can be read");
        let rented = config.rented.expect("it is there");
        assert_eq!((rented.runtime_image, rented.runtime), (runtime_image(), runtime()));
        assert!(rented.max_hourly.is_some() && config.runpod.is_some());
        assert!(config.aws.is_some_and(|aws| aws.profile.is_some()));
    }

    #[test]
    fn the_documented_defaults_are_the_defaults() {
        let document = include_str!("../../../docs/host.md");
        let (_, rest) = document.split_once("```yaml\n").expect("an example");
        let (example, _) = rest.split_once("```").expect("its end");
        let documented: serde_json::Value =
            serde_saphyr::from_str(example).expect("the example can be read");
        let defaults = serde_json::to_value(Config::default()).expect("plain data");
        assert_eq!(documented, defaults, "every parameter, with its default");
    }
}
