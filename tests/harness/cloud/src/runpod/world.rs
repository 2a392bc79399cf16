//! What RunPod's two APIs share: pods, keys, credentials, and how something is bought.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::catalog::Catalog;
use super::keys::Scope;
use super::limits::Limits;
use crate::engine::machine::{AtEnd, Life, Machine, Order};
use crate::engine::product::{ProductId, Sale};
use crate::engine::{Engine, Refusal};
use crate::faults::{Fault, Faults};
use crate::host::Boot;
use crate::shell::Call;

/// What v2 and the on-demand mutation say when there is none.
pub(crate) const NONE_LEFT: &str = "There are no longer any instances available with the requested \
    specifications. Please refresh and try again.";
/// What the spot mutation says; one word differs.
pub(crate) const NONE_LEFT_SPOT: &str = "There are no longer any instances available with the \
    request specifications. Please try again later.";
/// What resuming says when somebody else has the host's GPUs.
pub(crate) const HOST_FULL: &str =
    "There are not enough free GPUs on the host machine to start this pod.";
/// Nobody knows what that means.
pub(crate) const SOMETHING: &str =
    "Something went wrong. Please try again later or contact support.";

/// What was asked for, in the words of v2.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) args: Option<String>,
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) disk: u32,
    /// GB and path.
    pub(crate) volume: Option<(u32, String)>,
    pub(crate) ports: Vec<String>,
    pub(crate) registry: Option<String>,
    pub(crate) cloud: Option<&'static str>,
    pub(crate) kind: String,
    pub(crate) cpu: bool,
    pub(crate) units: u32,
    pub(crate) zones: Vec<String>,
    pub(crate) country: Option<String>,
    pub(crate) sale: Sale,
    pub(crate) stop_after: Option<Timestamp>,
    pub(crate) end_after: Option<Timestamp>,
    pub(crate) locked: bool,
    pub(crate) global_networking: bool,
}

impl Spec {
    /// What starts: `args` is the command as text, or entrypoint and command as JSON in a text.
    pub(crate) fn boot(&self) -> Boot {
        let args = self.args.as_deref().unwrap_or_default();
        let list = |value: &serde_json::Value| -> Option<Vec<String>> {
            let parts = value.as_array()?.iter();
            Some(parts.filter_map(|part| part.as_str().map(str::to_owned)).collect())
        };
        let (entrypoint, command) = match serde_json::from_str::<serde_json::Value>(args) {
            Ok(value) if value.is_object() => (list(&value["entrypoint"]), list(&value["cmd"])),
            _ if args.is_empty() => (None, None),
            _ => (None, Some(args.split_whitespace().map(str::to_owned).collect())),
        };
        let numbers = self.ports.iter().filter_map(|port| port.split('/').next()?.parse().ok());
        Boot {
            image: self.image.clone(),
            entrypoint,
            command,
            environment: self.env.clone(),
            ports: numbers.collect(),
            ..Boot::default()
        }
    }
}

/// Credentials for a registry; the password is not kept.
#[derive(Clone, Debug)]
pub(crate) struct Registry {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// Everything that changes.
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) catalog: Catalog,
    pub(crate) faults: Faults,
    pub(crate) keys: BTreeMap<String, Scope>,
    pub(crate) limits: Limits,
    pub(crate) specs: BTreeMap<String, Spec>,
    pub(crate) registries: Vec<Registry>,
    pub(crate) named: u64,
    /// Pods of a page; `None`: pods come in one piece, without paging.
    pub(crate) page: Option<usize>,
    pub(crate) calls: Vec<Call>,
}

impl World {
    /// A pod that can be seen, and what was asked for.
    pub(crate) fn pod(&self, id: &str) -> Option<(&Machine, &Spec)> {
        let machine = self.engine.machine(id)?;
        let gone = machine.life == Life::Terminated || !self.engine.shows(machine);
        self.specs.get(id).filter(|_| !gone).map(|spec| (machine, spec))
    }

    /// Pods as a listing shows them.
    pub(crate) fn pods(&self) -> Vec<(&Machine, &Spec)> {
        let listed = self.engine.listed();
        listed.filter_map(|machine| Some((machine, self.specs.get(&machine.id)?))).collect()
    }

