//! Providers as their objects describe them. All that stand for this cluster's nodes look through
//! the same watches of nodes and Pods, which begin with the first of them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::api::core::v1 as core;
use kube::runtime::reflector;
use kube::{Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::ComputeProvider;
use petaflop_crds::compute_provider::{
    AwsProvider, ComputeProviderSpec, NodesProvider, Power, RunPodProvider, TaintEffect,
    Toleration, TolerationOperator,
};
use petaflop_providers::nodes::{Nodes, NodesConfig, Sight, SingleShot, labels, prune};
use petaflop_providers::price::PowerPrice;
use petaflop_providers::runpod::{self, AgentDownload, ApiKey, RunPod, RunPodConfig};
use petaflop_providers::{Provider, ProviderError};
use tokio::task::JoinHandle;

use crate::aws::{self, Account, Rights};
use crate::cluster::Handle;
use crate::cluster::keyed::{Keyed, Source};
use crate::cluster::providers::MakeProvider;
use crate::cluster::watches::{self, Part, Seen};

/// Finished Pods take nothing of their node, and those of no node neither; but ours hold their
/// slot as long as they are there.
const TAKING: &str = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";

/// Makes the providers of a cluster.
pub struct Make {
    client: Client,
    clock: Clock,
    installation: String,
    namespaces: Vec<String>,
    /// Where Secrets of providers are: the operator's own namespace.
    own_namespace: String,
    /// Where rented machines fetch the agent, and those with Arm.
    agent: Option<AgentDownload>,
    agent_arm: Option<AgentDownload>,
    watching: Option<Mutex<Option<Watching>>>,
    /// Who hears of Pods that are over.
    whom: OnceLock<Handle>,
}

/// The watches that providers of nodes share.
struct Watching {
    sight: Sight,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Make {
    /// For the installation of this uid, whose claims are in these namespaces (none named: in all).
    /// Secrets of providers are read in the client's default namespace, unless
    /// [`Make::secrets_of`] says where.
    /// The client repeats no call by itself. To be used on a tokio runtime: nodes and Pods are
    /// watched.
    pub fn new(client: Client, clock: Clock, installation: &str, namespaces: &[String]) -> Self {
        let watching = Some(Mutex::default());
        Self { watching, ..Self::unwatched(client, clock, installation, namespaces) }
    }

    /// The same for a short life: nodes and Pods are asked for when they are needed.
    pub fn unwatched(
        client: Client,
        clock: Clock,
        installation: &str,
        namespaces: &[String],
    ) -> Self {
        let (installation, namespaces) = (installation.to_owned(), namespaces.to_vec());
        let own_namespace = client.default_namespace().to_owned();
        Self {
            client,
            clock,
            installation,
            namespaces,
            own_namespace,
            agent: None,
            agent_arm: None,
            watching: None,
            whom: OnceLock::new(),
        }
    }

    /// Secrets of providers are in this namespace: the operator's own.
    #[must_use]
    pub fn secrets_of(self, namespace: &str) -> Self {
        Self { own_namespace: namespace.to_owned(), ..self }
    }

    /// Rented machines fetch the agent from there. Without it none are had; what there is can be
    /// ended.
    #[must_use]
    pub fn agent_from(self, agent: Option<AgentDownload>) -> Self {
        Self { agent, ..self }
    }

    /// Those with Arm processors fetch it from there; without it none of them are had.
    #[must_use]
    pub fn agent_arm_from(self, agent_arm: Option<AgentDownload>) -> Self {
        Self { agent_arm, ..self }
    }

    fn nodes(&self, name: String, nodes: &NodesProvider, power: &Power) -> Nodes {
        let (installation, namespaces) = (self.installation.clone(), self.namespaces.clone());
        let config = NodesConfig { installation, namespaces, ..nodes_config(name, nodes, power) };
        let (client, clock) = (self.client.clone(), self.clock.clone());
        let once = SingleShot::assume(client.clone());
        Nodes::new(config, client, once, self.sight()).by_clock(move || clock.now())
    }

    /// `percent`: the registry adds it to what is quoted, and RunPod does not know of it.
    fn runpod(&self, name: String, runpod: &RunPodProvider, secret: &str, percent: i32) -> Keyed {
        let config = RunPodConfig {
            agent: self.agent.clone(),
            price_adjustment_percent: percent,
            ..runpod_config(&name, runpod)
        };
        let clock = self.clock.clone();
        let build = move |values: &[&str]| {
            let key = values.first().copied().map(ApiKey::new).unwrap_or_default();
            let clock = clock.clone();
            let provider = RunPod::new(RunPodConfig { key, ..config.clone() })?;
            Ok(Arc::new(provider.by_clock(move || clock.now())) as Arc<dyn Provider>)
        };
        Keyed {
            capabilities: runpod::CAPABILITIES,
            source: Some(self.secret(secret, &[runpod::KEY_VARIABLE], &[])),
            build: Box::new(build),
            lacks: self.lacks_agent(&name),
            now: Mutex::default(),
            name,
        }
    }

    fn aws(
        &self,
        name: String,
        aws: &AwsProvider,
        former: Vec<String>,
        secret: Option<&str>,
        percent: i32,
    ) -> Result<Keyed, ProviderError> {
        let account = Account {
            name: name.clone(),
            settings: aws.clone(),
            former,
            agent: self.agent.clone(),
            agent_arm: self.agent_arm.clone(),
            price_adjustment_percent: percent,
        };
        let clock = self.clock.clone();
        let build = move |values: &[&str]| {
            let rights = match *values {
                [id, secret, session] => Rights::Keys(id, secret, session),
                _ => Rights::Role,
            };
            aws::provider(&account, &rights, &clock)
        };
        Ok(Keyed {
            capabilities: aws::capabilities(&name)?,
            source: secret.map(|secret| self.secret(secret, &aws::KEYS, &aws::OPTIONAL_KEYS)),
            build: Box::new(build),
            lacks: self.lacks_agent(&name).filter(|_| self.agent_arm.is_none()),
            now: Mutex::default(),
            name,
        })
    }

    fn secret(
        &self,
        secret: &str,
        keys: &'static [&'static str],
        optional: &'static [&'static str],
    ) -> Source {
        let (client, namespace) = (self.client.clone(), self.own_namespace.clone());
        Source { client, namespace, secret: secret.to_owned(), keys, optional }
    }

    fn lacks_agent(&self, name: &str) -> Option<ProviderError> {
        self.agent.is_none().then(|| ProviderError::Misconfigured {
            provider: name.to_owned(),
            detail: "its machines fetch the agent themselves; say where it lies with --agent-url \
                     and --agent-sha256 (agentDownload in the chart)"
                .to_owned(),
        })
    }

    fn sight(&self) -> Sight {
        let Some(watching) = &self.watching else { return Sight::Server };
        let mut watching = watching.lock().unwrap_or_else(PoisonError::into_inner);
        let watch = || {
            let over = on_pod(self.installation.clone(), self.whom.get().cloned());
            watch(&self.client, &self.namespaces, over)
        };
        watching.get_or_insert_with(watch).sight.clone()
    }
}

