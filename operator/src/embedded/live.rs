//! Providers elsewhere, outside of a cluster. They are asked for their prices by `petaflop offers --live`;
//! machines are bought from them where `config.yaml` says what those need: [`Rented`].
//!
//! Keys come from the environment, or from a file of their own that `config.yaml` names: never from
//! the command line, and never out of `config.yaml` itself.

use std::path::{Path, PathBuf};

use petaflop_providers::runpod::{self, ApiKey, RunPod, RunPodConfig};
use petaflop_providers::{Provider, ProviderError};
use serde::{Deserialize, Serialize};

use crate::embedded::config::Config;
#[cfg(doc)]
use crate::embedded::config::Rented;
use crate::embedded::home::HomeError;

/// An account at RunPod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct RunPodAccount {
    /// File that holds the API key and nothing else, where `RUNPOD_API_KEY` does not.
    pub api_key_file: Option<PathBuf>,
    /// Data centres that count; none named: all, and the Community cloud.
    pub data_centers: Vec<String>,
}

/// Why nobody can be asked.
#[derive(Debug, thiserror::Error)]
pub enum LiveError {
    /// There is no key.
    #[error(
        "no provider to ask: set {key}, or name a file that holds the key in {config}: runpod: {{apiKeyFile: /path}}",
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

/// Those whose key there is. `variable` reads the environment.
///
/// # Errors
/// There is none, or a setting that cannot be followed.
pub fn providers(
    home: &Path,
    config: &Config,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Vec<Box<dyn Provider>>, LiveError> {
    let set = |name| variable(name).filter(|value| !value.trim().is_empty());
    let account = config.runpod.clone().unwrap_or_default();
    let key = match (set(runpod::KEY_VARIABLE), &account.api_key_file) {
        (Some(key), _) => key,
        (None, Some(file)) => {
            let file = home.join(file);
            std::fs::read_to_string(&file).map_err(HomeError::unusable(&file))?
        }
        (None, None) => return Err(LiveError::NoKey { config: home.join("config.yaml") }),
    };
    let settings = RunPodConfig {
        base: set(runpod::BASE_VARIABLE).unwrap_or_else(|| runpod::BASE.to_owned()),
        data_centers: account.data_centers,
        agent: config.rented.as_ref().map(|rented| rented.agent.clone()),
        ..RunPodConfig::new("runpod", ApiKey::new(key))
    };
    Ok(vec![Box::new(RunPod::new(settings)?)])
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
}
