//! What can be asked: prices, stock, pods.

use serde_json::{Map, Value, json};

use super::Wrong;
use super::parse::Field;
use crate::engine::machine::{Life, Machine, Why};
use crate::engine::product::{Product, ProductId, Sale};
use crate::runpod::catalog;
use crate::runpod::keys::Scope;
use crate::runpod::pods::dollars;
use crate::runpod::rest::cheapest;
use crate::runpod::world::{Spec, World};

pub(super) fn field(
    world: &World,
    field: &Field,
    variables: &Value,
    scope: Option<&Scope>,
) -> Result<Value, Wrong> {
    let input = field.argument("input", variables);
    Ok(match field.name.as_str() {
        "gpuTypes" => gpu_types(world, input["id"].as_str()),
        "dataCenters" => data_centers(world, scope.is_some()),
        "pod" => pod(world, input["podId"].as_str().unwrap_or_default()),
        _ => {
            let pods: Vec<Value> = world
                .pods()
                .into_iter()
                .map(|(machine, spec)| view(world, machine, spec))
                .collect();
            let balance = world.engine.balance().map(dollars);
            json!({ "id": "user", "pods": pods, "clientBalance": balance })
        }
    })
}

fn gpu_types(world: &World, only: Option<&str>) -> Value {
    let kinds = world.catalog.gpus.iter().filter(|kind| only.is_none_or(|id| kind.id == id));
    let list = kinds.map(|kind| {
        let (secure, community) =
            (cheapest(world, &kind.id, "SECURE"), cheapest(world, &kind.id, "COMMUNITY"));
        // What is not offered costs 0, or has a price all the same.
        let price = |product: Option<&Product>| product.map_or(0, |p| p.on_demand);
        let spot = |product: Option<&Product>| {
            product.and_then(|p| p.spot.as_ref()).map_or(0, |s| s.at(world.engine.now()))
        };
        let largest = |product: Option<&Product>| product.map_or(0, |p| p.largest);
        json!({
            "id": kind.id,
            "displayName": kind.name,
            "manufacturer": kind.manufacturer,
            "memoryInGb": kind.memory,
            "secureCloud": secure.is_some(),
            "communityCloud": community.is_some(),
            "securePrice": dollars(price(secure)),
            "communityPrice": dollars(price(community).max(kind.phantom)),
            "secureSpotPrice": dollars(spot(secure)),
            "communitySpotPrice": dollars(spot(community)),
            "maxGpuCount": largest(secure).max(largest(community)),
            "maxGpuCountSecureCloud": largest(secure),
            "maxGpuCountCommunityCloud": largest(community),
        })
    });
    list.collect()
}

/// What so many GPUs of a type can be had for under a filter. Without stock everything is null:
/// that is no quote, not the end of the type.
pub(super) fn lowest_price(world: &World, kind: &Map<String, Value>, input: &Value) -> Value {
    let id = kind.get("id").and_then(Value::as_str).unwrap_or_default();
    let count = input["gpuCount"].as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
    let secure = input["secureCloud"].as_bool();
    let (zone, country) = (input["dataCenterId"].as_str(), input["countryCode"].as_str());
    let host = catalog::has_cuda(input["minCudaVersion"].as_str());
    // Community without a country was seen to say nothing even when there was stock.
    let asked = host && (secure != Some(false) || country.is_some());
    let fits = |(_, product): &(ProductId, &Product)| {
        product.kind == id
            && secure.is_none_or(|secure| (product.pool == "SECURE") == secure)
            && zone.is_none_or(|zone| product.zone.as_deref() == Some(zone))
            && country.is_none_or(|country| product.region == country)
            && count <= product.largest
    };
    let fitting = world.engine.products().filter(|product| asked && fits(product));
    let stocked = fitting.map(|(id, product)| (product, world.engine.free(id) / count.max(1), id));
    let stocked = stocked.filter(|(_, machines, _)| *machines > 0);
    let best =
        stocked.min_by_key(|(product, machines, _)| (product.on_demand, u32::MAX - machines));
    let (bid, price, stock, country) = match best {
        Some((product, machines, id)) => (
            world.engine.spot_price(id).map(dollars),
            Some(dollars(product.on_demand)),
            Some(stock(machines)),
            Some(&product.region),
        ),
        None => (None, None, None, None),
    };
    json!({ "gpuTypeId": id, "minimumBidPrice": bid, "uninterruptablePrice": price,
        "stockStatus": stock, "countryCode": country, "minVcpu": null, "minMemory": null,
        "maxUnreservedGpuCount": null, "availableGpuCounts": null })
}

