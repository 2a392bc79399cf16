//! The purchase of a pod: complete before it is sent, the enrolment token aside. Pure.
//!
//! REST v2 for what is kept until we end it; for spot, which REST v2 does not know and refuses,
//! GraphQL, with the field by which RunPod itself ends the pod. Nothing the API does not document
//! is sent: an unknown field is refused with 422.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use petaflop_arbiter::claim::{FrozenRequest, Identity};
use petaflop_arbiter::money::UsdPerHour;
use petaflop_arbiter::offer::{Capacity, Offer};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::thing::{Thing, What};
use super::{RunPodConfig, dollars, entry, pod, spot};
use crate::machine::{EnrolmentToken, Machine, env};
use crate::price;
use crate::provider::identity_text;

/// Largest body that is taken.
const LARGEST: usize = 102_400;
/// Most variables of a pod.
const VARIABLES: usize = 50;
/// Bytes that the token and its variable may add.
const TOKEN_ROOM: usize = 512;

/// The frozen request.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Frozen {
    /// Kind of pod, in words.
    pub(super) thing: String,
    /// The most that an hour of it may cost, by RunPod's own word: without its disk, which RunPod
    /// bills beside what it says that a pod costs.
    pub(super) most: UsdPerHour,
    /// How it is asked for.
    pub(super) call: Call,
}

/// How it is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Call {
    /// `POST /v2/pods` with this body.
    Rest(Map<String, Value>),
    /// The mutation [`spot::RENT`] with this input.
    Spot(Map<String, Value>),
}

impl Frozen {
    /// Reads what [`freeze`] wrote.
    pub(super) fn read(request: &FrozenRequest) -> Result<Self, String> {
        serde_json::from_str(&request.body).map_err(|error| error.to_string())
    }

    /// The body to send: with the one secret.
    pub(super) fn body(self, token: &EnrolmentToken) -> Vec<u8> {
        let secret = Value::from(token.expose());
        let body = match self.call {
            Call::Rest(mut body) => {
                if let Some(Value::Object(env)) = body.get_mut("env") {
                    env.insert(env::TOKEN.to_owned(), secret);
                }
                Value::Object(body)
            }
            Call::Spot(mut input) => {
                if let Some(Value::Array(env)) = input.get_mut("env") {
                    env.push(json!({ "key": env::TOKEN, "value": secret }));
                }
                json!({ "query": spot::RENT, "variables": { "i": input } })
            }
        };
        body.to_string().into_bytes()
    }
}

/// Fixes the request.
///
/// # Errors
/// What of the order cannot be had, in words.
pub(super) fn freeze(
    config: &RunPodConfig,
    identity: &Identity,
    offer: &Offer,
    machine: &Machine,
    now: Timestamp,
) -> Result<FrozenRequest, String> {
    if offer.provider != config.name {
        return Err(format!("offer {} is not of {}", offer.id, config.name));
    }
    let thing: Thing = offer
        .instance_type
        .parse()
        .map_err(|_| format!("offer {} is no kind of pod: {:?}", offer.id, offer.instance_type))?;
    fits(config, offer, machine)?;
    let agent = config.agent.as_ref().ok_or("nobody said where pods fetch the agent: --agent-url and --agent-sha256 of the operator, or \
         `rented.agent` of a home")?;
    let quoted = price::quoted(offer.price, config.price_adjustment_percent);
    let most = quoted.saturating_sub(dollars::disk(config.disk_gb));
    let wish = Wish {
        config,
        name: identity.unique_name(),
        thing: &thing,
        machine,
        start: entry::start(agent, &config.base),
        environment: environment(identity, offer, machine)?,
    };
    let call = match offer.capacity {
        Capacity::OnDemand => Call::Rest(rest(&wish)),
        Capacity::Spot => Call::Spot(bid(&wish, most, now)?),
        Capacity::Owned => return Err(format!("offer {} is of an owned machine", offer.id)),
    };
    let frozen = Frozen { thing: thing.to_string(), most, call };
    let body = serde_json::to_string(&frozen).map_err(|error| error.to_string())?;
    if body.len() + TOKEN_ROOM > LARGEST {
        return Err(format!("the request has {} bytes; RunPod takes {LARGEST}", body.len()));
    }
    Ok(FrozenRequest { body })
}

/// The reverse of [`price::quoted`]: a price of RunPod's as it is decided on and booked. Rounded up.
pub(super) fn adjusted(price: UsdPerHour, percent: i32) -> UsdPerHour {
    let factor = i128::from(percent.clamp(-99, 1000)) + 100;
    let micros = (i128::from(price.micros()) * factor + 99) / 100;
    UsdPerHour::from_micros(i64::try_from(micros).unwrap_or(i64::MAX)).unwrap_or(price)
}

