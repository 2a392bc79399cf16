//! All that people can look at, and what must not be in it.

use std::io::Write;
use std::sync::{Arc, Mutex, Once};

use anyhow::{Context, Result, ensure};
use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event};
use kube::api::{DynamicObject, ListParams};
use kube::{Api, ResourceExt};
use petaflop_crds::{ComputeClaim, ComputeProvider, SpendBudget, TrainingJob};
use petaflop_operator::cluster::operate::Running;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::operator::Cluster;

/// Stands for every secret that passes through the operator.
pub(crate) const CANARY: &str = "canary-5f1d9c2e7b";

/// Everything that this process logs, from now on.
pub(crate) fn captured() -> Arc<Mutex<Vec<u8>>> {
    static BUFFER: Mutex<Option<Arc<Mutex<Vec<u8>>>>> = Mutex::new(None);
    static ONCE: Once = Once::new();
    let buffer = BUFFER.lock().expect("no panic").get_or_insert_with(Arc::default).clone();
    let writer = buffer.clone();
    ONCE.call_once(|| {
        tracing_subscriber::fmt()
            .with_env_filter("debug")
            .with_ansi(false)
            .with_writer(Mutex::new(Captured(writer)))
            .init();
    });
    buffer
}

struct Captured(Arc<Mutex<Vec<u8>>>);

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Every object of a kind, as text.
async fn dump<K>(api: Api<K>) -> Result<String>
where
    K: Clone + std::fmt::Debug + DeserializeOwned + serde::Serialize,
{
    Ok(serde_json::to_string(&api.list(&ListParams::default()).await?.items)?)
}

/// All that people may look at in the cluster's namespace. Not Secrets: those are where secrets are.
pub(crate) async fn dump_all(cluster: &Cluster) -> Result<Vec<(&'static str, String)>> {
    let (client, namespace) = (&cluster.client, cluster.namespace.as_str());
    let events = kube::discovery::ApiResource::from_gvk(&kube::core::GroupVersionKind::gvk(
        "events.k8s.io",
        "v1",
        "Event",
    ));
    let events: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &events);
    Ok(vec![
        ("jobs", dump(Api::<TrainingJob>::namespaced(client.clone(), namespace)).await?),
        ("claims", dump(Api::<ComputeClaim>::namespaced(client.clone(), namespace)).await?),
        ("budgets", dump(Api::<SpendBudget>::namespaced(client.clone(), namespace)).await?),
        ("providers", dump(Api::<ComputeProvider>::all(client.clone())).await?),
        ("config maps", dump(Api::<ConfigMap>::namespaced(client.clone(), namespace)).await?),
        ("leases", dump(Api::<Lease>::namespaced(client.clone(), namespace)).await?),
        ("events", dump(Api::<Event>::namespaced(client.clone(), namespace)).await?),
        ("events.k8s.io", dump(events).await?),
    ])
}

/// What must be seen nowhere while a job's machine runs, as it would be written: what opens the store,
/// the machine's one-time token, burned by now, and whatever the operator's keys come from. The token is
/// in what the machine was started with, and nothing else of these is.
pub(crate) async fn secrets(
    cluster: &Cluster,
    running: &Running,
) -> Result<Vec<(&'static str, String)>> {
    let claims = cluster.claims().await?;
    let claim = claims.iter().find(|claim| claim.spec.owner.name == "job").context("a claim")?;
    let uid = claim.uid().context("a uid")?;
    let started = cluster.cloud.environments_of(&uid);
    let mut environment = started.first().context("a machine")?.clone();
    let token = environment.remove("PETAFLOP_TOKEN").context("a token")?;
    ensure!(token.len() >= 32, "that is no token: {token:?}");
    let pinned = claim.status.as_ref().and_then(|status| status.agent.as_ref());
    ensure!(pinned.is_some(), "no agent was let in: {claim:?}");
    let root = &running.operator.installation.root;
    let mut secrets = vec![
        ("what opens the store", CANARY.to_owned()),
        ("the machine's one-time token", token),
        ("the key of a replica", root.replica_key(&uid).expose().to_owned()),
    ];
    let of_root = root.to_bytes();
    let hex: String = of_root.iter().map(|byte| format!("{byte:02x}")).collect();
    secrets.push(("the operator's root", hex));
    secrets.push(("the operator's root", json!(ByteString(of_root.to_vec())).to_string()));
    let told = format!("{environment:?}");
    for (whose, secret) in &secrets {
        ensure!(!told.contains(secret.trim_matches('"')), "the machine was started with {whose}");
    }
    let bare =
        |(whose, secret): (&'static str, String)| (whose, secret.trim_matches('"').to_owned());
    Ok(secrets.into_iter().map(bare).collect())
}
