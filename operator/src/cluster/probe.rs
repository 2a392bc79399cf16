//! Looking at the cluster before anything begins: are our kinds served, may they be read. What is
//! missing is said once and in words, and not by watches that fail for ever. A server that does
//! not answer yet is waited for, for a while.

use std::time::Duration;

use http::Request;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ListParams, PartialObjectMeta};
use kube::{Api, Client, Resource};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::{ComputeClaim, ComputeProvider, InferenceService, SpendBudget, TrainingJob};

use crate::cluster::error::chain;
use crate::cluster::installation::SECRET;
use crate::cluster::leader::LEASE;
use crate::cluster::schema;
use crate::cluster::settings::Settings;
use crate::cluster::within;

/// How long a server that does not answer is asked again.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two such tries.
const AGAIN: Duration = Duration::from_secs(2);
/// A call without an answer after this long has none.
const ANSWER: Duration = Duration::from_secs(10);

/// Our group and the version that this operator speaks.
const GROUP: &str = "petaflop.dev";
const VERSION: &str = "v1alpha1";

/// Why the operator cannot work in this cluster.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// Nobody answers.
    #[error(
        "{url} does not answer ({said}), tried for {} s; see that the address in the kubeconfig is right and that the API server runs", PATIENCE.as_secs()
    )]
    Unreachable {
        /// The API server.
        url: String,
        /// What happened last.
        said: String,
    },
    /// It does not know us.
    #[error(
        "{url} does not accept our credentials ({said}); renew the token or certificate in the kubeconfig, or the Pod's ServiceAccount"
    )]
    Unauthorized {
        /// The API server.
        url: String,
        /// What it said.
        said: String,
    },
    /// Our kinds are not there.
    #[error(
        "the cluster has no {kinds}: the CRDs are not installed, or too old; helm upgrade --install petaflop-crds charts/petaflop-crds"
    )]
    Missing {
        /// Which.
        kinds: String,
    },
    /// They are there in another version.
    #[error(
        "the cluster serves {GROUP} as {served}, and this operator speaks {VERSION}; install operator and CRDs of one release"
    )]
    Version {
        /// The versions that are served.
        served: String,
    },
    /// They are older than we are.
    #[error(
        "the cluster's CRDs do not know {field}, which this operator writes; helm upgrade petaflop-crds charts/petaflop-crds"
    )]
    Old {
        /// Which field.
        field: String,
    },
    /// We may not do what we must.
    #[error(
        "the API server forbids what the operator must do ({said}); bind the roles of charts/petaflop to its ServiceAccount (rbac.create=true makes them)"
    )]
    Forbidden {
        /// What it said.
        said: String,
    },
    /// It answered something else.
    #[error("{what}: {said}")]
    Odd {
        /// What was asked.
        what: &'static str,
        /// What it said.
        said: String,
    },
}

/// Looks at everything.
///
/// # Errors
/// What is missing, in words.
pub async fn probe(
    client: &Client,
    url: &str,
    clock: &Clock,
    settings: &Settings,
) -> Result<(), ProbeError> {
    let ask = Ask { url, clock };
    let ours = format!("{GROUP}/{VERSION}");
    let kinds = ask.of("our kinds", async || client.list_api_group_resources(&ours).await).await?;
    let Some(kinds) = kinds else {
        let groups = ask.of("the API's groups", async || client.list_api_groups().await).await?;
        let served: Vec<String> = groups
            .into_iter()
            .flat_map(|list| list.groups)
            .filter(|group| group.name == GROUP)
            .flat_map(|group| group.versions)
            .map(|version| version.version)
            .collect();
        return Err(match served.is_empty() {
            true => ProbeError::Missing { kinds: format!("kind of {GROUP}") },
            false => ProbeError::Version { served: served.join(", ") },
        });
    };
    let wanted = [
        TrainingJob::kind(&()),
        InferenceService::kind(&()),
        ComputeClaim::kind(&()),
        ComputeProvider::kind(&()),
        SpendBudget::kind(&()),
    ];
    let missing: Vec<_> =
        wanted.iter().filter(|kind| kinds.resources.iter().all(|r| r.kind != **kind)).collect();
    if !missing.is_empty() {
        let kinds = missing.iter().map(|kind| kind.as_ref()).collect::<Vec<&str>>().join(", ");
        return Err(ProbeError::Missing { kinds });
    }
    let path = format!("/openapi/v3/apis/{ours}");
    let document = ask.of("our kinds' schemas", async || {
        let request = Request::get(&path).body(Vec::new()).map_err(kube::Error::HttpError)?;
        client.request::<serde_json::Value>(request).await
    });
    let all = petaflop_crds::crds::all();
    if let Some(document) = document.await?
        && let Some(field) = schema::unknown_field(&all, VERSION, &document)
    {
        return Err(ProbeError::Old { field });
    }
    let namespaces = &settings.watch_namespaces;
    ask.list("TrainingJobs", within::<TrainingJob>(client, namespaces)).await?;
    ask.list("InferenceServices", within::<InferenceService>(client, namespaces)).await?;
    ask.list("ComputeClaims", within::<ComputeClaim>(client, namespaces)).await?;
    ask.list("SpendBudgets", within::<SpendBudget>(client, namespaces)).await?;
    ask.list("ComputeProviders", vec![Api::<ComputeProvider>::all(client.clone())]).await?;
    let own: Api<Secret> = Api::namespaced(client.clone(), &settings.namespace);
    ask.of("the installation", async || own.get(SECRET).await).await?;
    if settings.leader_elect {
        let leases: Api<Lease> = Api::namespaced(client.clone(), &settings.namespace);
        ask.of("the Lease", async || leases.get(LEASE).await).await?;
    }
    Ok(())
}

/// One who asks until there is an answer.
struct Ask<'a> {
    url: &'a str,
    clock: &'a Clock,
}

impl Ask<'_> {
    /// The answer; `None`: there is no such thing.
    async fn of<T>(
        &self,
        what: &'static str,
        call: impl AsyncFn() -> kube::Result<T>,
    ) -> Result<Option<T>, ProbeError> {
        let url = || self.url.to_owned();
        let until = self.clock.boottime().saturating_add(PATIENCE);
        loop {
            let said = match self.clock.timeout(ANSWER, call()).await {
                Some(Ok(answer)) => return Ok(Some(answer)),
                Some(Err(kube::Error::Api(status))) => match status.code {
                    401 => {
                        return Err(ProbeError::Unauthorized { url: url(), said: status.message });
                    }
                    403 => return Err(ProbeError::Forbidden { said: status.message }),
                    404 => return Ok(None),
                    429 | 500.. => status.message,
                    _ => return Err(ProbeError::Odd { what, said: status.message }),
                },
                Some(Err(error @ kube::Error::SerdeError(_))) => {
                    return Err(ProbeError::Odd { what, said: chain(&error) });
                }
                Some(Err(error)) => chain(&error),
                None => format!("no answer within {} s", ANSWER.as_secs()),
            };
            if self.clock.boottime() >= until {
                return Err(ProbeError::Unreachable { url: url(), said });
            }
            tracing::warn!(url = self.url, %said, "waiting for the API server");
            self.clock.sleep(AGAIN).await;
        }
    }

    async fn list<K>(&self, what: &'static str, apis: Vec<Api<K>>) -> Result<(), ProbeError>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
    {
        for api in apis {
            let one = ListParams::default().limit(1);
            let list = async || {
                api.list_metadata(&one)
                    .await
                    .map(drop::<kube::core::ObjectList<PartialObjectMeta<K>>>)
            };
            self.of(what, list).await?;
        }
        Ok(())
    }
}
