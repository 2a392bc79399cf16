//! Instances: how one looks, in lists that are late; and how it is ended.

use super::error::Error;
use super::filter;
use super::page;
use super::world::{Ask, Instance, World, iso, state};
use super::xml::Xml;
use crate::engine::machine::{Life, Machine, Why};

/// Filters of `DescribeInstances` that are served.
const FILTERS: &[&str] = &[
    "tag:*",
    "tag-key",
    "instance-state-name",
    "instance-state-code",
    "client-token",
    "instance-id",
    "instance-lifecycle",
    "instance-type",
    "image-id",
    "availability-zone",
    "availability-zone-id",
    "subnet-id",
    "vpc-id",
    "reservation-id",
    "spot-instance-request-id",
];

/// `DescribeInstances`.
pub(crate) fn describe(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let ids = ask.form.list("InstanceId");
    let filters = ask.form.filters(FILTERS)?;
    let page = page::read(ask, 5..=1000)?;
    if !ids.is_empty() && page.is_asked() {
        let message = "The parameter instancesSet cannot be used with the parameter maxResults";
        return Err(Error::combination(message));
    }
    ask.ready()?;
    let found = if ids.is_empty() {
        world.seen(&ask.region.name).collect()
    } else {
        world.found(&ask.region.name, &ids)?
    };
    let found = found.into_iter().filter(|(machine, instance)| {
        filter::all(&filters, |name| under(world, machine, instance, name))
    });
    let (found, next) = page.cut(ask, world.page, found.collect::<Vec<_>>())?;
    let mut reservations: Vec<(&str, Vec<(&Machine, &Instance)>)> = Vec::new();
    for (machine, instance) in found {
        match reservations.iter_mut().find(|(id, _)| *id == instance.reservation) {
            Some((_, own)) => own.push((machine, instance)),
            None => reservations.push((&instance.reservation, vec![(machine, instance)])),
        }
    }
    let mut xml = Xml::default();
    xml.items("reservationSet", reservations, |xml, (id, own)| reservation(xml, world, id, &own));
    xml.maybe("nextToken", next);
    Ok(xml)
}

/// What an instance has under the name of a filter.
fn under(world: &World, machine: &Machine, instance: &Instance, name: &str) -> Vec<String> {
    let one = |text: &str| vec![text.to_owned()];
    let perhaps = |text: &Option<String>| text.iter().cloned().collect();
    match name {
        "instance-state-name" => one(state(machine).1),
        "instance-state-code" => one(&state(machine).0.to_string()),
        "client-token" => perhaps(&instance.token),
        "instance-id" => one(&machine.id),
        // On demand is no lifecycle.
        "instance-lifecycle" => instance.request.iter().map(|_| "spot".to_owned()).collect(),
        "instance-type" => one(&instance.kind),
        "image-id" => one(&instance.image),
        "availability-zone" => one(&instance.zone.name),
        "availability-zone-id" => one(&instance.zone.id),
        "subnet-id" => one(&instance.subnet),
        "vpc-id" => one(&instance.vpc),
        "reservation-id" => one(&instance.reservation),
        "spot-instance-request-id" => perhaps(&instance.request),
        name => filter::tagged(world.tags_of(&machine.id), name),
    }
}

/// A reservation and its instances.
pub(crate) fn reservation(xml: &mut Xml, world: &World, id: &str, own: &[(&Machine, &Instance)]) {
    xml.leaf("reservationId", id).leaf("ownerId", &world.account).within("groupSet", |_| {});
    xml.items("instancesSet", own, |xml, (machine, instance)| view(xml, world, machine, instance));
}

