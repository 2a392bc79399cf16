//! Pods of REST v2: how one looks, and what can be done to it.

use serde_json::{Value, json};

use super::answer::{Answer, Ask};
use super::catalog;
use super::wire::{Act, Action, CloudType, Create, Mounts, Patch};
use super::world::{HOST_FULL, NONE_LEFT, Spec, World};
use crate::engine::Refusal;
use crate::engine::machine::{Life, Machine, Why};
use crate::engine::product::Sale;
use crate::faults::Fault;

/// Variables that a pod may have.
const MOST_VARIABLES: usize = 50;

pub(crate) fn status(life: Life) -> &'static str {
    match life {
        Life::Provisioning => "PROVISIONING",
        Life::Starting => "STARTING",
        Life::Running => "RUNNING",
        Life::Exited => "EXITED",
        Life::Ending | Life::Terminated => "TERMINATED",
    }
}

fn actions(life: Life) -> &'static [&'static str] {
    match life {
        Life::Running => &["stop", "restart", "terminate"],
        Life::Exited => &["start", "terminate"],
        Life::Provisioning | Life::Starting => &["stop", "terminate"],
        Life::Ending | Life::Terminated => &[],
    }
}

/// Dollars of micro-dollars.
pub(crate) fn dollars(micros: i64) -> f64 {
    micros as f64 / 1e6
}

/// A pod as v2 shows it: there is no reason of its end, no exit code, no machine, no spot.
fn view(world: &World, machine: &Machine, spec: &Spec) -> Value {
    let placed = machine.life != Life::Provisioning;
    let product = world.engine.product(machine.order.product);
    let gpu = json!({ "id": spec.kind, "count": spec.units });
    let cpu = json!({ "id": spec.kind, "vcpuCount": spec.units });
    let uptime = machine.started.map_or(0, |at| world.engine.now().duration_since(at).as_secs());
    let ports: Vec<Value> =
        spec.ports.iter().map(|port| runtime_port(world, &machine.id, port)).collect();
    let runtime = json!({ "uptime": uptime, "gpus": [], "cpu": { "util": 0 },
        "memory": { "util": 0 }, "ports": ports });
    let volume = spec.volume.as_ref();
    let mut pod = json!({
        "id": machine.id,
        "name": spec.name,
        "status": status(machine.life),
        "actions": actions(machine.life),
        "image": spec.image,
        "args": spec.args,
        "env": spec.env,
        "disk": spec.disk,
        "ports": spec.ports,
        "registry": spec.registry,
        "mounts": volume.map(|(size, path)| json!({ "persistent": { "size": size, "path": path } })),
        "cloud": product.pool,
        "dataCenterId": product.zone.as_ref().filter(|_| placed),
        "cudaVersion": Option::<String>::None,
        "ssh": { "proxy": null, "direct": null },
        "template": null,
        "cost": dollars(if machine.holds_units() { machine.rate } else { 0 }),
        "locked": spec.locked,
        "globalNetworking": { "enabled": spec.global_networking, "ip": null, "internalDns": null },
        "runtime": Some(runtime).filter(|_| machine.life == Life::Running),
        "createdAt": machine.created.to_string(),
        "startedAt": machine.started.map(|at| at.to_string()),
    });
    pod[if spec.cpu { "cpu" } else { "gpu" }] = if spec.cpu { cpu } else { gpu };
    pod
}

/// TCP has a public port of the host's, HTTP goes through the proxy.
fn runtime_port(world: &World, id: &str, port: &str) -> Value {
    let (number, kind) = port.split_once('/').unwrap_or((port, "tcp"));
    let number = number.parse().unwrap_or_default();
    let public = world.engine.address(id, number).filter(|_| kind == "tcp");
    json!({ "private": number, "public": public.map(|at| at.port()), "type": kind,
        "ip": public.map(|at| at.ip().to_string()) })
}

