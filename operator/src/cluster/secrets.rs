//! What of a job's environment stands in Secrets and ConfigMaps of its namespace: read before it is
//! placed, so that nothing is bought for a job that lacks one, and held in memory alone until its
//! agent takes it over the enrolled channel.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::core::NamespaceResourceScope;
use petaflop_agent_api::task;
use petaflop_arbiter::reason::Reason;
use petaflop_crds::shared::{Container, EnvFrom, EnvSource, KeyRef, OptionalRef, SecretRef};
use petaflop_crds::training_job::TrainingJobSpec;
use serde::de::DeserializeOwned;

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

/// Whether a job names any.
pub fn are_named(spec: &TrainingJobSpec) -> bool {
    let by_container = |container: &Container| {
        !container.env_from.is_empty() || container.env.iter().any(|v| v.value_from.is_some())
    };
    !spec.secrets.is_empty() || spec.container.as_ref().is_some_and(by_container)
}

/// Reads them. Returns what is missing.
pub async fn learn(
    operator: &Operator,
    (namespace, uid): (&str, &str),
    spec: &TrainingJobSpec,
) -> Result<Option<Waits>, Error> {
    let mut reader = Reader { operator, namespace, known: BTreeMap::new() };
    match environment(&mut reader, spec).await {
        Ok(env) => {
            operator.secrets.lock().insert(uid.to_owned(), env);
            Ok(None)
        }
        Err(Trouble::Missing(waits)) => Ok(Some(waits)),
        Err(Trouble::Unread(error)) => Err(error),
    }
}

/// Later ones over earlier ones, as in a Pod: `envFrom` in turn, then `env`; and `spec.secrets` last.
async fn environment(reader: &mut Reader<'_>, spec: &TrainingJobSpec) -> Result<Env, Trouble> {
    let mut env = Env::new();
    if let Some(Container { env_from, env: variables, .. }) = &spec.container {
        for (at, EnvFrom { prefix, secret_ref, config_map_ref }) in env_from.iter().enumerate() {
            let path = format!("spec.container.envFrom[{at}]");
            let prefix = prefix.as_deref().unwrap_or_default();
            let sources = [(Kind::Secret, secret_ref), (Kind::ConfigMap, config_map_ref)];
            for (kind, source) in sources {
                let Some(OptionalRef { name, optional }) = source else { continue };
                let Some(data) = reader.read(&path, kind, name, *optional).await? else { continue };
                for (key, value) in data {
                    let value = text(&path, kind, name, key, value)?;
                    env.insert(format!("{prefix}{key}"), value);
                }
            }
        }
        for variable in variables {
            // What is given outright counts, whatever else has its name.
            env.remove(&variable.name);
            let Some(EnvSource { secret_key_ref, config_map_key_ref }) = &variable.value_from
            else {
                continue;
            };
            let path = format!("spec.container.env: {}", variable.name);
            let sources = [(Kind::Secret, secret_key_ref), (Kind::ConfigMap, config_map_key_ref)];
            for (kind, source) in sources {
                let Some(KeyRef { name, key, optional }) = source else { continue };
                let data = reader.read(&path, kind, name, *optional).await?;
                match data.and_then(|data| data.get(key)) {
                    Some(value) => {
                        let value = text(&path, kind, name, key, value)?;
                        env.insert(variable.name.clone(), value);
                    }
                    None if *optional => {}
                    None => {
                        let message = format!("{path}: {} {name} has no key {key}", kind.word());
                        return Err(kind.missing(message));
                    }
                }
            }
        }
    }
    for SecretRef { name, mount_path, env: as_env } in &spec.secrets {
        if mount_path.is_some() || !as_env {
            let message = format!("spec.secrets: {name} as files is not built yet: use env: true");
            return Err(Trouble::Missing(Waits { reason: Reason::InvalidSpec, message }));
        }
        let path = "spec.secrets";
        let data = reader.read(path, Kind::Secret, name, false).await?;
        for (key, value) in data.into_iter().flatten() {
            env.insert(key.clone(), text(path, Kind::Secret, name, key, value)?);
        }
    }
    Ok(env)
}

