//! A provider whose credentials are in a Secret of the operator's namespace, or that needs none but
//! the operator's own role. The Secret is read with
//! each quote, and whenever its credentials were refused: a new key counts within half a minute, and
//! nothing is restarted for it. What is there can be ended with the last key that was read, even
//! where its Secret is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use petaflop_arbiter::claim::{FrozenRequest, Identity, Refusal};
use petaflop_arbiter::money::Usd;
use petaflop_arbiter::offer::Offer;
use petaflop_providers::provider::Capabilities;
use petaflop_providers::{
    EnrolmentToken, Instance, InstanceId, LaunchError, Listing, Order, Provider, ProviderError,
    Used,
};

use crate::cluster::error::{is_forbidden, words};

/// What a Secret holds, by key.
type Data = BTreeMap<String, ByteString>;

/// Makes a provider of what stands under the keys, in their order: the needed ones, then the optional
/// ones, which may be empty; of nothing where there is no Secret.
type Build = Box<dyn Fn(&[&str]) -> Result<Arc<dyn Provider>, ProviderError> + Send + Sync>;

/// Where credentials are.
pub(super) struct Source {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) secret: String,
    /// The keys that it must hold.
    pub(super) keys: &'static [&'static str],
    /// Those that it may hold.
    pub(super) optional: &'static [&'static str],
}

/// A provider with credentials from a Secret.
pub(super) struct Keyed {
    pub(super) name: String,
    pub(super) capabilities: Capabilities,
    /// `None`: the operator's own role.
    pub(super) source: Option<Source>,
    pub(super) build: Build,
    /// Why nothing can be had from it, whatever its credentials; what is there can be ended all the
    /// same.
    pub(super) lacks: Option<ProviderError>,
    pub(super) now: Mutex<Option<Now>>,
}

/// The provider as of the Secret that was read last.
pub(super) struct Now {
    data: Data,
    provider: Arc<dyn Provider>,
}

impl Keyed {
    fn now(&self) -> MutexGuard<'_, Option<Now>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The provider of the Secret as it is now.
    async fn read(&self) -> Result<Arc<dyn Provider>, ProviderError> {
        let data = self.data().await?;
        let mut now = self.now();
        if let Some(known) = now.as_ref().filter(|known| known.data == data) {
            return Ok(known.provider.clone());
        }
        let provider = self.made(&data)?;
        *now = Some(Now { data, provider: provider.clone() });
        Ok(provider)
    }

    /// The provider of the Secret that was read last; of the one there is, before the first.
    async fn known(&self) -> Result<Arc<dyn Provider>, ProviderError> {
        let known = self.now().as_ref().map(|now| now.provider.clone());
        match known {
            Some(provider) => Ok(provider),
            None => self.read().await,
        }
    }

    async fn data(&self) -> Result<Data, ProviderError> {
        let Some(source) = &self.source else { return Ok(Data::new()) };
        let Source { client, namespace, secret, keys, optional: _ } = source;
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let none = |detail| ProviderError::NoCredentials { provider: self.name.clone(), detail };
        match api.get_opt(secret).await {
            Ok(Some(found)) => Ok(found.data.unwrap_or_default()),
            Ok(None) => Err(none(format!(
                "there is no Secret {secret} in namespace {namespace}; create it with the key {}",
                keys.join(" and ")
            ))),
            Err(error) if is_forbidden(&error) => Err(none(format!(
                "the operator may not read Secret {secret} in namespace {namespace}; name it in \
                 providerSecrets of the chart"
            ))),
            Err(error) => Err(ProviderError::Unreachable {
                provider: self.name.clone(),
                detail: format!("reading Secret {secret}: {}", words(&error)),
            }),
        }
    }

    fn made(&self, data: &Data) -> Result<Arc<dyn Provider>, ProviderError> {
        let Some(source) = &self.source else { return (self.build)(&[]) };
        let Source { client: _, namespace, secret, keys, optional } = source;
        let value = |key: &&'static str| {
            let text = data.get(*key).and_then(|value| std::str::from_utf8(&value.0).ok());
            text.filter(|text| !text.trim().is_empty()).ok_or_else(|| {
                let detail = format!(
                    "Secret {secret} in namespace {namespace} has no text under the key {key}; add it"
                );
                ProviderError::NoCredentials { provider: self.name.clone(), detail }
            })
        };
        let mut values = keys.iter().map(value).collect::<Result<Vec<_>, _>>()?;
        for key in *optional {
            let there = data.get(*key).is_some_and(|value| !value.0.trim_ascii().is_empty());
            values.push(if there { value(key)? } else { "" });
        }
        (self.build)(&values)
    }

    /// Passes an answer on. Credentials that were refused are read again at the next call.
    fn heard<T>(&self, answer: Result<T, ProviderError>) -> Result<T, ProviderError> {
        if let Err(ProviderError::Unauthorized { .. }) = &answer {
            *self.now() = None;
        }
        answer
    }
}

/// Nothing was asked for, as there is nothing to ask with.
fn unasked(error: &ProviderError) -> LaunchError {
    let kind = match error {
        ProviderError::Unreachable { .. } => Refusal::Transient,
        _ => Refusal::Unauthorized,
    };
    LaunchError::Refused { kind, detail: error.to_string() }
}

#[async_trait]
impl Provider for Keyed {
    fn name(&self) -> &str {
        &self.name
    }

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    async fn quote(&self) -> Result<Vec<Offer>, ProviderError> {
        let provider = self.read().await?;
        if let Some(lacks) = &self.lacks {
            return Err(lacks.clone());
        }
        self.heard(provider.quote().await)
    }

    async fn prepare(&self, order: Order<'_>) -> Result<FrozenRequest, LaunchError> {
        self.known().await.map_err(|error| unasked(&error))?.prepare(order).await
    }

    async fn launch(
        &self,
        request: &FrozenRequest,
        token: &EnrolmentToken,
    ) -> Result<InstanceId, LaunchError> {
        let provider = self.known().await.map_err(|error| unasked(&error))?;
        let answer = provider.launch(request, token).await;
        if let Err(LaunchError::Refused { kind: Refusal::Unauthorized, .. }) = &answer {
            *self.now() = None;
        }
        answer
    }

    async fn find(&self, identity: &Identity) -> Result<Listing, ProviderError> {
        self.heard(self.known().await?.find(identity).await)
    }

    async fn list(&self, installation: &str) -> Result<Listing, ProviderError> {
        self.heard(self.known().await?.list(installation).await)
    }

    async fn get(&self, id: &InstanceId) -> Result<Option<Instance>, ProviderError> {
        self.heard(self.known().await?.get(id).await)
    }

    async fn terminate(&self, id: &InstanceId) -> Result<(), ProviderError> {
        self.heard(self.known().await?.terminate(id).await)
    }

    async fn billed(&self, used: Used<'_>) -> Result<Usd, ProviderError> {
        self.heard(self.known().await?.billed(used).await)
    }
}
