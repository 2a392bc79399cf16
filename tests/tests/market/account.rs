//! An account at a cloud in a box as a cluster has it: a ComputeProvider, and the Secret that opens it.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use petaflop_agent_api::task;
use petaflop_crds::ComputeProvider;
use petaflop_harness::eventually;
use petaflop_operator::cluster::settings::Settings;
use serde_json::{Value, json};

use crate::market::Market;
use crate::operator::Cluster;

/// Of one test's namespace, which alone may buy with it. The ComputeProvider goes with it.
pub(crate) struct Account {
    /// The ComputeProvider's name.
    pub(crate) name: String,
    secret: &'static str,
    client: Client,
    namespace: String,
}

impl Account {
    /// One of this kind, `aws` or `runpod`, whose Secret of the same name is still to come. `provider`
    /// is what the ComputeProvider says of the kind.
    pub(crate) async fn open(
        cluster: &Cluster,
        kind: &'static str,
        provider: &Value,
    ) -> Result<Self> {
        Self::limited(cluster, kind, provider, json!({})).await
    }

    /// The same, with hard limits.
    pub(crate) async fn limited(
        cluster: &Cluster,
        kind: &'static str,
        provider: &Value,
        limits: Value,
    ) -> Result<Self> {
        let (client, namespace) = (cluster.client.clone(), cluster.namespace.clone());
        let name = format!("{kind}-{namespace}");
        let object = json!({
            "apiVersion": "petaflop.dev/v1alpha1", "kind": "ComputeProvider",
            "metadata": { "name": name, "labels": { "test": namespace } },
            "spec": {
                (kind): provider,
                "credentialsSecretRef": { "name": kind },
                "allowedNamespaces": [namespace],
                "limits": limits,
            },
        });
        let account = Self { name, secret: kind, client, namespace };
        let object = serde_json::from_value(object)?;
        account.providers().create(&PostParams::default(), &object).await?;
        Ok(account)
    }

    /// From now on its Secret holds these keys.
    pub(crate) async fn keys(&self, keys: Value) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": { "name": self.secret },
            "stringData": keys,
        });
        let by = PatchParams::apply("test");
        secrets.patch(self.secret, &by, &Patch::Apply(&secret)).await?;
        Ok(())
    }

    /// From now on there is no such Secret.
    pub(crate) async fn no_keys(&self) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        secrets.delete(self.secret, &DeleteParams::default()).await?;
        Ok(())
    }

    /// The ComputeProvider.
    pub(crate) async fn object(&self) -> Result<ComputeProvider> {
        self.providers().get(&self.name).await.context("reading the ComputeProvider")
    }

    /// Waits until its condition is so.
    pub(crate) async fn until(&self, type_: &str, status: &str, reason: &str) -> Result<Condition> {
        let what = format!("{type_} is {status}, {reason}");
        let found = eventually(&what, Duration::from_secs(60), || async {
            let object = self.object().await.map_err(|error| error.to_string())?;
            let mut conditions = object.status.unwrap_or_default().conditions.into_iter();
            match conditions.find(|c| c.type_ == type_) {
                Some(found) if found.status == status && found.reason == reason => Ok(found),
                other => Err(format!("{other:?}")),
            }
        });
        Ok(found.await?)
    }

    fn providers(&self) -> Api<ComputeProvider> {
        Api::all(self.client.clone())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let (api, name) = (self.providers(), self.name.clone());
        tokio::spawn(async move {
            let _ = api.delete(&name, &DeleteParams::default()).await;
        });
    }
}

/// `runpod` of a ComputeProvider that asks at this address, for the few machines that tests need.
pub(crate) fn runpod(url: &str) -> Value {
    json!({ "apiBaseUrl": url, "acceleratorCounts": [1], "vcpuCounts": [2] })
}

/// An operator with the market's store.
pub(crate) fn with_bucket(market: &Market, uri: &str) -> impl FnOnce(&mut Settings) + use<> {
    let (uri, credentials) = (uri.to_owned(), market.store.credentials());
    move |settings| {
        settings.store.uri = uri;
        let secrets = credentials.into_iter();
        settings.store.credentials =
            secrets.map(|(name, value)| (name.to_owned(), task::Secret::new(value))).collect();
    }
}