    /// Products that an order can be served from, the cheapest first, then those with most left.
    pub(crate) fn candidates(&self, spec: &Spec) -> Vec<ProductId> {
        let fits = self.engine.products().filter(|(_, product)| {
            let zone = product.zone.as_deref();
            let listed = zone.is_none_or(|zone| {
                !self.catalog.places.iter().any(|place| place.id == zone && !place.listed)
            });
            product.kind == spec.kind
                && spec.cloud.is_none_or(|cloud| product.pool == cloud)
                && spec.country.as_ref().is_none_or(|country| product.region == *country)
                && (spec.zones.is_empty() || spec.zones.iter().any(|z| Some(z.as_str()) == zone))
                && listed
        });
        let mut fits: Vec<(i64, u32, ProductId)> = fits
            .map(|(id, product)| (product.on_demand, u32::MAX - self.engine.free(id), id))
            .collect();
        fits.sort_unstable();
        fits.into_iter().map(|(_, _, id)| id).collect()
    }

    /// Buys a pod. The same twice is two pods: neither API knows a token, nor are names unique.
    pub(crate) fn buy(&mut self, spec: Spec, faults: &[Fault]) -> Result<String, Refusal> {
        if faults.contains(&Fault::CapacityGone) {
            return Err(Refusal::NoCapacity);
        }
        let candidates = self.candidates(&spec);
        for fault in faults {
            if let Fault::PriceChanged(permille) = fault {
                for id in &candidates {
                    let product = self.engine.product_mut(*id);
                    product.on_demand = product.on_demand * i64::from(*permille) / 1000;
                }
            }
        }
        let mut refused = Refusal::NoCapacity;
        for product in candidates {
            let order = Order {
                name: spec.name.clone(),
                product,
                units: spec.units,
                sale: spec.sale,
                disk: spec.disk,
                volume: spec.volume.as_ref().map_or(0, |(size, _)| *size),
                boot: spec.boot(),
                stop_after: spec.stop_after,
                end_after: spec.end_after,
                at_end: AtEnd::KEPT,
            };
            match self.engine.buy(order) {
                Ok(id) => {
                    self.furnish(&id, spec, product);
                    if faults.contains(&Fault::NeverStarts) {
                        self.engine.get_stuck(&id);
                    }
                    return Ok(id);
                }
                Err(why) => refused = why,
            }
        }
        Err(refused)
    }

    /// What the provider itself puts into a pod, a key of its own among it; none of it is shown in
    /// the pod's `env`.
    fn furnish(&mut self, id: &str, spec: Spec, product: ProductId) {
        self.named += 1;
        let key = format!("pod-key-{}-{id}", self.named);
        let zone = self.engine.product(product).zone.clone().unwrap_or_default();
        let (gpus, cpus) = if spec.cpu { (0, spec.units) } else { (spec.units, 0) };
        let own = [
            ("RUNPOD_POD_ID", id.to_owned()),
            ("RUNPOD_API_KEY", key.clone()),
            ("RUNPOD_DC_ID", zone),
            ("RUNPOD_POD_HOSTNAME", id.to_owned()),
            ("RUNPOD_GPU_COUNT", gpus.to_string()),
            ("RUNPOD_CPU_COUNT", cpus.to_string()),
        ];
        let furnish = |order: &mut Order| {
            let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
            order.boot.environment.extend(own);
        };
        // It was bought a moment ago.
        let _ = self.engine.change(id, furnish);
        self.keys.insert(key, Scope::Pod(id.to_owned()));
        self.specs.insert(id.to_owned(), spec);
    }

    /// A changed spec reaches the machine; what the provider put there stays.
    pub(crate) fn respecify(&mut self, id: &str, change: impl FnOnce(&mut Spec)) {
        let Some(spec) = self.specs.get_mut(id) else { return };
        change(spec);
        let (name, boot) = (spec.name.clone(), spec.boot());
        // A machine without a spec is not RunPod's.
        let _ = self.engine.change(id, |order| {
            let own = std::mem::take(&mut order.boot.environment).into_iter();
            let own = own.filter(|(name, _)| name.starts_with("RUNPOD_"));
            (order.name, order.boot) = (name, Boot { environment: own.collect(), ..boot.clone() });
            order.boot.environment.extend(boot.environment);
        });
    }
}
