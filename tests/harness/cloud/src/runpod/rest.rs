//! REST v2: which call is which, and catalogue, credentials and billing.

use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::answer::{Answer, Ask};
use super::catalog;
use super::pods::{self, dollars};
use super::wire::Credentials;
use super::world::{Registry, World};
use crate::engine::bill::Item;
use crate::engine::product::Product;
use crate::faults::Operation;

/// What kind of call it is; the path is below `/v2`.
pub(crate) fn operation(method: &str, path: &[&str]) -> Operation {
    match (method, path) {
        ("POST", ["pods"]) => Operation::Create,
        ("GET", ["pods"]) => Operation::List,
        ("GET", ["pods", ..]) => Operation::Read,
        ("DELETE", ["pods", _]) => Operation::End,
        (_, ["pods", ..]) => Operation::Change,
        (_, ["catalog", ..]) => Operation::Quote,
        (_, ["billing", ..]) => Operation::Billing,
        _ => Operation::Other,
    }
}

/// Does what is asked.
pub(crate) fn answer(world: &mut World, ask: &Ask<'_>) -> Answer {
    let subject = match ask.path.as_slice() {
        ["pods", id, ..] => Some(*id),
        _ => None,
    };
    if ask.method != "GET" && !ask.scope.may_change(subject) {
        return Answer::problem(403, "this key may not do that");
    }
    match (ask.method, ask.path.as_slice()) {
        ("GET", ["pods"]) => pods::list(world, ask),
        ("POST", ["pods"]) => pods::create(world, ask),
        ("GET", ["pods", id]) => pods::read(world, id),
        ("PATCH", ["pods", id]) => pods::change(world, ask, id),
        ("DELETE", ["pods", id]) => pods::delete(world, id),
        ("POST", ["pods", id, "action"]) => pods::act(world, ask, id),
        ("GET", ["catalog", "gpus"]) => gpus(world, ask, None),
        ("GET", ["catalog", "gpus", id]) => gpus(world, ask, Some(id)),
        ("GET", ["catalog", "cpus"]) => cpus(world, ask),
        ("GET", ["catalog", "datacenters"]) => datacenters(world, ask),
        ("GET", ["registries"]) => {
            let list =
                world.registries.iter().map(|known| json!({ "id": known.id, "name": known.name }));
            Answer::ok(json!({ "registries": list.collect::<Vec<_>>() }))
        }
        ("POST", ["registries"]) => save_registry(world, ask),
        ("DELETE", ["registries", id]) => {
            let before = world.registries.len();
            world.registries.retain(|known| known.id != *id);
            if world.registries.len() < before {
                Answer::nothing()
            } else {
                Answer::problem(404, "registry not found")
            }
        }
        ("GET", ["billing", "pods"]) => billing(world, ask),
        (_, ["pods" | "registries"] | ["pods" | "registries", _] | ["pods", _, "action"]) => {
            Answer::problem(405, "method not allowed")
        }
        (_, ["catalog", "gpus" | "cpus" | "datacenters"] | ["billing", "pods"]) => {
            Answer::problem(405, "method not allowed")
        }
        (
            _,
            ["pods", _, "logs"] | ["templates" | "serverless" | "clusters" | "network-volumes", ..],
        )
        | (_, ["account" | "billing" | "catalog", ..]) => {
            Answer::problem(501, "the cloud in a box does not serve this")
        }
        _ => Answer::problem(404, "no such path"),
    }
}

/// What is left of a product, in the words of the catalogue. Where one begins was not published.
fn availability(world: &World, id: crate::engine::product::ProductId, count: u32) -> u32 {
    let product = world.engine.product(id);
    if count > product.largest { 0 } else { world.engine.free(id) / count.max(1) }
}

/// The word for so many machines of the wanted size: these bounds are made.
pub(crate) fn word(machines: u32) -> &'static str {
    match machines {
        0 => "NONE",
        1..4 => "LOW",
        4..16 => "MEDIUM",
        _ => "HIGH",
    }
}

/// Filters of the stock query: how many, on which cloud, in which countries.
struct Wanted<'a> {
    count: u32,
    cloud: &'a str,
    countries: Vec<&'a str>,
    /// `None`: any.
    cuda: Option<&'a str>,
}

const FILTERS: &[&str] = &["count", "cloud", "countryCodes", "cudaVersions", "minCudaVersion"];