impl MakeProvider for Make {
    fn tells(&self, whom: &Handle) {
        // Said once.
        let _ = self.whom.set(whom.clone());
    }

    fn make(&self, object: &ComputeProvider) -> Result<Arc<dyn Provider>, ProviderError> {
        let name = object.name_any();
        let ComputeProviderSpec {
            nodes,
            host,
            runpod,
            aws,
            allowed_namespaces: _, // the arbiter's
            accelerators: _,       // the arbiter's
            state: _,
            credentials_secret_ref,
            limits: _,
            price_adjustment_percent, // the registry's
            power,
        } = &object.spec;
        if let Some(nodes) = nodes {
            let power = power.clone().unwrap_or_default();
            return Ok(Arc::new(self.nodes(name, nodes, &power)));
        }
        if let Some(runpod) = runpod {
            let Some(secret) = credentials_secret_ref else {
                let detail = "credentialsSecretRef is missing".to_owned();
                return Err(ProviderError::NoCredentials { provider: name, detail });
            };
            let percent = *price_adjustment_percent;
            return Ok(Arc::new(self.runpod(name, runpod, &secret.name, percent)));
        }
        if let Some(aws) = aws {
            let secret = credentials_secret_ref.as_ref().map(|secret| secret.name.as_str());
            let percent = *price_adjustment_percent;
            let former = object.former_regions();
            return Ok(Arc::new(self.aws(name, aws, former, secret, percent)?));
        }
        let detail = match host {
            Some(_) => {
                "host is the machine of `petaflop run`; in a cluster say nodes: {} in a \
                        ComputeProvider of its own"
            }
            None => "it is of no type; say nodes: {}, runpod or aws",
        };
        Err(ProviderError::NotOffered { provider: name, detail: detail.to_owned() })
    }
}

/// A Pod of ours that is over makes us look after its claim at once: without that, a machine that
/// was taken away is missed when its agent was silent for a while, or by the next sweep.
fn on_pod(installation: String, whom: Option<Handle>) -> impl Fn(&core::Pod, Seen) {
    move |pod, seen| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let over = seen == Seen::Gone || matches!(phase, Some("Succeeded" | "Failed"));
        if let Some(whom) = &whom
            && over
            && labels::of_installation(pod, &installation)
            && let Some(identity) = labels::identity_of(pod)
        {
            whom.suspect(&(identity.namespace, identity.claim));
        }
    }
}

fn watch(
    client: &Client,
    namespaces: &[String],
    over: impl Fn(&core::Pod, Seen) + Send + 'static,
) -> Watching {
    let (nodes, keep_nodes) = reflector::store();
    let (pods, keep_pods) = reflector::store();
    let ours = Part::each(client, namespaces);
    let ours = ours.into_iter().map(|part| part.labelled(labels::INSTALLATION, true));
    // With rights in some namespaces only, Pods of the others are not seen: what is offered may be
    // taken already, and then the scheduler says so.
    let others = Part::each(client, namespaces);
    let others =
        others.into_iter().map(|part| part.labelled(labels::INSTALLATION, false).fields(TAKING));
    let of_nodes = watches::begin(vec![Part::all(client)], keep_nodes, prune::node, |_, _| {});
    let of_pods = watches::begin(ours.chain(others).collect(), keep_pods, prune::pod, over);
    let complete = [of_nodes.complete, of_pods.complete];
    Watching {
        sight: Sight::Stores { nodes, pods, complete },
        tasks: [of_nodes.task, of_pods.task],
    }
}

