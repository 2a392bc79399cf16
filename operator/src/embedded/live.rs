//! Providers elsewhere, outside of a cluster. They are asked for their prices by `petaflop offers --live`;
//! machines are bought from them where `config.yaml` says what those need: [`Rented`].
//!
//! Keys come from the environment, or from a file of their own that `config.yaml` names: never from
//! the command line, and never out of `config.yaml` itself. Those of AWS are looked for where its own
//! tools look; which regions are asked stands in `config.yaml`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use petaflop_agent_api::clock::Clock;
use petaflop_arbiter::offer::Offer;
use petaflop_crds::compute_provider::AwsProvider;
use petaflop_crds::{API_VERSION, manifest};
use petaflop_providers::runpod::{self, ApiKey, RunPod, RunPodConfig};
use petaflop_providers::{Provider, ProviderError};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::aws::{self, Account, Rights};
use crate::embedded::config::Config;
#[cfg(doc)]
use crate::embedded::config::Rented;
use crate::embedded::home::{HomeError, read_json, write_json};

/// The account at AWS, in offers and claims.
const AWS: &str = "aws";
/// Regions of it in which machines were ever had.
const REGIONS: &str = "regions.json";

/// An account at RunPod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RunPodAccount {
    /// File that holds the API key and nothing else, where `RUNPOD_API_KEY` does not.
    pub api_key_file: Option<PathBuf>,
    /// Data centres that count; none named: all, and the Community cloud.
    pub data_centers: Vec<String>,
    /// The oldest CUDA that the driver of a host with accelerators must know: `12.8`.
    pub min_cuda_version: Option<String>,
}

/// An account at AWS: what stands under `aws` in a ComputeProvider, and whose keys are used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "Map<String, Value>")]
pub struct AwsAccount {
    /// Profile of AWS's own files, whatever keys the environment has (those may be the store's).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// Where machines may be, and which.
    #[serde(flatten)]
    pub settings: AwsProvider,
}

impl TryFrom<Map<String, Value>> for AwsAccount {
    type Error = String;

    /// By the rules that hold in a cluster.
    fn try_from(mut account: Map<String, Value>) -> Result<Self, String> {
        let profile = match account.remove("profile") {
            None => None,
            Some(Value::String(name)) if !name.is_empty() => Some(name),
            Some(other) => return Err(format!("aws.profile: expected a name, found {other}")),
        };
        let object = json!({
            "apiVersion": API_VERSION, "kind": "ComputeProvider", "metadata": { "name": "aws" },
            "spec": { "aws": account },
        });
        manifest::judge(object.to_string().as_bytes(), "aws").map_err(|errors| {
            let told = errors.0.iter().map(|error| {
                let path = error.path.strip_prefix("spec.").unwrap_or(&error.path);
                format!("{path}: {}", error.message)
            });
            told.collect::<Vec<_>>().join("; ")
        })?;
        let settings = serde_json::from_value(object["spec"]["aws"].clone());
        Ok(Self { profile, settings: settings.map_err(|error| error.to_string())? })
    }
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// There is no key.
    #[error(
        "no provider to ask: set {key}, or name a file that holds the key in {config}: runpod: {{apiKeyFile: /path}}; or regions of AWS: aws: {{regions: [{{name: us-east-1}}]}}",
        key = runpod::KEY_VARIABLE,
        config = config.display()
    )]
    NoKey {
        /// The file of settings.
        config: PathBuf,
    },
    /// A file that was named cannot be read.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// A provider's settings make no sense.
    #[error(transparent)]
    Provider(#[from] ProviderError),
}