fn fits(config: &RunPodConfig, offer: &Offer, machine: &Machine) -> Result<(), String> {
    // Exhaustive: what a machine may be asked for is honoured or refused.
    let Machine {
        image,
        agent, // fetched, or the image's own: see `entry`
        bootstrap: _,
        cpu_millis,
        memory,
        ephemeral,
        ports: _,
        service_account,
        image_pull_secrets,
        volumes,
        grace_seconds: _, // the agent's
        labels: _,        // there are none
    } = machine;
    if image.trim().is_empty() {
        return Err("a pod needs an image".to_owned());
    }
    entry::enters(image, agent)?;
    if !volumes.is_empty() {
        return Err("volumes of the cluster cannot be had in a pod of RunPod's".to_owned());
    }
    if service_account.is_some() {
        return Err("accounts of the cluster mean nothing in a pod of RunPod's".to_owned());
    }
    if !image_pull_secrets.is_empty() && config.registry.is_none() {
        return Err("imagePullSecrets of the cluster are not sent to RunPod: make a registry \
                    credential there, and name its id"
            .to_owned());
    }
    if let Some(has) = offer.vcpu_milli.filter(|has| *cpu_millis > *has) {
        return Err(format!("{} has {has}m processors, not {cpu_millis}m", offer.id));
    }
    if let Some(has) = offer.memory.filter(|has| *memory > *has) {
        return Err(format!("{} has {has} bytes of memory, not {memory}", offer.id));
    }
    let disk = u64::from(config.disk_gb) * 1_000_000_000;
    if let Some(wanted) = ephemeral.filter(|wanted| *wanted > disk) {
        return Err(format!("pods of {} have {disk} bytes of disk, not {wanted}", config.name));
    }
    Ok(())
}

fn environment(
    identity: &Identity,
    offer: &Offer,
    machine: &Machine,
) -> Result<BTreeMap<String, String>, String> {
    let mut environment = machine.bootstrap.environment();
    environment.insert(env::IDENTITY.to_owned(), identity_text(identity));
    let offered = serde_json::to_string(offer).map_err(|error| error.to_string())?;
    environment.insert(pod::OFFER.to_owned(), offered);
    // Images that run as somebody else let nobody write where the agent goes.
    environment.insert("RUNPOD_POD_USER".to_owned(), "0".to_owned());
    if environment.len() >= VARIABLES {
        return Err(format!("a pod takes {VARIABLES} variables"));
    }
    Ok(environment)
}

/// Ports of the agent, if it is dialled, and of the work; RunPod maps each to one of the host's.
fn ports(machine: &Machine) -> Vec<String> {
    let agent = Some(machine.bootstrap.port).filter(|_| machine.bootstrap.endpoint.is_none());
    let others = machine.ports.iter().copied().filter(|port| Some(*port) != agent);
    agent.into_iter().chain(others).map(|port| format!("{port}/tcp")).collect()
}

/// What either call says.
struct Wish<'a> {
    config: &'a RunPodConfig,
    name: String,
    thing: &'a Thing,
    machine: &'a Machine,
    start: String,
    environment: BTreeMap<String, String>,
}

fn rest(wish: &Wish<'_>) -> Map<String, Value> {
    let Wish { config, name, thing, machine, start, environment } = wish;
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| body.insert(key.to_owned(), value);
    put("name", json!(name));
    put("image", json!(machine.image));
    put("args", json!(start));
    put("env", json!(environment));
    put("disk", json!(config.disk_gb));
    put("ports", json!(ports(machine)));
    put("cloud", json!(thing.cloud.as_str()));
    match &thing.what {
        What::Gpu { id, count } => {
            let mut gpu = json!({ "id": id, "count": count });
            if let Some(version) = &config.min_cuda {
                gpu["minCudaVersion"] = json!(version);
            }
            put("gpu", gpu)
        }
        What::Cpu { id, vcpus } => put("cpu", json!({ "id": id, "vcpuCount": vcpus })),
    };
    if !config.data_centers.is_empty() {
        put("dataCenterIds", json!(config.data_centers));
    }
    if let Some(registry) = &config.registry {
        put("registry", json!(registry));
    }
    body
}

fn bid(wish: &Wish<'_>, most: UsdPerHour, now: Timestamp) -> Result<Map<String, Value>, String> {
    let Wish { config, name, thing, machine, start, environment } = wish;
    let What::Gpu { id, count } = &thing.what else {
        return Err(format!("{thing} is not sold as spot"));
    };
    // One pays what one bids, for each: rounded down, so that never more than was decided on is bid.
    let each = UsdPerHour::from_micros(most.micros() / i64::from(*count)).unwrap_or_default();
    if each == UsdPerHour::ZERO {
        return Err(format!("{most} $/h leave nothing to bid for {thing}"));
    }
    let life = SignedDuration::try_from(config.spot_life).unwrap_or(SignedDuration::MAX);
    let ends = now.saturating_add(life).unwrap_or(Timestamp::MAX);
    let env: Vec<Value> =
        environment.iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
    let mut input = Map::new();
    let mut put = |key: &str, value: Value| input.insert(key.to_owned(), value);
    put("name", json!(name));
    put("imageName", json!(machine.image));
    put("dockerArgs", json!(start));
    put("env", json!(env));
    put("containerDiskInGb", json!(config.disk_gb));
    put("volumeInGb", json!(0));
    put("ports", json!(ports(machine).join(",")));
    put("cloudType", json!(thing.cloud.as_str()));
    put("gpuTypeId", json!(id));
    put("gpuCount", json!(count));
    put("bidPerGpu", json!(dollars::number(each)));
    put("terminateAfter", json!(ends.to_string()));
    match config.data_centers.as_slice() {
        [] => {}
        [center] => drop(put("dataCenterId", json!(center))),
        // One call names one, and without a name it may be anywhere.
        _ => return Err("spot pods can be asked for in one data centre at most".to_owned()),
    }
    if let Some(registry) = &config.registry {
        put("containerRegistryAuthId", json!(registry));
    }
    if let Some(version) = &config.min_cuda {
        put("minCudaVersion", json!(version));
    }
    Ok(input)
}
