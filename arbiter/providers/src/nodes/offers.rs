//! Nodes and Pods in, offers out. Pure.
//!
//! An offer is a slice of a node that a Pod can have now: the claim's Pod asks for
//! exactly the processors, memory and devices that the offer names, so that price,
//! estimate and what the scheduler sets aside are one thing. The sizes are powers
//! of two and everything that is free; they overlap, each says how many of it
//! there is room for, and all of them what they take of the node. Price is the owner's for the whole node, by the larger of
//! the slice's shares of processors and memory, plus its devices' power.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use petaflop_arbiter::offer::{
    Accelerators, Arch, Capacity, HostOwner, Offer, OfferId, Sale, Share,
};

use super::devices::{self, Devices};
use super::labels;
use super::requests::{self, Amounts};
use super::slice::{Part, Slice};
use crate::price::PowerPrice;

/// Bytes of a slice's memory that the agent has beside the job.
pub(super) const AGENT_MEMORY: u64 = 32 << 20;

/// Left alone on each node, for the Pods without which work there cannot be had or ended: a service's
/// gateway (20m, 32 Mi) and the chart's guard or audit (10m, 32 Mi) at once. Once they run they are
/// no longer free, and as much is left again.
const SPARE_CPU: u64 = 50;
const SPARE_MEMORY: u64 = 96 << 20;

/// Least that is worth offering: thousandths of a processor, and bytes beside the agent's.
const LEAST_CPU: u64 = 100;
const LEAST_MEMORY: u64 = 128 << 20;

/// Longest name of a node that is offered: the slice's name is a claim's instance type, which may
/// have 253 characters.
const LONGEST_NAME: usize = 190;

/// Seconds for which a look at the nodes is good to take from.
const QUOTE_SECONDS: u32 = 120;

/// Which nodes are offered, and for how much.
#[derive(Clone, Debug)]
pub(super) struct Terms<'a> {
    pub(super) provider: &'a str,
    pub(super) installation: &'a str,
    pub(super) selector: &'a BTreeMap<String, String>,
    pub(super) tolerations: &'a [Toleration],
    pub(super) power: &'a PowerPrice,
}

/// What can be had of these nodes beside these Pods.
///
/// # Errors
/// When the price of electricity makes no sense, in words.
pub(super) fn offers<'a>(
    terms: &Terms<'_>,
    nodes: impl IntoIterator<Item = &'a Node>,
    pods: impl IntoIterator<Item = &'a Pod>,
    now: Timestamp,
) -> Result<Vec<Offer>, String> {
    let mut taken: HashMap<&str, Amounts> = HashMap::new();
    let mut ours = Ours::default();
    for pod in pods {
        // Pods of ours hold their slot until they are gone: so does their claim.
        if labels::of_installation(pod, terms.installation)
            && let Some(offer) = labels::offer_of(pod)
            && offer.provider == terms.provider
        {
            for Share { of, amount, all: _ } in offer.shares {
                *ours.shares.entry(of).or_default() += amount;
            }
            *ours.slots.entry(offer.id).or_default() += 1;
        }
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(ended, Some("Succeeded" | "Failed")) {
            continue;
        }
        if let Some(node) = labels::node_of(pod) {
            taken.entry(node).or_default().add(&requests::of_pod(pod));
        }
    }
    let mut offers = Vec::new();
    for node in nodes {
        let Some(free) = Free::of(terms, node, &taken) else {
            continue;
        };
        for (part, room) in free.parts(terms.tolerations) {
            offers.push(free.offer(terms, part, room, &ours, now)?);
        }
    }
    offers.sort_by(|a, b| a.id.cmp(&b.id));
    Ok(offers)
}

/// What Pods of ours hold, whose claims are counted by whoever looks at the offers.
#[derive(Default)]
struct Ours {
    slots: HashMap<OfferId, u32>,
    /// By what they are shares of.
    shares: HashMap<String, u64>,
}

/// What is free of one node.
struct Free<'a> {
    name: &'a str,
    labels: &'a BTreeMap<String, String>,
    arch: Arch,
    taints: &'a [Taint],
    devices: Vec<Devices>,
    allocatable: Amounts,
    free: Amounts,
}