fn wanted<'a>(ask: &'a Ask<'_>) -> Result<Option<Wanted<'a>>, Answer> {
    let fail = |text: &str| Err(Answer::problem(400, text));
    if ask.parameter("include") != Some("AVAILABILITY") {
        if FILTERS.iter().any(|name| ask.parameter(name).is_some()) {
            return fail("filters of availability need include=AVAILABILITY");
        }
        return Ok(None);
    }
    if !["POD", "CLUSTER", "SERVERLESS"].contains(&ask.parameter("product").unwrap_or_default()) {
        return fail("include=AVAILABILITY needs product");
    }
    if ask.parameter("cudaVersions").is_some() && ask.parameter("minCudaVersion").is_some() {
        return fail("cudaVersions and minCudaVersion exclude each other");
    }
    let Ok(count) = ask.parameter("count").unwrap_or("1").parse() else {
        return fail("count: not a number");
    };
    let cloud = ask.parameter("cloud").unwrap_or("SECURE");
    if !["SECURE", "COMMUNITY"].contains(&cloud) {
        return fail("cloud: SECURE or COMMUNITY");
    }
    Ok(Some(Wanted {
        count,
        cloud,
        countries: ask.list("countryCodes"),
        cuda: ask.parameter("minCudaVersion"),
    }))
}

/// `GET /v2/catalog/gpus[/{id}]`.
fn gpus(world: &World, ask: &Ask<'_>, only: Option<&str>) -> Answer {
    let wanted = match wanted(ask) {
        Ok(wanted) => wanted,
        Err(answer) => return answer,
    };
    let kinds = world.catalog.gpus.iter().filter(|kind| only.is_none_or(|id| kind.id == id));
    let list: Vec<Value> = kinds
        .map(|kind| {
            let sold = |pool: &str| cheapest(world, &kind.id, pool);
            let (secure, community) = (sold("SECURE"), sold("COMMUNITY"));
            let price = |product: Option<&Product>| product.map(|p| dollars(p.on_demand));
            let largest = |product: Option<&Product>| product.map_or(0, |p| p.largest);
            let mut gpu = json!({
                "id": kind.id,
                "name": kind.name,
                "pool": null,
                "manufacturer": kind.manufacturer,
                "memory": kind.memory,
                "secure": secure.is_some(),
                "community": community.is_some(),
                "price": { "secure": price(secure), "community": price(community), "serverless": null },
                "maxCount": { "secure": largest(secure), "community": largest(community) },
            });
            if let Some(wanted) = &wanted {
                add_stock(world, &mut gpu, &kind.id, wanted);
            }
            gpu
        })
        .collect();
    match (only, list.into_iter()) {
        (None, list) => Answer::ok(json!({ "gpus": list.collect::<Vec<_>>() })),
        (Some(_), mut list) => match list.next() {
            Some(gpu) => Answer::ok(gpu),
            None => Answer::problem(404, "unknown GPU type"),
        },
    }
}

pub(crate) fn cheapest<'a>(world: &'a World, kind: &str, pool: &str) -> Option<&'a Product> {
    let sold = world.engine.products().map(|(_, product)| product);
    let sold = sold.filter(|product| product.kind == kind && product.pool == pool);
    sold.min_by_key(|product| product.on_demand)
}

fn add_stock(world: &World, gpu: &mut Value, kind: &str, wanted: &Wanted<'_>) {
    let mut most = 0;
    let mut places = Vec::new();
    for (id, product) in world.engine.products() {
        let country = wanted.countries.is_empty() || wanted.countries.contains(&&*product.region);
        let host = country && catalog::has_cuda(wanted.cuda);
        if product.kind != kind || product.pool != wanted.cloud || !host {
            continue;
        }
        let machines = availability(world, id, wanted.count);
        most = most.max(machines);
        if let Some(zone) = product.zone.as_ref().filter(|_| machines > 0) {
            places.push(json!({ "id": zone, "name": zone, "availability": word(machines) }));
        }
    }
    gpu["availability"] = json!(word(most));
    if !places.is_empty() {
        gpu["dataCenters"] = json!(places);
    }
}

/// `GET /v2/catalog/cpus`; they are Secure only.
fn cpus(world: &World, ask: &Ask<'_>) -> Answer {
    let stock = ask.parameter("include") == Some("AVAILABILITY");
    let vcpus = ask.parameter("vcpuCount").map_or(Some(2), |count| count.parse::<u32>().ok());
    let fail = |text: &str| Answer::problem(400, text);
    if stock && !["POD", "SERVERLESS"].contains(&ask.parameter("product").unwrap_or_default()) {
        return fail("include=AVAILABILITY needs product");
    }
    if !stock && ask.parameter("vcpuCount").is_some() {
        return fail("vcpuCount needs include=AVAILABILITY");
    }
    let Some(count) = vcpus.filter(|count| *count >= 2 && count.is_power_of_two()) else {
        return fail("vcpuCount: must be a power of two of at least 2");
    };
    let wanted = Wanted { count, cloud: "SECURE", countries: Vec::new(), cuda: None };
    let list = world.catalog.cpus.iter().map(|flavour| {
        let sold = cheapest(world, &flavour.id, "SECURE");
        let mut cpu = json!({
            "id": flavour.id,
            "name": flavour.id,
            "group": flavour.id,
            "vcpu": { "min": 2, "max": sold.map_or(0, |product| product.largest) },
            "ramGbPerVcpu": flavour.ram,
            "price": { "securePerVcpu": sold.map(|product| dollars(product.on_demand)),
                "serverlessPerVcpu": null },
        });
        if stock {
            add_stock(world, &mut cpu, &flavour.id, &wanted);
        }
        cpu
    });
    Answer::ok(json!({ "cpus": list.collect::<Vec<_>>() }))
}

