//! A namespace for one test.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace as Object, ServiceAccount};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::access::Access;
use crate::error::{Error, Result};
use crate::eventually;

/// A fresh namespace; deleted, as far as that goes, when this is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    access: Access,
}

impl Namespace {
    pub(crate) async fn create(access: &Access, prefix: &str, populated: bool) -> Result<Self> {
        // Named here and not by generateName, so that the audit log knows it.
        let suffix = RandomState::new().hash_one(prefix) & 0xff_ffff;
        let name = format!("{prefix}-{suffix:06x}");
        let client = access.client().await?;
        let what = format!("namespace {name}");
        let object = Object {
            metadata: kube::api::ObjectMeta { name: Some(name.clone()), ..Default::default() },
            ..Default::default()
        };
        let created = Api::<Object>::all(client.clone())
            .create(&PostParams::default(), &object)
            .await
            .map_err(Error::api(&what))?;
        let namespace = Self { name: created.name_any(), access: access.clone() };
        if populated {
            let accounts: Api<ServiceAccount> = Api::namespaced(client, &name);
            eventually(
                &format!("{what}: its default ServiceAccount"),
                Duration::from_secs(30),
                || async { accounts.get("default").await.map(drop).map_err(|e| e.to_string()) },
            )
            .await?;
        }
        Ok(namespace)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl AsRef<str> for Namespace {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // Where this is dropped there may be a runtime or none, and the test's
        // server may be dead: a thread of its own, and not for long.
        let (name, access) = (self.name.clone(), self.access.clone());
        let delete = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let Ok(runtime) = runtime else { return };
            let deleted = async { delete(access.client().await.ok()?, &name).await.ok() };
            runtime.block_on(async {
                let _ = tokio::time::timeout(Duration::from_secs(5), deleted).await;
            });
        };
        let _ = std::thread::spawn(delete).join();
    }
}

/// Deletes a namespace. Whoever held what is in it by a finalizer ended with its test; left alone, the
/// namespace controller would ask for it for as long as the servers live, some thirty requests a time.
async fn delete(client: Client, name: &str) -> kube::Result<()> {
    let namespaces: Api<Object> = Api::all(client.clone());
    namespaces.delete(name, &DeleteParams::default()).await?;
    let kinds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for kind in kinds.list(&ListParams::default()).await? {
        if kind.spec.scope != "Namespaced" {
            continue;
        }
        for version in kind.spec.versions.iter().filter(|version| version.storage) {
            let (group, names) = (&kind.spec.group, &kind.spec.names);
            let gvk = GroupVersionKind::gvk(group, &version.name, &names.kind);
            let resource = ApiResource::from_gvk_with_plural(&gvk, &names.plural);
            let objects: Api<DynamicObject> = Api::namespaced_with(client.clone(), name, &resource);
            let held = objects.list_metadata(&ListParams::default()).await?.items.into_iter();
            for object in held.filter(|object| !object.finalizers().is_empty()) {
                let let_go = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
                // It may have gone meanwhile.
                let _ = objects.patch(&object.name_any(), &PatchParams::default(), &let_go).await;
            }
        }
    }
    Ok(())
}