fn view(xml: &mut Xml, world: &World, machine: &Machine, instance: &Instance) {
    let (code, name) = state(machine);
    let gone = machine.life == Life::Terminated;
    let there = Some(()).filter(|()| !gone);
    xml.leaf("instanceId", &machine.id)
        .leaf("imageId", &instance.image)
        .within("instanceState", |xml| {
            xml.leaf("code", code).leaf("name", name);
        })
        .leaf("instanceType", &instance.kind)
        .within("placement", |xml| {
            xml.leaf("availabilityZone", &instance.zone.name)
                .leaf("availabilityZoneId", &instance.zone.id)
                .leaf("tenancy", "default");
        })
        .maybe("instanceLifecycle", instance.request.as_ref().map(|_| "spot"))
        .maybe("spotInstanceRequestId", instance.request.as_ref())
        .leaf("clientToken", instance.token.as_deref().unwrap_or_default())
        .leaf("launchTime", iso(machine.created))
        .leaf("architecture", instance.architecture)
        .leaf("virtualizationType", "hvm")
        .leaf("hypervisor", "xen")
        .leaf("rootDeviceType", "ebs")
        .leaf("rootDeviceName", instance.root)
        .leaf("amiLaunchIndex", 0)
        .leaf("ebsOptimized", false);
    let (private, public) = addresses(world, machine, instance);
    let private = private.filter(|_| !gone);
    let dashed = private.as_ref().map(|private| private.replace('.', "-"));
    xml.leaf(
        "privateDnsName",
        dashed.map_or(String::new(), |dashed| format!("ip-{dashed}.ec2.internal")),
    )
    .maybe("privateIpAddress", private)
    .leaf("dnsName", public.as_deref().filter(|_| !gone).unwrap_or_default())
    .maybe("ipAddress", public.filter(|_| !gone && machine.life != Life::Exited))
    .maybe("subnetId", there.map(|()| &instance.subnet))
    .maybe("vpcId", there.map(|()| &instance.vpc))
    .items("groupSet", &instance.groups, |xml, (id, name)| {
        xml.leaf("groupId", id).leaf("groupName", name);
    })
    .leaf("reason", transition(machine));
    if let Some((code, message)) = reason(machine, instance) {
        xml.within("stateReason", |xml| {
            xml.leaf("code", code).leaf("message", message);
        });
    }
    if let Some(profile) = &instance.profile {
        xml.within("iamInstanceProfile", |xml| {
            let arn = format!("arn:aws:iam::{}:instance-profile/{profile}", world.account);
            xml.leaf("arn", arn).leaf("id", format!("AIPA{}", profile.to_uppercase()));
        });
    }
    xml.within("metadataOptions", |xml| {
        xml.leaf("state", "applied")
            .leaf("httpTokens", &instance.metadata.tokens)
            .leaf("httpPutResponseHopLimit", instance.metadata.hop_limit)
            .leaf("httpEndpoint", "enabled");
    });
    let disks = world.engine.disks().iter();
    let disks = disks.filter(|disk| disk.machine.as_deref() == Some(&machine.id));
    xml.items("blockDeviceMapping", disks, |xml, disk| {
        let device = world.volumes.get(&disk.id).map_or("", |volume| volume.device.as_str());
        xml.leaf("deviceName", device).within("ebs", |xml| {
            xml.leaf("volumeId", &disk.id)
                .leaf("status", "attached")
                .leaf("attachTime", iso(disk.created))
                .leaf("deleteOnTermination", disk.dies_with_machine);
        });
    });
    xml.tags(world.tags_of(&machine.id));
}

/// Private and public address. A machine that has one of its own has no other, and before it has it,
/// none: the address of an instance does not change.
fn addresses(
    world: &World,
    machine: &Machine,
    instance: &Instance,
) -> (Option<String>, Option<String>) {
    if world.engine.gives_addresses() {
        let own = world.engine.own_address(&machine.id).map(|own| own.to_string());
        return (own.clone(), own.filter(|_| instance.public.is_some()));
    }
    (Some(instance.private.to_string()), instance.public.map(|public| public.to_string()))
}

/// `reason`: how it came to its state, in free text.
fn transition(machine: &Machine) -> String {
    match machine.leaving.or(machine.stopped) {
        Some((at, Why::User)) => {
            format!("User initiated ({} GMT)", at.strftime("%Y-%m-%d %H:%M:%S"))
        }
        Some((_, Why::Evicted | Why::Price)) => "Server.SpotInstanceTermination".to_owned(),
        _ => String::new(),
    }
}

