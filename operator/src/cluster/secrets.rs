//! Secrets that a job names: read before it is placed, so that nothing is bought for a job that
//! lacks one, and held in memory alone until its agent takes them over the enrolled channel.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use petaflop_agent_api::task;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::shared::SecretRef;

use crate::cluster::Operator;
use crate::cluster::error::{Error, is_forbidden};
use crate::cluster::training_job::Waits;

/// What an environment is extended by.
pub type Env = BTreeMap<String, task::Secret>;

/// What jobs were found to name, by uid of the job. Clones are the same.
#[derive(Clone, Default)]
pub struct Secrets(Arc<Mutex<HashMap<String, Env>>>);

impl Secrets {
    /// Those of a job, if they were read.
    pub fn of(&self, uid: &str) -> Option<Env> {
        self.lock().get(uid).cloned()
    }

    /// A job is over or gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Env>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads them. Returns what is missing.
pub async fn learn(
    operator: &Operator,
    (namespace, uid): (&str, &str),
    wanted: &[SecretRef],
) -> Result<Option<Waits>, Error> {
    let api: Api<Secret> = Api::namespaced(operator.client.clone(), namespace);
    let mut env = Env::new();
    for SecretRef { name, mount_path, env: as_env } in wanted {
        if mount_path.is_some() || !as_env {
            let message = format!("spec.secrets: {name} as files is not built yet: use env: true");
            return Ok(Some(Waits { reason: Reason::InvalidSpec, message }));
        }
        let missing = |message| Ok(Some(Waits { reason: Reason::CredentialsMissing, message }));
        match api.get_opt(name).await {
            Ok(Some(secret)) => match texts(secret) {
                Ok(texts) => env.extend(texts),
                Err(key) => {
                    return missing(format!("spec.secrets: key {key} of {name} is not UTF-8 text"));
                }
            },
            Ok(None) => {
                return missing(format!(
                    "spec.secrets: there is no Secret {name} in namespace {namespace}; create it"
                ));
            }
            Err(error) if is_forbidden(&error) => {
                return missing(not_allowed(operator, namespace, name));
            }
            Err(error) => return Err(Error::api("reading a job's Secret")(error)),
        }
    }
    operator.secrets.lock().insert(uid.to_owned(), env);
    Ok(None)
}

/// Each key becomes a variable; `Err`: a key that cannot.
fn texts(secret: Secret) -> Result<Env, String> {
    let data = secret.data.unwrap_or_default();
    data.into_iter()
        .map(|(key, value)| match String::from_utf8(value.0) {
            Ok(text) => Ok((key, task::Secret::new(text))),
            Err(_) => Err(key),
        })
        .collect()
}

fn not_allowed(operator: &Operator, namespace: &str, name: &str) -> String {
    let settings = &operator.settings;
    let (role, account) = (&settings.secret_reader, &settings.service_account);
    format!(
        "spec.secrets: the operator may not read Secret {name}; to let it: kubectl create rolebinding {role} -n {namespace} --clusterrole={role} --serviceaccount={}:{account}",
        settings.namespace
    )
}
