//! What of a job's or service's environment, files and inputs stands in Secrets and ConfigMaps of its namespace: read
//! before it is placed, so that nothing is bought for one that lacks some, and held in memory alone until its
//! agent takes it over the enrolled channel.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::core::NamespaceResourceScope;
use petaflop_agent_api::task::{self, Folder, TaskFile};
use petaflop_arbiter::reason::Reason;
use petaflop_crds::inference_service::InferenceServiceSpec;
use petaflop_crds::shared::{
    Container, EnvFrom, EnvSource, KeyRef, NameRef, OptionalRef, SecretRef,
};
use petaflop_crds::training_job::{JobInput, TrainingJobSpec};
use serde::de::DeserializeOwned;

use crate::cluster::Operator;
use crate::cluster::error::{Error, is_forbidden};
use crate::cluster::training_job::Waits;
use crate::store_at::HANDED_ON;

/// What an environment is extended by.
pub type Env = BTreeMap<String, task::Secret>;

/// What a job or service was found to name.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// What its environment is extended by.
    pub env: Env,
    /// Secrets that become files.
    pub folders: Vec<Folder>,
    /// ConfigMaps that are inputs, by the input's name.
    pub inputs: BTreeMap<String, Vec<TaskFile>>,
    /// What opens the buckets of inputs, by the input's name.
    pub keys: BTreeMap<String, Env>,
    /// What opens the store that is to have the result.
    pub output: Env,
}

/// What they were found to name, by uid of the job or service. Clones are the same.
#[derive(Clone, Default)]
pub struct Secrets(Arc<Mutex<HashMap<String, Named>>>);

impl Secrets {
    /// Those of one, if they were read.
    pub fn of(&self, uid: &str) -> Option<Named> {
        self.lock().get(uid).cloned()
    }

    /// It is over or gone.
    pub fn forget(&self, uid: &str) {
        self.lock().remove(uid);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Named>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a job or service names them.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    container: Option<&'a Container>,
    secrets: &'a [SecretRef],
    inputs: &'a [JobInput],
    output: Option<&'a NameRef>,
}

impl<'a> From<&'a TrainingJobSpec> for Names<'a> {
    fn from(spec: &'a TrainingJobSpec) -> Self {
        Self {
            container: spec.container.as_ref(),
            secrets: &spec.secrets,
            inputs: &spec.inputs,
            output: spec.output.secret_ref.as_ref(),
        }
    }
}

impl<'a> From<&'a InferenceServiceSpec> for Names<'a> {
    fn from(spec: &'a InferenceServiceSpec) -> Self {
        let container = spec.container.as_ref();
        Self { container, secrets: &spec.secrets, inputs: &[], output: None }
    }
}

impl<'a> Names<'a> {
    /// Whether there are any.
    pub fn any(self) -> bool {
        let by_container = |container: &Container| {
            !container.env_from.is_empty() || container.env.iter().any(|v| v.value_from.is_some())
        };
        !self.secrets.is_empty()
            || self.container.is_some_and(by_container)
            || self.config_maps().next().is_some()
            || self.output.is_some()
            || self.inputs.iter().any(|input| input.secret_ref.is_some())
    }

    /// Inputs of a container that are ConfigMaps: the input's name, and the ConfigMap's.
    fn config_maps(self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let inputs = self.inputs.iter().filter(move |_| self.container.is_some());
        inputs.filter_map(|input| {
            Some((input.name.as_str(), input.uri.strip_prefix("configmap://")?))
        })
    }
}

/// Reads them. Returns what is missing.
pub async fn learn(
    operator: &Operator,
    (namespace, uid): (&str, &str),
    names: Names<'_>,
) -> Result<Option<Waits>, Error> {
    let mut reader = Reader { operator, namespace, known: BTreeMap::new() };
    match named(&mut reader, names).await {
        Ok(named) => {
            operator.secrets.lock().insert(uid.to_owned(), named);
            Ok(None)
        }
        Err(Trouble::Missing(waits)) => Ok(Some(waits)),
        Err(Trouble::Unread(error)) => Err(error),
    }
}

async fn named(reader: &mut Reader<'_>, names: Names<'_>) -> Result<Named, Trouble> {
    let mut named = Named { env: environment(reader, names).await?, ..Named::default() };
    for SecretRef { name, mount_path, env: _ } in names.secrets {
        let Some(path) = mount_path else { continue };
        if named.folders.iter().any(|folder| folder.path == *path) {
            let message = format!("spec.secrets: two have the mountPath {path}: give each its own");
            return Err(Trouble::Missing(Waits { reason: Reason::InvalidSpec, message }));
        }
        let data = reader.read("spec.secrets", Kind::Secret, name, false).await?;
        named.folders.push(Folder { path: path.clone(), files: files(data) });
    }
    for (input, map) in names.config_maps() {
        let path = format!("spec.inputs: {input}");
        let data = reader.read(&path, Kind::ConfigMap, map, false).await?;
        named.inputs.insert(input.to_owned(), files(data));
    }
    for input in names.inputs {
        let Some(NameRef { name }) = &input.secret_ref else { continue };
        let path = format!("spec.inputs: {}", input.name);
        named.keys.insert(input.name.clone(), keys(reader, &path, name).await?);
    }
    if let Some(NameRef { name }) = names.output {
        named.output = keys(reader, "spec.output.secretRef", name).await?;
    }
    Ok(named)
}

/// What of a Secret opens a bucket.
async fn keys(reader: &mut Reader<'_>, path: &str, name: &str) -> Result<Env, Trouble> {
    let data = reader.read(path, Kind::Secret, name, false).await?;
    let mut keys = Env::new();
    for (key, value) in data.into_iter().flatten() {
        if HANDED_ON.contains(&key.as_str()) {
            keys.insert(key.clone(), text(path, Kind::Secret, name, key, value)?);
        }
    }
    match ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
        .iter()
        .find(|key| !keys.contains_key(**key))
    {
        Some(lacks) => {
            Err(Kind::Secret.missing(format!("{path}: Secret {name} has no key {lacks}")))
        }
        None => Ok(keys),
    }
}

fn files(data: Option<&Data>) -> Vec<TaskFile> {
    let file =
        |(name, bytes): (&String, &Vec<u8>)| TaskFile { path: name.clone(), bytes: bytes.clone() };
    data.into_iter().flatten().map(file).collect()
}

/// Later ones over earlier ones, as in a Pod: `envFrom` in turn, then `env`; and `spec.secrets` last.
async fn environment(reader: &mut Reader<'_>, names: Names<'_>) -> Result<Env, Trouble> {
    let mut env = Env::new();
    if let Some(Container { env_from, env: variables, .. }) = names.container {
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
    for SecretRef { name, mount_path: _, env: _ } in
        names.secrets.iter().filter(|secret| secret.mount_path.is_none())
    {
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
    let text = map.data.unwrap_or_default().into_iter();
    let bytes = map.binary_data.unwrap_or_default().into_iter();
    text.map(|(key, value)| (key, value.into_bytes()))
        .chain(bytes.map(|(key, value)| (key, value.0)))
        .collect()
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
