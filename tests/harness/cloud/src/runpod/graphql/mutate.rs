//! What can be done: buying, stopping, resuming, ending, credentials.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::parse::Field;
use super::{Wrong, query};
use crate::engine::Refusal;
use crate::engine::machine::Why;
use crate::engine::product::Sale;
use crate::faults::Fault;
use crate::runpod::catalog;
use crate::runpod::keys::Scope;
use crate::runpod::world::{
    HOST_FULL, NONE_LEFT, NONE_LEFT_SPOT, Registry, SOMETHING, Spec, World,
};

/// Input of the two mutations that buy; `bid_per_gpu` only where it can be taken away.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Buy {
    #[serde(default)]
    name: String,
    image_name: String,
    gpu_type_id: String,
    #[serde(default = "one")]
    gpu_count: u32,
    cloud_type: Option<Cloud>,
    data_center_id: Option<String>,
    country_code: Option<String>,
    bid_per_gpu: Option<f64>,
    container_disk_in_gb: Option<u32>,
    #[serde(default)]
    volume_in_gb: u32,
    volume_mount_path: Option<String>,
    ports: Option<String>,
    docker_args: Option<String>,
    #[serde(default)]
    env: Vec<Variable>,
    container_registry_auth_id: Option<String>,
    stop_after: Option<Timestamp>,
    terminate_after: Option<Timestamp>,
    min_cuda_version: Option<String>,
    // Accepted; there is nothing here that they could choose between.
    #[serde(rename = "minVcpuCount")]
    _min_vcpu_count: Option<Value>,
    #[serde(rename = "minMemoryInGb")]
    _min_memory_in_gb: Option<Value>,
    #[serde(rename = "startSsh")]
    _start_ssh: Option<bool>,
    #[serde(rename = "startJupyter")]
    _start_jupyter: Option<bool>,
    #[serde(rename = "supportPublicIp")]
    _support_public_ip: Option<bool>,
    #[serde(rename = "allowedCudaVersions")]
    _allowed_cuda_versions: Option<Vec<String>>,
    #[serde(rename = "cudaVersion")]
    _cuda_version: Option<String>,
    #[serde(rename = "minDownload")]
    _min_download: Option<Value>,
    #[serde(rename = "minUpload")]
    _min_upload: Option<Value>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