/// `stateReason`: code and message. So an interruption can be told from all else.
fn reason(machine: &Machine, instance: &Instance) -> Option<(&'static str, &'static str)> {
    if state(machine).0 == 0 {
        return Some(("pending", "pending"));
    }
    let (_, why) = machine.leaving.or(machine.stopped)?;
    Some(match why {
        Why::User | Why::Balance | Why::Deadline => (
            "Client.UserInitiatedShutdown",
            "Client.UserInitiatedShutdown: User initiated shutdown",
        ),
        Why::Process => (
            "Client.InstanceInitiatedShutdown",
            "Client.InstanceInitiatedShutdown: Instance initiated shutdown",
        ),
        Why::Evicted | Why::Price if instance.request.is_some() => (
            "Server.SpotInstanceTermination",
            "Server.SpotInstanceTermination: Spot instance termination",
        ),
        Why::Evicted | Why::Price => {
            ("Server.InternalError", "Server.InternalError: Internal error")
        }
    })
}

/// `DescribeInstanceStatus`: of those that run, unless all are asked for.
pub(crate) fn status(world: &World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let ids = ask.form.list("InstanceId");
    let all = ask.form.flag("IncludeAllInstances")?;
    let filters = ask.form.filters(&["instance-state-name", "availability-zone"])?;
    let page = page::read(ask, 5..=1000)?;
    ask.ready()?;
    let found = if ids.is_empty() {
        world.seen(&ask.region.name).collect()
    } else {
        world.found(&ask.region.name, &ids)?
    };
    let found = found.into_iter().filter(|(machine, instance)| {
        (all || state(machine).0 == 16)
            && filter::all(&filters, |name| under(world, machine, instance, name))
    });
    let (found, next) = page.cut(ask, world.page, found.collect::<Vec<_>>())?;
    let mut xml = Xml::default();
    xml.items("instanceStatusSet", found, |xml, (machine, instance)| {
        let (code, name) = state(machine);
        let well = if machine.life == Life::Running { "ok" } else { "initializing" };
        let (status, check) = match (machine.stuck, name) {
            (true, "running") => ("impaired", Some("failed")),
            (_, "running") => (well, Some("passed")),
            _ => ("not-applicable", None),
        };
        xml.leaf("instanceId", &machine.id)
            .leaf("availabilityZone", &instance.zone.name)
            .leaf("availabilityZoneId", &instance.zone.id)
            .within("instanceState", |xml| {
                xml.leaf("code", code).leaf("name", name);
            });
        for each in ["instanceStatus", "systemStatus"] {
            xml.within(each, |xml| {
                xml.leaf("status", status).items("details", check, |xml, status| {
                    xml.leaf("name", "reachability").leaf("status", status);
                });
            });
        }
    });
    xml.maybe("nextToken", next);
    Ok(xml)
}

/// `TerminateInstances`: all of them, or, when one is unknown, none.
pub(crate) fn terminate(world: &mut World, ask: &Ask<'_>) -> Result<Xml, Error> {
    let ids = ask.form.list("InstanceId");
    ask.form.flag("Force")?;
    ask.form.flag("SkipOsShutdown")?;
    if ids.is_empty() {
        return Err(Error::missing("InstanceId"));
    }
    ask.ready()?;
    let found = world.found(&ask.region.name, &ids)?;
    if let Some((machine, _)) = found.iter().find(|(_, instance)| instance.protected) {
        let message = format!(
            "The instance '{}' may not be terminated. Modify its 'disableApiTermination' instance \
             attribute and try again.",
            machine.id
        );
        return Err(Error::client("OperationNotPermitted", message));
    }
    ask.owns("ec2:TerminateInstances", &ids, world)?;
    let count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
    let before: Vec<_> = found.iter().map(|(machine, _)| state(machine)).collect();
    if !world.bucket(&ask.region.name, "ended", world.limits.ended, count) {
        return Err(Error::throttled());
    }
    for id in &ids {
        // What has ended has ended: that is no error.
        let _ = world.engine.end(id, Why::User);
    }
    let mut xml = Xml::default();
    xml.items("instancesSet", ids.iter().zip(before), |xml, (id, before)| {
        let now = world.engine.machine(id).map_or(before, state);
        xml.leaf("instanceId", id);
        for (name, state) in [("currentState", now), ("previousState", before)] {
            xml.within(name, |xml| {
                xml.leaf("code", state.0).leaf("name", state.1);
            });
        }
    });
    Ok(xml)
}