/// What a slice holds: thousandths of processors, bytes, devices.
#[derive(Clone, Copy)]
struct Room {
    cpu: u64,
    memory: u64,
    slots: u64,
}

impl<'a> Free<'a> {
    /// `None` for a node on which nothing may be placed now.
    fn of(terms: &Terms<'_>, node: &'a Node, taken: &HashMap<&str, Amounts>) -> Option<Self> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        let name = node.metadata.name.as_deref()?;
        let labels = node.metadata.labels.as_ref().unwrap_or(&NONE);
        let (spec, status) = (node.spec.as_ref(), node.status.as_ref()?);
        let selected = terms.selector.iter().all(|(key, value)| labels.get(key) == Some(value));
        let cordoned = spec.and_then(|spec| spec.unschedulable).unwrap_or(false);
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let linux = labels.get("kubernetes.io/os").is_none_or(|os| os == "linux");
        let going = node.metadata.deletion_timestamp.is_some();
        if !selected || cordoned || !ready || !linux || going || name.len() > LONGEST_NAME {
            return None;
        }
        let arch = labels
            .get("kubernetes.io/arch")
            .or(status.node_info.as_ref().map(|info| &info.architecture))
            .and_then(|name| Arch::from_name(name))?;
        let allocatable = status.allocatable.as_ref().map(Amounts::of)?;
        let nothing = Amounts::default();
        let free = allocatable.clone().less(taken.get(name).unwrap_or(&nothing));
        let free = free.less(&Amounts::from([("cpu", SPARE_CPU), ("memory", SPARE_MEMORY)]));
        if free.get("pods") == 0 {
            return None;
        }
        Some(Self {
            name,
            labels,
            arch,
            taints: spec.and_then(|spec| spec.taints.as_deref()).unwrap_or_default(),
            devices: devices::of(labels, &allocatable),
            allocatable,
            free,
        })
    }

    /// The slices and how many of each there is room for.
    fn parts(&self, tolerations: &[Toleration]) -> Vec<(Part, Room)> {
        let mut parts = Vec::new();
        let (cpu, memory) = (self.free.get("cpu"), self.free.get("memory"));
        if tolerated(self.taints, tolerations, None) {
            let mut size: u32 = 1;
            while u64::from(size) * 1000 < cpu {
                let slice = u64::from(size) * 1000;
                parts.push((Part::Processors(size), self.room(slice, portion(memory, slice, cpu))));
                size *= 2;
            }
            parts.push((Part::Rest, self.room(cpu, memory)));
        }
        for devices in &self.devices {
            // As the ExtendedResourceToleration admission plugin has it: who asks for a device
            // tolerates the taint that keeps others off its nodes.
            if !tolerated(self.taints, tolerations, Some(&devices.resource)) {
                continue;
            }
            let free = self.free.get(&devices.resource);
            for count in sizes(free, devices.whole) {
                let part = Part::Devices { resource: devices.resource.clone(), count };
                let count = u64::from(count);
                let mut room = self.room(portion(cpu, count, free), portion(memory, count, free));
                room.slots = room.slots.min(free / count);
                parts.push((part, room));
            }
        }
        parts.retain(|(_, room)| {
            room.cpu >= LEAST_CPU && room.memory >= LEAST_MEMORY + AGENT_MEMORY && room.slots > 0
        });
        parts
    }

    fn room(&self, cpu: u64, memory: u64) -> Room {
        // Whole mebibytes: what a Pod is given, and what does not change with every byte.
        let memory = memory >> 20 << 20;
        let slots = self
            .free
            .get("pods")
            .min(self.free.get("cpu") / cpu.max(1))
            .min(self.free.get("memory") / memory.max(1));
        Room { cpu, memory, slots }
    }

    fn offer(
        &self,
        terms: &Terms<'_>,
        part: Part,
        room: Room,
        ours: &Ours,
        now: Timestamp,
    ) -> Result<Offer, String> {
        let share = share_milli(room.cpu, self.allocatable.get("cpu"))
            .max(share_milli(room.memory, self.allocatable.get("memory")));
        let (accelerators, watts) = match &part {
            Part::Processors(_) | Part::Rest => (None, 0),
            Part::Devices { resource, count } => {
                let devices = self.devices.iter().find(|devices| devices.resource == *resource);
                let accelerators = devices.map(|devices| Accelerators {
                    model: devices.model.clone(),
                    count: *count,
                    memory: devices.memory,
                });
                let watts = devices.map_or(0, |devices| devices.watts);
                (accelerators, watts.saturating_mul(u64::from(*count)))
            }
        };
        let taken = |what: &str, amount: u64| {
            let of = format!("{}/{what}", self.name);
            let held = ours.shares.get(&of).copied().unwrap_or(0);
            Share { amount, all: self.free.get(what).saturating_add(held), of }
        };
        let mut shares = vec![taken("cpu", room.cpu), taken("memory", room.memory)];
        if let Part::Devices { resource, count } = &part {
            shares.push(taken(resource, u64::from(*count)));
        }
        let place = |label: &str| self.labels.get(label).cloned().unwrap_or_default();
        let region = place("topology.kubernetes.io/region");
        let zone = place("topology.kubernetes.io/zone");
        let instance_type = Slice { node: self.name.to_owned(), part }.to_string();
        let id = Offer::id_of(terms.provider, &region, &zone, &instance_type, Capacity::Owned);
        let ours = ours.slots.get(&id).copied().unwrap_or(0);
        let slots = u32::try_from(room.slots).unwrap_or(u32::MAX).saturating_add(ours);
        Ok(Offer {
            id,
            provider: terms.provider.to_owned(),
            region,
            zone,
            instance_type,
            accelerators,
            arch: self.arch,
            vcpu_milli: Some(u32::try_from(room.cpu).unwrap_or(u32::MAX)),
            memory: Some(room.memory - AGENT_MEMORY),
            capacity: Capacity::Owned,
            price: terms.power.hourly(share, watts)?,
            quoted_at: now,
            ttl_seconds: QUOTE_SECONDS,
            owner: HostOwner::Known,
            sale: Sale::Buyable,
            measured: None,
            slots: Some(slots),
            shares,
            interruptions_per_hour: None,
        })
    }
}