enum Cloud {
    All,
    Secure,
    Community,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    key: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct OfPod {
    pod_id: String,
    bid_per_gpu: Option<f64>,
    gpu_count: Option<u32>,
}

fn one() -> u32 {
    1
}

fn micros(dollars: f64) -> i64 {
    (dollars * 1e6).round() as i64
}

pub(super) fn field(
    world: &mut World,
    field: &Field,
    variables: &Value,
    scope: Option<&Scope>,
    faults: &[Fault],
) -> Result<Value, Wrong> {
    let input = field.argument("input", variables);
    let subject = input["podId"].as_str();
    if !scope.is_some_and(|scope| scope.may_change(subject)) {
        return Err(Wrong { message: "this key may not do that".to_owned(), code: "FORBIDDEN" });
    }
    match field.name.as_str() {
        "podFindAndDeployOnDemand" => buy(world, input, false, faults),
        "podRentInterruptable" => buy(world, input, true, faults),
        "podResume" | "podBidResume" => {
            let OfPod { pod_id, bid_per_gpu, gpu_count } = read(input)?;
            let units = world.pod(&pod_id).map(|(machine, _)| machine.order.units);
            if units.is_some_and(|units| gpu_count.is_some_and(|count| count != units)) {
                return Err(Wrong::new("a pod in the box resumes with all of its GPUs"));
            }
            act(world, &pod_id, |world| world.engine.resume(&pod_id, bid_per_gpu.map(micros)))
        }
        "podStop" => {
            let OfPod { pod_id, .. } = read(input)?;
            act(world, &pod_id, |world| world.engine.halt(&pod_id, Why::User))
        }
        "podTerminate" => {
            let OfPod { pod_id, .. } = read(input)?;
            let unknown = || Wrong::new("pod not found to terminate");
            world.pod(&pod_id).ok_or_else(unknown)?;
            world.engine.end(&pod_id, Why::User).map_err(|_| unknown())?;
            Ok(Value::Null)
        }
        "saveRegistryAuth" => {
            world.named += 1;
            let name = input["name"].as_str().unwrap_or_default().to_owned();
            let registry = Registry { id: format!("registry-{}", world.named), name };
            let body = json!({ "id": registry.id, "name": registry.name });
            world.registries.push(registry);
            Ok(body)
        }
        _ => {
            let id = field.argument("registryAuthId", variables);
            world.registries.retain(|known| Some(known.id.as_str()) != id.as_str());
            Ok(Value::Null)
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(input: Value) -> Result<T, Wrong> {
    let wrong = |error| Wrong::input(format!("Variable \"$input\" got an invalid value; {error}"));
    serde_json::from_value(input).map_err(wrong)
}

fn act(
    world: &mut World,
    id: &str,
    act: impl FnOnce(&mut World) -> Result<(), Refusal>,
) -> Result<Value, Wrong> {
    world.pod(id).ok_or_else(|| Wrong::new("pod not found"))?;
    act(world).map_err(|refusal| match refusal {
        Refusal::NoCapacity => Wrong::new(HOST_FULL),
        other => Wrong::new(&other.to_string()),
    })?;
    Ok(query::pod(world, id))
}

fn buy(world: &mut World, input: Value, spot: bool, faults: &[Fault]) -> Result<Value, Wrong> {
    let spec = specify(read(input)?, spot)?;
    let id = world.buy(spec, faults).map_err(|refusal| match refusal {
        // What is said of a bid that is too low was not seen.
        Refusal::NoCapacity | Refusal::Bid if spot => Wrong::new(NONE_LEFT_SPOT),
        Refusal::NoCapacity => Wrong::new(NONE_LEFT),
        Refusal::Balance | Refusal::SpendLimit => Wrong::new("Your account balance is too low."),
        _ => Wrong::new(SOMETHING),
    })?;
    let pod = world.engine.machine(&id).zip(world.specs.get(&id));
    Ok(pod.map(|(machine, spec)| query::view(world, machine, spec)).unwrap_or_default())
}

fn specify(buy: Buy, spot: bool) -> Result<Spec, Wrong> {
    let undefined = "Field \"bidPerGpu\" is not defined by type \"PodFindAndDeployOnDemandInput\".";
    let sale = match (spot, buy.bid_per_gpu) {
        (true, Some(bid)) => Sale::Spot { bid: micros(bid) },
        (true, None) => return Err(Wrong::new(SOMETHING)),
        (false, None) => Sale::OnDemand,
        (false, Some(_)) => return Err(Wrong::input(undefined.to_owned())),
    };
    if !catalog::has_cuda(buy.min_cuda_version.as_deref()) {
        return Err(Wrong::new(if spot { NONE_LEFT_SPOT } else { NONE_LEFT }));
    }
    let cloud = match buy.cloud_type {
        None | Some(Cloud::All) => None,
        Some(Cloud::Secure) => Some("SECURE"),
        Some(Cloud::Community) => Some("COMMUNITY"),
    };
    let ports = buy.ports.as_deref().unwrap_or_default().split(',');
    let ports = ports.filter(|port| !port.is_empty()).map(str::to_owned).collect();
    let path = buy.volume_mount_path.unwrap_or_else(|| "/workspace".to_owned());
    let env = buy.env.into_iter().map(|variable| (variable.key, variable.value));
    Ok(Spec {
        name: buy.name,
        image: buy.image_name,
        args: buy.docker_args,
        env: env.collect::<BTreeMap<_, _>>(),
        disk: buy.container_disk_in_gb.unwrap_or(10),
        volume: (buy.volume_in_gb > 0).then_some((buy.volume_in_gb, path)),
        ports,
        registry: buy.container_registry_auth_id,
        cloud,
        kind: buy.gpu_type_id,
        cpu: false,
        units: buy.gpu_count,
        zones: buy.data_center_id.into_iter().collect(),
        country: buy.country_code,
        sale,
        stop_after: buy.stop_after,
        end_after: buy.terminate_after,
        locked: false,
        global_networking: false,
    })
}