/// The same bounds as v2's, in other letters; nothing is null.
fn stock(machines: u32) -> &'static str {
    match machines {
        0..4 => "Low",
        4..16 => "Medium",
        _ => "High",
    }
}

/// Sparse: what a data centre has none of is not there.
fn data_centers(world: &World, _keyed: bool) -> Value {
    let places = world.catalog.places.iter().map(|place| {
        let here = world.engine.products().filter(|(_, p)| p.zone.as_ref() == Some(&place.id));
        let stocked = here.map(|(id, product)| (product, world.engine.free(id)));
        let gpus = stocked.filter(|(_, free)| *free > 0).map(|(product, free)| {
            json!({ "gpuTypeId": product.kind, "available": true, "stockStatus": stock(free) })
        });
        json!({ "id": place.id, "name": place.id, "listed": place.listed,
            "gpuAvailability": gpus.collect::<Vec<_>>() })
    });
    places.collect()
}

/// A pod, or null where there is none.
pub(super) fn pod(world: &World, id: &str) -> Value {
    world.pod(id).map_or(Value::Null, |(machine, spec)| view(world, machine, spec))
}

pub(super) fn view(world: &World, machine: &Machine, spec: &Spec) -> Value {
    let now = world.engine.now();
    let runs = machine.life == Life::Running;
    let uptime = machine.started.filter(|_| runs).map(|at| now.duration_since(at).as_secs());
    let status = match machine.life {
        Life::Exited => "EXITED",
        Life::Ending | Life::Terminated => "TERMINATED",
        _ => "RUNNING",
    };
    // An eviction and any other stop by the platform read alike.
    let change = match machine.stopped {
        Some((at, Why::User)) => format!("Exited by user: {at}"),
        Some((at, _)) => format!("Exited by Runpod: {at}"),
        None => format!("Rented by User: {}", machine.created),
    };
    let env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let spot = matches!(machine.order.sale, Sale::Spot { .. });
    json!({
        "id": machine.id,
        "name": spec.name,
        "desiredStatus": status,
        "lastStatusChange": change,
        "costPerHr": dollars(if machine.holds_units() { machine.rate } else { 0 }),
        "imageName": spec.image,
        "env": env,
        "gpuCount": if spec.cpu { 0 } else { spec.units },
        "machineId": machine.order.product.0.to_string(),
        "podType": if spot { "INTERRUPTABLE" } else { "RESERVED" },
        "uptimeSeconds": uptime.unwrap_or(0),
        "runtime": uptime.map(|up| json!({ "uptimeInSeconds": up, "ports": ports(world, machine, spec) })),
        "machine": { "podHostId": machine.id, "gpuDisplayName": spec.kind,
            "location": world.engine.product(machine.order.product).region },
    })
}

fn ports(world: &World, machine: &Machine, spec: &Spec) -> Vec<Value> {
    let ports = spec.ports.iter().filter_map(|port| {
        let (number, kind) = port.split_once('/')?;
        let number = number.parse().ok()?;
        let public = world.engine.address(&machine.id, number).filter(|_| kind == "tcp")?;
        Some(json!({ "ip": public.ip().to_string(), "isIpPublic": true, "privatePort": number,
            "publicPort": public.port(), "type": kind }))
    });
    ports.collect()
}