/// Those whose key there is, and AWS where its regions are named. `variable` reads the environment.
///
/// # Errors
/// There is none, or a setting that cannot be followed.
pub fn providers(
    home: &Path,
    config: &Config,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Arc<dyn Provider>>, LiveError> {
    let set = |name| variable(name).filter(|value| !value.trim().is_empty());
    let mut providers: Vec<Arc<dyn Provider>> = Vec::new();
    if let Some(key) = runpod_key(home, config, set(runpod::KEY_VARIABLE))? {
        let RunPodAccount { data_centers, min_cuda_version, .. } =
            config.runpod.clone().unwrap_or_default();
        let settings = RunPodConfig {
            base: set(runpod::BASE_VARIABLE).unwrap_or_else(|| runpod::BASE.to_owned()),
            data_centers,
            min_cuda: min_cuda_version,
            agent: config.rented.as_ref().map(|rented| rented.agent.clone()),
            ..RunPodConfig::new("runpod", key)
        };
        providers.push(Arc::new(RunPod::new(settings)?));
    }
    if let Some(AwsAccount { profile, settings }) = &config.aws {
        let account = Account {
            name: AWS.to_owned(),
            settings: settings.clone(),
            former: regions_of(home)?.into_iter().collect(),
            agent: config.rented.as_ref().map(|rented| rented.agent.clone()),
            agent_arm: config.rented.as_ref().and_then(|rented| rented.agent_arm.clone()),
            price_adjustment_percent: 0,
        };
        let rights = Rights::Usual(profile.as_deref());
        providers.push(aws::provider(&account, &rights, &Clock::system())?);
    }
    if providers.is_empty() {
        return Err(LiveError::NoKey { config: home.join("config.yaml") });
    }
    Ok(providers)
}

/// Notes that a machine is about to be had there: once `config.yaml` does not name that region any
/// more, it is looked through all the same for what is left. Whoever calls holds the home's lock.
///
/// # Errors
/// The file cannot be used, or is damaged.
pub fn claimed_in(home: &Path, offer: &Offer) -> Result<(), HomeError> {
    let mut known = regions_of(home)?;
    match offer.provider == AWS && known.insert(offer.region.clone()) {
        true => write_json(&home.join(REGIONS), &known),
        false => Ok(()),
    }
}

/// Regions of AWS in which machines were ever had.
fn regions_of(home: &Path) -> Result<BTreeSet<String>, HomeError> {
    Ok(read_json(&home.join(REGIONS))?.unwrap_or_default())
}

fn runpod_key(
    home: &Path,
    config: &Config,
    set: Option<String>,
) -> Result<Option<ApiKey>, LiveError> {
    let file = config.runpod.as_ref().and_then(|account| account.api_key_file.as_ref());
    Ok(match (set, file) {
        (Some(key), _) => Some(ApiKey::new(key)),
        (None, Some(file)) => {
            let file = home.join(file);
            let key = std::fs::read_to_string(&file).map_err(HomeError::unusable(&file))?;
            Some(ApiKey::new(key))
        }
        (None, None) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_from_the_environment_or_from_a_file_of_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let none = |_: &str| None;
        let asked = |config: &Config, variable: &dyn Fn(&str) -> Option<String>| {
            providers(folder.path(), config, variable).map(|all| all.len())
        };
        let Err(error) = asked(&Config::default(), &none) else { panic!("there is no key") };
        assert!(error.to_string().contains("set RUNPOD_API_KEY"), "{error}");
        let key = |name: &str| (name == "RUNPOD_API_KEY").then(|| "canary".to_owned());
        assert!(matches!(asked(&Config::default(), &key), Ok(1)));

        let account = RunPodAccount { api_key_file: Some("key".into()), ..Default::default() };
        let config = Config { runpod: Some(account), ..Config::default() };
        let Err(error) = asked(&config, &none) else { panic!("there is no file") };
        assert!(error.to_string().contains("key"), "{error}");
        std::fs::write(folder.path().join("key"), "canary\n").expect("a file");
        assert!(matches!(asked(&config, &none), Ok(1)));
        assert!(!format!("{config:?}").contains("canary"));
    }

    #[test]
    fn a_region_is_known_once_a_machine_was_claimed_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let home = folder.path();
        let claimed = |provider: &str, region: &str| {
            let offer = crate::cluster::testing::offer("o", "0.1");
            let offer = Offer { provider: provider.into(), region: region.into(), ..offer };
            claimed_in(home, &offer).expect("written");
        };
        claimed("runpod", "EU-RO-1");
        assert_eq!(regions_of(home).expect("none"), BTreeSet::new());
        for region in ["us-east-2", "us-east-1", "us-east-2"] {
            claimed("aws", region);
        }
        let known: Vec<String> = regions_of(home).expect("two").into_iter().collect();
        assert_eq!(known, ["us-east-1", "us-east-2"]);
    }

    fn account(text: &str) -> Result<AwsAccount, String> {
        let config: Result<Config, _> = serde_saphyr::from_str(text);
        Ok(config.map_err(|error| error.to_string())?.aws.expect("an account"))
    }

    #[test]
    fn an_account_at_aws_is_what_a_compute_provider_would_take() {
        let aws = account("aws:\n  profile: buyer\n  regions: [{name: us-east-2}]\n  diskGb: 73\n");
        let aws = aws.expect("it can be read");
        assert_eq!(aws.profile.as_deref(), Some("buyer"));
        assert_eq!(
            (aws.settings.regions[0].name.as_str(), aws.settings.disk_gb),
            ("us-east-2", 73)
        );
        let written = serde_json::to_value(&aws).expect("plain data");
        assert_eq!(serde_json::from_value::<AwsAccount>(written).ok(), Some(aws));
        for (text, words) in [
            ("aws: {}", "aws.regions: required field is missing"),
            ("aws: {regions: [{name: us-east-1}], diskGB: 73}", "aws.diskGB: unknown field"),
            ("aws: {regions: [{name: us-east-1}], spot: false, onDemand: false}", "nothing could"),
            ("aws: {regions: [{name: us-east-1}], profile: 3}", "aws.profile: expected a name"),
        ] {
            let error = account(text).expect_err(text);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn aws_is_asked_where_its_regions_are_named_by_a_program_that_was_built_with_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let config: Config =
            serde_saphyr::from_str("aws: {regions: [{name: us-east-1}]}").expect("it can be read");
        match (providers(folder.path(), &config, |_| None), cfg!(feature = "aws")) {
            (Ok(all), true) => assert_eq!(all[0].name(), "aws"),
            (Err(error), false) => {
                assert!(error.to_string().contains("built without AWS"), "{error}");
            }
            (other, _) => panic!("{:?}", other.map(|all| all.len())),
        }
    }
}