/// `GET /v2/catalog/datacenters`.
fn datacenters(world: &World, ask: &Ask<'_>) -> Answer {
    let stock = ask.list("include").contains(&"GPU_AVAILABILITY");
    let regions = ask.list("regions");
    let places = world.catalog.places.iter().filter(|place| place.listed);
    let places = places.filter(|place| regions.is_empty() || regions.contains(&place.region));
    let list = places.map(|place| {
        let mut center = json!({
            "id": place.id, "name": place.id, "region": place.region, "globalNetwork": false,
            "networkVolumeTypes": [], "compliance": [],
        });
        if stock {
            let here = world.engine.products().filter(|(_, p)| p.zone.as_ref() == Some(&place.id));
            let gpus = here.filter(|(_, p)| world.catalog.gpus.iter().any(|gpu| gpu.id == p.kind));
            let gpus = gpus.map(|(id, p)| {
                json!({ "id": p.kind, "name": p.kind,
                "availability": word(availability(world, id, 1)) })
            });
            center["gpuAvailability"] = json!(gpus.collect::<Vec<_>>());
        }
        center
    });
    Answer::ok(json!({ "dataCenters": list.collect::<Vec<_>>() }))
}

fn save_registry(world: &mut World, ask: &Ask<'_>) -> Answer {
    let Credentials { name, username, password } = match Credentials::read(ask.body) {
        Ok(credentials) => credentials,
        Err(answer) => return answer,
    };
    if username.is_empty() || password.is_empty() {
        return Answer::problem(400, "username and password must not be empty");
    }
    world.named += 1;
    let registry = Registry { id: format!("registry-{}", world.named), name };
    let body = json!({ "id": registry.id, "name": registry.name });
    world.registries.push(registry);
    Answer::created(body)
}

/// `GET /v2/billing/pods`: what each pod cost in each bucket of a window that is widened to the
/// edges of its buckets.
fn billing(world: &World, ask: &Ask<'_>) -> Answer {
    let size = match ask.parameter("bucketSize").unwrap_or("day") {
        "hour" => 3600,
        "day" => 86_400,
        "week" | "month" | "year" => {
            return Answer::problem(501, "the cloud in a box has buckets of an hour or a day");
        }
        _ => return Answer::problem(400, "bucketSize: unknown"),
    };
    let now = world.engine.now();
    let time = |name: &str, default: Timestamp| {
        ask.parameter(name).map_or(Ok(default), |text| text.parse::<Timestamp>())
    };
    let began = world.engine.machines().iter().map(|machine| machine.created).min().unwrap_or(now);
    let (Ok(from), Ok(until)) = (time("startTime", began), time("endTime", now)) else {
        return Answer::problem(400, "startTime and endTime are RFC 3339");
    };
    // Nothing was billed outside of these, and the window comes from outside.
    let (from, until) = (from.max(began), until.min(now));
    let mut edge = from.as_second().div_euclid(size) * size;
    let mut records = Vec::new();
    while edge < until.as_second() {
        let start = Timestamp::from_second(edge).unwrap_or(from);
        let end = start.saturating_add(SignedDuration::from_secs(size)).unwrap_or(until);
        for machine in world.engine.machines() {
            if ask.parameter("podId").is_none_or(|id| id == machine.id) {
                records.extend(record(world, &machine.id, start, end));
            }
        }
        edge += size;
    }
    Answer::ok(json!({ "records": records, "metadata": { "bucketSize": size } }))
}

fn record(world: &World, id: &str, start: Timestamp, end: Timestamp) -> Option<Value> {
    let invoice = world.engine.invoice();
    let cpu = world.specs.get(id).is_some_and(|spec| spec.cpu);
    let within = world.engine.now().min(end);
    let cost = |disk: bool| {
        let lines = invoice.lines().iter().filter(|line| line.machine == id);
        let lines = lines.filter(|line| (line.item != Item::Compute) == disk);
        lines.map(|line| line.micros(within) - line.micros(start)).sum::<i64>()
    };
    let (compute, disk) = (cost(false), cost(true));
    let (gpus, cpus) = if cpu { (0, compute) } else { (compute, 0) };
    (compute + disk > 0).then(|| {
        json!({ "startTime": start.to_string(), "endTime": end.to_string(), "podId": id,
            "totalAmount": dollars(compute + disk), "gpuAmount": dollars(gpus),
            "cpuAmount": dollars(cpus), "diskAmount": dollars(disk) })
    })
}