/// Whatever an object says of the account's pods.
fn runpod_config(name: &str, settings: &RunPodProvider) -> RunPodConfig {
    let RunPodProvider {
        data_centers,
        accelerator_counts,
        vcpu_counts,
        disk_gb,
        spot,
        registry_credential_id,
        min_cuda_version,
        api_base_url,
    } = settings.clone();
    RunPodConfig {
        base: api_base_url.unwrap_or_else(|| runpod::BASE.to_owned()),
        counts: accelerator_counts,
        vcpu_counts,
        data_centers,
        disk_gb,
        spot,
        registry: registry_credential_id,
        min_cuda: min_cuda_version,
        ..RunPodConfig::new(name, ApiKey::default())
    }
}

/// Whatever an object says of the cluster's nodes; of all claims.
fn nodes_config(name: String, nodes: &NodesProvider, power: &Power) -> NodesConfig {
    let NodesProvider { selector, tolerations } = nodes;
    NodesConfig {
        name,
        installation: String::new(),
        namespaces: Vec::new(),
        selector: selector.clone(),
        tolerations: tolerations.iter().map(toleration).collect(),
        groups: Vec::new(),
        power: power_price(power),
    }
}

fn toleration(toleration: &Toleration) -> core::Toleration {
    let Toleration { key, operator, value, effect } = toleration;
    let operator = match operator {
        TolerationOperator::Equal => "Equal",
        TolerationOperator::Exists => "Exists",
    };
    let effect = effect.map(|effect| match effect {
        TaintEffect::NoSchedule => "NoSchedule",
        TaintEffect::PreferNoSchedule => "PreferNoSchedule",
        TaintEffect::NoExecute => "NoExecute",
    });
    core::Toleration {
        key: key.clone(),
        operator: Some(operator.to_owned()),
        value: value.clone(),
        effect: effect.map(str::to_owned),
        toleration_seconds: None,
    }
}

fn power_price(power: &Power) -> PowerPrice {
    let Power { usd_per_kwh, idle_watts, load_watts, pue_milli, margin_percent } = power;
    PowerPrice {
        usd_per_kwh: usd_per_kwh.0.clone(),
        idle_watts: *idle_watts,
        load_watts: *load_watts,
        pue_milli: *pue_milli,
        margin_percent: *margin_percent,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;

    #[test]
    fn each_setting_of_runpod_reaches_the_client() {
        let settings = from_value(json!({
            "dataCenters": ["EU-RO-1"], "acceleratorCounts": [3], "vcpuCounts": [64], "diskGb": 40, "spot": false,
            "registryCredentialId": "credential", "minCudaVersion": "12.8", "apiBaseUrl": "https://api.example",
        }));
        let config = runpod_config("pods", &settings.expect("settings"));
        assert_eq!((config.name.as_str(), config.base.as_str()), ("pods", "https://api.example"));
        assert_eq!((config.counts, config.vcpu_counts), (vec![3], vec![64]));
        assert_eq!(config.data_centers, ["EU-RO-1"]);
        assert_eq!((config.disk_gb, config.spot), (40, false));
        assert_eq!(config.registry.as_deref(), Some("credential"));
        assert_eq!(config.min_cuda.as_deref(), Some("12.8"));
    }

    #[test]
    fn each_setting_of_nodes_and_of_their_power_reaches_the_client() {
        let nodes = from_value(json!({
            "selector": {"pool": "gpu"},
            "tolerations": [
                {"key": "pool", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"},
                {"operator": "Exists", "effect": "NoExecute"},
            ],
        }));
        let power = from_value(json!({
            "usdPerKwh": "0.31", "idleWatts": 70, "loadWatts": 420, "pueMilli": 1250, "marginPercent": 15,
        }));
        let (nodes, power) = (nodes.expect("nodes"), power.expect("power"));
        let config = nodes_config("nodes".to_owned(), &nodes, &power);
        assert_eq!(config.selector, [("pool".to_owned(), "gpu".to_owned())].into());
        let text = |text: &str| Some(text.to_owned());
        let tolerated = |key, operator, value, effect| core::Toleration {
            key,
            operator,
            value,
            effect,
            toleration_seconds: None,
        };
        assert_eq!(
            config.tolerations,
            [
                tolerated(text("pool"), text("Equal"), text("gpu"), text("NoSchedule")),
                tolerated(None, text("Exists"), None, text("NoExecute")),
            ]
        );
        let PowerPrice { usd_per_kwh, idle_watts, load_watts, pue_milli, margin_percent } =
            config.power;
        assert_eq!(usd_per_kwh, "0.31");
        assert_eq!((idle_watts, load_watts, pue_milli, margin_percent), (70, 420, 1250, 15));
    }
}