/// `GET /v2/pods`.
pub(crate) fn list(world: &World, ask: &Ask<'_>) -> Answer {
    let mut pods: Vec<Value> =
        world.pods().into_iter().map(|(machine, spec)| view(world, machine, spec)).collect();
    if ask.shows(Fault::PartialPage) {
        pods.truncate(pods.len() / 2);
    }
    let Some(size) = world.page.filter(|size| *size > 0) else {
        return Answer::ok(json!({ "pods": pods }));
    };
    let cursor = ask.parameter("cursor");
    let from = match cursor.map(str::parse::<usize>) {
        None => 0,
        Some(Ok(from)) => from,
        Some(Err(_)) => return Answer::problem(400, "cursor: unknown"),
    };
    let next = Some(from.saturating_add(size)).filter(|next| *next < pods.len());
    let next = if ask.shows(Fault::RepeatedCursor) { Some(from) } else { next };
    let page: Vec<Value> = pods.into_iter().skip(from).take(size).collect();
    let pagination =
        json!({ "hasNextPage": next.is_some(), "nextCursor": next.map(|next| next.to_string()) });
    Answer::ok(json!({ "pods": page, "pagination": pagination }))
}

/// `POST /v2/pods`.
pub(crate) fn create(world: &mut World, ask: &Ask<'_>) -> Answer {
    let spec = match Create::read(ask.body).and_then(|create| specify(world, create)) {
        Ok(spec) => spec,
        Err(answer) => return answer,
    };
    match world.buy(spec, ask.faults) {
        Ok(id) => match (world.engine.machine(&id), world.specs.get(&id)) {
            // Also while no listing shows it yet.
            (Some(machine), Some(spec)) => Answer::created(view(world, machine, spec)),
            _ => Answer::problem(500, "the pod was lost"),
        },
        Err(refusal) => refused(refusal),
    }
}

/// The rules across fields, all of which are 400, as having no capacity is.
fn specify(world: &World, create: Create) -> Result<Spec, Answer> {
    let Create { name, image, args, env, disk, ports, registry, cloud, gpu, cpu, .. } = create;
    let fail = |text: &str| Err(Answer::problem(400, text));
    let (kind, units, is_cpu) = match (gpu, cpu) {
        (Some(gpu), None) => {
            if gpu.min_cuda_version.is_some() && !gpu.allowed_cuda_versions.is_empty() {
                return fail("gpu: allowedCudaVersions and minCudaVersion exclude each other");
            }
            if !catalog::has_cuda(gpu.min_cuda_version.as_deref()) {
                return fail(NONE_LEFT);
            }
            (gpu.id, gpu.count, false)
        }
        (None, Some(cpu)) => (cpu.id, cpu.vcpu_count, true),
        _ => return fail("exactly one of gpu and cpu is required"),
    };
    if create.template_id.is_some() {
        return fail("templateId: unknown template");
    }
    let Some(image) = image else { return fail("image is required without templateId") };
    if env.len() > MOST_VARIABLES {
        return fail("env: at most 50 variables");
    }
    if create.start_ssh || create.start_jupyter {
        return fail("startSsh and startJupyter need an SSH key on the account");
    }
    if registry.as_ref().is_some_and(|id| world.registries.iter().all(|known| known.id != *id)) {
        return fail("registry: unknown");
    }
    let known = if is_cpu {
        world.catalog.cpus.iter().any(|flavour| flavour.id == kind)
    } else {
        world.catalog.gpus.iter().any(|gpu| gpu.id == kind)
    };
    if !known {
        return fail("id: unknown type of GPU or CPU");
    }
    let unknown = |id: &&String| world.catalog.places.iter().all(|place| place.id != **id);
    if let Some(id) = create.data_center_ids.iter().find(unknown) {
        return fail(&format!("dataCenterIds: unknown data center {id}"));
    }
    let volume = volume(create.mounts, is_cpu)?;
    if create.global_networking && cloud == CloudType::Community {
        return fail("globalNetworking: not on Community");
    }
    Ok(Spec {
        name,
        image,
        args,
        env,
        disk: disk.unwrap_or(10),
        volume,
        ports,
        registry,
        cloud: Some(cloud.name()),
        kind,
        cpu: is_cpu,
        units,
        zones: create.data_center_ids,
        country: None,
        sale: Sale::OnDemand,
        stop_after: None,
        end_after: None,
        locked: false,
        global_networking: create.global_networking,
    })
}