/// So much of `all` as `part` is of `whole`.
fn portion(all: u64, part: u64, whole: u64) -> u64 {
    let amount = u128::from(all) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(amount).unwrap_or(u64::MAX)
}

/// Thousandths, rounded up.
fn share_milli(part: u64, whole: u64) -> u64 {
    let share = (u128::from(part) * 1000).div_ceil(u128::from(whole.max(1)));
    u64::try_from(share).unwrap_or(u64::MAX).min(1000)
}

/// Powers of two below what is free, and all of it. Shares of devices are had one by one.
fn sizes(free: u64, whole: bool) -> Vec<u32> {
    let free = u32::try_from(free).unwrap_or(u32::MAX);
    if !whole {
        return (free > 0).then_some(1).into_iter().collect();
    }
    let below = (0..32).map(|power| 1_u32 << power).take_while(|size| *size < free);
    below.chain((free > 0).then_some(free)).collect()
}

/// Whether nothing keeps a Pod with these tolerations off. `device` is the resource it asks for.
fn tolerated(taints: &[Taint], tolerations: &[Toleration], device: Option<&str>) -> bool {
    let keeps_off = |taint: &&Taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute");
    taints.iter().filter(keeps_off).all(|taint| {
        device == Some(taint.key.as_str())
            || tolerations.iter().any(|toleration| tolerates(toleration, taint))
    })
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let Toleration { effect, key, operator, toleration_seconds: _, value } = toleration;
    let of = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (of(effect), of(key));
    let same_effect = effect.is_empty() || effect == taint.effect;
    let same_key = key.is_empty() || key == taint.key;
    let same_value = match operator.as_deref() {
        Some("Exists") => true,
        // Without a key only Exists makes sense.
        None | Some("" | "Equal") => !key.is_empty() && of(value) == of(&taint.value),
        Some(_) => false,
    };
    same_effect && same_key && same_value
}
