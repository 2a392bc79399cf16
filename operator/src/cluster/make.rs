//! Providers as their objects describe them. All that stand for this cluster's nodes look through
//! the same watches of nodes and Pods, which begin with the first of them.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use k8s_openapi::api::core::v1 as core;
use kube::runtime::reflector;
use kube::{Client, ResourceExt};
use petaflop_agent_api::clock::Clock;
use petaflop_crds::ComputeProvider;
use petaflop_crds::compute_provider::{
    ComputeProviderSpec, NodesProvider, Power, TaintEffect, Toleration, TolerationOperator,
};
use petaflop_providers::nodes::{Nodes, NodesConfig, Sight, SingleShot, labels, prune};
use petaflop_providers::price::PowerPrice;
use petaflop_providers::{Provider, ProviderError};
use tokio::task::JoinHandle;

use crate::cluster::Handle;
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
        Self { client, clock, installation, namespaces, watching: None, whom: OnceLock::new() }
    }

    fn nodes(&self, name: String, nodes: &NodesProvider, power: &Power) -> Nodes {
        let NodesProvider { selector, tolerations } = nodes;
        let config = NodesConfig {
            name,
            installation: self.installation.clone(),
            namespaces: self.namespaces.clone(),
            selector: selector.clone(),
            tolerations: tolerations.iter().map(toleration).collect(),
            groups: Vec::new(),
            power: power_price(power),
        };
        let (client, clock) = (self.client.clone(), self.clock.clone());
        let once = SingleShot::assume(client.clone());
        Nodes::new(config, client, once, self.sight()).by_clock(move || clock.now())
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
            runpod: _, // not built yet
            aws: _,
            allowed_namespaces: _, // the arbiter's
            state: _,
            credentials_secret_ref: _,
            limits: _,
            price_adjustment_percent: _, // the registry's
            power,
        } = &object.spec;
        if let Some(nodes) = nodes {
            let power = power.clone().unwrap_or_default();
            return Ok(Arc::new(self.nodes(name, nodes, &power)));
        }
        let detail = match host {
            Some(_) => {
                "host is the machine of `petaflop run`; in a cluster say nodes: {} in a \
                        ComputeProvider of its own"
            }
            None => "this type is not built yet; use nodes: {}",
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