/// What values stand in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Secret,
    ConfigMap,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Secret => "Secret",
            Self::ConfigMap => "ConfigMap",
        }
    }

    fn missing(self, message: String) -> Trouble {
        let reason = match self {
            Self::Secret => Reason::CredentialsMissing,
            Self::ConfigMap => Reason::InvalidSpec,
        };
        Trouble::Missing(Waits { reason, message })
    }
}

/// Why an environment is not known.
enum Trouble {
    /// Somebody has to change something.
    Missing(Waits),
    /// The API server does not answer.
    Unread(Error),
}

/// An object's keys and values.
type Data = BTreeMap<String, Vec<u8>>;

/// Reads each object once.
struct Reader<'a> {
    operator: &'a Operator,
    namespace: &'a str,
    known: BTreeMap<(Kind, String), Option<Data>>,
}

impl Reader<'_> {
    /// An object's data. `None`: it is not there, and need not be.
    async fn read(
        &mut self,
        path: &str,
        kind: Kind,
        name: &str,
        optional: bool,
    ) -> Result<Option<&Data>, Trouble> {
        let id = (kind, name.to_owned());
        if !self.known.contains_key(&id) {
            let data = match kind {
                Kind::Secret => self.get::<Secret>(path, kind, name).await?.map(of_secret),
                Kind::ConfigMap => {
                    self.get::<ConfigMap>(path, kind, name).await?.map(of_config_map)
                }
            };
            self.known.insert(id.clone(), data);
        }
        match self.known.get(&id).and_then(Option::as_ref) {
            None if !optional => {
                let (word, namespace) = (kind.word(), self.namespace);
                let what = format!("there is no {word} {name} in namespace {namespace}");
                Err(kind.missing(format!("{path}: {what}; create it")))
            }
            data => Ok(data),
        }
    }

    async fn get<K>(&self, path: &str, kind: Kind, name: &str) -> Result<Option<K>, Trouble>
    where
        K: kube::Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + Debug
            + DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.operator.client.clone(), self.namespace);
        match api.get_opt(name).await {
            Ok(found) => Ok(found),
            Err(error) if is_forbidden(&error) => {
                let message = self.not_allowed(path, kind, name);
                Err(Trouble::Missing(Waits { reason: Reason::CredentialsMissing, message }))
            }
            Err(error) => Err(Trouble::Unread(Error::api("reading what a job names")(error))),
        }
    }

    fn not_allowed(&self, path: &str, kind: Kind, name: &str) -> String {
        let (settings, namespace) = (&self.operator.settings, self.namespace);
        let (role, account) = (&settings.secret_reader, &settings.service_account);
        format!(
            "{path}: the operator may not read {} {name}; to let it: kubectl create rolebinding {role} -n {namespace} --clusterrole={role} --serviceaccount={}:{account}",
            kind.word(),
            settings.namespace
        )
    }
}

fn of_secret(secret: Secret) -> Data {
    let data = secret.data.unwrap_or_default();
    data.into_iter().map(|(key, value)| (key, value.0)).collect()
}

fn of_config_map(map: ConfigMap) -> Data {
    let data = map.data.unwrap_or_default();
    data.into_iter().map(|(key, value)| (key, value.into_bytes())).collect()
}

/// A value as a variable's, which is text.
fn text(
    path: &str,
    kind: Kind,
    name: &str,
    key: &str,
    value: &[u8],
) -> Result<task::Secret, Trouble> {
    match std::str::from_utf8(value) {
        Ok(text) => Ok(task::Secret::new(text.to_owned())),
        Err(_) => {
            let word = kind.word();
            Err(kind.missing(format!("{path}: key {key} of {word} {name} is not UTF-8 text")))
        }
    }
}
