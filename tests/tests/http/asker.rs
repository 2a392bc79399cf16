//! Who asks, and what they may.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource};
use petaflop_operator::cluster::operate::Running;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::operator::Cluster;

/// Who asks.
pub(crate) struct Asker {
    pub(crate) http: reqwest::Client,
    pub(crate) token: Option<String>,
    pub(crate) base: String,
}

impl Asker {
    pub(crate) fn new(running: &Running, token: Option<&str>) -> Result<Self> {
        Ok(Self {
            http: reqwest::Client::builder().no_proxy().build()?,
            token: token.map(str::to_owned),
            base: format!("http://127.0.0.1:{}", running.http.port()),
        })
    }

    /// Status and text.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, String)> {
        let mut request = self.http.get(format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.text().await?))
    }

    pub(crate) async fn text(&self, path: &str) -> Result<String> {
        let (status, text) = self.get(path).await?;
        ensure!(status == 200, "{path}: {status}: {text}");
        Ok(text)
    }

    pub(crate) async fn json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(path).await?)?)
    }
}

/// Creates an object from its JSON.
pub(crate) async fn create<K>(api: Api<K>, object: Value) -> Result<K>
where
    K: Resource + Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    Ok(api.create(&PostParams::default(), &serde_json::from_value(object)?).await?)
}

/// The token of a new service account of the cluster's namespace.
pub(crate) async fn account(cluster: &Cluster, name: &str) -> Result<String> {
    let (client, namespace) = (cluster.client.clone(), cluster.namespace.as_str());
    let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
    create(accounts.clone(), json!({ "metadata": { "name": name } })).await?;
    let wish = serde_json::from_value(json!({ "spec": { "audiences": [] }, "metadata": {} }))?;
    let granted = accounts.create_token_request(name, &PostParams::default(), &wish).await?;
    Ok(granted.status.context("a token")?.token)
}

/// Lets a service account do what the chart's viewers may, in its own namespace.
pub(crate) async fn let_view(cluster: &Cluster, name: &str) -> Result<()> {
    let (client, namespace) = (&cluster.client, cluster.namespace.as_str());
    let rules: Vec<Value> = viewer_rules()?;
    let role = json!({ "metadata": { "name": name }, "rules": rules });
    create(Api::<Role>::namespaced(client.clone(), namespace), role).await?;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": name, "namespace": namespace }],
    });
    create(Api::<RoleBinding>::namespaced(client.clone(), namespace), binding).await?;
    Ok(())
}

/// Lets a service account do what one of the chart's cluster roles says, everywhere.
pub(crate) async fn let_everywhere(cluster: &Cluster, account: &str, role: &str) -> Result<String> {
    let name = format!("{}-{account}-{role}", cluster.namespace);
    let rules = roles()?.remove(role).context("the chart's role")?;
    let object = json!({ "metadata": { "name": name }, "rules": rules });
    create(Api::<ClusterRole>::all(cluster.client.clone()), object).await?;
    let binding = json!({
        "metadata": { "name": name },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
        "subjects": [{ "kind": "ServiceAccount", "name": account, "namespace": cluster.namespace }],
    });
    create(Api::<ClusterRoleBinding>::all(cluster.client.clone()), binding).await?;
    Ok(name)
}

/// Rules of the chart's cluster roles, as rendered, by what follows the release's name.
fn roles() -> Result<BTreeMap<String, Vec<Value>>> {
    let mut roles = BTreeMap::new();
    for document in include_str!("../../golden/charts/default.yaml").split("\n---\n") {
        let object: Value = serde_saphyr::from_str(document)?;
        if object["kind"] == "ClusterRole"
            && let Some(name) = object["metadata"]["name"].as_str()
        {
            let rules = object["rules"].as_array().cloned().unwrap_or_default();
            roles.insert(name.trim_start_matches("petaflop-").to_owned(), rules);
        }
    }
    Ok(roles)
}

pub(crate) fn viewer_rules() -> Result<Vec<Value>> {
    let viewers = roles()?.into_iter().filter(|(name, _)| name.ends_with("-viewer"));
    Ok(viewers.flat_map(|(_, rules)| rules).collect())
}

/// Removes a cluster role and its binding.
pub(crate) async fn remove(cluster: &Cluster, name: &str) -> Result<()> {
    let client = &cluster.client;
    let gone = DeleteParams::default();
    Api::<ClusterRoleBinding>::all(client.clone()).delete(name, &gone).await?;
    Api::<ClusterRole>::all(client.clone()).delete(name, &gone).await?;
    Ok(())
}