fn volume(mounts: Option<Mounts>, cpu: bool) -> Result<Option<(u32, String)>, Answer> {
    let fail = |text: &str| Err(Answer::problem(400, text));
    match mounts.map(|mounts| (mounts.persistent, mounts.network)) {
        None | Some((None, None)) => Ok(None),
        Some((Some(_), Some(_))) => fail("mounts: persistent and network exclude each other"),
        Some((None, Some(network))) if network.is_empty() => fail("mounts.network: is empty"),
        Some((None, Some(network))) if network.len() > 1 => fail("mounts.network: at most one"),
        Some((None, Some(_))) => fail("mounts.network: unknown volume"),
        Some((Some(_), None)) if cpu => fail("mounts.persistent: not for CPU pods"),
        Some((Some(disk), None)) if disk.size < 10 => fail("mounts.persistent.size: at least 10"),
        Some((Some(disk), None)) => Ok(Some((disk.size, disk.path))),
    }
}

fn refused(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::NoCapacity | Refusal::Bid => Answer::problem(400, NONE_LEFT),
        Refusal::TooLarge => Answer::problem(400, "gpu.count: no machine has that many"),
        Refusal::Balance => Answer::problem(402, "Your account balance is too low."),
        Refusal::SpendLimit => Answer::problem(402, "Your account's spend limit is reached."),
        Refusal::Unknown => Answer::problem(404, "pod not found"),
        Refusal::State => Answer::problem(409, "the pod's state does not allow this"),
    }
}

/// `GET /v2/pods/{id}`.
pub(crate) fn read(world: &World, id: &str) -> Answer {
    match world.pod(id) {
        Some((machine, spec)) => Answer::ok(view(world, machine, spec)),
        None => Answer::problem(404, "pod not found"),
    }
}

/// `PATCH /v2/pods/{id}`.
pub(crate) fn change(world: &mut World, ask: &Ask<'_>, id: &str) -> Answer {
    let patch = match Patch::read(ask.body) {
        Ok(patch) => patch,
        Err(answer) => return answer,
    };
    let Some((machine, spec)) = world.pod(id) else {
        return Answer::problem(404, "pod not found");
    };
    if machine.life == Life::Provisioning {
        return refused(Refusal::State);
    }
    let Patch { name, image, args, disk, ports, env, registry, mounts, locked, global_networking } =
        patch;
    let volume = match volume(mounts, spec.cpu) {
        Ok(volume) => volume,
        Err(answer) => return answer,
    };
    if volume.is_some() || disk.is_some_and(|disk| disk != spec.disk) {
        // What a disk costs that changes its size was not seen; so it does not, here.
        return Answer::problem(501, "the cloud in a box does not change the size of disks");
    }
    world.respecify(id, |spec| {
        spec.name = name.unwrap_or(std::mem::take(&mut spec.name));
        spec.image = image.unwrap_or(std::mem::take(&mut spec.image));
        spec.args = args.or(spec.args.take());
        spec.ports = ports.unwrap_or(std::mem::take(&mut spec.ports));
        spec.env = env.unwrap_or(std::mem::take(&mut spec.env));
        spec.registry = registry.or(spec.registry.take());
        spec.locked = locked.unwrap_or(spec.locked);
        spec.global_networking = global_networking.unwrap_or(spec.global_networking);
    });
    read(world, id)
}

/// `DELETE /v2/pods/{id}`.
pub(crate) fn delete(world: &mut World, id: &str) -> Answer {
    if world.pod(id).is_none() {
        return refused(Refusal::Unknown);
    }
    match world.engine.end(id, Why::User) {
        Ok(()) => Answer::nothing(),
        Err(refusal) => refused(refusal),
    }
}

/// `POST /v2/pods/{id}/action`.
pub(crate) fn act(world: &mut World, ask: &Ask<'_>, id: &str) -> Answer {
    let action = match Act::read(ask.body) {
        Ok(act) => act.action,
        Err(answer) => return answer,
    };
    let Some((machine, _)) = world.pod(id) else { return refused(Refusal::Unknown) };
    let name = match action {
        Action::Start => "start",
        Action::Stop => "stop",
        Action::Restart => "restart",
        Action::Terminate => "terminate",
    };
    if !actions(machine.life).contains(&name) {
        return refused(Refusal::State);
    }
    let done = match action {
        Action::Terminate => return delete(world, id),
        Action::Stop => world.engine.halt(id, Why::User),
        Action::Start => world.engine.resume(id, None),
        Action::Restart => {
            let halted = world.engine.halt(id, Why::User);
            halted.and_then(|()| world.engine.resume(id, None))
        }
    };
    match done {
        Ok(()) => read(world, id),
        Err(Refusal::NoCapacity) => Answer::problem(400, HOST_FULL),
        Err(refusal) => refused(refusal),
    }
}
